"""The training loop: the paper's setup from top to bottom (Sec. 4.2 and Appendix B)."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import checkpoint
from ..baselines.jem import JEM
from ..config import Config, describe_data, differences, minibatches, needs_x0_augmented, needs_x0_labels, override
from ..data.batches import TrainingBatches, check_batches, random_batch
from ..data.datasets import open_dataset
from ..data.image_set import Dataset, to_x
from ..data.loader import batches_of_steps, resolve_workers
from ..data.locate import image_folders
from ..data.shards import Shards
from ..data.trained_on import united
from ..devices import autocast, best_device, cpp_compiler, keep_freed_memory, random_state_kept, resolve_precision
from ..distributed import (
    any_of_all,
    first_of_all,
    from_first,
    naming_lost_processes,
    process_group,
    rank,
    said_once,
    world_size,
)
from ..errors import CheckpointError, ConfigError, DivergedError, Interrupted, quantity
from ..loading import load
from ..method.diffusion import Diffusion
from ..method.objective import Batch, Losses, hybrid_loss
from ..method.objective_config import Objective
from ..method.seeds import derive_seed, generator
from ..method.vit import HybViT
from ..model import HybridModel
from ..networks import Network, build_network, compile_network, number_of_parameters
from ..storage import refuse_inside
from .ema import Average, ema_decay
from .optim import BatchedMuon, build_optimizers, learning_rate, optimizer_tensors, restore_optimizers, set_rates
from .parallel import check_shared, put_together, shared, whole
from .progress import Meter, StopSignal, diverged, silent
from .run_folder import RunFolder, check_before_images
from .trackers import check_trackers
from .trial import decided

INFORMING_IMAGES = 10_000  # to fit the Gaussians of JEM++ to
OF_CLASSES = ("class_readout.1.", "label_embedding.")  # weights with a row per class


def say_at_once(line: str) -> None:
    print(line, flush=True)  # a log file should not lag behind the run


def train(
    cfg: Config, out: str | os.PathLike[str], say: Callable[[str], None] = say_at_once, trial: bool = True
) -> HybridModel:
    """Train, or resume from the newest checkpoint of the folder -> the model with its averaged (EMA) weights.

    The same configuration, thread count and torch version give the same weights, however often the run was interrupted. Under
    torchrun all processes share each batch, which changes the weights by rounding only.

    Args:
        cfg: the configuration of the run.
        out: the run folder; a run that is resumed must have the same configuration.
        say: called with each line of the log.
        trial: whether a new run may find out how many threads it is fast with, and whether ``train.compile`` auto pays; else it
            takes torch's number, and is not compiled. See docs/speed.md.

    Raises:
        ConfigError, DataError, CheckpointError: the configuration, the data or a checkpoint cannot be used; raised before the
            first step.
        DivergedError: the loss is not finite; the last checkpoint is from before that.
        Interrupted: SIGINT, SIGTERM, SIGUSR1 or SIGHUP was received; the state is saved.
    """
    out, device = Path(out), best_device()
    with process_group(), naming_lost_processes(str(out)), said_once(), random_state_kept(device):
        if device.type == "cuda":
            torch.cuda.set_device(device)
        say = say if rank() == 0 else silent
        keep_freed_memory()
        refuse_inside(out, image_folders(cfg.data))
        from_first(lambda: check_first(cfg, out))
        data = first_of_all(lambda: open_images(cfg))
        cfg = from_first(lambda: resolve_config(cfg, data, device))
        # here already, since what follows may take minutes
        from_first(lambda: check_batches(data, cfg.data, minibatches(cfg), world_size(), cfg.train.accumulate))
        if note := lanes_note(data, cfg.data.lanes, world_size()):
            say(note)
        fresh = from_first(lambda: not checkpoint.step_folders(out / "checkpoints"))
        start = first_of_all(lambda: load_init_model(cfg, say)) if cfg.train.init and fresh else None
        earlier = [] if start is None else [(start.cfg.data.name, start.trained_on)]
        known = united((cfg.data.name, data.trained_on), *earlier)
        steps = partial(training_step, device=device, update=True) if trial else None
        with decided(cfg, out, device, steps, say) as cfg, RunFolder(out, cfg, data.fingerprint, known) as run:
            return train_in(run, data, start, device, say)


def check_first(cfg: Config, out: Path) -> None:
    """What can be said before the images are opened, which may take minutes.

    Raises:
        ConfigError: a tracker is not installed, the settings do not go with several processes, or the folder is another run's.
        DataError: the folder cannot be written.
    """
    check_trackers(cfg)
    check_shared(cfg)
    check_before_images(out, cfg)


def train_in(  # noqa: C901, PLR0915  the whole training is to be read in one place, from top to bottom
    run: RunFolder, data: Dataset, start: HybridModel | None, device: torch.device, say: Callable[[str], None]
) -> HybridModel:
    """The training of :func:`train`, in a run folder that is open; ``start`` is the model of ``train.init``."""
    cfg, out = run.cfg, run.path
    done, tensors, warnings = run.newest()
    for warning in warnings:
        say(f"warning: {warning}")

    torch.manual_seed(derive_seed(cfg.train.seed, "weights"))
    net = build_network(cfg)
    if isinstance(net, JEM) and not done:
        prepare(net, cfg, data)
    if start is not None:
        load_init_weights(start, net, say)
    if cfg.optim.freeze:
        freeze(net)
    net = net.to(device)
    ema = HybridModel(build_network(cfg), cfg, device)
    ema.trained_on = run.trained_on
    ema.net.load_state_dict(net.state_dict())
    if done:
        folder = checkpoint.step_folder(out / "checkpoints", done)
        restore_networks(folder, tensors, net, ema.net)
    if isinstance(net, HybViT):
        net.recompute = cfg.train.recompute
    loss = shared(Loss(net, ema.diffusion, cfg.objective), cfg)
    average = Average(ema.net, net)
    optimizers = build_optimizers(net, cfg.optim)
    if done:
        restore_state(folder, tensors, optimizers, device)
    del tensors, start
    if rank():  # what follows from torch's own generator, dropout alone, differs between the processes
        torch.manual_seed(derive_seed(cfg.train.seed, "weights", done * world_size() + rank()))
    run.forget_metrics_after(done)
    batches = TrainingBatches(
        data, cfg.data, minibatches(cfg), cfg.train.seed,
        x0_labels=needs_x0_labels(cfg), x0_augmented=needs_x0_augmented(cfg), rank=rank(), world=world_size(),
    )  # fmt: skip
    workers = resolve_workers(cfg.data.workers, device)
    weights: list[Tensor] = list(net.parameters())
    share = f"{sum(weight.numel() for weight in weights if weight.requires_grad):,} of " if cfg.optim.freeze else ""
    processes = f" in {world_size()} processes" if world_size() > 1 else ""
    resumed = f"resumed at step {done} of " if done else ""
    say(
        f"{out}: {cfg.objective.kind} on {describe_data(cfg.data)}, {share}{number_of_parameters(net):,} parameters, "
        f"{device.type} {cfg.train.precision}{processes}, {resumed}{quantity(cfg.train.steps, 'step')}"
    )
    if cfg.train.compile is True:
        compile_step(net, optimizers)
    meter = Meter(run, cfg, done, device, say)
    with StopSignal() as stop, meter:
        for step, batch in enumerate(batches_of_steps(batches, done, cfg.train.steps, workers), done):
            set_rates(optimizers, learning_rate(step, cfg))
            batch = batch.map(lambda tensor: tensor.to(device, non_blocking=True))
            with naming_step(out, step + 1):
                losses = backward(loss, batch, cfg, step)
            norm = torch.nn.utils.clip_grad_norm_(weights, cfg.optim.clip or math.inf)
            run.finish_copying()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            average.update(ema_decay(step, cfg))

            step += 1
            last, stopped = step == cfg.train.steps, any_of_all(stop.received)
            checkpoint_due = step % cfg.train.checkpoint_every == 0 or last or stopped is not None
            terms = losses._asdict()
            meter.add(step, {"loss": terms.pop("total"), **terms, "gradient_norm": whole(norm)})
            if step % cfg.train.log_every == 0 or checkpoint_due:  # so that a resumed run lacks no line
                meter.write(step, lr=learning_rate(step - 1, cfg))
            snapshot_due = cfg.train.snapshot_every and step % cfg.train.snapshot_every == 0
            preview_due = cfg.train.preview_every and (step % cfg.train.preview_every == 0 or last)
            if checkpoint_due or snapshot_due or preview_due:
                average.put_together()
            state = state_of(net, out, step) if checkpoint_due or snapshot_due else {}
            if snapshot_due:
                run.snapshot(step, ema=ema.net.state_dict())
            if checkpoint_due:
                own = {"optimizer": optimizer_tensors(optimizers), "random": random_state(device)}
                run.save(step, cfg.train.keep_checkpoints, network=state, ema=ema.net.state_dict(), **own)
                del own
            del state
            if preview_due:  # once the step is saved, since it may fail: a disk is full, a sample is not finite
                with naming_step(out, step):
                    meter.preview(step, ema, data)
            if stopped and not last:
                from_first(run.finish_writing)  # torchrun ends the others soon after the first that ends
                raise Interrupted(f"{out}: {stopped} at step {step}; the state is saved, the same command resumes")
    return ema


class Loss(nn.Module):
    """:func:`hybrid_loss` as a module around its network, so that DDP and FSDP2 see one forward pass for each backward pass."""

    def __init__(self, net: Network, diffusion: Diffusion, objective: Objective) -> None:
        super().__init__()
        self.net, self.diffusion, self.objective = net, diffusion, objective

    def forward(self, batch: Batch, progress: float, generator: torch.Generator) -> Losses:
        return hybrid_loss(self.net, self.diffusion, batch, self.objective, progress=progress, generator=generator)


def backward(loss: nn.Module, batch: Batch, cfg: Config, step: int) -> Losses:
    """Compute the gradient of a batch, or of this process's rows of it, in ``train.accumulate`` parts -> their mean losses."""
    parts, found = cfg.train.accumulate, list[Losses]()
    for k, rows in enumerate(batch.split(parts) if parts > 1 else [batch]):
        with average_gradients(loss, last=k == parts - 1):
            with autocast(rows.device, cfg.train.precision):
                found.append(loss(rows, step / cfg.train.steps, generator(cfg.train.seed, "noise", step)))
            (found[-1].total / parts if parts > 1 else found[-1].total).backward()
    return Losses(*(None if terms[0] is None else mean_of(terms) for terms in zip(*found, strict=True)))  # type: ignore[arg-type]


