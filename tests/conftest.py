"""One thread for each process: the tests run beside each other, and their numbers must not depend on the machine's cores."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}  # read when torch is imported, here and in child processes
os.environ["HF_HUB_OFFLINE"] = "1"  # read at import too: no test waits for an answer from there

import numpy as np
import pytest
import torch

from hybvit.config import Config, minibatches, needs_x0_augmented, needs_x0_labels
from hybvit.data.batches import TrainingBatches
from hybvit.data.datasets import open_dataset
from hybvit.data.image_set import Dataset
from hybvit.evaluation import plots
from hybvit.method.vit import ViTConfig

from .forked import end_all

DATA = Path(__file__).parent / "data"
torch.set_num_threads(1)


def leave_the_cache_alone() -> Path:
    """Let the cache, here and in child processes, be a new folder with links to what is in the user's: some tests read the real
    Fashion-MNIST there, and decoded images are to be kept elsewhere."""
    if multiprocessing.parent_process() is not None:  # of tests/forked.py, which has that of the test already
        return Path(os.environ["XDG_CACHE_HOME"])
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    made = Path(tempfile.mkdtemp(prefix="hybvit-tests-"))
    (made / "hybvit").mkdir()
    for entry in (*caches.glob("*"), *caches.glob("hybvit/*")):
        if entry not in (caches / "hybvit", caches / "hybvit" / "decoded"):
            (made / entry.relative_to(caches)).symlink_to(entry)
    os.environ["XDG_CACHE_HOME"] = str(made)
    return made


CACHE = leave_the_cache_alone()


def pytest_unconfigure() -> None:
    """Delete that folder; a worker of xdist ends without what `atexit` would do."""
    end_all()
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _the_same_start() -> None:
    """A test gives the same numbers alone, in any order, and on any worker."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries draw from it)
    random.seed(0)


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """A state dict in the published format with inputs and the outputs it must give."""
    return torch.load(DATA / "published_cifar_like.pt", weights_only=True)


@pytest.fixture(scope="session")
def golden_config(golden) -> ViTConfig:
    c = golden["config"]
    return ViTConfig(
        image_size=c["img_size"],
        patch_size=c["patch_size"],
        channels=c["channels"],
        num_classes=c["num_classes"],
        dim=c["dim"],
        depth=c["depth"],
        heads=c["heads"],
        ffn_time=bool(c["ffn_time"]),
    )


@pytest.fixture(scope="session")
def golden_file(golden, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "ckpt.pth"
    torch.save(golden["published_state_dict"], path)
    return path


def hybvit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, without the seconds that a new one takes to import torch."""
    from hybvit import cli

    words, out, err = list(map(str, arguments)), io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setenv("HF_HUB_OFFLINE", "1")
        code = cli.main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def hybvit_process(*arguments: str | Path, cwd: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user's shell would."""
    command = [sys.executable, "-m", "hybvit.cli", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def opened(cfg: Config) -> Dataset:
    """The data of a configuration, as training opens them."""
    return open_dataset(cfg.data, cfg.model.image_shape, cfg.model.num_classes, labeled=cfg.objective.kind != "genvit")


def batches_of(data: Dataset, cfg: Config, rank: int = 0, world: int = 1) -> TrainingBatches:
    """The batches of a configuration, as training takes them."""
    needs = {"x0_labels": needs_x0_labels(cfg), "x0_augmented": needs_x0_augmented(cfg)}
    return TrainingBatches(data, cfg.data, minibatches(cfg), cfg.train.seed, **needs, rank=rank, world=world)


QUICK = (  # every suite of evaluate, in seconds
    "--limit=40", "--samples=20", "--steps=2", "--bound-images=4", "--bound-draws=4", "--attack-images=8",
    "--autoattack-images=0", "--attack-steps=2", "--corruption-images=8",
    "--certified-images=3", "--certified-votes=20", "--reading-images=12", "--reading-attacks=2",
)  # fmt: skip
TINY = (
    "--model.dim=16", "--model.depth=2", "--model.heads=2", "--train.batch_size=8", "--train.checkpoint_every=5",
    "--train.preview_every=0", "--train.log_every=5", "--optim.warmup_steps=2",
)  # fmt: skip
ENDLESS = ("--train.steps=100000", "--train.compile=false")  # auto would try the compiler, which takes a minute


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A finished run folder of a very small network on the digits."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = hybvit("train", "digits", "--out", out, "--train.steps=20", *TINY)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def no_plots(monkeypatch) -> None:
    """Most of the time of a small evaluation is that of its plots, which other tests draw."""
    monkeypatch.setattr(plots, "svg", lambda figure: "<svg></svg>")
