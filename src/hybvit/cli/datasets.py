"""`hybvit datasets`: the known data sets, which of them are on this machine, and how to get the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..catalog import CATALOG, DatasetInfo
from ..data import decoded
from ..data.datasets import another_number, download_hint, find
from ..data.readers import missing_files
from ..errors import ConfigError, quantity
from .arguments import ArgumentParser, location
from .next_step import data_options, suggest
from .output import hanging

OWN = """your own images, given with --data to any preset:
  DIR or FILE.zip        one sub-folder per class; no sub-folders with --objective genvit
  FILE.csv, FILE.jsonl   a manifest with path, label and optionally split
  hf://OWNER/NAME        a data set on the Hugging Face hub; also parquet files (pip install 'hybvit[stream]')
  DIR with *.tar         WebDataset shards; also train-{00..99}.tar or a URL (pip install 'hybvit[stream]')"""

INDENT = max(map(len, CATALOG)) + 2


def record(name: str, root: str | None) -> dict[str, Any]:
    """All facts about one data set, where it was found, and which of its files are missing there."""
    info = CATALOG[name]
    found = find(name, root)
    where = None if found is None else "in scikit-learn" if found == Path() else str(found)
    missing = [] if found is None else [str(file) for file in missing_files(name, found)]
    return {
        "name": name,
        "title": info.title,
        "size": info.size,
        "channels": info.channels,
        "num_classes": info.num_classes,
        "classes": list(info.classes),
        "splits": info.splits,
        "balance": info.balance,
        "licence": info.license,
        "source": info.source,
        "preset": info.preset,
        "policy": info.policy,
        "out_of_distribution": list(info.out_of_distribution),
        "found": where,
        "missing": missing,
        "another_number": another_number(name, root) if found is None else None,
        "to_do": None if where and not missing else download_hint(name),
        "download": info.download,
    }


def describe_images(info: DatasetInfo) -> str:
    side = "any size" if info.size is None else f"{info.size}x{info.size}"
    splits = ", ".join(f"{count:,} {split}" for split, count in info.splits.items())
    labels = f"{info.num_classes} classes" if info.num_classes else "no classes"
    return f"{side}, {'gray' if info.channels == 1 else 'color'}, {labels}; {splits}"


def describe_state(facts: dict[str, Any]) -> str:
    if missing := facts["missing"]:
        more = f" and {quantity(len(missing) - 1, 'more file')}" if len(missing) > 1 else ""
        return f"incomplete: {facts['found']} is here, but not {missing[0]}{more}; {facts['to_do']}"
    if facts["found"]:
        return f"present: {facts['found']}"
    if facts["another_number"]:
        return f"incomplete: {facts['another_number']}; {facts['to_do']}"
    if facts["download"]:
        return f"missing: downloaded at first use; or {facts['to_do']}"
    return f"missing: {facts['to_do']}"


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hybvit datasets", description="List the known data sets and where they were found.")
    parser.add_argument("names", metavar="DATASET", nargs="*", help="show all details of these")
    parser.add_argument("--data", type=location, metavar="DIR", help="search this folder instead of the usual places")
    parser.add_argument("--json", action="store_true", help="print one JSON object per data set")
    parser.add_argument("--clear-cache", action="store_true", help="delete the decoded images that are kept")
    return parser


def main(arguments: list[str]) -> None:
    args = build_parser().parse_args(arguments)
    if args.clear_cache:
        if args.names or args.data or args.json:
            raise ConfigError("--clear-cache deletes all decoded images: give it alone")
        print(f"deleted {decoded.clear() / 1e6:,.1f} MB of decoded images in {decoded.folder()}")
        return
    unknown = [name for name in args.names if name not in CATALOG]
    if unknown:
        raise ConfigError(f"unknown data set {unknown[0]!r}: it must be one of {', '.join(CATALOG)}")
    present = list[str]()
    for name in args.names or CATALOG:
        facts = record(name, args.data)
        present += [name] if facts["found"] and not facts["missing"] and facts["preset"] else []
        if args.json:
            print(json.dumps(facts))
            continue
        info = CATALOG[name]
        lines = [f"{info.title}: {describe_images(info)}", describe_state(facts)]
        if args.names:
            details = {
                "preset": info.preset or "none",
                "AutoAugment": info.policy,
                "license": info.license,
                "source": info.source,
                "out-of-distribution sets": ", ".join(info.out_of_distribution),
                "classes": ", ".join(info.classes) or ("named by their files" if info.num_classes else ""),
            }
            lines += [f"{label}: {text}" for label, text in details.items() if text]
        for place, line in enumerate(lines):
            print(hanging(f"{'' if place else name:<{INDENT}}{line}", INDENT))
    if not args.names and not args.json:
        print(f"\n{OWN}")
        if kept := decoded.kept():
            size = sum(size for _, size, _ in kept) / 1e6
            sets = quantity(len(kept), "set")
            print(f"\ndecoded images of {sets} are kept in {decoded.folder()}: {size:,.1f} MB (--clear-cache)")
    if present and not args.json:
        preset = "digits" if present[0] == "digits" else str(CATALOG[present[0]].preset)
        suggest("datasets", preset=preset, data=data_options(args.data))
