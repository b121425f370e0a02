"""The house: imports point downward only, never in a circle, and no room is without a name.

A room is a module of the package, or a sub-package.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import hybvit
from hybvit.config import Config, parse
from hybvit.data.batches import TrainingBatches
from hybvit.method.objective import hybrid_loss
from hybvit.presets import preset
from hybvit.training.loop import train

from .conftest import TINY

SOURCE = Path(hybvit.__file__).parent
FLOORS = [  # a room imports from its own floor and those below, and never in a circle
    {"errors", "method", "waiting"},
    {"metrics"},
    {
        "catalog", "config", "presets", "devices", "storage", "distributed", "checkpoint", "data", "baselines", "networks",
        "hub", "model", "loading", "versions",
    },
    {"training", "evaluation", "export", "health", "integrations", "reproduce", "serving"},
    {"cli", "__main__"},
]  # fmt: skip
TOP_LEVEL_MODULES = 18
BATCH_FILES = 6
BATCH_HELPERS = {  # called on the way from pixels to loss, and what for
    "method/seeds.py": "random draws",
    "devices.py": "precision",
    "training/optim.py": "the learning rate of the step",
    "method/vit_config.py": "where the tap is",
}
LONGEST_FUNCTION, LONGEST = 60, {"train_in": 100}  # lines, and what may be longer


def room(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """The rooms of hybvit that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            depth = len(path.relative_to(SOURCE).parts) - node.level
            base = path.relative_to(SOURCE).parts[:depth]
            target = [*base, *(node.module or "").split(".")] if node.module else list(base)
            found |= {target[0]} if target and target[0] else {alias.name for alias in node.names}
    return found - {"__version__"}


def test_every_room_has_a_floor_and_imports_point_downward():
    floor_of = {name: level for level, rooms in enumerate(FLOORS) for name in rooms}
    for path in SOURCE.glob("**/*.py"):
        if path == SOURCE / "__init__.py":
            continue
        assert room(path) in floor_of, f"{path.name} stands on no floor"
        for other in imports_of(path):
            assert floor_of[other] <= floor_of[room(path)], f"{path.name} imports upward: {other}"


def test_no_circles_between_rooms():
    imports: dict[str, set[str]] = {}
    for path in SOURCE.glob("**/*.py"):
        if path != SOURCE / "__init__.py":
            imports.setdefault(room(path), set()).update(imports_of(path) - {room(path)})
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"rooms import each other: {' <- '.join(error.args[1])}")


def test_the_method_needs_torch_only():
    for path in (SOURCE / "method").glob("*.py"):
        outside = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                outside |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                outside.add((node.module or "").split(".")[0])
        known = {"torch", "math", "dataclasses", "typing", "collections", "functools", "itertools", "__future__"}
        assert outside <= known, (path.name, outside - known)
        assert imports_of(path) <= {"method"}, path.name


def test_few_modules_stand_at_the_top():
    assert len(list(SOURCE.glob("*.py"))) <= TOP_LEVEL_MODULES


def test_no_function_is_longer_than_a_reader_can_hold():
    for path in SOURCE.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= LONGEST.get(node.name, LONGEST_FUNCTION), f"{path.name}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", sorted((SOURCE.parents[1] / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_script_imports_what_there_is(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hybvit"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), alias.name


def unentered(source: str, managers: set[str]) -> list[str]:
    """Calls of context managers that are neither entered nor returned: their body would never run."""
    tree, fine = ast.parse(source), set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            fine |= {id(part) for item in node.items for part in ast.walk(item.context_expr)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("enter_context"):
            fine |= {id(part) for argument in node.args for part in ast.walk(argument)}
        elif isinstance(node, ast.Return) and node.value is not None:
            fine.add(id(node.value))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in fine]
    return [ast.unparse(call) for call in calls if ast.unparse(call.func).rpartition(".")[2] in managers]


def test_every_context_manager_is_entered():
    parsed = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")]
    functions = [node for tree in parsed for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    managers = {f.name for f in functions if any("contextmanager" in ast.unparse(part) for part in f.decorator_list)}
    assert "open_folder" in managers
    assert unentered("lock = open_folder(a)\nwith x(open_folder(b)), y: pass", managers) == ["open_folder(a)"]
    assert unentered("held.enter_context(cli.open_folder(a))", managers) == []
    for path in SOURCE.rglob("*.py"):
        assert unentered(path.read_text(encoding="utf-8"), managers) == [], path


def test_a_public_name_is_never_taken_by_a_module_of_that_name():
    """`import hybvit.load` would put a module in the place of the function."""
    taken = {path.stem for path in SOURCE.glob("*.py")} | {path.name for path in SOURCE.iterdir() if path.is_dir()}
    assert taken & set(hybvit.__all__) == set()


def test_the_checker_sees_imports():
    assert {"config", "errors"} <= imports_of(SOURCE / "data" / "datasets.py")
    assert imports_of(SOURCE / "method" / "objective.py") == {"method"}


def files_that_a_batch_crosses(cfg: Config, out: Path) -> set[str]:
    """Files of hybvit in which any function runs from the moment a batch is asked for until its loss is there."""
    found, start, end = set(), TrainingBatches.__call__.__code__, hybrid_loss.__code__
    within = False

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal within
        if frame.f_code is start and event == "call":
            within = True
            found.add(frame.f_back.f_code.co_filename)  # who asks
        if within and event == "call":
            found.add(frame.f_code.co_filename)
        if frame.f_code is end and event == "return":
            within = False

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        train(cfg, out, lambda line: None)
    finally:
        sys.setprofile(before)
    return {path.relative_to(SOURCE).as_posix() for path in map(Path, found) if path.is_relative_to(SOURCE)}


@pytest.mark.parametrize("name", ["digits", "digits_paper"])
def test_a_training_batch_crosses_six_files(name, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("\n## A training batch\n")[1].split("\n## ")[0]
    steps = re.findall(r"^\d\. `([\w/]+\.py): ", section, re.MULTILINE)
    helpers = dict(re.findall(r"`([\w/]+\.py)` \((.*?)\)", section.replace("\n", " ")))
    assert len(steps) == BATCH_FILES
    assert helpers == BATCH_HELPERS
    found = files_that_a_batch_crosses(parse([*TINY, "--train.steps=1"], preset(name)), tmp_path / "run")
    assert found == {*steps, *BATCH_HELPERS}


def test_a_measurement_replaces_figures_only_when_it_is_told_to(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SOURCE.parents[1] / "benchmarks")
    recording = importlib.import_module("recording")
    monkeypatch.setattr(recording, "RESULTS", tmp_path)
    recording.keep("speed", {"seconds": 2}, write=recording.options("").parse_args([]).write)
    assert json.loads(capsys.readouterr().out) == {"seconds": 2}
    assert not list(tmp_path.iterdir())
    recording.keep("speed", {"seconds": 2}, write=recording.options("").parse_args(["--write"]).write)
    assert json.loads((tmp_path / "speed.json").read_text()) == {"seconds": 2}
