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
FLOORS = [
    {"errors", "seeds", "vit_config", "vit", "diffusion", "samplers", "objective"},
    {"metrics"},
    {
        "catalog",
        "config",
        "devices",
        "muon",
        "data",
        "checkpoint",
        "run_folder",
        "hybrid",
        "distributed",
        "adapters",
        "extractors",
        "baselines",
        "networks",
        "recipes",
        "cost",
        "published",
    },
    {
        "arguments",
        "plots",
        "report",
        "train",
        "sample",
        "classify",
        "evaluation",
        "presets",
        "show",
        "bench",
        "cli",
        "datasets",
        "show_data",
        "reproduce",
    },
]


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


def test_floor_0_needs_torch_only():
    for name in FLOORS[0]:
        tree = ast.parse((SOURCE / f"{name}.py").read_text())
        outside = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                outside |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                outside.add((node.module or "").split(".")[0])
        assert outside <= {"torch", "math", "dataclasses", "typing", "collections", "functools", "__future__"}, (
            name,
            outside,
        )


def test_the_checker_sees_imports():
    assert {"vit", "diffusion"} <= imports_of(SOURCE / "objective.py")
    assert {"config", "errors"} <= imports_of(SOURCE / "data" / "datasets.py")
