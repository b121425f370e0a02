from __future__ import annotations

import csv
import io
import json
import math
import os
import time

import pytest
import torch
from PIL import Image

import hybvit.cli.reproduce
from hybvit import cli
from hybvit.catalog import CATALOG
from hybvit.checkpoint import newest, read_tensors, step_folders, step_of
from hybvit.config import differences, override
from hybvit.errors import ConfigError
from hybvit.networks import build_network, number_of_parameters
from hybvit.presets import PRESETS, preset
from hybvit.reproduce import claims, figures, pages, published, render, scales, timing, work
from hybvit.reproduce.published import rows_of, tables
from hybvit.reproduce.runs import (
    SNAPSHOTS,
    Job,
    configuration,
    evaluation_eflop,
    evaluations_of,
    record_of,
    run_dir,
    share_of,
    state_of,
    training_hours,
    try_job,
)
from hybvit.reproduce.scales import CIFAR, FULL, POCKET
from hybvit.reproduce.tables import FIGURES, NAMES, Measured, Row, measured, rows, runs_of, suites_of
from hybvit.storage import lock_folder
from hybvit.training.cost import cost

from .conftest import hybvit, opened
from .forked import started

TINY = [
    "--train.steps=40", "--train.batch_size=8", "--train.checkpoint_every=4", "--train.log_every=4", "--optim.warmup_steps=2",
    "--model.dim=16", "--model.depth=2", "--model.heads=2",
]  # fmt: skip
LOOK = ["--look", "--samples 24 --steps 2 --limit 60 --attack-images 8 --attack-steps 2 --bound-images 4 --bound-draws 2"]
LAST_SAMPLES = "cifar10/evaluation/fidelity/samples.png"
RUNS = "stl10_short_patch12,stl10_short_genvit"


def claimed(name: str, run: str) -> Row:
    return next(row for row in rows(name) if row.run == run)


@pytest.mark.parametrize("name", [f"table{n}" for n in range(1, 14)])
def test_every_row_that_the_paper_trained_has_a_preset(name):
    for row in tables()[name].rows:
        if row.source == "this paper" and name != "table9":  # that one lists settings
            assert row.preset, row


def test_a_row_finds_the_preset_of_its_name():
    assert published.row("table6", "HybViT(head=8)").preset == "cifar10_heads8"
    assert published.row("table2", "GenViT", "STL10").preset == "stl10_genvit"
    assert published.row("table12", "HybViT (weak augmentation)", "L2").preset == "cifar10_weak"
    assert published.row("table1", "SNGAN", "Generative Models").preset is None


def test_what_a_table_needs():
    assert suites_of("table1") == ("accuracy", "fidelity")
    assert suites_of("table3") == ("ood",)
    assert set(suites_of("table12")) == {"accuracy", "robustness"}
    assert suites_of("figure12") == ("calibration",)
    assert {"cifar10", "cifar10_jem", "cifar10_wrn28_10", "cifar10_ddpm"} <= set(runs_of("table1"))
    assert runs_of("table8") == ()  # timed, not trained
    assert runs_of("figure10") == ("cifar10",)


def test_every_claim_is_the_papers_own():
    """Its relation holds among the published figures, so that `does not hold` can only be ours."""
    checked = 0
    for name, made in claims.CLAIMS.items():
        for claim in made:
            pair = [render.row_of(name, claim.group, run) for run in (claim.left, claim.right)]
            found = claims.verdict(claim, *(render.published_figure(row, claim.column) for row in pair))
            assert claim.left in PRESETS
            assert claim.right in PRESETS
            if found is not None:
                checked += 1
                assert found.outcome == "holds" or claim.relation == "ratio", (name, claim, found)
    assert checked >= 35


def test_published_ratios_are_those_of_table_8():
    found = {
        claim.statement: claims.verdict(
            claim,
            *(render.published_figure(render.row_of("table8", "", run), claim.column) for run in (claim.left, claim.right)),
        )
        for claim in claims.CLAIMS["table8"]
    }
    outcomes = [verdict.outcome for verdict in found.values() if verdict]
    assert outcomes[0] == f"{3.71 / 2.11:.2f} times" == "1.76 times"
    assert outcomes[2] == f"{30.2 / 3.71:.2f} times" == "8.14 times"


