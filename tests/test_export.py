"""Exported graphs answer as the model does, in onnxruntime, torch.export, plain numpy and a browser."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hybvit as package
from hybvit import hub
from hybvit.checkpoint import write_folder
from hybvit.config import override
from hybvit.data.image_set import to_x
from hybvit.errors import DataError
from hybvit.export import folder as exporting
from hybvit.export.folder import export_graphs, open_graph, quantized, trace
from hybvit.export.graphs import graphs_of, left_out
from hybvit.model import HybridModel, export_folder, run_to_pixels
from hybvit.networks import build_network
from hybvit.presets import preset

from .conftest import hybvit

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "sample_onnx.py"
SIZES = (1, 3, 20)  # of batches; none is that of the tracer


def untrained(name: str = "digits", **groups: dict) -> HybridModel:
    """A small network of a preset, or of the configuration of a bundled model, whose weights are all drawn at random."""
    start = package.load(name, "cpu").cfg if name == "fashion-mnist" else preset(name)
    cfg = override(start, **groups)
    net = build_network(cfg)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draws)
    return HybridModel(net, cfg, "cpu")


@pytest.fixture(scope="session")
def fashion() -> HybridModel:
    """All that the bundled network has, in small: it labels noisy images, and its denoiser takes labels."""
    return untrained("fashion-mnist", model={"dim": 16, "depth": 2, "class_depth": 1})


@pytest.fixture(scope="session")
def in_onnx(fashion, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "fashion"
    export_graphs(fashion, path)
    return path


def answers(model: HybridModel, name: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What the model itself says, by its public methods."""
    with torch.no_grad():
        if name == "denoiser":
            return model.predict_x0(*inputs)
        return model.logits(*inputs) if name == "classifier" else model.net.classify(*inputs)


