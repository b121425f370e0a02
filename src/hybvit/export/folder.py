"""Folders of graphs: a file for each graph, ``model.json`` that says how to use them, and a manifest of checksums."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .. import __version__, checkpoint
from ..checkpoint import GRAPHS as ABOUT
from ..errors import ConfigError
from ..model import HybridModel
from .graphs import Graph, graphs_of

Format = Literal["onnx", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": "onnx", "torch": "pt2"}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra `export`
TRACED, CHECKED = 2, 5  # images of a batch: a size of one would be taken for a constant
DIFFERENCE = 1e-3  # of values near 1: far more than rounding makes


class Exported(NamedTuple):
    """A graph in its file.

    Attributes:
        content: the file.
        difference: the largest difference of an output to the model's, for random inputs, relative to values above 1.
    """

    content: bytes
    difference: float


def export_graphs(
    model: HybridModel, folder: str | os.PathLike[str], form: Format = "onnx", int8: bool = False
) -> dict[str, Exported]:
    """Write the graphs of a model, ``model.json`` and a manifest of SHA-256 sums, all or nothing -> what was written, by graph.

    Every graph is run with random inputs beforehand and compared with the model. Weights and arithmetic are float32.

    Args:
        form: ``onnx`` (*.onnx) or ``torch`` (*.pt2, for ``torch.export.load``).
        int8: compute matrix products in int8, which on CPUs is faster and less exact; for ``onnx`` only.

    Raises:
        ValueError: there is no such format, or not in int8.
        ConfigError: the folder exists and holds anything but graphs, or a package is missing.
        DataError: the folder cannot be written.
    """
    if form not in SUFFIXES:
        raise ValueError(f"form is {form!r}: it must be one of {', '.join(get_args(Format))}")
    if int8 and form != "onnx":
        raise ValueError(f"int8 is for the format onnx, not for {form}")
    path = graphs_folder(folder)
    need_packages(form)
    graphs = graphs_of(model)
    exported = {name: export_graph(graph, form, int8) for name, graph in graphs.items()}
    files = {f"{name}.{SUFFIXES[form]}": graph.content for name, graph in exported.items()}
    checkpoint.write_folder(path, {}, {ABOUT: to_json(describe(model, graphs, form, int8)), **files})
    return exported


def graphs_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder to write graphs to.

    Raises:
        ConfigError: it exists and holds something else, such as weights, which could not be made again.
    """
    path = Path(folder)
    checkpoint.check_replaceable(path, ABOUT, "holds no exported graphs")
    return path


def need_packages(form: Format) -> None:
    """Raises ConfigError where a package that the format takes is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None] if form == "onnx" else []
    if missing:
        raise ConfigError(f"format {form} needs {' and '.join(missing)}: pip install 'hybvit[export]'")


@torch.no_grad()
def export_graph(graph: Graph, form: Format, int8: bool) -> Exported:
    """Trace a graph for any batch, and compare it with the model."""
    content = (onnx_file if form == "onnx" else torch_file)(graph, trace(graph))
    exported = Exported(content, difference(graph, content, form))
    if not exported.difference <= DIFFERENCE:
        raise RuntimeError(f"an exported graph differs from the model by {exported.difference:.2g}")
    if not int8:
        return exported
    content = quantized(content)
    return Exported(content, difference(graph, content, form))


def difference(graph: Graph, content: bytes, form: Format) -> float:
    """The largest difference of a graph in its file from its module, relative to values above 1."""
    inputs = graph.examples(CHECKED)
    expected, found = graph.module(*inputs), open_graph(content, form)(*inputs)
    return ((found - expected).abs() / expected.abs().clamp(min=1)).max().item()


def trace(graph: Graph) -> ExportedProgram:
    """The program of a graph, for any batch."""
    inputs, batch = graph.examples(TRACED), torch.export.Dim.DYNAMIC
    graph.module(*inputs)  # for the tracer, the tables of a diffusion that its first call makes are constants
    return torch.export.export(graph.module.eval(), inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


def torch_file(graph: Graph, program: ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def onnx_file(graph: Graph, program: ExportedProgram) -> bytes:
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it warns of every node that it leaves as it is
    made = torch.onnx.export(
        program,
        input_names=[*graph.inputs],
        output_names=[*graph.outputs],
        dynamic_shapes=({0: "batch"}, *[None] * (len(graph.inputs) - 1)),  # the name of the first input's is that of all
        verbose=False,
    )
    assert made is not None
    return made.model_proto.SerializeToString()


def quantized(content: bytes) -> bytes:
    """An ONNX file with its matrix products in int8: weights with a scale for each column, inputs with one for each call.

    Weights use 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits, which 8 bits overflow.
    """
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, small = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "small"))
        plain.write_bytes(content)
        quant_pre_process(plain, prepared)
        products = ["MatMul", "Gemm"]
        quantize_dynamic(prepared, small, products, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        return small.read_bytes()


def open_graph(content: bytes, form: Format) -> Callable[..., Tensor]:
    """The function of a graph's file: inputs -> its output."""
    if form == "torch":
        return torch.export.load(io.BytesIO(content)).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda *inputs: torch.from_numpy(session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0])


def describe(model: HybridModel, graphs: Mapping[str, Graph], form: Format, int8: bool = False) -> dict[str, Any]:
    """All that a program needs to know of a model besides its graphs."""
    scaling = model.calibration.scaling if model.calibration else None
    return {
        "hybvit": __version__,
        "torch": torch.__version__,
        "format": form,
        "precision": "int8 products, else float32" if int8 else "float32",
        "weights": checkpoint.digest_of_weights(model.net.state_dict()),
        "graphs": {
            name: {
                "file": f"{name}.{SUFFIXES[form]}",
                "inputs": {label: value.describe() for label, value in graph.inputs.items()},
                "outputs": {label: value.describe() for label, value in graph.outputs.items()},
            }
            for name, graph in graphs.items()
        },
        "image_shape": list(model.image_shape),
        "pixels": "x = pixels / 127.5 - 1 for uint8 pixels; pixels = round((x + 1) * 127.5) for x clipped to [-1, 1]",
        "classes": list(model.classes) if model.has_classes or model.takes_labels else [],
        "probabilities": "softmax(logits * scale + bias)",
        "scale": scaling.scale.tolist() if scaling else 1.0,
        "bias": scaling.bias.tolist() if scaling else 0.0,
        "no_label": model.cfg.model.num_classes if model.takes_labels else None,
        "alpha_bar": model.diffusion.alpha_bar.tolist() if model.has_denoiser else [],
    }


def to_json(content: Mapping[str, Any]) -> str:
    """JSON with a line for each key."""
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()) + "\n}\n"
