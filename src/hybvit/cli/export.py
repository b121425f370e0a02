"""`hybvit export MODEL --format onnx|torch|safetensors`: a model for programs without hybvit."""

from __future__ import annotations

from pathlib import Path

from ..export.folder import ABOUT, SUFFIXES, export_graphs, graphs_folder, need_packages
from ..export.graphs import left_out
from ..loading import load
from ..model import export_folder
from .arguments import ArgumentParser, naming, path
from .next_step import suggest


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit export",
        description="Write a model as graphs that onnxruntime or torch.export runs without hybvit: the classifier, the "
        f"classifier of noisy images, and one denoising step. {ABOUT} beside them has all that a program needs to know.",
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, exported folder, hub id, or bundled model")
    parser.add_argument(
        "--format",
        choices=(*SUFFIXES, "safetensors"),
        default="onnx",
        help="onnx (the default; needs pip install 'hybvit[export]'), torch (for torch.export.load), or safetensors: the "
        "weights with their configuration, which hybvit itself loads",
    )
    parser.add_argument("--int8", action="store_true", help="matrix products in int8, for onnx: faster on CPUs, less exact")
    parser.add_argument("--out", type=path, help="folder to write (MODEL-FORMAT in the current one, or MODEL-onnx-int8)")
    return parser


def main(arguments: list[str]) -> None:
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.int8 and args.format != "onnx":
        parser.error(f"--int8 is for --format onnx, not for {args.format}")
    out = args.out or Path(f"{Path(args.model).resolve().name}-{args.format}{'-int8' if args.int8 else ''}")
    if args.format == "safetensors":
        export_folder(out)
        load(args.model, "cpu").save_pretrained(out)
        print(f"{out}: weights and configuration; hybvit.load({str(out)!r}) reads it")
        suggest("export --format safetensors", out=out)
        return
    graphs_folder(out)
    need_packages(args.format)
    model = load(args.model, "cpu")
    with naming(args.model):
        written = export_graphs(model, out, args.format, args.int8)
    for name, graph in written.items():
        size = f"{len(graph.content) / 1e6:.1f} MB"
        apart = f"up to {graph.difference:.0e} from" if graph.difference else "equal to"
        print(f"{name}.{SUFFIXES[args.format]}: {size}, {apart} the model's own outputs for five random inputs")
    for line in left_out(model):
        print(line)
    print(f"{out}: {len(written)} graphs and {ABOUT}")
    done = "export --int8" if args.int8 else f"export --format {args.format}"
    suggest(done, model=args.model, int8=f"{out}-int8")