def test_a_verdict_respects_the_intervals():
    claim = claims.Claim("", "accuracy", "a", "b", "higher")
    assert claims.verdict(claim, Measured(80, 79, 81), Measured(70, 69, 71)).outcome == "holds"
    assert claims.verdict(claim, Measured(70, 69, 71), Measured(80, 79, 81)).outcome == "does not hold"
    assert claims.verdict(claim, Measured(71, 69, 73), Measured(70, 68, 72)).outcome == "too close to call"
    assert claims.verdict(claim, None, Measured(70)) is None
    up, down = Measured(75, 74, 80), Measured(70, 69, 75)  # intervals that reach far up
    assert claims.verdict(claim, up, Measured(72, 71, 72.5)).outcome == "holds"
    assert claims.verdict(claim, Measured(72.5, 72, 73), down).outcome == "too close to call"
    close = claim._replace(relation="close", margin=1.0)
    assert claims.verdict(close, Measured(70.2, 70, 70.4), Measured(70)).outcome == "holds"
    assert claims.verdict(close, Measured(75, 74, 76), Measured(70)).outcome == "does not hold"
    assert claims.verdict(close, Measured(71.1, 70.1, 72.1), Measured(70)).outcome == "too close to call"
    apart = Measured(99, 98.9, 100.5), Measured(98.3, 96.9, 98.35)  # by up to 3.6
    assert claims.verdict(close, *apart).outcome == "too close to call"
    reaching = Measured(71, 70.9, 76)  # so far that the two may be more than the margin apart
    assert claims.verdict(close._replace(margin=3.0), reaching, Measured(70)).outcome == "too close to call"
    alike = claim._replace(relation="alike", margin=0.1)  # a tenth of the right one
    assert claims.verdict(alike, Measured(110.5), Measured(100)).outcome == "does not hold"
    samples = claim._replace(column="fid")
    few, many = Measured(80, 79, 81, "fidelity/fd_cnn-digits_100"), Measured(70, 69, 71, "fidelity/fd_cnn-digits_1000")
    assert claims.verdict(samples, few, many).outcome == "not judged: of different numbers of samples"
    assert claims.verdict(claim._replace(relation="ratio"), Measured(6), Measured(2)).outcome == "3.00 times"
    lower = claim._replace(relation="lower")
    assert claims.verdict(lower, Measured(2), Measured(6)).outcome == "holds"


def test_the_full_scale_is_the_preset():
    for name in PRESETS:
        changed = differences(preset(name), FULL.config(name))
        assert changed == {}
    with_snapshots = configuration("cifar10", FULL, ["--train.steps=600"], snapshots=True)
    assert with_snapshots.train.snapshot_every == 60  # of the steps that are asked for, not of the preset's
    assert with_snapshots.train.checkpoint_every == preset("cifar10").train.checkpoint_every


IMAGES = {  # of each small scale: the paper's -> ours, where it has them
    "pocket": {"cifar10": "fashion_mnist", "stl10": "digits"},
    "cifar": {"cifar10": "cifar10", "stl10": "cifar10", "celeba_hq": "celeba"},
}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("scale", [POCKET, CIFAR], ids=["pocket", "cifar"])
def test_a_small_scale_shrinks_what_it_has_data_for(name, scale):
    small, images = scale.config(name), IMAGES[scale.name].get(preset(name).data.name)
    only_in_gray = name.startswith("stl10") and not name.startswith("stl10_short")
    if images is None or not rows_of(name) or (scale is CIFAR and (only_in_gray or name == "stl10_short_patch6")):
        assert small is None
        return
    assert small.data.name == images
    assert small.model.channels == CATALOG[images].channels
    assert small.model.image_size % small.model.patch_size == 0
    assert small.objective == preset(name).objective
    assert small.data.augment == preset(name).data.augment
    assert small.jem.steps == preset(name).jem.steps
    with torch.device("meta"):
        assert number_of_parameters(build_network(small)) < (2_000_000 if scale is POCKET else 5_000_000)
    assert small.train.checkpoint_every * 10 == small.train.steps


