from __future__ import annotations

import json
import math
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from hybvit import cli
from hybvit.config import override
from hybvit.data.image_set import BadFiles, Dataset, Decoding, ImageSet, to_x
from hybvit.data.images import grid, save_image
from hybvit.devices import resolve_precision
from hybvit.errors import ConfigError, DataError
from hybvit.evaluation import options, robustness
from hybvit.evaluation.adapters import Adapted, adapt
from hybvit.evaluation.context import NOT_FITTED, Context, Options, Result
from hybvit.evaluation.extractors import open_extractor
from hybvit.evaluation.ood import compare, labeled, read_images
from hybvit.evaluation.ood_scores import denoising_score
from hybvit.evaluation.report import MEANINGS, meaning
from hybvit.evaluation.robustness import is_doubt
from hybvit.evaluation.suites import SUITES, run_suites
from hybvit.loading import load
from hybvit.metrics.calibration import reliability_table
from hybvit.metrics.fidelity import Statistics, frechet_distance
from hybvit.metrics.ood import auroc, auroc_interval, clustered_auroc_interval
from hybvit.metrics.robustness import pgd
from hybvit.presets import preset

from . import recorded
from .conftest import QUICK, hybvit, opened
from .forked import Forked, together

FAST = Options(
    limit=60, samples=40, steps=3, bound_images=8, bound_draws=4, attack_images=16, autoattack_images=0, attack_steps=3,
    corruption_images=8, certified_images=4, certified_votes=20, reading_images=12, reading_attacks=4,
)  # fmt: skip


def digits() -> Dataset:
    return opened(preset("digits"))


@pytest.fixture(scope="module")
def linear() -> Adapted:
    """A linear classifier of the digits that is right about 9 times in 10."""
    data = digits()
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(to_x(data.train.in_memory)), data.train.labels).backward()
        optimizer.step()
    return Adapted((1, 8, 8), logits=net, modules=[net], device="cpu")


def context(model, folder: Path, options: Options = FAST, data: Dataset | None = None) -> Context:
    return Context(model, data or digits(), "digits", options, folder)


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """Every suite on the model of tests/recorded.py, and the report."""
    out = tmp_path_factory.mktemp("measured") / "model"
    recorded.measure(out)
    return out


@pytest.mark.parametrize(
    "rows",
    [
        [f"{i}.png,a" for i in range(9)] + ["9.png,b"],
        [f"{i}.png,a,test" for i in range(10)],
        [f"{i}.png,a,{'train' if i % 3 else 'test'}" for i in range(10)],
    ],
)
def test_a_table_as_other_set_is_taken_whole_whatever_its_classes_and_splits(linear, tmp_path, rows):
    for i in range(10):
        Image.new("RGB", (20, 30), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "odd.csv").write_text("\n".join(["path,label,split"[: 10 + 6 * (rows[0].count(",") > 1)], *rows]) + "\n")
    images = read_images(str(tmp_path / "odd.csv"), Decoding(1, 8, BadFiles(0), 2**30))
    assert len(images) == len(images.in_memory.flatten(1).unique(dim=0)) == 10


@pytest.mark.slow
def test_every_suite_measures_what_it_says(measured):
    record = json.loads((measured / "results.json").read_text())
    assert set(record["suites"]) == set(SUITES)
    assert record["left_out"] == {}
    families = {name.split("/")[0] for name in record["metrics"]}
    assert families == {
        "test", "calibration", "doubt", "probe", "ood", "robustness", "certified", "corruptions", "readings", "likelihood",
        "fidelity", "judge", "samples", "quality", "speed",
    }  # fmt: skip
    for name, metric in record["metrics"].items():
        assert meaning(name), f"{name} is not explained"
        assert metric["n"] >= 1
        if "low" in metric:
            assert metric["low"] <= metric["high"], name
    assert all(suite["seconds"] > 0 and suite["environment"]["torch"] for suite in record["suites"].values())
    assert any(re.fullmatch(r"fidelity/fd_cnn-digits_40", name) for name in record["metrics"])
    assert not any("fid_" in name for name in record["metrics"])  # no Inception, no FID
    page, text = (measured / "report.html").read_text(), (measured / "report.md").read_text()
    assert "Options: " in text
    assert "seed 0" in text
    for name in record["metrics"]:
        assert name in page
        assert f"| {name} |" in text
    for link in re.findall(r"!\[.*?\]\((.*?)\)", text, re.DOTALL):
        assert (measured / link).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["every", "whole_bound"])
def test_every_suite_gives_the_numbers_and_plots_that_were_recorded(request, tmp_path, what):
    """Where one is meant to change, `python -m tests.recorded` records it anew: look at the difference."""
    if what == "every":
        out = request.getfixturevalue("measured")
    else:
        recorded.measure_whole_bound(out := tmp_path)
    found, known = recorded.numbers_of(out), json.loads(recorded.RECORD.read_text())[what]
    if resolve_precision("auto", torch.device("cpu")) == "bf16":  # samples are drawn in it, which gives other ones
        found, known = ({suite: of[suite] for suite in of if suite not in ("fidelity", "quality")} for of in (found, known))
    assert recorded.differences(found, known) == []


