"""Bundle a trained run with the package: its averaged weights, all results of `hybvit evaluate`, its card and its picture.

    python benchmarks/ship.py NAME RUN [options of `hybvit evaluate`]
    python benchmarks/ship.py NAME [options of `hybvit evaluate`]

The second measures a bundled model again, after the protocols have changed. Then `make readme` renders the card.

The results are measured on the exported model. First it is calibrated by half of the test images, and the other half judges
that. A run that was initialized from the bundled model of that name
(`--train.init NAME`), or from such a run, is a further stage of its training. The card lists all stages (`legs` in the record).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hybvit import checkpoint, load
from hybvit.catalog import CATALOG
from hybvit.cli.push import RESULTS
from hybvit.config import Config, as_typed, differences, load_config, override
from hybvit.evaluation.suites import SUITES
from hybvit.hub import BUNDLED, bundled
from hybvit.model import HybridModel
from hybvit.presets import PRESETS
from hybvit.training.run_folder import read_metrics, training_summary

ROOT = Path(__file__).resolve().parent.parent
LARGEST_MB = 16  # total size of all bundled models
PROTOCOL = ("--samples", "5000", "--sampler", "dpmpp_2m", "--steps", "20")  # as the package samples with the model by default
CARD = """---
license: apache-2.0
library_name: hybvit
tags: [image-classification, {kind}-image-generation, diffusion, vit]
---

# {name}

This Vision Transformer was trained on the training images of [{title}]({source}) (license: {license}).
It classifies such images, generates them, and bounds their likelihood. It is bundled with the package:

```python
import hybvit

model = hybvit.load("{name}")  # no download
images = model.sample(64, steps=20)  # uint8 [64, {channels}, {size}, {size}]
labels, probabilities, score = model.predict(images)
```

![100 generated images](samples.png)

It is meant for trying out the package, for teaching, and as a starting point for other images of this size and number of
channels (the same `model` fields with `--train.init {name}`). It was trained on this data set only, so its predictions for
other images are meaningless. Its adversarial robustness is {robust}.{remarks} The metrics are those of
`hybvit evaluate`; docs/evaluation.md in the repository explains them.

<!-- begin card_{name} -->
<!-- end card_{name} -->
"""
STEERING = (
    " Its denoiser is unconditional. A class can be generated with guidance by its own classifier (`labels=3, guidance=2`), "
    "but most samples miss it, because that classifier was trained on clean images only."
)
REMARKS = {  # on the images, and on the samples by eye
    "cifar10": " The images that it was trained and measured on are a JPEG copy (quality 75), not the published ones. By eye, "
    "its samples are scenes. With `guidance=1` or 2 cars, trucks, ships, planes and horses can be told, birds by their "
    "outline, dogs and cats as heads at best; deer and frogs are hardly more than textures (docs/evaluation.md in the "
    "repository).",
    "fashion-mnist": " Sandals are its weakest class: by eye, about one in four has loose straps or is in pieces.",
}


def command(cfg: Config) -> str:
    """The command that trained it: the closest preset, and the fields that differ from it."""
    if cfg.train.init not in (None, *bundled()):  # a run folder, wherever it lies
        cfg = override(cfg, train={"init": f"runs/{Path(str(cfg.train.init)).name}"})
    changed = {name: differences(entry.config, cfg) for name, entry in PRESETS.items()}
    nearest = min(changed, key=lambda name: len(changed[name]))
    own_places = ("data.root", "data.test_root", "data.classes")
    words = [f"--{field} {as_typed(now)}" for field, (_, now) in changed[nearest].items() if field not in own_places]
    return " ".join(["hybvit train", nearest, *words])


def legs_of(run: Path, name: str, earlier: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The training stages behind a run, its own last; if it was initialized from the bundled model, with the stages of that."""
    cfg, history = load_config(run / "config.yaml"), read_metrics(run / "metrics.jsonl")
    environment = json.loads((run / "environment.json").read_text())
    places = [*environment.pop("earlier", []), {**environment, "until_step": cfg.train.steps}]
    since = 0
    for place in places:
        lines = [line for line in history if since < line["step"] <= place["until_step"]]
        place["seconds"] = training_summary(lines).get("seconds", 0.0)  # 0 if a finished run was only opened again
        since = place["until_step"]
    own = training_summary(history) | {
        "of_steps": cfg.train.steps,
        "batch_size": cfg.train.batch_size,
        "labelled_batch_size": cfg.train.labelled_batch_size,
        "command": command(cfg),
        "places": [place for place in places if place["seconds"]],
    }
    init = cfg.train.init
    if init is None:
        before = []
    elif init == name:
        before = [
            leg for leg in earlier if leg["command"] != own["command"]
        ]  # an unfinished state of this run may have been bundled before
    elif (Path(init) / "metrics.jsonl").is_file():
        before = legs_of(Path(init), name, earlier)
    else:
        sys.exit(f"{name}: {run} was initialized from {init}, whose training is not on record; initialize it from {name}")
    return [*before, own]


