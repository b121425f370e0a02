"""`hybvit doctor`: what it finds here, and what it says of machines and installations in trouble."""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from hybvit import __version__, cli, devices
from hybvit.cli.doctor import describe, examine
from hybvit.errors import CheckpointError
from hybvit.health import machine, packages, places
from hybvit.health.finding import Finding, worst

from .conftest import hybvit


def found(check: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(check)}


def test_this_machine_is_told_to_readers_and_programs():
    done = hybvit("doctor", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    by_name = {(finding["section"], finding["name"]): finding for finding in record["findings"]}
    assert record["state"] != "broken"
    assert by_name["versions", "hybvit"]["facts"]["version"] == __version__
    assert by_name["versions", "torch"]["facts"]["version"] == torch.__version__.partition("+")[0]
    assert by_name["devices", "cpu"]["facts"]["cores"] == os.cpu_count()
    assert by_name["threads", "number"]["facts"]["threads"] == 1
    assert by_name["models", "digits"]["state"] == "ok"
    assert by_name["data", "digits"]["state"] == "ok"
    assert {section for section, _ in by_name} == {
        "versions", "extras", "devices", "threads", "memory", "compiler", "caches", "models", "data",
    }  # fmt: skip
    assert all(finding["cure"] for finding in record["findings"] if finding["state"] != "ok")


def version_of(versions: dict[str, str]):
    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    return version


@pytest.mark.parametrize(
    ("asked", "installed", "state", "words"),
    [
        ("torch>=2.10", "2.14.1+cu130", "ok", "2.14.1+cu130 (>=2.10)"),
        ("torch>=2.10", "2.9.1", "broken", "2.9.1 is too old (>=2.10)"),
        ("torchvision<0.30,>=0.25", "0.30.0", "warning", "0.30.0 is too new (<0.30,>=0.25); not tried with hybvit"),
        ("torch>=2.10", None, "broken", "not installed (>=2.10)"),
        ("scipy>=1.13", None, "warning", "not installed (>=1.13); for evaluate, calibrate, certificates, corruptions"),
        ("huggingface_hub>=0.34", None, "warning", "not installed (>=0.34); for models and data sets of the hub"),
        ("tqdm", "4.67", "ok", "4.67"),
    ],
)
def test_a_version_is_compared_with_what_is_allowed(asked, installed, state, words, monkeypatch):
    requirement = Requirement(asked)
    monkeypatch.setattr(packages, "version", version_of({} if installed is None else {requirement.name: installed}))
    finding = packages.package(requirement)
    assert (finding.state, finding.words) == (state, words)
    assert finding.cure == ("" if state == "ok" else f"pip install '{finding.name}{requirement.specifier}'")


def test_a_package_that_cannot_be_imported_is_broken(monkeypatch):
    def fails(name: str):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(packages.importlib, "import_module", fails)
    finding = packages.package(Requirement("torchvision>=0.25"))
    assert (finding.state, "nms does not exist" in finding.words) == ("broken", True)
    assert "in pairs" in finding.cure


def test_extras_say_what_is_missing_or_does_not_fit(monkeypatch):
    asked = [
        "torch>=2",
        "onnx>=1.17; extra == 'export'",
        "onnxruntime>=1.22; extra == 'export'",
        "gradio<7,>=6; extra == 'serve'",
    ]
    asked += ["wandb>=0.20; extra == 'track'"]
    monkeypatch.setattr(packages, "requires", lambda name: asked)
    monkeypatch.setattr(packages, "version", version_of({"onnx": "1.18", "gradio": "5.1", "wandb": "0.21"}))
    extras = {finding.name: finding for finding in packages.extras()}
    assert extras.keys() == {"export", "serve", "track"}
    assert (extras["export"].state, extras["export"].words) == ("absent", "onnxruntime is missing")
    assert (extras["serve"].state, extras["serve"].words) == ("warning", "gradio is too old")
    assert (extras["track"].state, extras["track"].words) == ("ok", "wandb 0.21")
    assert extras["export"].cure == "pip install 'hybvit[export]'"


def test_an_installation_of_another_version_is_told(monkeypatch):
    monkeypatch.setattr(packages, "version", version_of({"hybvit": "0.1.0"}))
    assert packages.hybvit_itself().state == "warning"
    monkeypatch.setattr(packages, "version", version_of({}))
    assert "not installed" in packages.hybvit_itself().words


def test_more_threads_than_cores_and_busy_cores_are_told(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(machine, "usable_cores", lambda: {0, 1})
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    monkeypatch.setattr(machine, "busy_share", lambda: 0.9)
    number, others = machine.threads()
    assert (number.state, number.cure) == ("warning", "OMP_NUM_THREADS=2")
    assert (others.state, "OMP_NUM_THREADS=1" in others.cure) == ("warning", True)
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(machine, "busy_share", lambda: 0.0)
    number, others = machine.threads()
    assert (number.cure, others.state) == ("OMP_NUM_THREADS=1", "ok")


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="no /proc/stat")
def test_the_busy_share_is_that_of_the_usable_cores(monkeypatch):
    """Half of the ticks of core 1 are idle; core 0, which is all busy, may not be used."""
    stats = iter(["cpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\n", "cpu0 100 0 0 0 0 0 0 0\ncpu1 30 10 10 40 10 0 0 0\n"])
    monkeypatch.setattr(devices, "usable_cores", lambda: {1})
    monkeypatch.setattr(devices, "time", SimpleNamespace(sleep=lambda span: None))
    monkeypatch.setattr(Path, "read_text", lambda path: next(stats))
    assert devices.busy_share() == pytest.approx(0.5)


def test_little_memory_and_a_folder_that_is_not_writable_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "available_memory", lambda: (1 << 30, 8 << 30))
    memory = next(machine.memory())
    assert (memory.state, memory.words) == ("warning", "1.0 GiB of 8.0 GiB available")
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    finding = machine.disk("cache", tmp_path / "not" / "yet")
    assert (finding.state, finding.cure) == ("warning", "XDG_CACHE_HOME=FOLDER")
    assert finding.words.endswith("not writable")


