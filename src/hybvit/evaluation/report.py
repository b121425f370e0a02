"""report.html and report.md: the results of `hybvit evaluate`, pictures first, each metric with its meaning.

The page is self-contained and opens from disk with no network.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..config import Config, describe_batch, describe_data, to_yaml
from ..errors import quantity
from ..evaluation import plots
from ..hub import HEADLINES
from ..storage import write_text
from .context import Suite

# Pattern of a metric's name -> its meaning, and which direction is better; the first match counts.
MEANINGS: tuple[tuple[str, str], ...] = (
    (r"test/accuracy$", "share of test images classified correctly; higher is better"),
    (r"test/accuracy_top5", "share of test images whose true class is among the five most likely; higher is better"),
    (r"test/nll", "mean of -log p(label | image), in nats; lower is better"),
    (r"test/brier", "squared distance of the probabilities from the one-hot label, 0 to 2; lower is better"),
    (r"calibration/.*_scaled$", "the same after the calibration: of the probabilities that the model gives"),
    (r"calibration/temperature", "divisor of the logits; above 1 the network was overconfident"),
    (r"calibration/adaptive_ece", "ECE over bins with equal numbers of images; lower is better"),
    (r"calibration/ece_(\d+)", "mean gap between confidence and accuracy over equal-width bins; lower is better"),
    (
        r"calibration/mce",
        "largest gap between confidence and accuracy of any bin (min30: of any bin of at least 30 images, which n counts); "
        "lower is better",
    ),
    (r"calibration/nll_change", "the NLL after scaling minus that before, in nats; only below 0 is it an improvement"),
    (r"calibration/nll", "mean of -log p(label | image), in nats; lower is better"),
    (r"readings/aurc_lowered_by", "how much smaller the area is by agreement than by the largest probability, relative"),
    (r".*/aurc", "mean risk over all coverages, if the images of the lowest score are left out first; lower is better"),
    (r".*/augrc", "the same for wrong answers as a share of all images, answered or not, 0 to 0.5; lower is better"),
    (r".*/coverage_at", "largest share of images that can be answered with 5 % of the answers wrong; higher is better"),
    (r".*/risk_at", "share of wrong answers among the surest 80 % of images; lower is better"),
    (
        r"doubt/abstain_above_\d+_answered",
        "share of images answered if the risk (in %) is not to be exceeded, with 95 % confidence; higher is better",
    ),
    (r"doubt/abstain_above_\d+_risk", "share of wrong answers among these; at most the risk in its name"),
    (
        r"doubt/coverage_",
        "share of conformal sets with the true class; close to the coverage (in %) in its name. These sets may be empty; a set "
        "that is asked for has the most probable class too",
    ),
    (r"doubt/set_size_", "mean number of classes in these sets; lower is better"),
    (r"probe/linear", "accuracy of a logistic regression on the features of the training images; higher is better"),
    (r"probe/knn", "accuracy of the majority of the 20 nearest training images, by features; higher is better"),
    (r"ood/.*/auroc", "probability that a test image scores above an image of this set; 0.5 is chance, higher is better"),
    (r"ood/.*/aupr", "area under the precision-recall curve, test images as positives; higher is better"),
    (r"ood/.*/fpr95", "share of this set accepted at the threshold that accepts 95 % of test images; lower is better"),
    (r"robustness/pgd_strong", "accuracy under a stronger PGD with this radius (in 1/255); higher is better"),
    (
        r"robustness/pgd",
        "accuracy under the paper's PGD with this radius (in 1/255), whose steps of 20/255 are too long for small ones; "
        "higher is better",
    ),
    (r"robustness/autoattack", "accuracy under AutoAttack with this radius (in 1/255); higher is better"),
    (r"robustness/reliable", "1 if no sign of gradient masking or of another failure of the attacks was found, else 0"),
    (
        r"certified/plain_pgd",
        "accuracy of the classifier without smoothing under PGD of this L2 radius (on the [0, 1] scale); no certificate",
    ),
    (
        r"certified/.*/accuracy",
        "share of images whose label is right and certified within this L2 radius, on the [0, 1] scale; higher is better",
    ),
    (r"certified/.*/abstained", "share of images whose votes certify no label; lower is better"),
    (r"corruptions/mean_error", "mean error over the common corruptions and the five severities; lower is better"),
    (r"corruptions/error_severity", "share misclassified at this severity (0: clean), mean of the common corruptions"),
    (r"corruptions/error", "share misclassified under this corruption, mean of the five severities; lower is better"),
    (r"corruptions/nll", "mean of -log p(label | image) in nats at this severity (0: clean); lower is better"),
    (r"corruptions/ece", "gap between confidence and accuracy at this severity (0: clean), in 15 bins; lower is better"),
    (r"corruptions/confidence", "mean largest probability at this severity (0: clean); calibrated, it is the accuracy"),
    (
        r"corruptions/accepted_error",
        "share misclassified among the accepted at this severity (0: clean); lower is better",
    ),
    (r"corruptions/accepted", "share whose confidence reaches the threshold that accepts 90 % of the clean images"),
    (r"corruptions/auroc", "probability that a clean image scores above a corrupted one of this severity; 0.5 is chance"),
    (r"readings/.*_transfer_linf", "accuracy of this reading on images that an attack on the label read-out made"),
    (r"readings/.*_(attacked|fixed|eot)_linf", "accuracy under an attack through the whole reading, an upper bound"),
    (r"readings/label_accuracy_where", "accuracy of the label read-out on the images where the readings agree, or do not"),
    (r"readings/.*_accuracy", "share of test images that this reading labels correctly; higher is better"),
    (r"readings/.*_(nll|ece)", "calibration of this reading's probabilities; lower is better"),
    (r"readings/all_agree", "share of test images to which all readings give one label"),
    (r"likelihood/bits_per_dim", "upper bound on the bits per pixel value under the model; lower is better"),
    (
        r"likelihood/time_sampling_error",
        "standard error of the bits per dimension that comes from drawing diffusion times instead of using all of them",
    ),
    (r"likelihood/", "part of the bound; the parts add up to it where their n is the same"),
    (
        r"fidelity/fid_.*(real_test|of_samples)",
        "FID of n real images (real_test), which a perfect generator would score at that n, or of n samples (of_samples)",
    ),
    (r"fidelity/fid_", "Frechet Inception distance to the training images; lower is better"),
    (
        r"fidelity/fd_.*(real_test|of_samples)",
        "the same distance for n real images (real_test), which a perfect generator would score at that n, or for n samples "
        "(of_samples)",
    ),
    (r"fidelity/fd_", "Frechet distance to the training images in this network's features (not FID); lower is better"),
    (
        r"fidelity/class_agreement",
        "share of samples to which this network gives the class that they were drawn for; higher is better",
    ),
    (r"fidelity/kid_", "kernel distance to the training images, unbiased; lower is better"),
    (r"fidelity/precision", "share of samples within the training images' feature manifold; higher is better"),
    (r"fidelity/recall", "share of training images within the samples' feature manifold; higher is better"),
    (
        r"fidelity/(is|score)_",
        "confidence and diversity of the samples' predicted classes, from 1 to the number of classes; higher is better",
    ),
    (r"judge/svm_accuracy", "test accuracy of the SVM that judges the samples; only a high one makes it a valid judge"),
    (r"samples/svm_agreement", "share of generated images that the SVM and the model classify alike; higher is better"),
    (r"samples/svm_classes_covered", "number of classes among the generated images, as classified by the SVM"),
    (
        r"samples/svm_smallest_class_share",
        "share of the rarest class among the generated images, by the SVM; 1/classes is perfectly balanced",
    ),
    (r"quality/smallest_class_share", "share of the rarest class among the samples, as classified by the network itself"),
    (r"quality/logpx_mean", "mean log p(x) up to a constant; compare samples with test images"),
    (r"quality/confidence_mean", "mean largest class probability; compare samples with test images"),
    (r"speed/parameters", "number of trainable parameters"),
    (r"speed/.*gflop", "10^9 floating-point operations per image"),
    (r"speed/.*images_per_second", "images per second on this machine; higher is better"),
    (r"speed/peak_memory", "peak memory of the process so far, MiB"),
)

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: light-dark(#666, #aaa); --paper: light-dark(#fff, #1b1b1b); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; background: var(--paper); }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
p, td { overflow-wrap: break-word; }
p.sub, figcaption, td.meaning { color: var(--soft); } figcaption { font-size: .85rem; max-width: 30rem; }
.row { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; } figure { margin: 0; max-width: 100%; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.tile span { font-size: .85rem; color: var(--soft); }
.warn { border-left: 4px solid #d97706; padding: .3rem .8rem; background: #d9770615; margin: .6rem 0; }
img { max-width: 100%; height: auto; image-rendering: pixelated; border: 1px solid var(--line); }
svg { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; margin-top: .8rem; font-size: .92rem; }
td, th { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.n:empty::before { content: "\\2013"; color: var(--soft); }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; } pre { overflow: auto; background: #8881; padding: 1rem; }
@media (max-width: 45rem) { /* a row of the table is a paragraph: name, then its numbers, then their meaning */
  tr:first-child { display: none; }
  tr { display: flex; flex-wrap: wrap; column-gap: 1rem; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  td { padding: 0; border: 0; overflow-wrap: anywhere; } td:first-child, td.meaning { flex: 1 0 100%; }
  td:first-child { font-weight: 600; }
  td.n:empty { display: none; } td.of:not(:empty)::before { content: "n "; } td.meaning { font-size: .85rem; }
  .drawing { overflow-x: auto; } svg { max-width: none; zoom: .75; } /* its words stay readable, and a wide one scrolls */
}
@media (prefers-color-scheme: dark) { svg { filter: invert(.9) hue-rotate(180deg); } }
@media print {
  :root { color-scheme: light; } body { margin: 0; max-width: none; font-size: 10pt; } details { display: none; }
  h2, figcaption { break-after: avoid; } figure, tr, .tile, .warn { break-inside: avoid; } img { max-width: 8cm; }
  svg { max-width: 100%; zoom: .75; }
}
"""


