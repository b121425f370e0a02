"""The studies: equal time for every recipe, kept and resumed, and a table of what came out."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from hybvit import cli
from hybvit.config import differences, minibatches, override
from hybvit.errors import ConfigError
from hybvit.evaluation import Options
from hybvit.presets import preset
from hybvit.reproduce import studies, timing
from hybvit.reproduce.studies import Run, costs_of, cut, lines_of, runs_of, within
from hybvit.reproduce.timing import digest
from hybvit.reproduce.variants import ABLATION, COMPARISON, STUDIES, V2, Study, Variant

SMALL = override(preset("digits"), train={"batch_size": 16})
VARIANTS = {
    "small": Variant("small", "the small recipe", SMALL),
    "labels": Variant("labels", "classification only", override(SMALL, objective={"kind": "vit"})),
    "paper": Variant("paper", "as published", preset("digits_paper"), fixed=True),
}
STUDY = Study("A study of digits", 0.02, "small", VARIANTS, ("small",))
LOOK = "--look=--limit 50"


@pytest.fixture
def small_study(monkeypatch):
    monkeypatch.setitem(STUDIES, "ablation", STUDY)
    options = {("accuracy", "calibration"): Options(), ("fidelity",): Options(samples=20, steps=2)}
    monkeypatch.setattr(studies, "EVAL_OPTIONS", options)
    monkeypatch.setattr(studies, "TRIAL_PARTS", 4)
    monkeypatch.setattr(studies, "TRIAL_PART", 2)
    monkeypatch.setattr(timing, "SPAN", 0.05)


@pytest.mark.slow
def test_a_study_is_carried_out_kept_and_rendered(small_study, tmp_path, capsys, monkeypatch):
    call = ["reproduce", "ablation", "--out", str(tmp_path), LOOK, "--optim.weight_decay", "0.01"]
    assert cli.main([*call, "--runs", "small,labels"]) == 0
    folder = tmp_path / "pocket" / "ablation"
    budgets = {run: json.loads((folder / run / "budget.json").read_text()) for run in ("small", "labels")}
    for budget in budgets.values():
        assert 1 <= budget["steps"] <= round(1.2 / budget["seconds_per_step"])  # less what the first steps take longer
        assert budget["fields"] == ["--optim.weight_decay", "0.01"]
    newest = {run: (folder / run / "checkpoints").iterdir() for run in budgets}
    assert {run: max(path.name for path in paths) for run, paths in newest.items()} == {
        run: f"step-{budget['steps']:08d}" for run, budget in budgets.items()
    }
    rows = list(csv.DictReader((folder / "ablation.csv").read_text().splitlines()))
    by_run = {row["run"]: row for row in rows}
    assert set(by_run) == {"small", "labels"}
    assert "objective.kind vit" in by_run["labels"]["changed"]
    assert by_run["labels"]["fidelity/fd"] == ""  # it has no samples
    measured = json.loads((folder / "small" / "results.json").read_text())["metrics"]["test/accuracy"]["value"]
    assert float(by_run["small"]["test/accuracy"]) == pytest.approx(measured, rel=1e-5)
    took = json.loads((folder / "timing.json").read_text())["runs"]
    text = (folder / "ablation.md").read_text()
    assert f"{took['small']['seconds_per_step'] / took['small, images only']['seconds_per_step']:.2f} times" in text
    assert text.index("**the small recipe**") < text.index("classification only")
    found = json.loads((folder / "small" / "results.json").read_text())["metrics"]["test/accuracy"]
    assert "(`--optim.weight_decay 0.01`)" in text
    value, low, high = (f"{100 * found[part]:.2f}" for part in ("value", "low", "high"))
    assert f"First row, seed 0, with 95 % intervals: accuracy % {value} ({low} to {high}), NLL" in text

    capsys.readouterr()
    stored = folder / "small" / "evaluation" / "fidelity" / "result.json"
    before = stored.stat().st_mtime_ns
    assert cli.main([*call, "--runs", "small"]) == 0  # nothing is done again
    assert "small: trained" in capsys.readouterr().out
    assert stored.stat().st_mtime_ns == before
    assert cli.main([*call, "--runs", "small", "--budget", "3"]) == 2
    assert "started with 0.02 min per run" in capsys.readouterr().err
    assert cli.main([*call[:-2], "--runs", "small"]) == 2
    assert "started with --optim.weight_decay 0.01, not none" in capsys.readouterr().err
    shutil.rmtree(folder / "labels")  # its record stays
    assert cli.main([*call, "--render"]) == 0
    assert {row["run"] for row in csv.DictReader((folder / "ablation.csv").read_text().splitlines())} == {"small", "labels"}
    monkeypatch.setitem(
        VARIANTS, "labels", Variant("labels", "classification only", override(VARIANTS["labels"].config, model={"depth": 2}))
    )
    capsys.readouterr()
    assert cli.main([*call, "--render"]) == 0  # but not in the table once its recipe is another
    assert "labels: recipe has changed since" in capsys.readouterr().out
    kept = json.loads((folder / "records.json").read_text())
    small = kept["runs"]["small"]
    both = sum(minibatches(SMALL))  # the mini-batch that is denoised, and the labeled one
    assert small["images_per_second"] == pytest.approx(small["training"]["steps"] * both / small["training"]["seconds"])
    assert (set(kept["runs"]), set(kept["outdated"])) == ({"small"}, {"labels"})
    assert cli.main([*call, "--dry-run"]) == 0
    assert "3 runs of 0.02 min" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["records.json", "timing.json", "small/budget.json"])
def test_a_damaged_file_of_a_study_is_named(name, small_study, tmp_path, capsys):
    file = tmp_path / "pocket" / "ablation" / name
    file.parent.mkdir(parents=True)
    file.write_text('{"runs": {')
    assert cli.main(["reproduce", "ablation", "--out", str(tmp_path), "--runs", "small"]) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"{name}: damaged" in said[0]
    assert file.read_text() == '{"runs": {'


def test_steps_fit_into_the_time(small_study):
    cfg, seconds = within(SMALL, 0.05, fixed=False)
    assert 1 <= cfg.train.steps <= round(3 / seconds)
    assert 1e-3 < seconds < 3


def test_a_trial_of_a_share_of_the_budget_decides(monkeypatch):
    asked = []

    def parts(cfg, steps):
        asked.append(steps)
        pace = 0.2 if len(asked) == 1 else 0.1  # the machine is disturbed at first
        return [30 + steps * pace, *[steps * pace] * 11]

    monkeypatch.setattr(studies, "trial_parts", parts)
    cfg, seconds = within(SMALL, 30, fixed=False)
    assert asked == [studies.TRIAL_PART, round(30 * 60 / 20 / 0.2 / 12)]
    assert seconds == pytest.approx(0.1)
    assert cfg.train.steps == (30 * 60 - 30) * 10  # compiling takes 30 seconds off the budget


def test_warm_up_and_average_are_shares_of_the_run_unless_fixed():
    for steps in (40, 900, 16_000):
        cfg = cut(preset("fashion_mnist_v2"), steps, fixed=False)
        assert cfg.optim.warmup_steps == steps // 20
        assert cfg.train.ema_decay == pytest.approx(1 - 20 / steps, abs=1e-6)
        assert -(-steps // cfg.train.checkpoint_every) == 5
    paper = preset("fashion_mnist_pocket")
    assert cut(paper, 4000, fixed=True).train.ema_decay == paper.train.ema_decay
    assert cut(paper, 4000, fixed=True).optim == paper.optim


CHANGED = {  # fields -> the variants that change just these of v2
    "model.pixel_readout": "linear_readout",
    "model.patch_embedding": "linear_embedding",
    "model.patch_size": "patch4",
    "model.time": "token_scalars adaln_zero",
    "model.long_skips": "skips",
    "model.class_depth": "early_tap",
    "model.mlp": "gelu",
    "model.rope": "no_rope",
    "model.qk_norm": "no_qk_norm",
    "model.label_conditioning": "untold",
    "objective.guidance": "guidance",
    "objective.target": "eps x0",
    "objective.norm": "l1",
    "objective.weighting": "min_snr",
    "objective.noisy_labels": "no_noisy_labels noisy_labels_4",
    "optim.muon_lr": "muon_slower muon_faster",
    "optim.name": "adamw",
    "optim.beta2": "usual_betas",
    "train.labelled_batch_size": "full_labelled_batch",
    "data.augment": "no_augmentation",
    "objective.kind": "v2_vit v2_told",
    "model.class_depth model.label_conditioning": "last_tap",
    "diffusion.schedule objective.target": "flow",
    "objective.alpha objective.alpha_end": "alpha_10 alpha_20 alpha_stays alpha_100",
    "train.batch_size train.labelled_batch_size": "half_batches",
    "data.flip data.clean_flip": "flipped",
    "model.label_conditioning objective.kind": "v2_genvit",
}


def test_every_variant_is_v2_with_what_its_name_says():
    wanted = {name: set(fields.split()) for fields, names in CHANGED.items() for name in names.split()} | {"v2": set()}
    found = {}
    for study in (ABLATION, COMPARISON):
        assert study.base in study.variants
        found |= {name: set(differences(V2, variant.config)) for name, variant in study.variants.items() if not variant.fixed}
    assert found == wanted
    assert set(COMPARISON.costs) <= set(COMPARISON.variants)


def test_the_studies_of_cifar10_change_the_same_of_its_v2():
    wanted = {name: set(fields.split()) for fields, names in CHANGED.items() for name in names.split()} | {
        "v2": set(), "wide_heads": {"model.heads"}, "large_batches": {"train.batch_size", "train.labelled_batch_size"},
        "small_patches": {"model.patch_size", "model.stem_width", "model.readout_width"},
    }  # fmt: skip
    v2 = preset("cifar10_pocket_v2")
    for study in (STUDIES["cifar10"], STUDIES["cifar10_trials"]):
        for name, variant in study.variants.items():
            if not variant.fixed:
                assert set(differences(v2, variant.config)) == wanted[name], name


def test_a_table_has_means_over_seeds_and_differences_to_the_base():
    def record(variant, seed, accuracy, distance):
        return {
            "variant": variant, "words": VARIANTS[variant].description, "seed": seed,
            "parameters": 1000, "images_per_second": 10.0,
            "training": {"steps": 7, "seconds": 5.0},
            "metrics": {"test/accuracy": {"value": accuracy}, "fidelity/fd_cnn_5000": {"value": distance}},
        }  # fmt: skip

    records = {
        "small": record("small", 0, 0.8, 5.0),
        "small-seed1": record("small", 1, 0.9, 7.0),
        "labels": record("labels", 0, 0.7, 4.0),
        "labels-seed1": record("labels", 1, 0.9, 7.0) | {"metrics": {"fidelity/fd_cnn_5000": {"value": 7.0}}},  # no accuracy
    }
    heads, lines = lines_of(STUDY, records)
    table = {line[0]: dict(zip(heads, line, strict=True)) for line in lines}
    assert list(table) == ["**the small recipe**", "classification only"]
    assert table["**the small recipe**"]["accuracy %"] == "85.00"
    assert table["**the small recipe**"]["seeds"] == "0, 1"
    assert table["classification only"]["accuracy %"] == "70.00 (-10.00)"  # to the same seed
    assert table["classification only"]["Frechet distance"] == "5.50 (-0.50)"
    assert table["classification only"]["NLL"] == ""


def test_nothing_is_claimed_of_costs_that_were_not_timed(tmp_path):
    assert costs_of(STUDY, tmp_path) == {}
    assert costs_of(COMPARISON, tmp_path) == {}


def test_step_times_of_a_recipe_that_has_changed_are_not_shown(tmp_path, monkeypatch):
    measured = []

    def measure(configs, say):
        measured.append(sorted(configs))
        runs = {name: {"configuration": digest(cfg), "seconds_per_step": 1.0, "spread": 0.1} for name, cfg in configs.items()}
        return {"runs": runs, "repeats": 5, "environment": {}}

    monkeypatch.setattr(studies.timing, "measure", measure)
    fields = ["--optim.lr", "1e-3"]
    for _ in range(2):  # the second time there is nothing to do
        studies.time_steps(STUDY, fields, tmp_path, print)
    assert measured == [["small", "small, images only"]]
    assert (
        studies.ratio_of_steps(costs_of(STUDY, tmp_path), "small")
        == "1.00 times (1000 and 1000 ms, repeats within 10 and 10 %)"
    )
    changed = Variant("small", "the small recipe", override(SMALL, model={"depth": 2}))
    assert costs_of(STUDY._replace(variants={**VARIANTS, "small": changed}), tmp_path) == {}
    studies.time_steps(STUDY, [], tmp_path, print)
    assert len(measured) == 2


def test_seeds_and_names_of_runs():
    assert [run.name for run in runs_of("v2", {"paper", "v2"}, [0, 3])] == ["paper", "v2", "paper-seed3", "v2-seed3"]
    assert Run(VARIANTS["small"], 0).name == "small"
    with pytest.raises(ConfigError, match=r"'nobody' is not a recipe of v2 .*--dry-run"):
        runs_of("v2", {"nobody"}, [0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ablation", "table1"], "one at a time"),
        (["ablation", "--scale", "full"], "leave out --scale full"),
        (["v2", "--train.sed", "1"], "did you mean --train.seed"),
        (["v2", "--train.seed", "1"], "--train.seed is set by the study"),
        (["ablation", "--objective.noisy_labels", "7"], "would undo what "),
        (["v2", "--runs", "paper,v2", "--optim.name", "muon"], "would undo what paper changes"),
        (["v2", "--runs", "pap"], "did you mean paper"),
        (["v2", "--seeds", "a"], "--seeds a"),
        (["v2", "--budget", "0"], "--budget 0"),
        (["table1", "--budget", "3"], "--budget and --seeds are for ablation, v2, cifar10"),
        (["ablatoin"], "did you mean ablation"),
    ],
)
def test_what_does_not_go_with_a_study_is_said(arguments, said, capsys, tmp_path):
    assert cli.main(["reproduce", *arguments, "--out", str(tmp_path), "--dry-run"]) == 2
    assert said in capsys.readouterr().err


def test_a_study_of_own_images_asks_for_them_at_once(tmp_path, capsys):
    assert cli.main(["reproduce", "own_images", "--out", str(tmp_path)]) == 2
    assert "give --data.root DIR" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert cli.main(["reproduce", "own_images", "--dry-run", "--out", str(tmp_path)]) == 0
    assert "four_layers" in capsys.readouterr().out
