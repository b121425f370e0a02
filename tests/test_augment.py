from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from hybvit.data.auto_augment import auto_augment
from hybvit.data.batches import AUTO_AUGMENT, FLIP, POLICY, UNIFORMS, augment_weakly, erase, flip_half, mix_batch, uniforms
from hybvit.method.seeds import derive_seed, splitmix64

STREAM = "augmentation"


def keys(n: int, epoch: int = 0, repeat: int = 0) -> torch.Tensor:
    return torch.stack((torch.full((n,), epoch), torch.arange(n), torch.full((n,), repeat)), dim=1)


def noise(n: int, channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# random numbers


def test_random_numbers_are_uniform_and_independent():
    u = uniforms(0, STREAM, keys(10_000))
    assert u.shape == (10_000, UNIFORMS)
    assert u.min() >= 0
    assert u.max() < 1
    assert (u.mean(0) - 0.5).abs().max() < 5 * (1 / 12 / 10_000) ** 0.5
    assert (u.var(0) - 1 / 12).abs().max() < 0.005
    correlation = torch.corrcoef(u.T) - torch.eye(UNIFORMS)
    assert correlation.abs().max() < 0.05
    along = torch.corrcoef(torch.stack((u[:-1, 0], u[1:, 0])))[0, 1]
    assert abs(along) < 0.05


def test_random_numbers_depend_only_on_seed_epoch_image_and_repeat():
    u = uniforms(0, STREAM, keys(50))
    assert torch.equal(u[10:20], uniforms(0, STREAM, keys(50)[10:20]))
    for other in (
        uniforms(1, STREAM, keys(50)),
        uniforms(0, STREAM, keys(50, epoch=1)),
        uniforms(0, STREAM, keys(50, repeat=1)),
    ):
        assert not bool((u == other).any())
    assert not bool((u == uniforms(0, "flips of clean images", keys(50))).any())


def test_the_hash_of_tensors_is_the_hash_of_seeds():
    def unsigned(z: int) -> int:  # the finalizer as published
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    bits = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, *(derive_seed(seed, STREAM) * 2 + seed % 2 for seed in range(100))]
    signed = torch.tensor([z - 2**64 if z >= 2**63 else z for z in bits])
    assert [z % 2**64 for z in splitmix64(signed).tolist()] == [unsigned(z) for z in bits]
    assert derive_seed(0, "weights") == unsigned(1) % 2**63


# weak augmentation


def test_weak_augmentation_is_a_crop_and_a_flip():
    pixels = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(400, 1, 8, 8).contiguous()
    padded = torch.nn.functional.pad(pixels[0, 0], (1, 1, 1, 1))
    crops = {(i, j): padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)}
    for flip in (False, True):
        out = augment_weakly(pixels, uniforms(0, STREAM, keys(400)), 1, flip)
        seen: dict[tuple, int] = {}
        for image in out[:, 0]:
            key = next((k, m) for k, crop in crops.items() for m in (0, 1) if torch.equal(image, crop.flip(1) if m else crop))
            seen[key] = seen.get(key, 0) + 1
        assert len(seen) == (18 if flip else 9)
        mirrored = sum(count for (_, m), count in seen.items() if m)
        assert mirrored == 0 if not flip else 150 < mirrored < 250


def test_color_channels_are_cropped_together():
    pixels = noise(1, 1).expand(64, 3, 32, 32)
    out = augment_weakly(pixels, uniforms(0, STREAM, keys(64)), 4, True)
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 0], out[:, 2])


def test_flips_of_clean_images():
    pixels = noise(400, 1, 8)
    u = uniforms(0, STREAM, keys(400))
    out = flip_half(pixels, u)
    mirrored = u[:, FLIP] < 0.5
    assert 150 < mirrored.sum() < 250
    assert torch.equal(out[mirrored], pixels[mirrored].flip(3))
    assert torch.equal(out[~mirrored], pixels[~mirrored])


# AutoAugment