def meaning(name: str) -> str:
    """The meaning of a metric, in one line."""
    return next((text for pattern, text in MEANINGS if re.match(pattern, name)), "")


def write_report(
    out: Path, record: dict[str, Any], cfg: Config | None, history: list[dict[str, Any]], suites: Mapping[str, Suite]
) -> None:
    """Render ``record`` (results.json) with the pictures in ``out``/evaluation and the training history.

    Args:
        suites: the suites by name, in the order of the page.
    """
    order = dict.fromkeys(name for name in ("fidelity", *suites) if name in record["suites"])  # its pictures come first
    pictures = {name: stored_pictures(out / "evaluation" / name) for name in order}
    write_text(out / "report.html", page(out, record, cfg, history, suites, pictures))
    write_text(out / "report.md", markdown(out, record, cfg, suites, pictures))


def stored_pictures(folder: Path) -> dict[Path, str]:
    """File -> caption, in the order in which the suite produced them."""
    captions = json.loads((folder / "result.json").read_text(encoding="utf-8"))["pictures"]
    files = {
        name: next(folder / f"{name}{end}" for end in (".png", ".svg") if (folder / f"{name}{end}").is_file())
        for name in captions
    }
    return {files[name]: caption for name, caption in captions.items()}


def page(
    out: Path,
    record: dict[str, Any],
    cfg: Config | None,
    history: list[dict[str, Any]],
    suites: Mapping[str, Suite],
    pictures: dict[str, dict[Path, str]],
) -> str:
    title, sub = heading(record, cfg)
    parts = [f"<h1>{html.escape(title)}</h1><p class=sub>{html.escape(sub)}</p>", tiles(record["metrics"])]
    for name in pictures:
        name_of_suite, description = html.escape(suites[name].heading), html.escape(suites[name].description)
        parts.append(f"<h2>{name_of_suite}</h2><p class=sub>{description}.</p>")
        parts += [f"<p class=warn>{prose(note)}</p>" for note in record["notes"][name]]
        figures = "".join(figure(path, caption) for path, caption in pictures[name].items())
        parts.append(f"<div class=row>{figures}</div>" + numbers(of_suite(record, name, out)))
    parts += training(history)
    if record["left_out"]:
        parts.append(
            "<h2>Left out</h2>" + "".join(f"<p class=sub>{prose(f'{k}: {v}')}</p>" for k, v in record["left_out"].items())
        )
    facts = ", ".join(f"{name} {value}" for name, value in record["environment"].items())
    taken = ", ".join(f"{name} {suite['seconds']} s" for name, suite in record["suites"].items())
    parts.append(f"<h2>Record</h2><p class=sub>{html.escape(facts)}. Time per suite: {html.escape(taken)}.</p>")
    parts.append(f"<p class=sub>Options: {html.escape(options_of(record))}.</p>")
    if cfg is not None:
        parts.append(f"<details><summary>Configuration of the model</summary><pre>{html.escape(to_yaml(cfg))}</pre></details>")
    head = '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
    return f"{head}<title>{html.escape(title)}</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"