def mean_of(terms: Sequence[Tensor]) -> Tensor:
    return terms[0].detach() if len(terms) == 1 else torch.stack([term.detach() for term in terms]).mean(dim=0)


@contextlib.contextmanager
def average_gradients(loss: nn.Module, last: bool) -> Iterator[None]:
    """Average the gradients over the processes in the backward pass of the ``last`` part of a batch only, where each has all of
    them; with FSDP2 they are averaged in every part, since each process has memory for its share only."""
    with contextlib.nullcontext() if last or not isinstance(loss, DistributedDataParallel) else loss.no_sync():
        yield


@contextlib.contextmanager
def naming_step(out: Path, step: int) -> Iterator[None]:
    """Begin the message of a step that diverges with its run and number."""
    try:
        yield
    except DivergedError as error:
        raise DivergedError(f"{out}: step {step}: {error}") from None


def state_of(net: Network, out: Path, step: int) -> dict[str, Tensor]:
    """The state of the network, put together; every process must call it. Computing a gradient does not change it: buffers,
    which it may change (batch statistics, a replay buffer), are copied where the others are copied later (on a CPU).

    Raises:
        DivergedError: a weight is not finite; the message names the first.
    """
    state = put_together(net.state_dict())
    state |= {
        name: state[name].clone() for name, buffer in net.named_buffers() if name in state and buffer.device.type == "cpu"
    }

    def check() -> None:
        for name, tensor in state.items():
            if not bool(tensor.sum().isfinite()):  # as one of its terms is not; a tenth of the time of looking at each
                raise diverged(out, step, name)

    from_first(check)
    return state