@pytest.mark.parametrize(
    ("scale", "patches"), [(POCKET, {4: 1, 6: 2, 8: 4, 12: 8}), (CIFAR, {4: 2, 8: 4, 12: 8})], ids=["pocket", "cifar"]
)
def test_a_small_scale_keeps_the_order_of_an_ablation(scale, patches):
    def sizes(field, *names):
        return [getattr(scale.config(name).model, field) for name in names]

    assert sizes("dim", "cifar10_dim192", "cifar10", "cifar10_dim768") == [48, 96, 192]
    assert sizes("depth", "cifar10_depth6", "cifar10", "cifar10_depth12") == [4, 6, 8]
    assert sizes("heads", "cifar10_heads6", "cifar10_heads8", "cifar10", "cifar10_heads16") == [2, 3, 4, 6]
    assert sizes("patch_size", *(f"stl10_short_patch{p}" for p in patches)) == list(patches.values())
    steps = [scale.config(f"cifar10{epochs}").train.steps for epochs in ("_epochs100", "_epochs300", "")]
    assert steps == [600, 1800, 3000]


OTHER_EXTRACTOR = {"parameters": 1, "metrics": {"fidelity/fd_cnn-other_300": {"value": 1.0, "n": 300}}}
RECORD = {
    "parameters": 2_000_000,
    "metrics": {
        "test/accuracy": {"value": 0.9, "low": 0.88, "high": 0.92, "n": 100},
        "fidelity/fd_cnn-digits_300": {"value": 12.5, "low": 12.0, "high": 13.0, "n": 300},
        "fidelity/fd_cnn-digits_real_test": {"value": 0.1, "n": 300},
        "fidelity/fd_cnn-digits_300_real_test": {"value": 0.2, "n": 300},
        "fidelity/fd_cnn-digits_200_of_samples": {"value": 0.3, "n": 200},
        "fidelity/score_cnn-digits_300": {"value": 5.0, "n": 300},
        "ood/digits/auroc_logpx": {"value": 0.75, "n": 300},
        "ood/digits/auroc_max_prob": {"value": 0.5, "n": 300},
        "robustness/pgd_linf_8": {"value": 0.25, "n": 10},
        "likelihood/bits_per_dim": {"value": 3.5, "n": 10},
    },
    "timing": {"minutes_per_epoch": 2.5, "hours": 0.5},
}


def test_a_column_is_read_in_its_own_unit():
    row = Row("HybViT", "", None, "cifar10")
    expected = {
        "accuracy": 90.0, "fid": 12.5, "inception_score": 5.0, "auroc_svhn": 0.75, "pgd_linf_8": 25.0, "bits_per_dim": 3.5,
        "parameters_millions": 2.0, "minutes_per_epoch": 2.5, "hours": 0.5,
    }  # fmt: skip
    for column, value in expected.items():
        assert measured(column, row, RECORD, POCKET).value == pytest.approx(value), column
    assert measured("accuracy", row, RECORD, POCKET)[1:3] == pytest.approx((88.0, 92.0))
    errors = {"calibration/ece_20": {"value": 0.07, "n": 60}, "calibration/ece_15": {"value": 0.08, "n": 60}}
    assert measured("ece", row, RECORD | {"metrics": errors}, POCKET).value == pytest.approx(7.0)  # the paper has 20 bins
    assert measured("auroc_svhn", row._replace(group="max_probability"), RECORD, POCKET).value == 0.5
    assert measured("auroc_celeba", row, RECORD, POCKET) is None  # nothing stands in for it
    assert measured("pgd_l2_50", row, RECORD, POCKET) is None
    for group, seen in (("L-inf", 25.0), ("L2", None)):  # a row of Table 12 is of one norm
        found = measured("pgd_linf_8", row._replace(group=group), RECORD, POCKET)
        assert (found and found.value) == seen
    assert measured("runtime", claimed("table13", "imagenet32"), RECORD, FULL).value == 0.5
    assert measured("runtime", claimed("table8", "cifar10_ddpm"), RECORD, FULL) is None


def test_a_difference_is_ours_minus_the_published():
    lines = list(csv.DictReader(io.StringIO(render.as_csv("table1", {"cifar10": RECORD}, FULL))))
    mine = {line["column"]: line for line in lines if line["model"] == "HybViT"}
    assert float(mine["accuracy"]["difference"]) == pytest.approx(90.0 - 95.9)
    assert float(mine["fid"]["difference"]) == pytest.approx(12.5 - 26.4)
    assert mine["fid"]["published"] == "26.4"
    cited = [line for line in lines if line["model"] == "SNGAN"]
    assert cited
    assert all(line["ours"] == "" and line["source"] for line in cited)