def test_torchvision_still_has_the_private_parts_that_are_used():
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    for name in ("_policies", "_AUGMENTATION_SPACE", "_apply_image_or_video_transform", "_fill", "interpolation"):
        assert hasattr(theirs, name), (
            f"torchvision {torchvision.__version__} has no AutoAugment.{name}: BatchAutoAugment reads it; "
            "lower the bound of torchvision in pyproject.toml, or adapt the class"
        )
    assert not hasattr(theirs, "_augmentation_space"), "BatchAutoAugment would override a method of torchvision"
    assert {len(policy) for policy in theirs._policies} == {2}


@pytest.mark.parametrize("policy", ["cifar10", "svhn", "imagenet"])
def test_autoaugment_of_a_batch_is_torchvisions_image_by_image(policy):
    pixels, u = noise(256), uniforms(0, STREAM, keys(256))
    ours = auto_augment(policy)
    out = ours.apply(pixels, u[:, AUTO_AUGMENT])
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy(policy))
    changed = 0
    for i in range(256):
        image = pixels[i]
        sub_policy = theirs._policies[int(u[i, POLICY] * 25)]
        for stage, (operation, p, level) in enumerate(sub_policy):
            if u[i, POLICY + 1 + 2 * stage] < p:
                magnitudes, signed = theirs._AUGMENTATION_SPACE[operation]
                values = magnitudes(10, 32, 32)
                magnitude = float(values[level]) if level is not None else 0.0
                if signed and u[i, POLICY + 2 + 2 * stage] < 0.5:
                    magnitude = -magnitude
                image = theirs._apply_image_or_video_transform(
                    image, operation, magnitude, InterpolationMode.NEAREST, theirs._fill
                )
        changed += not torch.equal(image, pixels[i])
        assert (out[i].int() - image.int()).abs().max() <= 1, sub_policy  # bilinear sums may round the other way
    assert changed > 150


def test_every_sub_policy_and_both_signs_occur():
    u = uniforms(0, STREAM, keys(10_000))
    counts = (u[:, POLICY] * 25).long().bincount(minlength=25)
    assert counts.min() > 300
    assert counts.max() < 500


def test_color_only_operations_are_skipped_for_grayscale_images(monkeypatch):
    applied = []
    ours = auto_augment("cifar10")
    original = ours._apply_image_or_video_transform

    def spy(image, operation, *args, **kwargs):
        applied.append(operation)
        return original(image, operation, *args, **kwargs)

    monkeypatch.setattr(ours, "_apply_image_or_video_transform", spy)
    out = ours.apply(noise(400, 1, 28), uniforms(0, STREAM, keys(400))[:, AUTO_AUGMENT])
    assert out.shape == (400, 1, 28, 28)
    assert "Color" not in applied
    assert {"Contrast", "Equalize", "ShearY"} <= set(applied)
    ours.apply(noise(400), uniforms(0, STREAM, keys(400))[:, AUTO_AUGMENT])
    assert "Color" in applied


# random erasing


