"""Training batches in the order of their steps, made in this process or by background processes."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from ..errors import STOPPING
from ..method.objective import Batch
from .batches import TrainingBatches


def batches_of_steps(batches: TrainingBatches, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """The batches of steps start..stop - 1 in order, made by ``workers`` background processes, or in this one if 0."""
    if workers == 0:
        return map(batches, range(start, stop))
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more than there are cores: that is for whoever asked
    loader: DataLoader[Batch] = DataLoader(
        _Guarded(batches),  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=4,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        multiprocessing_context="fork",  # the workers share the images in memory, and the count of bad files
        generator=torch.Generator(),  # else it takes a number from torch's own, which dropout draws from
    )
    return map(_unguarded, loader)


class _Guarded:
    """Returns exceptions instead of raising them, because a DataLoader would wrap them in a traceback."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | Exception:
        try:
            return self.batches(step)
        except Exception as error:
            return error


def _unguarded(result: Batch | Exception) -> Batch:
    if isinstance(result, Exception):
        raise result
    return result


def resolve_workers(workers: int | None, device: torch.device) -> int:
    """None means no workers when training on a CPU, otherwise one per core, at most eight."""
    if workers is not None:
        return workers
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    for number in STOPPING:  # these are often sent to the whole process group
        signal.signal(number, signal.SIG_IGN)  # the training process decides when to stop
