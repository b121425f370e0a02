"""Certified accuracy of models, with the noise chosen on training images -> results/certified.json and docs/certified_*.svg.

`python benchmarks/certified.py` makes every part in turn in runs/certified, and continues where it was interrupted.
`--parts TEXT` makes those with TEXT in their names. Each call collects what there is.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from recording import RESULTS, ROOT, share

import hybvit
from hybvit.checkpoint import digest_of_weights
from hybvit.data.datasets import open_dataset
from hybvit.data.image_set import to_x
from hybvit.devices import environment
from hybvit.evaluation import plots
from hybvit.evaluation.certified import table_of_shares
from hybvit.method.smoothing import NoiseLevel, NoisyClassifier, cast_votes, denoised_reading
from hybvit.metrics.certified import Certificates, certified_at, certify_votes, largest_radius
from hybvit.metrics.robustness import smoothed_pgd, strong_pgd

OUT, PARTS = RESULTS / "certified.json", ROOT / "runs" / "certified"
PLOTTED = ("fashion-mnist", "cifar10")
SELECTION, VOTES, CONFIDENCE, SEED = 100, 1000, 0.999, 0
CLASSES = 10
CHUNK = 20  # images between two writes
RADII = (0.25, 0.5, 0.75, 1.0)
INSIDE = 0.99  # of the certified radius, where the smoothed classifier is attacked


@dataclass(frozen=True)
class Part:
    """What is measured on some images of a model's data.

    Attributes:
        kind: noisy or denoised, the reading that votes; pgd, an attack on the classifier that is not smoothed; or inside, an
            attack on the smoothed one within the certified radius.
        noise: on the [0, 1] scale; of ``pgd`` the radius.
    """

    model: str
    split: str
    kind: str
    noise: float
    images: int
    votes: int = VOTES

    @property
    def name(self) -> str:
        return f"{Path(self.model).name} {self.split} {self.kind} {self.noise:g}"


def parts_of(digits: str) -> list[Part]:
    """The parts, the most important first.

    Args:
        digits: the run folder of a model of the digits that was trained on noisy labels.
    """
    fashion, photos = "fashion-mnist", "cifar10"
    return [
        Part(fashion, "test", "noisy", 0.25, 500),
        *(Part(fashion, "train", kind, s, 100, 64) for kind in ("noisy", "denoised") for s in (0.12, 0.18, 0.25, 0.35, 0.5)),
        *(Part(fashion, "test", "pgd", radius, 500) for radius in RADII),
        *(Part(fashion, "test", "inside", s, 50) for s in (0.25,)),
        *(Part(fashion, "test", "noisy", s, 500) for s in (0.18, 0.12, 0.5)),
        Part(fashion, "test", "denoised", 0.25, 200),
        *(Part(digits, split, "noisy", s, 364, v) for split, v in (("train", 64), ("test", VOTES)) for s in (0.12, 0.25, 0.5)),
        *(Part("digits", "test", "denoised", s, 364) for s in (0.12, 0.25)),
        *(Part(photos, "train", kind, s, 100, 64) for kind in ("noisy", "denoised") for s in (0.06, 0.12, 0.25)),
        *(Part(photos, "test", "noisy", s, 200) for s in (0.12, 0.25)),
        *(Part(photos, "test", "pgd", radius, 200) for radius in RADII[:2]),
        Part(photos, "test", "denoised", 0.12, 100),
        Part(photos, "test", "inside", 0.12, 20),
    ]


def classifier(model: hybvit.HybridModel, kind: str, noise: float) -> NoisyClassifier:
    if kind != "denoised":
        return model.noisy_classifier(noise)
    return denoised_reading(model.predict_x0, model.logits, NoiseLevel.of(model.diffusion, noise))


def measure(part: Part, model: hybvit.HybridModel, x: torch.Tensor, labels: torch.Tensor, indices: range) -> dict[str, list]:
    """Rows of numbers, one for each image x [B, C, H, W]."""
    if part.kind == "pgd":
        random = torch.Generator().manual_seed(SEED + indices.start)
        return {"broken": strong_pgd(model.logits, x, labels, part.noise, "l2", random).broken.int().tolist()}
    classify, classes = classifier(model, part.kind, part.noise), model.cfg.model.num_classes
    polls = cast_votes(classify, x, part.noise, (SELECTION, part.votes), classes, SEED, indices)
    selected = polls[0].argmax(dim=1)
    rows = {"selected": selected, "votes": polls[1].gather(1, selected[:, None])[:, 0]}
    if part.kind == "inside":
        found = certify_votes(*polls, part.votes, part.noise, CONFIDENCE)
        radius = INSIDE * found.radius.float()
        images = smoothed_pgd(classify, x, selected, part.noise, radius, torch.Generator().manual_seed(SEED), draws=16)
        (after,) = cast_votes(classify, images, part.noise, (part.votes,), classes, SEED + 1, indices)
        rows |= {"attacked_majority": after.argmax(dim=1), "attacked_votes": after.gather(1, selected[:, None])[:, 0]}
    return {name: values.tolist() for name, values in rows.items()}


def run(part: Part, most: int) -> None:
    """Measure the first images of a part, as far as that has not been done."""
    path = PARTS / f"{part.name}.json"
    model = hybvit.load(part.model)
    data = open_dataset(model.cfg.data, model.image_shape, model.cfg.model.num_classes)
    images = (data.test if part.split == "test" else data.train).subsample(part.images)
    pixels, labels = images.take(torch.arange(len(images)))
    assert labels is not None
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    weights = digest_of_weights(model.net.state_dict())
    if found.get("weights", weights) != weights:
        raise SystemExit(f"{path}: of other weights than those of {part.model}: delete it, and the part in {OUT.name}")
    found |= {"weights": weights, "part": asdict(part) | {"model": Path(part.model).name}, "of": len(images)}
    while (done := len(found.get("labels", []))) < min(most, len(images)):
        indices = range(done, min(done + CHUNK, most, len(images)))
        chosen, started = slice(indices.start, indices.stop), time.process_time()
        rows = measure(part, model, to_x(pixels[chosen]).to(model.device), labels[chosen].to(model.device), indices)
        for name, values in {"labels": labels[chosen].tolist(), **rows}.items():
            found[name] = found.get(name, []) + values
        found["environment"] = environment()
        found["cpu_seconds"] = round(found.get("cpu_seconds", 0) + time.process_time() - started, 2)
        path.write_text(json.dumps(found))
    print(f"{part.name}: {found['cpu_seconds']} s of CPU", flush=True)


def collect() -> None:
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(PARTS.glob("*.json"))}
    facts = {"selection": SELECTION, "votes": VOTES, "confidence": CONFIDENCE, "seed": SEED, "inside_share": INSIDE}
    tables = {"certified": {}, "inside": {}, "attacked": {model: attacked(parts, model) for model in PLOTTED}}
    for name, found in parts.items():
        if found["part"]["kind"] in ("noisy", "denoised"):
            tables["certified"][name] = certified(found)
        elif found["part"]["kind"] == "inside":
            tables["inside"][name] = inside(found)
    lines = [f"  {json.dumps(name)}: {json.dumps(part)}" for name, part in parts.items()]
    record = json.dumps(facts | tables, indent=1).removesuffix("\n}")
    OUT.write_text(record + ',\n "parts": {\n' + ",\n".join(lines) + "\n }\n}\n")
    for model, under_attack in tables["attacked"].items():
        (ROOT / "docs" / f"certified_{model}.svg").write_text(drawing(parts, model, under_attack))


def certificates(found: dict[str, Any]) -> tuple[Certificates, torch.Tensor]:
    """The certificates of a part and the true labels; where it has fewer votes than VOTES, as if it had those in this share."""
    labels, selected, votes = (torch.tensor(found[name]) for name in ("labels", "selected", "votes"))
    first = torch.nn.functional.one_hot(selected, CLASSES)
    second = first * (votes * VOTES // found["part"]["votes"])[:, None]
    return certify_votes(first, second, VOTES, found["part"]["noise"], CONFIDENCE), labels


def certified(found: dict[str, Any]) -> dict[str, Any]:
    """Certified accuracy of a part at radii, abstentions, and the number of images by the share of the votes."""
    known, labels = certificates(found)
    right = torch.tensor(found["selected"]) == labels
    share = torch.tensor(found["votes"], dtype=torch.float64) / found["part"]["votes"] * right
    cast = len(labels) * (SELECTION + found["part"]["votes"])
    return {
        **{key: found["part"][key] for key in ("model", "split", "kind", "noise", "votes")},
        "n": len(labels),
        "of": found["of"],
        "largest_radius": largest_radius(found["part"]["noise"], VOTES, CONFIDENCE),
        "accuracy": {f"{radius:g}": share(certified_at(known, labels, radius)) for radius in (0.0, *RADII)},
        "abstained": share(known.labels < 0),
        "share_of_votes": table_of_shares(share),
        "votes_per_cpu_second": round(cast / found["cpu_seconds"]),
    }


def inside(found: dict[str, Any]) -> dict[str, Any]:
    """How the certified images stood an attack within their radius: how many lost, and the least share of votes left.

    ``below_theorem`` counts those that lost more than the theorem allows, Phi(Phi^-1(p) - eps/s) for the lower bound p.
    """
    known, _ = certificates(found)
    sure = known.labels >= 0
    left = torch.tensor(found["attacked_votes"], dtype=torch.float64)[sure] / found["part"]["votes"]
    radius, noise = known.radius[sure], found["part"]["noise"]
    allowed = torch.special.ndtr((radius - INSIDE * radius.float()) / noise)
    majority = torch.tensor(found["attacked_majority"])[sure]
    return {
        "attacked": int(sure.sum()),
        "broken": int((majority != known.labels[sure]).sum()),
        "below_theorem": int((left < allowed).sum()),
        "least_share": left.min().item(),
        "mean_share_before": (torch.tensor(found["votes"], dtype=torch.float64)[sure] / found["part"]["votes"]).mean().item(),
        "mean_share_after": left.mean().item(),
        "noise": noise,
        "model": found["part"]["model"],
    }


def attacked(parts: dict[str, Any], model: str) -> dict[str, Any]:
    """Accuracy of the classifier that is not smoothed under PGD, by radius; an image broken at a smaller one counts."""
    found = {
        part["part"]["noise"]: part for part in parts.values() if [*map(part["part"].get, ("model", "kind"))] == [model, "pgd"]
    }
    if not found:
        return {}
    n = min(len(part["labels"]) for part in found.values())
    broken = torch.tensor([found[radius]["broken"][:n] for radius in sorted(found)]).bool().long().cummax(dim=0).values
    return {f"{radius:g}": share(row == 0) for radius, row in zip(sorted(found), broken, strict=True)}


def drawing(parts: dict[str, Any], model: str, under_attack: dict[str, Any]) -> str:
    """Certified accuracy of a model against the radius, for every noise, with its number of images."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for found in parts.values():
        part = found["part"]
        if (part["model"], part["split"]) != (model, "test") or part["kind"] not in ("noisy", "denoised"):
            continue
        known, labels = certificates(found)
        end = largest_radius(part["noise"], part["votes"], CONFIDENCE)
        radii = [0.05 * k for k in range(int(end / 0.05) + 1)] + [end - 1e-9, end]
        words = f"noise {part['noise']:g}{', denoised first' * (part['kind'] == 'denoised')} (n {len(labels)})"
        lines[words] = [(radius, certified_at(known, labels, radius).double().mean().item()) for radius in radii]
    if under_attack:
        n = next(iter(under_attack.values()))["n"]
        lines[f"attacked, not smoothed (n {n})"] = [(float(r), entry["value"]) for r, entry in under_attack.items()]
    return plots.curves(lines, "L2 radius on the [0, 1] scale of pixels", "accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", default="runs/digits-noisy", help="run folder of the digits with noisy labels")
    parser.add_argument("--parts", default="", help="text in the names of the parts to measure; 'none' only collects")
    parser.add_argument("--most", type=int, default=10**6, help="images of each part; the evenly spaced ones come in turn")
    args = parser.parse_args()
    PARTS.mkdir(parents=True, exist_ok=True)
    stored = json.loads(OUT.read_text())["parts"] if OUT.is_file() else {}
    for name, found in stored.items():
        if not (PARTS / f"{name}.json").is_file():
            (PARTS / f"{name}.json").write_text(json.dumps(found))
    for part in parts_of(args.digits):
        if args.parts not in part.name:
            continue
        if part.model == args.digits and not Path(part.model).is_dir():
            cure = f"hybvit train digits --objective.noisy_labels 1 --out {part.model}"
            print(f"{part.name}: left out, there is no {part.model} ({cure})")
            continue
        run(part, args.most)
    collect()


if __name__ == "__main__":
    main()
