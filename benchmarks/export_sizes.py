"""What each format of an export takes on disk, and how far its outputs are from the model's -> results/export_sizes.json.

python benchmarks/export_sizes.py [--model fashion-mnist] [--write]
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from recording import command, keep, options

import hybvit
from hybvit.devices import environment
from hybvit.export.folder import SUFFIXES, export_graphs

FORMS = {"onnx": ("onnx", False), "onnx --int8": ("onnx", True), "torch": ("torch", False)}


def megabytes(folder: Path) -> dict[str, float]:
    return {file.name: file.stat().st_size / 1e6 for file in sorted(folder.iterdir())}


def graphs(model: hybvit.HybridModel, form: str, folder: Path) -> dict[str, Any]:
    """A folder of graphs: its files, and the difference of each graph as the export itself measures it."""
    kind, int8 = FORMS[form]
    written = export_graphs(model, folder, kind, int8)
    apart = {f"{name}.{SUFFIXES[kind]}": graph.difference for name, graph in written.items()}
    return {"form": form, "megabytes": megabytes(folder), "difference": apart}


def weights(model: hybvit.HybridModel, folder: Path) -> dict[str, Any]:
    """The model's own format, read back."""
    model.save_pretrained(folder)
    again, x = hybvit.load(folder, "cpu"), torch.rand(5, *model.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        apart = (again.logits(x) - model.logits(x)).abs().max().item()
    return {"form": "safetensors", "megabytes": megabytes(folder), "difference": {"model.safetensors": apart}}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="fashion-mnist")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = hybvit.load(args.model, "cpu")
    with tempfile.TemporaryDirectory() as place:
        rows = [weights(model, Path(place) / "weights")]
        rows += [graphs(model, form, Path(place) / form) for form in FORMS]
    record = {
        "command": command(),
        "model": args.model,
        "rows": rows,
        "environment": environment() | {package: version(package) for package in ("onnx", "onnxscript", "onnxruntime")},
    }
    keep("export_sizes", record, args.write)


if __name__ == "__main__":
    main()
