"""The formulas behind the common corruptions (Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019), one function for each; :mod:`hybvit.data.corruptions` has their constants.

``x`` is an image float [H, W, C] in 0..1 with C = 1 or 3, and ``rng`` gives the random numbers in the order in which the
published generator draws them. A function returns values that are clipped to 0..1 and cut to 8 bits later, or uint8. Where the
generator calls OpenCV, scikit-image or ImageMagick, the functions compute what these compute, down to their fixed-point steps.
"""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image
from scipy import ndimage

Array = np.ndarray
Random = np.random.Generator
Layer = tuple[float, float, float, float]  # of noise: mean, standard deviation, size, and the least value that shows

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of ITU-R 601
WATER = np.array([175, 238, 238], dtype=np.float32) / 255  # pale turquoise
MUD = np.array([63, 42, 20], dtype=np.float32) / 255
TAN_22 = 13573  # tan(22.5 degrees) in units of 2^-15
STEPS = tuple(  # of the 5 x 5 chamfer distance (Borgefors 1986): moves to neighbors and knight's moves, and their lengths
    ((down, right), round(length * 65536) / 65536)
    for length, squared in ((1, 1), (1.4, 2), (2.1969, 5))
    for down in range(-2, 3)
    for right in range(-2, 3)
    if down**2 + right**2 == squared
)
FARTHEST = 20  # distances are cut off there


def gaussian_noise(x: Array, rng: Random, deviation: float) -> Array:
    return x + rng.normal(size=x.shape, scale=deviation)


def shot_noise(x: Array, rng: Random, photons: float) -> Array:
    """Poisson noise with so many photons at white."""
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Array, rng: Random, share: float) -> Array:
    """Salt and pepper on a share of the values, equally often."""
    changed, salt = rng.random(x.shape) <= share, rng.random(x.shape) <= 0.5
    return np.where(changed, salt.astype(x.dtype), x)


def speckle_noise(x: Array, rng: Random, deviation: float) -> Array:
    """Noise in proportion to the value."""
    return x + x * rng.normal(size=x.shape, scale=deviation)


def gaussian_blur(x: Array, rng: Random, sigma: float) -> Array:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def defocus_blur(x: Array, rng: Random, radius: float, edge: float) -> Array:
    """A disk of this radius in pixels, itself blurred with sigma ``edge``, as the kernel."""
    return ndimage.correlate(x, disk(radius, edge)[..., None].astype(x.dtype), mode="mirror")


def disk(radius: float, edge: float) -> Array:
    """float32 [K, K] with sum 1."""
    side = np.arange(-8, 9) if radius <= 8 else np.arange(-radius, radius + 1)
    kernel = (side[None] ** 2 + side[:, None] ** 2 <= radius**2).astype(np.float32)
    kernel /= kernel.sum()
    reach = 1 if radius <= 8 else 2
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * edge**2))
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (1, 0):
        kernel = ndimage.correlate1d(kernel, taps, axis, mode="mirror")
    return kernel


def glass_blur(x: Array, rng: Random, sigma: float, reach: int, repeats: int) -> Array:
    """Blur, let pixels take the color of one nearby, blur again.

    The generator means to exchange the two, but its color pixels are views of the image, so that only one of them changes.
    """
    side, channels = x.shape[0], x.shape[2]
    pixels = (gaussian_blur(x, rng, sigma) * 255).astype(np.uint8).reshape(-1, channels)
    places = range(side - reach, reach, -1)
    source = list(range(side * side))
    for _ in range(repeats):
        moves = rng.integers(-reach, reach, size=(len(places) ** 2, 2)).tolist()
        at = ((row, column) for row in places for column in places)
        for (row, column), (dx, dy) in zip(at, moves, strict=True):
            source[row * side + column] = source[(row + dy) * side + column + dx]
    return gaussian_blur(pixels[source].reshape(x.shape) / 255, rng, sigma)


def motion_blur(x: Array, rng: Random, radius: int, sigma: float) -> Array:
    return moved(np.rint(x * 255), radius, sigma, rng.uniform(-45, 45)).astype(np.uint8)


