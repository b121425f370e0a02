"""Training batches in the order of their steps, made in this process or by background ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from ..method.objective import Batch
from .batches import TrainingBatches


def batches_of_steps(batches: TrainingBatches, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """The batches of steps start..stop - 1 in order, made by ``workers`` background processes, or here for 0."""
    if workers == 0:
        return map(batches, range(start, stop))
    loader: DataLoader[Batch] = DataLoader(
        _Guarded(batches),  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=4,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
    )
    return map(_unguarded, loader)


class _Guarded:
    """Batches, or the exception in their place: a DataLoader would bury it in a traceback."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | Exception:
        try:
            return self.batches(step)
        except Exception as error:
            return error


def _unguarded(found: Batch | Exception) -> Batch:
    if isinstance(found, Exception):
        raise found
    return found


def resolve_workers(workers: int | None, device: torch.device) -> int:
    """None: no workers beside a CPU that trains, else one per core up to eight."""
    if workers is not None:
        return workers
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # both may go to the whole process group
        signal.signal(number, signal.SIG_IGN)  # the training process decides when to stop