def open_images(cfg: Config) -> Dataset:
    """Open the data of a run.

    Raises:
        ConfigError, DataError: they cannot be read, or none of them may be trained on.
    """
    group = replace(cfg.data, fingerprint="")  # what an earlier run was trained on does not divide the images of this one
    data = open_dataset(group, cfg.model.image_shape, cfg.model.num_classes, labeled=cfg.objective.kind != "genvit")
    if data.all_test:
        raise ConfigError(f"data.split is {cfg.data.split}, which leaves no training images: it is for evaluation")
    if isinstance(data.train.pixels, Shards) and cfg.objective.kind != "genvit":
        data.train.pixels.check_labels()
    return data


def lanes_note(data: Dataset, lanes: int, processes: int) -> str | None:
    """What to say where several processes read the same part of a stream."""
    if not isinstance(data.train.pixels, Shards) or lanes % processes == 0:
        return None
    return (
        f"note: {processes} processes share {lanes} lanes of a stream, so that several read the same images: "
        f"in a new run with --data.lanes {processes}, or a multiple of it, each reads only its own"
    )


def resolve_config(cfg: Config, data: Dataset, device: torch.device) -> Config:
    """Fill in what depends on the data and the machine: the classes and the precision."""
    if len(data.classes) == 1 and cfg.objective.kind != "genvit":
        raise ConfigError(f"{cfg.data.root}: only one class, {data.classes[0]!r}: classification needs two; --objective genvit")
    compiler = cpp_compiler()
    if cfg.train.compile is True and device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(f"train.compile needs a C++ compiler and finds no {compiler}; install one, or --train.compile false")
    precision = resolve_precision(cfg.train.precision, device)
    classes = {"num_classes": len(data.classes)} if data.classes else {}  # without labels the read-out stays as it is
    return override(cfg, model=classes, data={"classes": data.classes}, train={"precision": precision})