@pytest.mark.slow
def test_the_report_needs_no_network(measured):
    record = json.loads((measured / "results.json").read_text())
    accuracy = record["metrics"]["test/accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert accuracy["n"] == sum(map(sum, record["tables"]["confusion_matrix"])) == 100
    assert record["metrics"]["samples/svm_agreement"]["n"] == 40
    assert {"torch", "threads"} <= record["environment"].keys()
    assert record["seconds"] > 0
    page = (measured / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    links = re.findall(r'(?:src|href)="?([^" >]+)', page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "<script" not in page


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_every_explanation_is_used_by_some_metric(measured, tmp_path, monkeypatch):
    """A pattern that matches nothing would be a metric that nobody measures."""
    monkeypatch.setattr(robustness, "autoattack", partial(robustness.autoattack, attacks=("apgd-ce",)))
    out = shutil.copytree(measured, tmp_path / "out")  # AutoAttack was left out there
    words = ["--batch-size=7", "--suites=robustness", "--autoattack-images=1", "--out", str(out)]
    assert cli.main(["evaluate", str(recorded.MODEL), *recorded.WORDS, *words]) == 0
    names = json.loads((out / "results.json").read_text())["metrics"]
    other = ("fid_", "abstain")  # Inception, a better network
    elsewhere = {pattern for pattern, _ in MEANINGS if any(word in pattern for word in other)}
    assert {"robustness/autoattack_linf_8", "robustness/autoattack_l2_128"} <= names.keys()  # the radii of the literature
    unused = {pattern for pattern, _ in MEANINGS if not any(re.match(pattern, name) for name in names)}
    assert unused <= elsewhere


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_a_suite_is_reused_unless_something_that_matters_changed(linear, tmp_path):
    said: list[str] = []
    first = run_suites(context(linear, tmp_path), ("accuracy", "ood"), said.append)
    again = run_suites(context(linear, tmp_path), ("accuracy", "ood"), said.append)
    assert sum("read from" in line for line in said) == 2
    assert first["metrics"] == again["metrics"]
    said.clear()
    fewer = Options(**{**FAST.__dict__, "bound_images": 4, "limit": 30})
    run_suites(context(linear, tmp_path, fewer), ("accuracy",), said.append)
    assert not any("read from" in line for line in said)
    said.clear()
    run_suites(context(linear, tmp_path, Options(**{**FAST.__dict__, "limit": 30, "samples": 7})), ("accuracy",), said.append)
    assert any("read from" in line for line in said)  # the number of samples does not matter to it
    other = Adapted((1, 8, 8), logits=lambda x: linear.logits(x), modules=[torch.nn.Linear(2, 2)], device="cpu")
    said.clear()
    run_suites(context(other, tmp_path, Options(**{**FAST.__dict__, "limit": 30})), ("accuracy",), said.append)
    assert not any("read from" in line for line in said)  # other weights


@pytest.mark.slow
def test_a_suite_measured_before_stays_in_the_record(linear, tmp_path):
    run_suites(context(linear, tmp_path), ("accuracy",), quiet)
    record = run_suites(context(linear, tmp_path), ("calibration",), quiet)
    assert {"test/accuracy", "calibration/ece_20"} <= record["metrics"].keys()


@pytest.mark.slow
def test_functions_without_modules_are_never_taken_for_each_other(linear, tmp_path):
    one = Adapted((1, 8, 8), logits=lambda x: linear.logits(x), device="cpu")
    two = Adapted((1, 8, 8), logits=lambda x: -linear.logits(x), device="cpu")
    first = run_suites(context(one, tmp_path), ("accuracy",), quiet)
    second = run_suites(context(two, tmp_path), ("accuracy",), quiet)
    assert first["metrics"]["test/accuracy"]["value"] > 0.8 > 0.2 > second["metrics"]["test/accuracy"]["value"]


@pytest.mark.slow
def test_functions_around_the_same_modules_are_not_taken_for_each_other(tmp_path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    found = []
    for logits in (net, net, lambda x: -net(x), lambda x: net(2 * x)):
        model = Adapted((1, 8, 8), logits=logits, modules=[net], device="cpu")
        found.append(context(model, tmp_path).fingerprint)
    assert found[0] == found[1]
    assert len(set(found)) == 3
    told = [Adapted((1, 8, 8), denoise=lambda x, t, k=k: k * x, modules=[net], device="cpu") for k in (0.5, 0.6)]
    assert context(told[0], tmp_path).fingerprint != context(told[1], tmp_path).fingerprint


@pytest.mark.usefixtures("no_plots")
def test_other_test_images_are_measured_again(linear, tmp_path):
    said: list[str] = []
    data = digits()
    turned = Dataset(data.train, ImageSet(data.test.in_memory.flip(3), data.test.labels), data.classes)
    run_suites(context(linear, tmp_path), ("accuracy",), quiet)
    one = data.test.in_memory.clone()
    one[123] = 255 - one[123]
    for train, test in (
        (data.train.in_memory, turned.test.in_memory),
        (data.train.in_memory, one),
        (turned.train.in_memory[:-1], one),
    ):
        labels = data.train.labels[: len(train)]
        other = Dataset(ImageSet(train, labels), ImageSet(test, data.test.labels), data.classes)
        run_suites(context(linear, tmp_path, data=other), ("accuracy",), said.append)
    assert not any("read from" in line for line in said)


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_a_folder_of_other_images_that_changed_is_measured_again(linear, tmp_path):
    folder = tmp_path / "odd"
    for i in range(3):
        save_image(grid(torch.full((1, 1, 8, 8), 40 * i, dtype=torch.uint8), gap=0), folder / f"{i}.png")
    said: list[str] = []
    options = Options(**{**FAST.__dict__, "out_of_distribution": (str(folder),)})
    for change in (0, 1):
        run_suites(context(linear, tmp_path / "a", options), ("ood",), said.append)
        assert sum("read from" in line for line in said) == change
    save_image(grid(torch.full((1, 1, 8, 8), 250, dtype=torch.uint8), gap=0), folder / "1.png")
    run_suites(context(linear, tmp_path / "a", options), ("ood",), said.append)
    assert sum("read from" in line for line in said) == 1


@pytest.mark.slow
def test_a_report_after_some_suites_holds_all_that_were_measured(tiny_run, tmp_path):
    arguments = ["evaluate", str(tiny_run), *QUICK, "--report", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--suites", "fidelity,quality"]) == 0
    assert cli.main([*arguments, "--suites", "accuracy"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "fidelity/fd_cnn-digits_20" in page
    assert "test/accuracy" in page


@pytest.mark.slow
def test_one_image_is_enough_for_what_makes_sense_of_it(linear, tmp_path):
    options = Options(**{**FAST.__dict__, "limit": 1, "attack_images": 1, "bound_images": 1})
    record = run_suites(context(linear, tmp_path, options), ("accuracy", "ood", "robustness"), quiet)
    assert "low" not in record["metrics"]["test/nll"]
    json.dumps(record["metrics"], allow_nan=False)
    assert any("at least two" in note for note in record["notes"]["ood"])


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_numbers_do_not_depend_on_the_batch_size(measured, tmp_path):
    suites = [name for name in SUITES if name not in ("speed", "robustness")]  # attacks have a batch size of their own
    words = ["--batch-size=64", "--suites", ",".join(suites), "--out", tmp_path]
    assert hybvit("evaluate", recorded.MODEL, *recorded.WORDS, *words).returncode == 0
    small, large = (json.loads((folder / "results.json").read_text())["metrics"] for folder in (measured, tmp_path))
    assert {name.split("/")[0] for name in small.keys() - large.keys()} == {"speed", "robustness"}
    for name, metric in large.items():
        assert metric["value"] == pytest.approx(small[name]["value"], abs=1e-4), name


def test_an_attack_is_on_images_of_all_classes(linear, tmp_path):
    order = digits().test.labels.argsort()
    data = digits()
    by_class = Dataset(data.train, ImageSet(data.test.in_memory[order], data.test.labels[order]), data.classes)
    ctx = context(linear, tmp_path, data=by_class)
    assert len(ctx.test.subsample(16).labels.unique()) >= 9


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_answers_without_a_gradient_leave_out_the_score_that_needs_one(linear, tmp_path):
    cut = Adapted((1, 8, 8), logits=lambda x: linear.logits(x).detach(), modules=linear.modules, device="cpu")
    record = run_suites(context(cut, tmp_path), ("ood",), quiet)
    assert any(note.startswith("grad_norm was left out") for note in record["notes"]["ood"])
    assert "ood/noise/auroc_knn" in record["metrics"]


def test_answers_that_are_not_finite_end_in_a_line(linear, tmp_path):
    broken = Adapted((1, 8, 8), logits=lambda x: linear.logits(x) * float("nan"), modules=linear.modules, device="cpu")
    with pytest.raises(DataError, match="test/nll is nan: the model's outputs are not finite"):
        run_suites(context(broken, tmp_path), ("accuracy",), quiet)
    assert not (tmp_path / "evaluation").exists()


def test_what_an_adapter_returns_is_checked():
    with pytest.raises(ConfigError, match=r"logits\(\[2, 1, 8, 8\]\) returned shape \[2\]"):
        Adapted((1, 8, 8), logits=lambda x: x.flatten(1).sum(1))
    with pytest.raises(ConfigError, match=r"denoise\(.*it must be the input's"):
        Adapted((1, 8, 8), denoise=lambda x_t, t: x_t[:, :, 1:]).denoise(torch.zeros(1, 1, 8, 8), torch.ones(1).long())
    with pytest.raises(ValueError, match="H = W"):
        Adapted((1, 8, 6), denoise=lambda x_t, t: x_t)


def test_accuracy_of_a_known_classifier(linear, tmp_path):
    record = run_suites(context(linear, tmp_path), ("accuracy",), quiet)
    data = digits().test.subsample(60)
    right = (linear.logits(to_x(data.in_memory)).argmax(1) == data.labels).double().mean().item()
    assert record["metrics"]["test/accuracy"]["value"] == right
    assert sum(map(sum, record["tables"]["confusion_matrix"])) == 60


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_temperature_is_fitted_on_images_held_out_and_never_on_test_images(linear, tmp_path):
    data = opened(override(preset("digits"), data={"held_out": 0.1}))
    a = run_suites(context(linear, tmp_path / "a", data=data), ("calibration",), quiet)
    shuffled = ImageSet(data.test.in_memory, data.test.labels.flip(0))
    other = Dataset(data.train, shuffled, data.classes, None, data.held_out)
    b = run_suites(context(linear, tmp_path / "b", data=other), ("calibration",), quiet)
    assert a["metrics"]["calibration/temperature"] == b["metrics"]["calibration/temperature"]
    assert a["metrics"]["calibration/temperature"]["n"] == len(data.held_out)
    assert not any("held out" in note for note in a["notes"]["calibration"])
    whole = opened(override(preset("digits"), data={"held_out": 0.0}))
    none_held_out = run_suites(context(linear, tmp_path / "c", data=whole), ("calibration",), quiet)
    assert NOT_FITTED in none_held_out["notes"]["calibration"]
    assert not any(name.endswith(("_scaled", "temperature")) for name in none_held_out["metrics"])
    assert set(none_held_out["tables"]) == {"reliability"}


@pytest.mark.slow
def test_the_largest_calibration_error_is_that_of_bins_with_enough_images(linear, tmp_path):
    data = digits()
    options = Options(**{**FAST.__dict__, "limit": None})
    found = run_suites(context(linear, tmp_path / "a", options), ("calibration",), quiet)
    table = reliability_table(linear.logits(to_x(data.test.in_memory)).detach(), data.test.labels, 20)
    enough = table.size >= 30
    assert 0 < enough.sum() < (table.size > 0).sum()
    metric = found["metrics"]["calibration/mce_20_min30"]
    assert metric["value"] == (table.accuracy - table.confidence).abs()[enough].max().item()
    assert metric["n"] == table.size[enough].sum()
    assert "calibration/mce_20" not in found["metrics"]  # of stored results: the largest gap of any bin
    few = Options(**{**FAST.__dict__, "limit": 20})
    found = run_suites(context(linear, tmp_path / "b", few), ("calibration",), quiet)
    assert not any("mce" in name for name in found["metrics"])
    assert any(note.startswith("No MCE") for note in found["notes"]["calibration"])


def test_attacks_on_a_linear_classifier_and_their_curve(linear, tmp_path):
    record = run_suites(context(linear, tmp_path), ("robustness",), quiet)
    for norm in ("linf", "l2"):
        curve = [m["value"] for name, m in record["metrics"].items() if name.startswith(f"robustness/pgd_{norm}_")]
        assert len(curve) == (9 if norm == "linf" else 11)
        assert curve == sorted(curve, reverse=True)
        assert curve[-1] < curve[0]
    strong = [name for name in record["metrics"] if "strong" in name]
    assert strong == list(record["metrics"])[:3] == [f"robustness/pgd_strong_{end}" for end in ("linf_4", "linf_8", "l2_128")]
    values = [record["metrics"][name]["value"] for name in strong]
    assert values[0] >= values[1]
    assert values[2] <= record["metrics"]["robustness/pgd_l2_100"]["value"] + 1 / 16  # of 16 images
    images = digits().test.subsample(60).subsample(16)
    paper = pgd(
        linear.logits, to_x(images.in_memory), images.labels, 1 / 255, "linf", context(linear, tmp_path).generator(1 << 10), 3
    )
    assert record["metrics"]["robustness/pgd_linf_1"]["value"] == (~paper.broken).double().mean()  # the paper's, as it was
    assert record["metrics"]["robustness/reliable"]["value"] == 1


def test_autoattack_is_left_out_where_it_is_not_installed_unless_it_was_asked_for(linear, tmp_path, monkeypatch):
    assert Options().for_model(linear).autoattack_images == Options().autoattack_images
    for module in (options, robustness):
        monkeypatch.setattr(module, "has_autoattack", lambda: False)
    assert Options().for_model(linear).autoattack_images == 0
    with pytest.raises(ConfigError, match=re.escape("autoattack_images 8: AutoAttack needs pyautoattack")):
        Options(autoattack_images=8).for_model(linear)
    result = Result()
    assert robustness.run_autoattack(context(linear, tmp_path), digits().test, result) == []
    assert "pip install 'hybvit[eval]'" in result.notes[0]


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_a_broken_defense_is_marked_not_reliable(linear, tmp_path):
    quantised = Adapted((1, 8, 8), logits=lambda x: linear.logits((x * 3).round() / 3), modules=linear.modules, device="cpu")
    record = run_suites(context(quantised, tmp_path), ("robustness",), quiet)
    assert record["metrics"]["robustness/reliable"]["value"] == 0
    assert record["tables"]["not_reliable_because"]
    assert any(note.startswith("NOT RELIABLE") for note in record["notes"]["robustness"])


@pytest.mark.parametrize(
    ("warning", "n", "doubt"),
    [
        ("4 target classes in place of 9, all that there are", 64, False),
        ("Square Attack has decreased the robust accuracy of 1.56%. This might indicate ...", 64, False),
        ("Square Attack has decreased the robust accuracy of 9.00%. This might indicate ...", 64, True),
        ("there are 3 points with zero gradient!", 64, True),
    ],
)
def test_which_of_autoattacks_warnings_are_doubts(warning, n, doubt):
    assert is_doubt(warning, n) == doubt


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_other_images_score_lower_than_test_images(linear, tmp_path):
    options = Options(**{**FAST.__dict__, "out_of_distribution": ("noise", "interpolation")})
    record = run_suites(context(linear, tmp_path, options), ("ood",), quiet)
    assert record["metrics"]["ood/noise/auroc_knn"]["value"] > 0.9
    assert {"ood/interpolation/fpr95_logpx", "ood/noise/aupr_max_prob"} <= record["metrics"].keys()
    assert not any("denoising" in name for name in record["metrics"])


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_a_folder_can_be_the_other_set(linear, tmp_path):
    from PIL import Image

    (tmp_path / "odd").mkdir()
    for i in range(12):
        Image.new("RGB", (20, 30), (20 * i, 0, 0)).save(tmp_path / "odd" / f"{i}.png")
    options = Options(**{**FAST.__dict__, "out_of_distribution": (str(tmp_path / "odd"),)})
    record = run_suites(context(linear, tmp_path, options), ("ood",), quiet)
    assert record["metrics"]["ood/odd/auroc_logpx"]["n"] == 72
    with pytest.raises(DataError, match="gone: neither the name of a data set"):
        Options(out_of_distribution=(str(tmp_path / "gone"),))


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_interpolations_are_not_taken_as_independent_of_their_sources(linear, tmp_path):
    options = Options(**{**FAST.__dict__, "out_of_distribution": ("noise", "interpolation")})
    ctx = context(linear, tmp_path / "a", options)
    found = run_suites(ctx, ("ood",), quiet)["metrics"]
    test = ctx.test.in_memory.int()
    made = ((test[:-30] + test[30:] + 1) // 2).to(torch.uint8)
    with torch.no_grad():
        inside, outside = (linear.logits(to_x(pixels)).double().logsumexp(1) for pixels in (ctx.test.in_memory, made))
    chains = torch.arange(60) % 30
    expected = clustered_auroc_interval(inside, outside, chains, chains[:30], seed=0)
    metric = found["ood/interpolation/auroc_logpx"]
    assert (metric["low"], metric["high"]) == pytest.approx(expected, abs=1e-6)
    assert (metric["low"], metric["high"]) != pytest.approx(auroc_interval(inside, outside), abs=1e-3)
    few = Options(**{**options.__dict__, "limit": 12})
    found = run_suites(context(linear, tmp_path / "b", few), ("ood",), quiet)["metrics"]
    assert "low" not in found["ood/interpolation/auroc_logpx"]
    noise = [metric for name, metric in found.items() if name.startswith("ood/noise/auroc")]
    assert all(("low" in metric) == (0 < metric["value"] < 1) for metric in noise)


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_sets_that_do_not_overlap_get_no_interval_of_width_0(linear, tmp_path):
    result, inside = Result(), torch.linspace(1, 2, 20)
    for name, outside in (("apart", inside - 5), ("above", inside + 5), ("over", inside - 0.5)):
        compare(context(linear, tmp_path), "logpx", inside, {name: outside}, result)
    found = {name: result.metrics[f"ood/{name}/auroc_logpx"] for name in ("apart", "above", "over")}
    assert (found["apart"].value, found["above"].value) == (1, 0)
    assert (found["apart"].low, found["above"].low) == (None, None)
    rates = {name: result.metrics[f"ood/{name}/fpr95_logpx"] for name in ("apart", "above")}
    assert (rates["apart"].value, rates["apart"].low, rates["above"].value, rates["above"].high) == (0, 0, 1, 1)
    assert 0.1 < rates["apart"].high < 0.2  # Wilson's, of 0 of 20
    assert rates["apart"].n == 20
    assert found["over"].low < found["over"].value < found["over"].high


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_the_draws_of_noise_are_in_the_interval_of_a_score_made_of_them(linear, tmp_path):
    g = torch.Generator().manual_seed(0)
    draws = [torch.randn(n, 1, generator=g) + shift + 0.3 * torch.randn(1, 4, generator=g) for n, shift in ((90, 1), (70, 0))]
    result, ctx = Result(), context(linear, tmp_path)
    compare(ctx, "denoising", draws[0], {"noise": draws[1]}, result)
    metric = result.metrics["ood/noise/auroc_denoising"]
    inside, outside = (part.mean(1) for part in draws)
    assert metric.value == auroc(inside, outside)
    error = torch.tensor([auroc(draws[0][:, i], draws[1][:, i]) for i in range(4)]).std().item() / 2
    low, high = auroc_interval(inside, outside)
    assert error > 0.01
    assert metric.low == pytest.approx(metric.value - math.hypot(metric.value - low, 1.96 * error))
    assert metric.high == pytest.approx(metric.value + math.hypot(high - metric.value, 1.96 * error))
    compare(ctx, "denoising", draws[0][:, :1].expand(-1, 4), {"noise": draws[1][:, :1].expand(-1, 4)}, result)
    same = result.metrics["ood/noise/auroc_denoising"]
    assert (same.low, same.high) == pytest.approx(auroc_interval(draws[0][:, 0], draws[1][:, 0]))


def test_the_denoising_score_is_the_mean_of_several_draws_of_noise(tmp_path):
    ctx = context(Adapted((1, 8, 8), denoise=lambda x_t, t: x_t, device="cpu"), tmp_path)
    found = denoising_score(ctx, ctx.test)
    assert found.shape == (60, 4)
    assert len(found[0].unique()) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_a_folder_named_like_a_set_that_is_made_here_gets_another_name(linear, tmp_path):
    from PIL import Image

    (tmp_path / "interpolation").mkdir()
    for i in range(12):
        Image.new("L", (8, 8), 20 * i).save(tmp_path / "interpolation" / f"{i}.png")
    options = Options(**{**FAST.__dict__, "out_of_distribution": (str(tmp_path / "interpolation"),)})
    found = run_suites(context(linear, tmp_path, options), ("ood",), quiet)["metrics"]
    assert "low" in found["ood/interpolation-2/auroc_logpx"]


def test_every_set_has_a_label_of_its_own():
    assert labeled(["a/x", "b/x/", "c/x", "x-2", "a/x"]) == {"x": "a/x", "x-2": "b/x/", "x-3": "c/x", "x-2-2": "x-2"}
    assert labeled(["photos/mnist", "mnist", "noise", "d/noise", "test", "e/test"]) == {
        "mnist-2": "photos/mnist", "mnist": "mnist", "noise": "noise", "noise-2": "d/noise", "test": "test", "test-2": "e/test",
    }  # fmt: skip
    for name in (".", "..", "/", "./", "hf://owner/set", "shards-{0..3}.tar"):
        assert all("/" not in label and label.strip(".") for label in labeled([name]))


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_the_parts_of_the_bound_add_up_to_it(tmp_path):
    model = load("digits", "cpu")
    for draws in (4, 0):
        options = Options(**{**FAST.__dict__, "bound_draws": draws, "bound_images": 18 if draws else 2})
        found = run_suites(context(model, tmp_path / str(draws), options), ("likelihood",), quiet)["metrics"]
        parts = [found[f"likelihood/{name}_bits"] for name in ("prior", "decoder", "diffusion")]
        assert {part["n"] for part in parts} == {found["likelihood/bits_per_dim"]["n"]} == {options.bound_images}
        assert sum(part["value"] for part in parts) == pytest.approx(found["likelihood/bits_per_dim"]["value"])


def drawing(model, monkeypatch):
    """The model with training images, somewhat darker, in place of its samples."""
    pixels = digits().train.in_memory
    monkeypatch.setattr(model, "draw", lambda indices, *_: (0.9 * pixels[indices]).to(torch.uint8))
    return model


@pytest.mark.slow
def test_real_images_are_measured_at_the_number_of_the_samples(tmp_path, monkeypatch):
    model, data = drawing(load("digits", "cpu"), monkeypatch), digits()
    options = Options(**{**FAST.__dict__, "limit": None, "samples": 200})
    record = run_suites(context(model, tmp_path, options), ("fidelity",), quiet)
    stem, metrics = "fidelity/fd_cnn-digits", record["metrics"]
    assert {n: metrics[n]["n"] for n in metrics if n.startswith(stem)} == {f"{stem}_200": 200, f"{stem}_200_real_test": 200}
    cnn = open_extractor(None, "digits")
    few, reference = (
        Statistics.of(cnn.features(pixels)) for pixels in (data.test.subsample(200).in_memory, data.train.in_memory)
    )
    assert metrics[f"{stem}_200_real_test"]["value"] == pytest.approx(frechet_distance(few, reference), rel=1e-4)
    assert any("biased upward" in note for note in record["notes"]["fidelity"])
    assert record["tables"]["real_images"] == 200


@pytest.mark.slow
def test_where_real_images_are_few_as_many_samples_stand_beside_them(tmp_path, monkeypatch):
    model, data = drawing(load("digits", "cpu"), monkeypatch), digits()
    options = Options(**{**FAST.__dict__, "limit": None, "samples": 600})
    every = len(data.test) + len(data.held_out)
    assert len(data.test) < every < 600
    record = run_suites(context(model, tmp_path / "a", options), ("fidelity",), quiet)
    stem, metrics = "fidelity/fd_cnn-digits", record["metrics"]
    assert metrics[f"{stem}_{every}_real_test"]["n"] == metrics[f"{stem}_{every}_of_samples"]["n"] == every
    assert metrics[f"{stem}_600"]["n"] == 600
    assert metrics[f"{stem}_{every}_of_samples"]["value"] != metrics[f"{stem}_600"]["value"]
    notes = " ".join(record["notes"]["fidelity"])
    assert f"{len(data.test)} test images and {len(data.held_out)} held out of training, {every} in all" in notes
    assert f"only {every} real images outside of the reference" in notes
    without = Dataset(data.train, data.test, data.classes)
    record = run_suites(context(model, tmp_path / "b", options, without), ("fidelity",), quiet)
    assert record["metrics"][f"{stem}_{len(data.test)}_real_test"]["n"] == len(data.test)


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_a_set_that_is_not_here_is_left_out_with_a_line_or_refused_where_it_was_asked_for(linear, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("hybvit.evaluation.ood.default_sets", lambda name: ("celeba",))
    record = run_suites(context(linear, tmp_path), ("ood",), quiet)
    assert "celeba was left out: `hybvit datasets` says how to get it." in record["notes"]["ood"]
    asked = Options(**{**FAST.__dict__, "out_of_distribution": ("celeba",)})
    with pytest.raises(DataError, match="celeba: not found"):
        run_suites(context(linear, tmp_path, asked), ("ood",), quiet)


def test_the_record_says_whether_samples_are_class_conditional(tmp_path, monkeypatch):
    model = load("digits", "cpu")
    for conditional, text in ((False, "no labels"), (True, "a random label for each")):
        monkeypatch.setattr(type(model), "draws_by_label", conditional)
        monkeypatch.setattr(model, "draw", lambda indices, *_: torch.zeros(len(indices), 1, 8, 8, dtype=torch.uint8))
        record = run_suites(context(model, tmp_path / str(conditional)), ("fidelity",), quiet)
        assert record["tables"]["protocol"]["told"] == text
        page = json.loads((tmp_path / str(conditional) / "evaluation" / "fidelity" / "result.json").read_text())
        assert ("each of a random class" in json.dumps(page)) == conditional


def test_class_agreement_is_the_accuracy_of_the_extractor_on_the_samples(tmp_path, monkeypatch):
    model, test, cnn = load("digits", "cpu"), digits().test, open_extractor(None, "digits")
    images, labels = test.take(torch.arange(60))
    labels[:6] = (labels[:6] + 1) % 10  # drawn for another class
    monkeypatch.setattr(type(model), "draws_by_label", True)
    monkeypatch.setattr(model, "drawn_labels", lambda indices, seed: labels[list(indices)])
    monkeypatch.setattr(model, "draw", lambda indices, *_: images[list(indices)])
    options = Options(**{**FAST.__dict__, "samples": 60})
    record = run_suites(context(model, tmp_path, options), ("fidelity",), quiet)
    hits = cnn.logits(images).argmax(dim=1) == labels
    assert 0.8 < record["metrics"]["fidelity/class_agreement_cnn-digits_60"]["value"] == hits.double().mean().item() <= 0.9
    by_class = {name: hits[labels == k].double().mean().item() for k, name in enumerate(model.classes)}
    assert record["tables"]["class_agreement"] == by_class
    assert "class that they were drawn for" in meaning("fidelity/class_agreement_cnn-digits_60")


def test_samples_without_labels_are_those_of_the_labels_drawn():
    model = load("fashion-mnist", "cpu")
    labels = model.drawn_labels(range(3), 5)
    arguments = (range(3), "ddim", 1, 5)
    assert torch.equal(model.draw(*arguments), model.draw(*arguments, labels=labels))
    assert not torch.equal(model.draw(*arguments), model.draw(*arguments, labels=(labels + 1) % 10))
    assert load("digits", "cpu").drawn_labels(range(3), 5) is None


def test_samples_are_drawn_with_the_guidance_that_was_asked_for(tmp_path, monkeypatch):
    model, drawn = load("digits", "cpu"), []

    def draw(indices, sampler, steps, seed, guidance):
        drawn.append(guidance)
        return torch.zeros(len(indices), 1, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(model, "draw", draw)
    for guidance in (0.0, 0.5):
        options = Options(**{**FAST.__dict__, "guidance": guidance})
        record = run_suites(context(model, tmp_path, options), ("fidelity",), quiet)
        assert record["tables"]["protocol"]["guidance"] == guidance
    assert drawn == [0.0, 0.5]  # in one folder: samples of another guidance are not used again


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_models_that_lack_something_get_the_suites_that_make_sense(linear, tmp_path):
    record = run_suites(context(linear, tmp_path / "a"), tuple(SUITES), quiet)
    images, denoiser = "the model cannot generate images", "the model has no denoiser"
    assert record["left_out"] == {
        "certified": denoiser, "readings": denoiser, "likelihood": denoiser, "fidelity": images, "quality": images,
    }  # fmt: skip
    denoiser = Adapted((1, 8, 8), denoise=lambda x_t, t: x_t, device="cpu")
    record = run_suites(context(denoiser, tmp_path / "b"), tuple(SUITES), quiet)
    assert set(record["left_out"]) == {
        "accuracy", "calibration", "doubt", "probe", "robustness", "certified", "corruptions", "readings", "quality",
    }  # fmt: skip
    assert {"likelihood/bits_per_dim", "fidelity/fd_cnn-digits_40"} <= record["metrics"].keys()
    unlabelled = Dataset(digits().train, ImageSet(digits().test.in_memory), ())
    record = run_suites(context(linear, tmp_path / "c", data=unlabelled), ("accuracy", "calibration", "ood"), quiet)
    assert set(record["left_out"]) == {"accuracy", "calibration"}


def test_samples_on_disk_are_used_again_and_do_not_depend_on_how_they_were_drawn(tiny_run, tmp_path):
    from hybvit import load

    model = load(tiny_run, device="cpu")
    ctx = context(model, tmp_path)
    first = ctx.samples
    (shard,) = ctx.samples_folder.glob("*.safetensors")
    changed = shard.stat().st_mtime_ns
    assert torch.equal(context(model, tmp_path).samples, first)
    assert shard.stat().st_mtime_ns == changed
    assert torch.equal(model.sample(40, "ddpm", 3, batch_size=7), first)
    more = context(model, tmp_path, Options(**{**FAST.__dict__, "samples": 300})).samples
    assert torch.equal(more[:40], first)


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(measured, tmp_path):
    words = ["--batch-size=7", "--suites", ",".join(name for name in SUITES if name != "speed"), "--out", tmp_path]
    together(2, "evaluate", recorded.MODEL, *recorded.WORDS, *words, plots=False)
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (measured, tmp_path))
    assert two["environment"]["world_size"] == 2
    assert {name for name in one["metrics"] if not name.startswith("speed/")} == two["metrics"].keys()
    for name, metric in two["metrics"].items():
        assert metric["value"] == pytest.approx(one["metrics"][name]["value"], abs=1e-6), name


OWN_MODEL = """
import torch
from hybvit import Adapted

def build():
    return Adapted((1, 8, 8), logits=lambda x: x.flatten(1)[:, :10], denoise=lambda x_t, t: x_t)

def wrong():
    return 3
"""


@pytest.mark.slow
def test_a_model_of_ones_own_from_a_file(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN_MODEL)
    spec = f"{tmp_path / 'mine.py'}:build"
    arguments = [
        "evaluate",
        spec,
        "--dataset",
        "digits",
        *QUICK,
        "--suites",
        "accuracy,likelihood",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main([*arguments, "--report"]) == 0
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"test/accuracy", "likelihood/bits_per_dim"} <= record["metrics"].keys()
    assert record["objective"] == "adapted"
    assert "external model" in (tmp_path / "out" / "report.html").read_text()
    for broken, code, words in (
        (f"{tmp_path / 'mine.py'}:wrong", 2, "returns int, not a hybvit.Adapted"),
        (f"{tmp_path / 'mine.py'}:gone", 2, "defines no function 'gone'"),
        (f"{tmp_path / 'none.py'}:build", 3, "no such file"),
        ("timm:no_such_model", 2, "timm has no such model"),
        ("torchvision:no_such_model", 2, "torchvision has no such classifier"),
    ):
        assert cli.main(["evaluate", broken, "--dataset", "digits", "--out", str(tmp_path / "out")]) == code
        assert words in capsys.readouterr().err
    assert cli.main(["evaluate", spec, "--out", str(tmp_path / "out")]) == 2
    assert "an external model needs data" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["timm:resnet18", "torchvision:resnet18"])
def test_a_timm_or_torchvision_model_with_weights_of_ones_own(tmp_path, kind):
    import timm
    from torchvision import models

    torch.manual_seed(0)
    library, name = kind.split(":")
    network = timm.create_model(name, num_classes=10) if library == "timm" else models.resnet18(num_classes=10)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    found = adapt(f"{kind}@{tmp_path / 'weights.pth'}", (1, 8, 8), 10)
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    assert found.logits(x).shape == (2, 10)
    assert found.features(x).shape[0] == 2
    resized = torch.nn.functional.interpolate(
        ((x + 1) / 2).expand(-1, 3, -1, -1), (224, 224), mode="bicubic", antialias=True, align_corners=False
    )
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = network.eval()((resized - mean) / deviation)
    assert torch.allclose(found.logits(x.to(found.device)).cpu(), expected, atol=1e-4)


def same_by_the_name_of_timm() -> None:
    assert "hybvit.integrations.timm_models" not in sys.modules
    x = torch.rand(4, 1, 28, 28) * 2 - 1
    found, expected = adapt("timm:hybvit_fashion_mnist", (1, 28, 28), 10), load("fashion-mnist").logits(x)
    torch.testing.assert_close(found.logits(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_model_of_hybvit_that_timm_knows_is_evaluated_by_its_name():
    """In a process of its own, where nothing has registered it before."""
    process = Forked(same_by_the_name_of_timm)
    _, error = process.communicate()
    assert process.poll() == 0, error


def test_an_adapter_needs_something_to_evaluate():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        Adapted((1, 8, 8))
    with pytest.raises(ConfigError, match="no classes"):
        Adapted((1, 8, 8), denoise=lambda x_t, t: x_t).logits(torch.zeros(1, 1, 8, 8))
