"""Is the loader ever the bottleneck? Images/s of batches beside images/s of training steps, and strong augmentation beside
torchvision's per-image PIL pipeline; alternating, medians, one thread for everything but training.

    python benchmarks/loader.py [--write]     --write: results/loader.json
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
import torchvision.transforms as T
from recording import keep, options
from torchvision.transforms.functional import to_pil_image

from hybvit.config import Config, minibatches
from hybvit.data.auto_augment import auto_augment
from hybvit.data.batches import AUTO_AUGMENT, TrainingBatches, augment_weakly, erase, policy_of, uniforms
from hybvit.data.datasets import open_dataset
from hybvit.data.image_set import Dataset, ImageSet, to_x
from hybvit.devices import alternating, best_device, environment, keep_freed_memory, resolve_precision
from hybvit.presets import preset
from hybvit.training.loop import training_step

REPEATS, IMAGES = 15, 128


def cifar_shaped(cfg: Config) -> Dataset:
    """50,000 images of CIFAR-10's shape; noise takes as long as pictures do."""
    pixels = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.arange(50_000) % 10)
    return Dataset(images, images, tuple(map(str, range(10))))


def with_threads(threads: int, run: Callable[[], object]) -> Callable[[], None]:
    def call() -> None:
        torch.set_num_threads(threads)
        run()

    return call


def measure(name: str, cfg: Config, data: Dataset, threads: int) -> dict[str, float | str]:
    """Images/s, both mini-batches counted, of a training step and of the batches for it."""
    device, step = best_device(), [0]
    train, precision = training_step(cfg, device), resolve_precision("auto", device)
    loaders = {
        augment: TrainingBatches(
            data, replace(cfg.data, augment=augment, flip=name != "digits"), minibatches(cfg), cfg.train.seed
        )
        for augment in ("none", "weak", "strong")
    }

    def load(augment: str) -> None:
        step[0] += 1
        loaders[augment](step[0])

    runs = {"training": with_threads(threads, lambda: train(precision))}
    runs |= {f"loader_{augment}": with_threads(1, lambda augment=augment: load(augment)) for augment in loaders}
    times = alternating(runs, REPEATS)
    images = 2 * cfg.train.batch_size
    rates: dict[str, float | str] = {kind: round(images / statistics.median(values), 1) for kind, values in times.items()}
    return {"name": name, **rates}


def against_pil(data: Dataset, cfg: Config) -> dict[str, float | list[float]]:
    """Strong augmentation before mixing, images/s on one core: ours on a batch, torchvision's image by image."""
    pixels = data.train.take(torch.arange(IMAGES))[0]
    pictures = [to_pil_image(image) for image in pixels]
    mean = (0.5,) * pixels.shape[1]
    pipeline = T.Compose(
        [
            T.RandomHorizontalFlip(),
            T.RandomCrop(pixels.shape[-1], padding=4),
            T.AutoAugment(T.AutoAugmentPolicy(policy_of(cfg.data))),
            T.ToTensor(),
            T.Normalize(mean, mean),
            T.RandomErasing(0.25, (0.02, 0.4), (0.3, 3.3)),
        ]
    )
    fill, epoch = torch.zeros(pixels.shape[1]), [0]

    def ours() -> None:
        epoch[0] += 1
        index = torch.arange(IMAGES)
        u = uniforms(0, "augmentation", torch.stack((torch.full_like(index, epoch[0]), index, torch.zeros_like(index)), dim=1))
        changed = auto_augment(policy_of(cfg.data)).apply(augment_weakly(pixels, u, 4, True), u[:, AUTO_AUGMENT])
        erase(to_x(changed), u, 0.25, fill)

    def theirs() -> None:
        torch.stack([pipeline(picture) for picture in pictures])

    times = alternating({"ours": with_threads(1, ours), "theirs": with_threads(1, theirs)}, REPEATS)
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    return {
        "strong_images_per_second": round(IMAGES / statistics.median(times["ours"]), 1),
        "pil_images_per_second": round(IMAGES / statistics.median(times["theirs"]), 1),
        "speedup": round(statistics.median(ratios), 2),
        "speedup_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main() -> None:
    parser = options(__doc__)
    args = parser.parse_args()
    keep_freed_memory()
    threads, rows = torch.get_num_threads(), []
    for name, preset_name in (("digits", "digits"), ("Fashion-MNIST", "fashion_mnist_pocket"), ("CIFAR-shaped", "cifar10")):
        cfg = preset(preset_name)
        data = cifar_shaped(cfg) if name == "CIFAR-shaped" else open_dataset(cfg.data, cfg.model.image_shape)
        rows.append(measure(name, cfg, data, threads) | against_pil(data, cfg))
        shown = ", ".join(f"{kind} {value:,}" for kind, value in rows[-1].items() if isinstance(value, float))
        print(f"{name}: {shown}", flush=True)
    torch.set_num_threads(threads)
    record = {"rows": rows, "repeats": REPEATS, "batch": "both mini-batches of the preset", "environment": environment()}
    keep("loader", record, args.write)


if __name__ == "__main__":
    main()