def answers(model: HybridModel) -> dict[str, list[list[float]]]:
    """The model's outputs for four fixed noise images: logits, and one row of the noise predicted given a label."""
    x = 2 * torch.rand((4, *model.image_shape), generator=torch.Generator().manual_seed(0)) - 1
    t = torch.tensor([1, 200, 500, 900])
    y = torch.tensor([0, 3, 5, 8]) if model.takes_labels else None
    with torch.no_grad():
        noise = model.denoise(x, t, y)[:, 0, model.image_shape[1] // 2]
        return {"logits": model.logits(x).tolist(), "noise": noise.tolist()}


def export_run(run: Path, export: Path) -> None:
    model = load(run)
    # Local paths of images and initial weights are private.
    model.cfg = override(model.cfg, data={"root": None, "test_root": None}, train={"init": None})
    model.save_pretrained(export)


def in_order(found: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The metrics in the order that they had, new ones last."""
    return {name: found[name] for name in (*(name for name in before if name in found), *found)}


def with_earlier(record: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """Add what was measured before with the same weights, in suites that were left out now (``--suites``)."""
    weights = {suite["settings"]["weights"] for suite in record["suites"].values()}
    again = {metric.partition("/")[0] for metric in record["metrics"]}
    kept = {
        name: suite
        for name, suite in earlier["suites"].items()
        if suite["settings"]["weights"] in weights and name not in record["suites"]
    }
    if not kept:
        return record
    before = earlier["metrics"]
    metrics = {name: value for name, value in before.items() if name.partition("/")[0] not in again}
    of_kept = {name: value for suite in kept.values() for name, value in suite["settings"].items() if name in record["options"]}
    of_new = {name for suite in record["suites"].values() for name in suite["settings"]}
    if differ := [name for name in of_new & of_kept.keys() if of_kept[name] != record["options"][name]]:
        sys.exit(f"{', '.join(sorted(differ))}: the other suites were measured with another value: measure all with one")
    suites = record["suites"] | kept
    return record | {
        "options": record["options"] | of_kept,
        "suites": {name: suites[name] for name in SUITES if name in suites},
        "notes": record["notes"] | {name: notes for name, notes in earlier["notes"].items() if name not in record["notes"]},
        "metrics": in_order(record["metrics"] | metrics, before),
        "tables": record["tables"] | {name: table for name, table in earlier["tables"].items() if name not in record["tables"]},
    }


def ship(name: str, run: Path | None, options: list[str]) -> None:
    """Measure a run, or the bundled model again, and replace what the package and results/ say of it."""
    out, stored = Path("runs/shipped") / name, ROOT / "results" / f"model_{name}.json"
    earlier: dict[str, Any] = json.loads(stored.read_text()) if stored.is_file() else {"legs": [], "suites": {}}
    export, legs = out / "model", earlier["legs"] if run is None else legs_of(run, name, earlier["legs"])
    if run is None:
        load(BUNDLED / name, "cpu").save_pretrained(export)
    else:
        export_run(run, export)
    others = [path for path in BUNDLED.rglob("*.safetensors") if path.parent.name != name]
    size = sum(path.stat().st_size for path in (*others, *export.glob("*.safetensors"))) / 1e6
    if size > LARGEST_MB:
        sys.exit(f"{name}: {size:.1f} MB of weights with the other models; at most {LARGEST_MB} MB fit")

    for call in (
        ["calibrate", str(export), "--half-of-test"],
        ["evaluate", str(export), "--out", str(out), "--report", *PROTOCOL, *options],
    ):
        code = subprocess.run([sys.executable, "-m", "hybvit.cli", *call]).returncode
        if code:
            sys.exit(code)
    measured = json.loads((out / "results.json").read_text())
    model, record = load(export, "cpu"), with_earlier(measured, earlier)
    record |= {"model": name, "training": legs[-1], "legs": legs, "answers": answers(model)}
    record["sha256"] = checkpoint.verify(export)["sha256"]

    info = CATALOG[model.cfg.data.name]
    card = CARD.format(
        name=name,
        remarks=("" if model.takes_labels else STEERING) + REMARKS.get(name, ""),
        robust="measured below, not guaranteed" if "robustness" in record["suites"] else "not measured",
        kind="conditional" if model.takes_labels else "unconditional",
        title=info.title,
        source=info.source,
        license=info.license,
        channels=info.channels,
        size=info.size,
    )
    # Files are replaced only now, so that a failed evaluation leaves the old model and its results in place.
    shutil.copytree(export, BUNDLED / name, dirs_exist_ok=True)
    (BUNDLED / name / "README.md").write_text(card)
    stored.write_text(json.dumps(record, indent=1) + "\n")
    metrics = json.dumps({"metrics": record["metrics"]})
    (BUNDLED / name / RESULTS).write_text(metrics + "\n")  # for the card of `hybvit push`
    if "fidelity" in measured["suites"]:
        shutil.copy(out / "evaluation" / "fidelity" / "samples.png", BUNDLED / name / "samples.png")
    print(f"{BUNDLED / name}: {size:.1f} MB with the others; now run `make readme` and check {BUNDLED / name / 'samples.png'}")


if __name__ == "__main__":
    name, *rest = sys.argv[1:] or sys.exit(__doc__)
    run = Path(rest.pop(0)) if rest and not rest[0].startswith("--") else None
    ship(name, run, rest)
