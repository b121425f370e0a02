from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from hybvit import cli
from hybvit.cli.evaluate import folder_name
from hybvit.config import fields_in, parse, without_effect
from hybvit.evaluation import suites
from hybvit.presets import PRESETS, preset

from .conftest import QUICK, TINY, hybvit, hybvit_process


def test_help_answers_at_once():
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        helped = hybvit_process("--help")
        seconds.append(time.monotonic() - started)
    assert helped.returncode == 0
    assert all(command in helped.stdout for command in cli.COMMANDS)
    assert min(seconds) < 1


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: hybvit" in capsys.readouterr().out


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.new("L", (20, 20), 90).save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


BAD = {
    "unknown command": (["trian", "digits"], 2, "did you mean train"),
    "unknown preset": (["train", "digit"], 2, "did you mean digits"),
    "misspelt field": (["train", "digits", "--optim.lrr", "3"], 2, "did you mean --optim.lr"),
    "value of another type": (["train", "digits", "--optim.lr", "fast"], 2, "optim.lr"),
    "value out of range": (["train", "digits", "--train.steps", "0"], 2, "train.steps"),
    "abbreviation": (["sample", "{run}", "--ste", "5"], 2, "--ste"),
    "channel count": (["train", "digits", "--model.channels", "3", "--out", "{tmp}/r"], 2, "model.channels is 3"),
    "missing argument": (["classify"], 2, "MODEL"),
    "steps out of range": (["sample", "{run}", "--steps", "5000"], 2, "1..1000"),
    "unknown suite": (["evaluate", "{run}", "--suites", "everything"], 2, "everything"),
    "label without guidance": (["sample", "{run}", "--label", "3"], 2, "--guidance"),
    "guidance that is no number": (["sample", "{run}", "--label", "3", "--guidance", "nan"], 2, "finite"),
    "results below a file": (["evaluate", "{run}", "--out", "{tmp}/text.png/r"], 3, "cannot be written"),
    "root for the digits": (["train", "digits", "--data.root", "{tmp}", "--out", "{tmp}/r"], 2, "data.root"),
    "group that is no mapping": (["evaluate", "{tmp}/flatrun"], 2, "model is 3: it must be a mapping"),
    "negative deviation": (["train", "digits", "--model.position_std", "-1"], 2, "position_std"),
    "two dashes as a value": (["classify", "{run}", "{tmp}/text.png", "--top=--"], 2, "--top: '--' is no value"),
    "unknown label": (["sample", "{run}", "--label", "cat", "--guidance", "1"], 2, "cat"),
    "missing data folder": (["train", "digits", "--data", "{tmp}/none", "--out", "{tmp}/r"], 3, "none: no such folder"),
    "missing model": (["classify", "{tmp}/none", "x.png"], 3, "none"),
    "missing image": (["classify", "{run}", "{tmp}/none.png"], 3, "none.png: no such file"),
    "text named png": (["classify", "{run}", "{tmp}/text.png"], 3, "text.png"),
    "output folder is a file": (
        ["train", "digits", "--out", "{tmp}/text.png/run"],
        3,
        "text.png/run: cannot be written",
    ),
    "output picture below a file": (
        ["sample", "{run}", "-n", "1", "--steps", "1", "--out", "{tmp}/text.png/g.png"],
        3,
        "cannot be written",
    ),
    "output is no picture": (["sample", "{run}", "--out", "{tmp}/grid.doc"], 2, "grid.doc"),
    "unknown data set": (["datasets", "cifar"], 2, "it must be one of digits"),
    "unknown data name": (["train", "digits", "--data.name", "cifar"], 2, "data.name is 'cifar': it must be one of digits"),
    "probability over 1": (["train", "digits", "--data.mixing", "1.5"], 2, "data.mixing is 1.5"),
    "negative workers": (["train", "digits", "--data.workers", "-1"], 2, "data.workers is -1"),
    "data that needs a login": (
        ["train", "imagenet32", "--data.root", "{tmp}/badrun", "--out", "{tmp}/r"],
        3,
        "cannot download it",
    ),
    "missing manifest": (["train", "paper_32", "--data", "{tmp}/none.csv", "--out", "{tmp}/r"], 3, "none.csv: no such"),
    "missing shards": (
        ["train", "paper_32", "--data", "{tmp}/a-{{0..1}}.tar", "--out", "{tmp}/r"],
        3,
        "a-0.tar: no such shard",
    ),
    "a folder without images": (["classify", "{run}", "{tmp}/empty"], 3, "empty: no image files in this folder"),
    "show-data of nothing": (["show-data", "paper_32", "--data", "{tmp}/none"], 3, "none: no such folder"),
    "a list": (
        ["train", "digits", "--optim.milestones", "0.05"],
        2,
        "optim.milestones is 0.05: it must be a list such as [0.05,0.1]",
    ),
    "a choice": (["train", "digits", "--objective.norm", "l3"], 2, "objective.norm is l3: it must be one of l1, l2"),
    "a number or none": (["train", "digits", "--objective.alpha_end", "x"], 2, "it must be a number or null"),
    "guidance without conditioning": (["sample", "{run}", "--guidance", "2"], 2, "--label and --guidance together"),
    "judged with guidance": (
        ["evaluate", "{run}", "--guidance", "2", "--out", "{tmp}"],
        2,
        "network with model.label_conditioning",
    ),
    "a table of tabs": (
        ["train", "digits", "--data", "{tmp}/a.tsv"],
        3,
        "a.tsv: a file of a kind that --data does not read: save",
    ),
    "one JSON document": (["train", "digits", "--data", "{tmp}/a.json"], 3, "to a .jsonl file"),
    "an archive of another kind": (["train", "digits", "--data", "{tmp}/a.tar.gz"], 3, "unpack it"),
    "an empty path": (["sample", "{run}", "--out", ""], 2, "--out: an empty path"),
    "an empty data path": (["train", "digits", "--data", " "], 2, "--data: an empty path"),
    "a label that is too large": (["sample", "{run}", "--label", "99", "--guidance", "1"], 2, "0 to 9"),
    "a number too small for arithmetic": (["train", "digits", "--data.held_out", "1e-320"], 2, "data.held_out is 9.99989e-321"),
    "a number of many digits": (["train", "digits", "--optim.warmup_steps", "1" * 400], 2, "an integer of many digits"),
    "a number too large for arithmetic": (["train", "digits", "--objective.alpha", "1e308"], 2, "objective.alpha is 1e+308"),
    "more samples than there are numbers": (["sample", "{run}", "-n", "9" * 30], 2, "-n: 99999999999999999999: at most"),
    "test images at no place": (["train", "digits", "--data.test_root", "", "--out", "{tmp}/r"], 2, "data.test_root is empty"),
    "a quote that is not closed": (["reproduce", "table1", "--look", "--samples '5", "--dry-run"], 2, "No closing quotation"),
    "a budget without end": (["reproduce", "v2", "--budget", "inf", "--dry-run"], 2, "at most 1e+06"),
    "more shards than work": (["reproduce", "table1", "--shard", "1/99999999999999", "--dry-run"], 2, "it must be i/n"),
    "images of a billion pixels": (["show", "cifar10", "--model.image_size", "65536"], 2, "image_size"),
    "broken config": (["evaluate", "{tmp}/badrun"], 2, "model.dimm: did you mean dim"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_with_the_right_code(case, tmp_path, tiny_run, capsys):
    arguments, code, named = case
    for name in ("text.png", "a.tsv", "a.json", "a.tar.gz"):
        (tmp_path / name).write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "badrun").mkdir()
    (tmp_path / "badrun" / "config.yaml").write_text("model: {dimm: 3}")
    (tmp_path / "flatrun").mkdir()
    (tmp_path / "flatrun" / "config.yaml").write_text("model: 3")
    filled = [word.format(run=tiny_run, tmp=tmp_path) for word in arguments]
    assert cli.main(filled) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error


def test_fields_that_do_nothing_are_named(tmp_path, capsys):
    idle = ["--objective.noisy_labels=0.1", "--optim.beta2=0.99", "--optim.drop=0.5", "--jem.steps=3", "--network.width=4"]
    run = ["train", "digits", "--objective", "genvit", "--out", str(tmp_path / "run"), *TINY, "--train.steps=1"]
    assert cli.main([*run, *idle]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert warnings == [
        "warning: --objective.noisy_labels does nothing with objective.kind genvit",
        "warning: --optim.drop does nothing with optim.schedule cosine",
        "warning: --jem.steps does nothing with objective.kind genvit",
        "warning: --network.width does nothing with network.name vit",
    ]


@pytest.mark.parametrize(
    ("name", "fields", "lines"),
    [
        ("fashion_mnist_v2", ["--objective.kind=vit", "--train.batch_size=7", "--objective.label_dropout=0.2"],
         ["objective.label_dropout does nothing with objective.kind vit",
          "train.batch_size does nothing with objective.kind vit and train.labelled_batch_size 64"]),
        ("digits", ["--objective.kind=vit", "--train.batch_size=7", "--model.pixel_readout=linear"],
         ["model.pixel_readout does nothing with objective.kind vit"]),
        ("digits", ["--objective.label_dropout=0.2"],
         ["objective.label_dropout does nothing with model.label_conditioning False"]),
        ("cifar10_wrn28_10", ["--model.depth=7", "--model.num_classes=7"],
         ["model.depth does nothing with network.name wide_resnet"]),
    ],
)  # fmt: skip
def test_each_field_that_does_nothing_is_named_once(name, fields, lines):
    assert without_effect(parse(fields, preset(name)), fields_in(fields)) == [f"--{line}" for line in lines]


@pytest.mark.parametrize(("warmup", "said"), [(600, "never reaches"), (120, "takes more than half"), (61, "half"), (60, "")])
def test_a_warm_up_that_is_longer_than_half_of_the_run_is_named(tmp_path, capsys, monkeypatch, warmup, said):
    monkeypatch.setattr("hybvit.cli.train.train", lambda cfg, out: None)
    fields = ["--train.steps=120", f"--optim.warmup_steps={warmup}"]
    assert cli.main(["train", "digits", "--out", str(tmp_path / "run"), *fields]) == 0
    shown = capsys.readouterr().out
    assert (f"optim.warmup_steps is {warmup}, of 120 steps" in shown) == bool(said)
    assert said in shown


def test_an_internal_error_exits_1_and_debug_shows_where(monkeypatch, capsys):
    monkeypatch.setattr("hybvit.cli.presets.main", lambda arguments: {}["x"])
    assert cli.main(["presets"]) == 1
    assert "internal error" in capsys.readouterr().err
    assert cli.main(["presets", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.slow
def test_quiet_leaves_warnings_and_answers(tiny_run, picture, tmp_path, capsys):
    words = ["train", "digits", "--quiet", *TINY, "--train.steps=1", "--optim.nesterov=true", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"warning: .*nesterov.*\n", out)
    assert err == ""
    assert cli.main(["--quiet", "sample", str(tiny_run), "-n", "2", "--steps=2", "--out", str(tmp_path / "grid.png")]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main(["classify", str(tiny_run), str(picture), "--quiet"]) == 0
    assert picture.name in capsys.readouterr().out


def test_presets_and_show(capsys):
    assert cli.main(["presets"]) == 0
    assert "fashion_mnist_pocket" in capsys.readouterr().out
    assert cli.main(["show", "paper_32"]) == 0
    said = capsys.readouterr().out
    assert f"# {PRESETS['paper_32'].summary}\n# 11,185,068 parameters" in said
    assert cli.main(["show", "digits_paper", "--model.depth", "1", "--jem.steps", "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("# digits_paper with changed model.depth, jem.steps\n")  # its summary would be of another recipe
    assert "depth: 1\n" in said
    assert "# --jem.steps does nothing with objective.kind hybvit\n" in said


@pytest.mark.slow
def test_classify(tiny_run, picture, capsys):
    assert cli.main(["classify", str(tiny_run), str(picture), str(picture), "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["image"] == second["image"]
    for name in ("log_density", "probabilities"):  # equal rows of a batch may differ in the last bit
        assert first[name] == pytest.approx(second[name], abs=1e-5)
    assert first["label"] in "0123456789"
    assert next(iter(first["probabilities"])) == first["label"]
    assert cli.main(["classify", str(tiny_run), str(picture), "--top", "1"]) == 0
    assert "log density" in capsys.readouterr().out
    shutil.copyfile(picture, picture.parent / "other.png")
    assert cli.main(["classify", str(tiny_run), str(picture.parent), str(picture), "--json"]) == 0  # the folder's first
    named = [Path(json.loads(line)["image"]).name for line in capsys.readouterr().out.splitlines()]
    assert named == ["grey.png", "other.png", "grey.png"]
    shutil.copyfile(picture, picture.parent / "a longer name.png")
    assert cli.main(["classify", str(tiny_run), str(picture.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.index("log density") for line in lines[-3:]}) == 1


def test_a_line_is_cut_between_words_for_a_terminal_alone(capsys, monkeypatch):
    assert cli.main(["datasets", "cifar100"]) == 0
    whole = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.main(["datasets", "cifar100"]) == 0
    cut = capsys.readouterr().out
    assert max(map(len, whole.splitlines())) > 600 > 60 >= max(map(len, cut.splitlines()))
    assert whole.split() == cut.split()
    assert {line[:15].strip() for line in cut.splitlines()} == {"cifar100", ""}


@pytest.mark.slow
def test_sample_writes_a_grid_or_single_files(tiny_run, tmp_path, capsys):
    assert cli.main(["sample", str(tiny_run), "-n", "9", "--steps", "2", "--out", str(tmp_path / "g.png")]) == 0
    assert Image.open(tmp_path / "g.png").size == (3 * 66 + 2, 3 * 66 + 2)
    assert cli.main(["sample", str(tiny_run), "-n", "2", "--steps", "2", "--folder", str(tmp_path / "many")]) == 0
    assert [p.name for p in sorted((tmp_path / "many").glob("[!.]*"))] == ["000000.png", "000001.png"]
    assert Image.open(tmp_path / "many" / "000000.png").size == (8, 8)
    again = ["sample", str(tiny_run), "--steps", "2", "--folder", str(tmp_path / "many"), "-n"]
    assert cli.main([*again, "3"]) == 0  # replaces both
    capsys.readouterr()
    assert cli.main([*again, "2"]) == 3
    assert "holds 000002.png" in capsys.readouterr().err
    assert (
        cli.main(
            [
                "sample",
                str(tiny_run),
                "-n",
                "1",
                "--steps",
                "2",
                "--label",
                "3",
                "--guidance",
                "1",
                "--out",
                str(tmp_path / "g.png"),
            ]
        )
        == 0
    )


def test_what_is_no_run_folder_is_evaluated_under_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "digits", "--limit", "3", "--suites", "accuracy"]) == 0
    assert (tmp_path / "evaluated" / "digits" / "results.json").is_file()


def test_results_are_valid_json_where_a_class_was_not_seen(tiny_run, tmp_path):
    assert cli.main(["evaluate", str(tiny_run), "--limit", "3", "--suites", "accuracy", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert None in record["tables"]["accuracy_per_class"].values()


def test_a_library_s_value_error_is_not_blamed_on_the_user(monkeypatch, capsys):
    monkeypatch.setattr("hybvit.cli.presets.main", lambda arguments: json.loads("{"))
    assert cli.main(["presets"]) == 1
    assert "internal error" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_evaluate_leaves_out_what_makes_no_sense(tmp_path, capsys):
    for kind, absent in (("vit", "samples/"), ("genvit", "test/")):
        out = tmp_path / kind
        assert cli.main(["train", "digits", "--objective", kind, "--out", str(out), "--train.steps=2", *TINY]) == 0
        assert cli.main(["evaluate", str(out), *QUICK]) == 0
        metrics = json.loads((out / "results.json").read_text())["metrics"]
        assert not any(name.startswith(absent) for name in metrics)
        assert "left out" in capsys.readouterr().out


@pytest.mark.slow
def test_a_folder_of_images_trains_classifies_and_samples(tiny_run, tmp_path, capsys):
    for i in range(6):
        for name, shade in (("dark", 20), ("light", 230)):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (31 + i, 40), (shade, shade, shade)).save(tmp_path / "photos" / name / f"{i}.jpg")
    out = tmp_path / "run"
    arguments = [
        "--data",
        str(tmp_path / "photos"),
        "--out",
        str(out),
        "--train.steps=2",
        "--model.image_size=16",
        *TINY,
    ]
    assert cli.main(["train", "paper_32", *arguments]) == 0
    assert cli.main(["classify", str(out), str(tmp_path / "photos" / "dark" / "0.jpg"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["label"] in ("dark", "light")
    assert cli.main(["sample", str(out), "-n", "1", "--steps", "2", "--out", str(tmp_path / "g.png")]) == 0
    assert Image.open(tmp_path / "g.png").mode == "RGB"
    assert cli.main(["evaluate", str(tiny_run), "--data", str(tmp_path / "photos"), "--out", str(tmp_path)]) == 2
    assert f"{tmp_path / 'photos'}: the data have 2 classes, the model has 10" in capsys.readouterr().err


def test_a_file_name_with_a_line_break_stays_on_its_line(tiny_run, tmp_path, capsys):
    good, *bad = (tmp_path / f"a\n{name}.png" for name in ("good", "bad", "worse"))
    Image.new("L", (8, 8), 90).save(good)
    assert cli.main(["classify", str(tiny_run), str(good), *map(str, bad)]) == 3
    said = capsys.readouterr()
    assert (said.out.count("\n"), said.err.count("\n")) == (1, 2)
    assert all(line.startswith("hybvit: ") for line in said.err.splitlines())


# Options that contradict each other, and places that are shared


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train digits --data a --data.root b", "--data and --data.root name the images: leave one out"),
        ("train digits --objective vit --objective.kind genvit", "--objective and --objective.kind name the objective"),
        ("finetune digits --data a --steps 5 --train.steps 6", "--steps and --train.steps name the training steps"),
        ("edit digits a.png --into 3 --seed 5", "--seed is of the noise of --box, --mask and --vary"),
        ("show-data digits --out pictures/train --data pictures", "lies among the images of"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures" / "train" / "0").mkdir(parents=True)
    assert hybvit("sample", "digits", "-n", "3", "--steps", "1", "--folder", "pictures/train/0").returncode == 0
    shutil.copytree("pictures/train", "pictures/test")
    shutil.copyfile("pictures/train/0/000000.png", "a.png")
    before = sorted(map(str, tmp_path.rglob("*")))
    done = hybvit(*words.split())
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_grid_is_drawn_beside_single_images_where_it_is_asked_for(tmp_path):
    words = ("sample", "digits", "-n", "2", "--steps", "1", "--folder", tmp_path / "drawn", "--out", tmp_path / "grid.png")
    done = hybvit(*words)
    assert done.returncode == 0
    assert f"{tmp_path / 'drawn'} and {tmp_path / 'grid.png'}: 2 images" in done.stdout
    assert {path.name for path in tmp_path.rglob("*.png")} == {"000000.png", "000001.png", "grid.png"}


def test_an_empty_folder_loses_no_answer(tmp_path):
    hybvit("sample", "digits", "-n", "1", "--steps", "1", "--out", tmp_path / "one.png")
    (tmp_path / "empty").mkdir()
    done = hybvit("classify", "digits", tmp_path / "empty", tmp_path / "one.png")
    assert done.returncode == 3
    assert str(tmp_path / "one.png") in done.stdout
    assert "empty: no image files in this folder" in done.stderr


def test_a_plan_is_the_result_of_a_dry_run(tmp_path):
    assert "cifar10_jem" in hybvit("reproduce", "table1", "--dry-run", "--quiet", "--out", tmp_path).stdout


def test_models_of_different_places_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = ("digits", "me/digits", "a.py:build", "b.py:build", "timm:resnet18", "torchvision:resnet18", "a/model", "b/model")
    names = [folder_name(model) for model in models]
    assert len(set(names)) == len(names)
    assert names[0] == folder_name("./digits/").rpartition("-")[2] == "digits"
    assert folder_name("me/digits@v1") == "me-digits-v1"
    assert folder_name("timm:resnet18@a/w.pth") != folder_name("timm:resnet18@b/w.pth") != folder_name("timm:resnet18")
    assert not any(set("/:\\") & set(name) for name in names)


@pytest.mark.slow
def test_an_evaluation_that_was_interrupted_resumes(tiny_run, tmp_path, monkeypatch):
    words = ("evaluate", tiny_run, *QUICK, "--suites", "accuracy,quality", "--out", tmp_path)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(suites.SUITES, "quality", suites.SUITES["quality"]._replace(run=stopped))
        done = hybvit(*words)
    assert done.returncode == 75
    assert done.stderr == f"hybvit: {tmp_path}: interrupted; finished suites are kept, the same command resumes\n"
    assert hybvit(*words).returncode == 0
