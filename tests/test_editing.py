"""Editing: the flow against its closed form, exact known pixels, the same image at any batch size, and the command."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

import hybvit
from hybvit import cli
from hybvit.config import override
from hybvit.data.image_set import to_x
from hybvit.data.images import captioned_grid
from hybvit.method import editing
from hybvit.method.diffusion import Diffusion
from hybvit.method.editing import (
    Search,
    classifier_guided,
    counterfactual,
    decode,
    flow,
    flow_times,
    held,
    inpaint,
    interpolate,
    invert,
    shifted,
    slerp,
    vary,
)
from hybvit.method.samplers import ImageNoise
from hybvit.storage import lock_folder

from .test_readings import model as conditional_model
from .test_samplers import COSINE, MEAN, STD, exact_flow, gaussian_denoiser, start

SCHEDULES = {name: getattr(Diffusion, name)(1000) for name in ("cosine", "linear", "flow")}


@pytest.fixture(scope="module")
def model(tiny_run):
    return hybvit.load(str(tiny_run), "cpu")


def digits(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def last(iterator):
    for x in iterator:
        pass
    return x


@pytest.mark.parametrize("name", SCHEDULES)
def test_flow_times_are_equidistant_in_the_angle(name):
    diffusion = SCHEDULES[name]
    times = flow_times(diffusion, 20)
    assert (times[0], times[-1]) == (1, 1000)
    steps = torch.atan2(diffusion.sqrt_one_minus_alpha_bar, diffusion.sqrt_alpha_bar)[times].diff()
    if name == "cosine":
        torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=0.1, atol=0)
    assert steps.max() < 1.5 * (math.pi / 2) / 20
    with pytest.raises(ValueError, match="steps is 1000"):
        flow_times(diffusion, 1000)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_flow_is_exact_and_of_second_order_in_both_directions(name):
    diffusion = SCHEDULES[name]
    denoise = gaussian_denoiser(diffusion)

    def standardized(x, t):  # the flow of Gaussian data does not change it
        abar = diffusion.alpha_bar[t]
        return (x - abar.sqrt() * MEAN) / (abar * STD**2 + 1 - abar).sqrt()

    x = start()
    for backward in (False, True):
        errors = []
        for steps in (25, 50):
            times = flow_times(diffusion, steps)[:: -1 if backward else 1]
            errors.append(
                (standardized(last(flow(denoise, diffusion, x, times)), times[-1]) - standardized(x, times[0])).abs().max()
            )
        assert errors[1] < 2e-2
        assert errors[0] / errors[1] > 3, "not of second order"


def test_an_image_is_decoded_from_its_own_noise():
    x = start()
    times = flow_times(COSINE, 40)
    noise = invert(gaussian_denoiser(COSINE), COSINE, x, times)
    assert len(noise) == len(times)
    expected = exact_flow(COSINE, noise[-1], 1000)
    torch.testing.assert_close(expected, x, atol=2e-2, rtol=0)
    torch.testing.assert_close(decode(gaussian_denoiser(COSINE), COSINE, noise[-1], times), x, atol=1e-2, rtol=0)
    torch.testing.assert_close(decode(gaussian_denoiser(COSINE), COSINE, noise[7], times[:8]), x, atol=1e-2, rtol=0)


def test_slerp_keeps_angle_and_length():
    a, b = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = (x / x.flatten(1).norm(dim=1)[:, None, None, None] for x in (a, b))
    whole = (a * b).flatten(1).sum(1).acos()
    for weight in (0.0, 0.3, 1.0):
        mixed = slerp(a, b, torch.full((3,), weight, dtype=torch.float64))
        torch.testing.assert_close(mixed.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
        torch.testing.assert_close((a * mixed).flatten(1).sum(1).clamp(max=1).acos(), weight * whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(slerp(a, a, torch.full((3,), 0.5, dtype=torch.float64)), a)
    x = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    y = torch.tensor([0.02], dtype=torch.float64)  # an angle at which the chord is not the arc
    near = torch.stack((y.cos(), y.sin()), dim=1).reshape(1, 1, 1, 2)
    middle = slerp(x, near, torch.full((1,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(middle.norm(), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-12)


def test_an_interpolation_begins_and_ends_with_the_images():
    a, b = start(2)
    found = interpolate(gaussian_denoiser(COSINE), COSINE, a, b, 5, 40)
    assert found.shape == (5, 1, 4, 4)
    torch.testing.assert_close(found[0], a, atol=1e-2, rtol=0)
    torch.testing.assert_close(found[-1], b, atol=1e-2, rtol=0)


def noise_of(n: int):
    return ImageNoise(range(n), (1, 4, 4))


def test_inpainting_keeps_the_known_pixels_and_draws_the_others_from_the_data():
    x = start(512).float().clamp(-1, 1)
    mask = torch.zeros(512, 1, 4, 4, dtype=torch.bool)
    mask[..., 2:] = True

    def denoise(x_t, t):
        return gaussian_denoiser(COSINE)(x_t.double(), t).float()

    found = inpaint(denoise, COSINE, x, mask, noise_of(512), 50, 2)
    assert torch.equal(found[~mask], x[~mask])
    assert abs(found[mask].mean().item() - MEAN) < 0.05
    assert abs(found[mask].std().item() - STD) < 0.1


def test_inpainting_fits_the_known_pixels():
    """Data in which all pixels of an image are equal: the drawn ones must equal the known ones."""

    def denoise(x_t, t):  # E[c|x_t] of c ~ N(0, 0.25), seen 16 times
        abar = COSINE.alpha_bar[t].float()[:, None, None, None]
        precision = 16 * abar / (1 - abar)
        return (precision / (precision + 4) * x_t.mean((1, 2, 3), keepdim=True) / abar.sqrt()).expand_as(x_t)

    x = torch.linspace(-0.9, 0.9, 16)[:, None, None, None].expand(16, 1, 4, 4).clone()
    mask = torch.zeros(16, 1, 4, 4, dtype=torch.bool)
    mask[..., 2:] = True
    errors = [
        (inpaint(denoise, COSINE, x, mask, noise_of(16), 20, repeats) - x)[mask].square().mean().sqrt() for repeats in (1, 4)
    ]
    assert errors[1] < 0.1
    assert errors[1] < errors[0]


def test_a_variation_is_nearer_to_the_image_the_smaller_its_strength():
    x = start(64).float().clamp(-1, 1)

    def denoise(x_t, t):
        return gaussian_denoiser(COSINE)(x_t.double(), t).float()

    distances = [(vary(denoise, COSINE, x, strength, noise_of(64), 50) - x).square().mean() for strength in (0.1, 0.5, 1.0)]
    assert distances[0] < 0.1 * distances[2]
    assert distances[0] < distances[1] < distances[2]


def counted(denoise):
    """A denoiser, and the times at which it is asked."""
    times: list[int] = []

    def asked(x_t, t):
        times.append(int(t[0]))
        return denoise(x_t, t)

    return asked, times


@pytest.mark.parametrize(
    ("strength", "steps", "calls"), [(0.5, 20, 10), (0.3, 10, 3), (0.31, 10, 4), (0.01, 10, 1), (1.0, 7, 7)]
)
def test_a_variation_begins_at_its_strength_and_takes_its_share_of_the_steps(strength, steps, calls):
    denoise, times = counted(gaussian_denoiser(COSINE))
    vary(denoise, COSINE, start(64), strength, noise_of(64), steps)
    assert times[0] == round(1000 * strength)
    assert len(times) == calls


@pytest.mark.parametrize(("strength", "up_to"), [(1.0, 20), (0.5, 10), (0.04, 1)])
def test_a_search_begins_at_its_strength(strength, up_to):
    denoise, times = counted(gaussian_denoiser(COSINE))
    x, search = start(2), Search(holds=(1.0,), steps=20, strength=strength)
    counterfactual(
        denoise, lambda rows, hold: gaussian_denoiser(COSINE), lambda x, rows: x.flatten(1).sum(1) - 1e3, COSINE, x, search
    )
    assert max(times) == flow_times(COSINE, 20)[up_to]
    assert len(set(times)) >= up_to


def test_a_step_of_inpainting_is_the_posterior_of_the_drawn_image():
    """What is known in every pixel is x_0 = 0: after a step, x_s is the noise of q(x_s | x_0), of variance 1 - abar_s."""
    seen: dict[int, torch.Tensor] = {}

    def denoise(x_t, t):
        seen.setdefault(int(t[0]), x_t)
        return torch.zeros_like(x_t)

    x0, mask = torch.zeros(4000, 1, 2, 2, dtype=torch.float64), torch.ones(4000, 1, 2, 2, dtype=torch.bool)
    draws = torch.Generator().manual_seed(0)
    inpaint(denoise, COSINE, x0, mask, lambda: torch.randn(x0.shape, generator=draws, dtype=torch.float64), 10, 1)
    for t, x_t in seen.items():
        assert x_t.var().item() == pytest.approx(1 - COSINE.alpha_bar[t].item(), rel=0.05), t
    assert len(seen) == 10


def test_guidance_is_the_gradient_of_the_tilted_density():
    """Gaussian data tilted by exp(c x_0): D moves by c Var(x_0|x_t), and log p(y|x_t) = c E[x_0|x_t] + const."""
    c, t = 0.7, torch.full((4,), 600)
    x = start()
    plain = gaussian_denoiser(COSINE)
    guided = classifier_guided(plain, COSINE, lambda x_t, at: (c * plain(x_t, at)).flatten(1).sum(1), 1.0)
    abar = COSINE.alpha_bar[600]
    variance = STD**2 * (1 - abar) / (abar * STD**2 + 1 - abar)
    expected = (plain(x, t) + c * variance).clamp(-1, 1)
    torch.testing.assert_close(guided(x, t), expected)


def test_samples_are_guided_by_algorithm_2():
    """Dhariwal & Nichol 2021: eps - s sqrt(1 - abar) grad log p(y|x_t), here with p(y|x_0(x_t))."""
    model = conditional_model()
    x_t, t, y = torch.randn(3, 1, 8, 8), torch.tensor([5, 20, 45]), torch.tensor([0, 1, 2])
    signal, noise = (model.diffusion.at(name, t, x_t) for name in ("sqrt_alpha_bar", "sqrt_one_minus_alpha_bar"))
    wanted = x_t.clone().requires_grad_()
    x0 = model.predict_x0(wanted, t)
    model.logits(x0.clamp(-1, 1)).log_softmax(1).gather(1, y[:, None]).sum().backward()
    eps = (x_t - signal * x0) / noise - 2.5 * noise * wanted.grad
    torch.testing.assert_close(model.guided(y, 2.5)(x_t, t), ((x_t - noise * eps) / signal).detach(), rtol=1e-3, atol=1e-4)


def test_edits_ask_the_denoiser_for_the_labels_that_are_given(monkeypatch):
    model, asked = conditional_model(), []
    before = model.conditional

    def conditional(labels, guidance):
        asked.append((labels.tolist(), guidance))
        return before(labels, guidance)

    monkeypatch.setattr(model, "conditional", conditional)
    pixels, mask = digits(3), torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    for edit in (
        lambda **given: model.inpaint(pixels, mask, steps=3, batch_size=2, **given),
        lambda **given: model.vary(pixels, 1.0, steps=3, batch_size=2, **given),
    ):
        asked.clear()
        edited = edit(labels=[2, 0, 1]).pixels
        assert asked == [([2, 0], 0.0), ([1], 0.0)]
        assert not torch.equal(edited, edit(labels=[0, 1, 2]).pixels)
        asked.clear()
        assert not torch.equal(edited, edit().pixels)
        assert not asked  # without labels, the unconditional denoiser
    asked.clear()
    wanted = (model.logits(to_x(pixels)).argmax(1) + 1) % 5
    model.counterfactual(pixels, wanted.tolist(), guidance=0.5)
    own = [model.logits(to_x(pixels)).argmax(1).tolist(), 0.0]
    assert [*asked[0]] == own  # an image is inverted as one of its own class
    assert all(guidance == 0.5 and set(labels) <= set(wanted.tolist()) for labels, guidance in asked[1:])
    assert len(asked) > 1


@pytest.mark.parametrize(("noisy_labels", "takes_labels", "pull"), [(0.0, True, 50.0), (1.0, True, 50.0), (0.0, False, 100.0)])
def test_a_search_asks_the_classifier_as_it_was_trained(monkeypatch, noisy_labels, takes_labels, pull):
    """One that was trained on noisy images reads x_t at t, any other the predicted x_0; without labels it pulls harder."""
    model, asked, pulls = conditional_model(noisy_labels=noisy_labels), [], []
    monkeypatch.setattr(type(model), "takes_labels", takes_labels)
    classify, guided = model.net.classify, editing.classifier_guided
    monkeypatch.setattr(model.net, "classify", lambda x, t=None: asked.append(t) or classify(x, t))
    monkeypatch.setattr(editing, "classifier_guided", lambda *given: pulls.append(given[-1]) or guided(*given))
    pixels = digits(2)
    wanted = (model.logits(to_x(pixels)).argmax(1) + 1) % 5
    asked.clear()
    model.counterfactual(pixels, wanted.tolist())
    assert any(t is not None and t.max() > 0 for t in asked) == bool(noisy_labels)
    assert set(pulls) == {pull}


def test_the_search_holds_an_image_no_less_than_it_must():
    """The class is a mean pixel above a threshold of each image's own; the weaker the hold, the farther an image goes."""
    x = torch.full((3, 1, 4, 4), -0.8, dtype=torch.float64)
    x[0] = 0.9  # of the class already
    plain, asked = gaussian_denoiser(COSINE), []

    def log_p(images, rows):
        return torch.nn.functional.logsigmoid(40 * (images.flatten(1).mean(1) - torch.tensor([0.0, -0.7, 5.0])[rows]))

    def steered(rows, hold):
        asked.append((rows.tolist(), hold))

        def up(x_t, t):
            return plain(x_t, t) + 0.4

        return held(up, COSINE, x[rows], hold)

    search = Search(holds=(8.0, 1.0, 0.0), confidence=0.9)
    found = counterfactual(plain, steered, log_p, COSINE, x, search)
    assert torch.equal(found.x[0], x[0])
    assert found.hold.tolist()[0] == math.inf
    assert asked[0] == ([1, 2], 8.0)
    assert all(2 in rows for rows, _ in asked)
    assert [hold for _, hold in asked] == [8.0, 1.0, 0.0]
    assert found.log_p[2] < math.log(0.9)  # out of reach: the best attempt
    assert found.x[1].mean() > -0.7
    assert found.log_p[1] >= math.log(0.9)


