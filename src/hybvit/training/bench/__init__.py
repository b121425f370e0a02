"""The benchmark behind `hybvit bench`: training and inference beside their peers, as a share of what the machine can do.

All cases are timed in one process, in turn, beside a matrix product: ``rows.py`` says what is timed, ``peers.py`` beside what,
``record.py`` what the numbers mean and what changed, ``growth.py`` how a step grows with its size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...config import Config
from ...devices import alternating, environment, has_fast_bf16, keep_freed_memory, working_memory
from ...errors import quantity
from ...model import HybridModel
from ...networks import number_of_parameters
from .record import Quartiles, quartiles, ratios
from .rows import OURS, ROWS, Case, LeftOut, Settings, cases

PEAK_SIZE = {"cuda": 8192, "cpu": 2048, "mps": 4096}  # side of the square matrices whose product measures the machine's peak
SPAN = 0.05  # seconds of a repeat: a shorter call is made several times
MOST = 31  # repeats of each case


class Timed(NamedTuple):
    """Seconds of every call, repeat by repeat, and the memory that it takes in MiB, or None."""

    seconds: dict[str, list[float]]
    memory: dict[str, float | None]


def precisions(device: torch.device) -> tuple[str, ...]:
    """In which the cases are timed: fp32, and bf16 where it is faster."""
    return ("fp32", "bf16") if has_fast_bf16(device) else ("fp32",)


def matrix_product(device: torch.device, precision: str) -> Callable[[], Tensor]:
    """A product of random square matrices, of side :data:`PEAK_SIZE`."""
    size, dtype = PEAK_SIZE[device.type], torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in "ab")
    return lambda: a @ b


def product_name(precision: str) -> str:
    return f"matrix product, {precision}"


def time_calls(calls: Mapping[str, Callable[[], object]], device: torch.device, settings: Settings, started: float) -> Timed:
    """Time calls alternately, in as many repeats as fit, unless the settings say how many; then measure their memory."""
    if settings.repeats is not None:
        taken = alternating(calls, settings.repeats, SPAN)
    else:
        taken = alternating(calls, MOST, SPAN, limit=settings.seconds - (time.perf_counter() - started))
    return Timed(taken, {name: working_memory(call, device) for name, call in calls.items()})


def bench(
    subject: str, model: HybridModel, cfg: Config, settings: Settings, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Time a model -> the record, as ``--out`` stores it.

    Args:
        subject: what it is, in words; two records of the same subject compare.
        cfg: its configuration, with the batch size that is timed.
        say: takes a line for whatever is left out.

    Raises:
        ConfigError: a setting does not fit.
    """
    started, device = time.perf_counter(), model.device
    keep_freed_memory()
    found = list(cases(model, cfg, settings))
    missing = [entry for entry in found if isinstance(entry, LeftOut)]
    if not has_fast_bf16(device):
        missing.append(LeftOut("bf16", "this device is not faster with it"))
    for entry in missing:
        say(f"left out: {entry.what}: {entry.reason}")
    named = {
        f"{case.row}, {case.system}, {precision}": (case, precision)
        for case in found
        if isinstance(case, Case)
        for precision in precisions(device)
    }
    products = {product_name(precision): matrix_product(device, precision) for precision in precisions(device)}
    calls = {**products, **{name: lambda c=c, p=p: c.step(p) for name, (c, p) in named.items()}}  # type: ignore[misc]
    timed = time_calls(calls, device, settings, started)
    return {
        **identity(subject, cfg, settings),
        "parameters": number_of_parameters(model),
        "repeats": len(timed.seconds[next(iter(products))]),
        "products": [product_row(device, precision, timed) for precision in precisions(device)],
        "rows": [row_of(name, case, precision, timed, device) for name, (case, precision) in named.items()],
        "left_out": {entry.what: entry.reason for entry in missing},
        "rows_are": {case.row: ROWS[case.row] for case, _ in named.values()},
        "environment": environment(),
    }


