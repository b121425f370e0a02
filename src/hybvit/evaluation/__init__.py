"""`hybvit evaluate`: every number about a model, in suites that can be run, interrupted and repeated one by one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from .. import __version__, hybrid
from ..adapters import Evaluable, adapt, is_adapter
from ..arguments import ArgumentParser, positive, whole
from ..checkpoint import MANIFEST
from ..config import Config, DataConfig, ObjectiveConfig
from ..data.catalog import CATALOG
from ..data.datasets import open_dataset
from ..data.images import save_image
from ..data.locate import form_of, located
from ..data.own_images import Dataset
from ..devices import keep_freed_memory
from ..distributed import gathered, processes
from ..errors import ConfigError, DataError
from ..report import write_report
from ..run_folder import environment, make_folder, read_metrics, training_summary, write_text
from ..samplers import SAMPLERS
from ..vit import ViTConfig
from . import accuracy, calibration, fidelity, likelihood, ood, quality, robustness, speed
from .context import Context, Options, Picture, Result, Suite, lacking

ALWAYS = ("limit", "seed", "batch_size")
SAMPLING = ("samples", "sampler", "steps", "guidance")
SUITES: dict[str, Suite] = {
    "accuracy": Suite("How often the labels are right", frozenset({"classes", "labels"}), (), accuracy.run),
    "calibration": Suite("Whether a probability means what it says", frozenset({"classes", "labels"}), (), calibration.run),
    "ood": Suite(
        "Whether it knows what it has not seen",
        frozenset(),
        ("out_of_distribution", "bound_images", "bound_draws"),
        ood.run,
    ),
    "robustness": Suite(
        "How it stands attacks",
        frozenset({"classes", "labels"}),
        ("attack_images", "autoattack_images", "attack_steps"),
        robustness.run,
    ),
    "likelihood": Suite("How likely the data are", frozenset({"denoiser"}), ("bound_images", "bound_draws"), likelihood.run),
    "fidelity": Suite("How good the samples are", frozenset({"samples"}), (*SAMPLING, "extractor", "inception"), fidelity.run),
    "quality": Suite("What it thinks of its own samples", frozenset({"samples", "classes"}), SAMPLING, quality.run),
    "speed": Suite("What it costs on this machine", frozenset(), ("sampler", "steps"), speed.run),
}


def evaluate(
    ctx: Context, suites: tuple[str, ...], say: Callable[[str], None] = print, again: bool = False, writes: bool = True
) -> dict[str, Any]:
    """Run the suites that make sense for this model, or take up what was stored of them -> the record for results.json.

    Args:
        again: run a suite even where its result with these settings is stored.
        writes: whether this process writes files; only one of several may.
    """
    record: dict[str, Any] = {"suites": {}, "left_out": {}, "metrics": {}, "tables": {}, "notes": {}}
    weights = ctx.fingerprint
    for name in [name for name in SUITES if name in suites or stored_before(ctx, name, weights)]:
        if name not in suites:
            stored = json.loads((ctx.folder / "evaluation" / name / "result.json").read_text())
            add(record, name, stored)
            continue
        suite = SUITES[name]
        reason = lacking(ctx, suite.wants)
        if reason is not None:
            record["left_out"][name] = reason
            say(f"{name}: left out, {reason}")
            continue
        settings = {key: getattr(ctx.options, key) for key in (*ALWAYS, *suite.options)}
        facts = {"version": __version__, "data": ctx.data_name, "test_images": test_digest(ctx), "weights": weights, **settings}
        folder = ctx.folder / "evaluation" / name
        stored = gathered(None if again else read_stored(folder, facts))[0]
        if stored is None:
            started = time.monotonic()
            say(f"{name}: {suite.words.lower()} ...")
            result = suite.run(ctx)
            stored = as_record(result, facts, time.monotonic() - started)
            if writes:
                store(folder, stored, result.pictures)
        else:
            say(f"{name}: taken from {folder} (--again measures anew)")
        add(record, name, stored)
        for note in stored["notes"]:
            say(f"  note: {note}")
        for metric, entry in stored["metrics"].items():
            say(line_of(metric, entry))
    return record


def add(record: dict[str, Any], name: str, stored: dict[str, Any]) -> None:
    record["suites"][name] = {key: stored[key] for key in ("seconds", "settings", "environment")}
    for part in ("metrics", "tables"):
        record[part] |= stored[part]
    record["notes"][name] = stored["notes"]


def stored_before(ctx: Context, name: str, weights: str) -> bool:
    """Whether an earlier call measured a suite on these weights and this data set, with whatever settings it records."""
    try:
        settings = json.loads((ctx.folder / "evaluation" / name / "result.json").read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return (settings.get("weights"), settings.get("test_images")) == (weights, test_digest(ctx))


def test_digest(ctx: Context) -> str:
    """Number and SHA-256 of some of the test images: results on others are not used."""
    few = ctx.data.test.spread(256)
    digest = hashlib.sha256(few.in_memory.numpy().tobytes())
    if few.labels is not None:
        digest.update(few.labels.numpy().tobytes())
    return f"{len(ctx.data.test)}-{digest.hexdigest()[:16]}"


def as_record(result: Result, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    for name, metric in result.metrics.items():
        if not math.isfinite(metric.value):
            raise DataError(f"{name} is {metric.value}: the model's answers are not finite numbers")
    return {
        "settings": settings,
        "seconds": round(seconds, 2),
        "environment": environment(),
        "metrics": {
            name: {k: v for k, v in m._asdict().items() if v is not None and not (k in ("low", "high") and math.isnan(v))}
            for name, m in result.metrics.items()
        },
        "tables": result.tables,
        "notes": result.notes,
        "pictures": {name: picture.caption for name, picture in result.pictures.items()},
    }


def store(folder: Path, stored: dict[str, Any], pictures: dict[str, Picture]) -> None:
    """Pictures first: a folder with result.json is complete."""
    make_folder(folder)
    for old in (*folder.glob("*.png"), *folder.glob("*.svg")):
        old.unlink()  # an earlier measurement may have made others
    for name, picture in pictures.items():
        if isinstance(picture.content, Image.Image):
            save_image(picture.content, folder / f"{name}.png")
        else:
            write_text(folder / f"{name}.svg", picture.content)
    write_text(folder / "result.json", json.dumps(stored, indent=1, allow_nan=False) + "\n")


def read_stored(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What was stored of a suite, if it was measured with these settings on these weights."""
    try:
        stored = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    return stored if stored.get("settings") == json.loads(json.dumps(settings)) else None