def moved(pixels: Array, radius: int, sigma: float, angle: float) -> Array:
    """Values 0..255, averaged along a line from each pixel, half a Gaussian long, in ImageMagick's way: 2 radius + 1 samples at
    whole pixels, edges repeated, rounded to 16 bits and then cut to 8."""
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    down, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    height, across = pixels.shape[:2]
    padded = np.pad(pixels, ((width, width), (width, width), (0, 0)), mode="edge")
    total = np.zeros(pixels.shape)
    for i, weight in enumerate(weights):
        top, left = width + math.ceil(i * down - 0.5), width + math.ceil(i * right - 0.5)
        total += weight * padded[top : top + height, left : left + across]
    return np.floor(total * 257 + 0.5) // 257


def zoom_blur(x: Array, rng: Random, largest: float, step: float) -> Array:
    """The mean of the image and of enlargements from 1 to below ``largest``."""
    x = x.astype(np.float32)
    factors, total = np.arange(1, largest, step), np.zeros_like(x)
    for factor in factors:
        total += enlarged(x, factor)
    return (x + total) / (len(factors) + 1)


def enlarged(x: Array, factor: float) -> Array:
    """The center of [H, H, C], enlarged to the same size by linear interpolation."""
    side = x.shape[0]
    part = math.ceil(side / factor)
    top = (side - part) // 2
    large = ndimage.zoom(x[top : top + part, top : top + part], (factor, factor, 1), order=1)
    trim = (len(large) - side) // 2
    return large[trim : trim + side, trim : trim + side]


def snow(x: Array, rng: Random, layer: Layer, radius: int, sigma: float, kept: float) -> Array:
    """Flakes, enlarged by the layer's third number and blurred along their fall, over a whitened image."""
    x, (mean, deviation, size, least) = x.astype(np.float32), layer
    flakes = enlarged(rng.normal(size=(*x.shape[:2], 1), loc=mean, scale=deviation), size)
    flakes[flakes < least] = 0
    flakes = moved((flakes.clip(0, 1) * 255).astype(np.uint8), radius, sigma, rng.uniform(-135, -45)) / 255
    whitened = kept * x + (1 - kept) * np.maximum(x, gray_of(x) * 1.5 + 0.5)
    return whitened + flakes + np.rot90(flakes, k=2)


def gray_of(x: Array) -> Array:
    """[H, W, C] -> [H, W, 1]."""
    return x if x.shape[2] == 1 else (x @ LUMINANCE.astype(x.dtype))[..., None]


def frost(x: Array, rng: Random, kept: float, added: float, scale: float, photos: tuple[Array, ...]) -> Array:
    """A random part of a photograph of frost, uint8 [H', W', 3], added to the image."""
    side = x.shape[0]
    photo = shrunk(photos[rng.integers(len(photos))], scale)
    top, left = rng.integers(0, photo.shape[0] - side), rng.integers(0, photo.shape[1] - side)
    part = photo[top : top + side, left : left + side]
    return (kept * np.rint(x * 255) + added * (part if x.shape[2] == 3 else gray_of(part))).clip(0, 255).astype(np.uint8)


def shrunk(photo: Array, factor: float) -> Array:
    """Linear interpolation at the centers of the new pixels, rounded."""
    photo = photo.astype(np.float64)
    for axis in (0, 1):
        length = photo.shape[axis]
        at = (np.arange(round(length * factor)) + 0.5) / factor - 0.5
        low = np.floor(at).astype(int)
        share = (at - low).reshape(-1, *[1] * (2 - axis))
        photo = photo.take(low, axis) * (1 - share) + photo.take((low + 1).clip(max=length - 1), axis) * share
    return np.rint(photo)


def fog(x: Array, rng: Random, amount: float, decay: float) -> Array:
    side, white = x.shape[0], x.max()
    heights = plasma(1 << (side - 1).bit_length(), decay, rng)[:side, :side, None]
    return (x + amount * heights) * white / (white + amount)


