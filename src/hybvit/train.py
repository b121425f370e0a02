"""`hybvit train`: the paper's set-up as one straight loop (Sec. 4.2 and Appendix B)."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import checkpoint
from .arguments import ArgumentParser
from .baselines.jem import JEM
from .config import (
    Config,
    OptimConfig,
    differences,
    field_help,
    fields_in,
    labels_of_clean,
    minibatches,
    override,
    parse,
    without_effect,
)
from .data.batches import TrainingBatches
from .data.datasets import open_dataset
from .data.image_set import Dataset, to_x
from .data.images import grid, save_image
from .data.loader import batches_of_steps, resolve_workers
from .data.locate import locate
from .devices import autocast, best_device, keep_freed_memory, resolve_precision
from .errors import CheckpointError, ConfigError, DivergedError, Interrupted
from .hybrid import HybridModel, load
from .metrics.classification import topk_accuracy
from .muon import BatchedMuon
from .networks import Network, build_network, compile_calls, number_of_parameters
from .objective import Batch, hybrid_loss
from .recipes import PRESETS, preset
from .run_folder import RunFolder
from .seeds import generator, mix
from .vit import HybViT

PREVIEW_IMAGES, PREVIEW_STEPS = 64, 20
INFORMING_IMAGES = 10_000  # that the Gaussians of JEM++ are fitted to
OF_CLASSES = ("class_readout.1.", "label_embedding.")  # weights that have a row per class
LINE_SECONDS = 10.0  # between two lines in a log
RELATIVE_RATE = "relative_lr"  # of a parameter group: its learning rate as a multiple of the schedule's


def say_at_once(line: str) -> None:
    print(line, flush=True)  # a log file should not lag behind the run


def train(cfg: Config, out: Path, say: Callable[[str], None] = say_at_once) -> HybridModel:
    """Train, or go on where the folder's newest checkpoint stands -> the model with its averaged (EMA) weights.

    The same configuration, thread count and torch version give the same weights, however often the run was interrupted.

    Raises:
        ConfigError, DataError, CheckpointError: as their names say, before anything is computed.
        DivergedError: the loss is no longer finite; the last checkpoint is from before that.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    device = best_device()
    keep_freed_memory()
    data = open_dataset(cfg.data, cfg.model.image_shape, cfg.model.num_classes, labelled=cfg.objective.kind != "genvit")
    cfg = settle(cfg, data, device)
    fresh = not checkpoint.step_folders(out / "checkpoints")
    start = start_of(cfg, say) if cfg.train.init and fresh else None  # before a folder is made for nothing
    run = RunFolder(out, cfg)
    done, tensors, remarks = run.newest()
    for remark in remarks:
        say(f"warning: {remark}")

    torch.manual_seed(mix(cfg.train.seed, "weights"))
    net = build_network(cfg)
    if isinstance(net, JEM) and not done:
        prepare(net, cfg, data)
    if start is not None:
        begin_from(start, net, say)
    net = net.to(device)
    ema = HybridModel(build_network(cfg), cfg, device)
    ema.net.load_state_dict(net.state_dict())
    average = Average(ema.net, net)
    optimizers = build_optimizers(net, cfg.optim)
    if done:
        net.load_state_dict(tensors["network"])
        ema.net.load_state_dict(tensors["ema"])
        restore_optimizers(optimizers, tensors.get("optimizer", {}))
    run.forget_metrics_after(done)
    batches = TrainingBatches(data, cfg.data, minibatches(cfg), cfg.train.seed, clean_labels=labels_of_clean(cfg))
    workers = resolve_workers(cfg.data.workers, device)
    weights: list[Tensor] = list(net.parameters())
    parameters = number_of_parameters(net)
    say(
        f"{out}: {cfg.objective.kind} on {cfg.data.name}, {parameters:,} parameters, {device.type} {cfg.train.precision}, "
        + (f"resumed at step {done} of {cfg.train.steps}" if done else f"{cfg.train.steps} steps")
    )

    def save(step: int) -> None:
        for name, tensor in net.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise diverged(out, step, name)
        state = {"network": net.state_dict(), "ema": ema.net.state_dict(), "optimizer": optimizer_tensors(optimizers)}
        run.save(step, cfg.train.keep_checkpoints, **state)

    if cfg.train.compile:
        compile_step(net, optimizers)
    meter = Meter(run, cfg, done, say)
    with StopSignal() as stop, meter:
        for step, batch in enumerate(batches_of_steps(batches, done, cfg.train.steps, workers), done):
            set_rates(optimizers, learning_rate(step, cfg))
            batch = Batch(*(None if part is None else part.to(device, non_blocking=True) for part in batch))
            with autocast(device, cfg.train.precision):
                try:
                    noise = generator(cfg.train.seed, "noise", step)
                    progress = step / cfg.train.steps
                    losses = hybrid_loss(net, ema.diffusion, batch, cfg.objective, progress=progress, generator=noise)
                except DivergedError as error:
                    raise DivergedError(f"{out}: step {step + 1}: {error}") from None
            losses.total.backward()
            norm = torch.nn.utils.clip_grad_norm_(weights, cfg.optim.clip or math.inf)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            average.update(ema_decay(step, cfg))

            step += 1
            last, stopped = step == cfg.train.steps, stop.received
            checkpoint_due = step % cfg.train.checkpoint_every == 0 or last or stopped is not None
            terms = losses._asdict()
            meter.add(step, {"loss": terms.pop("total"), **terms, "gradient_norm": norm})
            if step % cfg.train.log_every == 0 or checkpoint_due:  # so that a resumed run has lost no line
                meter.write(step, lr=learning_rate(step - 1, cfg))
            if cfg.train.preview_every and (step % cfg.train.preview_every == 0 or last):
                meter.preview(step, ema, data)
            if cfg.train.snapshot_every and step % cfg.train.snapshot_every == 0:
                run.snapshot(step, ema=ema.net.state_dict())
            if checkpoint_due:
                save(step)
            if stopped and not last:
                raise Interrupted(f"{out}: {stopped} at step {step}; the state is saved, the same command resumes")
    return ema


