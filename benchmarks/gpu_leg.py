"""Train in legs on a machine that is lent for minutes: each goes on where the last one stopped, and measures what it has.

    python benchmarks/gpu_leg.py pack --out LUGGAGE --data DIR [--state DIR]
    python benchmarks/gpu_leg.py run --out DIR --seconds 480 [--luggage LUGGAGE] [--checks] [--preset NAME] [--any.field V ...]
    python benchmarks/gpu_leg.py curve STATE

`pack` puts the images and the state that the last leg left into a folder of at most 64 MiB, which travels to the machine.

`run` leaves a state in --out that is small enough to be carried: files of at most 15 MiB, the weights in bfloat16 where they
would not fit otherwise, and without what of the optimizer some steps restore. It is replaced every minute, so that a killed leg
is not lost.
With other fields than the state's, a leg starts a new run from its averaged weights, such as one whose learning rate ends at 0.
--checks first runs the tests that need a GPU and times the preset's step.

`curve` collects what was reached after how much time, and draws it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import hybvit
from hybvit import checkpoint
from hybvit.checkpoint import CONFIG
from hybvit.config import (
    FREE_TO_CHANGE,
    Config,
    differences,
    load_config,
    minibatches,
    override,
    parse,
    to_yaml,
    without_addresses,
)
from hybvit.data.locate import locate
from hybvit.devices import environment
from hybvit.errors import CheckpointError, ConfigError, DataError, Interrupted
from hybvit.evaluation import plots
from hybvit.presets import preset
from hybvit.storage import atomic_write, read_json, write_text
from hybvit.training.cost import cost
from hybvit.training.loop import train
from hybvit.training.run_folder import read_metrics, training_summary

ROOT = Path(__file__).resolve().parent.parent
LEG, PART, LARGEST = "leg.json", 15 << 20, 42 << 20  # the record; bytes of a file, and of all files of a state
IMAGES, STATE, LUGGAGE = "images.tar", "state", 64 << 20  # what travels, and its bytes at most
SPLITS = ("train", "test")
CHECK_SECONDS = 100  # at most for each check, of a machine that is lent for ten minutes at a time
SAME = "run"  # the run folder of a leg that goes on with the recipe of the last


# the state


def small(tensors: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the next leg needs, by ``file/name``: exact if it fits, else bfloat16 weights without the momentum of matrices, or
    without any state of the optimizer, which begins anew then."""
    everything = {f"{file}/{name}": value for file, group in tensors.items() for name, value in group.items()}
    half = {name: value.bfloat16() if is_weight(name, value) else value for name, value in everything.items()}
    without_momentum = {name: value for name, value in half.items() if "momentum_buffer" not in name}
    weights = {name: value for name, value in half.items() if not name.startswith("optimizer/")}
    for found in (everything, without_momentum, weights):
        if size_of(found) <= LARGEST:
            return found
    sys.exit(too_large(size_of(weights)))


def too_large(size: int) -> str:
    return f"the weights and their averages take {size / 2**20:.0f} MiB, at most {LARGEST / 2**20:.0f} are carried"


def is_weight(name: str, value: Tensor) -> bool:
    return name.split("/")[0] in ("network", "ema") and value.dtype == torch.float32


