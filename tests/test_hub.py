"""The hub: what is pushed comes back equal, of the revision that was asked for, and nothing is unpickled."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest
import yaml

import hybvit
from hybvit import checkpoint
from hybvit.config import override, to_dict
from hybvit.errors import CheckpointError, ConfigError
from hybvit.hub import CONFIG_JSON, model_card
from hybvit.method.vit import HybViT
from hybvit.model import HybridModel
from hybvit.model.weights import fingerprint_of
from hybvit.presets import preset

from .conftest import hybvit as command
from .hub_server import TOKEN, serving

RESULTS = {
    "metrics": {
        "test/accuracy": {"value": 0.9835, "n": 364, "low": 0.9645, "high": 0.9924},
        "fidelity/fd_cnn-digits_5000": {"value": 0.5417, "n": 5000},
        "speed/parameters": {"value": 617419, "n": 1},
    }
}
FILES = ["README.md", "config.json", "config.yaml", "manifest.json", "model.safetensors"]
VISIT = """  # in a process of its own: the hub's address is read when the library is imported
import json, sys, torch, hybvit
from hybvit import cli
from hybvit.checkpoint import digest_of_weights
from hybvit.errors import DataError

def digest(model):
    return digest_of_weights(model.net.state_dict())

first, second, bare = sys.argv[1:]
codes = [cli.main(["push", folder, "me/digits", "--message", folder]) for folder in (first, second)]
codes.append(cli.main(["push", first, "me/digits", "--branch", "old"]))
codes.append(cli.main(["show", "digits"]))
newest = hybvit.load("me/digits", "cpu")
address = hybvit.HybridModel.push_to_hub(hybvit.load(bare, "cpu"), "me/bare", private=True)
pinned = address.rpartition("/")[2]
found = {
    "codes": codes, "newest": digest(newest), "by name": digest(hybvit.load("me/digits@old", "cpu")),
    "by argument": digest(hybvit.HybridModel.from_pretrained("me/digits", revision="old")),
    "pinned": digest(hybvit.load(f"me/bare@{pinned}", "cpu")), "refused": [],
}
from huggingface_hub import constants
constants.ENDPOINT = "http://127.0.0.1:9"  # nobody answers
found["unanswered"] = cli.main(["push", first, "me/digits"])
found["offline"] = digest(hybvit.HybridModel.from_pretrained("me/digits", local_files_only=True))
for source in ("me/digits@nowhere", "me/pickled", "me/absent"):
    try:
        constants.ENDPOINT = __import__("os").environ["HF_ENDPOINT"]
        hybvit.load(source)
    except DataError as error:
        found["refused"].append(str(error))