def diverged(out: Path, step: int, what: str) -> DivergedError:
    return DivergedError(
        f"{out}: {what} is not finite near step {step}; nothing of it was saved. "
        "Try a lower --optim.lr or --train.precision fp32, in another --out"
    )


def settle(cfg: Config, data: Dataset, device: torch.device) -> Config:
    """Fill in what only the data and the machine decide: the classes and the precision."""
    if len(data.classes) == 1 and cfg.objective.kind != "genvit":
        raise ConfigError(f"{cfg.data.root}: only one class, {data.classes[0]!r}: nothing to tell apart; --objective genvit")
    compiler = os.environ.get("CXX", "g++").split()[0]
    if cfg.train.compile and device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(f"train.compile needs a C++ compiler and finds no {compiler}; install one, or --train.compile false")
    precision = resolve_precision(cfg.train.precision, device)
    classes = {"num_classes": len(data.classes)} if data.classes else {}  # images without labels leave the read-out as it is
    return override(cfg, model=classes, data={"classes": data.classes}, train={"precision": precision})


def start_of(cfg: Config, say: Callable[[str], None]) -> HybridModel:
    """The model of ``train.init``.

    Raises:
        DataError, CheckpointError: it is not there, or its network is another one; the message names the field.
    """
    source = str(cfg.train.init)
    start = load(source, "cpu")
    theirs = override(start.cfg, model={"num_classes": cfg.model.num_classes})
    for name, (before, now) in differences(theirs, cfg).items():
        if name.startswith(("model.", "network.")):
            raise CheckpointError(f"{source}: its {name} is {before}, this run's {now}: its weights mean something else")
        if name in ("objective.target", "diffusion.schedule"):
            say(f"warning: {source} was trained with {name} {before}, this run with {now}")
    return start


def begin_from(start: HybridModel, net: Network, say: Callable[[str], None]) -> None:
    """Take over a model's weights; what has the shape of another number of classes stays at its random start.

    Raises:
        CheckpointError: a weight is missing, unknown, or of another shape.
    """
    own, found = net.state_dict(), start.net.state_dict()
    for name in found:
        if name.startswith(OF_CLASSES) and name in own and found[name].shape != own[name].shape:
            found[name] = own[name]
            say(f"{name} is new: the model of train.init has other classes")
    checkpoint.load_strictly(net, found, Path("train.init"))


def prepare(net: JEM, cfg: Config, data: Dataset) -> None:
    """Fill the replay buffer from the training images where the objective says so."""
    if cfg.jem.informative:
        images, labels = data.train.subsample(INFORMING_IMAGES).take(torch.arange(min(INFORMING_IMAGES, len(data.train))))
        if labels is None:
            raise ConfigError(f"{cfg.data.root}: jem.informative needs labelled images")
        net.informed_by(to_x(images), labels)


