"""`hybvit bench`: what is timed is what training and inference compute, and the statistics say what the times can bear."""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from hybvit import devices
from hybvit.config import Config, minibatches, override
from hybvit.data.batches import random_batch
from hybvit.errors import ConfigError, DataError
from hybvit.method.objective_config import Objective
from hybvit.method.vit import HybViT, ViTConfig
from hybvit.model import HybridModel
from hybvit.networks import build_network
from hybvit.presets import preset
from hybvit.training import bench as benchmark
from hybvit.training.bench import Timed, bench, fraction, product_gflop, product_name, row_of, table
from hybvit.training.bench.growth import exponents, growth, growth_table, scaled, sizes
from hybvit.training.bench.peers import (
    denoising_gflop,
    differs_from_paper,
    gflop,
    nearest_dit,
    nearest_unet,
    reference_loss,
    timm_vit,
)
from hybvit.training.bench.record import (
    Quartiles,
    as_json,
    change,
    compare,
    exponent,
    quartiles,
    ratios,
    read_record,
    refuse_other,
)
from hybvit.training.bench.rows import DEFAULT_ROWS, ROWS, Case, LeftOut, Settings, cases, with_batch_size
from hybvit.training.loop import Loss, backward

from .conftest import hybvit

PAPER = Config(
    model=ViTConfig(image_size=8, patch_size=2, dim=16, depth=2, heads=2),
    train=replace(Config().train, batch_size=4, precision="fp32"),
)
CPU = torch.device("cpu")
SMALL = ("--model.dim=16", "--model.depth=2", "--model.heads=2")


@pytest.fixture(autouse=True)
def _small_products(monkeypatch):
    monkeypatch.setattr(benchmark, "PEAK_SIZE", {"cpu": 64})
    monkeypatch.setattr(benchmark, "SPAN", 0.0)


@pytest.fixture
def model() -> HybridModel:
    return HybridModel(build_network(PAPER), PAPER, CPU)


# The statistics


def test_quartiles_and_paired_ratios():
    assert quartiles([5, 1, 4, 2, 3]) == (3, 2, 4)
    assert quartiles([1, 2, 3, 4]) == (2.5, 1.75, 3.25)  # numpy's
    assert quartiles([7]) == (7, 7, 7)
    slow_repeat = ([1.0, 10.0, 2.0], [0.5, 5.0, 1.0])  # the machine was ten times slower in one of them
    assert ratios(*slow_repeat) == (2, 2, 2)


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(power):
    at = [3, 5, 8, 20]
    assert exponent(at, [0.7 * size**power for size in at]) == pytest.approx(power)


def test_a_change_beyond_the_noise_is_called_one_and_a_smaller_one_is_not():
    before, repeats = Quartiles(1.0, 0.98, 1.02), (11, 11)  # a deviation of 3 %, so an error of 1.24 % with 9 degrees
    noise = 4 * math.sqrt(2) * math.sqrt(math.pi / 2) * (0.04 / 1.349) / 3
    assert change(before, before, repeats).noise == pytest.approx(noise)
    slower, faster, same = (
        change(before, Quartiles(*(value * factor for value in before)), repeats) for factor in (1.2, 1 / 1.2, 1.05)
    )
    assert str(slower).startswith("20.0 % slower (noise 7.")
    assert str(faster).startswith("16.7 % faster (noise 7.")
    assert str(same).startswith("no change beyond the noise (+5.0 %, noise 7.")


def test_the_smallest_change_is_two_percent_and_two_repeats_show_none():
    exact = Quartiles(1.0, 1.0, 1.0)
    assert "no change" in str(change(exact, Quartiles(1.019, 1.019, 1.019), (9, 9)))
    assert str(change(exact, Quartiles(1.021, 1.021, 1.021), (9, 9))).startswith("2.1 % slower")
    assert str(change(exact, Quartiles(9.0, 9.0, 9.0), (9, 2))).startswith("no change")