def test_a_hold_falls_with_the_noise():
    x0, x = start(2), torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    for t in (1, 500, 1000):
        at = torch.full((2,), t)
        predicted = held(lambda x_t, _: x_t, COSINE, x0, 2.0)(x, at)
        variance = 1 - COSINE.alpha_bar[t]
        torch.testing.assert_close(predicted, x0 * 2 * variance / (2 * variance + 1), atol=1e-6, rtol=1e-5)


def test_copies_are_shifted_in_all_directions_and_filled_with_black():
    x = start(2)
    views = shifted(x, 1)
    assert torch.equal(views[4], x)
    for view, (down, right) in zip(views, [(d, r) for d in (1, 0, -1) for r in (1, 0, -1)], strict=True):
        rolled = x.roll((down, right), (2, 3))
        known = torch.ones(4, 4, dtype=torch.bool)
        if down:
            known[0 if down > 0 else -1] = False
        if right:
            known[:, 0 if right > 0 else -1] = False
        assert torch.equal(view[..., known], rolled[..., known])
        assert view[..., ~known].eq(-1).all()
    assert [torch.equal(view, x) for view in shifted(x, 0)] == [True]


def test_image_i_of_a_seed_is_the_same_at_any_n_and_batch_size(model):
    pixels, mask = digits(5), torch.ones(8, 8, dtype=torch.bool).triu()
    for edit in (
        lambda p, size: model.inpaint(p, mask, steps=4, batch_size=size),
        lambda p, size: model.vary(p, 0.5, steps=6, batch_size=size),
    ):
        whole = edit(pixels, 128)
        assert (whole.pixels.int() - edit(pixels, 2).pixels.int()).abs().max() <= 1  # up to rounding
        assert (whole.pixels[:3].int() - edit(pixels[:3], 128).pixels.int()).abs().max() <= 1
        assert whole.pixels.shape == pixels.shape
        assert torch.equal(whole.before.labels, model.predict(pixels).labels)
        assert torch.equal(whole.after.labels, model.predict(whole.pixels).labels)