def test_a_distance_on_another_extractor_is_not_compared_with_fid():
    lines = csv.DictReader(io.StringIO(render.as_csv("table1", {"cifar10": RECORD}, POCKET)))
    mine = {line["column"]: line for line in lines if line["model"] == "HybViT"}
    assert mine["fid"]["difference"] == ""
    assert mine["fid"]["ours"] == "12.5"
    assert mine["accuracy"]["difference"] == ""  # of two data sets
    text = render.markdown("table1", {"cifar10": RECORD, "stl10": OTHER_EXTRACTOR}, POCKET)
    assert "fd_cnn-digits_300, ours" in text
    assert "cnn-other" not in text  # of a run that is not in the table


DRAWN = {f"table{n}" for n in range(1, 14)} - {"table9"}  # which has hyper-parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"table{n}" for n in range(1, 14)])
def test_every_table_renders_with_and_without_runs(name):
    everything = dict.fromkeys(PRESETS, RECORD)
    for records in ({}, everything):
        text = render.markdown(name, records, POCKET)
        for row in tables()[name].rows:
            assert row.model in text
            for value in row.values.values():
                assert str(value).lower() in text.lower(), (row, value)  # with the digits that were printed
        table_lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in table_lines[:3]}) == 1
        assert render.as_html(name, records, FULL).count("<table>") >= 1
    drawing = render.drawing(name, everything, POCKET)
    assert (drawing is not None and drawing.startswith("<svg")) == (name in DRAWN)


def test_a_run_that_diverged_is_seen_in_the_table():
    record = RECORD | {"diverged": "step 77: the energies ...", "kept_step": 60, "network": "WRN-10-1"}
    record |= {"data": "digits", "seed": 0, "training": {"of_steps": 600, "batch_size": 64, "seconds": 36.0}}
    text = render.markdown("table1", {"cifar10_jem": record}, POCKET)
    assert "WRN-10-1, 2.00 M, 60 steps of 64, **diverged**" in text
    assert "`cifar10_jem` diverged: step 77: the energies ..." in text
    both = render.markdown("table1", {"cifar10_jem": record, "cifar10": RECORD}, POCKET)
    (better,) = (line for line in both.splitlines() if line.startswith("| HybViT classifies better than JEM |"))
    assert better.endswith("| not judged: `cifar10_jem` diverged |")
    assert "| JEM diverges easily |  |  | holds (one run) |" in text
    assert "pocket scale, digits; seed 0; 0.01 hours of training" in text


def test_what_changes_against_the_base_row():
    better = RECORD | {"metrics": RECORD["metrics"] | {"test/accuracy": {"value": 0.95, "n": 1}}}
    heads, lines = render.against_base("table6", {"cifar10": RECORD, "cifar10_alpha10": better}, POCKET)
    assert [line[0] for line in lines] == ["HybViT (alpha=10)"]  # neither the base nor rows without figures of ours
    line = next(line for line in lines if line[0] == "HybViT (alpha=10)")
    assert heads[1] == "Acc %, published"
    assert line[1:3] == ["+1.1", "+5.0"]
    assert line[3:5] == [f"x {38.2 / 26.4:.2f}", "x 1.00"]


@pytest.mark.slow
def test_shards_part_the_work():
    needs = [Job(run, POCKET.config(run), (), False) for run in runs_of("table6")]
    for n in (1, 2, 3, 5, 40):
        parts = [share_of(needs, i, n) for i in range(n)]
        together = [need.run for part in parts for need in part]
        assert sorted(together) == sorted(need.run for need in needs)
        if n == 2:
            loads = [sum(cost(need.cfg).total_eflop for need in part) for part in parts]
            assert max(loads) < 1.3 * min(loads)


