"""What a new run decides by a short trial: the number of threads, and whether compiling its steps pays.

The trial takes steps of its own, on random images and with random weights. The run then computes what it would without one. It
keeps the decision: the threads in environment.json, ``train.compile`` in config.yaml.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from ..checkpoint import CONFIG, has_steps
from ..config import Config, load_config, override
from ..devices import alternating, busy_share, cpp_compiler, environment, random_state_kept, seconds, usable_cores
from ..distributed import from_first, world_size
from ..errors import DataError, quantity
from ..storage import read_json

FEWEST_STEPS = 500  # of a run that has a trial, which takes the time of about twenty
LONGEST_STEP = 1.0  # seconds: a longer step is large enough for threads to share
FASTER = 1.1  # times as fast fewer threads must be: less may be noise
LONG = 3600.0  # seconds of a run that tries to compile, which costs a minute or two: up to 3 % where it does not pay
REPEATS, SPAN, LIMIT = 5, 0.05, 5.0  # of each case, the seconds of one, and of all of them
PAUSE = 2.0  # seconds between two trials: what disturbs one, on a machine that is shared with others, may be over then
GIVEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # by the user, for whom nothing is tried then

StepOf = Callable[[Config], Callable[[str], object]]  # a configuration -> a training step of its own, in a precision
Say = Callable[[str], None]


@contextlib.contextmanager
def decided(cfg: Config, out: Path, device: torch.device, step_of: StepOf | None, say: Say) -> Iterator[Config]:
    """The configuration of a run with ``train.compile`` decided, and torch's threads set for as long as it lasts.

    A run that is resumed keeps what it had, its threads only on the same machine. Nothing is tried where ``step_of`` is None,
    in a short run and with several processes; the threads are left as they are where the environment sets them.
    """
    threads = torch.get_num_threads()
    free = device.type == "cpu" and world_size() == 1 and not any(os.environ.get(name) for name in GIVEN)
    compiles, resumed = cfg.train.compile, from_first(lambda: (out / CONFIG).is_file() and has_steps(out))
    torch.set_num_threads(threads)  # MKL computes otherwise before the first such call, which a preview makes in the middle
    try:
        if resumed:
            if free:
                keep_threads(out, say)
            kept = from_first(lambda: load_config(out / CONFIG).train.compile) if compiles == "auto" else compiles
        elif step_of is None or world_size() > 1 or cfg.train.steps < FEWEST_STEPS:
            kept = compiles is True
        else:
            with random_state_kept(device):
                kept = tried(cfg, device, step_of, free, say)
        yield override(cfg, train={"compile": kept})
    finally:
        torch.set_num_threads(threads)


def keep_threads(out: Path, say: Say) -> None:
    """Take the threads of a run that is resumed, where it ran on this machine and there are still as many."""
    with contextlib.suppress(DataError):  # environment.json is missing or damaged: the checkpoint says what differs
        before, now = read_json(out / "environment.json"), environment()
        number = before.get("threads")
        same = all(before.get(fact) == now[fact] for fact in ("machine", "device"))
        if same and isinstance(number, int) and 1 <= number < now["threads"]:
            torch.set_num_threads(number)
            say(f"{out}: {quantity(number, 'thread')}, as before; OMP_NUM_THREADS sets another number")


def tried(cfg: Config, device: torch.device, step_of: StepOf, free: bool, say: Say) -> bool:
    """Try what is not decided yet -> whether to compile; ``free`` to choose the threads, it sets them."""
    step = partial(step_of(override(cfg, train={"compile": False})), cfg.train.precision)
    step()
    taken = seconds(step)
    most = torch.get_num_threads()
    if free and most > 1 and taken < LONGEST_STEP:
        taken = try_threads(step, most, say)
    compiles = cfg.train.compile
    if compiles != "auto":
        return compiles
    if cfg.objective.kind == "jem" or (device.type == "cpu" and shutil.which(cpp_compiler()) is None):
        return False
    return cfg.train.steps * taken > LONG and try_compiling(cfg, step, step_of, say)


def try_threads(step: Callable[[], object], most: int, say: Say) -> float:
    """Set the number of threads with which a step is fastest -> its seconds. Tried are as many as there are cores that other
    programs leave idle, ``most`` at most, a half of them and so on: beside other programs a trial of a second may be lucky.
    Without them it may be unlucky, so fewer are taken only if a second trial says so too."""
    busy, cores = busy_share() or 0.0, len(usable_cores())
    free = min(most, max(1, round(cores * (1 - busy))))

    def with_threads(number: int) -> None:
        torch.set_num_threads(number)
        step()

    numbers = [free >> k for k in range(free.bit_length())]
    calls = {str(number): lambda number=number: with_threads(number) for number in numbers}

    def fastest() -> tuple[int, dict[int, float]]:
        times = alternating(calls, REPEATS, SPAN, limit=LIMIT)
        medians = {number: statistics.median(times[str(number)]) for number in numbers}
        best = min(medians, key=medians.__getitem__)
        return (best if gain(times[str(free)], times[str(best)]) >= FASTER else free), medians

    best, medians = fastest()
    if best < free:
        time.sleep(PAUSE)
        again, medians = fastest()
        best = max(best, again)
    torch.set_num_threads(best)
    if best < free:
        reason = f"a step takes {1e3 * medians[best]:.3g} ms instead of {1e3 * medians[free]:.3g} with {free} in a trial"
    else:
        reason = f"other programs keep {busy:.0%} of the cores busy"
    if best < most:
        say(f"{quantity(best, 'thread')} instead of {most}: {reason}; OMP_NUM_THREADS={most} keeps {most}")
    return medians[best]


def try_compiling(cfg: Config, plain: Callable[[], object], step_of: StepOf, say: Say) -> bool:
    """Compile a step and time it beside the plain one -> whether what it saves in the run is more than compiling takes."""
    say("train.compile auto: trying whether compiled steps pay in this run, which takes a minute or two")
    started = time.perf_counter()
    try:
        compiled = partial(step_of(override(cfg, train={"compile": True})), cfg.train.precision)
        for _ in range(3):  # the second step is still slower than the later ones
            compiled()
        compiling = time.perf_counter() - started
        times = alternating({"plain": plain, "compiled": compiled}, REPEATS, SPAN, limit=60)
    except Exception as error:  # of whatever kind: the run does without
        say(f"train.compile auto: not compiled, since that failed ({' '.join(str(error).split())[:100]})")
        return False
    before, after = (statistics.median(times[name]) for name in ("plain", "compiled"))
    pays = cfg.train.steps * (before - after) > compiling  # once more, since the run compiles its own network
    say(
        f"train.compile auto: {'compiled' if pays else 'not compiled'}; a step takes {1e3 * after:.3g} ms compiled and "
        f"{1e3 * before:.3g} plain, compiling {compiling:.0f} s"
    )
    return pays


def gain(slow: list[float], fast: list[float]) -> float:
    """How many times as fast, repeat by repeat: the median."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
