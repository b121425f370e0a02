"""Stored configurations: which version wrote one, which fields it must hold, and what older fields mean now.

A default is for what a user leaves out. A model that was stored lacks nothing, so a missing field is damage, and taking its
default would make another model of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from . import __version__
from .catalog import OWN_IMAGES
from .errors import ConfigError, did_you_mean

KEY = "hybvit"  # of the version in a stored configuration
FIRST = "0.1.0"  # it wrote no version into its configurations

FIELDS_OF_FIRST = {  # every configuration of 0.1.0 holds these fields
    "model": "image_size patch_size channels num_classes dim depth heads mlp_ratio time ffn_time long_skips norm mlp rope "
    "qk_norm registers class_depth class_pool patch_embedding stem_width pixel_readout readout_width final_norm "
    "label_conditioning position_std",
    "network": "name depth width dropout batch_norm channels layers attention_at",
    "diffusion": "schedule steps",
    "objective": "kind alpha alpha_end balance norm target times weighting class_noise noisy_labels label_smoothing "
    "label_dropout guidance",
    "jem": "steps step_size noise replay restart input_noise weight informative proximal limit",
    "data": "name root test_root resize augment flip crop_padding policy erasing mixing repeats clean_flip held_out "
    "unlabelled max_bad_files memory_gib shuffle_buffer workers classes",
    "optim": "name lr muon_lr weight_decay beta1 beta2 warmup_steps schedule min_lr milestones drop cooldown nesterov clip",
    "train": "steps batch_size labelled_batch_size ema_decay ema_warmup ema_power seed precision log_every preview_every "
    "checkpoint_every keep_checkpoints snapshot_every init compile tensorboard",
}

RETIRED: dict[str, Any] = {  # fields of 0.1.0 that were removed: a stored configuration may hold their defaults
    "model.norm": "layer", "model.registers": 0, "model.class_pool": "token", "objective.balance": "fixed",
    "objective.class_noise": 0.0, "optim.cooldown": 0.2, "train.ema_power": [],
}  # fmt: skip

SWITCH, TRACK = "tensorboard", "track"  # of train: the one that this version and older ones have, and what it became
LAST_WITH_SWITCH = "0.2.0.dev0"

ADDED: dict[str, Any] = {  # fields that 0.1.0 did not have -> what it did with the user's own images; others take their default
    "data.split": "every_fifth",
}


LAST_WITHOUT = {"optim.freeze": "0.2.0.dev0"}  # newer fields -> the last version without them, which did what their defaults do


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
    fields = {
        group: [leaf for leaf in names if _order(LAST_WITHOUT.get(f"{group}.{leaf}", "0.0.0")) < _order(written_by)]
        for group, names in fields.items()
    }
    has_switch = _order(written_by) <= _order(LAST_WITH_SWITCH)
    if has_switch:
        fields = {**fields, "train": [SWITCH if leaf == TRACK else leaf for leaf in fields["train"]]}
    groups = {group: _group(content, group, fields) for group in content}
    for group, found in groups.items():
        for leaf in found:
            if leaf not in fields[group] and f"{group}.{leaf}" not in RETIRED:
                raise ConfigError(f"unknown field {group}.{leaf}{did_you_mean(str(leaf), list(fields[group]))}")
    if _order(written_by) <= _order(FIRST):
        _check_complete(groups, {group: names.split() for group, names in FIELDS_OF_FIRST.items()})
        for name, before in RETIRED.items():
            group, leaf = name.split(".")
            if (value := groups[group].pop(leaf)) != before:
                raise ConfigError(f"{name} is {value!r}, an option that was removed (docs/ablation.md says why)")
        for name, before in ADDED.items():
            group, leaf = name.split(".")
            if leaf in fields[group] and groups["data"]["name"] in OWN_IMAGES:
                groups[group].setdefault(leaf, before)
    else:
        _check_complete(groups, fields)
    for name in RETIRED:
        group, leaf = name.split(".")
        if leaf in groups[group]:
            raise ConfigError(f"unknown field {name}, which hybvit {written_by} did not have")
    if has_switch:
        switch = groups["train"].pop(SWITCH)
        if not isinstance(switch, bool):
            raise ConfigError(f"train.{SWITCH} is {switch!r}: it must be true or false")
        groups["train"][TRACK] = SWITCH if switch else ""
    return groups


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
