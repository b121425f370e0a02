"""Evaluation from Python: what goes in, what comes out, and that results of earlier versions are taken up."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hybvit
from hybvit import Adapted, EvaluationOptions, cli
from hybvit.cli.evaluate import build_parser, given_options, parse_options
from hybvit.data.image_set import Dataset, ImageSet, to_x
from hybvit.errors import ConfigError, DataError
from hybvit.evaluation import SUITES, Metric, fidelity, ood, suites
from hybvit.evaluation.adapters import adapt
from hybvit.evaluation.context import Context
from hybvit.evaluation.options import Options
from hybvit.evaluation.report import options_of
from hybvit.evaluation.suites import digest
from hybvit.presets import preset
from hybvit.reproduce.runs import Job, evaluations_of
from hybvit.reproduce.scales import POCKET, SCALES
from hybvit.reproduce.studies import EVAL_OPTIONS
from hybvit.storage import write_text

from .conftest import opened

FEW = EvaluationOptions(limit=40, samples=20, steps=2)
# Of every suite for rows at both scales and for a study, as hybvit 0.1.0 stored them before options were objects.
IMAGES = {"training_images": "1294-555e1d6db270364a", "test_images": "364-ac1738fd536afeae", "files": []}  # of the digits
STORED = json.loads((Path(__file__).parent / "data" / "evaluation_settings.json").read_text())


@pytest.fixture(scope="module")
def model():
    return hybvit.load("digits", device="cpu")


def adapted() -> Adapted:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    return Adapted((1, 8, 8), logits=net, modules=[net], device="cpu")


def test_evaluate_is_a_function_of_the_package():
    import hybvit.evaluation

    assert callable(hybvit.evaluate)
    assert {"evaluate", "Results", "EvaluationOptions"} <= set(hybvit.__all__)


def test_a_model_on_its_own_data(model):
    said: list[str] = []
    results = hybvit.evaluate(model, suites=["accuracy", "calibration"], options=FEW, say=said.append)
    assert isinstance(results, hybvit.Results)
    test = opened(model.cfg).test.subsample(40)
    right = (model.predict(test.in_memory).labels == test.labels).double().mean().item()
    assert results["test/accuracy"] == right
    metric = results.metrics["test/accuracy"]
    assert isinstance(metric, Metric)
    assert metric.n == 40
    assert metric.low <= metric.value <= metric.high
    assert sum(map(sum, results.tables["confusion_matrix"])) == 40
    assert set(results.notes) == {"accuracy", "calibration"}
    assert results.left_out == {}
    assert results.record["objective"] == "hybvit"
    assert results.record["options"] == asdict(FEW)
    assert any(line.startswith("accuracy: how often") for line in said)


def test_results_are_a_mapping_of_names_to_values(model):
    results = hybvit.evaluate(model, suites="accuracy", options=FEW)
    assert dict(results)["test/nll"] == results["test/nll"]
    assert len(results) == len(results.metrics)
    assert "test/accuracy" in results
    assert "fidelity/kid" not in results
    assert "metrics of accuracy" in repr(results)
    with pytest.raises(KeyError, match="test/acuracy was not measured: did you mean test/accuracy"):
        results["test/acuracy"]


@pytest.mark.slow
def test_an_opened_data_set_is_what_is_judged_on(model):
    data = opened(preset("digits"))
    shuffled = Dataset(data.train, ImageSet(data.test.in_memory, data.test.labels.roll(1)), data.classes)
    right = hybvit.evaluate(model, data, suites="accuracy")
    assert right["test/accuracy"] == hybvit.evaluate(model, suites="accuracy")["test/accuracy"] > 0.9
    assert hybvit.evaluate(model, shuffled, suites="accuracy")["test/accuracy"] < 0.5


@pytest.mark.slow
def test_an_adapted_model_on_data_by_object_and_by_name():
    external = adapted()
    data = opened(preset("digits"))
    found = hybvit.evaluate(external, data, suites=["accuracy", "likelihood", "fidelity", "quality"], options=FEW)
    assert set(found.left_out) == {"likelihood", "fidelity", "quality"}
    test = data.test.subsample(40)
    assert found["test/accuracy"] == (external.logits(to_x(test.in_memory)).argmax(1) == test.labels).double().mean().item()
    assert found.record["objective"] == "adapted"
    by_name = hybvit.evaluate(external, "digits", suites="accuracy", options=FEW)
    assert by_name["test/accuracy"] == found["test/accuracy"]
    assert by_name.record["data"] == "digits"


def test_a_folder_of_images_is_data_too(model, tmp_path):
    from PIL import Image

    data = opened(preset("digits"))
    for index in (data.train.labels == data.train.labels.unique()[:, None]).int().topk(5).indices.flatten().tolist():
        folder = tmp_path / data.classes[data.train.labels[index]]
        folder.mkdir(exist_ok=True)
        Image.fromarray(data.train.in_memory[index, 0].numpy()).save(folder / f"{index}.png")
    results = hybvit.evaluate(model, tmp_path, suites="accuracy")
    assert results.metrics["test/accuracy"].n == 50  # all of them: none was trained on
    assert results["test/accuracy"] > 0.8
    assert results.record["data"] == "folder"


@pytest.mark.slow
def test_a_stored_result_is_reused(tmp_path, model):
    said: list[str] = []
    first = hybvit.evaluate(model, suites="accuracy", options=FEW, out=tmp_path, say=said.append)
    again = hybvit.evaluate(model, suites="accuracy", options=FEW, out=tmp_path, say=said.append)
    assert any("read from" in line for line in said)
    assert first.metrics == again.metrics
    said.clear()
    hybvit.evaluate(model, suites="accuracy", options=FEW, out=tmp_path, again=True, say=said.append)
    assert not any("read from" in line for line in said)
    other = hybvit.evaluate(model, suites="calibration", options=FEW, out=tmp_path)
    assert "test/accuracy" in other  # of the earlier call, too


@pytest.mark.slow
def test_the_command_line_gives_the_same(tiny_run, tmp_path):
    results = hybvit.evaluate(tiny_run, suites="accuracy", options=FEW, out=tmp_path / "a")
    assert results.save(tmp_path / "a") == tmp_path / "a" / "results.json"
    arguments = ["--suites=accuracy", "--limit=40", "--samples=20", "--steps=2", f"--out={tmp_path / 'b'}"]
    assert cli.main(["evaluate", str(tiny_run), *arguments]) == 0
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("a", "b"))
    assert list(one) == list(two)
    for record in (one, two):
        for suite in record["suites"].values():
            del suite["seconds"]
        del record["seconds"]
    assert one == two
    assert one["training"]["steps"] == 20


@pytest.mark.slow
def test_a_report_without_a_folder_of_ones_own_and_nothing_left_behind(model, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    results = hybvit.evaluate(model, suites="accuracy", options=FEW)
    page = results.report(tmp_path / "report")
    assert "test/accuracy" in page.read_text()
    assert (tmp_path / "report" / "evaluation" / "accuracy" / "confusion.svg").is_file()
    del results
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []
    broken = Adapted((1, 8, 8), logits=lambda x: x.flatten(1)[:, :10] * float("nan"), device="cpu")
    with pytest.raises(ValueError, match="not finite"):
        hybvit.evaluate(broken, "digits", suites="accuracy")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_what_does_not_fit_is_said(model):
    with pytest.raises(ConfigError, match="'acuracy' is unknown: choose from accuracy, calibration"):
        hybvit.evaluate(model, suites=["acuracy"])
    with pytest.raises(ConfigError, match="data is None"):
        hybvit.evaluate(adapted())
    data = opened(preset("digits"))
    large = Dataset(data.train, ImageSet(data.test.in_memory.repeat(1, 1, 2, 2), data.test.labels), data.classes)
    with pytest.raises(ConfigError, match="images are 1x16x16, but the model takes 1x8x8"):
        hybvit.evaluate(model, large)
    two = Dataset(data.train, ImageSet(data.test.in_memory, data.test.labels % 2), ("even", "odd"))
    for judged in (model, adapted()):
        with pytest.raises(ConfigError, match="2 classes"):
            hybvit.evaluate(judged, two)
    with pytest.raises(ConfigError, match="steps 1001: the model's diffusion has 1000 steps"):
        hybvit.evaluate(model, options=EvaluationOptions(steps=1001))
    with pytest.raises(ConfigError, match="label_conditioning"):
        hybvit.evaluate(adapted(), "digits", options=EvaluationOptions(guidance=1.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 0}, "samples is 0: it must be at least 1"),
        ({"autoattack_images": -1}, "autoattack_images is -1: it must be at least 0"),
        ({"sampler": "euler"}, "sampler is 'euler': it must be one of ddpm"),
        ({"out_of_distribution": "noise"}, "must be a tuple of names"),
        ({"corruptions": (3,)}, "must be a tuple of names"),
        ({"certified_noise": ("0.5",)}, "must be a tuple of numbers"),
        ({"bound_draws": "all"}, "bound_draws is 'all': it must be a whole number"),
        ({"steps": "20"}, "steps is '20': it must be a whole number"),
        ({"samples": 2.5}, "samples is 2.5: it must be a whole number"),
        ({"limit": True}, "limit is True: it must be a whole number"),
        ({"guidance": "x"}, "guidance is 'x': it must be a number"),
        ({"sampler": None}, "sampler is None: it must be a string"),
        ({"extractor": 3}, "extractor is 3: it must be a string"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808: it must be at most"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        EvaluationOptions(**options)


def test_every_option_is_an_argument():
    assert given_options(build_parser().parse_args(["MODEL"])) == {}
    words = {
        "--limit": ("7", 7), "--seed": ("3", 3), "--batch-size": ("2", 2), "--ood": ("noise, svhn", ("noise", "svhn")),
        "--bound-images": ("4", 4), "--bound-draws": ("all", 0), "--attack-images": ("5", 5), "--autoattack-images": ("0", 0),
        "--attack-steps": ("6", 6), "--certified-images": ("7", 7), "--certified-votes": ("70", 70),
        "--certified-noise": ("0.1,0.5", (0.1, 0.5)), "--corruption-images": ("9", 9),
        "--corruptions": ("fog, frost", ("fog", "frost")), "--frost": ("folder", "folder"),
        "--reading-images": ("7", 7), "--reading-attacks": ("0", 0),
        "--samples": ("8", 8), "--sampler": ("ddim", "ddim"), "--steps": ("9", 9),
        "--guidance": ("0.5", 0.5), "--extractor": ("inception", "inception"), "--inception": ("file", "file"),
    }  # fmt: skip
    given = parse_options([word for flag, (text, _) in words.items() for word in (flag, text)], "hybvit evaluate")
    assert list(given) == [field.name for field in fields(Options)]
    assert given == {
        {"--ood": "out_of_distribution"}.get(flag, flag[2:].replace("-", "_")): value for flag, (_, value) in words.items()
    }
    for words_of in (["--bound-draws", "0"], ["--bound-draws", "some"], ["--samples", "0"], ["--sampels", "1"]):
        with pytest.raises(ConfigError, match=words_of[0]):
            parse_options(words_of, "hybvit evaluate")


@pytest.mark.parametrize("name", STORED)
def test_settings_of_a_reproduction_are_those_that_were_stored(name, model):
    """Else an evaluation of days would be done again."""
    scale_name, run = name.split("/")
    scale = SCALES[scale_name] if scale_name in SCALES else replace(POCKET, eval_options=EVAL_OPTIONS)
    need = Job(run, scale.config(run), tuple(SUITES), False)
    found = {
        suite: json.loads(json.dumps(options.for_model(model).of_suite(suite)))
        for _, suites, options in evaluations_of(need, Path("run"), scale, {})
        for suite in suites
    }
    assert found == STORED[name]


def test_a_result_with_the_settings_that_0_1_0_stored_is_reused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "calibration", None)  # on which two suites depend; those models had none
    weights = Context(model, opened(model.cfg), "digits", Options(), tmp_path).fingerprint
    facts = {"version": hybvit.__version__, "data": "digits", "weights": weights} | IMAGES
    for suite, settings in STORED["pocket/stl10"].items():
        folder = tmp_path / "evaluation" / suite
        folder.mkdir(parents=True)
        stored = {
            "settings": facts | settings,
            "seconds": 1.0,
            "environment": {},
            "metrics": {f"{suite}/by_hand": {"value": 0.125, "n": 8}},
            "tables": {},
            "notes": ["from an earlier version"],
            "pictures": {},
        }
        (folder / "result.json").write_text(json.dumps(stored | {"sha256": digest(stored)}))
    for names, options in POCKET.eval_options.items():
        results = hybvit.evaluate(model, suites=names, options=options, out=tmp_path)
        assert {name: results[name] for name in results} == {f"{suite}/by_hand": 0.125 for suite in STORED["pocket/stl10"]}
        assert results.notes[names[0]] == ["from an earlier version"]


def test_a_named_suite_of_another_version_is_measured_again_and_one_that_is_not_named_is_kept(model, tmp_path, monkeypatch):
    few, run = EvaluationOptions(limit=20), {"model": model, "out": tmp_path}
    monkeypatch.setattr(suites, "__version__", "0.0.9")
    hybvit.evaluate(**run, suites=["accuracy", "calibration"], options=few)
    monkeypatch.undo()
    said = list[str]()
    results = hybvit.evaluate(**run, suites=["accuracy"], options=few, say=said.append)
    assert not any("read from" in line for line in said)
    kept = {name: suite["settings"]["version"] for name, suite in results.record["suites"].items()}
    assert kept == {"accuracy": hybvit.__version__, "calibration": "0.0.9"}


def test_a_measurement_that_is_killed_leaves_no_old_figures_with_new_pictures(model, tmp_path, monkeypatch):
    run = {"model": model, "suites": ["accuracy"], "out": tmp_path}
    hybvit.evaluate(**run, options=EvaluationOptions(limit=20))

    def killed(path, text):
        if path.name == "result.json":
            raise KeyboardInterrupt
        write_text(path, text)

    monkeypatch.setattr(suites, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        hybvit.evaluate(**run, options=EvaluationOptions(limit=40))
    monkeypatch.undo()
    said = list[str]()
    results = hybvit.evaluate(**run, options=EvaluationOptions(limit=20), say=said.append)
    assert not any("read from" in line for line in said)
    assert results.record["metrics"]["test/accuracy"]["n"] == 20


def test_the_report_says_with_which_options_each_suite_was_measured(model, tmp_path):
    hybvit.evaluate(model, suites=["accuracy"], options=EvaluationOptions(limit=40, seed=7), out=tmp_path)
    results = hybvit.evaluate(model, suites=["calibration"], options=EvaluationOptions(limit=30), out=tmp_path)
    said = options_of(results.record)
    assert "limit 40 (accuracy), 30 (calibration)" in said
    assert "seed 7 (accuracy), 0 (calibration)" in said
    assert "batch_size 256" in said
    assert "attack" not in said


def test_samples_of_another_precision_are_not_reused(model, tmp_path, monkeypatch):
    ctx = Context(model, opened(model.cfg), "digits", EvaluationOptions(), tmp_path)
    before, settings = ctx.samples_folder, suites.settings_of(ctx, "fidelity")
    monkeypatch.setattr(model, "sampling_precision", "bf16" if model.sampling_precision == "fp32" else "fp32")
    assert ctx.samples_folder != before
    assert suites.settings_of(ctx, "fidelity") != settings


def test_unlabeled_images_are_evaluated_by_what_needs_no_labels(model, tmp_path):
    for i in range(12):
        Image.new("L", (8, 8), 20 * i).save(tmp_path / f"{i}.png")
    few = EvaluationOptions(bound_images=4, bound_draws=2, batch_size=4)
    results = hybvit.evaluate(model, data=str(tmp_path), suites=["accuracy", "likelihood"], options=few)
    assert results.left_out == {"accuracy": "the test images have no labels"}
    assert results["likelihood/bits_per_dim"] > 0


EXTERNAL = """
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
import hybvit
import torch
from beside import SHIFT

