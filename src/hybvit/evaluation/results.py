"""The results of an evaluation."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import did_you_mean
from ..storage import make_folder, write_text
from .context import Metric
from .report import write_report
from .suites import SUITES


@dataclass(frozen=True, eq=False, repr=False)
class Results(Mapping[str, float | int]):
    """The value of every metric by name, ``results["test/accuracy"]``, and all other results.

    Args:
        record: everything as plain dicts, lists and numbers; :meth:`save` writes it.
        folder: where the suites stored their results and pictures.
        cfg: the configuration of a hybvit model, for the report; None for an external model.
        history: the lines of the run's metrics.jsonl, for the report.
        writes: whether this process writes files; with several processes only the first does.
    """

    record: dict[str, Any]
    folder: Path
    cfg: Config | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    writes: bool = True

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Name (suite/what) -> value, number of items it was measured on, and its 95 % interval where one is known."""
        return {name: Metric(**entry) for name, entry in self.record["metrics"].items()}

    @property
    def tables(self) -> dict[str, Any]:
        """Name -> results that are more than one number, such as the confusion matrix or the sampling protocol."""
        return self.record["tables"]

    @property
    def notes(self) -> dict[str, list[str]]:
        """Suite -> caveats for reading its numbers, one line each."""
        return self.record["notes"]

    @property
    def left_out(self) -> dict[str, str]:
        """Suite that was left out -> why it does not apply to this model or these data."""
        return self.record["left_out"]

    def __getitem__(self, name: str) -> float | int:
        """
        Raises:
            KeyError: the metric was not measured.
        """
        if name not in self.metrics:
            raise KeyError(f"{name} was not measured{did_you_mean(str(name), list(self.metrics))}")
        return self.metrics[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def __repr__(self) -> str:
        suites = ", ".join(self.record["suites"])
        return f"Results({self.record['model']} on {self.record['data']}: {len(self)} metrics of {suites or 'no suite'})"

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write results.json into a folder -> its path.

        Raises:
            DataError: the file cannot be written.
        """
        path = Path(folder) / "results.json"
        if self.writes:
            make_folder(path.parent)
            write_text(path, json.dumps(self.record, indent=1, allow_nan=False) + "\n")
        return path

    def report(self, folder: str | os.PathLike[str]) -> Path:
        """Write report.html (self-contained) and report.md with its pictures into a folder -> the path of report.html.

        Raises:
            DataError: they cannot be written.
        """
        out = Path(folder)
        if self.writes:
            make_folder(out)
            self.copy_suites(out)
            write_report(out, self.record, self.cfg, self.history, SUITES)
        return out / "report.html"

    def copy_suites(self, out: Path) -> None:
        """Copy the stored results of the suites to where the report expects them."""
        if out.resolve() == self.folder.resolve():
            return
        for name in self.record["suites"]:
            shutil.rmtree(out / "evaluation" / name, ignore_errors=True)  # it may hold pictures of an earlier report
            shutil.copytree(self.folder / "evaluation" / name, out / "evaluation" / name)