def line_of(name: str, metric: dict[str, Any]) -> str:
    value = metric["value"]
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
    interval = f"  [{metric['low']:.4f}, {metric['high']:.4f}]" if "low" in metric else ""
    return f"  {name:<46}{shown:>10}{interval}  n {metric['n']:,}"


def check_classes(cfg: Config, data: Dataset) -> None:
    if cfg.objective.kind == "genvit" or not data.classes:
        return
    if len(data.classes) != cfg.model.num_classes:
        raise ConfigError(f"the data have {len(data.classes)} classes, the model has {cfg.model.num_classes}")
    if cfg.data.classes and data.classes != cfg.data.classes:
        raise ConfigError(f"the data's classes ({', '.join(data.classes)}) are not the model's ({', '.join(cfg.data.classes)})")


def open_adapted(spec: str, dataset: str | None, root: str | None) -> tuple[Evaluable, Config, Dataset]:
    """Somebody else's model with the data that it is to be judged on."""
    if dataset is None and root is None:
        raise ConfigError(f"{spec}: say on which data it is to be judged: --dataset NAME (`hybvit datasets`) or --data DIR")
    name = dataset or form_of(str(root))
    if name not in (*CATALOG,) and root is None:
        raise ConfigError(f"--dataset {name!r}: it must be one of {', '.join(CATALOG)}")
    info = CATALOG.get(name)
    size, channels = (info.size or 224, info.channels) if info else (224, 3)
    from ..adapters import Adapted

    if spec.partition(":")[0].endswith(".py"):
        model: Adapted = adapt(spec, (channels, size, size), 0)
        channels, size, _ = model.image_shape
    cfg = Config(
        model=ViTConfig(image_size=size, patch_size=1, channels=channels, num_classes=max(1, info.num_classes if info else 10)),
        objective=ObjectiveConfig(kind="genvit"),  # data without labels will do
        data=DataConfig(name=name, root=root, resize=True),
    )
    data = open_dataset(cfg)
    if not spec.partition(":")[0].endswith(".py"):
        model = adapt(spec, (channels, size, size), len(data.classes))
    if model.has_classes and data.classes and len(model.classes) != len(data.classes):
        raise ConfigError(f"{spec} has {len(model.classes)} classes, the data have {len(data.classes)}")
    if model.has_classes and data.classes:
        model.classes = data.classes
    return model, cfg, data