def heading(record: dict[str, Any], cfg: Config | None) -> tuple[str, str]:
    if cfg is None:
        return f"{record['model']} on {record['data']}", f"{record['parameters']:,} parameters, external model"
    m = cfg.model
    sub = (
        f"{m.image_size}x{m.image_size}x{m.channels}, patch {m.patch_size}, dim {m.dim}, depth {m.depth}, {m.time}; "
        f"{record['parameters']:,} parameters; {trained(record, cfg)}"
    )
    data = describe_data(cfg.data) if cfg.data.name == record["data"] else record["data"]
    return f"{record['objective']} on {data}", sub


def trained(record: dict[str, Any], cfg: Config) -> str:
    """The steps of a run. A model folder does not say whether its weights had been trained before: these were the last."""
    done = record["training"].get("steps", cfg.train.steps)
    of = f"{done:,} of " if done < cfg.train.steps else ""
    last = "" if record["training"] else "last "
    steps, after = quantity(cfg.train.steps, "step"), f", after {cfg.train.init}" if cfg.train.init else ""
    return f"{last}trained for {of}{steps} of batch {describe_batch(cfg)}, seed {cfg.train.seed}{after}"


def of_suite(record: dict[str, Any], name: str, out: Path) -> dict[str, dict[str, float]]:
    names = json.loads((out / "evaluation" / name / "result.json").read_text(encoding="utf-8"))["metrics"]
    return {metric: record["metrics"][metric] for metric in names}


