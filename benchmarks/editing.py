"""Editing, measured: counterfactuals, inpainting, inversion, variations, and samples drawn in several tries.

`python benchmarks/editing.py fashion-mnist [PART ...]` adds the parts to results/editing.json and draws docs/editing_*.png.
Settings were chosen on training images; everything here is measured on test images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from recording import RESULTS, ROOT, share
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import hybvit
from hybvit.checkpoint import digest_of_weights
from hybvit.data.datasets import open_dataset
from hybvit.data.image_set import evenly_spaced
from hybvit.data.images import captioned_grid, grid, save_image
from hybvit.devices import environment
from hybvit.evaluation.extractors import open_extractor
from hybvit.metrics.fidelity import Statistics, frechet_distance, frechet_interval, precision_recall
from hybvit.metrics.judge import PixelSVM, affordable
from hybvit.model import ATTEMPT, Prediction

OUT = RESULTS / "editing.json"
SEED, SHOWN, PICTURED = 0, 12, ("fashion-mnist", "cifar10")
CONFIDENCES = {  # digits was trained with smoothed labels: at most 0.91
    "fashion-mnist": (0.95, 0.5), "digits": (0.8, 0.5), "cifar10": (0.95, 0.5),
}  # fmt: skip
USED = 200  # test images that earlier settings of counterfactuals were measured on: the last one is measured on others
POOL_IMAGES, POOL_TRIES, POOL_STEPS, REFERENCE = 1000, 4, 10, 5000


class Bench:
    """A bundled model, its data, and a judge that shares nothing with it but the training images."""

    def __init__(self, name: str, images: int = 200) -> None:
        self.name, self.model, self.images = name, hybvit.load(name, "cpu"), images
        cfg = self.model.cfg
        data = open_dataset(cfg.data, cfg.model.image_shape, cfg.model.num_classes, labeled=True)
        self.train, self.train_labels = data.train.take(torch.arange(len(data.train)))
        self.test, self.test_labels = data.test.take(torch.arange(len(data.test)))
        self.extractor = open_extractor(None, cfg.data.name)
        self.judge_name = f"the classes of the extractor {self.extractor.name}"
        self.judge: Callable[[Tensor], Tensor] = lambda pixels: self.extractor.logits(pixels).argmax(dim=1)
        if affordable(len(self.train), len(self.test), self.train[0].numel()):
            self.judge, self.judge_name = PixelSVM(self.train, self.train_labels).predict, "a support vector machine on pixels"

    def draw(self, n: int, purpose: int, after: int = 0) -> tuple[Tensor, Tensor, torch.Generator]:
        """n test images at random with their labels, without the first ``after`` of the same draw, and a generator."""
        g = torch.Generator().manual_seed(1000 * SEED + purpose)
        rows = torch.randperm(len(self.test), generator=g)[after : after + n]
        return self.test[rows], self.test_labels[rows], g

    def save(self, picture: str, pixels: Tensor, columns: int, captions: Sequence[str] = ()) -> None:
        if self.name not in PICTURED:
            return
        name, scale = self.name.replace("-", "_"), max(1, (96 if captions else 64) // pixels.shape[-1])
        sheet = captioned_grid(pixels, captions, columns, scale) if captions else grid(pixels, columns, scale=scale)
        save_image(sheet, ROOT / "docs" / f"editing_{picture}_{name}.png")

    def said(self, prediction: Prediction) -> list[str]:
        """The label and its probability, for each image."""
        certain = prediction.probabilities.amax(dim=1)
        return [f"{self.model.classes[k]} {p:.2f}" for k, p in zip(prediction.labels.tolist(), certain.tolist(), strict=True)]


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances of uint8 images, with pixels in 0..1: [N]."""
    return (a.float() - b.float()).flatten(1).norm(dim=1) / 255


def wanted_classes(bench: Bench, n: int) -> tuple[Tensor, Tensor]:
    """n test images, and a random other class for each."""
    pixels, labels, g = bench.draw(n, 1, USED if USED + n <= len(bench.test) else 0)
    classes = len(bench.model.classes)
    return pixels, (labels + torch.randint(1, classes, (n,), generator=g)) % classes


def rivals(bench: Bench) -> dict[str, Any]:
    """How far the training images of the wanted class are: the nearest one, and the nearest that both classifiers accept."""
    n = bench.images
    pixels, wanted = wanted_classes(bench, n)
    nearest, accepted, refused = [], [], list[int]()
    for image, k in zip(pixels, wanted, strict=True):
        others = bench.train[bench.train_labels == k]
        distance, order = apart(others, image[None]).sort()
        nearest.append(distance[0])
        for first in range(0, len(order), 8):
            few = others[order[first : first + 8]]
            passed = (bench.judge(few) == k) & (bench.model.predict(few).labels == k)
            if passed.any():
                place = first + int(passed.int().argmax())
                accepted.append(distance[place])
                refused.append(place)
                break
        else:
            refused.append(len(order))
    return {
        "n": n, "nearest": torch.stack(nearest).mean().item(), "refused_before": sum(refused) / n,
        "nearest_accepted": torch.stack(accepted).mean().item(), "accepted": len(accepted),
    }  # fmt: skip


