"""README.md: its figures are those of results/, its code runs, its commands exist."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import hybvit
from docs import rendering
from hybvit import checkpoint, cli, hub
from hybvit.cli.evaluate import build_parser, given_options
from hybvit.config import Config, differences, load_config, override, parse, to_yaml, value_of
from hybvit.evaluation.options import Options
from hybvit.presets import preset
from hybvit.training import cost

from .conftest import QUICK
from .test_paper_doc import unresolved
from .test_structure import FLOORS, SOURCE, imports_of, room

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def script(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("page", rendering.PAGES)
def test_the_figures_are_rendered_from_results(page):
    text = (ROOT / page).read_text()
    assert rendering.render(text) == text, "run `make readme`"
    assert "-->\n<!-- end" not in text, "a block is empty"


@pytest.mark.parametrize(("name", "page"), [("draw_architecture", README), ("draw_imports", ARCHITECTURE)])
def test_a_drawing_is_what_its_script_writes(name, page):
    made = script(f"docs/{name}.py")
    assert made.PATH.read_text(encoding="utf-8") == made.drawing(), f"run `python docs/{name}.py`"
    assert f"{made.PATH.name})" in page


@pytest.mark.slow
def test_the_imports_that_are_drawn_are_those_that_the_floors_allow():
    made = script("docs/draw_imports.py")
    drawn = [{box[0] for row in rows for box in row} for _, rows in reversed(made.FLOORS)]
    assert drawn == [floor - made.LEFT_OUT for floor in FLOORS]
    for name, others in made.imports().items():
        files = [path for path in SOURCE.glob("**/*.py") if room(path) == name]
        assert others == set().union(*map(imports_of, files)) - {name}, name
    kept = made.thinned({"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()})
    assert kept == [("a", "b"), ("b", "c"), ("c", "d")]


def missing_files(page: str) -> list[str]:
    """Every ``file.py`` without a name that is not there; in the paragraph of a room, its files go by their names alone."""
    found = []
    for paragraph in page.split("\n\n"):
        own = re.match(r"\*\*(\w+)/\*\*", paragraph)
        places = [SOURCE, ROOT, *([SOURCE / own[1]] if own else [])]
        files = re.findall(r"`([\w/]+\.py)`", paragraph)
        found += [file for file in files if not any((place / file).is_file() for place in places)]
    return found


def test_every_file_and_function_of_the_architecture_page_exists():
    assert len(re.findall(r"\.py: ", ARCHITECTURE)) > 100
    assert unresolved(ARCHITECTURE) == []
    assert missing_files(ARCHITECTURE) == []
    assert missing_files("**method/** is `vit.py` and `loop.py`, `data/batch.py`\n\n`vit.py`") == [
        "loop.py",
        "data/batch.py",
        "vit.py",
    ]


def test_every_room_has_its_words():
    for name in (path.parent.name for path in SOURCE.glob("*/__init__.py")):
        assert f"\n**{name}/** " in ARCHITECTURE, name
    for path in SOURCE.glob("*.py"):
        assert f"`{path.name}" in ARCHITECTURE, path.name
    assert [line for line in ARCHITECTURE.splitlines() if len(line) > 128 and not line.startswith("|")] == []


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_linked_files_exist(page):
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert link.startswith("http") or ((ROOT / page).parent / link).exists(), link


def test_one_substitution_makes_the_links_of_the_readme_absolute():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert all(link.startswith(("https://", "docs/", "src/")) for link in links), (
        "`](docs/` and `](src/` are what is substituted"
    )


@pytest.mark.parametrize("name", hub.bundled())
def test_a_card_needs_nothing_outside_of_its_folder(name):
    links = re.findall(r"\]\(([^)#]+)\)", (hub.BUNDLED / name / "README.md").read_text())
    inside = [link for link in links if not link.startswith("http")]
    assert "samples.png" in inside
    assert all(link == Path(link).name and (hub.BUNDLED / name / link).is_file() for link in inside)


def test_the_data_page_names_fields_that_exist():
    for name in re.findall(r"--(data\.\w+)", (ROOT / "docs" / "data.md").read_text()):
        value_of(Config(), name)


@pytest.mark.slow
def test_the_six_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1].replace("steps=20", "steps=2")
    names: dict = {}
    exec(code, names)
    assert names["labels"].shape == (16,)
    assert names["bits"].shape == (2,)
    assert names["boots"].shape == (16, 1, 28, 28)
    assert (tmp_path / "my-model" / "manifest.json").is_file()


@pytest.mark.slow
def test_the_commands_run(tmp_path, monkeypatch):
    for name, shade in (("dark", 20), ("light", 230)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (40 + i, 32), (shade, shade, 90)).save(tmp_path / "photos" / name / f"{i}.jpg")
    Image.new("RGB", (64, 64)).save(tmp_path / "new.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "_counted", lambda cfg, sizes: cost._Counted(1, 0, 1))  # 40 networks, half a second each
    commands = re.findall(r"^ {4}hybvit (.+)$", README, re.MULTILINE)
    verbs = ["train", "show", "reproduce", "reproduce", "train", "evaluate", "classify", "sample", "serve", *["reproduce"] * 4]
    assert [command.split()[0] for command in commands] == verbs
    quick = {
        "train": ["--train.steps=2", "--train.batch_size=4", "--model.dim=32", "--model.readout_width=8"],
        "evaluate": [*QUICK, "--samples=4"],
        "sample": ["--steps=2"],
        "reproduce": ["--dry-run"],
    }
    for command in commands:
        verb, *words = command.partition("#")[0].split()
        if verb == "serve":  # which would not end; tests/test_serve.py has it
            continue
        assert cli.main([verb, *words, *quick.get(verb, [])]) == 0
    assert (tmp_path / "runs" / "photos" / "report.html").is_file()
    assert (tmp_path / "grid.png").is_file()


def test_the_bundled_models_are_those_that_were_measured():
    names = hub.bundled()
    assert names == ["cifar10", "digits", "fashion-mnist"]
    assert sum(path.stat().st_size for path in hub.BUNDLED.rglob("*") if path.is_file()) < 16e6
    for name in names:
        record = json.loads((ROOT / "results" / f"model_{name}.json").read_text())
        assert record["sha256"] == checkpoint.verify(hub.BUNDLED / name)["sha256"]
        assert record["metrics"]["test/accuracy"]["value"] > {"cifar10": 0.83, "digits": 0.97, "fashion-mnist": 0.93}[name]
        preset_name, *words = record["training"]["command"].split()[2:]  # still the command, though its preset may have changed
        trained_by = parse(words, preset(preset_name))
        assert set(differences(load_config(hub.BUNDLED / name / "config.yaml"), trained_by)) <= {
            "data.classes",
            "data.split",  # of 0.1.0, which trained them; named data sets have a test split, and this divides none
            "train.init",
            "train.compile",  # auto is decided when a training starts
        }


@pytest.mark.parametrize("name", hub.bundled())
def test_a_card_names_the_command_that_its_figures_came_from(name):
    words = re.search(r"Measured by `hybvit evaluate (.*)`", (hub.BUNDLED / name / "README.md").read_text())[1].split()
    asked = Options(**given_options(build_parser().parse_args(words)))
    options = json.loads((ROOT / "results" / f"model_{name}.json").read_text())["options"]
    for field in ("samples", "sampler", "steps", "limit", "seed", "attack_images", "autoattack_images", "bound_images"):
        assert getattr(asked, field) == options[field]


@pytest.mark.parametrize("name", hub.bundled())
def test_a_bundled_model_still_answers_as_when_it_was_shipped(name):
    recorded = json.loads((ROOT / "results" / f"model_{name}.json").read_text())["answers"]
    found = script("benchmarks/ship.py").answers(hybvit.load(name, "cpu"))
    assert found.keys() == recorded.keys()
    for key, values in found.items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(recorded[key]), rtol=1e-3, atol=1e-3)


def test_results_of_earlier_versions_say_where_their_numbers_do_not_compare():
    made = rendering.cards
    old = {
        "metrics": {
            "likelihood/bits_per_dim": {"value": 3.5, "n": 256},
            "likelihood/diffusion_bits": {"value": 2.0, "n": 16},
            "fidelity/fd_cnn-digits_5000": {"value": 0.54, "n": 5000},
            "fidelity/fd_cnn-digits_real_test": {"value": 0.1, "n": 364},
            "calibration/temperature": {"value": 0.8, "n": 10},
            "calibration/ece_20_scaled": {"value": 0.03, "n": 10},
        },
        "notes": {"calibration": list(made.REWORDED)},
    }
    lines = "\n".join(made.unequal(old["metrics"]))
    assert "16 of the 256 images" in lines
    assert "that of 364, not of 5,000" in lines
    assert made.fitted_on_training_images(old) == {"calibration/temperature", "calibration/ece_20_scaled"}
    new = {
        "likelihood/bits_per_dim": {"n": 256}, "likelihood/diffusion_bits": {"n": 256}, "fidelity/fd_cnn_5000": {"n": 5000},
        "fidelity/fd_cnn_364_real_test": {"n": 364}, "fidelity/fd_cnn_364_of_samples": {"n": 364},
    }  # fmt: skip
    assert made.unequal(new) == made.unequal({}) == []
    assert made.fitted_on_training_images({"metrics": old["metrics"], "notes": {"calibration": []}}) == set()


def test_the_speed_of_a_record_with_rows_is_that_of_its_fastest_precision():
    made, spread = rendering.speed, {"median": 1.25, "low": 1.1, "high": 1.3}
    rows = [
        {"row": "joint", "system": "hybvit", "precision": "bf16", "fraction_of_peak": {"median": 0.8}},
        {"row": "joint", "system": "plain reference", "precision": "bf16", "speedup": spread},
        {"row": "joint", "system": "plain reference", "precision": "fp32", "speedup": {}},
    ]
    products = [{"precision": p, "gflop_per_second": gflops} for p, gflops in (("fp32", 137.2), ("bf16", 340.4))]
    text = made.speed_of({"rows": rows, "products": products, "batch_size": 32})
    assert "(batch 32 + 32, bf16) runs 1.25 times as fast" in text
    assert "(quartiles 1.10 to 1.30), at 80 % of the 340 GFLOP/s" in text
    assert made.speed() in README  # the stored record, of 0.1.0


def test_every_figure_of_the_models_has_its_number_of_images():
    value = rendering.records.value
    assert value({"metrics": {"a": {"value": 0.5, "n": 1200}}}, "a") == "50.0 % (n 1,200)"
    interval = {"value": 0.5, "n": 12, "low": 0.4, "high": 0.6}
    assert value({"metrics": {"a": interval}}, "a", percent=False) == "0.50 (0.40 to 0.60, n 12)"
    rows = [line for line in rendering.readme.shipped().splitlines() if "Frechet" in line and line.startswith("|")]
    assert all(line.count("(n ") >= len(rendering.MODELS) for line in rows)  # or more, where distances are given at two n
    assert len(rows) == 2


def run_folder(path: Path, steps: int, init: str | Path | None, **environment: object) -> Path:
    """A run as training leaves it, a line of metrics for every second step of a second each."""
    path.mkdir()
    cfg = override(preset("digits"), train={"steps": steps, "init": None if init is None else str(init)})
    (path / "config.yaml").write_text(to_yaml(cfg))
    lines = [{"step": step, "loss": 1.0, "seconds": 1.0, "images_per_second": 96.0} for step in range(2, steps + 1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "environment.json").write_text(json.dumps({"device": "a CPU", **environment}))
    return path


@pytest.mark.slow
def test_only_legs_from_the_shipped_model_are_counted(tmp_path):
    ship, shipped = script("benchmarks/ship.py"), {"steps": 5, "command": "hybvit train digits"}
    first = run_folder(
        tmp_path / "first", 10, "digits", earlier=[{"device": d, "until_step": n} for d, n in (("a GPU", 4), ("a phone", 4))]
    )
    second = run_folder(tmp_path / "second", 6, first)
    anew, other = run_folder(tmp_path / "anew", 6, None), run_folder(tmp_path / "other", 6, "runs/other")

    before, leg = ship.legs_of(first, "digits", [shipped])
    assert before == shipped
    assert leg["command"] == "hybvit train digits --train.steps 10 --train.init digits"
    assert [(place["device"], place["seconds"]) for place in leg["places"]] == [("a GPU", 2.0), ("a CPU", 3.0)]
    assert ship.legs_of(first, "digits", [shipped, {**leg, "steps": 4}]) == [shipped, leg]  # shipped half-way, and again
    *before, newest = ship.legs_of(second, "digits", [shipped])
    assert before == [shipped, leg]
    assert newest["command"] == "hybvit train digits --train.steps 6 --train.init runs/first"
    assert [leg["steps"] for leg in ship.legs_of(anew, "digits", [shipped])] == [6]
    with pytest.raises(SystemExit, match="was initialized from runs/other"):
        ship.legs_of(other, "digits", [shipped])


@pytest.mark.parametrize("target", re.findall(r"(?:`|^ {4})make (\w+)", README, re.MULTILINE))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
