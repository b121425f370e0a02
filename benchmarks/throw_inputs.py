"""Throw generated inputs at the commands, and count how each command ended.

    python benchmarks/throw_inputs.py [--count 1000] [--seed 0] [--only KIND] [--case N] [--keep DIR]

The rule: no command that a person can type ends in an internal error, a traceback or a signal, or takes more than a minute,
whatever lies in a file, a folder, an environment or a pipe. An error is one line that names a file or a field, and a command
that says it is done has written what it was asked for. Each case is drawn from (seed, N) alone, and `--case N` runs it again;
with `--keep DIR` its files stay. The cases run one after the other, each in a fork of this process, which has imported all.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
os.environ |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # a download fails at once

import datasets  # noqa: F401  the commands import it when they need it
import torch
import webdataset  # noqa: F401
import yaml
from odd_inputs import VALUES, Draw, archive, folder, manifest, named, odd_picture, parquet, picture, put, replace, shards
from PIL import Image
from safetensors.torch import load_file, save_file

from hybvit import checkpoint, cli, load
from hybvit.config import Config

SECONDS, MEMORY, BROKEN = 60, 6 << 30, 99  # BROKEN: the exit code where a case could not be made
CODES = {0: "done", 2: "usage", 3: "data", 4: "diverged", 5: "checkpoint"}
TINY = ["--train.steps=2", "--train.batch_size=8", "--model.depth=2", "--model.dim=32"]
AT_32, AT_96 = ([f"--model.image_size={n}", f"--model.patch_size={n // 4}", "--model.heads=2"] for n in (32, 96))
WORK = {  # words of options whose large values take long, and rightly so
    "steps", "n", "batch_size", "batch", "depth", "dim", "samples", "columns", "workers", "draws", "images", "width",
    "mlp_ratio",
}  # fmt: skip
ENVIRONMENT = {
    "WORLD_SIZE": ["2", "0", "-1", "x", ""], "RANK": ["1", "x", ""], "LOCAL_RANK": ["x", "-1"], "LINES": ["0"],
    "TZ": ["x/y"], "MASTER_PORT": ["0", "x", "99999"], "HOME": ["/nowhere", "/dev/null", "", "\udcff", "~"],
    "TMPDIR": ["/nowhere", "/dev/null", ""], "XDG_CACHE_HOME": ["/dev/null", "/nowhere", "", "x"], "HF_HOME": ["/dev/null"],
    "COLUMNS": ["0", "-1", "x", "1"], "CUDA_VISIBLE_DEVICES": ["", "-1", "x"], "MPLCONFIGDIR": ["/dev/null"],
    "MPLBACKEND": ["x"], "MASTER_ADDR": ["nowhere.invalid"],
}  # fmt: skip
AT_START = {  # what matters only to a new Python
    "LC_ALL": ["C", "POSIX", "xx_XX", "C.UTF-8"], "PYTHONIOENCODING": ["ascii", "latin-1"], "PYTHONUTF8": ["0"],
    "OMP_NUM_THREADS": ["0", "x", "-1", "3"], "PYTHONWARNINGS": ["default"], "PYTHONOPTIMIZE": ["2"], "PYTHONUNBUFFERED": ["1"],
}  # fmt: skip


@dataclass
class Case:
    """A command, what it must leave behind when it succeeds, and what happens in its process before it starts."""

    words: list[str]
    made: list[Path] = field(default_factory=list)
    lines: int = 1  # of standard output
    before: list[Callable[[], object]] = field(default_factory=list)
    process: bool = False  # starts a new Python


# commands


def shard_set(draw: Draw) -> Case:
    case = on_data(draw, shards(draw))
    case.words += ["--data.held_out=0"] * (case.words[0] == "train")
    return case


def known_set(draw: Draw) -> Case:
    name, root = named(draw)
    preset = {"fashion_mnist": "fashion_mnist_pocket", "svhn": "cifar10"}.get(name, name)
    case = on_data(draw, root, draw.choice(("train", "train", "show-data")), preset)
    case.words += (AT_96 if name == "stl10" else AT_32) + ["--data.name=svhn"] * (name == "svhn")
    return case


def resign(place: Path) -> None:
    """Make the manifest of a checkpoint true again, so that only the content of its files is wrong."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        manifest = json.loads((place / checkpoint.MANIFEST).read_text())
        manifest["sha256"] = {name: checkpoint.sha256(place / name) for name in manifest["sha256"] if (place / name).is_file()}
        manifest["digest"] = checkpoint.digest_of(manifest)
        (place / checkpoint.MANIFEST).write_text(json.dumps(manifest))