def test_the_plan_costs_what_the_presets_say():
    assert FULL.hours(FULL.config("cifar10_jem")) == cost(preset("cifar10_jem")).gpu_hours
    need = Job("cifar10", POCKET.config("cifar10"), ("fidelity",), False)
    one = evaluation_eflop(need, POCKET, {})
    assert one > 0
    assert evaluation_eflop(need, POCKET, {"samples": 100}) < one / 2  # as --look asks
    assert evaluation_eflop(need._replace(snapshots=True), POCKET, {}) == pytest.approx(SNAPSHOTS * one)
    assert evaluation_eflop(need._replace(suites=()), POCKET, {}) == 0
    for figure in ("figure8", "figure13"):  # the finished run is their last point
        assert all(evaluation_eflop(job, POCKET, {}) > 0 for job in work.plan([figure], POCKET, set(), []).jobs)


@pytest.mark.slow
def test_presets_that_are_one_training_share_a_folder():
    assert run_dir("stl10_short_patch8", POCKET) == "stl10"
    assert run_dir("stl10_short_patch8", FULL) == "stl10_short_patch8"
    planned = work.plan(["table2", "table7"], POCKET, set(), [])
    configs = [need.cfg for need in planned.jobs]
    assert len(set(configs)) == len(configs)
    with pytest.raises(ConfigError, match="is not needed by"):
        work.plan(["table7"], POCKET, {"cifar10"}, [])


def test_drawings_keep_rows_of_different_groups_apart():
    drawn = {}
    for name in ("table2", "table11", "table12"):
        everything = dict.fromkeys(PRESETS, RECORD)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(render.plots, "paired", lambda panels: drawn.update(panels) or "<svg")
            render.drawing(name, everything, FULL)
        for points in drawn.values():
            labels = [label for label, _, _ in points]
            assert len(set(labels)) == len(labels), name
        drawn.clear()


def test_rows_of_ours_stand_in_their_group():
    groups = [row.group for row in rows("table12")]
    assert groups == sorted(groups, key=groups.index)
    assert [row.model for row in rows("table12") if row.group == "L-inf"][-1] == "JEM++"


def test_names_and_shards_are_checked():
    assert cli.reproduce.names_of(["all"]) == list(NAMES)
    assert cli.reproduce.names_of(["figure8", "table2"]) == ["table2", "figure8"]
    with pytest.raises(ConfigError, match="did you mean table1"):
        cli.reproduce.names_of(["tabel1"])
    with pytest.raises(ConfigError, match="drawing"):
        cli.reproduce.names_of(["figure2"])
    assert cli.reproduce.shard_of("2/3") == (1, 3)
    for wrong in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(ConfigError, match="--shard"):
            cli.reproduce.shard_of(wrong)