@pytest.mark.parametrize("repeats", [3, 5, 9])
def test_equal_programs_are_seldom_called_different(repeats):
    draws, alarms = random.Random(0), 0
    for _ in range(1000):
        a, b = ([math.exp(draws.gauss(0, 0.05)) for _ in range(repeats)] for _ in "ab")
        found = change(quartiles(a), quartiles(b), (repeats, repeats))
        alarms += abs(found.time) > found.noise
    assert alarms < 20


# What is timed


def test_the_operations_of_a_linear_layer_are_counted():
    assert gflop(lambda: nn.Linear(3, 5)(torch.empty(7, 3))) == 2 * 3 * 5 * 7 / 1e9
    step = gflop(lambda: nn.Linear(3, 5)(torch.empty(7, 3, requires_grad=True)).sum().backward())
    assert step == 3 * 2 * 3 * 5 * 7 / 1e9  # the gradients of weights and inputs take as many again


def test_the_operations_of_attention_are_counted():
    q = (2, 4, 17, 8)
    found = gflop(lambda: nn.functional.scaled_dot_product_attention(*(torch.empty(q) for _ in "qkv")))
    assert found == 2 * (2 * 2 * 4 * 17 * 17 * 8) / 1e9


def test_the_share_of_the_peak():
    assert product_gflop(CPU) == 2 * 64**3 / 1e9
    found = fraction(3 * product_gflop(CPU), Quartiles(6.0, 5.0, 10.0), CPU)  # six times as long for three times as much
    assert found == pytest.approx((0.5, 0.3, 0.6))


def test_the_reference_computes_what_the_training_loop_does():
    torch.manual_seed(0)
    net, diffusion, results = build_network(PAPER), PAPER.diffusion.build(), []
    assert isinstance(net, HybViT)
    batch = random_batch(PAPER, CPU)

    def plain() -> torch.Tensor:
        loss = reference_loss(net, diffusion, batch, PAPER)
        loss.backward()
        return loss.detach()

    for step in (lambda: backward(Loss(net, diffusion, PAPER.objective), batch, PAPER, 0).total.detach(), plain):
        net.zero_grad()
        loss = step()
        results.append((loss, [p.grad.clone() for p in net.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, None),
        ({"objective": {"alpha": 3.0, "label_smoothing": 0.0}}, None),
        ({"model": {"dim": 32}}, None),
        ({"model": {"mlp": "swiglu"}}, "model.mlp"),
        ({"model": {"class_depth": 1}}, "model.class_depth"),
        ({"objective": {"norm": "l2"}}, "objective.norm"),
        ({"objective": {"kind": "genvit"}}, "objective.kind"),
        ({"network": {"name": "wide_resnet"}, "objective": {"kind": "vit"}}, "network.name"),
    ],
)
def test_the_reference_is_left_out_where_it_would_compute_something_else(changes, named):
    found = differs_from_paper(override(PAPER, **changes))
    assert found is None if named is None else found.startswith(named)


@pytest.mark.slow
def test_the_peers_have_the_shape_or_the_operations_of_ours():
    ours = build_network(PAPER)
    vit = timm_vit(PAPER)
    with torch.no_grad():
        assert vit(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert vit.pos_embed.shape == ours.positions.shape
    assert [p.shape for p in vit.blocks[1].mlp.parameters()] == [p.shape for p in ours.layers[1].mlp.parameters()]
    wanted = 20 * denoising_gflop(PAPER, lambda: build_network(PAPER))
    for nearest in (nearest_unet, nearest_dit):
        pytest.importorskip("diffusers")
        build = nearest(PAPER, wanted)
        assert denoising_gflop(PAPER, build) == pytest.approx(wanted, rel=0.2)
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 1000])
        with torch.no_grad():
            assert build().denoise(x, t).shape == x.shape


def test_a_model_without_a_part_has_no_row_of_it(model):
    for kind, missing in (("vit", {"denoise-step", "denoise", "sample", "bits"}), ("genvit", {"classify"})):
        cfg = override(PAPER, objective={"kind": kind})
        other = HybridModel(build_network(cfg), cfg, CPU)
        found = list(cases(other, cfg, Settings(tuple(ROWS), samples=2, steps=2, peers=False)))
        assert {entry.what for entry in found if isinstance(entry, LeftOut)} == missing
        assert {entry.row for entry in found if isinstance(entry, Case)} == set(ROWS) - missing


