"""The classifier and the denoiser in every form in which they can be deployed -> results/deployment.json.

    python benchmarks/deployment.py [--model fashion-mnist] [--images 10000] [--repeats 9] [--write]

Each form computes the same function of the same weights: eager in fp32 and in bf16 (autocast), torch.compile of both, the
program of torch.export, onnxruntime in fp32, and onnxruntime with the weights of its products in int8 (dynamic quantization).
All run on one thread, alternating in one process; a time is the median of the processor time, so that a busy machine matters
less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import onnxruntime
import torch
from recording import command, keep, options
from torch import Tensor

from hybvit.data.image_set import to_x
from hybvit.devices import autocast, environment, keep_freed_memory
from hybvit.evaluation.subject import subject_of
from hybvit.export.folder import onnx_file, quantized, trace
from hybvit.export.graphs import Graph, graphs_of
from hybvit.training.bench.record import quartiles

BATCHES = (1, 64)
GRAPHS = ("classifier", "denoiser")
Call = Callable[..., Tensor]


def forms_of(graph: Graph) -> dict[str, Call]:
    """The graph in each form, by name; the first is what the others are compared with."""

    def in_bf16(call: Call) -> Call:
        def run(*inputs: Tensor) -> Tensor:
            with autocast(torch.device("cpu"), "bf16"):
                return call(*inputs)

        return run

    program = trace(graph)
    content = onnx_file(graph, program)
    compiled = [torch.compile(graph.module, dynamic=False) for _ in range(2)]
    return {
        "eager fp32": graph.module,
        "eager bf16": in_bf16(graph.module),
        "torch.compile fp32": compiled[0],
        "torch.compile bf16": in_bf16(compiled[1]),
        "torch.export fp32": program.module(),
        "onnxruntime fp32": in_onnxruntime(content),
        "onnxruntime int8": in_onnxruntime(quantized(content)),
    }


def in_onnxruntime(content: bytes) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda *inputs: torch.from_numpy(session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0])


def processor_seconds(call: Callable[[], object], times: int) -> float:
    """Processor seconds of a call, the mean of so many in a row."""
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / times


def timed(forms: dict[str, Call], graph: Graph, batch: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Milliseconds of processor time per image: median and quartiles over repeats that alternate between the forms."""
    inputs = graph.examples(batch)
    often, taken = {}, {name: list[float]() for name in forms}
    for name, form in forms.items():
        form(*inputs)  # compiles
        often[name] = max(1, round(args.span / max(processor_seconds(lambda form=form: form(*inputs), 3), 1e-6)))
    for _ in range(args.repeats):
        for name, form in forms.items():
            taken[name].append(1000 / batch * processor_seconds(lambda form=form: form(*inputs), often[name]))
    return {name: quartiles(values)._asdict() for name, values in taken.items()}


def outputs(form: Call, inputs: tuple[Tensor, ...]) -> Tensor:
    """The outputs for all rows, in batches of a size that is timed; the last overlaps, since a new size would compile anew."""
    n, size, found = len(inputs[0]), BATCHES[-1], list[Tensor]()
    for stop in range(size, n + size, size):
        rows = slice(min(stop, n) - size, min(stop, n))
        found.append(form(*(part[rows] for part in inputs))[max(0, stop - n) :])
    return torch.cat(found)


def accuracies(forms: dict[str, Call], x: Tensor, labels: Tensor) -> dict[str, float]:
    """The share of test images x that the classifier labels correctly, in each form."""
    return {name: (outputs(form, (x,)).argmax(dim=1) == labels).double().mean().item() for name, form in forms.items()}


def differences(forms: dict[str, Call], graph: Graph) -> dict[str, float]:
    """Root mean square difference of the denoiser's x_0, clipped, from the first form's, in gray levels of 255."""
    found = [outputs(form, graph.examples(512)).clamp(-1, 1) for form in forms.values()]
    return {name: 127.5 * (x0 - found[0]).square().mean().sqrt().item() for name, x0 in zip(forms, found, strict=True)}


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    subject, started = subject_of(args.model, None), time.monotonic()
    test = subject.data.test.subsample(args.images)
    if len(test) < BATCHES[-1]:
        raise SystemExit(f"{len(test)} test images: at least {BATCHES[-1]} are needed, a batch")
    graphs, rows = graphs_of(subject.model), []
    for name in GRAPHS:
        graph = graphs[name]
        forms = forms_of(graph)
        times = {batch: timed(forms, graph, batch, args) for batch in BATCHES}
        quality = accuracies(forms, to_x(test.in_memory), test.labels) if name == "classifier" else differences(forms, graph)
        for form in forms:
            milliseconds = {str(batch): times[batch][form] for batch in BATCHES}
            kind = "accuracy" if name == "classifier" else "difference"
            rows.append({"graph": name, "form": form, "milliseconds": milliseconds, kind: quality[form]})
            print(rows[-1], flush=True)
    versions = {package: version(package) for package in ("onnx", "onnxscript", "onnxruntime")}
    return {
        "command": command(),
        "model": args.model,
        "images": len(test),
        "repeats": args.repeats,
        "seed": 0,
        "rows": rows,
        "seconds": round(time.monotonic() - started),
        "environment": environment() | versions,
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--images", type=int, default=10_000, help="test images that are classified in each form")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--span", type=float, default=0.5, help="processor seconds of a form in a repeat")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    record = measure(args)
    keep("deployment", record, args.write)


if __name__ == "__main__":
    main()