def source_of(spec: str) -> Path | None:
    """The file that somebody else's model is made from."""
    path = Path(spec.partition(":")[0])
    return path if is_adapter(spec) and path.suffix == ".py" else None


def build_parser() -> ArgumentParser:
    default = Options()
    parser = ArgumentParser(
        prog="hybvit evaluate",
        description="Measure a model and write results.json; with --report, report.html and report.md too. "
        "An interrupted run goes on with the "
        "suite it was at; `torchrun --nproc-per-node N -m hybvit.cli evaluate ...` shares the work and gives the same numbers.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="run folder, exported folder, hub id or a model of the package; or somebody else's: timm:NAME, torchvision:NAME "
        "(with @FILE for your own weights), FILE.py:FUNCTION that returns a hybvit.Adapted",
    )
    parser.add_argument(
        "--average",
        metavar="WIDTH",
        help="of a run with train.ema_power, judge the average of this width",
    )
    parser.add_argument("--suites", default=",".join(SUITES), help=f"comma-separated, of {', '.join(SUITES)} (all)")
    parser.add_argument("--data", help="where the data are, if not where they were in training")
    parser.add_argument("--dataset", metavar="NAME", help="the data set for somebody else's model")
    parser.add_argument("--limit", type=positive, help="at most so many test images, at equal distances, for a quick look")
    parser.add_argument("--ood", help="comma-separated out-of-distribution sets: names, folders, interpolation, noise")
    parser.add_argument("--samples", type=positive, default=default.samples, help=f"generated images ({default.samples})")
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), default=default.sampler, help=f"({default.sampler})")
    parser.add_argument("--steps", type=positive, help=f"sampler steps ({default.steps}; the paper takes all 1000)")
    parser.add_argument("--guidance", type=float, default=default.guidance, help="classifier-free, of networks told labels (0)")
    for name, words in (
        ("bound-images", "images whose likelihood is bounded"),
        ("attack-images", "images that PGD attacks"),
        ("autoattack-images", "images that AutoAttack attacks, 0 for none"),
        ("attack-steps", "steps of PGD"),
        ("batch-size", "images in one call of the model"),
    ):
        value = getattr(default, name.replace("-", "_"))
        kind = whole if name == "autoattack-images" else positive
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"{words} ({value})")
    parser.add_argument("--bound-draws", default=str(default.bound_draws), help="diffusion times drawn per image, or all (32)")
    parser.add_argument(
        "--extractor", help="network for the Frechet distance: inception, cnn-..., timm:NAME, a run folder of ours"
    )
    parser.add_argument("--inception", metavar="PATH", help="the canonical Inception weights, for FID")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the results (the run folder, in it average-WIDTH with --average, else ./evaluated/NAME)",
    )
    parser.add_argument("--report", action="store_true", help="write report.html and report.md too")
    parser.add_argument("--again", action="store_true", help="measure anew what is stored with the same settings")
    return parser