def test_every_pass_of_a_sampler_and_of_the_bound_is_counted_and_made_in_the_precision_that_is_said():
    cfg = override(PAPER, train={"precision": "bf16"})
    model, passes = HybridModel(build_network(cfg), cfg, CPU), []
    denoise = model.net.denoise

    def watched(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert not torch.is_autocast_enabled("cpu")
        passes.append(len(x_t))
        return denoise(x_t, t)

    model.net.denoise = watched
    one = denoising_gflop(cfg, lambda: build_network(cfg))
    for case in cases(model, cfg, Settings(("sample", "bits"), samples=3, steps=5)):
        passes.clear()
        case.step("fp32")
        assert case.gflop == pytest.approx(sum(passes) * one), case.row
        assert case.images == 3


def test_without_diffusers_the_line_says_what_to_install(model, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    cfg = override(PAPER, model={"dim": 24, "heads": 2})  # the nearest networks of other tests are kept
    found = [entry for entry in cases(model, cfg, Settings(("denoise",))) if isinstance(entry, LeftOut)]
    assert [entry.what for entry in found] == ["denoise, diffusers U-Net", "denoise, diffusers DiT"]
    assert all("pip install 'hybvit[baselines]'" in entry.reason for entry in found)


def test_a_training_step_with_its_update_leaves_the_weights_as_they_are(monkeypatch):
    from hybvit.training import loop

    made = []
    build = loop.build_network
    monkeypatch.setattr(loop, "build_network", lambda cfg: made.append(build(cfg)) or made[-1])
    step = loop.training_step(override(PAPER, optim={"name": "muon"}), CPU, update=True)
    before = [p.clone() for p in made[0].parameters()]
    step("fp32")
    for a, b in zip(before, made[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert b.grad is None


def test_the_labeled_images_keep_their_share_of_the_batch():
    cfg = preset("cifar10_v2")  # 128 + 64
    assert minibatches(with_batch_size(cfg, 32)) == (32, 16)
    assert minibatches(with_batch_size(cfg, 1)) == (1, 1)
    assert minibatches(with_batch_size(PAPER, 5)) == (5, 5)


# The record


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by a second whenever it is read."""
    now = iter(range(10**9))
    monkeypatch.setattr(devices.time, "perf_counter", lambda: float(next(now)))


def test_a_record_holds_what_the_times_say(model, clock, monkeypatch):
    monkeypatch.setattr(benchmark, "precisions", lambda device: ("fp32",))
    record = bench("tiny", model, PAPER, Settings(("joint", "classify"), repeats=4))
    assert record["repeats"] == 4
    assert [(row["row"], row["system"]) for row in record["rows"]] == [
        ("joint", "hybvit"),
        ("joint", "plain reference"),
        ("classify", "hybvit"),
        ("classify", "timm ViT"),
    ]
    for row in record["rows"]:  # every call takes a second of that clock, the matrix product too
        assert row["seconds"] == row["relative"] == {"median": 1, "low": 1, "high": 1}
        assert row["images_per_second"] == row["images"] == (8 if row["row"] == "joint" else 4)
        assert row["fraction_of_peak"]["median"] == pytest.approx(row["gflop"] / product_gflop(CPU))
        assert row.get("speedup") == (None if row["system"] == "hybvit" else {"median": 1, "low": 1, "high": 1})
    assert record["products"][0]["gflop_per_second"] == pytest.approx(product_gflop(CPU))
    assert record["rows_are"] == {name: ROWS[name] for name in ("joint", "classify")}
    operations = {row["system"]: row["gflop"] for row in record["rows"] if row["row"] == "classify"}
    assert operations["hybvit"] < operations["timm ViT"]  # whose last layer computes all tokens
    lines = table(record)
    assert lines[0].startswith("tiny on ")
    assert "medians of 4 alternating repeats" in lines[0]
    assert any(line.endswith("1.00 x as fast (1.00 to 1.00)") for line in lines)


def test_the_speedup_is_their_time_over_ours_in_the_same_repeat():
    seconds = {
        product_name("fp32"): [1.0, 10.0, 1.0],  # the machine was slow in the second repeat
        "classify, hybvit, fp32": [2.0, 20.0, 2.0],
        "classify, timm ViT, fp32": [3.0, 30.0, 3.0],
    }
    timed = Timed(seconds, dict.fromkeys(seconds))
    case = Case("classify", "timm ViT", 6, product_gflop(CPU), lambda precision: None)
    row = row_of("classify, timm ViT, fp32", case, "fp32", timed, CPU)
    assert row["speedup"] == dict.fromkeys(("median", "low", "high"), 1.5)
    assert row["relative"] == dict.fromkeys(("median", "low", "high"), 3.0)
    assert row["images_per_second"] == 2.0
    assert row["fraction_of_peak"]["median"] == pytest.approx(1 / 3)


def a_record(**rows: tuple[float, float]) -> dict:
    """A record with rows of these (relative time, GFLOP), without spread."""
    made = [
        {
            "row": name, "system": "hybvit", "precision": "fp32", "gflop": counted, "memory_mib": 100.0,
            "seconds": dict.fromkeys(("median", "low", "high"), 1.0),
            "relative": dict.fromkeys(("median", "low", "high"), relative),
        }
        for name, (relative, counted) in rows.items()
    ]  # fmt: skip
    identity = {"subject": "tiny", "device": "a CPU", "threads": 2, "batch_size": 4, "samples": 8, "steps": 20}
    return {**identity, "repeats": 9, "rows": made}


def test_what_changed_is_said_relative_to_the_matrix_product(tmp_path):
    path = tmp_path / "before.json"
    path.write_text(as_json(a_record(joint=(2.0, 5.0), classify=(1.0, 1.0), sample=(3.0, 1.0), bits=(1.0, 1.0))))
    now = a_record(joint=(2.5, 5.0), classify=(1.0, 1.0), sample=(1.5, 2.0), update=(1.0, 1.0))
    for row in now["rows"]:  # a machine that is half as fast, in the product too
        row["seconds"] = {name: 2 * value for name, value in row["seconds"].items()}
    now["rows"][0]["memory_mib"], now["rows"][1]["memory_mib"] = 109.0, 150.0  # the first is no change
    assert list(compare(read_record(path), now)) == [
        "joint, hybvit, fp32: 25.0 % slower (noise 2.0 %)",
        "classify, hybvit, fp32: no change beyond the noise (+0.0 %, noise 2.0 %); 100 -> 150 MiB",
        "sample, hybvit, fp32: 50.0 % faster (noise 2.0 %); 1 -> 2 GFLOP",
        "update, hybvit, fp32: new",
        "bits, hybvit, fp32: not measured now",
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("subject", "digits"), ("device", "a GPU"), ("threads", 1), ("batch_size", 8), ("steps", 5)]
)
def test_a_record_of_something_else_is_refused_by_name(tmp_path, name, value):
    now = a_record(joint=(1.0, 1.0))
    refuse_other(tmp_path, now, now)
    with pytest.raises(ConfigError, match=rf"its {name.replace('_', ' ')} is {value}, here it is {now[name]}"):
        refuse_other(tmp_path, {**now, name: value}, now)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": []}', '{"rows": [{}]}', '{"median_seconds": {}}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"record\.json: "):
        read_record(path)


@pytest.mark.slow
def test_the_command_writes_what_it_compares(tmp_path, monkeypatch):
    record, plot = tmp_path / "record.json", tmp_path / "plot.svg"
    words = ("bench", "--preset", "digits", "--rows=classify,sample", "--batch-size=2", "--samples=2", "--steps=2", *SMALL)
    quick = (*words, "--repeats=1", "--no-peers")
    done = hybvit(*quick, "--out", record, "--plot", plot)
    assert done.returncode == 0, done.stderr
    stored = json.loads(record.read_text())
    assert stored["subject"] == f"digits {' '.join(SMALL)}"
    assert {row["row"] for row in stored["rows"]} == {"classify", "sample"}
    assert plot.read_text().startswith("<svg")
    again = hybvit(*quick, "--compare", record)
    said = [line for line in again.stdout.splitlines() if line.startswith("since ")]
    assert len(said) == len(stored["rows"])
    assert all("no change beyond the noise (" in line for line in said)  # one repeat tells nothing
    other = hybvit(*quick[:-2], "--model.mlp_ratio=1", "--compare", record)
    assert other.returncode == 2
    assert other.stderr.startswith(f"hybvit: {record}: its subject is digits")
    assert other.stdout == ""  # before anything is timed


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--rows=joint,clasify",), 2, "did you mean classify"),
        (("--preset", "digitz"), 2, "did you mean digits"),
        (("--model", "digits", "--model.dim=8"), 2, "--model.dim=8: the configuration of a --model is fixed"),
        (("--plot", "plot.png"), 2, "must end with .svg"),
        (("--out", "no/such/folder/a.json"), 3, "there is no folder no/such/folder"),
        (("--growth", "batch", "--compare", "a.json"), 2, "--compare is of rows"),
        (("--growth", "batch", "--no-peers"), 2, "--no-peers is of rows"),
        (("--growth", "batch", "--samples", "3"), 2, "--samples is of rows"),
        (("--compare", "gone.json"), 3, "gone.json: No such file"),
        (("--preset", "cifar10_wrn28_10", "--growth", "width"), 2, "--growth width"),
    ],
)
def test_what_cannot_be_timed_is_refused_at_once(words, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = hybvit("bench", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


# Growth


def test_one_size_grows_and_the_rest_stays():
    for what, of in (
        ("batch", lambda cfg: cfg.train.batch_size),
        ("tokens", lambda cfg: cfg.model.num_patches + 1),
        ("width", lambda cfg: cfg.model.dim),
        ("depth", lambda cfg: cfg.model.depth),
    ):
        found = sizes(PAPER, what)
        assert len(found) >= 3
        assert {size: of(cfg) for size, cfg in found.items()} == {size: size for size in found}
    assert list(sizes(PAPER, "tokens")) == [10, 17, 26, 37]  # half to twice as many patches, and the class token
    wide = scaled(PAPER, "width", 2.0)[1].model
    assert (wide.dim // wide.heads, wide.depth) == (8, 2)
    deep = scaled(override(PAPER, model={"depth": 6, "class_depth": 4}), "depth", 2.0)[1].model
    assert (deep.depth, deep.class_depth) == (12, 8)


def test_the_exponents_of_a_power_law_stand_beside_the_operations():
    points = [{"size": n, "seconds": {"median": 0.1 * n}, "memory_mib": 3.0 * n**2, "gflop": 2.0 * n**1.5} for n in (2, 4, 8)]
    assert exponents(points) == pytest.approx({"seconds": 1.0, "operations": 1.5, "memory": 2.0})
    points[0]["memory_mib"] = None
    assert exponents(points).keys() == {"seconds", "operations"}


@pytest.mark.slow
def test_growth_is_timed(tmp_path):
    record = growth("tiny", PAPER, "batch", CPU, Settings(repeats=1))
    assert [point["size"] for point in record["points"]] == [2, 4, 6, 8]
    assert record["exponents"]["operations"] == pytest.approx(1)
    assert "batch^" in growth_table(record)[-1]
    done = hybvit(
        "bench",
        "--preset=digits",
        "--growth=depth",
        "--repeats=1",
        "--batch-size=2",
        *SMALL[:1],
        SMALL[2],
        "--plot",
        tmp_path / "a.svg",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_the_default_rows_are_rows():
    assert set(DEFAULT_ROWS) <= set(ROWS)
    assert Objective() == PAPER.objective  # the paper's loss, which the reference has