@dataclass
class Weights:
    value: float

def build():
    weights = Weights(float(np.load(PLACE)))
    bright = lambda x: x.mean((1, 2, 3))[:, None] * weights.value + SHIFT
    return hybvit.Adapted((3, 8, 8), logits=lambda x: torch.cat([bright(x), -bright(x)], 1), classes=CLASSES)
"""


@pytest.fixture
def external(tmp_path) -> Path:
    """A model of one weight in a file beside it, which tells light images (dog) from dark ones (cat)."""
    for kind, shade in (("cat", 20), ("dog", 230)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (shade + i,) * 3).save(tmp_path / "data" / kind / f"{i}.png")
    np.save(tmp_path / "w.npy", 5.0)
    (tmp_path / "beside.py").write_text("SHIFT = 0.0\n")
    (tmp_path / "m.py").write_text(
        EXTERNAL.replace("PLACE", repr(str(tmp_path / "w.npy"))).replace("CLASSES", '("dog", "cat")')
    )
    return tmp_path


def test_an_external_model_whose_classes_have_another_order_is_judged_by_their_names(external, monkeypatch):
    spec, data = f"{external / 'm.py'}:build", str(external / "data")
    run = {"data": data, "suites": ["accuracy"], "out": external / "out"}
    assert hybvit.evaluate(spec, **run)["test/accuracy"] == 1
    assert hybvit.evaluate(adapt(spec, (3, 8, 8), 2), data=data, suites=["accuracy"])["test/accuracy"] == 1
    np.save(external / "w.npy", -5.0)  # other weights in the same file: nothing of the first is reused
    assert hybvit.evaluate(spec, **run)["test/accuracy"] == 0
    unnamed = (external / "m.py").read_text().replace('classes=("dog", "cat")', "classes=()")
    (external / "m.py").write_text(unnamed)
    assert hybvit.evaluate(spec, **run)["test/accuracy"] == 1  # by number, as the data have them: cat, dog
    (external / "m.py").write_text(unnamed.replace("classes=()", 'classes=("dogs", "cats")'))
    with pytest.raises(ConfigError, match=r"\(cat, dog\) are not the model's \(dogs, cats\)"):
        hybvit.evaluate(spec, **run)
    json, loaded = external / "json.py", sys.modules["json"]
    (external / "m.py").rename(json)  # shadows nothing, neither while it is loaded nor after
    json.write_text(unnamed)
    assert hybvit.evaluate(f"{json}:build", **run)["test/accuracy"] == 1
    assert sys.modules["json"] is loaded
    (external / "m.py").write_text(unnamed)
    (external / "beside.py").write_text("1 / 0\n")
    monkeypatch.delitem(sys.modules, "beside")
    with pytest.raises(ConfigError, match=r"m.py: cannot be imported: ZeroDivisionError"):
        hybvit.evaluate(spec, **run)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"out_of_distribution": ("svnh",)}, "svnh: neither the name of a data set .* nor a folder"),
        ({"inception": "x.pth", "extractor": "cnn-digits"}, "requires --extractor inception"),
        ({"extractor": "timm:resnett18"}, "resnett18"),
        ({"inception": "/none.pth"}, "none.pth"),
    ],
)
def test_what_an_option_names_wrongly_is_said_before_the_first_suite(model, options, said):
    lines = list[str]()
    with pytest.raises((ConfigError, DataError), match=said):
        hybvit.evaluate(model, suites=["accuracy", "fidelity"], options=EvaluationOptions(limit=8, **options), say=lines.append)
    assert lines == []


def test_a_suite_that_lacked_something_is_measured_again_once_it_is_there(model, tmp_path, monkeypatch, no_plots):
    few = EvaluationOptions(limit=8, samples=12, steps=2, sampler="ddim", bound_images=2, bound_draws=2)
    run = {"model": model, "suites": ["fidelity", "ood"], "options": few, "out": tmp_path}
    found, opens = fidelity.open_extractor, ood.out_of_distribution

    def absent(*arguments):
        raise DataError("it is not installed")

    monkeypatch.setattr(fidelity, "open_extractor", absent)
    monkeypatch.setattr(ood, "default_sets", lambda name: ("mnist",))
    monkeypatch.setattr(ood, "out_of_distribution", absent)
    monkeypatch.setattr(ood, "find", lambda name, root: None)
    results = hybvit.evaluate(**run)
    assert "No Frechet distance: it is not installed" in results.notes["fidelity"]
    said = list[str]()
    hybvit.evaluate(**run, say=said.append)
    assert sum("read from" in line for line in said) == 2  # nothing has changed
    monkeypatch.setattr(fidelity, "open_extractor", found)
    monkeypatch.setattr(ood, "find", lambda name, root: tmp_path)
    monkeypatch.setattr(
        ood, "out_of_distribution", lambda name, root, test, decoding: opens("interpolation", None, test, decoding)
    )
    said.clear()
    results = hybvit.evaluate(**run, say=said.append)
    assert not any("read from" in line for line in said)
    assert any(name.startswith("fidelity/fd_") for name in results)
    assert any(name.startswith("ood/mnist/") for name in results)


def test_numbers_of_numpy_and_lists_are_options_too():
    options = EvaluationOptions(samples=np.int64(5), guidance=np.float32(0), seed=2**63 - 1, out_of_distribution=["noise"])
    assert options.places_of("ood") == ["noise"]
    assert options.places_of("fidelity") == []


def test_a_seed_that_cannot_be_used_is_named_on_the_command_line(capsys):
    for seed in ("-1", "99999999999999999999"):
        assert cli.main(["evaluate", "digits", "--suites", "calibration", "--seed", seed]) == 2
        assert "seed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_evaluated(model):
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    hybvit.evaluate(model, suites=["speed"], options=EvaluationOptions(limit=8, steps=2, sampler="ddim"))
    assert torch.equal(torch.rand(3), expected)


def test_a_result_is_reused_in_a_folder_named_like_a_setting(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said, options = list[str](), EvaluationOptions(limit=20)
    for _ in range(2):
        hybvit.evaluate(model, suites=["accuracy"], options=options, out="digits", say=said.append)
    assert "accuracy: read from digits/evaluation/accuracy (--again measures it again)" in said