print(json.dumps(found))
"""


def a_model(seed: int) -> HybridModel:
    import torch

    torch.manual_seed(seed)
    cfg = override(preset("digits"), model={"dim": 16, "depth": 2, "heads": 2}, data={"root": "/home/me/secret"})
    return HybridModel(HybViT(cfg.model), cfg, "cpu")


@pytest.mark.slow
def test_what_is_pushed_comes_back_in_its_revision_and_offline(tmp_path):
    digests = []
    for seed, name in enumerate(("first", "second", "bare")):
        model = a_model(seed)
        model.save_pretrained(tmp_path / name)
        digests.append(checkpoint.digest_of_weights(model.net.state_dict()))
    (tmp_path / "first" / "results.json").write_text(json.dumps(RESULTS))
    with serving() as hub:
        hub.commit("me/pickled", "main", {"pytorch_model.bin": b"anything", "config.json": b"{}"})
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        folders = [str(tmp_path / name) for name in ("first", "second", "bare")]
        run = subprocess.run([sys.executable, "-c", VISIT, *folders], capture_output=True, text=True, env=env, timeout=300)
        assert run.returncode == 0, run.stderr
        found = json.loads(run.stdout.splitlines()[-1])
        pushed = {repo: hub.commits[sha] for repo, sha in hub.branches.items()}
    assert found["codes"] == [0, 0, 0, 0]
    assert found["unanswered"] == 3
    (unanswered,) = (line for line in run.stderr.splitlines() if line.startswith("hybvit: "))
    assert unanswered.startswith("hybvit: me/digits: the upload to the hub failed (")
    assert found["newest"] == found["offline"] == digests[1]
    assert found["by name"] == found["by argument"] == digests[0]
    assert found["pinned"] == digests[2]
    assert sorted(pushed["me/digits", "old"]) == sorted(pushed["me/bare", "main"]) == FILES
    nowhere, pickled, absent = found["refused"]
    assert nowhere.startswith("me/digits@nowhere: no such folder, and the download from the hub failed (")
    assert pickled == "me/pickled: on the hub, but not a model of hybvit (no manifest.json in it)"
    assert absent.startswith("me/absent: no such folder, and the download from the hub failed (")
    assert not any("pytorch_model.bin" in line for line in hub.asked)
    card = pushed["me/digits", "old"]["README.md"].decode()
    assert "secret" not in card + pushed["me/digits", "old"]["config.json"].decode()
    assert "accuracy" in card


def test_the_card_has_the_results_as_the_hub_reads_them(tmp_path):
    from huggingface_hub import ModelCard

    model = a_model(0)
    model.save_pretrained(tmp_path / "model", repo_id="me/digits", results=RESULTS)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.library_name == "hybvit"
    assert card.data.pipeline_tag == "image-classification"
    accuracy, distance = card.data.eval_results
    assert (accuracy.metric_name, accuracy.metric_type, accuracy.metric_value) == ("test/accuracy", "accuracy", 0.9835)
    assert (accuracy.dataset_type, distance.task_type) == ("digits", "unconditional-image-generation")
    assert "| `test/accuracy` | 0.9835 | 0.9645 to 0.9924 | 364 |" in card.text
    assert 'hybvit.load("me/digits")' in card.text
    assert "speed/" not in card.content
    assert "model-index" not in model_card(to_dict(model.cfg), "digits")
    assert "calibrated" not in card.text
    hybvit.load("digits", "cpu").save_pretrained(tmp_path / "bundled")
    assert "calibrated, by 185 images (half of the test images of digits)" in (tmp_path / "bundled" / "README.md").read_text()


def test_an_export_has_its_configuration_in_json_too_and_a_card_that_may_be_edited(tmp_path):
    model = a_model(0)
    model.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == FILES
    stored = json.loads((tmp_path / "model" / CONFIG_JSON).read_text())
    assert stored.pop("model_type") == "hybvit"
    assert stored.pop("architectures") == ["HybViT"]
    assert stored == yaml.safe_load((tmp_path / "model" / "config.yaml").read_text())
    assert stored["data"]["root"] is None
    (tmp_path / "model" / "README.md").write_text("mine")
    assert to_dict(hybvit.load(tmp_path / "model", "cpu").cfg)["model"] == to_dict(model.cfg)["model"]
    (tmp_path / "model" / CONFIG_JSON).write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json: damaged"):
        hybvit.load(tmp_path / "model")


class Opened:
    def __reduce__(self):
        return open, ("/nonexistent/was/unpickled",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt", "weights.pth"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_folder_with_pickles_is_refused_in_one_line(tmp_path, name, beside):
    if beside:
        a_model(0).save_pretrained(tmp_path / "model")
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / name).write_bytes(pickle.dumps(Opened()))
    with pytest.raises(CheckpointError) as refused:
        hybvit.load(tmp_path / "model")
    path = tmp_path / "model" / name
    assert str(refused.value) == f"{path}: a pickle, which can run code when it is read: hybvit reads safetensors only"


def test_a_dry_run_lists_the_files_and_asks_nobody(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    a_model(0).save_pretrained(tmp_path / "model")
    done = command("push", tmp_path / "model", "me/digits", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[-1] for line in lines[: len(FILES)]] == FILES
    sizes = {line.split()[-1]: int(line.split()[0].replace(",", "")) for line in lines[: len(FILES)]}
    assert sizes["model.safetensors"] == (tmp_path / "model" / "model.safetensors").stat().st_size
    assert lines[-1] == "dry run: nothing was uploaded to me/digits"
    assert command("push", tmp_path / "model", "digits", "--dry-run").returncode == 2
    assert "digits/results.json\n" in command("push", "digits", "me/digits", "--dry-run").stdout  # a bundled model has results
    for text in ("", "[]", '{"metrics": 3}', '{"metrics": {"a": {"n": 2}}}', '{"metrics": {"a": {"value": 1, "low": "x"}}}'):
        (tmp_path / "results.json").write_text(text)
        refused = command("push", tmp_path / "model", "me/digits", "--dry-run", "--results", tmp_path / "results.json")
        assert refused.returncode == 3
        assert refused.stderr.startswith(f"hybvit: {tmp_path}/results.json: ")


def test_results_of_other_weights_are_not_published(tmp_path):
    folder, model = tmp_path / "model", a_model(0)
    model.save_pretrained(folder)
    settings = {"weights": fingerprint_of(hybvit.load(folder, "cpu"))}
    record = json.dumps({**RESULTS, "suites": {"accuracy": {"settings": settings}}})
    (folder / "results.json").write_text(record)
    assert command("push", folder, "me/digits", "--dry-run").returncode == 0
    with pytest.raises(ConfigError, match=r"holds 'results\.json', which is not of the export"):
        a_model(1).save_pretrained(folder)
    (folder / "results.json").unlink()
    a_model(1).save_pretrained(folder)  # trained further
    (folder / "results.json").write_text(record)
    refused = command("push", folder, "me/digits", "--dry-run")
    assert refused.returncode == 2
    assert f"{folder}/results.json: is of other weights" in refused.stderr
    named = command("push", folder, "me/digits", "--dry-run", "--results", folder / "results.json")
    assert named.returncode == 0
