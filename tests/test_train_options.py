"""What the training loop may do beside the paper's set-up; each is off by default."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from hybvit import load
from hybvit.checkpoint import newest, read_tensors, step_folders
from hybvit.config import Config, minibatches, override
from hybvit.errors import CheckpointError, ConfigError, DataError
from hybvit.evaluation.context import Result
from hybvit.evaluation.speed import train_speed
from hybvit.model import HybridModel
from hybvit.networks import build_network
from hybvit.presets import preset
from hybvit.reproduce import timing
from hybvit.training.cost import cost
from hybvit.training.ema import Average
from hybvit.training.loop import train
from hybvit.training.optim import BatchedMuon, build_optimizers, matrices_of_layers, optimizer_tensors, orthogonalize, set_rates
from hybvit.training.run_folder import read_metrics

from .conftest import hybvit
from .forked import started
from .test_train import STEPS, assert_identical, command, final_state

OPTIONS = (
    "--optim.name=muon", "--train.labelled_batch_size=4",
    "--train.snapshot_every=30", "--model.class_depth=1", "--model.label_conditioning=true",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run with every option."""
    out = tmp_path_factory.mktemp("options") / "whole"
    done = hybvit(*command(out, *OPTIONS))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_a_killed_run_with_every_option_resumes_exactly(run, tmp_path):
    out = tmp_path / "killed"
    process = started(*command(out, *OPTIONS, "--train.checkpoint_every=1"))
    while not step_folders(out / "checkpoints"):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert newest(out / "checkpoints")[1]["step"] < STEPS
    resumed = hybvit(*command(out, *OPTIONS))
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step" in resumed.stdout
    state = final_state(run)
    assert {key.split("/")[0] for key in state} == {"network", "ema", "optimizer", "random"}
    assert_identical(state, final_state(out))


# mini-batches


@pytest.mark.parametrize(
    ("kind", "labelled", "sizes"),
    [
        ("vit", None, (0, 8)),
        ("vit", 2, (0, 2)),
        ("genvit", 2, (8, 0)),
        ("hybvit", None, (8, 8)),
        ("hybvit", 2, (8, 2)),
        ("jem", 12, (8, 12)),
    ],
)
def test_the_objective_and_two_fields_decide_the_sizes(kind, labelled, sizes):
    cfg = override(preset("digits"), objective={"kind": kind}, train={"batch_size": 8, "labelled_batch_size": labelled})
    assert minibatches(cfg) == sizes
    assert cost(cfg).images == sum(sizes) * cfg.train.steps


def test_operations_are_in_proportion_to_the_images_of_each_mini_batch():
    def operations(denoising: int, labelled: int) -> int:
        cfg = override(preset("digits"), train={"batch_size": denoising, "labelled_batch_size": labelled})
        return round(cost(cfg).train_gflop_per_step * 1e9)

    per_noisy = operations(9, 8) - operations(8, 8)
    per_clean = operations(8, 9) - operations(8, 8)
    assert per_noisy > per_clean > 0
    assert operations(8, 8) == 8 * (per_noisy + per_clean)
    assert operations(64, 16) == 64 * per_noisy + 16 * per_clean


@pytest.mark.slow
def test_the_rate_counts_the_images_of_both(run):
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert all(line["images_per_second"] * line["seconds"] == pytest.approx(5 * (8 + 4)) for line in lines)


@pytest.mark.slow
def test_what_is_timed_and_counted_has_both_sizes():
    cfg = override(small()[0], train={"batch_size": 8, "labelled_batch_size": 4, "precision": "fp32"})
    took = timing.measure({"run": cfg}, lambda line: None, repeats=1)["runs"]["run"]
    assert took["minutes_per_epoch"] == pytest.approx(took["seconds_per_step"] * timing.epoch_images(cfg) / 4 / 60)
    result = Result()
    train_speed(HybridModel(build_network(cfg), cfg), result)
    shown = result.metrics["speed/train_gflop_per_image"]
    assert shown.n == 12
    assert shown.value * 12 == pytest.approx(cost(cfg).train_gflop_per_step, rel=0.01)  # attention has other kernels there


@pytest.mark.slow
def test_load_takes_the_averaged_weights_of_a_run_a_checkpoint_or_a_snapshot(run):
    checkpoint, snapshot = newest(run / "checkpoints")[0], step_folders(run / "snapshots")[-1]
    for source, folder in ((run, checkpoint), (checkpoint, checkpoint), (snapshot, snapshot)):
        assert_identical(load(source).net.state_dict(), read_tensors(folder / "ema.safetensors"))
    weights = load(run).net.positions.cpu()
    assert not torch.equal(weights, read_tensors(checkpoint / "network.safetensors")["positions"])
    assert not torch.equal(weights, load(snapshot).net.positions.cpu())


