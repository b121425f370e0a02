"""The paper's tables and figures: the runs they need, and how a column's figure is found in a run's record.

Rows, headings, and the preset behind each row come from :mod:`hybvit.reproduce.published`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

from .published import PublishedRow, PublishedTable, tables
from .scales import Scale


class Measured(NamedTuple):
    """A measured figure in the unit of the published column, with its 95 % interval where one is known, and its metric."""

    value: float
    low: float | None = None
    high: float | None = None
    metric: str | None = None


class Row(NamedTuple):
    """A row of a table: a published one, or one that only we have; ``run`` is the name of a preset."""

    model: str
    group: str
    published: PublishedRow | None
    run: str | None


# Rows that the paper lacks, or whose figures are lost: (table, group) -> model -> preset.
ADDED = {
    ("table4", ""): {"GenViT": "cifar10_genvit", "HybViT": "cifar10", "DDPM": "cifar10_ddpm"},
    ("table12", "L-inf"): {"WRN-28-10": "cifar10_wrn28_10", "JEM": "cifar10_jem", "JEM++": "cifar10_jempp"},
    ("table12", "L2"): {"WRN-28-10": "cifar10_wrn28_10", "JEM": "cifar10_jem", "JEM++": "cifar10_jempp"},
}
# Columns that only the pocket scale has: column -> heading.
ADDED_COLUMNS = {"noise": "noise (AUROC)"}

SUITE_OF_COLUMN = {
    "accuracy": "accuracy",
    "inception_score": "fidelity",
    "fid": "fidelity",
    "bits_per_dim": "likelihood",
    "auroc": "ood",
    "pgd": "robustness",
}
TIMED = ("minutes_per_epoch", "hours", "runtime")
BASE = {  # the row that the others of a table are compared with
    "table1": "HybViT",
    "table6": "HybViT",
    "table7": "HybViT(ps=8)",
    "table8": "HybViT(d=384)",
    "table10": "HybViT (strong augmentation)",
}


class Figure(NamedTuple):
    """A figure of the paper: its presets, and the suites or training snapshots that it is drawn from."""

    title: str
    runs: tuple[str, ...]
    suites: tuple[str, ...] = ()
    snapshots: bool = False


VITS = ("cifar10_vit", "cifar10_genvit", "cifar10")
ALL_DATA = ("cifar10", "cifar100", "imagenet32", "tiny_imagenet", "stl10", "celeba_hq_128", "imagenet128", "imagenet224")
ALONG = (*VITS, "imagenet32_vit", "imagenet32_genvit", "imagenet32")
SIX = ("cifar10_vit", "cifar10_vit_weak", "cifar10", "cifar10_weak", "cifar10_wrn28_10", "cifar10_jem")
FIGURES: dict[str, Figure] = {
    "figure1": Figure("The forward process: images turning into noise", ()),
    "figure4": Figure("Samples of GenViT", ("cifar10_genvit",), ("fidelity",)),
    "figure5": Figure("Samples of HybViT", ("cifar10",), ("fidelity",)),
    "figure6": Figure("Calibration: ViT, HybViT and WRN", ("cifar10_vit", "cifar10", "cifar10_wrn28_10"), ("calibration",)),
    "figure8": Figure("Accuracy and Frechet distance during training", ALONG, ("accuracy", "fidelity"), True),
    "figure8b": Figure("Accuracy under PGD", ("cifar10_vit", "cifar10", "cifar10_wrn28_10"), ("accuracy", "robustness")),
    "figure10": Figure("log p(x) of HybViT's samples, with examples", ("cifar10",), ("fidelity", "quality")),
    "figure11": Figure("p(y|x) of HybViT's samples, with examples", ("cifar10",), ("fidelity", "quality")),
    "figure12": Figure("Calibration with strong and weak augmentation, compared with WRN and JEM", SIX, ("calibration",)),
    "figure13": Figure("Samples during training", ("cifar10",), ("accuracy", "fidelity"), snapshots=True),
    "figure14": Figure("Samples on every data set", ALL_DATA, ("fidelity",)),
    **{
        f"figure{15 + k}": Figure(f"The best and the worst samples of class {k}", ("cifar10",), ("fidelity", "quality"))
        for k in range(10)
    },
}


def table(name: str, scale: Scale) -> PublishedTable:
    """The published table, plus the columns that only this scale has."""
    found = tables()[name]
    if not any(column.startswith("auroc") for column in found.columns):
        return found
    added = {f"auroc_{column}": heading for column, heading in ADDED_COLUMNS.items() if column in scale.outside}
    return replace(found, columns={**found.columns, **added})


def rows(name: str) -> list[Row]:
    """All rows of a table in order; added rows come at the end of their group."""
    found = [Row(row.model, row.group or "", row, row.preset) for row in tables()[name].rows]
    for (table_name, group), added in ADDED.items():
        if table_name == name:
            place = max((k + 1 for k, row in enumerate(found) if row.group == group), default=len(found))
            found[place:place] = [Row(model, group, None, run) for model, run in added.items()]
    return found


def suites_of(name: str) -> tuple[str, ...]:
    """The evaluation suites behind a table's columns or a figure."""
    if name in FIGURES:
        return FIGURES[name].suites
    columns = tables()[name].columns
    return tuple(dict.fromkeys(suite for column in columns for key, suite in SUITE_OF_COLUMN.items() if column.startswith(key)))


def runs_of(name: str) -> tuple[str, ...]:
    """The presets that a table or figure needs trained."""
    if name in FIGURES:
        return FIGURES[name].runs
    if not suites_of(name):
        return ()  # training costs are timed, which needs no trained run
    return tuple(dict.fromkeys(row.run for row in rows(name) if row.run))


def measured(column: str, row: Row, record: dict[str, Any] | None, scale: Scale) -> Measured | None:
    """The measured value of a published column from a run's record, in that column's unit."""
    if record is None:
        return None
    if column == "parameters_millions":
        return Measured(record["parameters"] / 1e6)
    if column in TIMED:
        # Table 13 states days in words; Table 8 has numeric columns.
        only_words = row.published is not None and row.published.table == "table13"
        found = record.get("timing", {}).get("hours" if column == "runtime" and only_words else column)
        return None if found is None else Measured(found)
    metrics: dict[str, dict[str, float]] = record.get("metrics", {})
    name, unit = None, 1.0
    if column == "accuracy":
        name, unit = "test/accuracy", 100.0
    elif column == "ece":
        name, unit = "calibration/ece_20", 100.0
    elif column.startswith("pgd_"):
        norm = {"L-inf": "linf", "L2": "l2"}.get(row.group)  # a row of Table 12 belongs to one norm
        name, unit = (f"robustness/{column}", 100.0) if norm is None or f"_{norm}_" in column else (None, 1.0)
    elif column == "bits_per_dim":
        name = "likelihood/bits_per_dim"
    elif column.startswith("auroc_"):
        outside = scale.outside.get(column.removeprefix("auroc_"))
        name = f"ood/{outside}/auroc_{'max_prob' if row.group == 'max_probability' else 'logpx'}"
    elif column in ("fid", "inception_score"):
        pattern = re.compile(r"fidelity/(fid|fd)_.*_\d+" if column == "fid" else r"fidelity/(is|score)_.*_\d+")
        name = next((metric for metric in metrics if pattern.fullmatch(metric)), None)
    entry = metrics.get(name) if name else None
    if entry is None:
        return None
    low, high = entry.get("low"), entry.get("high")
    return Measured(entry["value"] * unit, None if low is None else low * unit, None if high is None else high * unit, name)


NAMES = (*tables(), *FIGURES)
