"""Training in several processes (real ones, over gloo): the numbers of one process, and what happens when one of them ends."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.testing._internal.distributed.fake_pg import FakeStore

from hybvit import checkpoint, cli
from hybvit.config import override, parse
from hybvit.data.batches import random_batch
from hybvit.errors import ConfigError
from hybvit.networks import build_network
from hybvit.presets import preset
from hybvit.training import loop, optim, parallel

from .conftest import TINY, hybvit
from .forked import Forked, together
from .forked import command as run_command

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
SAME = [
    "--train.precision=fp32",
    "--train.batch_size=16",
    "--train.log_every=1",
    "--train.checkpoint_every=1000",
    "--data.workers=0",
]
MUON = ["--optim.name=muon", "--optim.muon_lr=0.01"]


def torchrun(processes: int, *words: object) -> subprocess.Popen:
    command = [*TORCHRUN, f"--nproc-per-node={processes}", "-m", "hybvit", "train", "digits", *TINY, *SAME, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def agent(processes: int, words: list[str]) -> None:
    """torchrun, whose processes are forked and so have imported everything: it watches and ends them as it does others."""
    own = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test", "start_method": "fork"}
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0, monitor_interval=0.1, **own)
    elastic_launch(config, run_command)(words)


def forked_torchrun(processes: int, *words: object) -> Forked:
    return Forked(agent, processes, ["train", "digits", *TINY, *SAME, *map(str, words)])


def trained(processes: int, out: Path, *words: object) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of all steps, and the averaged weights."""
    if processes == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optim, "has_fast_bf16", lambda device: False)
            assert cli.main(["train", "digits", *TINY, *SAME, "--out", str(out), *map(str, words)]) == 0
    else:
        together(processes, "train", "digits", *TINY, *SAME, "--out", out, *words, exact=True)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    (folder, *_) = checkpoint.step_folders(out / "checkpoints")
    return losses, checkpoint.read_tensors(folder / "ema.safetensors")