def load_init_model(cfg: Config, say: Callable[[str], None]) -> HybridModel:
    """The model of ``train.init``.

    Raises:
        DataError, CheckpointError: it cannot be read, or its network differs; the message names the field.
    """
    source = str(cfg.train.init)
    start = load(source, "cpu")
    theirs = override(start.cfg, model={"num_classes": cfg.model.num_classes})
    for name, (before, now) in differences(theirs, cfg).items():
        if name.startswith(("model.", "network.")):
            raise CheckpointError(f"{source}: its {name} is {before}, this run's {now}: the architectures differ")
        if name in ("objective.target", "diffusion.schedule"):
            say(f"warning: {source} was trained with {name} {before}, this run with {now}")
    return start


def load_init_weights(start: HybridModel, net: Network, say: Callable[[str], None]) -> None:
    """Copy a model's weights into a network; weights with another number of classes keep their random initialization.

    Raises:
        CheckpointError: a weight is missing, unknown, or of another shape.
    """
    own, found = net.state_dict(), start.net.state_dict()
    others = [name for name in found if name.startswith(OF_CLASSES) and name in own and found[name].shape != own[name].shape]
    if others:
        found |= {name: own[name] for name in others}
        say(f"the model of train.init has another number of classes: {', '.join(others)} start at random")
    checkpoint.load_strictly(net, found, Path("train.init"))