def test_a_missing_compiler_is_no_trouble_but_told(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    (finding,) = machine.compiler()
    assert (finding.state, "no no-such-compiler" in finding.words) == ("absent", True)


def test_the_size_of_a_cache_is_that_of_its_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"12345")
    (tmp_path / "y").write_bytes(b"123")
    assert places.size_of(tmp_path) == 8
    assert places.size_of(tmp_path / "none") == 0


def test_an_altered_model_is_broken_and_the_exit_code_says_so(monkeypatch, capsys):
    def altered(name: str, device: str):
        raise CheckpointError(f"{name}: altered")

    monkeypatch.setattr(places, "load", altered)
    monkeypatch.setattr("hybvit.cli.doctor.CHECKS", ("places.models",))
    assert cli.main(["doctor"]) == 2
    out, err = capsys.readouterr()
    assert "BROKEN" in out
    assert packages.REINSTALL in out
    assert "needed, but broken: cifar10, digits, fashion-mnist" in err


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def fails():
        raise OSError("no such device")
        yield

    monkeypatch.setattr(machine, "devices", fails)
    (finding,) = found("machine.devices").values()
    assert (finding.state, "no such device" in finding.words) == ("warning", True)


def test_the_lines_end_with_a_verdict():
    some = [Finding("a", "x", "fine"), Finding("a", "y", "slow", "warning", "do z")]
    assert list(describe(some)) == [
        "a",
        "  ok       x  fine",
        "  warning  y  slow",
        "              -> do z",
        "everything that is needed works; 1 warning",
    ]
    assert worst(some) == "warning"
    assert worst([]) == "ok"


def test_a_container_has_the_memory_that_files_take(tmp_path, monkeypatch):
    """Pages of files that were read count as used, and are given up first."""
    gib = 2**30
    (tmp_path / "memory.max").write_text(f"{4 * gib}\n")
    (tmp_path / "memory.current").write_text(f"{4 * gib - 4096}\n")
    (tmp_path / "memory.stat").write_text(f"anon {gib}\ninactive_file {2 * gib}\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    machine.MEMORY.write_text(f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n")
    assert machine.available_memory() == (2 * gib + 4096, 4 * gib)


def test_caches_are_found_by_a_user_without_a_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda place: place)  # as where neither HOME nor the user's number is known
    assert {finding.name for finding in places.caches()} == {"hybvit", "decoded images", "hub", "compiled"}