@pytest.mark.parametrize("size", [8, 28, 32, 224])
def test_erased_areas(size):
    n = 10_000 if size < 100 else 300
    x = torch.full((n, 1, size, size), 0.25)
    erased = erase(x, uniforms(0, STREAM, keys(n)), 0.25, torch.tensor([-2.0])) == -2
    share = erased.float().mean(dim=(1, 2, 3))
    hit = share > 0
    assert abs(hit.float().mean() - 0.25) < 5 * (0.25 * 0.75 / n) ** 0.5
    assert share[hit].min() >= 0.02
    assert share[hit].max() <= 0.4
    rows, columns = erased.any(dim=3).sum(dim=2)[:, 0], erased.any(dim=2).sum(dim=2)[:, 0]
    assert torch.equal(rows * columns, erased.sum(dim=(1, 2, 3)))  # a rectangle
    rows, columns = rows[hit], columns[hit]
    assert ((rows - 0.5) / (columns + 0.5)).max() <= 3.3  # except for rounding to whole pixels
    assert ((rows + 0.5) / (columns - 0.5)).min() >= 0.3
    if size >= 28 and n == 10_000:
        assert abs(share[hit].mean() - 0.2) < 0.02  # uniform in 0.02..0.4, less what does not fit
        assert 0.9 < (rows / columns).log().mean().exp() < 1.1  # log-uniform around 1
        place = erased[hit].float().mean(dim=(0, 1))
        assert place.min() > 0.001  # every pixel can be hit, the corners seldom
        assert place[size // 2, size // 2] > 0.3


def test_erasing_fills_with_the_given_color_and_changes_nothing_else():
    x = torch.rand(200, 3, 16, 16)
    fill = torch.tensor([2.0, 3.0, 4.0])
    out = erase(x, uniforms(0, STREAM, keys(200)), 1.0, fill)
    changed = (out != x).any(dim=1, keepdim=True)
    assert torch.equal(torch.where(changed, fill[:, None, None], x), out)
    assert changed.flatten(1).any(dim=1).all()
    assert torch.equal(erase(x, uniforms(0, STREAM, keys(200)), 0.0, fill), x)


# mixing


def planes(n: int, size: int = 16) -> torch.Tensor:
    """Image i has the value i everywhere, so the sources of a mixed image are known."""
    return torch.arange(n, dtype=torch.float32)[:, None, None, None].expand(n, 1, size, size).contiguous()


def mixed(seed: int, n: int = 8, probability: float = 1.0):
    labels = torch.arange(n)
    return mix_batch(planes(n), labels, n, probability, torch.Generator().manual_seed(seed))


def test_lambda_is_the_share_of_pixels_exactly():
    kinds = {"cutmix": 0, "mixup": 0}
    for seed in range(200):
        x, targets = mixed(seed)
        assert targets.shape == (8, 8)
        assert torch.allclose(targets.sum(1), torch.ones(8))
        for i in range(8):
            partner = (i + 4) % 8
            own = targets[i, i].item()
            values = set(x[i].unique().tolist())
            if values <= {float(i), float(partner)}:  # CutMix
                assert own == (x[i] == i).float().mean().item()
                kinds["cutmix"] += 1
            else:  # MixUp
                assert torch.allclose(x[i], torch.full_like(x[i], own * i + (1 - own) * partner), atol=1e-5)
                kinds["mixup"] += 1
            assert targets[i].nonzero().flatten().tolist() in ([min(i, partner), max(i, partner)], [i], [partner])
    assert min(kinds.values()) > 500


def test_statistics_of_ten_thousand_batches():
    happened, shares, cut = 0, [], 0
    x, labels = planes(2, 8), torch.arange(2)
    for seed in range(10_000):
        out, targets = mix_batch(x, labels, 2, 0.5, torch.Generator().manual_seed(seed))
        if targets.ndim == 2:
            happened += 1
            if out[0].unique().numel() == 1 and 0 < out[0, 0, 0, 0] < 1:
                shares.append(targets[0, 0].item())
            else:
                cut += 1
    assert abs(happened / 10_000 - 0.5) < 0.025
    assert abs(cut / happened - 0.5) < 0.04
    uniform = np.sort(shares)
    assert np.abs(uniform - (np.arange(len(uniform)) + 0.5) / len(uniform)).max() < 0.04  # lambda ~ Beta(1, 1)


def test_batches_that_are_not_mixed_keep_their_labels():
    x, targets = mixed(0, probability=0.0)
    assert torch.equal(x, planes(8))
    assert targets.tolist() == list(range(8))


def test_the_cut_box_has_the_right_area():
    """Before it is clipped to the image: side = sqrt(1 - lambda) of the image's side, so wide boxes come from small lambdas."""
    areas = []
    for seed in range(2000):
        _, targets = mix_batch(planes(2, 64), torch.arange(2), 2, 1.0, torch.Generator().manual_seed(seed))
        u = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if u[1] < 0.5:
            areas.append((1 - targets[0, 0].item(), 1 - u[2].item()))
    cut, wanted = np.array(areas).T
    assert (cut <= wanted + 1e-9).all()
    assert np.corrcoef(cut, wanted)[0, 1] > 0.8