def test_several_processes_are_refused_before_each_trains_another_row(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = hybvit("reproduce", "table6", "--out", tmp_path)
    assert done.returncode == 2
    assert "without torchrun" in done.stderr
    assert "--shard 1/2" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_dry_run_names_the_plan_and_trains_nothing(tmp_path):
    done = hybvit("reproduce", "table7", "table8", "--dry-run", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stl10_short_patch4" in done.stdout
    assert "hours of training" in done.stdout
    assert "timed alternately" in done.stdout
    assert list(tmp_path.iterdir()) == []
    full = hybvit("reproduce", "table1", "--scale", "full", "--dry-run", "--out", tmp_path)
    assert "585,000" in full.stdout
    assert hybvit("reproduce", "table1", "--runs", "nothing", "--out", tmp_path).returncode == 2
    early = hybvit("reproduce", "table7", "--out", tmp_path, "--look", "--sampels 64")
    assert early.returncode == 2
    assert "--sampels" in early.stderr
    assert list(tmp_path.iterdir()) == []


def weights(folder):
    checkpoint, manifest, _ = newest(folder / "checkpoints")
    assert manifest["step"] == 40
    return {f"{path.stem}/{k}": v for path in checkpoint.glob("*.safetensors") for k, v in read_tensors(path).items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce")
    done = hybvit("reproduce", "table7", "--runs", RUNS, "--out", out, *TINY, *LOOK)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_a_killed_reproduction_goes_on_where_it_stopped(finished, tmp_path):
    """SIGKILL, twice: at most one checkpoint interval is done again, and the weights are the same."""
    arguments = ["reproduce", "table7", "--runs", RUNS, "--out", str(tmp_path), *TINY, *LOOK]
    folder = tmp_path / "pocket" / "stl10_short_patch12"
    reached = []
    newest_step = lambda: max(map(step_of, step_folders(folder / "checkpoints")), default=0)  # noqa: E731
    for _ in range(2):
        process, before = started(*arguments), newest_step()
        deadline = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < deadline and newest_step() == before:
            time.sleep(0.01)
        process.kill()
        process.wait()
        reached.append(newest_step())
    done = hybvit(*arguments)
    assert done.returncode == 0, done.stderr
    resumed = [line for line in done.stdout.splitlines() if "resumed at step" in line]
    assert 0 < reached[0] < reached[1]
    assert reached[1] == 40 or any(f"resumed at step {reached[1]} of 40" in line for line in resumed)
    for run in ("stl10_short_patch12", "stl10_genvit"):  # where the second one lives, too
        whole, again = (weights(out / "pocket" / run) for out in (finished, tmp_path))
        assert [key for key in whole if not torch.equal(whole[key], again[key])] == []
    figures_of = lambda out: [  # noqa: E731
        {key: value for key, value in line.items() if key != "hours"}
        for line in csv.DictReader(io.StringIO((out / "pocket" / "table7.csv").read_text()))
    ]
    assert figures_of(finished) == figures_of(tmp_path)


@pytest.mark.slow
def test_what_is_done_is_not_done_again(finished):
    folder = finished / "pocket"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    done = hybvit("reproduce", "table7", "--runs", RUNS, "--out", finished, *TINY, *LOOK)
    assert done.returncode == 0
    assert "trained" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before
    other = hybvit("reproduce", "table2", "--render", "--out", finished, *TINY)
    assert other.returncode == 0
    assert "id=table7" in (folder / "index.html").read_text()  # an earlier call's tables stay
    for field in ("--train.seed=7", "--train.steps=20", "--objective.alpha=1"):
        for words in (["table7", "--render"], ["table6", "--runs", "cifar10_alpha1"]):  # of other rows in the same folder
            wrong = hybvit("reproduce", *words, "--out", finished, *TINY, field)
            assert wrong.returncode == 2
            assert "was started with" in wrong.stderr
            assert not (folder / "cifar10_alpha1").exists()
    kept = json.loads((folder / "records.json").read_text())["runs"]
    assert {name: record["seed"] for name, record in kept.items()} == dict.fromkeys(kept, 0)
    assert len(kept) == 3  # two runs, one of which is two presets'
    assert {"table7.md", "table7.html", "table7.csv", "table7.svg", "index.html", "records.json"} <= {
        path.name for path in folder.iterdir()
    }
    records = json.loads((folder / "records.json").read_text())["runs"]
    assert records["stl10_short_patch12"]["training"]["steps"] == 40
    assert records["stl10_short_patch12"]["changed"]["data.name"] == ["stl10", "digits"]
    assert "test/accuracy" in records["stl10_short_patch12"]["metrics"]
    assert "test/accuracy" not in records["stl10_genvit"]["metrics"]


def test_the_stand_ins_for_out_of_distribution_sets_are_those_of_the_scale_that_are_here(tmp_path, monkeypatch):
    monkeypatch.setattr("hybvit.data.datasets.cache_folder", lambda: tmp_path)

    def sets(**overrides):
        job = Job("cifar10_vit", CIFAR.config("cifar10_vit"), ("ood",), False)
        (found,) = evaluations_of(job, tmp_path, CIFAR, overrides)
        return found.options.out_of_distribution

    assert sets() == ("interpolation", "noise")
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").touch()
    assert sets() == ("mnist", "interpolation", "noise")
    assert set(CIFAR.outside.values()) == {*sets(), "tiny_imagenet", "celeba"}
    assert sets(out_of_distribution=("svhn",)) == ("svhn",)  # as asked


@pytest.mark.slow
def test_other_settings_want_another_folder(finished):
    done = hybvit("reproduce", "table7", "--runs", "stl10_short_genvit", "--out", finished, *TINY, "--model.dim=32", *LOOK)
    assert done.returncode == 2
    assert "model.dim = 16, not 32" in done.stderr
    cfg = override(configuration("stl10_genvit", POCKET, TINY), model={"dim": 32}, train={"steps": 80})
    (fault,) = try_job(Job("x", cfg, (), False), finished / "pocket" / "stl10_genvit", POCKET, {}, print)
    assert "choose another --out" in str(fault)


def tiny_jem(**jem):
    cfg = override(
        POCKET.config("cifar10_jem"), data={"name": "digits", "flip": False}, model={"image_size": 8, "patch_size": 4}
    )
    jem = {"steps": 2, "replay": 32, **jem}
    return override(cfg, train={"steps": 20, "batch_size": 8, "checkpoint_every": 5, "log_every": 5}, jem=jem)


@pytest.mark.slow
def test_a_jem_that_diverges_stops_and_is_recorded(tmp_path):
    need = Job("cifar10_jem", tiny_jem(limit=1e-9), ("accuracy",), False)
    said = []
    assert try_job(need, tmp_path / "jem", POCKET, {}, said.append) == []
    assert state_of(tmp_path / "jem", need.cfg).diverged
    record = record_of("cifar10_jem", tmp_path / "jem", need.cfg)
    assert record["diverged"].startswith("step 1: JEM diverged")
    assert record["kept_step"] == 0
    assert any("jem" in line for line in said)
    said.clear()
    assert try_job(need, tmp_path / "jem", POCKET, {}, said.append) == []
    assert said == []  # it is not tried again


@pytest.mark.slow
def test_a_jem_is_trained_evaluated_and_draws(tmp_path):
    need = Job("cifar10_jem", tiny_jem(), ("accuracy", "fidelity"), False)
    overrides = {"samples": 24, "steps": 2, "extractor": "cnn-digits"}
    assert try_job(need, tmp_path / "jem", POCKET, overrides, print) == []
    record = record_of("cifar10_jem", tmp_path / "jem", need.cfg)
    assert "test/accuracy" in record["metrics"]
    assert math.isfinite(measured("fid", Row("JEM", "", None, "cifar10_jem"), record, POCKET).value)
    assert Image.open(tmp_path / "jem" / "evaluation" / "fidelity" / "samples.png").width > 8


def test_two_processes_do_not_train_one_run(tmp_path):
    held = lock_folder(tmp_path)
    need = Job("x", override(POCKET.config("stl10_genvit"), train={"steps": 2}), (), False)
    (fault,) = try_job(need, tmp_path, POCKET, {}, print)
    assert "another process" in str(fault)
    held.close()
    held = lock_folder(tmp_path, ".row.lock")  # as a process that evaluates it does
    (fault,) = try_job(need, tmp_path, POCKET, {}, print)
    assert "another process" in str(fault)
    held.close()


@pytest.mark.slow
def test_steps_are_timed_side_by_side():
    small = {"train": {"batch_size": 4}, "model": {"dim": 16, "depth": 1, "heads": 2}}
    configs = {name: override(POCKET.config(name), **small) for name in ("stl10_genvit", "stl10_short_vit")}
    found = timing.measure(configs, lambda line: None, repeats=1)
    for name, cfg in configs.items():
        took = found["runs"][name]
        images = timing.epoch_images(cfg)
        assert images == 3 * CATALOG["digits"].splits["train"]
        assert took["minutes_per_epoch"] == pytest.approx(took["seconds_per_step"] * images / 4 / 60)
        assert took["hours"] == pytest.approx(took["seconds_per_step"] * cfg.train.steps / 3600)
    jem = tiny_jem(limit=1e-9)
    assert timing.measure({"jem": jem}, lambda line: None, repeats=1)["runs"]["jem"]["seconds_per_step"] > 0  # none diverges
    assert timing.digest(jem) != timing.digest(tiny_jem())
    assert timing.epoch_images(preset("cifar10")) == 150_000  # 1170 steps of 128
    assert timing.epoch_images(preset("cifar10_wrn28_10")) == 50_000  # 390


@pytest.fixture
def on_digits(monkeypatch):
    """CIFAR-10's rows on the digits: seconds."""
    monkeypatch.setitem(scales.GRAY, "cifar10", scales.StandIn("digits", {4: 4, 8: 4}))
    for module in (work, pages):
        monkeypatch.setattr(module, "run_dir", lambda run, scale: run)  # else both data sets share folders
    scales.pocket.cache_clear()
    yield
    scales.pocket.cache_clear()


def test_the_figure_of_the_forward_process_goes_from_the_images_to_noise(monkeypatch):
    """Eqs. 9-10. Of the noise, of variance 1, a third lies beyond [-1, 1] and is black or white."""
    monkeypatch.setattr(figures, "captioned_grid", lambda pixels, captions, columns, scale: (pixels, captions, columns))
    cfg = preset("digits")
    pixels, captions, columns = figures.noising(cfg)
    assert captions[:columns] == ["t = 0", "t = 50", "t = 100", "t = 200", "t = 350", "t = 500", "t = 750", "t = 1000"]
    assert torch.equal(pixels[::columns], opened(cfg).test.in_memory[:4])
    noise = pixels[columns - 1 :: columns]
    assert ((noise == 0) | (noise == 255)).double().mean().item() == pytest.approx(0.317, abs=0.08)
    assert noise.double().mean().item() == pytest.approx(127.5, abs=20)


@pytest.mark.slow
def test_every_figure_comes_out(on_digits, tmp_path, monkeypatch):
    names = ["figure1", "figure5", "figure6", "figure8", "figure8b", "figure10", "figure13", "figure15"]
    look = ["--look", "--samples 400 --steps 2 --limit 60 --attack-images 8 --attack-steps 2 --sampler ddim"]
    arguments = [*names, "--runs", "cifar10", "--out", str(tmp_path), *TINY, *look]
    # A network that has hardly learnt sees one class: enough for the pictures, not for a row of ten of each.
    cli.reproduce.main(arguments)
    made = {path.name for path in (tmp_path / "pocket" / "figures").iterdir()}
    assert {"figure1.png", "figure5.png", "figure6.svg", "figure8_accuracy.svg", "figure8_fid.svg", "figure8b_linf.svg"} <= made
    assert {"figure8b_l2.svg", "figure13.png", "figure10_best.png", "figure10_worst.png"} <= made
    for name in made:
        if name.endswith(".png"):
            picture = Image.open(tmp_path / "pocket" / "figures" / name)
            assert picture.getextrema() != ((255, 255),), name
    strips, last = (Image.open(tmp_path / "pocket" / path) for path in ("figures/figure13.png", LAST_SAMPLES))
    below = strips.height - strips.height // SNAPSHOTS  # the finished run
    row = (0, below, strips.width, strips.height)
    assert strips.crop(row).tobytes() == last.crop((0, 0, strips.width, strips.height - below)).tobytes()
    result = json.loads((tmp_path / "pocket" / "cifar10" / "evaluation" / "quality" / "result.json").read_text())
    shares = [entry["share"] for entry in result["tables"]["samples_by_class"].values()]
    seen = max(range(10), key=lambda k: shares[k])
    assert figures.best_and_worst(f"figure{15 + seen}", tmp_path / "pocket" / "cifar10", seen)
    page = (tmp_path / "pocket" / "index.html").read_text()
    assert "Figure 13." in page
    record = json.loads((tmp_path / "pocket" / "records.json").read_text())["runs"]["cifar10"]
    assert list(record["snapshots"]) == [str(4 * k) for k in range(1, SNAPSHOTS + 1)]
    assert record["snapshots"]["40"] == record["metrics"]


def test_figures_name_known_presets():
    for name, one in FIGURES.items():
        assert set(one.runs) <= set(PRESETS), name
    assert [name for name in FIGURES if name not in NAMES] == []


@pytest.mark.slow
def test_files_are_whole_whenever_they_are_there(finished):
    assert not list((finished / "pocket").glob(".*.part"))
    assert os.access(finished / "pocket" / "table7.csv", os.R_OK)


def test_a_training_that_several_presets_share_is_counted_once():
    hour = {"training": {"seconds": 3600.0}, "seed": 0}
    records = {"stl10": hour, "stl10_short_patch8": hour, "cifar10": hour, "cifar10_vit": {"timing": {}}}
    assert training_hours(records, POCKET) == 2
    assert training_hours(records, FULL) == 3
    assert "2.0 hours of training" in pages.footer(records, POCKET)


def test_emphasis_in_a_cell_is_that_of_its_page():
    table = render.html_table(["a"], [["*Hybrid <Models>*"], ["120 steps, **diverged**"]])
    assert "<td><i>Hybrid &lt;Models&gt;</i>" in table
    assert "<td>120 steps, <b>diverged</b>" in table