def identity(subject: str, cfg: Config, settings: Settings) -> dict[str, Any]:
    """What two records must share to be compared: :data:`record.IDENTITY`."""
    facts = environment()
    return {
        "subject": subject,
        "device": facts["device"],
        "threads": facts["threads"],
        "batch_size": cfg.train.batch_size,
        "samples": settings.samples,
        "steps": settings.steps,
    }


def product_gflop(device: torch.device) -> float:
    return 2 * PEAK_SIZE[device.type] ** 3 / 1e9


def product_row(device: torch.device, precision: str, timed: Timed) -> dict[str, Any]:
    """The measured peak in a precision."""
    found = quartiles(timed.seconds[product_name(precision)])
    return {
        "precision": precision,
        "side": PEAK_SIZE[device.type],
        "seconds": found._asdict(),
        "gflop_per_second": product_gflop(device) / found.median,
    }


def row_of(name: str, case: Case, precision: str, timed: Timed, device: torch.device) -> dict[str, Any]:
    """A row of the record. ``relative`` is the time over that of the matrix product beside it, in the same precision;
    ``speedup`` how many times as fast our system is, per image."""
    own, product = timed.seconds[name], timed.seconds[product_name(precision)]
    relative = ratios(own, product)
    row: dict[str, Any] = {
        "row": case.row,
        "system": case.system,
        "precision": precision,
        "images": case.images,
        "gflop": case.gflop,
        "seconds": quartiles(own)._asdict(),
        "relative": relative._asdict(),
        "images_per_second": case.images / quartiles(own).median,
        "memory_mib": timed.memory[name],
    }
    if case.gflop is not None:
        row["fraction_of_peak"] = fraction(case.gflop, relative, device)._asdict()
    if case.system != OURS:
        row["speedup"] = ratios(own, timed.seconds[f"{case.row}, {OURS}, {precision}"])._asdict()
    return row


def fraction(gflop: float, relative: Quartiles, device: torch.device) -> Quartiles:
    """The share of the measured peak that a call reaches, from its time relative to the matrix product."""
    share = gflop / product_gflop(device)
    return Quartiles(share / relative.median, share / relative.high, share / relative.low)


def table(record: Mapping[str, Any]) -> list[str]:
    """The record in lines for a terminal."""
    head = (
        f"{'row':<13}{'system':<17}{'':<5}{'ms (quartiles)':>32}{'images/s':>10}{'GFLOP':>9}{'of peak':>8}{'MiB':>7}  hybvit is"
    )
    lines = [
        f"{record['subject']} on {record['device']}, {quantity(record['threads'], 'thread')}: batch {record['batch_size']}, "
        f"{quantity(record['samples'], 'sample')} in {quantity(record['steps'], 'step')}; "
        f"medians of {quantity(record['repeats'], 'alternating repeat')}",
        *(
            f"matrix product, {product['precision']}: {product['gflop_per_second']:,.0f} GFLOP/s (the peak)"
            for product in record["products"]
        ),
        head,
    ]
    for row in record["rows"]:
        times = "{median:,.1f} ({low:,.1f} to {high:,.1f})".format(**{k: 1000 * v for k, v in row["seconds"].items()})
        gflop = "-" if row["gflop"] is None else f"{row['gflop']:,.4g}"
        peak = f"{100 * row['fraction_of_peak']['median']:.0f} %" if "fraction_of_peak" in row else "-"
        memory = "-" if row["memory_mib"] is None else f"{row['memory_mib']:,.0f}"
        faster = "{median:.2f} x as fast ({low:.2f} to {high:.2f})".format(**row["speedup"]) if "speedup" in row else ""
        line = (
            f"{row['row']:<13}{row['system']:<17}{row['precision']:<5}{times:>32}{row['images_per_second']:>10,.1f}"
            f"{gflop:>9}{peak:>8}{memory:>7}  {faster}"
        )
        lines.append(line.rstrip())
    return [*lines, *(f"{name}: {words}" for name, words in record["rows_are"].items())]
