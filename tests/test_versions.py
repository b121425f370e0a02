"""A stored configuration is complete, or refused: what is missing never becomes a default, which would be another model."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

import hybvit
from hybvit.config import load_config, override, to_yaml
from hybvit.errors import CheckpointError, ConfigError
from hybvit.networks import check_classes
from hybvit.presets import preset
from hybvit.versions import CHANGES, FIRST

OLD = Path(__file__).parent / "data" / "v0.1.0" / "run" / "config.yaml"
TEXTS = {  # configurations of this version and of the one that wrote no version
    "now": to_yaml(override(preset("digits"), data={"classes": tuple("0123456789")})),
    "0.1.0": OLD.read_text(encoding="utf-8"),
}


def load(text: str, folder: Path) -> hybvit.Config:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


@pytest.mark.slow
@pytest.mark.parametrize("version", TEXTS)
def test_every_cut_at_a_line_end_is_refused_or_equal(version, tmp_path):
    lines = TEXTS[version].splitlines(keepends=True)
    whole = load(TEXTS[version], tmp_path)
    for n in range(len(lines)):
        with pytest.raises(ConfigError, match=r"config\.yaml: "):
            load("".join(lines[:n]), tmp_path)
    assert load("".join(lines), tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("version", TEXTS)
def test_every_dropped_line_of_a_field_is_refused_by_name(version, tmp_path):
    lines, group = TEXTS[version].splitlines(keepends=True), ""
    for n, line in enumerate(lines):
        name, colon, _ = line.strip().partition(":")
        if not colon:
            continue  # an element of a list
        group = group if line.startswith(" ") else name
        with pytest.raises(ConfigError) as refused:
            load("".join(lines[:n] + lines[n + 1 :]), tmp_path)
        if line.startswith(" ") and (n + 1 == len(lines) or not lines[n + 1].lstrip().startswith("-")):
            assert f"{group}.{name} is missing" in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("version", TEXTS)
def test_every_duplicated_line_of_a_field_is_refused(version, tmp_path):
    lines = TEXTS[version].splitlines(keepends=True)
    for n, line in enumerate(lines):
        if ":" in line:
            with pytest.raises(ConfigError):
                load("".join([*lines[: n + 1], *lines[n:]]), tmp_path)


@pytest.mark.parametrize("twice", ["train:\n  seed: 3\n", "hybvit: 0.1.0\n", "model:\n", '"data": {}\n'])
def test_a_group_that_occurs_twice_is_refused(tmp_path, twice):
    with pytest.raises(ConfigError, match="occurs twice"):
        load(TEXTS["now"] + twice, tmp_path)


@pytest.mark.parametrize("version", ["99.0.0", "0.2", "0.2.0.dev0x", "null", "3", "[0, 2, 0]"])
def test_the_version_is_one_that_there_was(tmp_path, version):
    first, rest = TEXTS["now"].split("\n", 1)
    assert first == f"hybvit: {hybvit.__version__}"
    with pytest.raises(ConfigError, match=r"hybvit is|written by hybvit 99\.0\.0"):
        load(f"hybvit: {version}\n{rest}", tmp_path)


def as_written_by(version: str) -> str:
    """The configuration of this version as an older one wrote it, with its fields."""
    groups = yaml.safe_load(TEXTS["now"])
    del groups["hybvit"]
    since = list(CHANGES.values())[list(CHANGES).index(version) :]
    for changes in reversed(since):
        for name in changes.added:
            group, leaf = name.split(".")
            del groups[group][leaf]
        for name, understood in changes.removed.items():
            group, leaf = name.split(".")
            groups[group][leaf] = understood[0][0]
    return yaml.safe_dump({} if version == FIRST else {"hybvit": version}, sort_keys=False).replace(
        "{}\n", ""
    ) + yaml.safe_dump(groups)


@pytest.mark.parametrize("version", CHANGES)
def test_what_each_version_wrote_is_read_and_nothing_else_passes_for_it(tmp_path, version):
    now, then = TEXTS["now"].split("\n", 1)[1], as_written_by(version)
    assert load(then, tmp_path) == load(TEXTS["now"], tmp_path)
    claimed = "" if version == FIRST else f"hybvit: {version}\n"
    for text in (claimed + now, f"hybvit: {hybvit.__version__}\n{then.removeprefix(claimed)}"):
        with pytest.raises(ConfigError, match=r"unknown field|is missing"):
            load(text, tmp_path)


def test_a_configuration_of_0_1_0_is_migrated(tmp_path):
    cfg = load(TEXTS["0.1.0"], tmp_path)
    assert load(to_yaml(cfg), tmp_path) == cfg
    assert not any(name.split(".")[1] + ":" in to_yaml(cfg) for name in CHANGES[FIRST].removed if name != "model.norm")
    assert cfg.data.split == "hash"  # a named data set has a split of its own
    own = TEXTS["0.1.0"].replace(f"\n  name: {cfg.data.name}\n", "\n  name: folder\n")
    assert load(own, tmp_path).data.split == "every_fifth"


@pytest.mark.parametrize(("switch", "names"), [("true", "tensorboard"), ("false", "")])
def test_the_switch_of_tensorboard_became_a_name(tmp_path, switch, names):
    for version in (FIRST, "0.2.0.dev0"):
        text = as_written_by(version).replace("tensorboard: false", f"tensorboard: {switch}")
        assert load(text, tmp_path) == override(load(TEXTS["now"], tmp_path), train={"track": names})
        with pytest.raises(ConfigError, match=r"train\.tensorboard is 3: of that option, .* only False or True is understood"):
            load(text.replace(f"tensorboard: {switch}", "tensorboard: 3"), tmp_path)


@pytest.mark.parametrize("version", [FIRST, "0.2.0.dev0", "0.2.0.dev1"])
def test_times_that_were_not_uniform_are_refused(tmp_path, version):
    text = as_written_by(version)
    assert "times: uniform" in text
    with pytest.raises(ConfigError, match=r"objective\.times is 'logit_normal': .* only 'uniform' is understood"):
        load(text.replace("times: uniform", "times: logit_normal"), tmp_path)


@pytest.mark.slow
def test_a_small_file_of_many_values_ends_at_once(tmp_path):
    bomb = "model: &a [x, x]\n" + "".join(f"k{i}: &b{i} [*{'a' if not i else f'b{i - 1}'}, *a]\n" for i in range(40))
    many = "".join(f"k{i}: 1\n" for i in range(60_000))
    started = time.monotonic()
    for text, said in ((bomb, "alias"), (many, "unknown group 'k0'")):
        with pytest.raises(ConfigError, match=said):
            load(text, tmp_path)
    cfg = load(TEXTS["now"], tmp_path)
    names = tuple(map(str, range(100_000)))
    with pytest.raises(CheckpointError, match="99999"):
        check_classes(override(cfg, model={"num_classes": 100_001}, data={"classes": (*names, "99999")}), tmp_path)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "text", ["? [a]\n: 1\n", "model: &a\n  - *a\n", "- 1\n", "\x00", "model: 2001-99-99\n", "<<: {a: 1}\n"]
)
def test_what_is_no_configuration_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(ConfigError) as refused:
        load(text, tmp_path)
    assert "\n" not in str(refused.value)
