"""The house: imports point downward only, never in a circle, and no room is without a name.

A room is a module of the package, or a sub-package.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hybvit

SOURCE = Path(hybvit.__file__).parent
FLOORS = [  # a room imports from its own floor and those below, and never in a circle
    {"errors", "method"},
    {"metrics"},
    {
        "catalog", "config", "presets", "devices", "storage", "distributed", "checkpoint", "data", "baselines", "networks",
        "hub", "model", "loading", "stopwatch",
    },
    {"training", "evaluation", "reproduce"},
    {"cli", "__main__"},
]  # fmt: skip
TOP_LEVEL_MODULES = 18
LONGEST_FUNCTION, LONGEST = 60, {"train": 100}  # lines, and what may be longer


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
        known = {"torch", "math", "dataclasses", "typing", "collections", "functools", "__future__"}
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


def test_a_public_name_is_never_taken_by_a_module_of_that_name():
    """`import hybvit.load` would put a module in the place of the function."""
    taken = {path.stem for path in SOURCE.glob("*.py")} | {path.name for path in SOURCE.iterdir() if path.is_dir()}
    assert taken & set(hybvit.__all__) == set()


def test_the_checker_sees_imports():
    assert {"config", "errors"} <= imports_of(SOURCE / "data" / "datasets.py")
    assert imports_of(SOURCE / "method" / "objective.py") == {"method"}
