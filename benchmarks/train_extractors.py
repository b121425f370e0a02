"""Train the small CNNs in whose features images are compared -> src/hybvit/assets (hybvit.evaluation.extractors).

    python benchmarks/train_extractors.py [digits] [fashion_mnist]
    python benchmarks/train_extractors.py cifar10 --data DIR

DIR has train/CLASS/*.jpg and test/CLASS/*.jpg, the images of CIFAR-10 as JPEG files.

One thread, so that the same machine and torch version give the same weights. Nothing is chosen by the test images: they are
read once, at the end, with the weights as they are stored.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from hybvit.checkpoint import sha256
from hybvit.data.batches import Order, augment_weakly, uniforms
from hybvit.data.datasets import open_dataset
from hybvit.data.image_set import ImageSet, to_x
from hybvit.evaluation.extractors import ASSETS, RECORD, SHIPPED, SmallCNN
from hybvit.method.seeds import derive_seed
from hybvit.presets import preset

SEED = 0


class Recipe(NamedTuple):
    preset: str  # whose data it takes
    epochs: int
    batch_size: int
    lr: float
    padding: int  # pixels on each side before the random crop
    flip: bool
    bf16: bool
    images: str = "images"  # what they are, for the record


RECIPES = {
    "digits": Recipe("digits", epochs=60, batch_size=64, lr=3e-3, padding=1, flip=False, bf16=False),
    "fashion_mnist": Recipe("fashion_mnist_pocket", epochs=5, batch_size=128, lr=5e-3, padding=2, flip=True, bf16=True),
    "cifar10": Recipe(
        "cifar10",
        epochs=5,
        batch_size=128,
        lr=5e-3,
        padding=2,
        flip=True,
        bf16=True,
        images="images, in a JPEG copy (quality 75)",
    ),
}
WEIGHT_DECAY, LABEL_SMOOTHING, WARMUP = 0.05, 0.05, 0.2  # WARMUP: share of the steps in which the rate rises


def rate(step: int, steps: int, peak: float) -> float:
    """One cycle: linear up, cosine down to 0."""
    rising = WARMUP * steps
    return (
        peak * (step + 1) / rising
        if step < rising
        else peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
    )


def fit(net: SmallCNN, pixels: Tensor, labels: Tensor, recipe: Recipe) -> SmallCNN:
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=WEIGHT_DECAY)
    order = Order(len(pixels), SEED, "order of labeled images")
    per_epoch = len(pixels) // recipe.batch_size
    steps, started = recipe.epochs * per_epoch, time.perf_counter()
    for step in range(steps):
        keys = order.at(torch.arange(step * recipe.batch_size, (step + 1) * recipe.batch_size))
        x = to_x(augment_weakly(pixels[keys[:, 1]], uniforms(SEED, "augmentation", keys), recipe.padding, recipe.flip))
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, recipe.lr)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            logits = net(x.contiguous(memory_format=torch.channels_last))
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[keys[:, 1]], label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99 or step == steps - 1:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {time.perf_counter() - started:.0f} s", flush=True)
    return net.to(memory_format=torch.contiguous_format).eval()


@torch.no_grad()
def accuracy(net: SmallCNN, pixels: Tensor, labels: Tensor) -> float:
    predicted = torch.cat([net(to_x(part)).argmax(dim=1) for part in pixels.split(250)])
    return (predicted == labels).double().mean().item()


def in_memory(images: ImageSet) -> tuple[Tensor, Tensor]:
    pixels, labels = images.take(torch.arange(len(images)))
    assert labels is not None
    return pixels, labels


def make(name: str, folder: str | None) -> None:
    recipe, shape = RECIPES[name], SHIPPED[name]
    data = open_dataset(replace(preset(recipe.preset).data, root=folder), (shape.channels, shape.size, shape.size))
    (train, labels), (test, test_labels) = (in_memory(images) for images in (data.train, data.test))
    started = time.perf_counter()
    torch.manual_seed(derive_seed(SEED, "weights"))
    net = fit(SmallCNN(shape), train, labels, recipe)
    seconds = time.perf_counter() - started
    trained = net.state_dict()
    stored = {key: value.half() if value.is_floating_point() else value for key, value in trained.items()}
    before = accuracy(net, test, test_labels)
    net.load_state_dict({key: value.float() for key, value in stored.items()})
    path = ASSETS / f"extractor-{name}.safetensors"
    ASSETS.mkdir(exist_ok=True)
    save_file(stored, path)
    path.chmod(0o644)  # safetensors leaves it readable for its owner only
    known = json.loads((ASSETS / RECORD).read_text()) if (ASSETS / RECORD).exists() else {}
    known[path.name] = {
        "data": name,
        "trained_on": f"the {len(data.train):,} training {recipe.images}",
        "test_accuracy": accuracy(net, test, test_labels),
        "test_accuracy_before_rounding_to_float16": before,
        "n": len(data.test),
        "seed": SEED,
        **{key: value for key, value in recipe._asdict().items() if key not in ("preset", "images")},
        "weight_decay": WEIGHT_DECAY,
        "label_smoothing": LABEL_SMOOTHING,
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
        "sha256": sha256(path),
    }
    (ASSETS / RECORD).write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
    print(name, json.dumps(known[path.name]), f"{path.stat().st_size:,} bytes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RECIPES)}; none: all that need no --data")
    parser.add_argument("--data", help="folder of the images of cifar10")
    args = parser.parse_args()
    names = args.names or [name for name in RECIPES if name != "cifar10"]
    if unknown := [name for name in names if name not in RECIPES]:
        parser.error(f"{', '.join(unknown)}: there are {', '.join(RECIPES)}")
    if "cifar10" in names and args.data is None:
        parser.error("cifar10 needs --data DIR")
    torch.set_num_threads(1)
    for name in names:
        make(name, args.data if name == "cifar10" else None)


if __name__ == "__main__":
    main()