def tiles(metrics: dict[str, dict[str, float]]) -> str:
    """The headline numbers."""
    found = []
    for pattern, label, scale, unit in HEADLINES:
        name = next((name for name in metrics if re.fullmatch(pattern, name)), None)
        if name is not None:
            metric = metrics[name]
            digits = 1 if scale * metric["value"] > 5 else 2
            value, *bounds = (f"{scale * metric[key]:,.{digits}f}" for key in ("value", "low", "high") if key in metric)
            between = f"95 % interval {bounds[0]} to {bounds[1]}, " if bounds else ""
            found.append(f"<div class=tile><b>{value}{unit}</b><span>{label}<br>{between}n {metric['n']:,}</span></div>")
    return f"<div class=tiles>{''.join(found)}</div>"


def numbers(metrics: dict[str, dict[str, float]]) -> str:
    rows = []
    for name, metric in metrics.items():
        rows.append(
            f"<tr><td>{html.escape(name)}<td class=n>{shown(metric['value'])}<td class=n>{interval_of(metric)}"
            f"<td class='n of'>{metric['n']:,}<td class=meaning>{html.escape(meaning(name))}"
        )
    return f"<table><tr><th>metric<th>value<th>95 % interval<th>n<th>meaning{''.join(rows)}</table>"


def interval_of(metric: dict[str, float]) -> str:
    return f"{round(metric['low'], 4) + 0.0:.4f} to {metric['high']:.4f}" if "low" in metric else ""  # no -0.0000


