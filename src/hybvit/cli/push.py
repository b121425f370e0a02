"""`hybvit push MODEL OWNER/NAME`: upload a model to the Hugging Face hub, with a card of its results."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..hub import local_folder, upload, uploaded
from ..loading import load
from ..model.weights import is_of_other_weights
from ..storage import read_json
from .arguments import ArgumentParser, path
from .next_step import suggest

RESULTS = "results.json"  # in a run folder, written by `hybvit evaluate`; bundled models have theirs


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit push",
        description="Upload a model to the Hugging Face hub in one commit: weights, configuration, checksums, and a card with "
        "its results. The token is that of HF_TOKEN or `hf auth login`; hybvit asks for none.",
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, exported folder, or bundled model")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the model's name on the hub; created if need be")
    parser.add_argument("--dry-run", action="store_true", help="list the files and their sizes, and upload nothing")
    parser.add_argument("--results", type=path, metavar="FILE", help=f"for the card (default: MODEL/{RESULTS}, if it is there)")
    parser.add_argument("--private", action="store_true", help="if the repository is created, make it private")
    parser.add_argument("--branch", help="created if need be (default: main)")
    parser.add_argument("--message", default="Upload a model of hybvit", help="of the commit")
    return parser


def main(arguments: list[str]) -> None:
    args = build_parser().parse_args(arguments)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repo):
        raise ConfigError(f"{args.repo!r} is not a name on the hub: give OWNER/NAME")
    found = local_folder(args.model) / RESULTS
    source = args.results or (found if found.is_file() else None)
    results = None if source is None else read_results(source)
    model = load(args.model, "cpu")
    if results is not None and args.results is None and is_of_other_weights(results, model):
        raise ConfigError(f"{found}: is of other weights: run `hybvit evaluate` again, or name the file with --results")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        model.save_pretrained(folder, repo_id=args.repo, results=results)
        for file in uploaded(folder):
            print(f"{file.stat().st_size:>12,}  {file.name}")
        print(f"results in the card: {source or 'none (`hybvit evaluate` writes them)'}")
        if args.dry_run:
            print(f"dry run: nothing was uploaded to {args.repo}")
            suggest("push --dry-run", arguments=[word for word in arguments if word != "--dry-run"])
            return
        private = True if args.private else None
        url = upload(folder, args.repo, commit_message=args.message, branch=args.branch, private=private)
    print(f"{url}; to load it: hybvit.load({args.repo!r})")
    suggest("push", repo=args.repo)


def read_results(file: Path) -> dict[str, Any]:
    """The content of a results.json.

    Raises:
        DataError: it is not one, or is damaged.
    """
    results = read_json(file, "metrics")
    metrics = results["metrics"]
    for name, entry in metrics.items() if isinstance(metrics, dict) else [("metrics", metrics)]:
        numbers = (
            [entry.get("value"), *(entry.get(key, 0) for key in ("n", "low", "high"))] if isinstance(entry, dict) else [None]
        )
        if not all(type(number) in (int, float) for number in numbers):
            raise DataError(f"{file}: {name!r} is no metric: give a results.json of `hybvit evaluate`")
    return results
