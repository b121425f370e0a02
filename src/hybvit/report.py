"""report.html: one self-contained page, pictures first, that opens from disk with no network."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

from PIL import Image

from .config import Config, to_yaml
from .run_folder import write_text

WORDS = {
    "test/accuracy": "share of test images that get the right label; higher is better",
    "test/accuracy_top5": "share of test images whose label is among the five likeliest; higher is better",
    "test/nll": "mean of -log p(label | image) on test images, in nats; lower is better",
    "test/log_density_mean": "mean log p(x) of test images up to a constant (logsumexp of the logits); it compares images",
    "test/log_density_std": "spread of log p(x) over test images",
    "judge/svm_accuracy": "accuracy on real test images of the SVM that judges the samples; it must be high to be a judge",
    "samples/svm_agreement": "share of generated images that the SVM and the model label alike; higher is better",
    "samples/svm_classes_covered": "classes that occur among the generated images, by the SVM's labels",
    "samples/svm_smallest_class_share": "share of the rarest class among the generated images; near 1/classes is balanced",
}

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8888; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.sub, figcaption, td.words { color: #777; } figcaption { font-size: .9rem; }
.row { display: flex; flex-wrap: wrap; gap: 1.2rem; } figure { margin: 0; max-width: 100%; }
img { max-width: 100%; height: auto; image-rendering: pixelated; border: 1px solid var(--line); }
svg { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; }
td, th { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; } pre { overflow: auto; background: #8881; padding: 1rem; }
"""


def write_report(
    path: Path,
    cfg: Config,
    record: dict[str, Any],
    pictures: dict[str, Image.Image],
    history: list[dict[str, Any]],
    classes: tuple[str, ...],
) -> None:
    """Render a results record with its pictures and the training history (lines of metrics.jsonl; may be empty)."""
    m = cfg.model
    title = f"{cfg.objective.kind} on {record['data']}"
    sub = (
        f"{m.image_size}x{m.image_size}x{m.channels}, patch {m.patch_size}, dim {m.dim}, depth {m.depth}, {m.time}; "
        f"{cfg.train.steps:,} steps of batch {cfg.train.batch_size}, seed {cfg.train.seed}"
    )
    draw = record["samples"]
    captions = {
        "samples": f"Generated: {draw['sampler']}, {draw['steps']} steps, seed {draw['seed']}",
        "training images": "Real: the first training images",
        "mistakes": "Mistakes: " + "; ".join(record["tables"].get("mistakes", [])),
        "least familiar": "Test images with the lowest log p(x)",
        "most familiar": "Test images with the highest log p(x)",
    }
    parts = [f"<h1>{html.escape(title)}</h1><p class=sub>{html.escape(sub)}</p>"]
    pairs = (
        ("Samples", ("samples", "training images")),
        ("What it knows", ("most familiar", "least familiar", "mistakes")),
    )
    for heading, names in pairs:
        shown = [name for name in names if name in pictures]
        if shown:
            figures = "".join(_figure(_png(pictures[name]), captions[name]) for name in shown)
            parts.append(f"<h2>{heading}</h2><div class=row>{figures}</div>")
    parts.append("<h2>Numbers</h2>" + _numbers(record["metrics"]))
    plots = _curves(history)
    if "confusion_matrix" in record["tables"]:
        plots.append((_confusion(record["tables"]["confusion_matrix"], classes), "Confusion: rows are true, columns predicted"))
    if plots:
        parts.append("<h2>Training and confusion</h2><div class=row>" + "".join(_figure(*plot) for plot in plots) + "</div>")
    facts = ", ".join(f"{name} {value}" for name, value in record["environment"].items())
    parts.append(f"<h2>Record</h2><p class=sub>{html.escape(facts)}; evaluated in {record['seconds']} s</p>")
    parts.append(f"<details><summary>Configuration</summary><pre>{html.escape(to_yaml(cfg))}</pre></details>")
    page = '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
    page += f"<title>{html.escape(title)}</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    write_text(path, page)


def _numbers(metrics: dict[str, dict[str, float]]) -> str:
    rows = []
    for name, metric in metrics.items():
        interval = f"{metric['low']:.4f} to {metric['high']:.4f}" if "low" in metric else ""
        rows.append(
            f"<tr><td>{html.escape(name)}<td class=n>{shown(metric['value'])}<td class=n>{interval}<td class=n>{metric['n']:,}"
            f"<td class=words>{html.escape(WORDS.get(name, ''))}"
        )
    return f"<table><tr><th>metric<th>value<th>95 % interval<th>n<th>what it means{''.join(rows)}</table>"


def shown(value: float) -> str:
    """Counts without decimals, everything else with four."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _curves(history: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Loss and accuracy against the step, one small plot each."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    plots = []
    names = {
        "ce": "cross-entropy (train)",
        "denoising": "denoising loss (train)",
        "test/accuracy": "test accuracy (EMA)",
    }
    for name, caption in names.items():
        points = [(line["step"], line[name]) for line in history if name in line]
        if len(points) < 2:
            continue
        figure = Figure(figsize=(4, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*points, strict=True), color="#2563eb", linewidth=1.5)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if name != "test/accuracy":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        plots.append((_svg(figure), caption))
    return plots


def _confusion(counts: list[list[int]], classes: tuple[str, ...]) -> str:
    from matplotlib.figure import Figure

    k = len(classes)
    side = min(1.5 + 0.3 * k, 12)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    totals = [max(sum(row), 1) for row in counts]
    axes.imshow([[c / total for c in row] for row, total in zip(counts, totals, strict=True)], cmap="Blues", vmin=0, vmax=1)
    if k <= 30:
        axes.set_xticks(range(k), classes, rotation=90)
        axes.set_yticks(range(k), classes)
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                if count:
                    colour = "white" if count > totals[i] / 2 else "black"
                    axes.text(j, i, str(count), ha="center", va="center", fontsize=7, color=colour)
    return _svg(figure)