def size_of(tensors: dict[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


def parts_of(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Groups of tensors that each fit into a file; a tensor that does not has one for itself."""
    parts: list[dict[str, Tensor]] = [{}]
    for name, value in tensors.items():
        if parts[-1] and size_of(parts[-1] | {name: value}) > PART:
            parts.append({})
        parts[-1][name] = value
    return parts


def pack(run: Path, out: Path, earlier: list[Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Write the newest checkpoint of a run to ``out`` -> the record of its leg; leg.json, which names the files, comes last.

    Args:
        earlier: the records of the legs before.
        measured: what this leg measured, if it has come to that.
    """
    folder, manifest, _ = checkpoint.newest(run / "checkpoints")
    if folder is None:
        return {}
    cfg = without_addresses(load_config(run / CONFIG))
    lines = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else []
    training, step = training_summary(lines), manifest["step"]
    done = step - (earlier[-1]["step"] if earlier and run.name == SAME else 0)
    leg = {
        "leg": len(earlier) + 1, "step": step, "steps": done, "images": done * sum(minibatches(cfg)),
        "seconds": training.get("seconds", 0.0), "images_per_second": training.get("images_per_second"),
        "gflop_per_step": cost(cfg).train_gflop_per_step, "seed": cfg.train.seed, "environment": environment(), **measured,
    }  # fmt: skip
    names = [name for name in manifest["sha256"] if name.endswith(".safetensors")]  # the training may delete some meanwhile
    tensors = {Path(name).stem: checkpoint.read_tensors(folder / name) for name in names}
    files, before = {}, set(out.glob("state-*.safetensors"))
    for number, part in enumerate(parts_of(small(tensors))):
        path = out / f"state-{step}-{number}.safetensors"
        with atomic_write(path) as temporary:  # leg.json may name one of this step already
            save_file({name: value.contiguous() for name, value in part.items()}, temporary)
        files[path.name] = checkpoint.sha256(path)
    found = {"step": step, "config": to_yaml(cfg), "files": files, "legs": [*earlier, leg]}
    write_text(out / LEG, json.dumps(found, indent=1) + "\n")
    for path in before - {out / name for name in files}:
        path.unlink()
    return leg


def unpack(state: Path, run: Path) -> list[Any]:
    """Make a run folder of a state -> the records of the legs so far."""
    record = read_json(state / LEG, "step", "config", "files", "legs")
    tensors: dict[str, dict[str, Tensor]] = {"optimizer": {}}
    for name, digest in record["files"].items():
        if checkpoint.sha256(state / name) != digest:
            sys.exit(f"{state / name}: damaged: its checksum is not that of {LEG}")
        for key, value in checkpoint.read_tensors(state / name).items():
            file, _, weight = key.partition("/")
            tensors.setdefault(file, {})[weight] = value.float() if value.dtype == torch.bfloat16 else value
    folder = checkpoint.step_folder(run / "checkpoints", record["step"])
    folder.parent.mkdir(parents=True)
    checkpoint.write_folder(folder, tensors, {CONFIG: record["config"]}, step=record["step"], **environment())
    write_text(run / CONFIG, record["config"])
    return record["legs"]


# a leg


def prepared(args: argparse.Namespace, fields: list[str], work: Path) -> tuple[Config, Path, list[Any]]:
    """The recipe of this leg, its run folder, and the records of the legs before. The run folder holds the state if the recipe
    is the same; otherwise the recipe starts from its averaged weights."""
    changes = {"checkpoint_every": args.checkpoint_every, "keep_checkpoints": 1, "preview_every": 0}
    if args.state is None:
        endless = {"steps": 10**6, "compile": False}  # auto would take the steps for the length of the run
        return parse(fields, override(preset(args.preset), train=endless | changes)), work / SAME, []
    legs = unpack(args.state, work / SAME)
    before = load_config(work / SAME / CONFIG)
    cfg = override(parse(fields, before), train=changes)
    resolved = {name: was for name, (was, now) in differences(before, cfg).items() if now == "auto"}
    cfg = override(cfg, train={name.removeprefix("train."): was for name, was in resolved.items()})
    if all(name in FREE_TO_CHANGE for name in differences(before, cfg)):
        return cfg, work / SAME, legs
    hybvit.load(work / SAME, "cpu").save_pretrained(work / "start")
    return override(cfg, train={"init": str(work / "start")}), work / "other", legs


def train_for(args: argparse.Namespace, cfg: Config, run: Path, legs: list[Any], facts: dict[str, Any]) -> None:
    """Train in a process of its own, and keep its state in ``args.out``, with ``facts`` in its record."""
    stored = run.with_name("leg.yaml")
    write_text(stored, to_yaml(cfg))
    process = subprocess.Popen([sys.executable, __file__, "train", str(stored), str(run), str(args.seconds)])
    saved = time.monotonic()
    try:
        while process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() > saved + args.save_every:
                with contextlib.suppress(CheckpointError, OSError):  # deleted while it was read, since a newer one is there
                    pack(run, args.out, legs, facts)
                saved = time.monotonic()
    finally:
        process.kill()  # if it still runs, something went wrong here
        process.wait()
    if process.returncode:
        sys.exit(f"the training failed (exit status {process.returncode}); the last state is kept")


def stop_after(seconds: float) -> None:
    """Stop the training of this process ``seconds`` after it began to listen to SIGTERM: imports and data do not count."""
    while signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        time.sleep(0.05)
    time.sleep(seconds)
    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:  # else it has ended by itself
        os.kill(os.getpid(), signal.SIGTERM)


def checks(name: str, folder: Path) -> dict[str, Any]:
    """What the tests that need a GPU say in their last line, and how long a compiled step of the preset takes. A failure or a
    check that takes too long is said in the record and does not cost the leg."""
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "test_gpu.py")]
    steps, timed = [sys.executable, str(ROOT / "benchmarks" / "steps.py"), name, "--out", str(folder / "steps.json")], None
    said = list[str]()
    for words in (tests, steps):
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            out, err = process.communicate(timeout=CHECK_SECONDS)
            said.append((out.strip().splitlines() or err.strip().splitlines() or [""])[-1])
        except subprocess.TimeoutExpired:
            said.append(f"not done after {CHECK_SECONDS} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers too, which would go on beside the training
            process.wait()
    if (folder / "steps.json").is_file():
        timed = read_json(folder / "steps.json")["presets"].get(name)
    print(f"tests: {said[0]}\nstep of {name}: {said[1][:200]}", flush=True)
    return {"tests": said[0], "step": timed}


def leg(args: argparse.Namespace, fields: list[str]) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work, data = Path(folder), args.data
        if args.luggage is not None:
            data = args.luggage / IMAGES
            if not data.is_file():
                sys.exit(f"{data}: missing: --luggage is a folder that `pack` left")
            args.state = args.luggage / STATE if (args.luggage / STATE).is_dir() else None
        if data is not None and data.is_file():
            subprocess.run(["tar", "-xf", str(data.resolve()), "-C", folder], check=True)
            data = next(path.parent for path in work.rglob("train"))
        cfg, run, legs = prepared(args, fields, work)
        if data is not None:
            cfg = replace(cfg, data=locate(cfg.data, str(data)))
        if (least := 2 * 2 * cost(cfg).parameters) > LARGEST:  # weights and averages in bfloat16
            sys.exit(too_large(least))
        facts = {"fields": fields} | ({"checks": checks(args.preset, work)} if args.checks else {})
        train_for(args, cfg, run, legs, facts)
        pack(run, args.out, legs, facts)
        suites = ["accuracy", "fidelity"] if cfg.objective.kind == "hybvit" else ["fidelity"]
        options = hybvit.EvaluationOptions(samples=args.samples, sampler="dpmpp_2m", steps=20, extractor=args.extractor)
        metrics = hybvit.evaluate(run, data, suites=suites, options=options, say=print).metrics
        done = pack(run, args.out, legs, {**facts, "metrics": {n: m._asdict() for n, m in metrics.items()}})
    print(f"leg {done['leg']}: step {done['step']}, {done['images']:,} images in {done['seconds']:,.0f} s; {args.out / LEG}")


def pack_up(args: argparse.Namespace) -> None:
    """The images as an archive, and the last leg's state, in a new folder that travels; nothing is left of one that fails."""
    if args.out.exists():
        sys.exit(f"{args.out}: exists: name a new folder, since all that lies in it travels")
    if not args.data.is_file() and not all((args.data / split).is_dir() for split in SPLITS):
        sys.exit(f"{args.data}: neither an archive nor a folder with {' and '.join(SPLITS)}")
    if args.state is not None:
        read_json(args.state / LEG, "files")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as made:
        folder = Path(made) / args.out.name
        folder.mkdir()
        if args.data.is_file():
            shutil.copy(args.data, folder / IMAGES)
        else:
            with tarfile.open(folder / IMAGES, "w:xz") as archive:
                for split in SPLITS:
                    archive.add(args.data / split, split)
        if args.state is not None:
            shutil.copytree(args.state, folder / STATE)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > LUGGAGE:
            sys.exit(f"{args.out}: {size / 2**20:.0f} MiB, at most {LUGGAGE / 2**20:.0f} MiB travel")
        folder.rename(args.out)
    print(f"{args.out}: {size / 2**20:.1f} MiB\nthere: python benchmarks/gpu_leg.py run --luggage {args.out.name} --out ...")


def curve(args: argparse.Namespace) -> None:
    """Accuracy and distance against the time of all legs, as a record and a drawing."""
    from matplotlib.figure import Figure

    legs = read_json(args.state / LEG, "legs")["legs"]
    write_text(args.out, json.dumps({"legs": legs}, indent=1) + "\n")
    minutes = list(itertools.accumulate(leg["seconds"] / 60 for leg in legs))
    figure = Figure(figsize=(7.4, 3), layout="constrained")
    figure.supxlabel(f"minutes of training on {legs[-1]['environment']['device']}", fontsize=9)
    for axes, wanted in zip(figure.subplots(1, 2), (r"test/accuracy", r"fidelity/fd_.*_\d+"), strict=True):
        found = [
            (at, name, metric["value"])
            for at, leg in zip(minutes, legs, strict=True)
            for name, metric in leg.get("metrics", {}).items()
            if re.fullmatch(wanted, name)
        ]
        axes.plot([at for at, _, _ in found], [value for _, _, value in found], "o-")
        axes.set_ylabel(", ".join(dict.fromkeys(name for _, name, _ in found)), fontsize=8)
        axes.grid(alpha=0.3)
    write_text(args.plot, plots.svg(figure))
    print(args.out, args.plot)


def main() -> None:
    if sys.argv[1:2] == ["train"]:  # the process that train_for starts
        stored = load_config(Path(sys.argv[2]))
        threading.Thread(target=stop_after, args=[float(sys.argv[4])], daemon=True).start()
        with contextlib.suppress(Interrupted):
            train(stored, sys.argv[3])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train, measure, and leave a state")
    run.add_argument("--out", type=Path, required=True, help="folder for the state and the record")
    run.add_argument("--seconds", type=float, required=True, help="time for training; unpacking and measuring come on top")
    run.add_argument("--state", type=Path, help="folder that the last leg left; without one the training starts")
    run.add_argument("--data", type=Path, help="the images: a folder, or an archive of one with train/ and test/")
    run.add_argument("--luggage", type=Path, help="folder that `pack` left, instead of --state and --data")
    run.add_argument("--checks", action="store_true", help="run the tests that need a GPU and time the preset's step, before")
    run.add_argument("--preset", default="cifar10_v2")
    run.add_argument("--checkpoint-every", type=int, default=1000, help="steps")
    run.add_argument("--save-every", type=float, default=60, help="seconds between two states, so that a kill costs no more")
    run.add_argument("--samples", type=int, default=10_000)
    run.add_argument("--extractor")
    collect = commands.add_parser("curve", help="put the records of all legs into results/cifar10_legs.json")
    collect.add_argument("state", type=Path, help="folder that the last leg left")
    collect.add_argument("--out", type=Path, default=ROOT / "results" / "cifar10_legs.json", help="the record")
    collect.add_argument("--plot", type=Path, default=ROOT / "docs" / "cifar10_legs.svg", help="the drawing")
    luggage = commands.add_parser("pack", help="put what travels to the machine into a folder")
    luggage.add_argument("--out", type=Path, required=True, help="a new folder")
    luggage.add_argument(
        "--data", type=Path, required=True, help="the images: a folder with train/ and test/, or an archive of one"
    )
    luggage.add_argument("--state", type=Path, help="folder that the last leg left")
    args, fields = parser.parse_known_args()
    if fields and args.command != "run":
        parser.error(f"unknown option {fields[0]}")
    try:
        if args.command == "run":
            leg(args, fields)
        else:
            {"curve": curve, "pack": pack_up}[args.command](args)
    except (ConfigError, DataError, CheckpointError, OSError) as error:  # a missing or cut state, say
        sys.exit(str(error))


if __name__ == "__main__":
    main()
