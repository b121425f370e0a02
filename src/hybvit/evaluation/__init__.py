"""Evaluation of a model in suites, each of which can be run, resumed and repeated on its own: :func:`evaluate`."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.own_images import Dataset
from ..devices import environment, keep_freed_memory, random_state_kept
from ..distributed import first_of_all, process_group, rank
from ..networks import number_of_parameters
from ..storage import lock_folder, make_folder, refuse_inside
from ..training.run_folder import read_metrics, training_summary
from .adapters import Evaluable
from .context import Context, Metric
from .options import Options
from .results import Results
from .subject import Subject, subject_of
from .suites import DEFAULT, SUITES, check_suites, run_suites

__all__ = ["DEFAULT", "SUITES", "EvaluationOptions", "Metric", "Options", "Results", "evaluate"]

EvaluationOptions = Options  # the name under which the package exports it


def evaluate(
    model: Evaluable | str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str] | None = None,
    *,
    suites: Sequence[str] | str = DEFAULT,
    options: Options = Options(),  # noqa: B008  it is frozen
    out: str | os.PathLike[str] | None = None,
    again: bool = False,
    say: Callable[[str], None] | None = None,
) -> Results:
    """Evaluate a model, as `hybvit evaluate` does.

    ::

        model = hybvit.load("digits")
        results = hybvit.evaluate(model, suites=["accuracy", "calibration"])
        results["test/accuracy"]  # 0.98...
        results.metrics["test/accuracy"].low  # its 95 % interval; .n is the number of images
        results.report("judged")  # judged/report.html

    Under ``torchrun`` the processes share the work, and each of them returns the full results.

    Args:
        model: a :class:`~hybvit.HybridModel`, a :class:`~hybvit.Adapted`, or anything that :func:`hybvit.load` accepts: a run
            folder, an exported folder, a name or a hub id; also ``timm:NAME``, ``torchvision:NAME`` and ``FILE.py:FUNCTION``.
        data: an open data set (``open_dataset``) whose test images are uint8 [N, C, H, W] of the model's shape, the name of a
            data set (`hybvit datasets`), or its location. None uses the model's own data; an external model has none.
        suites: any of accuracy, calibration, doubt, probe, ood, robustness, certified, corruptions, readings, likelihood,
            fidelity, quality and speed, or "all"; by default all but probe, certified, corruptions and readings, which take
            longer. Suites that do not apply to the model are left out (``results.left_out`` says why).
        options: sample sizes and settings (:class:`hybvit.EvaluationOptions`).
        out: a folder that stores each suite's result and the samples. The same call resumes an interrupted evaluation and
            reuses results measured with the same settings. None stores nothing.
        again: measure again even where a stored result exists.
        say: receives each line of progress, e.g. ``print``; None is silent.

    Raises:
        ConfigError: a suite is unknown, or an option or the data do not fit the model.
        DataError: the model or the data are missing, or the model's outputs are not finite.
        CheckpointError: the model's files cannot be used.
    """
    names = check_suites(suites)
    with process_group():
        subject = first_of_all(lambda: subject_of(model, data))
        folder = Path(tempfile.mkdtemp(prefix="hybvit-")) if out is None else Path(out)
        try:
            results = measure(subject, names, options, folder, again, say)
        except BaseException:
            if out is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    if out is None:
        weakref.finalize(results, shutil.rmtree, folder, ignore_errors=True)  # a report needs the pictures until then
    return results


def measure(
    subject: Subject,
    suites: Sequence[str],
    options: Options,
    out: Path,
    again: bool = False,
    say: Callable[[str], None] | None = None,
) -> Results:
    """:func:`evaluate` for a model and data that are already open. One evaluation at a time writes to a folder.

    Raises:
        ConfigError: another one does, or it lies among the images.
    """
    refuse_inside(out, subject.folders)
    make_folder(out)
    lock = lock_folder(out, ".evaluate.lock") if rank() == 0 else None
    try:
        with random_state_kept(subject.model.device):
            return measure_locked(subject, suites, options, out, again, say)
    finally:
        if lock is not None:
            lock.close()


def measure_locked(
    subject: Subject, suites: Sequence[str], options: Options, out: Path, again: bool, say: Callable[[str], None] | None
) -> Results:
    """:func:`measure` in a folder that no other evaluation writes to."""
    started = time.monotonic()
    keep_freed_memory()
    model, cfg = subject.model, subject.cfg
    options = options.for_model(model)
    ctx = Context(model, subject.data, subject.data_name, options, out, subject.objective, subject.source)
    found = run_suites(ctx, suites, say if say and rank() == 0 else lambda line: None, again)
    metrics = subject.run / "metrics.jsonl" if subject.run else None
    history = read_metrics(metrics) if metrics and metrics.is_file() else []
    record = {
        "model": subject.name,
        "objective": subject.objective,
        "data": subject.data_name,
        "parameters": number_of_parameters(model),
        "training": training_summary(history),
        "seed": cfg.train.seed if cfg else 0,
        "options": dataclasses.asdict(options),
        "environment": environment(),
        "seconds": round(time.monotonic() - started, 2),
        **found,
    }
    return Results(record, out, cfg, history, writes=rank() == 0)
