"""The package as others get it: what it imports, what the wheel holds, and the files for forges and containers."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from hybvit import __version__, cli
from hybvit.health.packages import OPTIONAL

from .conftest import hybvit

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LARGEST = 40e6  # bytes of the wheel, unpacked

LEAN = """
import sys
for name in {modules}:
    sys.modules[name] = None  # importing it fails
import hybvit
from hybvit import cli

for name in ("cifar10", "digits", "fashion-mnist"):
    model = hybvit.load(name, "cpu")
    labels, probabilities, score = model.predict(model.sample(2, steps=1))
    assert probabilities.shape == (2, 10), probabilities
assert cli.main(["--quiet", "sample", "digits", "-n", "2", "--steps", "1", "--folder", "drawn"]) == 0
assert cli.main(["--quiet", "classify", "digits", "drawn/000000.png"]) == 0
assert cli.main(["--quiet", "edit", "digits", "drawn/000000.png", "--vary", "0.5"]) == 0
assert not {{"torchvision", "torch._dynamo"}} & sys.modules.keys()  # each takes as long to import as torch
assert cli.main(["--quiet", "presets"]) == 0
assert cli.main(["--help"]) == 0
assert cli.main(["evaluate", "digits"]) == 2
"""


@pytest.mark.slow
def test_a_lean_installation_loads_classifies_draws_and_edits(tmp_path):
    modules = [{"scikit-learn": "sklearn"}.get(name, name).replace("-", "_") for name in OPTIONAL]
    code = LEAN.format(modules=modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "hybvit: needs scipy, which is not installed; `hybvit doctor` lists what is missing\n"


def test_what_may_be_left_out_is_a_dependency():
    names = {re.split(r"[<>=]", requirement)[0].replace("_", "-") for requirement in PROJECT["dependencies"]}
    assert set(OPTIONAL) < names


def test_a_module_of_our_own_that_is_missing_is_an_internal_error(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "nothing", "a command without a file")
    done = hybvit("nothing")
    assert (done.returncode, "internal error" in done.stderr) == (1, True)


def built(kind: str) -> dict[str, int]:
    """The files that a build would hold, with their sizes; none of it needs a network."""
    builders = pytest.importorskip(f"hatchling.builders.{kind}", reason="hatchling, which builds the wheel, is not installed")
    builder = {"wheel": "WheelBuilder", "sdist": "SdistBuilder"}[kind]
    files = getattr(builders, builder)(str(ROOT)).recurse_included_files()
    return {file.distribution_path: Path(file.path).stat().st_size for file in files}


def test_the_wheel_holds_the_package_and_nothing_else():
    files = built("wheel")
    assert {name.split("/")[0] for name in files} == {"hybvit"}
    source = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "hybvit").rglob("*") if path.is_file()}
    assert set(files) == {name for name in source if "__pycache__" not in name}
    assert {"hybvit/py.typed", "hybvit/assets/models/digits/model.safetensors"} < files.keys()
    assert sum(files.values()) < LARGEST


def test_the_sdist_holds_the_tests_but_no_results():
    files = built("sdist")
    assert {"tests/test_install.py", "docs/install.md", "LICENSE"} < files.keys()
    assert not [name for name in files if name.startswith(("results/", "shared/", "runs/", ".ci/"))]


def test_the_files_of_forges_can_be_read_and_name_what_exists():
    read = {}
    for path in (*ROOT.glob(".github/**/*.yml"), ROOT / "CITATION.cff"):
        read[path.name] = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(read[path.name], dict), path.name
    ci, targets = read["ci.yml"]["jobs"], re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    steps = [
        step["run"] for job in (*ci.values(), read["release.yml"]["jobs"]["build"]) for step in job["steps"] if "run" in step
    ]
    made = {target for step in steps if step.startswith("make ") for target in step.split()[1:]}
    assert made == {"lint", "types", "unit", "dist", "oldest"}
    assert made <= set(targets)
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert set(claimed) <= set(ci["test"]["strategy"]["matrix"]["python-version"])
    assert read["release.yml"]["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert (read["CITATION.cff"]["license"], read["CITATION.cff"]["version"]) == (PROJECT["license"], __version__)
    for form in ("bug.yml", "idea.yml"):
        assert {"name", "description", "body"} <= read[form].keys()


def test_the_container_is_built_from_what_the_wheel_needs():
    docker, kept = ((ROOT / name).read_text() for name in ("Dockerfile", ".dockerignore"))
    copied = {word for line in re.findall(r"^COPY (?!--)(.*)", docker, re.MULTILINE) for word in line.split()[:-1]}
    assert copied == set(re.findall(r"^!(\S+)", kept, re.MULTILINE))
    for requirement in re.findall(r'"(torch[^"]*)"', docker):
        assert requirement in PROJECT["dependencies"]
    assert "\nUSER hybvit\n" in docker
    assert set(re.findall(r"^ARG EXTRAS=(.*)", docker, re.MULTILINE)[0].split(",")) <= PROJECT["optional-dependencies"].keys()