@pytest.mark.slow
def test_a_counterfactual_is_the_same_at_any_batch_size(model):
    pixels, wanted = digits(5), torch.arange(5)
    a, b = (model.counterfactual(pixels, wanted, batch_size=size) for size in (128, 2))
    assert (a.pixels.int() - b.pixels.int()).abs().max() <= 1


def test_known_pixels_stay_as_they_are(model):
    pixels = digits(3)
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, :4], masks[1, :, 5:] = True, True
    edited = model.inpaint(pixels, masks, steps=3, repeats=2).pixels
    assert torch.equal(edited[~masks[:, None]], pixels[~masks[:, None]])
    assert torch.equal(edited[2], pixels[2])
    assert not torch.equal(edited[0], pixels[0])


def test_an_interpolation_ends_at_the_images(model):
    a, b = digits(2)[:, None]
    edited = model.interpolate(a, b, frames=3, steps=60)
    assert edited.pixels.shape == (3, 1, 8, 8)
    assert (edited.pixels[[0, 2]].float() - torch.cat((a, b)).float()).square().mean().sqrt() < 12
    assert len(edited.before.labels) == 2
    assert len(edited.after.labels) == 3


@pytest.mark.slow
def test_a_counterfactual_says_what_it_reached(model):
    pixels = digits(4)
    seen = model.predict(pixels)
    found = model.counterfactual(pixels, seen.labels, confidence=0.01)
    assert torch.equal(found.pixels, pixels)  # of the class already
    assert found.accepted.all()
    assert found.distance.eq(0).all()
    assert found.hold.isinf().all()
    wanted = (seen.labels + 1) % 10
    other = model.counterfactual(pixels, wanted, confidence=0.5)
    expected = (other.pixels.float() - pixels.float()).flatten(1).norm(dim=1) / 255
    torch.testing.assert_close(other.distance, expected)
    assert (model.cfg.data.augment, model.cfg.data.crop_padding) == ("weak", 1)
    with torch.no_grad():
        views = torch.stack([model.logits(view).softmax(dim=1) for view in shifted(to_x(other.pixels), 1)])
    assert torch.equal(other.accepted, (views[:, range(4), wanted] >= 0.5).all(dim=0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: m.inpaint(p, torch.ones(8, 8)), "mask is torch.float32"),
        (lambda m, p: m.inpaint(p, np.ones((8, 8))), "mask is torch.float64"),
        (lambda m, p: m.interpolate(p[:1], p[1:], frames=2.5), r"frames: 2\.5"),
        (lambda m, p: m.inpaint(p, torch.ones(7, 8, dtype=torch.bool)), r"must be bool \[8, 8\]"),
        (lambda m, p: m.inpaint(p, torch.ones(8, 8, dtype=torch.bool), repeats=0), "repeats 0"),
        (lambda m, p: m.inpaint(p, torch.ones(8, 8, dtype=torch.bool), labels=3), "was not trained with labels"),
        (lambda m, p: m.vary(p, 0.0), "strength is 0.0"),
        (lambda m, p: m.vary(p, 1.5), "strength is 1.5"),
        (lambda m, p: m.vary(p.float()), "images are torch.float32"),
        (lambda m, p: m.interpolate(p, p), "takes two images"),
        (lambda m, p: m.counterfactual(p, 12), "labels must be in 0..9"),
        (lambda m, p: m.counterfactual(p, 1, confidence=1.0), "confidence is 1.0"),
        (lambda m, p: m.sample(2, tries=0), "tries is 0"),
        (lambda m, p: m.sample(2, tries=2), "name the labels"),
    ],
)
def test_wrong_arguments_are_named(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, digits(2))


