"""Fine-tuning: new classes on a model's weights, all of them or only those of the classes; and probes of its features."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import hybvit
from hybvit.checkpoint import read_tensors
from hybvit.config import load_config, override
from hybvit.errors import ConfigError
from hybvit.hub import bundled
from hybvit.metrics.probe import linear_probe, nearest_neighbors
from hybvit.networks import build_network
from hybvit.presets import preset
from hybvit.training.finetune import finetuning
from hybvit.training.loop import OF_CLASSES, freeze
from hybvit.training.optim import build_optimizers

from .conftest import TINY, opened
from .conftest import hybvit as command

SHORT = (
    "--steps=10",
    "--train.checkpoint_every=5",
    "--train.preview_every=0",
    "--train.log_every=5",
    "--train.batch_size=4",
    "--train.labelled_batch_size=4",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Dark and light images, of two new classes."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    for name, shade in (("dark", 20), ("light", 220)):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (20 + i, 16), (shade + i,) * 3).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def frozen(tiny_run, photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "frozen"
    done = command("finetune", tiny_run, "--data", photos, "--freeze", "--out", out, *SHORT)
    assert done.returncode == 0, done.stderr
    assert f"next: hybvit evaluate {out} --data {photos} --report" in done.stderr
    return out


def test_fine_tuning_on_the_own_classes_keeps_their_order(tmp_path):
    """In the order of their names, the read-out of a class would start as that of another."""
    model = hybvit.load("fashion-mnist", "cpu")
    assert list(model.classes) != sorted(model.classes)
    lines = [f"{k}.png,{name}" for k, name in enumerate(model.classes)]
    for k in range(len(lines)):
        Image.new("L", (28, 28), 20 * k).save(tmp_path / f"{k}.png")
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    cfg = override(finetuning(model.cfg, "fashion-mnist"), data={"name": "manifest", "root": str(tmp_path / "train.csv")})
    data = opened(override(cfg, data={"test_root": str(tmp_path / "test.csv")}))
    assert data.classes == model.classes
    assert data.train.labels.tolist() == list(range(10))


def test_a_frozen_network_keeps_all_weights_but_those_of_the_classes(tiny_run, frozen):
    before, cfg = hybvit.load(tiny_run, "cpu").net.state_dict(), load_config(frozen / "config.yaml")
    assert (cfg.optim.freeze, cfg.train.init, cfg.data.classes) == (True, str(tiny_run), ("dark", "light"))
    start, end = (frozen / "checkpoints" / f"step-{step:08d}" for step in (5, 10))
    for name in ("network", "ema"):
        first, last = (read_tensors(folder / f"{name}.safetensors") for folder in (start, end))
        for key, weight in last.items():
            assert torch.equal(weight, first[key]) == (not key.startswith(OF_CLASSES)), (name, key)
            assert key.startswith(OF_CLASSES) or torch.equal(weight, before[key]), (name, key)
    assert hybvit.load(frozen, "cpu").net.state_dict()["class_readout.1.weight"].shape == (2, 16)


def test_a_frozen_run_resumes_to_the_same_bits(frozen, tiny_run, photos, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(frozen, again)
    shutil.rmtree(again / "checkpoints" / "step-00000010")
    done = command("finetune", tiny_run, "--data", photos, "--freeze", "--out", again, *SHORT)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 5 of 10 steps" in done.stdout
    expected = hybvit.load(frozen, "cpu").net.state_dict()
    for name, weight in hybvit.load(again, "cpu").net.state_dict().items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.slow
def test_the_result_is_a_run_like_any_other(tiny_run, photos, tmp_path):
    out = tmp_path / "whole"
    options = ("--optim.lr", "0.01", "--optim.beta2=0.9")
    done = command("finetune", tiny_run, "--data", photos, "--out", out, *SHORT, "--steps=40", *options)
    assert done.returncode == 0, done.stderr
    model = hybvit.load(out, "cpu")
    before = hybvit.load(tiny_run, "cpu").net.state_dict()
    changed = {
        name for name, weight in model.net.state_dict().items() if name not in before or not torch.equal(weight, before[name])
    }
    assert {"patch_embedding.weight", "layers.0.attention.qkv.weight", "class_readout.1.weight"} <= changed
    assert model.sample(2, steps=2).shape == (2, 1, 8, 8)
    classified = command("classify", out, photos / "dark" / "0.png", photos / "light" / "0.png")
    assert [line.split()[1] for line in classified.stdout.splitlines() if ".png" in line] == ["dark", "light"], classified
    judged = command("evaluate", out, "--data", photos, "--suites", "accuracy,probe")
    assert judged.returncode == 0, judged.stderr
    assert "probe/linear_accuracy" in judged.stdout
    assert "probe/knn_accuracy" in judged.stdout


def test_what_cannot_be_fine_tuned_is_refused(tiny_run, photos, tmp_path):
    for words, said in (
        ((tiny_run,), "--data"),
        ((tiny_run, "--data", photos, "--freeze", "--objective", "genvit"), "optim.freeze is for network.name vit"),
        ((tiny_run, "--data", photos, "--model.dim", "32"), "its model.dim is 16, this run's 32"),
        ((tmp_path / "none", "--data", photos), "no such folder"),
    ):
        done = command("finetune", *words, "--out", tmp_path / "out")
        assert done.returncode in (2, 3, 5)
        assert said in done.stderr
        assert not (tmp_path / "out").exists()


def test_what_a_model_was_trained_with_does_not_bind_a_fine_tuning():
    cfg = override(hybvit.preset("digits"), data={"labelled": 0.1}, train={"batch_size": 96, "accumulate": 3})
    tuned = finetuning(cfg, "digits")
    assert (tuned.data.labelled, tuned.train.accumulate, tuned.train.batch_size) == (1.0, 1, 64)
    generator = override(hybvit.preset("digits"), objective={"kind": "genvit"})
    assert finetuning(generator, "x", freeze=True, kind="vit").objective.kind == "vit"


@pytest.mark.slow
def test_fields_are_judged_with_the_objective_that_is_asked_for(tmp_path):
    digits = ["--data.name=digits", "--model.image_size=8", "--model.patch_size=2", "--model.channels=1"]
    words = ["--optim.freeze", "true", "--train.steps=1", *digits, *TINY, "--out", tmp_path / "run"]
    assert "optim.freeze is for" in command("train", "cifar10_genvit", *words).stderr
    done = command("train", "cifar10_genvit", "--objective", "vit", *words)
    assert done.returncode == 0, done.stderr
    twice = command("train", "cifar10_genvit", "--objective", "vit", "--objective.kind", "vit", *words)
    assert (twice.returncode, twice.stderr) == (
        2,
        "hybvit: --objective and --objective.kind name the objective: leave one out\n",
    )


@pytest.mark.parametrize("name", bundled())
def test_nothing_more_needs_to_be_chosen(name):
    model = hybvit.load(name, "cpu")
    cfg = finetuning(model.cfg, name)
    assert cfg.model == model.cfg.model
    assert (cfg.data.name, cfg.data.classes, cfg.train.init) == ("folder", model.cfg.data.classes, name)
    assert (cfg.objective.alpha, cfg.objective.alpha_end) == ({"cifar10": 1.0, "digits": 5.0, "fashion-mnist": 0.5}[name], None)
    assert (cfg.train.batch_size, cfg.train.labelled_batch_size) == (64, 64)
    assert cfg.optim.lr == model.cfg.optim.lr == finetuning(model.cfg, name, freeze=True).optim.lr / 10


def test_the_optimizers_take_what_is_not_frozen():
    cfg = preset("fashion_mnist_v2")
    net = build_network(override(cfg, model={"dim": 32, "depth": 2, "class_depth": 1}))
    adamw, muon = build_optimizers(net, cfg.optim)
    assert sum(len(group["params"]) for group in (*adamw.param_groups, *muon.param_groups)) == len(list(net.parameters()))
    freeze(net)
    (adamw,) = build_optimizers(net, cfg.optim)
    names = {id(weight): name for name, weight in net.named_parameters()}
    assert [names[id(weight)] for weight in adamw.param_groups[0]["params"]] == [
        "label_embedding.weight", "class_readout.1.weight", "class_readout.1.bias",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"optim\.freeze"):
        override(preset("cifar10_wrn28_10"), optim={"freeze": True})


def test_probes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    features = (rng.normal(size=(90, 5)) + 1.2 * np.eye(5)[labels]).astype(np.float32) * [1, 1, 1, 100, 0.01]
    train, test = features[:60].astype(np.float32), features[60:].astype(np.float32)
    mean, std = train.astype(np.float64).mean(axis=0), train.astype(np.float64).std(axis=0)
    fitted = LogisticRegression(max_iter=1000).fit((train - mean) / std, labels[:60])
    given = torch.from_numpy(train), torch.from_numpy(labels[:60]), torch.from_numpy(test)
    assert linear_probe(*given).tolist() == fitted.predict((test - mean) / std).tolist()
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test)]
    neighbors = KNeighborsClassifier(7).fit(units[0], labels[:60])
    assert nearest_neighbors(*given, k=7).tolist() == neighbors.predict(units[1]).tolist()
    assert nearest_neighbors(*(part[:5] for part in given)).tolist() == [given[1][:5].mode().values.item()] * 5