ODD = [None, math.nan, math.inf, -1, 0, 3, 1e30, "x", "", [], {}, True, 2**70, [[]], {"a": {}}, "\0", "é", 10**400, -(2**63)]


def change(draw: Draw, path: Path) -> None:
    """Change one thing in a file of a run or an exported model, so that it is still of its format."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        key = draw.choice(sorted(tensors))
        v = tensors[key]
        made = (v.double(), v.flatten()[:1], v * math.nan, v[None], v.to(torch.int32), torch.zeros(0), v * 1e30)
        tensors[draw.usually(key, draw.name())] = draw.choice(made).contiguous()
        save_file(tensors, path)
        return
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    at = draw.randrange(len(lines))
    group = content = yaml.safe_load(lines[at])
    while isinstance(group, dict) and (inner := [v for v in group.values() if isinstance(v, dict) and v]) and draw.maybe(0.8):
        group = draw.choice(inner)
    if isinstance(group, dict) and group:
        group[draw.choice(list(group)) if draw.maybe(0.9) else draw.name()] = draw.choice(ODD)
        if draw.maybe(0.1):
            del group[draw.choice(list(group))]
    content = draw.usually(content, *ODD, but=0.05)
    lines[at] = yaml.safe_dump(content, allow_unicode=True) if path.suffix == ".yaml" else json.dumps(content)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")


def run(draw: Draw) -> Case:
    """A run folder or an exported model in which something is damaged."""
    kind, root = draw.usually("run", "export", "genvit", but=0.4), draw.folder / "model"
    shutil.copytree(draw.shared / kind, root)
    for _ in range(draw.choice((1, 1, 2))):
        path = draw.choice(
            sorted(p for p in root.rglob("*") if p.suffix in (".yaml", ".json", ".jsonl", ".safetensors", ".id"))
        )
        way = draw.usually("change", "spoil", "replace", but=0.4)
        try:
            change(draw, path) if way == "change" else path.write_bytes(
                draw.spoil(path.read_bytes())
            ) if way == "spoil" else None
        except Exception:  # what the first round has left cannot be changed
            way = "replace"
        if way == "replace":
            replace(draw, draw.usually(path, path.parent))
            break
        if path.name == "config.yaml" and (root / "checkpoints").is_dir() and path.parent != root:
            shutil.copy(path, root)
        if draw.maybe(0.8):
            resign(path.parent)
    spec = str(draw.choice((root, root, root, *root.glob("checkpoints/step*"))))
    verb = draw.choice(("evaluate", "sample", "classify", "train", "init"))
    if verb == "train":
        words = ["train", "digits", "--out", str(root), *TINY, "--train.steps", draw.choice("24")]
        return Case(words + ["--objective", "genvit"] * (kind == "genvit"), [root / "config.yaml"])
    return train(draw, ["--train.init", spec], []) if verb == "init" else use(draw, verb, spec, draw.folder / "out")


def use(draw: Draw, verb: str, model: str, out: Path) -> Case:
    """Use a model without other inputs."""
    if verb == "evaluate":
        words = ["evaluate", model, "--suites", draw.choice(("accuracy", "accuracy", "likelihood")), "--out", str(out)]
        report = ["--report"] * draw.maybe(0.3)
        words += ["--limit=8", "--bound-images=2", "--bound-draws=2", *report]
        return Case(words, [out / "results.json", *[out / "report.html"] * len(report)])
    if verb == "sample":
        return Case(["sample", model, "-n", "2", "--steps", "2", "--out", str(out / "grid.png")], [out / "grid.png"])
    return Case(["classify", model, str(put(draw.folder / "1.png", picture(draw)))])


def train(draw: Draw, words: Sequence[str], made: Sequence[str], preset: str = "digits") -> Case:
    out = draw.folder / "out"
    made = ["config.yaml", "metrics.jsonl", *made]
    return Case(["train", preset, "--out", str(out), *TINY, *words], [out / name for name in made])


def on_data(draw: Draw, root: Path, verb: str = "", preset: str = "") -> Case:
    """A command that reads this data set."""
    out, place = draw.folder / "out", str(root)
    verb = verb or draw.choice(("train",) * 5 + ("show-data",) * 2 + ("evaluate", "ood", "test_root"))
    if verb in ("evaluate", "ood"):
        suite = "ood" if verb == "ood" else draw.choice(("accuracy", "likelihood"))
        words = ["evaluate", str(draw.shared / draw.choice(("run", "genvit"))), "--out", str(out), "--suites", suite]
        words += ["--limit=8", "--bound-images=2", "--bound-draws=2", f"--{'data' if verb == 'evaluate' else 'ood'}={place}"]
        return Case(words, [out / "results.json"])
    options = ["--data.max_bad_files=3"] * draw.maybe(0.3) + ["--data.memory_gib=0"] * draw.maybe(0.2)
    options += ["--model.channels=3"] * (draw.maybe(0.3) and not preset)
    if verb == "show-data":
        words = ["show-data", preset or "digits", "--columns", "2", "--out", str(out), f"--data={place}", *options]
        return Case(words, [out / "augmentation.png", out / "figure1.png"])
    options += ["--objective", draw.choice(("vit", "genvit"))] * draw.maybe(0.2) + ["--data.workers=1"] * draw.maybe(0.03)
    places = [f"--data={draw.shared / 'images'}", f"--data.test_root={place}"] if verb == "test_root" else [f"--data={place}"]
    return train(draw, places + options, ["checkpoints"], preset or "digits")


def image(draw: Draw) -> Case:
    suffixes = (".png", ".jpg", ".gif", "", ".PNG", ".txt")
    paths = [put(draw.folder / draw.name(draw.choice(suffixes)), odd_picture(draw)) for _ in range(draw.choice((1, 1, 2, 5)))]
    if draw.maybe(0.1):
        replace(draw, paths[0])
    options = ["--json"] * draw.maybe(0.3) + ["--top", "20"] * draw.maybe(0.2)
    return Case(["classify", str(draw.shared / "run"), *options, "--", *map(str, paths)], lines=len(paths))


def redirect(descriptor: int, target: str | None) -> None:
    """Close a standard stream, send it to a file, or to a pipe that nobody reads."""
    if target is None:
        os.close(descriptor)
    elif target == "pipe":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, descriptor)
        os.close(writing)
    else:
        os.dup2(os.open(target, os.O_RDWR), descriptor)


def without_folder(draw: Draw) -> None:
    (draw.folder / "cwd").mkdir()
    os.chdir(draw.folder / "cwd")
    (draw.folder / "cwd").rmdir()


def environment(draw: Draw) -> Case:
    verb = draw.choice(("train", "evaluate", "sample", "classify", "show-data", "datasets", "presets"))
    if verb in ("train", "show-data"):
        case = on_data(draw, draw.shared / draw.choice(("images", "é")), verb)
    else:
        case = Case([verb]) if verb.endswith("s") else use(draw, verb, str(draw.shared / "run"), draw.folder / "out")
    if "--out" in case.words and draw.maybe(0.1):
        case.words[case.words.index("--out") + 1] = draw.choice(("/proc/x", "/sys/x", "/dev/null", "/dev/full", "/dev/null/x"))
    case.process = draw.maybe(0.25)
    known = ENVIRONMENT | (AT_START if case.process else {})
    for name in draw.sample(sorted(known), draw.choice((0, 1, 2))):
        value = draw.choice([*known[name], None])
        case.before.append(partial(os.environ.pop, name, None) if value is None else partial(os.environ.update, {name: value}))
    limit = draw.choice((0, 3000, 40_000))
    kinds: list[Callable[[], object]] = [partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))]  # a full disk
    kinds += [partial(os.umask, 0o777), partial(without_folder, draw)]
    kinds += [partial(redirect, stream, target) for stream in (1, 2) for target in (None, "/dev/full", "pipe")]
    if draw.maybe(0.7):
        case.before.append(draw.choice([*kinds, partial(redirect, 0, None)]))
        case.lines = 0
    return case


OPTIONS = {
    "evaluate": "suites data dataset limit seed batch-size ood bound-images bound-draws samples steps guidance extractor out",
    "sample": "n sampler steps label guidance seed batch-size out folder",
    "classify": "top",
}


def values(draw: Draw) -> Case:
    """Odd values of options and of positional arguments."""
    verb = draw.choice(("train", "train", "train", "evaluate", "sample", "classify", "show-data", "bare"))
    value = draw.choice(VALUES) if draw.maybe(0.8) else str(draw.choice(sorted(draw.shared.rglob("*"))))
    if verb == "bare":  # bench and reproduce start work of many minutes
        first = draw.choice((*(verb for verb in cli.COMMANDS if verb not in ("bench", "reproduce")), value, ""))
        return Case([first, *draw.choice(([], [value], ["--help"], [value] * 2))], lines=0)
    if verb in OPTIONS:
        case = use(draw, verb, str(draw.shared / "run"), draw.folder / "out")
        name = draw.choice(OPTIONS[verb].split())
    else:
        groups = [
            (group.name, group.default_factory()) for group in dataclasses.fields(Config) if callable(group.default_factory)
        ]
        leaves = [f"{group}.{leaf.name}" for group, content in groups for leaf in dataclasses.fields(content)]
        name = draw.choice((*leaves, "data", "out", "objective"))
        case = train(draw, [], ["checkpoints"]) if verb == "train" else on_data(draw, draw.shared / "images", verb)
    if set(re.split(r"\W", name)) & WORK and re.fullmatch(r"\d{4,}", value):
        value = "7"
    if draw.maybe(0.15):
        case.words[1] = value
    else:
        case.words.append(f"-{'-' * (name != 'n')}{name}={value}")
    case.made = [] if name in ("out", "folder") else case.made
    case.lines = 0
    case.before.append(partial(os.chdir, draw.folder))
    return case


KINDS: dict[str, tuple[Callable[[Draw], Case], int]] = {  # and how often
    "folder": (lambda draw: on_data(draw, folder(draw)), 16), "archive": (lambda draw: on_data(draw, archive(draw)), 12),
    "manifest": (lambda draw: on_data(draw, manifest(draw)), 13), "parquet": (lambda draw: on_data(draw, parquet(draw)), 8),
    "shards": (shard_set, 8), "named": (known_set, 8), "image": (image, 10), "run": (run, 13), "environment": (environment, 10),
    "values": (values, 12),
}  # fmt: skip


# running a case


def kind_of(seed: int, number: int) -> str:
    return random.Random(f"kind {seed} {number}").choices(list(KINDS), [often for _, often in KINDS.values()])[0]


def child(kind: str, draw: Draw) -> int:
    """Make a case and run it, in a process of its own -> the exit code."""
    try:
        with warnings.catch_warnings(action="ignore"):
            case = KINDS[kind][0](draw)
        facts = {"words": case.words, "made": [str(path) for path in case.made], "lines": case.lines}
        (draw.folder / "case.json").write_text(json.dumps(facts))
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(draw.folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        faulthandler.dump_traceback_later(SECONDS - 5, file=open(draw.folder / "stack", "w"))  # noqa: SIM115  where it hangs
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
        os.chdir(draw.folder)
    except BaseException:
        (draw.folder / "stderr").write_text(traceback.format_exc())
        return BROKEN
    for step in case.before:
        step()
    if case.process:
        os.execve(sys.executable, [sys.executable, "-m", "hybvit.cli", *map(os.fsencode, case.words)], os.environ)
    streams: list[Any] = [None, None]
    for i, errors in enumerate(("strict", "backslashreplace")):
        with contextlib.suppress(OSError):  # closed: as in a new Python, it is None
            streams[i] = open(i + 1, "w", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = streams
    try:
        code = cli.main(case.words)
        for stream in streams:
            if stream is not None:
                stream.flush()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    return code


def end_of(kind: str, draw: Draw) -> str:
    """Run a case -> its exit code, the name of the signal that ended it, or "timeout"."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.alarm(SECONDS)
        code = BROKEN
        try:
            code = child(kind, draw)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it left behind
    if os.WIFEXITED(status):
        return str(os.WEXITSTATUS(status))
    return "timeout" if os.WTERMSIG(status) == signal.SIGALRM else signal.Signals(os.WTERMSIG(status)).name


