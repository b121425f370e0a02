"""The progress of a run: log lines, progress bar and previews, and the signal that stops it."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..config import Config, minibatches
from ..data.image_set import Dataset, to_x
from ..data.images import grid, save_image
from ..devices import autocast, peak_mib, synchronize
from ..distributed import mean_of_all, rank
from ..errors import HANGUP, STOPPING, DivergedError
from ..metrics.classification import topk_accuracy
from ..model import HybridModel
from ..waiting import LINE_SECONDS, forecast
from .run_folder import RunFolder
from .trackers import Trackers

PREVIEW_IMAGES, PREVIEW_STEPS = 64, 20
TIMED = 0.5  # seconds of the first steps that a forecast is made from


def silent(line: str) -> None:
    """A log that says nothing; no bar is shown beside it."""


def diverged(out: Path, step: int, what: str) -> DivergedError:
    """The error to raise where ``what`` is not finite."""
    return DivergedError(
        f"{out}: {what} is not finite near step {step}; those steps are not saved. "
        "Try a lower --optim.lr or --train.precision fp32, in another --out"
    )


@torch.no_grad()
def test_accuracy(model: HybridModel, data: Dataset) -> float:
    """Accuracy on the labeled test images, in 0..1."""
    parts = [(model.logits(to_x(pixels)).cpu(), labels) for pixels, labels in data.test.batches() if labels is not None]
    return topk_accuracy(torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts]))


class Meter:
    """Averages the losses between two log lines, and shows the progress: a bar on a terminal, plain lines in a log."""

    def __init__(self, run: RunFolder, cfg: Config, done: int, device: torch.device, say: Callable[[str], None]) -> None:
        self.run, self.cfg, self.device, self.say = run, cfg, device, say
        self.sums: dict[str, Tensor] = {}
        self.count, self.since, self.paused = 0, time.monotonic(), 0.0
        self.bar = tqdm(
            total=cfg.train.steps,
            initial=done,
            unit="step",
            disable=say is silent or not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self.last_line = time.monotonic()
        self.warm_at = done + (3 if cfg.train.compile else 1)  # steps; the first ones of a compiled network take longest
        self.warm_since, self.forecast_made = 0.0, False
        self.trackers = Trackers(run, done)

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
        self.trackers.close(failed=kind is not None)

    def add(self, step: int, values: dict[str, Tensor | None]) -> None:
        for name, value in values.items():
            if value is not None:
                value = value.detach().float()
                self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1
        self.bar.update()
        if not self.forecast_made:
            self.forecast(step)

    def forecast(self, step: int) -> None:
        """Say once, after the first steps of this process, what the others will take, without previews and checkpoints."""
        if step == self.warm_at:
            synchronize()
            self.warm_since = time.monotonic()
        if step <= self.warm_at or time.monotonic() - self.warm_since < TIMED:
            return
        synchronize()
        seconds = (time.monotonic() - self.warm_since) / (step - self.warm_at)
        line = forecast(seconds * (self.cfg.train.steps - step), peak_mib(self.device))
        self.forecast_made = True
        if line is not None:
            with tqdm.external_write_mode(file=sys.stderr):  # on a terminal, the bar stays below it
                self.say(line)

    def write(self, step: int, lr: float) -> None:
        """Write a line of metrics.jsonl: the means since the last one. Raises DivergedError where one is not finite."""
        sums = mean_of_all(torch.stack(list(self.sums.values())).cpu()).tolist()
        for name, total in zip(self.sums, sums, strict=True):
            if not math.isfinite(total):
                raise diverged(self.run.path, step, name)
        seconds = time.monotonic() - self.since - self.paused
        means = {name: total / self.count for name, total in zip(self.sums, sums, strict=True)}
        rate = self.count * sum(minibatches(self.cfg)) / seconds
        line = {"step": step, **means, "lr": lr, "seconds": seconds, "images_per_second": rate}
        self.run.log(line)
        self.trackers.log({f"train/{name}": value for name, value in line.items() if name != "step"}, step)
        left = (self.cfg.train.steps - step) * seconds / self.count
        shown = ", ".join(f"{name} {means[name]:.4f}" for name in ("loss", "ce", "denoising", "energy_gap") if name in means)
        self.bar.set_postfix_str(f"{shown}, {rate:.0f} images/s")
        if self.bar.disable and (time.monotonic() - self.last_line > LINE_SECONDS or step == self.cfg.train.steps):
            self.say(f"step {step}/{self.cfg.train.steps}  {shown}  {rate:.0f} images/s  {left:.0f} s left")
            self.last_line = time.monotonic()
        self.sums, self.count, self.since, self.paused = {}, 0, time.monotonic(), 0.0

    def preview(self, step: int, ema: HybridModel, data: Dataset) -> None:
        """Test accuracy and a sample grid of the averaged weights; their time does not count as training."""
        if rank() != 0:
            return
        started = time.monotonic()
        with autocast(ema.device, self.cfg.train.precision):
            if ema.has_samples:
                pixels = ema.sample(PREVIEW_IMAGES, steps=min(PREVIEW_STEPS, ema.diffusion.T), seed=self.cfg.train.seed)
                scale = max(1, 64 // pixels.shape[-1])
                image = grid(pixels, scale=scale)
                save_image(image, self.run.path / "samples" / f"step-{step:08d}.png")
                self.trackers.image("samples", image, step)
            if ema.has_classes and data.test.labels is not None:
                accuracy = test_accuracy(ema, data)
                self.run.log({"step": step, "test/accuracy": accuracy})
                self.trackers.log({"test/accuracy": accuracy}, step)
        self.paused += time.monotonic() - started


class StopSignal:
    """Records SIGINT, SIGTERM, SIGUSR1 or SIGHUP (the terminal is gone) for the loop to read between steps; a second one
    terminates at once.

    One that is ignored stays so: nohup ignores SIGHUP. A thread other than the main one gets no signals.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in STOPPING if threading.current_thread() is threading.main_thread() else ():
            if number == HANGUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self.previous[number] = signal.signal(number, self.receive)
        return self

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(number, self.previous[number])

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