def test_a_sample_is_drawn_anew_only_where_its_class_is_not_seen(model, monkeypatch):
    labels = torch.arange(12) % 10
    monkeypatch.setattr(type(model), "takes_labels", property(lambda self: True))
    drawn = []

    def draw(indices, sampler, steps, seed, guidance, spacing, y):
        drawn.append(list(indices))
        return torch.stack([torch.full((1, 8, 8), (i % 2**32) * 4 + i // 2**32, dtype=torch.uint8) for i in indices])

    def predict(images):  # an image is of its class at try (number mod 4), with 0.1 per try before
        value = images[:, 0, 0, 0].long()
        number, attempt = value // 4, value % 4
        p = torch.where(attempt >= number % 4, 0.9, 0.1 + 0.1 * attempt)
        rows = torch.zeros(len(images), 10)
        rows[torch.arange(len(images)), labels[number]] = p
        return hybvit.model.Prediction(rows.argmax(1), rows, p)

    monkeypatch.setattr(model, "draw", draw)
    monkeypatch.setattr(model, "predict", predict)
    found = model.sample(12, labels=labels, tries=3)[:, 0, 0, 0].long()
    assert drawn == [list(range(12)), [i + 2**32 for i in range(12) if i % 4 > 0], [i + 2**33 for i in range(12) if i % 4 > 1]]
    assert (found % 4).tolist() == [0, 1, 2, 2] * 3  # the last is the most probable of three
    assert (found // 4).tolist() == list(range(12))


@pytest.mark.slow
def test_the_command_edits_pictures(tiny_run, tmp_path, capsys):
    for name, image in zip("ab", digits(2), strict=True):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{name}.png")
    a, b, mask = str(tmp_path / "a.png"), str(tmp_path / "b.png"), tmp_path / "mask.png"
    Image.new("L", (8, 8), 255).save(mask)
    out, folder = tmp_path / "edit.png", tmp_path / "results"
    for words, results in (
        (["--box", "2,2,6,8", "-n", "2"], 4),
        (["--mask", str(mask)], 2),
        (["--vary", "0.5"], 2),
        (["--toward", b, "-n", "3"], 6),
        (["--into", "7"], 2),
    ):
        target = folder / words[0].strip("-")
        assert cli.main(["edit", str(tiny_run), a, b, *words, "--out", str(out), "--folder", str(target)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == results + 1
        assert all("%" in line and " -> " in line for line in lines[:-1])
        assert len(list(target.glob("*.png"))) == results
        assert Image.open(out).height > 2 * 112
    box = Image.open(folder / "box" / "000000.png")
    assert torch.equal(torch.from_numpy(np.array(box))[:2], digits(1)[0, 0, :2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments"),
        (["--box", "1,2,3"], "not four whole numbers"),
        (["--box", "3,0,1,8"], "X0 < X1"),
        (["--box", "0,0,9,8"], "outside the 8 x 8 pixels"),
        (["--into", "cat"], "none of the model's classes"),
        (["--into", "cat", "--label", "3"], "--label goes with"),
        (["--vary", "0.5", "--label", "cat"], "--label 'cat' is none of the model's classes"),
        (["--into", "1", "-n", "3"], "leave it out"),
        (["--into", "1", "--label", "2"], "--label goes with"),
        (["--vary", "3"], "strength is 3"),
        (["--vary", "0.5", "--out", "a.txt"], "not an image format"),
    ],
)
def test_a_wrong_edit_is_refused(tiny_run, tmp_path, capsys, words, message):
    Image.fromarray(digits(1)[0, 0].numpy()).save(tmp_path / "a.png")
    assert cli.main(["edit", str(tiny_run), str(tmp_path / "a.png"), "--out", str(tmp_path / "e.png"), *words]) == 2
    assert message in capsys.readouterr().err


def test_captions_are_wrapped_below_their_images():
    sheet = captioned_grid(digits(3), ["short", "words that need more than one line", ""], 2, scale=6)
    lower = captioned_grid(digits(3), ["short"] * 3, 2, scale=6)
    assert sheet.height > lower.height
    assert sheet.width == lower.width == 2 * (48 + 4) + 4


def test_edits_are_not_mixed_with_other_images_in_their_folder(tiny_run, tmp_path, capsys):
    Image.fromarray(digits(1)[0, 0].numpy()).save(tmp_path / "a.png")
    words = ["edit", str(tiny_run), str(tmp_path / "a.png"), "--vary", "0.5", "--out", str(tmp_path / "e.png")]
    (tmp_path / "folder").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "folder" / "foreign.png")
    assert cli.main([*words, "--folder", str(tmp_path / "folder")]) == 3
    assert "holds foreign.png" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "folder").glob("*.png")] == ["foreign.png"]
    assert not (tmp_path / "e.png").exists()
    (tmp_path / "free").mkdir()
    with lock_folder(tmp_path / "free"):
        assert cli.main([*words, "--folder", str(tmp_path / "free")]) == 2
    assert cli.main([*words, "--folder", str(tmp_path / "free")]) == 0


def test_pictures_to_edit_are_read_at_the_depth_of_the_training_images(tiny_run, tmp_path, capsys):
    m = hybvit.load(tiny_run, "cpu")
    m.cfg = override(m.cfg, data={"bits": 12})
    m.save_pretrained(tmp_path / "model")
    bright = digits(1)[0, 0].numpy().astype(np.uint16)
    Image.fromarray((bright / 255 * 4095).round().astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(bright.astype(np.uint8)).save(tmp_path / "plain.png")
    said = []
    for model, name in (("model", "deep"), ("model", "plain")):
        words = [
            "edit",
            str(tmp_path / model),
            str(tmp_path / f"{name}.png"),
            "--vary",
            "0.5",
            "--out",
            str(tmp_path / "e.png"),
        ]
        assert cli.main(words) == 0
        said.append(capsys.readouterr().out.splitlines()[0].split("  ", 1)[1])
    assert said[0] == said[1]