def test_weights_are_averaged_and_buffers_taken_over():
    net, held = (nn.Linear(2, 1, bias=False, dtype=torch.float64) for _ in range(2))
    for each, start in ((net, 1.0), (held, 3.0)):
        nn.init.constant_(each.weight, start)
        each.register_buffer("count", torch.full((), start))
    average = Average(held, net)
    average.update(0.75)
    assert held.weight.flatten().tolist() == [2.5, 2.5]
    assert held.count == 1
    average.update(0.0)
    assert held.weight.flatten().tolist() == [1.0, 1.0]
    assert net.weight.flatten().tolist() == [1.0, 1.0]


# Muon


def small(**optim) -> tuple[Config, nn.Module]:
    model = {"dim": 16, "depth": 2, "heads": 2}
    cfg = override(preset("digits"), model=model, optim={"name": "muon", **optim})
    torch.manual_seed(0)
    return cfg, build_network(cfg)


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest():
    cfg, net = small()
    adamw, muon = build_optimizers(net, cfg.optim)
    assert isinstance(adamw, torch.optim.AdamW)
    assert isinstance(muon, torch.optim.Muon)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    by_muon, by_adamw = ({names[id(p)] for p in o.param_groups[0]["params"]} for o in (muon, adamw))
    assert by_muon == {name for name, p in net.named_parameters() if name.startswith("layers.") and p.ndim == 2}
    assert by_adamw | by_muon == set(names.values())
    assert not by_adamw & by_muon
    assert {"positions", "patch_embedding.weight", "layers.0.attention.out.bias"} <= by_adamw


def test_muon_steps_along_an_orthogonal_matrix_and_decays_as_adamw():
    """A step is lr sqrt(max(1, rows/columns)) times a matrix whose singular values are near 1; then weights shrink alike."""
    cfg, net = small(lr=1e-3, muon_lr=0.02, weight_decay=0.5)
    optimizers = build_optimizers(net, cfg.optim)
    rate = 4e-4
    set_rates(optimizers, rate)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    matrices = set(matrices_of_layers(net))
    for p in net.parameters():
        p.grad = nn.init.orthogonal_(torch.empty_like(p)) if p in matrices else torch.ones_like(p)
    for optimizer in optimizers:
        optimizer.step()
    for name, p in net.named_parameters():
        update = before[name] * (1 - rate * 0.5) - p.detach()
        if p in matrices:
            singular = torch.linalg.svdvals(update) / (20 * rate * max(1, p.shape[0] / p.shape[1]) ** 0.5)
            assert 0.6 < singular.min() <= singular.max() < 1.3, name
        else:
            assert (update / rate - 1).abs().max() < 1e-3, name  # AdamW's first step


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (1, 16, 16)])
def test_muon_is_exact_where_bfloat16_would_be_slow(monkeypatch, shape):
    """A CPU without bfloat16 took thirty times as long for its products as for those of float32."""
    monkeypatch.setattr("hybvit.training.optim.has_fast_bf16", lambda device: False)
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    a, b, c = 3.4445, -4.775, 2.0315
    found = orthogonalize(matrices, (a, b, c), 5, 1e-7)
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    s = s / s.norm(dim=1, keepdim=True)  # of the singular values the iteration is a polynomial
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(found.double(), u @ torch.diag_embed(s) @ vh, rtol=0, atol=1e-4)