def counterfactuals(bench: Bench) -> dict[str, Any]:
    n, model = bench.images, bench.model
    pixels, wanted = wanted_classes(bench, n)
    nearest = []
    for image, k in zip(pixels, wanted, strict=True):
        rivals = bench.train[bench.train_labels == k]
        nearest.append(rivals[apart(rivals, image[None]).argmin()])
    near = torch.stack(nearest)
    limit = apart(near, pixels)
    found: dict[str, Any] = {"nearest_distance": limit.mean().item(), "nearest_judged": share(bench.judge(near) == wanted)}
    found["nearest_both"] = share((bench.judge(near) == wanted) & (model.predict(near).labels == wanted))
    for confidence in CONFIDENCES[bench.name]:
        first = confidence == CONFIDENCES[bench.name][0]
        m = n if first else n // 2
        result = model.counterfactual(pixels[:m], wanted[:m], confidence=confidence)
        ours, judged = result.after.labels == wanted[:m], bench.judge(result.pixels) == wanted[:m]
        closer = result.distance < limit[:m]
        found[f"confidence_{confidence}"] = {
            "accepted": share(result.accepted), "classifier": share(ours), "judge": share(judged), "both": share(ours & judged),
            "closer": share(closer), "both_and_closer": share(ours & judged & closer),
            "distance": result.distance.mean().item(), "nearest": limit[:m].mean().item(),
            "holds": {f"{hold:g}": int((result.hold == hold).sum()) for hold in result.hold.unique().tolist()},
        }  # fmt: skip
        print(json.dumps(found), flush=True)
        if first:
            rows = torch.stack((pixels, result.pixels, near), dim=1)[:SHOWN]  # two triples in a row
            said = zip(bench.said(result.before), bench.said(result.after), bench.said(model.predict(near)), strict=True)
            bench.save("counterfactual", rows.flatten(0, 1), 6, [word for triple in said for word in triple][: 3 * SHOWN])
    return found