def build_optimizers(net: Network, cfg: OptimConfig) -> list[torch.optim.Optimizer]:
    """One optimiser of all weights; for muon a second one, of the matrices inside the layers of the ViT.

    Muon updates by an orthogonal matrix U V^T times sqrt(max(1, rows/columns)) (Jordan et al. 2024), at ``muon_lr``. PyTorch
    decays weights by lr * weight_decay: here divided so that all weights decay by ``cfg.lr * cfg.weight_decay`` at the peak.
    """
    matrices = matrices_of_layers(net) if cfg.name == "muon" else []
    apart = set(map(id, matrices))
    others = [p for p in net.parameters() if id(p) not in apart]
    if cfg.name == "sgd":
        momentum, nesterov = cfg.beta1, cfg.nesterov
        return [torch.optim.SGD(others, lr=cfg.lr, momentum=momentum, weight_decay=cfg.weight_decay, nesterov=nesterov)]
    betas = (cfg.beta1, cfg.beta2)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=cfg.lr, betas=betas, weight_decay=cfg.weight_decay, fused=True)
    ]
    if matrices:
        relative = cfg.muon_lr / cfg.lr
        group = {"params": matrices, RELATIVE_RATE: relative}
        optimizers.append(BatchedMuon([group], lr=cfg.muon_lr, weight_decay=cfg.weight_decay / relative))
    return optimizers


def matrices_of_layers(net: Network) -> list[nn.Parameter]:
    """The weights of the linear maps inside the transformer layers."""
    layers = [module.layers for module in net.modules() if isinstance(module, HybViT)]  # a JEM holds its network
    linear = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
    return [cast(nn.Parameter, module.weight) for module in linear]