def test_batched_muon_is_torchs_for_tall_wide_and_square_matrices(monkeypatch):
    monkeypatch.setattr("hybvit.training.optim.has_fast_bf16", lambda device: True)  # PyTorch's always takes bfloat16
    torch.manual_seed(0)
    shapes = [(48, 16), (16, 16), (16, 32), (48, 16), (16, 32)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    start = [p.detach().clone() for p in ours]
    unused = nn.Parameter(torch.ones(16, 16))
    batched = BatchedMuon([{"params": [*ours, unused]}], lr=0.02, weight_decay=0.1)
    single = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        batched.step()
        single.step()
    for a, b, origin in zip(ours, theirs, start, strict=True):
        assert torch.equal(batched.state[a]["momentum_buffer"], single.state[b]["momentum_buffer"])
        assert (a - b).norm() < 0.01 * (b - origin).norm()  # products of bfloat16, summed in another order
    assert torch.equal(unused, torch.ones(16, 16))  # without a gradient: neither moved nor decayed


@pytest.mark.slow
def test_the_first_optimiser_keeps_the_keys_of_old_checkpoints(run):
    keys = read_tensors(newest(run / "checkpoints")[0] / "optimizer.safetensors").keys()
    assert {"0/exp_avg", "0/exp_avg_sq", "0/step", "1/0/momentum_buffer"} <= keys
    assert {key.split("/")[-1] for key in keys if key.count("/") == 2} == {"momentum_buffer"}
    cfg, net = small(name="adamw")
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    (adamw,) = build_optimizers(net, cfg.optim)
    adamw.step()
    assert {key.count("/") for key in optimizer_tensors([adamw])} == {1}


def test_muon_is_for_vits():
    with pytest.raises(ConfigError, match=r"optim\.name is muon: it is for the layers of a vit, not for a wide_resnet"):
        override(preset("cifar10_wrn28_10"), optim={"name": "muon"})
    with pytest.raises(ConfigError, match=r"optim\.muon_lr 0"):
        small(muon_lr=0.0)


def test_muon_finds_the_vit_inside_a_jem():
    cfg, net = small()
    jem = build_network(override(cfg, objective={"kind": "jem"}))
    assert [m.shape for m in matrices_of_layers(jem)] == [m.shape for m in matrices_of_layers(net)]
    assert len(build_optimizers(jem, cfg.optim)) == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_is_the_plain_one_and_resumes_exactly(tmp_path):
    plain = override(
        preset("digits"),
        model={"depth": 2, "class_depth": 1, "dim": 32, "readout_width": 16, "label_conditioning": True},
        objective={"guidance": 0.5},
        train={"steps": 6, "batch_size": 8, "checkpoint_every": 3, "preview_every": 0, "precision": "fp32"},
    )
    cfg = override(plain, train={"compile": True})
    train(cfg, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000006")
    train(cfg, tmp_path / "resumed")
    train(plain, tmp_path / "plain")
    whole, resumed, eager = (load(tmp_path / name, "cpu").net.state_dict() for name in ("whole", "resumed", "plain"))
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
        torch.testing.assert_close(weight, eager[name], rtol=1e-3, atol=1e-3)


def test_compiling_needs_a_compiler_and_no_langevin_chains(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="finds no no-such-compiler"):
        train(override(preset("digits"), train={"compile": True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"train\.compile does not go with"):
        override(preset("cifar10_jem"), train={"compile": True})


@pytest.mark.slow
def test_a_run_starts_from_a_model_of_other_classes(tmp_path):
    cfg = override(
        preset("digits"),
        model={"depth": 1, "dim": 16, "readout_width": 8},
        train={"steps": 1, "batch_size": 4, "preview_every": 0, "ema_decay": 0.5},
    )
    first = override(cfg, train={"seed": 5})
    train(first, tmp_path / "first")
    given = load(tmp_path / "first", "cpu").net.state_dict()
    still = override(cfg, optim={"lr": 0.0, "min_lr": 0.0}, train={"init": str(tmp_path / "first")})
    train(still, tmp_path / "second")
    for name, weight in load(tmp_path / "second", "cpu").net.state_dict().items():
        assert torch.equal(weight, given[name]), name

    for shade in ("dark", "light"):
        (tmp_path / "photos" / shade).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 200 * (shade == "light") + i).save(tmp_path / "photos" / shade / f"{i}.png")
    said: list[str] = []
    own = override(still, data={"name": "folder", "root": str(tmp_path / "photos"), "held_out": 0.0})
    moved = train(own, tmp_path / "third", said.append).net.state_dict()
    assert moved["class_readout.1.weight"].shape == (2, 16)
    assert [line for line in said if "at random" in line] == [
        "the model of train.init has another number of classes: class_readout.1.weight, class_readout.1.bias start at random"
    ]
    assert torch.equal(moved["patch_embedding.weight"], given["patch_embedding.weight"])

    with pytest.raises(DataError, match="no such folder"):
        train(override(still, train={"init": "nobody"}), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    wider = override(still, model={"dim": 32})
    with pytest.raises(CheckpointError, match=r"its model\.dim is 16, this run's 32"):
        train(wider, tmp_path / "fourth")
    assert not (tmp_path / "fourth").exists()
