"""Files of a run and of an evaluation that are damaged: one bad line or file costs no other, and nothing passes for sound."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hybvit
from hybvit import checkpoint
from hybvit.errors import CheckpointError, ConfigError, DataError
from hybvit.evaluation.context import read_shard, write_shard
from hybvit.evaluation.suites import read_result
from hybvit.presets import preset
from hybvit.storage import lock_folder, read_json, write_text
from hybvit.training.run_folder import RunFolder, read_metrics, training_summary

from .conftest import ENDLESS, QUICK, TINY
from .conftest import hybvit as command
from .forked import started

# metrics.jsonl

LINES = [{"step": step, "loss": 1.0, "seconds": 1.0, "images_per_second": 9.0} for step in (1, 2, 3)]
BAD_LINES = [
    b'{"step": 2, "lo', b"", b"null", b"[1, 2]", b"7", b'{"loss": 1.0}', b'{"step": "2"}', b'{"step": 2, "loss": null}',
    b'{"step": 2, "loss": NaN}', b'{"step": 2, "loss": 1.0}', b"\xff\xfe\x00", b'{"step": 2.5}', b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_damaged_line_of_the_metrics_costs_no_other(tmp_path, bad):
    texts = [json.dumps(line).encode() for line in LINES]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([texts[0], bad, *texts[2:]]) + b"\n")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 2 is damaged"):
        found = read_metrics(tmp_path / "metrics.jsonl")
    assert found == [LINES[0], LINES[2]]
    assert training_summary(found)["steps"] == 3


@pytest.mark.parametrize(
    "change", [{"loss": int("1" * 400)}, {"seconds": 1e308}, {"seconds": -1.0}, {"step": -3}, {"loss": 1e200}]
)
def test_numbers_that_no_training_writes_are_damage(tmp_path, change):
    texts = [json.dumps(LINES[0]), json.dumps({**LINES[1], **change}), json.dumps(LINES[2])]
    (tmp_path / "metrics.jsonl").write_text("\n".join(texts) + "\n")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 2 is damaged"):
        assert read_metrics(tmp_path / "metrics.jsonl") == [LINES[0], LINES[2]]


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_a_pipe_in_a_run_folder_is_no_wait(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="a pipe"), RunFolder(tmp_path, preset("digits")) as run:
        run.forget_metrics_after(0)


def test_a_last_line_that_a_kill_cut_is_no_damage(tmp_path, recwarn):
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / "metrics.jsonl").write_text(text[:-9])
    assert read_metrics(tmp_path / "metrics.jsonl") == LINES[:2]
    assert not recwarn.list


# sample shards


@pytest.mark.parametrize("place", [0, 8, 20, -1, -100])
def test_a_flipped_byte_of_a_sample_shard_is_found(tmp_path, place):
    pixels, path = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8), tmp_path / "a.safetensors"
    write_shard(path, pixels)
    assert torch.equal(read_shard(path, (4, 1, 8, 8)), pixels)
    raw = bytearray(path.read_bytes())
    raw[place] ^= 4
    path.write_bytes(raw)
    with pytest.warns(UserWarning, match=r"a\.safetensors: damaged; these images are drawn again"):
        assert read_shard(path, (4, 1, 8, 8)) is None


def test_a_shard_of_another_form_is_drawn_again(tmp_path):
    path, shape = tmp_path / "a.safetensors", (4, 1, 8, 8)
    for tensors in (
        {"pixels": torch.zeros(shape, dtype=torch.uint8)},
        {"other": torch.zeros(3)},
        {"pixels": torch.zeros(shape)},
    ):
        save_file(tensors, path)
        with pytest.warns(UserWarning, match="drawn again"):
            assert read_shard(path, shape) is None
    for content in (b"", b"x", b"\x00" * 100):
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="drawn again"):
            assert read_shard(path, shape) is None
    write_shard(path, torch.zeros(5, 1, 8, 8, dtype=torch.uint8))
    with pytest.warns(UserWarning, match="drawn again"):
        assert read_shard(path, shape) is None


@pytest.mark.parametrize("what", ["a file", "a folder"])
def test_everything_has_reached_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, what):
    """A rename that is on the disk before the data would leave an empty file after a power cut."""
    done: list[str] = []
    flush, rename, replace = os.fsync, os.rename, os.replace

    def flushed(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", lambda old, new: done.append(f"-> {Path(new).name}") or replace(old, new))
    monkeypatch.setattr(os, "rename", lambda old, new: done.append(f"-> {Path(new).name}") or rename(old, new))
    if what == "a file":
        write_text(tmp_path / "x.json", "{}")
        assert [name.startswith(".x.json.") or name for name in done] == [True, "-> x.json"]
        return
    folder = tmp_path / "export"
    checkpoint.write_folder(folder, {"network": {"w": torch.arange(5.0)}}, {"note.txt": "hello"}, step=1)
    at = done.index("-> export")
    assert {"network.safetensors", "note.txt", checkpoint.MANIFEST} <= set(done[:at])
    assert any(name.startswith(".export.") for name in done[:at])  # the folder, which holds their names
    assert tmp_path.name in done[at:]


# results


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "tiny"
    done = command("evaluate", tiny_run, "--suites", "accuracy,fidelity", "--out", out, *QUICK, "--report")
    assert done.returncode == 0, done.stderr
    return out


def damaged(text: str, how: str) -> str:
    content = json.loads(text)
    if how == "cut":
        return text[: len(text) // 2]
    if how in ("[]", "null", "3", '"x"', "{}"):
        return how
    if how == "another digit":
        return text.replace('"value": 0.', '"value": 0.0', 1)
    name, _, value = how.partition("=")
    content[name] = json.loads(value)
    return json.dumps(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        "[]", "null", "3", '"x"', "{}", "cut", "metrics=[]", "metrics=null", 'metrics={"test/accuracy": 3}', "settings=[1]",
        'metrics={"test/accuracy": {"value": "0.9", "n": 40}}', "notes=3", "notes=[{}]", "pictures=[]", "seconds=null",
        'pictures={"gone": "a picture"}', "tables=7", "another digit",
    ],
)  # fmt: skip
def test_a_damaged_result_is_not_read(evaluated, tmp_path, how):
    out = tmp_path / "accuracy"
    shutil.copytree(evaluated / "evaluation" / "accuracy", out)
    assert read_result(out) is not None
    (out / "result.json").write_text(damaged((out / "result.json").read_text(), how))
    assert read_result(out) is None


@pytest.mark.slow
def test_a_damaged_result_is_measured_again(tiny_run, evaluated, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(evaluated, out)
    path = out / "evaluation" / "accuracy" / "result.json"
    path.write_text(damaged(path.read_text(), "another digit"))
    again = command("evaluate", tiny_run, "--suites", "accuracy", "--out", out, *QUICK, "--report")
    assert again.returncode == 0, again.stderr
    assert "accuracy: how often" in again.stdout
    before, after = (json.loads((folder / "results.json").read_text())["metrics"] for folder in (evaluated, out))
    assert before == after


@pytest.mark.slow
def test_damaged_samples_are_drawn_again_and_give_the_same_numbers(tiny_run, evaluated, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(evaluated, out)
    (shard,) = (out / "samples").glob("*/*.safetensors")
    raw = bytearray(shard.read_bytes())
    raw[-5] ^= 255
    shard.write_bytes(raw)
    with pytest.warns(UserWarning, match="drawn again"):
        again = command("evaluate", tiny_run, "--suites", "fidelity", "--out", out, *QUICK, "--again")
    assert again.returncode == 0, again.stderr
    before, after = (json.loads((folder / "results.json").read_text())["metrics"] for folder in (evaluated, out))
    assert before == after


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "{", "", '{"a": 1}', "\x00"])
def test_a_record_that_is_no_object_is_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=r"results\.json: damaged"):
        read_json(tmp_path / "results.json", "metrics")


# locks and races


def test_a_lock_holds_in_this_process_and_in_others(tmp_path):
    other = f"from hybvit.storage import lock_folder; from pathlib import Path; lock_folder(Path({str(tmp_path)!r}))"
    lock = lock_folder(tmp_path)
    for _ in range(2):  # a refused try must not release it
        with pytest.raises(ConfigError, match="in use by another process"):
            lock_folder(tmp_path)
        tried = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
        assert "in use by another process" in tried.stderr
    lock_folder(tmp_path, ".other").close()
    lock.close()
    assert subprocess.run([sys.executable, "-c", other], capture_output=True).returncode == 0
    lock_folder(tmp_path).close()


def test_children_that_outlive_a_killed_process_do_not_keep_its_lock(tmp_path):
    script = (
        "import os, time; from pathlib import Path; from hybvit.storage import lock_folder\n"
        f"lock = lock_folder(Path({str(tmp_path)!r}))\n"
        "child = os.fork()\n"
        "print(child, flush=True) if child else None\n"
        "time.sleep(60)\n"
    )
    started = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(started.stdout.readline())
    try:
        with pytest.raises(ConfigError):
            lock_folder(tmp_path)
        started.kill()
        started.wait()
        lock_folder(tmp_path).close()
        os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_a_second_evaluation_in_one_folder_is_refused_in_one_line(tiny_run, tmp_path):
    lock = lock_folder(tmp_path, ".evaluate.lock")
    second = command("evaluate", tiny_run, "--suites", "accuracy", "--out", tmp_path, *QUICK)
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert "in use by another process" in second.stderr
    lock.close()
    assert command("evaluate", tiny_run, "--suites", "accuracy", "--out", tmp_path, *QUICK).returncode == 0


@pytest.mark.slow
def test_a_training_that_checkpoints_at_every_step_can_be_loaded_beside_it(tmp_path):
    out, failed, loaded = tmp_path / "run", [], []
    words = ["train", "digits", "--out", str(out), *TINY, *ENDLESS, "--train.checkpoint_every=1"]
    training = started(*words, "--train.keep_checkpoints=1")
    try:
        deadline = time.monotonic() + 60
        while not checkpoint.step_folders(out / "checkpoints") and time.monotonic() < deadline:
            time.sleep(0.05)
        for _ in range(8):
            try:
                loaded.append(hybvit.load(out, "cpu"))
            except CheckpointError as error:
                failed.append(str(error))
    finally:
        training.kill()
        training.wait()
    assert (failed, len(loaded)) == ([], 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["export", "an [odd] name", "v1.0"])
def test_an_export_that_was_being_replaced_is_there_again(tiny_run, tmp_path, name):
    folder = tmp_path / name
    hybvit.load(tiny_run, "cpu").save_pretrained(folder)
    folder.rename(tmp_path / f".{name}.4711.replaced")
    shutil.copytree(tmp_path / f".{name}.4711.replaced", tmp_path / f".{name}.host.4711.part")
    model = hybvit.load(folder, "cpu")
    assert folder.is_dir()
    model.save_pretrained(folder)
    assert not list(tmp_path.glob(".*.replaced"))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 100, 4000, 15_000])
def test_a_full_disk_is_named_and_leaves_nothing_that_passes_for_a_result(tiny_run, tmp_path, limit):
    """The limit on a file's size fails as a full disk does: at any write, with an OSError."""
    import resource

    before, out = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "out"
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        full = command("evaluate", tiny_run, "--suites", "accuracy,calibration,fidelity", "--out", out, *QUICK, "--report")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert full.returncode == 3, full.stderr
    assert full.stderr.count("\n") == 1
    assert "cannot be written" in full.stderr
    assert not list(tmp_path.rglob("*.part"))
    assert not (out / "results.json").exists()
    again = command("evaluate", tiny_run, "--suites", "accuracy,calibration,fidelity", "--out", out, *QUICK, "--report")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("network", "positions", torch.zeros(3)),
        ("ema", "more", torch.zeros(3)),
        ("optimizer", "0/exp_avg", torch.zeros(2, 7)),
        ("optimizer", "x/exp_avg", torch.zeros(1)),
        ("optimizer", "99999/exp_avg", torch.zeros(1)),
        ("optimizer", "7/0/exp_avg", torch.zeros(1)),
        ("random", "cpu", torch.zeros(3)),
    ],
)
def test_a_checkpoint_whose_checksums_are_right_may_still_not_fit(tiny_run, tmp_path, file, key, value):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    folder = checkpoint.step_folders(run / "checkpoints")[0]
    manifest = checkpoint.verify(folder)
    tensors = {path.stem: checkpoint.read_tensors(path) for path in folder.glob("*.safetensors")}
    tensors[file][key] = value
    texts = {"config.yaml": (folder / "config.yaml").read_text()}
    facts = {name: fact for name, fact in manifest.items() if name not in ("sha256", checkpoint.DIGEST)}
    checkpoint.write_folder(folder, tensors, texts, **facts)
    for other in checkpoint.step_folders(run / "checkpoints"):
        if other != folder:
            shutil.rmtree(other)
    refused = command("train", "digits", "--out", run, "--train.steps=20", *TINY)
    assert refused.returncode == 5, refused.stderr
    assert refused.stderr.count("\n") == 1
    assert folder.name in refused.stderr


@pytest.mark.parametrize("text", ["[]", "3", '{"earlier": 3}', '{"earlier": [1, {}, {"until_step": "x"}]}', "\x00", ""])
def test_a_damaged_record_of_environments_costs_nothing_else(tiny_run, tmp_path, text):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "environment.json").write_text(text)
    assert command("train", "digits", "--out", run, "--train.steps=20", *TINY).returncode == 0
    assert "earlier" not in read_json(run / "environment.json")


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
def test_a_file_that_is_far_too_large_is_not_read(tiny_run, tmp_path, name):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    for path in run.rglob(name):
        os.truncate(path, 8 << 30)  # it takes no space on the disk
    refused = command("sample", run, "-n", "1", "--steps", "1", "--out", tmp_path / "a.png")
    assert refused.returncode in (2, 5), refused.stderr
    assert name in refused.stderr