def set_rates(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get(RELATIVE_RATE, 1.0)


def compile_step(net: Network, optimizers: list[torch.optim.Optimizer]) -> None:
    """Compile what a training step spends its time in: the network's calls, and on a GPU the many small products of Muon."""
    compile_calls(net)
    for optimizer in optimizers:
        if isinstance(optimizer, BatchedMuon) and next(net.parameters()).is_cuda:
            optimizer.compile()


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimisers' state as a flat dict -> tensor: ``index/name`` of the first, ``1/index/name`` of the second; their
    settings are in the configuration."""
    return {
        f"{number}/{index}/{name}" if number else f"{index}/{name}": value
        for number, optimizer in enumerate(optimizers)
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if value is not None
    }


def restore_optimizers(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        *number, index, name = key.split("/")
        states[int(number[0]) if number else 0].setdefault(int(index), {})[name] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def learning_rate(step: int, cfg: Config) -> float:
    """Linear warm-up to ``optim.lr``, then a cosine, at ``optim.min_lr`` once ``train.steps`` are done, or a drop at each
    milestone. ``step`` is from 0."""
    optim, warmup = cfg.optim, cfg.optim.warmup_steps
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if optim.schedule == "steps":
        return optim.lr * optim.drop ** sum(step >= share * cfg.train.steps for share in optim.milestones)
    progress = (step - warmup) / max(cfg.train.steps - warmup, 1)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(step: int, cfg: Config) -> float:
    decay = cfg.train.ema_decay
    return min(decay, (1 + step) / (10 + step)) if cfg.train.ema_warmup else decay


class Average:
    """The exponential moving average of the weights, updated after the optimizer's step.

    Args:
        net: the copy that holds the average.
        of: the network that is trained.
    """

    def __init__(self, net: nn.Module, of: nn.Module) -> None:
        self.averaged: list[Tensor] = list(net.parameters())
        self.weights: list[Tensor] = list(of.parameters())
        self.buffers = list(zip(net.buffers(), of.buffers(), strict=True))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        torch._foreach_lerp_(self.averaged, self.weights, 1 - decay)
        for average, buffer in self.buffers:  # statistics and replayed images are not averaged
            average.copy_(buffer)


@torch.no_grad()
def test_accuracy(model: HybridModel, data: Dataset) -> float:
    parts = [(model.logits(to_x(pixels)).cpu(), labels) for pixels, labels in data.test.batches() if labels is not None]
    return topk_accuracy(torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts]))


class Meter:
    """Averages the losses between two log lines and shows where the run stands: a bar on a terminal, plain lines in a log."""

    def __init__(self, run: RunFolder, cfg: Config, done: int, say: Callable[[str], None]) -> None:
        self.run, self.cfg, self.say = run, cfg, say
        self.sums: dict[str, Tensor] = {}
        self.count, self.since, self.paused = 0, time.monotonic(), 0.0
        self.bar = tqdm(total=cfg.train.steps, initial=done, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)
        self.last_line = time.monotonic()
        self.writer: Any = None
        if cfg.train.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ConfigError("train.tensorboard needs TensorBoard: pip install 'hybvit[track]'") from None
            self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=done)

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def add(self, step: int, values: dict[str, Tensor | None]) -> None:
        for name, value in values.items():
            if value is not None:
                value = value.detach().float()
                self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1
        self.bar.update()

    def write(self, step: int, lr: float) -> None:
        """One line of metrics.jsonl: means since the last one. Raises DivergedError where one is not finite."""
        for name, total in self.sums.items():
            if not math.isfinite(total.item()):
                raise diverged(self.run.path, step, name)
        seconds = time.monotonic() - self.since - self.paused
        means = {name: value.item() / self.count for name, value in self.sums.items()}
        rate = self.count * sum(minibatches(self.cfg)) / seconds
        line = {"step": step, **means, "lr": lr, "seconds": seconds, "images_per_second": rate}
        self.run.log(line)
        if self.writer is not None:
            for name, value in line.items():
                self.writer.add_scalar(f"train/{name}", value, step)
        left = (self.cfg.train.steps - step) * seconds / self.count
        shown = ", ".join(f"{name} {means[name]:.4f}" for name in ("loss", "ce", "denoising", "energy_gap") if name in means)
        self.bar.set_postfix_str(f"{shown}, {rate:.0f} images/s")
        if self.bar.disable and (time.monotonic() - self.last_line > LINE_SECONDS or step == self.cfg.train.steps):
            self.say(f"step {step}/{self.cfg.train.steps}  {shown}  {rate:.0f} images/s  {left:.0f} s left")
            self.last_line = time.monotonic()
        self.sums, self.count, self.since, self.paused = {}, 0, time.monotonic(), 0.0

    def preview(self, step: int, ema: HybridModel, data: Dataset) -> None:
        """Test accuracy and a sample grid of the averaged weights; the time they take is not counted as training."""
        started = time.monotonic()
        with autocast(ema.device, self.cfg.train.precision):
            if ema.has_samples:
                pixels = ema.sample(PREVIEW_IMAGES, steps=PREVIEW_STEPS, seed=self.cfg.train.seed)
                scale = max(1, 64 // pixels.shape[-1])
                save_image(grid(pixels, scale=scale), self.run.path / "samples" / f"step-{step:08d}.png")
            if ema.has_classes and data.test.labels is not None:
                accuracy = test_accuracy(ema, data)
                self.run.log({"step": step, "test/accuracy": accuracy})
                if self.writer is not None:
                    self.writer.add_scalar("test/accuracy", accuracy, step)
        self.paused += time.monotonic() - started


class StopSignal:
    """Turns SIGINT and SIGTERM into a word that the loop reads between steps; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self.receive)
        return self

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(number, self.previous[number])

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def main(arguments: list[str]) -> None:
    named = [word for word in arguments if word in PRESETS]
    base = PRESETS[named[0]].config if named else Config()
    parser = ArgumentParser(
        prog="hybvit train",
        usage="hybvit train PRESET [--objective KIND] [--data DIR] [--out DIR] [--any.nested.field VALUE ...]",
        description="Train a preset; the same command again goes on with an interrupted run.",
        epilog=f"fields, with the values of the preset:\n{field_help(base)}",
    )
    parser.add_argument("preset", metavar="PRESET", help="`hybvit presets` lists them")
    parser.add_argument("--objective", choices=("vit", "genvit", "hybvit"), help="labels only, images only, or both")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="your images: a folder with a sub-folder per class (or none: --objective genvit), a CSV or JSONL manifest, a "
        "parquet file, hf://OWNER/NAME, tar shards; or the folder with the named data set's own files",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run folder (runs/PRESET)")
    args, fields = parser.parse_known_args(arguments)
    cfg = parse(fields, preset(args.preset))
    if args.objective:
        cfg = override(cfg, objective={"kind": args.objective})
    if args.data:
        cfg = replace(cfg, data=locate(cfg.data, args.data))
    for line in without_effect(cfg, fields_in(fields)):
        say_at_once(f"warning: {line}")
    out = args.out or Path("runs") / (args.preset + (f"-{args.objective}" if args.objective else ""))
    train(cfg, out)
    own = f" --data {shlex.quote(args.data)}" if args.data else ""  # a run names no data to those who look at it
    print(f"{out}: done; next: hybvit evaluate {out}{own} --report, hybvit sample {out}")