def assert_equal_for_any_batch(model: HybridModel, path: Path, form: str) -> None:
    about = json.loads((path / "model.json").read_text())
    for name, graph in graphs_of(model).items():
        run = open_graph((path / about["graphs"][name]["file"]).read_bytes(), form)
        for size in SIZES:
            inputs = graph.examples(size)
            if name != "classifier":
                inputs = (inputs[0], torch.linspace(1, 1000, size).long(), *inputs[2:])
            torch.testing.assert_close(run(*inputs), answers(model, name, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_onnx_graphs_answer_as_the_model(fashion, in_onnx):
    assert sorted(p.name for p in in_onnx.iterdir()) == [
        "classifier.onnx", "denoiser.onnx", "manifest.json", "model.json", "noisy_classifier.onnx",
    ]  # fmt: skip
    assert_equal_for_any_batch(fashion, in_onnx, "onnx")


@pytest.mark.slow
def test_products_in_int8_change_the_answers_a_little(fashion, in_onnx):
    content = quantized((in_onnx / "classifier.onnx").read_bytes())
    x = graphs_of(fashion)["classifier"].examples(20)
    expected = answers(fashion, "classifier", x)
    off = (open_graph(content, "onnx")(*x) - expected).abs().max()
    assert b"MatMulInteger" in content
    assert 1e-4 < off < 0.1 * expected.std()


SMALL = {"dim": 16, "depth": 2, "heads": 2}
NETWORKS = {  # name -> preset, changed groups
    "the paper's": ("cifar10", {"model": SMALL}),
    "wide_resnet": ("cifar10", {"network": {"name": "wide_resnet", "depth": 10, "width": 1}, "objective": {"kind": "vit"}}),
    "unet": ("cifar10", {"network": {"name": "unet", "channels": (8, 8), "layers": 1}, "objective": {"kind": "genvit"}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_traced(name):
    start, groups = NETWORKS[name]
    model = untrained(start, **groups)
    for graph_name, graph in graphs_of(model).items():
        inputs = graph.examples(3)
        torch.testing.assert_close(trace(graph).module()(*inputs), answers(model, graph_name, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "graphs"),
    [
        ({"kind": "hybvit", "noisy_labels": 0.5}, ["classifier", "noisy_classifier", "denoiser"]),
        ({"kind": "hybvit"}, ["classifier", "denoiser"]),
        ({"kind": "vit"}, ["classifier"]),
        ({"kind": "genvit"}, ["denoiser"]),
    ],
)
def test_a_model_has_the_graphs_that_it_was_trained_for(objective, graphs):
    model = untrained(objective=objective)
    assert list(graphs_of(model)) == graphs
    assert [line.split(":")[0] for line in left_out(model)] == [
        f"no {name}" for name in ("classifier", "noisy_classifier", "denoiser") if name not in graphs and
        not (name == "noisy_classifier" and len(graphs) == 1)
    ]  # fmt: skip


def test_the_description_is_all_that_a_program_needs(fashion):
    about = exporting.describe(fashion, graphs_of(fashion), "onnx")
    assert json.loads(exporting.to_json(about)) == about
    assert about["classes"][9] == "Ankle boot"
    assert about["image_shape"] == [1, 28, 28]
    assert about["no_label"] == 10
    assert torch.equal(torch.tensor(about["alpha_bar"], dtype=torch.float64), fashion.diffusion.alpha_bar)
    assert about["graphs"]["denoiser"] == {
        "file": "denoiser.onnx",
        "inputs": {
            "x_t": {"dtype": "float32", "shape": ["batch", 1, 28, 28], "range": None},
            "t": {"dtype": "int64", "shape": ["batch"], "range": [1, 1000]},
            "y": {"dtype": "int64", "shape": ["batch"], "range": [0, 10]},
        },
        "outputs": {"x0": {"dtype": "float32", "shape": ["batch", 1, 28, 28], "range": None}},
    }
    assert about["graphs"]["classifier"]["inputs"]["x"]["range"] == [-1, 1]


def test_calibrated_probabilities_follow_from_the_description():
    model = untrained(model=SMALL)
    pixels = torch.randint(256, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    model.calibrate(pixels, torch.arange(60) % 10)
    about = exporting.describe(model, graphs_of(model), "onnx")
    logits = model.logits(to_x(pixels)).double().detach().numpy() * about["scale"] + about["bias"]
    powers = np.exp(logits)
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), model.predict(pixels).probabilities, atol=1e-6)
    assert not np.allclose(about["scale"], 1)


def example():
    spec = importlib.util.spec_from_file_location("sample_onnx", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("label", [None, 9])
def test_numpy_and_onnxruntime_alone_draw_the_same_images(fashion, in_onnx, label):
    labels = None if label is None else torch.full((6,), label)
    noise = torch.randn(6, 1, 28, 28)
    denoise = fashion.predict_x0 if labels is None else fashion.conditional(labels, 0.0)
    ours = run_to_pixels(denoise, fashion.diffusion, lambda: noise, "dpmpp_2m", 8)
    theirs = example().sample(in_onnx, noise.numpy(), 8, None if labels is None else labels.numpy())
    assert np.abs(theirs.astype(int) - ours.int().numpy()).max() <= 1
    assert theirs.std() > 50


def test_the_example_needs_numpy_and_onnxruntime_alone():
    text = EXAMPLE.read_text(encoding="utf-8")
    imported = set()
    for node in ast.walk(ast.parse(text)):
        imported |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        imported |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime"}
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize("words", [[], [str(ROOT)], [str(ROOT), "x.npy"]])
def test_the_example_says_what_it_takes(words):
    done = subprocess.run([sys.executable, EXAMPLE, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "usage: sample_onnx.py FOLDER OUT.npy, with the FOLDER of `hybvit export`\n")


@pytest.mark.slow
def test_the_example_runs_as_its_first_lines_say(in_onnx, tmp_path):
    done = subprocess.run([sys.executable, EXAMPLE, in_onnx, tmp_path / "samples.npy"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "samples.npy").shape == (64, 1, 28, 28)


@pytest.mark.slow
def test_the_command_writes_programs_of_torch_and_says_what_it_left_out(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = hybvit("export", tiny_run, "--format", "torch")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("classifier.pt2: ")
    assert done.stdout.splitlines()[-2:] == [
        "no noisy_classifier: the label read-out was not trained on noisy images (objective.noisy_labels)",
        "tiny-torch: 2 graphs and model.json",
    ]
    assert done.stderr.endswith(f"next: hybvit serve {tiny_run}\n")
    assert_equal_for_any_batch(package.load(tiny_run, "cpu"), tmp_path / "tiny-torch", "torch")


def test_a_folder_of_graphs_is_refused_as_a_model(tmp_path):
    write_folder(tmp_path / "graphs", {}, {exporting.ABOUT: "{}", "classifier.onnx": b"graph"})
    for load in (package.load, HybridModel.from_pretrained):
        with pytest.raises(DataError, match=r"graphs: this folder holds exported graphs, not a model.* --format safetensors`"):
            load(tmp_path / "graphs")


def test_safetensors_are_what_hybvit_loads(tiny_run, tmp_path):
    assert hybvit("export", tiny_run, "--format", "safetensors", "--out", tmp_path / "model").returncode == 0
    pixels = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    before, after = (package.load(path, "cpu").predict(pixels) for path in (tiny_run, tmp_path / "model"))
    assert torch.equal(before.probabilities, after.probabilities)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "onnx"], "format onnx needs onnxscript: pip install 'hybvit[export]'"),
        (["--format", "torch", "--int8"], "--int8 is for --format onnx, not for torch"),
        (["--format", "tflite"], "invalid choice: 'tflite'"),
        (["--format", "torch", "--out", "{run}"], "exists and holds no exported graphs; choose another folder"),
        (["--format", "torch", "--out", str(hub.BUNDLED / "digits")], "exists and holds no exported graphs"),
        (["--format", "safetensors", "--out", "{run}"], "exists and is not an exported model; choose another folder"),
    ],
)
def test_what_cannot_be_exported_is_refused(tiny_run, tmp_path, monkeypatch, words, message):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    done = hybvit("export", tiny_run, "--out", tmp_path / "out", *(word.format(run=tiny_run) for word in words))
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


FOREIGN = {  # of others: what a folder with a file of one of our names may be
    "an extension of a browser": {"manifest.json": "{}", "src/code.js": "1"},
    "a model for the web": {"model.json": '{"weightsManifest": []}', "weights.bin": "1"},
    "a manifest that is none": {"manifest.json": "[1"},
}


@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("content", [*FOREIGN, "more than an export", "an export of the other kind"])
def test_a_folder_of_something_else_is_not_replaced(tmp_path, form, content):
    out, other = tmp_path / "out", {"safetensors": "torch", "torch": "safetensors"}[form]
    if content in FOREIGN:
        for name, text in FOREIGN[content].items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text)
    else:
        kind = form if content == "more than an export" else other
        write_folder(out, {}, {"model.json" if kind == "torch" else "config.yaml": "{}"})
        if kind == form:
            (exporting.graphs_folder if form == "torch" else export_folder)(out)  # by itself it is
            (out / "mine").symlink_to(tmp_path)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    done = hybvit("export", "digits", "--format", form, "--out", out)
    assert done.returncode == 2
    assert "choose another folder" in done.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_graphs_in_int8_do_not_take_the_place_of_the_exact_ones(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hybvit.cli.export.export_graphs", lambda model, out, *_: (out.mkdir(), {})[1])
    assert hybvit("export", "digits").returncode == hybvit("export", "digits", "--int8").returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"digits-onnx", "digits-onnx-int8"}


def test_a_graph_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    model = untrained(model=SMALL, objective={"kind": "vit"})
    monkeypatch.setattr(exporting, "trace", lambda graph: None)
    monkeypatch.setattr(exporting, "torch_file", lambda graph, program: b"")
    monkeypatch.setattr(exporting, "open_graph", lambda content, form: lambda x: model.logits(x) + 0.01)
    with pytest.raises(RuntimeError, match=r"differs from the model by 0\.01"):
        export_graphs(model, tmp_path / "graphs", "torch")
    assert list(tmp_path.iterdir()) == []
