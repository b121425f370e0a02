"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from hybvit.config import override
from hybvit.method.seeds import generator, normal_like
from hybvit.presets import preset
from hybvit.training.loop import train
from hybvit.training.optim import BatchedMuon

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


def test_a_compiled_step_trains_as_a_plain_one(tmp_path):
    """CUDA graphs give gradients in memory that the next step uses again: a mistake there would show within some steps."""
    cfg = override(preset("digits"), train={"steps": 12, "log_every": 1, "preview_every": 0, "precision": "fp32"})
    cfg = override(cfg, optim={"name": "muon", "warmup_steps": 1, "lr": 1e-3})
    train(cfg, tmp_path / "plain", say=str)
    train(override(cfg, train={"compile": True}), tmp_path / "compiled", say=str)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=0.02)


def test_a_compiled_muon_takes_the_same_steps():
    torch.manual_seed(0)
    shapes = [(96, 32), (32, 96), (96, 32), (48, 48)]
    plain = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
    compiled = copy.deepcopy(plain)
    optimizers = [BatchedMuon([{"params": each}], lr=0.02, weight_decay=0.1) for each in (plain, compiled)]
    optimizers[1].compile()
    for _ in range(5):
        for one, other in zip(plain, compiled, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-3)


def test_noise_is_drawn_on_the_gpu_and_again_the_same():
    x = torch.empty(1000, 50, device="cuda")
    first, again, other = (normal_like(x, generator(seed, "noise")) for seed in (0, 0, 1))
    assert first.device == x.device
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first - other).abs().mean() > 0.5
    assert abs(first.mean().item()) < 0.02
    assert first.std().item() == pytest.approx(1, abs=0.02)


def test_a_run_goes_on_where_it_stopped(tmp_path):
    """To the last bit only where every kernel adds in the same order, which CUDA does not promise."""
    cfg = override(preset("digits"), train={"steps": 8, "log_every": 1, "preview_every": 0, "checkpoint_every": 4})
    train(cfg, tmp_path / "whole", say=str)
    short = override(cfg, train={"keep_checkpoints": 5})
    train(short, tmp_path / "cut", say=str)
    newest = sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    said: list[str] = []
    train(short, tmp_path / "cut", say=said.append)
    assert any("resumed at step 4" in line for line in said)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=0.01)