def plasma(size: int, decay: float, rng: Random) -> Array:
    """Random heights in 0..1 on a torus [size, size], a power of two, by the diamond-square algorithm (Fournier et al. 1982).

    In every round the amplitude of the noise is divided by ``decay``.
    """
    heights, step, amplitude = np.zeros((size, size)), size, 100.0

    def noisy(four: Array) -> Array:
        return four / 4 + amplitude * rng.uniform(-amplitude, amplitude, four.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = noisy(pairs + np.roll(pairs, -1, axis=1))
        centers = heights[half::step, half::step]
        heights[::step, half::step] = noisy((centers + np.roll(centers, 1, 0)) + (corners + np.roll(corners, -1, 1)))
        heights[half::step, ::step] = noisy((centers + np.roll(centers, 1, 1)) + (corners + np.roll(corners, -1, 0)))
        step, amplitude = half, amplitude / decay
    heights -= heights.min()
    return heights / heights.max()


def brightness(x: Array, rng: Random, added: float) -> Array:
    """A larger value in HSV."""
    if x.shape[2] == 1:
        return x + added
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    hsv = rgb_to_hsv(x)
    hsv[..., 2] = (hsv[..., 2] + added).clip(0, 1)
    return hsv_to_rgb(hsv)


def saturate(x: Array, rng: Random, factor: float, added: float) -> Array:
    """Another saturation in HSV; a gray image has none, and stays as it is."""
    if x.shape[2] == 1:
        return x
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    hsv = rgb_to_hsv(x)
    hsv[..., 1] = (hsv[..., 1] * factor + added).clip(0, 1)
    return hsv_to_rgb(hsv)


def contrast(x: Array, rng: Random, factor: float) -> Array:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * factor + mean


def elastic_transform(x: Array, rng: Random, strength: float, sigma: float, corners: float) -> Array:
    """A random affine map, then random displacements that are blurred with sigma; all as multiples of the image's side."""
    x, side = x.astype(np.float32), x.shape[0]
    center, apart = side // 2, side // 3
    start = np.array([[center + apart] * 2, [center + apart, center - apart], [center - apart] * 2], dtype=np.float32)
    end = start + rng.uniform(-corners * side, corners * side, size=start.shape).astype(np.float32)
    x = affine(x, start, end)
    moves = [
        ndimage.gaussian_filter(rng.uniform(-1, 1, size=x.shape[:2]), sigma * side, mode="reflect", truncate=3)
        * strength
        * side
        for _ in range(2)
    ]
    rows, columns = np.mgrid[:side, :side]
    at = rows + moves[1].astype(np.float32), columns + moves[0].astype(np.float32)
    return np.stack([ndimage.map_coordinates(part, at, order=1, mode="reflect") for part in np.moveaxis(x, 2, 0)], axis=2)


def affine(x: Array, start: Array, end: Array) -> Array:
    """[H, H, C], moved so that three points (column, row) get to others, by linear interpolation in OpenCV's steps of 1/32."""
    forward = np.linalg.solve(np.column_stack((start, np.ones(3))).astype(np.float64), end.astype(np.float64)).T
    inverse = np.linalg.inv(np.vstack((forward, (0, 0, 1))))[:2]
    along = np.arange(x.shape[0])
    places = [
        (np.rint((a[1] * along + a[2]) * 1024)[:, None] + np.rint(a[0] * along * 1024) + 16).astype(int) >> 5 for a in inverse
    ]
    at = places[1] / 32, places[0] / 32
    return np.stack([ndimage.map_coordinates(part, at, order=1, mode="mirror") for part in np.moveaxis(x, 2, 0)], axis=2)


def pixelate(x: Array, rng: Random, share: float) -> Array:
    """Fewer pixels a side, and back."""
    image, side = picture(x), x.shape[0]
    small = image.resize((int(side * share), int(side * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((side, side), Image.Resampling.BOX)).reshape(x.shape)


def jpeg_compression(x: Array, rng: Random, quality: int) -> Array:
    file = io.BytesIO()
    picture(x).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(x.shape)


def picture(x: Array) -> Image.Image:
    pixels = np.rint(x * 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if x.shape[2] == 1 else pixels)


def spatter(x: Array, rng: Random, layer: Layer, strength: float, kind: str) -> Array:
    """Drops of ``water``, with ``strength`` the brightest, or of ``mud``, with ``strength`` the blur of their edges.

    The layer's third number is its blur.
    """
    x, (mean, deviation, sigma, least) = x.astype(np.float32), layer
    liquid = ndimage.gaussian_filter(rng.normal(size=x.shape[:2], loc=mean, scale=deviation), sigma, mode="nearest")
    liquid[liquid < least] = 0
    if kind == "water":
        drops = rims(liquid)
        return x + (strength * drops / max(drops.max(), 1e-6))[..., None] * colored(WATER, x)
    drops = ndimage.gaussian_filter((liquid > least).astype(np.float32), strength, mode="nearest")
    drops = np.where(drops < 0.8, 0, drops)[..., None]
    return x * (1 - drops) + colored(MUD, x) * drops


def colored(color: Array, x: Array) -> Array:
    return color if x.shape[2] == 3 else color @ LUMINANCE


def rims(liquid: Array) -> Array:
    """Liquid in 0..1 [H, W], lit from above on the left: its levels times a relief of the distance to the edges."""
    levels = (liquid * 255).astype(np.uint8)
    near = blurred(distance_to(edges(levels, 50, 150))).astype(np.uint8)
    relief = ndimage.correlate(equalized(near).astype(int), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    return levels * np.rint(blurred(relief.clip(0, 255).astype(np.float64)))


def blurred(values: Array) -> Array:
    """Means of 3 x 3."""
    return (ndimage.correlate(values, np.ones((3, 3)), mode="mirror") * (1 / 9)).astype(np.float32)


def edges(levels: Array, low: int, high: int) -> Array:
    """Canny's edges (1986) of uint8 [H, W] -> bool: maxima of |gradient| (L1) above ``low`` that are connected with one above
    ``high``."""
    values = levels.astype(np.int64)
    dx, dy = (ndimage.sobel(values, axis, mode="nearest") for axis in (1, 0))
    size = np.abs(dx) + np.abs(dy)
    around = np.pad(size, 1)

    def at(down: int, right: int) -> Array:
        return around[1 + down : 1 + down + size.shape[0], 1 + right : 1 + right + size.shape[1]]

    tangent, rise = TAN_22 * np.abs(dx), np.abs(dy) << 15
    across, upright = rise < tangent, rise > tangent + (np.abs(dx) << 16)
    same = (dx ^ dy) >= 0
    diagonal = np.where(same, np.maximum(at(-1, -1), at(1, 1)), np.maximum(at(-1, 1), at(1, -1)))
    largest = np.where(
        across,
        (size > at(0, -1)) & (size >= at(0, 1)),
        np.where(upright, (size > at(-1, 0)) & (size >= at(1, 0)), size > diagonal),
    )
    candidates = largest & (size > low)
    labels, _ = ndimage.label(candidates, np.ones((3, 3)))
    strong = np.unique(labels[candidates & (size > high)])
    return np.isin(labels, strong[strong > 0])


def distance_to(marked: Array) -> Array:
    """The chamfer distance of each pixel to the nearest marked one, at most FARTHEST."""
    distance = np.where(marked, 0.0, FARTHEST)
    for _ in range(FARTHEST):
        before, padded = distance, np.pad(distance, 2, constant_values=FARTHEST)
        for (down, right), length in STEPS:
            moved_there = padded[2 + down : 2 + down + len(before), 2 + right : 2 + right + before.shape[1]]
            distance = np.minimum(distance, moved_there + length)
        if np.array_equal(distance, before):
            break
    return distance


def equalized(levels: Array) -> Array:
    """uint8 with its histogram equalized."""
    counts = np.bincount(levels.ravel(), minlength=256)
    first = int(counts.nonzero()[0][0])
    rest = levels.size - counts[first]
    if rest == 0:
        return levels
    counts[first] = 0
    return np.rint(counts.cumsum() * (255 / rest)).astype(np.uint8)[levels]
