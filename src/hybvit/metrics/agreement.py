"""How far several readings of one image agree, as a confidence in the first of them.

Shapes: log_probabilities, one float [N, K] for each reading; the first is that whose labels are judged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def agreement(log_probabilities: Sequence[Tensor]) -> Tensor:
    """The mean, over readings, of the probability of the label that the first of them gives; float64 [N] in 0..1.

    It is high only where all readings give that label a high probability.
    """
    labels = log_probabilities[0].cpu().argmax(dim=1)
    return torch.stack([part.cpu().double().exp().gather(1, labels[:, None])[:, 0] for part in log_probabilities]).mean(dim=0)