def same_weights(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """To 1e-5, and 1e-4 of large ones: Adam divides a gradient near zero, which is mostly rounding, by its own size."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


CASES = {
    "hybvit with muon, ddp": (2, ["--train.parallel=ddp", *MUON]),
    "hybvit with muon, fsdp": (2, ["--train.parallel=fsdp", *MUON]),
    "hybvit with adamw, four processes, parts": (4, ["--optim.name=adamw", "--train.accumulate=2"]),
    "hybvit with adamw, fsdp, recomputed": (2, ["--optim.name=adamw", "--train.parallel=fsdp", "--train.recompute=true"]),
    "vit": (2, ["--objective", "vit", "--train.parallel=ddp"]),
    "vit with muon, fsdp": (2, ["--objective", "vit", "--train.parallel=fsdp", *MUON]),
    "genvit with adamw, ddp": (2, ["--objective", "genvit", "--train.parallel=ddp", "--optim.name=adamw"]),
    "genvit, fsdp in parts": (2, ["--objective", "genvit", "--train.parallel=fsdp", "--train.accumulate=2"]),
    "strong augmentation": (2, ["--data.augment=strong", "--optim.name=adamw"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_several_processes_train_as_one(tmp_path, case):
    processes, words = CASES[case]
    alone = [word for word in words if not word.startswith(("--train.parallel", "--train.accumulate", "--train.recompute"))]
    one = trained(1, tmp_path / "one", *alone, "--train.steps=50")
    several = trained(processes, tmp_path / "several", *words, "--train.steps=50")
    assert len(one[0]) == len(several[0]) == 50
    torch.testing.assert_close(torch.tensor(several[0]), torch.tensor(one[0]), rtol=1e-5, atol=1e-5)
    same_weights(several[1], one[1])


@pytest.mark.slow
def test_parts_of_a_batch_and_recomputed_layers_are_the_plain_step(tmp_path):
    plain = trained(1, tmp_path / "plain", "--train.steps=10")
    other = trained(1, tmp_path / "parts", "--train.steps=10", "--train.accumulate=4", "--train.recompute=true")
    torch.testing.assert_close(torch.tensor(other[0]), torch.tensor(plain[0]), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "others"), [("ddp", (4,)), ("fsdp", (1, 4))])
def test_a_checkpoint_of_two_processes_resumes_on_others(tmp_path, kind, others):
    words = ["--train.checkpoint_every=5", f"--train.parallel={kind}"]
    whole = trained(1, tmp_path / "whole", "--train.steps=15")
    run = tmp_path / "run"
    trained(2, run, *words, "--train.steps=15", "--train.keep_checkpoints=9")
    for folder in checkpoint.step_folders(run / "checkpoints"):
        if checkpoint.step_of(folder) > 5:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    for processes in others:
        copy = tmp_path / str(processes)
        subprocess.run(["cp", "-r", run, copy], check=True)
        losses, weights = trained(processes, copy, *words, "--train.steps=15")
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(whole[0]), rtol=1e-5, atol=1e-5)
        same_weights(weights, whole[1])


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_and_the_same_command_resumes(tmp_path):
    run = ["--out", tmp_path / "run", "--train.checkpoint_every=5", "--train.log_every=5"]
    running = forked_torchrun(2, *run, "--train.steps=1000000")
    while not checkpoint.step_folders(tmp_path / "run" / "checkpoints"):
        time.sleep(0.1)
        assert running.poll() is None, running.communicate()
    workers = [int(pid) for pid in children(running.pid)]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    killed = time.monotonic()
    _, said = running.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert running.poll() != 0
    ours = [line for line in said.splitlines() if line.startswith("hybvit:")]
    assert len(ours) == 1, said
    assert "the same command resumes" in ours[0]
    again = forked_torchrun(2, *run, "--train.steps=1000000")
    step = checkpoint.step_of(checkpoint.step_folders(tmp_path / "run" / "checkpoints")[0])
    while checkpoint.step_of(checkpoint.step_folders(tmp_path / "run" / "checkpoints")[0]) == step:
        time.sleep(0.1)
        assert again.poll() is None, again.communicate()
    os.kill(int(children(again.pid)[1]), signal.SIGTERM)  # to one of them: all stop after the same step, and it is saved once
    out, said = again.communicate(timeout=60)
    assert f"resumed at step {step}" in out
    assert said.count("SIGTERM at step") == 1, said


def children(pid: int) -> list[str]:
    return subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()


@pytest.mark.slow
def test_an_error_in_every_process_is_said_once(tmp_path):
    running = torchrun(2, "--out", tmp_path / "run", "--train.steps=2", "--data", tmp_path / "none")
    _, said = running.communicate(timeout=120)
    assert running.returncode != 0
    assert said.count("no such folder") == 1, said


def step_of_one_of_64() -> None:
    dist.init_process_group("fake", rank=5, world_size=64, store=FakeStore())
    cfg = override(preset("imagenet224_v2"), model={"dim": 64, "image_size": 56}, train={"parallel": "fsdp"})
    assert "in pairs that are mixed: set" in str(parallel.why_not_shared(cfg, divided=True))
    cfg = override(cfg, train={"labelled_batch_size": 128})  # as docs/scale.md says
    net = build_network(cfg)
    loss = parallel.shared(loop.Loss(net, cfg.diffusion.build(), cfg.objective), cfg)
    optimizers = optim.build_optimizers(net, cfg.optim)
    batch = random_batch(cfg, "cpu", (2, 2))._replace(part=(5, 64))
    losses = loop.backward(loss, batch, cfg, 0)
    for optimizer in optimizers:
        optimizer.step()
    held = sum(parallel.local(p).numel() for p in net.parameters())
    print(held / sum(p.numel() for p in net.parameters()), losses.total.item())


@pytest.mark.slow
def test_a_step_of_one_of_64_processes():
    """With a process group that answers for the 63 others (it has no answer for DDP): eight machines of eight GPUs."""
    process = Forked(step_of_one_of_64)
    out, error = process.communicate()
    assert process.poll() == 0, error[-2000:]
    share, loss = map(float, out.split())
    assert 1 / 64 <= share < 1 / 40  # small tensors do not divide evenly
    assert math.isfinite(loss)


def test_the_job_script_is_sound():
    script = Path(__file__).parent.parent / "docs" / "slurm.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    fake = (  # a training that saves when it is told to end, and sends its script the signal of the scheduler
        'srun() { printf "%s " "cores:$SRUN_CPUS_PER_TASK" "$@"; [ -z "$SENT" ] || { trap "echo saved; exit 75" TERM; '
        "kill -USR1 $$; sleep 5 > /dev/null 2>&1 & wait; }; return 1; }; "
        'scontrol() { printf "[%s] " "$*" >&2; echo node1; }'
    )
    set_by_slurm = {"SLURM_JOB_NODELIST": "node[1-8]", "SLURM_NNODES": "8", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7"}
    set_by_slurm |= {"SLURM_CPUS_PER_TASK": "96"}  # which srun does not inherit
    command = ["bash", "-c", f"{fake}; source {script}", "x", "imagenet224_v2", "--out", "run"]
    for sent in ("", "1"):
        done = subprocess.run(
            command, env={**os.environ, **set_by_slurm, "SENT": sent}, capture_output=True, text=True, timeout=60
        )
        assert "--nnodes 8 --nproc-per-node 8" in done.stdout
        assert "cores:96" in done.stdout
        assert "-m hybvit train imagenet224_v2 --out run" in done.stdout
        assert ("[requeue 7]" in done.stderr, "saved" in done.stdout) == (bool(sent),) * 2  # an error is not tried again
        assert done.returncode != 0


@pytest.mark.slow
def test_parts_that_do_not_divide_the_rows_of_a_process_are_refused(tmp_path):
    words = ["--out", tmp_path / "run", "--train.steps=2", "--train.batch_size=24", "--train.accumulate=8"]
    with pytest.raises(AssertionError, match=r"of 24 images in 8 parts each: .* to multiples of 16"):
        together(2, "train", "digits", *TINY, *SAME, *words)


def test_what_one_process_cannot_do_for_several_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_STEP_NUM_TASKS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    done = hybvit("train", "digits", *TINY, "--train.steps=1", "--train.parallel=fsdp")
    assert "warning: --train.parallel does nothing in one process: torchrun starts several" in done.stdout
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    for words in (("train", "digits", *TINY), ("evaluate", "digits")):
        done = hybvit(*words)
        assert done.returncode == 2
        assert "srun started 4 tasks that do not know of each other" in done.stderr
    monkeypatch.setenv("WORLD_SIZE", "1")  # a task for each run of a sweep
    assert hybvit("train", "digits", *TINY, "--train.steps=1").returncode == 0
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert hybvit("train", "digits", *TINY, "--train.steps=1").returncode == 0


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (["--train.batch_size=15"], "8 processes cannot share a mini-batch of 15 images equally: set .* to multiples of 8"),
        (["--train.labelled_batch_size=20"], "8 processes cannot share a mini-batch of 20 images equally: "),
        (["--train.accumulate=2", "--train.labelled_batch_size=24"], "of 24 images in 2 parts each: set .* to multiples of 16"),
        (
            ["--data.augment=strong", "--train.accumulate=3", "--train.labelled_batch_size=24"],
            "of 24 images in 3 parts each, in pairs that are mixed: set .* to multiples of 48",
        ),
        (["--data.augment=strong", "--train.accumulate=2", "--train.labelled_batch_size=48"], None),
        (["--train.parallel=fsdp", "--train.compile=true"], "train.compile does not go with train.parallel fsdp"),
        ([], None),
    ],
)
def test_what_does_not_go_with_several_processes_is_named(monkeypatch, fields, problem):
    monkeypatch.setattr(parallel, "world_size", lambda: 8)
    cfg = parse([*fields], preset("digits"))
    found = parallel.why_not_shared(cfg, divided=cfg.train.parallel == "fsdp")
    assert found == problem or re.search(problem, found)


def test_parts_that_do_not_divide_a_batch_are_refused():
    with pytest.raises(ConfigError, match=r"train\.accumulate is 5, which does not divide a batch of 96"):
        parse(["--train.accumulate=5"], preset("digits"))
    with pytest.raises(ConfigError, match=r"train\.accumulate does not go with objective\.kind jem"):
        override(preset("cifar10_jem"), train={"accumulate": 2})