def shown(value: float) -> str:
    """Integers without decimals, large values with one, all others with four."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4f}"


def figure(path: Path, caption: str) -> str:
    return f"<figure>{embedded(path)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def embedded(path: Path) -> str:
    if path.suffix == ".svg":
        return boxed(path.read_text(encoding="utf-8"))
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def boxed(svg: str) -> str:
    return f"<div class=drawing tabindex=0>{svg}</div>"  # a wide one scrolls on a phone, by keyboard too


def prose(text: str) -> str:
    """HTML of a text, with our commands in it as code."""
    return re.sub(r"`(hybvit [^`]+)`", r"<code>\1</code>", html.escape(text))


def training(history: list[dict[str, Any]]) -> list[str]:
    """Losses and accuracy against the training step, one small plot each."""
    names = {"ce": "cross-entropy (train)", "denoising": "denoising loss (train)", "test/accuracy": "test accuracy (EMA)"}
    found = []
    for name, caption in names.items():
        points = [(line["step"], line[name]) for line in history if name in line]
        if len(points) > 1:
            drawing = plots.curve(points, "step", "", log=name != "test/accuracy")
            found.append(f"<figure>{boxed(drawing)}<figcaption>{html.escape(caption)}</figcaption></figure>")
    return [f"<h2>Training</h2><div class=row>{''.join(found)}</div>"] if found else []


def markdown(
    out: Path,
    record: dict[str, Any],
    cfg: Config | None,
    suites: Mapping[str, Suite],
    pictures: dict[str, dict[Path, str]],
) -> str:
    """The same report as Markdown, with links to the pictures."""
    title, sub = heading(record, cfg)
    lines = [f"# {plain(title)}", "", f"{plain(sub)}.", ""]
    for name in pictures:
        lines += [f"## {suites[name].heading}", "", f"*{suites[name].description}.*", ""]
        lines += [f"> {plain(note)}\n" for note in record["notes"][name]]
        lines += [
            f"![{plain(caption)}]({quote(path.relative_to(out).as_posix())})\n\n{plain(caption)}\n"
            for path, caption in pictures[name].items()
        ]
        lines += ["| metric | value | 95 % interval | n | meaning |", "|---|---|---|---|---|"]
        for metric, entry in of_suite(record, name, out).items():
            value, interval = shown(entry["value"]), interval_of(entry)
            lines.append(f"| {plain(metric)} | {value} | {interval} | {entry['n']:,} | {plain(meaning(metric))} |")
        lines.append("")
    lines += [f"Left out: {name}, {plain(reason)}." for name, reason in record["left_out"].items()]
    facts = ", ".join(f"{name} {value}" for name, value in record["environment"].items())
    return "\n".join([*lines, "", f"Options: {plain(options_of(record))}.", "", f"Environment: {plain(facts)}.", ""])


def options_of(record: dict[str, Any]) -> str:
    """The options that the suites were measured with; where they differ, with the suites of each."""
    parts = list[str]()
    for name in record["options"]:
        used = dict[str, list[str]]()
        for suite, kept in record["suites"].items():
            if (value := kept["settings"].get(name)) not in (None, [], ()):
                used.setdefault(str(list(value) if isinstance(value, tuple) else value), []).append(suite)
        of_each = (f"{value} ({', '.join(suites)})" for value, suites in used.items())
        parts += [f"{name} {next(iter(used))}"] if len(used) == 1 else [f"{name} {', '.join(of_each)}"] if used else []
    return ", ".join(parts)


def plain(text: str) -> str:
    """Text in one line of Markdown, with no mark-up but our commands in it, whatever the classes and files are called."""
    marked = html.escape(" ".join(text.split()), quote=False)
    escaped = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", marked)
    return re.sub(r"\\`(hybvit [^`\\]+)\\`", r"`\1`", escaped)