def read(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""


def faults(place: Path, end: str) -> list[str]:
    """What is wrong with the end of a case."""
    said, out = read(place / "stderr"), read(place / "stdout")
    case = json.loads(read(place / "case.json") or '{"made": [], "lines": 0, "words": [""]}')
    found = [] if end.isdigit() and int(end) in CODES else [f"ended with {end}"]
    found += [f"{word} in the output" for word in ("Traceback", "internal error") if word in said + out]
    lines = [
        line for line in said.split("\n") if line and not line.startswith(("warning: ", "libgomp: ", "next: ", "expected: "))
    ]
    stray = [line for line in lines if not line.startswith("hybvit: ")]
    if stray:
        found.append(f"a line of standard error that is no message: {stray[0][:100]!r}")
    if end == "0":
        found += [f"done, but {path} is missing or empty" for path in case["made"] if not present(Path(path))]
        if out.count("\n") < case["lines"]:
            found.append(f"done, but not {case['lines']} lines were printed")
    elif end in ("2", "3", "4", "5") and case["lines"] and case["words"][0] != "classify" and len(lines) != 1:
        found.append(f"{len(lines)} lines of error, not one")
    if any(
        not re.search(r"[/.=]\S|--\w|\w_\w|'|verb|standard|current folder|the system|WORLD_SIZE", line[8:]) for line in lines
    ):
        found.append("an error without the name of a file or a field")
    return found


def present(path: Path) -> bool:
    """Whether a file is there, whole and not empty, or a folder with something in it."""
    if path.is_dir():
        return any(path.iterdir())
    if not path.is_file() or not path.stat().st_size:
        return False
    if path.suffix == ".png":
        Image.open(path).verify()
    return path.suffix != ".json" or bool(json.loads(path.read_text(encoding="utf-8")))


def prepare(shared: Path) -> None:
    """The models and images that all cases share; this also imports what the commands import."""
    draw = Draw(0, 0, shared, shared)
    for name in ("images", "é"):
        for i in range(12):
            put(shared / name / "ab"[i % 2] / f"{i}.png", picture(draw))
    for words in (
        ["train", "digits", "--out", str(shared / "run"), *TINY],
        ["train", "digits", "--out", str(shared / "genvit"), "--objective", "genvit", *TINY],
        ["evaluate", str(shared / "run"), "--suites", "accuracy", "--limit", "8", "--report"],
        ["show-data", "digits", "--out", str(shared / "show"), f"--data={shared / 'images'}"],
        ["sample", str(shared / "run"), "-n", "1", "--steps", "1", "--out", str(shared / "grid.png")],
    ):
        with (shared / "log").open("a") as log, contextlib.redirect_stdout(log):
            code = cli.main(words)
        if code:
            sys.exit(f"{' '.join(words)} failed, before any case")
    load(shared / "run").save_pretrained(shared / "export")


def tell(number: int, kind: str, seed: int, wrong: list[str], place: Path) -> None:
    words = json.loads(read(place / "case.json") or '{"words": []}')["words"]
    print(f"case {number} ({kind}): {'; '.join(wrong) or 'nothing wrong'}\n    {str(words)[:600]}")
    print(*(f"    | {line[:400]}" for line in read(place / "stderr").splitlines()[-8:]), sep="\n")
    print(f"    again: python {sys.argv[0]} --seed {seed} --case {number} --keep DIR", flush=True)


def special(place: str, names: list[str]) -> list[str]:
    """What a copy leaves out: pipes, and files of many gigabytes without content."""
    paths = {name: Path(place, name) for name in names}
    return [name for name, path in paths.items() if path.is_fifo() or (path.is_file() and path.stat().st_size > 1 << 30)]


def table(ends: Counter[tuple[str, str]]) -> None:
    """Print how often each kind ended in each way."""
    columns = sorted({end for _, end in ends}, key=lambda end: (not end.isdigit(), end.zfill(4)))
    titles = [f"{end} {CODES.get(int(end), '')}" if end.isdigit() else end for end in columns]
    print(f"\n{'kind':<14}" + "".join(f"{title:>14}" for title in titles))
    for kind in KINDS:
        if any(ends[kind, end] for end in columns):
            print(f"{kind:<14}" + "".join(f"{ends[kind, end]:>14}" for end in columns))
    print(f"{'all':<14}" + "".join(f"{sum(ends[kind, end] for kind in KINDS):>14}" for end in columns))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="number of cases (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, metavar="KIND", help=f"cases of one kind: {', '.join(KINDS)}")
    parser.add_argument("--case", type=int, metavar="N", help="only this case")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the files of the cases that break the rule, or of --case"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    started, ends, broken, slowest = time.monotonic(), Counter[tuple[str, str]](), 0, 0.0
    with tempfile.TemporaryDirectory() as made:
        shared = Path(made) / "shared"
        prepare(shared)
        number = (args.case or 0) - 1
        while ends.total() < (1 if args.case is not None else args.count):
            number += 1
            kind = kind_of(args.seed, number)
            if args.only not in (None, kind):
                continue
            place = Path(made) / str(number)
            place.mkdir()
            began = time.monotonic()
            end = end_of(kind, Draw(args.seed, number, place, shared))
            slowest = max(slowest, time.monotonic() - began)
            ends[kind, end] += 1
            wrong = faults(place, end)
            broken += bool(wrong)
            if wrong or args.case is not None:
                tell(number, kind, args.seed, wrong, place)
                if args.keep:
                    shutil.copytree(place, args.keep / str(number), symlinks=True, dirs_exist_ok=True, ignore=special)
            shutil.rmtree(place, ignore_errors=True)
    table(ends)
    print(
        f"{ends.total()} cases in {time.monotonic() - started:.0f} s, the slowest in {slowest:.0f} s: {broken} break the rule"
    )
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