def main(arguments: list[str]) -> None:
    parser = build_parser()
    args = parser.parse_args(arguments)
    suites = tuple(args.suites.split(","))
    for suite in suites:
        if suite not in SUITES:
            parser.error(f"--suites: {suite!r} is none of {', '.join(SUITES)}")
    if args.bound_draws != "all" and not (args.bound_draws.isdecimal() and int(args.bound_draws) >= 1):
        parser.error(f"--bound-draws: {args.bound_draws!r} is neither a positive number nor all")
    with processes() as (rank, world):
        run(args, suites, rank, world)


def run(args: Any, suites: tuple[str, ...], rank: int, world: int) -> None:
    started = time.monotonic()
    keep_freed_memory()
    data_root = args.data
    if is_adapter(args.model):
        if args.average is not None:
            raise ConfigError(f"--average {args.average}: {args.model} has one set of weights; it is for our run folders")
        model, cfg, data = open_adapted(args.model, args.dataset, data_root)
        objective, is_run = "adapted", False
    else:
        model = hybrid.load(args.model, average=args.average)
        cfg = located(model.cfg, data_root) if data_root else model.cfg
        data = open_dataset(cfg)
        check_classes(model.cfg, data)
        objective = cfg.objective.kind
        is_run = (Path(args.model) / "config.yaml").is_file() and not (Path(args.model) / MANIFEST).is_file()
    own = (
        Path(args.model) if is_run else Path("evaluated") / Path(args.model.partition("@")[0].replace(":", "/")).resolve().name
    )
    out = args.out or (own if args.average is None else own / f"average-{args.average}")
    make_folder(out)
    if args.steps is not None and args.steps > model.diffusion.T:
        raise ConfigError(f"--steps {args.steps}: the model's diffusion has {model.diffusion.T} steps")
    if args.guidance and not (math.isfinite(args.guidance) and model.draws_by_label):
        raise ConfigError(f"--guidance {args.guidance}: a finite number, for a network with model.label_conditioning")
    options = Options(
        limit=args.limit,
        seed=args.seed,
        batch_size=args.batch_size,
        out_of_distribution=tuple(filter(None, map(str.strip, (args.ood or "").split(",")))),
        bound_images=args.bound_images,
        bound_draws=0 if args.bound_draws == "all" else int(args.bound_draws),
        attack_images=args.attack_images,
        autoattack_images=args.autoattack_images,
        attack_steps=args.attack_steps,
        samples=args.samples,
        sampler=args.sampler,
        steps=args.steps or min(Options().steps, model.diffusion.T),
        guidance=args.guidance,
        extractor=args.extractor,
        inception=args.inception,
    )
    identity = f"{args.model} {hashlib.sha256(source.read_bytes()).hexdigest()}" if (source := source_of(args.model)) else ""
    ctx = Context(model, data, cfg.data.name, cfg.data.root, options, out, objective, identity)

    def say(line: str) -> None:
        if rank == 0:
            print(line, flush=True)

    found = evaluate(ctx, suites, say, args.again, writes=rank == 0)
    if rank:
        return
    history = read_metrics(Path(args.model) / "metrics.jsonl") if is_run else []
    record = {
        "model": Path(args.model).name,
        "average": args.average,
        "objective": objective,
        "data": cfg.data.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": training_summary(history),
        "seed": cfg.train.seed,
        "options": dataclasses.asdict(options),
        "environment": environment() | {"world_size": world},
        "seconds": round(time.monotonic() - started, 2),
        **found,
    }
    write_text(out / "results.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(f"{out / 'results.json'} written")
    if args.report:
        write_report(
            out, record, cfg if objective != "adapted" else None, history, {name: suite.words for name, suite in SUITES.items()}
        )
        print(f"{out / 'report.html'} and report.md written: open it in a browser")
