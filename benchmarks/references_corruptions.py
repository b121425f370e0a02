"""Record what the published generator makes of a few images: tests/data/corruptions.npz.

    python benchmarks/references_corruptions.py ROBUSTNESS

ROBUSTNESS is a copy of github.com/hendrycks/robustness (Apache-2.0, commit 8190fe3), whose create_c/make_cifar_c.py,
make_tinyimagenet_c.py and make_imagenet_c.py made CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C. Nothing of it is stored here. It
needs an environment of its own, since its calls are those of 2018: numpy 1.26, scipy 1.11, scikit-image 0.20, opencv 4.8,
Wand with ImageMagick 6.9. Two names that these no longer know are replaced, and its calls of numpy.random go to one
numpy.random.Generator with a seed for each image, which hybvit.data.distortions is then given too.

The package imagecorruptions 1.1.2 (2021) has the constants of ImageNet-C alone, and takes no image below 32 pixels.
"""

from __future__ import annotations

import argparse
import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {32: "make_cifar_c", 64: "make_tinyimagenet_c", 224: "make_imagenet_c"}  # size -> whose constants
PLACES = 24  # pixels of each corrupted image that are kept
NAMES = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost",
    "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression", "speckle_noise", "gaussian_blur",
    "spatter", "saturate",
)  # fmt: skip


def drawn_image(size: int, kind: int) -> np.ndarray:
    """A colored image uint8 [H, W, 3] with gradients, edges, texture, and areas of one color, in integers alone."""
    y, x = np.mgrid[:size, :size] * 224 // size
    image = np.stack((x + y // 3, 200 - (x * y) // 280, (3 * y + (x // 8) % 2 * 60) // 3), axis=2)
    image[(x - 90) ** 2 + (y - 110) ** 2 < 2500] = (230, 60, 30)
    image[(x > 140) & (y > 120)] += np.array([20, -40, 90])
    image += ((x * 7919 + y * 104729) % 31)[..., None] - 15 if kind else 0
    return image.clip(0, 255).astype(np.uint8)


def drawn_photo(number: int) -> np.ndarray:
    """In the place of a photograph of frost: uint8 [H, W, 3], red first."""
    y, x = np.mgrid[: 480 + 7 * number, : 560 + 11 * number]
    return np.stack(((x * 5 + y * 3 + number * 40) % 256, (x * y // 64) % 256, (x // 2 + 3 * y) % 256), axis=2).astype(np.uint8)


def generator_of(script: Path, draw: SimpleNamespace) -> dict[str, Any]:
    """The functions of a published script, whose random numbers are those of ``draw.rng``."""
    import cv2
    import skimage as sk
    from skimage.util import random_noise

    numpy = SimpleNamespace(**{name: getattr(np, name) for name in dir(np) if not name.startswith("__")})
    numpy.float_ = np.float64
    numpy.random = SimpleNamespace(
        normal=lambda *args, **kwargs: draw.rng.normal(*args, **kwargs),
        poisson=lambda *args, **kwargs: draw.rng.poisson(*args, **kwargs),
        uniform=lambda *args, **kwargs: draw.rng.uniform(*args, **kwargs),
        randint=lambda *args, **kwargs: draw.rng.integers(*args, **kwargs),
    )
    text = script.read_text()
    text = text[text.index("# /////////////// Distortion Helpers") : text.index("# /////////////// End Distortions")]
    text = text.replace("multichannel=True", "channel_axis=-1").replace("sk.util.random_noise", "salted")
    text = re.sub(r"def fgsm.*?(?=\ndef )", "", text, flags=re.DOTALL)
    names: dict[str, Any] = {
        "np": numpy,
        "warnings": warnings,
        "sk": sk,
        "salted": lambda *args, **kwargs: random_noise(*args, seed=draw.rng, **kwargs),
    }
    exec(compile(text, script.name, "exec"), names)
    cv2.imread = lambda name: drawn_photo(int(re.search(r"\d", name)[0]))[..., ::-1]
    names["cv2"] = cv2
    return names


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("robustness", type=Path)
    parser.add_argument("--whole", type=Path, help="also write all pixels here")
    args = parser.parse_args()
    found: dict[str, np.ndarray] = {}
    whole: dict[str, np.ndarray] = {}
    for size, script in SCRIPTS.items():
        draw = SimpleNamespace(rng=None)
        functions = generator_of(args.robustness / "ImageNet-C" / "create_c" / f"{script}.py", draw)
        places = np.random.default_rng(size).permutation(size * size)[:PLACES]
        found[f"places_{size}"] = places
        kinds = 1 if size == 224 else 2
        for kind in range(kinds):
            image = drawn_image(size, kind)
            kept, changes = [], []
            for name in NAMES:
                for severity in range(1, 6):
                    draw.rng = np.random.default_rng((size, kind, severity))
                    out = np.uint8(functions[name](Image.fromarray(image), severity))
                    whole[f"{size}_{kind}_{name}_{severity}"] = out
                    kept.append(out.reshape(-1, 3)[places])
                    changes.append(np.abs(out.astype(float) - image).mean())
            found[f"pixels_{size}_{kind}"] = np.stack(kept).reshape(len(NAMES), 5, PLACES, 3)
            found[f"changes_{size}_{kind}"] = np.array(changes, dtype=np.float32).reshape(len(NAMES), 5)
    np.savez_compressed(ROOT / "tests" / "data" / "corruptions.npz", **found)
    if args.whole:
        np.savez_compressed(args.whole, **whole)
    print(os.path.getsize(ROOT / "tests" / "data" / "corruptions.npz"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
