"""Stored configurations: which version wrote one, which fields it must hold, and what older fields mean now.

A default is for what a user leaves out. A model that was stored lacks nothing, so a missing field is damage, and taking its
default would make another model of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from . import __version__
from .catalog import OWN_IMAGES
from .errors import ConfigError, did_you_mean

KEY = "hybvit"  # of the version in a stored configuration
FIRST = "0.1.0"  # it wrote no version into its configurations


class Changes(NamedTuple):
    """How the fields changed after a version.

    Attributes:
        added: fields that it did not have; it did what their defaults do.
        removed: fields that are gone -> the values that are still understood, and what each of them is now.
    """

    added: tuple[str, ...]
    removed: dict[str, list[tuple[Any, dict[str, Any]]]]


def _only(value: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Of an option that was removed, the value which left it out."""
    return [(value, {})]


CHANGES = {  # the last version before them -> the changes, the oldest first
    FIRST: Changes(
        ("data.split", "data.bits", "data.fingerprint", "train.accumulate", "train.recompute", "train.parallel"),
        {
            "model.norm": _only("layer"),
            "model.registers": _only(0),
            "model.class_pool": _only("token"),
            "objective.balance": _only("fixed"),
            "objective.class_noise": _only(0.0),
            "optim.cooldown": _only(0.2),
            "train.ema_power": _only([]),
        },
    ),
    "0.2.0.dev0": Changes(
        ("optim.freeze", "train.track", "data.labelled", "objective.pseudo_labels"),
        {
            "train.tensorboard": [(False, {"train.track": ""}), (True, {"train.track": "tensorboard"})],
        },
    ),
    "0.2.0.dev1": Changes((), {"objective.times": _only("uniform")}),
    "0.2.0.dev2": Changes(("data.lanes",), {}),
}

MEANT_BY_FIRST = {"data.split": "every_fifth"}  # what 0.1.0 did with the user's own images, where it is not the default


class Loader(yaml.SafeLoader):
    """YAML in which a key may occur once, since of two the last would win, and without aliases, with which a few lines hold
    millions of values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ConfigError("an alias (*) is no part of a configuration: write the value out")
        return super().compose_node(parent, index)


def _mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    counts = Counter(str(getattr(key, "value", None)) for key, _ in node.value)
    for key, count in counts.items():
        if count > 1:
            raise ConfigError(f"{key} occurs twice")
    return loader.construct_mapping(node, deep=True)


Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def migrate(content: dict[Any, Any], fields: Mapping[str, Collection[str]]) -> dict[str, dict[str, Any]]:
    """The content of a stored configuration of any version -> the fields of this version.

    Args:
        content: what the file holds.
        fields: group -> the names of its fields in this version.

    Raises:
        ConfigError: a field that its version had is missing, or one is unknown, or was removed and is not at its default.
    """
    content = dict(content)
    written_by = content.pop(KEY, FIRST)
    if _order(written_by) > _order(__version__):
        raise ConfigError(f"written by hybvit {written_by}, this is {__version__}: install the newer version")
    since = [changes for last, changes in CHANGES.items() if _order(written_by) <= _order(last)]
    known = _fields_before(since, fields)
    groups = {group: _group(content, group, fields) for group in content}
    for group, found in groups.items():
        for leaf in found:
            if leaf not in known[group]:
                raise ConfigError(f"unknown field {group}.{leaf}{did_you_mean(str(leaf), known[group])}")
    _check_complete(groups, known)
    for changes in since:
        for name, understood in changes.removed.items():
            _replace(groups, name, understood)
    if _order(written_by) <= _order(FIRST) and groups["data"]["name"] in OWN_IMAGES:
        for name, before in MEANT_BY_FIRST.items():
            group, leaf = name.split(".")
            groups[group][leaf] = before
    return groups


def _fields_before(since: Sequence[Changes], fields: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """The fields of a version, from those of this one and the changes since."""
    known = {group: list(names) for group, names in fields.items()}
    for changes in reversed(since):
        for name in changes.added:
            group, leaf = name.split(".")
            if leaf in known[group]:
                known[group].remove(leaf)
        for name in changes.removed:
            group, leaf = name.split(".")
            known[group].append(leaf)
    return known


def _replace(groups: dict[str, dict[str, Any]], name: str, understood: Sequence[tuple[Any, dict[str, Any]]]) -> None:
    """Replace a field that was removed by what its value is now."""
    group, leaf = name.split(".")
    value = groups[group].pop(leaf)
    for known, now in understood:
        if value == known and type(value) is type(known):
            for new, meant in now.items():
                group, leaf = new.split(".")
                groups[group][leaf] = meant
            return
    values = " or ".join(repr(known) for known, _ in understood)
    raise ConfigError(f"{name} is {value!r}: of that option, which was removed, only {values} is understood")


def _order(version: Any) -> tuple[int, ...]:
    """A version as numbers that compare: 0.2.0.dev0 comes before 0.2.0."""
    found = re.fullmatch(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?:\.dev(\d{1,6}))?", version if isinstance(version, str) else "")
    if found is None:
        raise ConfigError(f"{KEY} is {version!r}: it must be the version that wrote the file, such as {__version__}")
    *release, dev = found.groups()
    return (*map(int, release), 10**6 if dev is None else int(dev))


def _group(content: dict[Any, Any], group: Any, fields: Mapping[str, Collection[str]]) -> dict[str, Any]:
    if group not in fields:
        raise ConfigError(f"unknown group {group!r}{did_you_mean(str(group), list(fields))}")
    if not isinstance(content[group], dict):
        raise ConfigError(f"{group} is {content[group]!r}: it must be a mapping with {', '.join(fields[group])}")
    return dict(content[group])


def _check_complete(groups: Mapping[str, Mapping[str, Any]], fields: Mapping[str, Collection[str]]) -> None:
    for group, names in fields.items():
        for leaf in names:
            if leaf not in groups.get(group, {}):
                raise ConfigError(f"{group}.{leaf} is missing: the file is cut or damaged; restore it from a copy")
