"""Whether a robust accuracy can be trusted: the symptoms of a defense that only hides its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .autoattack import square_attack
from .robustness import X_PER_PIXEL, Logits, Norm, ascent, check_norm, misclassified, pgd, uniform_in_ball

SYMPTOM = 0.05  # a larger share of images is no chance finding


def reliability(  # noqa: PLR0913  the parameters of the attacks that it makes
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    eps: float = 8 / 255,
    norm: Norm = "linf",
    *,
    steps: int = 20,
    queries: int = 200,
    max_images: int = 64,
) -> list[str]:
    """Reasons not to trust this model's robust accuracy, in plain words; empty if nothing speaks against it.

    They are symptoms of gradient masking (Athalye et al. 2018, Sec. 3.1; Carlini et al. 2019), looked for on the first images
    of x. A share of images counts if it is above 5 %: of 64 images that is four, more than the random start of an attack
    changes. The cost is about 4 * steps + queries model calls.

    Args:
        generator: CPU generator of all random numbers.
        eps: a radius at which the model is evaluated, on the [0, 1] scale.
        steps: of the white-box attack at eps, of length eps / 4, long enough to cross the ball and short enough to converge.
        queries: of the black-box attack; 0 skips it, and then pyautoattack is not needed.
        max_images: the first images of x that are used.

    Raises:
        ValueError: ``norm`` is neither linf nor l2.
        ConfigError: pyautoattack is needed and not installed.
    """
    check_norm(norm)
    x, labels = x[:max_images].detach(), labels[:max_images]
    # Kernels may sum in another order from call to call, hence AutoAttack's tolerance.
    with torch.no_grad():
        first, second = logits(x).detach().clone().float(), logits(x).detach().float()
    reasons = _symptoms_in_logits(first, second)
    right = (~misclassified(first, labels)).nonzero().flatten()
    if not len(right):
        return reasons  # with no image left to break, the robust accuracy of 0 is right
    try:
        reasons += _symptoms_in_gradients(logits, x[right], labels[right])
    except RuntimeError as error:
        return [*reasons, f"the gradient in the image cannot be computed: {(str(error).splitlines() or [''])[0]}"]

    def broken(radius: float, count: int, stride: float, start: Tensor | None = None) -> Tensor:
        return pgd(logits, x, labels, radius, norm, generator, count, stride, start=start).broken

    # It starts in the small ball: a random start in the large one is noise, which breaks most images without any gradient.
    near = x + X_PER_PIXEL * eps * uniform_in_ball(x, norm, generator)
    far = 1.0 if norm == "linf" else x[0].numel() ** 0.5
    unbounded = broken(far, 2 * steps, far / 10, near)
    one_step, attacked, doubled = broken(eps, 1, eps), broken(eps, steps, eps / 4), broken(2 * eps, steps, eps / 2)
    reasons += _symptoms_in_attacks(unbounded, one_step, attacked, doubled)
    if queries:
        seed = int(torch.randint(2**31, (), generator=generator))
        blind = square_attack(logits, x, labels, eps, norm, seed, queries, progress="attack without gradients")
        missed = (~blind.robust & ~attacked).double().mean().item()
        if missed > _threshold(len(x)):
            reasons.append(f"an attack without gradients breaks {missed:.0%} of the images that the one with gradients cannot")
        reasons.extend(text for text in blind.warnings if text.startswith("square failed"))
    return reasons


def _threshold(images: int) -> float:
    """The share of the images above which a symptom counts: 5 %, or more than one image where that is less."""
    return max(SYMPTOM, 1.5 / images)


def _symptoms_in_logits(first: Tensor, second: Tensor) -> list[str]:
    """Symptoms in the logits [B, K] of two calls on the same images."""
    reasons = []
    if not first.isfinite().all():
        reasons.append("the logits of unchanged images are not finite")
    elif ((first - second).norm(dim=1) > 1e-4 * first.norm(dim=1).clamp_min(1e-10)).any():
        reasons.append("two calls on the same images differ: a random defense must be attacked in expectation")
    # The tolerance is that of bfloat16.
    if first.amin() > -1e-2 and first.amax() < 1 + 1e-2 and ((first.sum(dim=1) - 1).abs() < 1e-2).all():
        reasons.append("the outputs are probabilities, not logits: a second softmax flattens the loss")
    return reasons


def _symptoms_in_gradients(logits: Logits, x: Tensor, labels: Tensor) -> list[str]:
    """Symptoms in the gradient in images that are classified correctly."""
    _, gradient, exists = ascent(logits, x, labels)
    if not exists:
        return ["the logits have no gradient in the image: the graph is cut"]
    size = gradient.flatten(1).abs().amax(dim=1)  # of NaN, NaN
    shares = {"0": (size == 0).double().mean(), "not finite": (~size.isfinite()).double().mean()}
    return [
        f"the gradient in the image is {words} for {share:.0%} of the images"
        for words, share in shares.items()
        if share > SYMPTOM
    ]


def _symptoms_in_attacks(unbounded: Tensor, one_step: Tensor, attacked: Tensor, doubled: Tensor) -> list[str]:
    """Symptoms in the outcomes of four attacks, each as the broken images, bool [B].

    Args:
        unbounded: of the attack in a ball that contains every image.
        one_step: at the radius of interest, with one step.
        attacked: at that radius, with all steps.
        doubled: at twice that radius, with all steps.
    """
    reasons = []
    survived = 1 - unbounded.double().mean().item()
    # The attacker chooses the image, so a sound model has an accuracy of 0 here, not the 1/K of chance.
    if survived > SYMPTOM:
        reasons.append(f"an attack without bounds leaves {survived:.0%} accuracy: it cannot find images that surely exist")
    for words, weak, strong in (("more steps", one_step, attacked), ("a larger eps", attacked, doubled)):
        before, after = (1 - found.double().mean().item() for found in (weak, strong))
        if after > before + _threshold(len(weak)):
            reasons.append(f"{words} helped the defense: accuracy rose from {before:.0%} to {after:.0%}")
    return reasons