def freeze(net: Network) -> None:
    """Let only the weights with a row per class be trained (``optim.freeze``)."""
    for name, weight in net.named_parameters():
        weight.requires_grad_(name.startswith(OF_CLASSES))


def prepare(net: JEM, cfg: Config, data: Dataset) -> None:
    """Fit the initial distribution of a JEM++ to the training images, where ``jem.informative`` asks for it."""
    if cfg.jem.informative:
        images, labels = data.train.subsample(INFORMING_IMAGES).take(torch.arange(min(INFORMING_IMAGES, len(data.train))))
        if labels is None:
            raise ConfigError(f"{cfg.data.root}: jem.informative needs labeled images")
        net.fit_initial(to_x(images), labels)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's own generators, which only dropout draws from: every other draw has a generator of its own."""
    return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_networks(folder: Path, tensors: Mapping[str, dict[str, Tensor]], net: Network, average: Network) -> None:
    """Set the network and its average to the state in a checkpoint.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
    """
    for network, name in ((net, "network"), (average, "ema")):
        checkpoint.load_strictly(network, tensors[name], folder / f"{name}.safetensors")


def restore_state(
    folder: Path, tensors: Mapping[str, dict[str, Tensor]], optimizers: list[torch.optim.Optimizer], device: torch.device
) -> None:
    """Set optimizers and generators to the state in a checkpoint.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
    """
    try:
        restore_optimizers(optimizers, tensors.get("optimizer", {}))
        restore_random_state(tensors.get("random", {}), device)
    except (ValueError, TypeError, LookupError, RuntimeError) as error:  # of a name or a tensor that is not ours
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: its optimizer or random state does not fit this run ({reason})") from None


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Set what :func:`random_state` returned; a checkpoint of 0.1.0 has none."""
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def compile_step(net: Network, optimizers: list[torch.optim.Optimizer]) -> None:
    """Compile the expensive parts of a training step: the network's calls, and on a GPU the many small products of Muon."""
    compile_network(net)
    for optimizer in optimizers:
        if isinstance(optimizer, BatchedMuon) and next(net.parameters()).is_cuda:
            optimizer.compile()


def new_network(cfg: Config, device: torch.device) -> nn.Module:
    """The network of a configuration as training starts with it, with random weights."""
    torch.manual_seed(0)
    net = build_network(cfg).to(device)
    if isinstance(net, HybViT):
        net.recompute = cfg.train.recompute
    return net


def training_step(cfg: Config, device: torch.device, update: bool = False) -> Callable[[str], object]:
    """A step on random images with random weights, to be timed -> a call that takes it in a precision, fp32 or bf16; with
    ``update`` also what follows the gradient: clipping, optimizer and weight average."""
    cfg = override(cfg, jem={"limit": math.inf})
    batch = random_batch(cfg, device)
    net = new_network(cfg, device)
    if isinstance(net, JEM) and cfg.jem.informative:
        assert batch.images is not None
        assert batch.labels is not None
        net.fit_initial(batch.images, batch.labels)
    loss = Loss(net, cfg.diffusion.build(), cfg.objective)  # type: ignore[arg-type]
    average = Average(new_network(cfg, device), net) if update else None
    optimizers = build_optimizers(net, cfg.optim) if update else []  # type: ignore[arg-type]
    set_rates(optimizers, 0.0)  # random images would make it diverge
    if cfg.train.compile is True:
        compile_step(net, optimizers)  # type: ignore[arg-type]
    configs = {precision: override(cfg, train={"precision": precision}) for precision in ("fp32", "bf16")}

    def step(precision: str) -> None:
        backward(loss, batch, configs[precision], 0)
        if average is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), cfg.optim.clip or math.inf)
            for optimizer in optimizers:
                optimizer.step()
            average.update(ema_decay(0, cfg))
        net.zero_grad()

    return step