def inpainting(bench: Bench) -> dict[str, Any]:
    n, model = 80, bench.model
    pixels, labels, _ = bench.draw(n, 2)
    side = pixels.shape[-1]
    masks = {"right_half": torch.zeros(side, side, dtype=torch.bool), "center": torch.zeros(side, side, dtype=torch.bool)}
    masks["right_half"][:, side // 2 :] = True
    masks["center"][side // 4 : side - side // 4, side // 4 : side - side // 4] = True
    average, found = bench.train.float().mean(dim=0).round(), {}
    shown = []
    for name, mask in masks.items():
        result = model.inpaint(pixels, mask, seed=SEED)
        own = torch.stack([image[:, ~mask].float().mean() for image in pixels])[:, None, None, None]

        def error(images: Tensor, mask: Tensor = mask) -> float:
            return ((images.float() - pixels.float())[..., mask] / 255).square().mean().sqrt().item()

        found[name] = {
            "known_pixels_changed": int((result.pixels != pixels)[..., ~mask].sum()), "rmse": error(result.pixels),
            "rmse_mean_of_training_images": error(average.expand(pixels.shape)),
            "rmse_mean_of_known_pixels": error(own.expand(pixels.shape)),
            "same_class": share(result.after.labels == labels), "judge": share(bench.judge(result.pixels) == labels),
            "before": share(result.before.labels == labels), "judge_before": share(bench.judge(pixels) == labels),
        }  # fmt: skip
        shown.append(torch.stack((pixels, torch.where(mask, 128, pixels).to(torch.uint8), result.pixels), dim=1)[:SHOWN])
    bench.save("inpaint", torch.cat(shown).flatten(0, 1), 12)
    return found


def inversion(bench: Bench) -> dict[str, Any]:
    """Both ends of interpolations of random pairs."""
    pairs = 12
    pixels, _, _ = bench.draw(2 * pairs, 3)
    errors, shown = [], []
    for k in range(pairs):
        a, b = pixels[2 * k : 2 * k + 1], pixels[2 * k + 1 : 2 * k + 2]
        frames = 9 if k < 4 else 2
        made = bench.model.interpolate(a, b, frames).pixels
        errors += [(made[:1].float() - a.float()).square().mean(), (made[-1:].float() - b.float()).square().mean()]
        shown += [a, made, b] if k < 4 else []
    bench.save("interpolate", torch.cat(shown), 11)
    rmse = torch.stack(errors).sqrt()
    return {"rmse_gray_levels": rmse.mean().item(), "largest_rmse": rmse.max().item(), "n": len(rmse), "steps": 30}


def variations(bench: Bench) -> dict[str, Any]:
    n, shown, found = 60, [], {}
    pixels, labels, _ = bench.draw(n, 4)
    for strength in (0.2, 0.4, 0.6, 0.8):
        result = bench.model.vary(pixels, strength, seed=SEED)
        found[f"{strength}"] = {
            "distance": apart(result.pixels, pixels).mean().item(), "same_class": share(result.after.labels == labels),
        }  # fmt: skip
        shown.append(result.pixels)
    bench.save("vary", torch.stack([pixels, *shown], dim=1)[:SHOWN].flatten(0, 1), 10)
    return found


def tries(bench: Bench, pool: Path) -> dict[str, Any]:
    """Keeping the best of several samples: by rule, and by how many are drawn for each."""
    n, k, model = POOL_IMAGES, POOL_TRIES, bench.model
    labels = torch.arange(n) % len(model.classes)
    weights = digest_of_weights(model.net.state_dict())
    if pool.is_file():
        with safe_open(pool, "pt") as kept:
            if (kept.metadata() or {}).get("weights") != weights:
                raise SystemExit(f"{pool}: of other weights than those of {bench.name}: name another --pool, or delete it")
    if not pool.is_file():
        drawn = [model.draw([i + j * ATTEMPT for i in range(n)], "dpmpp_2m", POOL_STEPS, SEED, labels=labels) for j in range(k)]
        pool.parent.mkdir(parents=True, exist_ok=True)
        save_file({"pixels": torch.stack(drawn)}, pool, {"weights": weights})
    pixels = load_file(pool)["pixels"]
    said = model.predict(pixels.flatten(0, 1))
    p = said.probabilities.reshape(k, n, -1)[:, torch.arange(n), labels]
    familiar, right = said.score.reshape(k, n), said.labels.reshape(k, n) == labels
    extracted = bench.extractor.extract(pixels.flatten(0, 1))
    assert extracted.logits is not None
    features, judged = extracted.features.reshape(k, n, -1), extracted.logits.argmax(dim=1).reshape(k, n) == labels
    real = bench.extractor.features(bench.train[evenly_spaced(len(bench.train), REFERENCE)])
    few = real[evenly_spaced(REFERENCE, n)]

    def measure(chosen: Tensor, draws: float) -> dict[str, Any]:
        """chosen: int64 [n], the try that is kept for each image."""
        f = features[chosen, torch.arange(n)]
        precision, recall = precision_recall(f, few)
        low, high = frechet_interval(f, real)
        return {
            "frechet": frechet_distance(Statistics.of(f), Statistics.of(real)), "low": low, "high": high, "draws": draws,
            "precision": precision, "recall": recall, "judge": share(judged[chosen, torch.arange(n)]),
            "classifier": share(right[chosen, torch.arange(n)]),
        }  # fmt: skip

    order = torch.stack([torch.arange(k).roll(-first) for first in range(k)])  # which try is the first
    found: dict[str, Any] = {"plain": [measure(torch.full((n,), first), 1.0) for first in range(k)]}
    for m in (2, k):
        rank_p, rank_f = (v[:m].argsort(dim=0).argsort(dim=0) for v in (p, familiar))
        found[f"best_of_{m}_probability"] = [measure(p[:m].argmax(dim=0), m)]
        found[f"best_of_{m}_familiarity"] = [measure(familiar[:m].argmax(dim=0), m)]
        found[f"best_of_{m}_both"] = [measure((rank_p + rank_f + 0.1 * rank_p).argmax(dim=0), m)]
        rows = []
        for o in order:
            passed = (p[o[:m]] >= 0.5).int()
            first = passed.argmax(dim=0)
            chosen = torch.where(passed.any(dim=0), first, p[o[:m]].argmax(dim=0))
            draws = torch.where(passed.any(dim=0), first + 1, m).float().mean().item()
            rows.append(measure(o[chosen], draws))
        found[f"tries_{m}"] = rows
    everything = features.flatten(0, 1)
    precision, recall = precision_recall(everything, real[evenly_spaced(REFERENCE, n * k)])
    found["all"] = {
        "frechet": frechet_distance(Statistics.of(everything), Statistics.of(real)), "n": n * k, "precision": precision,
        "recall": recall,
    }  # fmt: skip
    return {"n": n, "steps": POOL_STEPS, "reference": REFERENCE, "rules": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=CONFIDENCES)
    parser.add_argument(
        "parts", nargs="*", help="rivals, counterfactuals, inpainting, inversion, variations, tries; all by default"
    )
    parser.add_argument("--pool", type=Path, default=Path("runs/editing_pool.safetensors"), help="where samples are kept")
    parser.add_argument("--images", type=int, default=200, help="of counterfactuals; half as many at the lower confidence")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.model, args.images)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "rivals": lambda: rivals(bench),
        "counterfactuals": lambda: counterfactuals(bench),
        "inpainting": lambda: inpainting(bench),
        "inversion": lambda: inversion(bench),
        "variations": lambda: variations(bench),
    }
    if bench.model.takes_labels:
        parts["tries"] = lambda: tries(bench, args.pool)
    if unknown := [name for name in args.parts if name not in parts]:
        parser.error(f"{', '.join(unknown)}: of {args.model} there are {', '.join(parts)}")
    for name in args.parts or parts:
        started = time.monotonic()
        result = parts[name]()
        record = json.loads(OUT.read_text()) if OUT.is_file() else {}
        result |= {
            "seconds": round(time.monotonic() - started),
            "seed": SEED,
            "judge_name": bench.judge_name,
            "environment": environment(),
        }
        record.setdefault(args.model, {})[name] = result
        OUT.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{name}: {result['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
