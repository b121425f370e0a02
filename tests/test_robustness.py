from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybvit.errors import ConfigError
from hybvit.evaluation.robustness import STRONG
from hybvit.metrics import autoattack as auto
from hybvit.metrics import reliability as trust
from hybvit.metrics import robustness
from hybvit.metrics.autoattack import autoattack, square_attack
from hybvit.metrics.reliability import reliability
from hybvit.metrics.robustness import L2_EPS, LINF_EPS, PGD_STEP, pgd, robust_curve, strong_pgd

needs_library = pytest.mark.skipif(importlib.util.find_spec("pyautoattack") is None, reason="pyautoattack is not installed")
NORMS = ["linf", "l2"]
EPS = {"linf": 30 / 255, "l2": 150 / 255}  # these break part of the digits of a plain network


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    """x [1797, 1, 8, 8] in [-1, 1] and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(data.target)


def trained(digits, eps: float = 0.0) -> nn.Module:
    """A network fitted to the digits in about a second; with eps, to digits attacked at eps (linf)."""
    x, labels = (part[:1500] for part in digits)
    g = generator(1)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(300):
        rows = torch.randint(len(x), (128,), generator=g)
        images = x[rows]
        if eps:
            images = pgd(net, images, labels[rows], eps, "linf", g, steps=3, step=eps / 2).images
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels[rows]).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def net(digits):
    return trained(digits)


@pytest.fixture(scope="module")
def robust_net(digits):
    return trained(digits, eps=0.1)


@pytest.fixture(scope="module")
def held_out(digits):
    return digits[0][1500:], digits[1][1500:]


def linear(classes: int, n: int = 60, dtype: torch.dtype = torch.float64):
    """A linear classifier and images far from the border of [-1, 1], so that only the ball limits an attack.

    -> logits, x, labels (its own), and closed form: (eps, norm) -> bool [n], robust at eps on the [0, 1] scale.
    """
    g = generator(3)
    w = torch.randn(classes, 1 * 6 * 6, generator=g, dtype=dtype)
    x = torch.rand(n, 1, 6, 6, generator=g, dtype=dtype) * 0.4 - 0.2

    def logits(images):
        return images.flatten(1) @ w.T

    scores = logits(x)
    labels = scores.argmax(dim=1)

    def closed_form(eps, norm):
        gap = w[labels][:, None] - w  # [n, K, d]
        size = gap.abs().sum(2) if norm == "linf" else gap.norm(dim=2)
        spare = scores.gather(1, labels[:, None]) - scores - 2 * eps * size  # x has twice the pixels' scale
        return (spare.scatter(1, labels[:, None], torch.inf) > 0).all(dim=1)

    return logits, x, labels, closed_form


LINEAR_EPS = {"linf": (0.002, 0.01, 0.03), "l2": (0.01, 0.06, 0.15)}


def distance(a, b, norm):
    moved = (a - b).flatten(1)
    return moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)


@pytest.mark.parametrize("norm", NORMS)
def test_the_strong_pgd_of_a_linear_classifier_in_closed_form(norm):
    logits, x, labels, closed_form = linear(5)
    for eps in LINEAR_EPS[norm]:
        found = strong_pgd(logits, x, labels, eps, norm, generator())
        assert distance(found.images, x, norm).max() <= 2 * eps + 1e-9
        assert (~found.broken == closed_form(eps, norm)).double().mean() > 0.98


@pytest.mark.parametrize("eps", STRONG["linf"])
def test_the_papers_step_jumps_over_what_the_strong_pgd_finds(eps):
    """A classifier that errs only near one point inside the ball."""
    x, labels = torch.zeros(8, 1, 6, 6), torch.zeros(8, dtype=torch.int64)
    weak_spot = 0.4 * 2 * eps

    def logits(images):
        away = (images - weak_spot).flatten(1).abs().mean(dim=1)
        return torch.stack((away, torch.full_like(away, 0.2 * 2 * eps)), dim=1)

    assert strong_pgd(logits, x, labels, eps, "linf", generator()).broken.all()
    assert not pgd(logits, x, labels, eps, "linf", generator(), step=PGD_STEP).broken.any()


def test_the_margin_has_a_gradient_where_the_cross_entropy_has_none(net, held_out):
    x, labels = (part[:60] for part in held_out)
    certain = lambda images: 1e4 * net(images)  # noqa: E731
    weak, strong = (
        pgd(certain, x, labels, 30 / 255, "linf", None, 10, 4 / 255, start=x, loss=loss).broken.double().mean()
        for loss in ("cross_entropy", "margin")
    )
    assert strong > weak + 0.2


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_stays_in_the_ball_and_among_images_and_uses_both(net, held_out, norm):
    x, labels = held_out
    for eps in (4 / 255, 30 / 255, 1.0):
        images = pgd(net, x, labels, eps, norm, generator(), steps=6).images
        away = distance(images, x, norm)
        assert away.max() <= 2 * eps + 1e-6
        assert images.abs().max() <= 1
        assert eps == 1 or away.max() > 2 * eps - 1e-3  # of 255ths: it goes all the way
    assert (pgd(net, x, labels, 0.0, norm, generator(), steps=2).images - x).abs().max() < 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_the_start_is_uniform_in_the_ball_and_comes_from_the_generator_alone(norm):
    x = torch.zeros(4000, 1, 2, 2)

    def constant(images):
        return images.flatten(1)[:, :2] * 0 + torch.tensor([1.0, 0.0])

    labels = torch.zeros(4000, dtype=torch.long)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = pgd(constant, x, labels, 0.25, norm, generator(1), steps=0).images
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(first, pgd(constant, x, labels, 0.25, norm, generator(1), steps=0).images)
    assert not torch.equal(first, pgd(constant, x, labels, 0.25, norm, generator(2), steps=0).images)
    share = distance(first, x, norm).sort().values / 0.5  # of the radius
    volume = share**4  # uniform in 4 dimensions
    assert (volume - torch.linspace(0, 1, 4000)).abs().max() < 0.03
    assert first.mean(dim=0).abs().max() < 0.02
    # Which images are left does not matter: the others start where they did.
    part = pgd(constant, x, torch.arange(4000) % 2, 0.25, norm, generator(1), steps=0).images
    assert torch.equal(part[::2], first[::2])


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_is_the_formula(net, held_out, norm):
    x, labels = held_out
    start = (x + 0.02 * torch.randn(x.shape, generator=generator())).clamp(-1, 1)
    eps, step = 0.5, 0.01
    wanted = start.clone().requires_grad_()
    F.cross_entropy(net(wanted), labels, reduction="sum").backward()
    g = wanted.grad
    g = g.sign() if norm == "linf" else g / g.flatten(1).norm(dim=1)[:, None, None, None]
    expected = (start + 2 * step * g).clamp(-1, 1)
    images, broken = pgd(net, x, labels, eps, norm, None, steps=1, step=step, start=start)
    moved = (net(x).argmax(1) == labels) & (net(start).argmax(1) == labels)
    assert moved.sum() > 250
    torch.testing.assert_close(images[moved], expected[moved], atol=2e-6, rtol=0)
    assert torch.equal(broken[moved], net(expected).argmax(1)[moved] != labels[moved])
    assert distance(images, start, norm)[moved].max() > 0.019


@needs_library
@pytest.mark.parametrize("norm", NORMS)
def test_one_step_is_that_of_the_attack_library(net, held_out, norm):
    from pyautoattack.autopgd_base import APGDAttack

    x, labels = held_out
    eps = 0.05
    library = APGDAttack(
        lambda p: net(2 * p - 1), n_iter=1, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, device=torch.device("cpu")
    )
    start = robustness._project(x + 0.05 * torch.randn(x.shape, generator=generator()), x, 2 * eps, norm)
    library.init_hyperparam(x)
    expected = 2 * library.attack_single_run((x + 1) / 2, labels, x_init=(start + 1) / 2)[0] - 1
    images, _ = pgd(net, x, labels, eps, norm, None, steps=1, step=2 * eps, start=start)  # APGD's first step is 2 eps
    comparable = (net(x).argmax(1) == labels) & (net(start).argmax(1) == labels)
    comparable &= (expected - start).flatten(1).abs().amax(1) > 1e-4  # else the library kept its start, as the better one
    assert comparable.sum() > 250
    # From [0, 1] and back costs an ulp, which turns the sign where the gradient is nearly 0.
    same = ((images - expected).abs() < 1e-5)[comparable].float().mean()
    assert same > (0.999 if norm == "linf" else 0.9999)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0, 1, 2])
def test_pgd_against_two_linear_classes_is_the_closed_form(norm, eps):
    logits, x, labels, closed_form = linear(2)
    eps = LINEAR_EPS[norm][eps]
    robust = closed_form(eps, norm)
    assert 0 < robust.sum() < len(x)
    images, broken = pgd(logits, x, labels, eps, norm, generator())
    assert torch.equal(~broken, robust)
    assert torch.equal(logits(images).argmax(1) != labels, broken)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_never_breaks_what_the_closed_form_calls_robust(norm):
    logits, x, labels, closed_form = linear(5)
    for eps in LINEAR_EPS[norm]:
        robust, broken = closed_form(eps, norm), pgd(logits, x, labels, eps, norm, generator()).broken
        assert not (robust & broken).any()
        assert (~robust & ~broken).sum() <= 3  # one loss for all wrong classes may climb towards the wrong one


@pytest.mark.parametrize("norm", NORMS)
def test_the_box_limits_the_attack(norm):
    """One pixel at 0.9; the ball reaches 1.1, but no image does."""
    x, labels = torch.full((2, 1, 1, 1), 0.9), torch.zeros(2, dtype=torch.long)
    for border, broken in ((0.95, True), (1.05, False)):
        attack = pgd(
            lambda images, b=border: torch.cat([b - images, images - b], 1).flatten(1), x, labels, 0.1, norm, generator()
        )
        assert attack.broken.tolist() == [broken, broken]
        assert attack.images.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_and_a_larger_eps_never_help_the_defense(net, held_out, norm):
    x, labels = held_out
    clean = (net(x).argmax(1) == labels).double().mean().item()
    found = {n: pgd(net, x, labels, EPS[norm], norm, generator(), steps=n, step=EPS[norm] / 4).broken for n in (0, 1, 4, 16)}
    for few, many in ((0, 1), (1, 4), (4, 16)):
        assert not (found[few] & ~found[many]).any()
    assert found[16].sum() > found[1].sum() > found[0].sum()
    broken = [pgd(net, x, labels, eps, norm, generator(), steps=10).broken for eps in (LINF_EPS if norm == "linf" else L2_EPS)]
    alone = [1 - b.double().mean().item() for b in broken]
    assert all(after <= before + 0.01 for before, after in pairwise(alone))
    curve = robust_curve(broken)
    assert all(after <= before for before, after in pairwise([clean, *curve]))
    assert curve[0] > 0.5
    assert curve[-1] < 0.5 * clean
    assert clean > 0.85


def test_the_curve_nests_the_balls():
    at = [torch.tensor(rows) for rows in ([True, False, False, False], [False, True, False, False], [False, True, False, True])]
    assert robust_curve(at) == [0.75, 0.5, 0.25]
    assert robust_curve([]) == []
    assert at[1].tolist() == [False, True, False, False]


@pytest.mark.parametrize("norm", NORMS)
def test_broken_images_are_skipped_without_a_trace(net, held_out, norm):
    """The same attack with a step for every image at every turn, and the first that fools kept."""
    x, labels = (part[:120] for part in held_out)
    x, net = x.double(), net.double()
    eps, step, steps = EPS[norm], EPS[norm] / 4, 8
    asked = []

    def logits(images):
        asked.append(len(images))
        return net(images)

    images, broken = pgd(logits, x, labels, eps, norm, generator(), steps, step)
    calls = asked.copy()
    now = robustness._project(x + 2 * eps * robustness.uniform_in_ball(x, norm, generator()), x, 2 * eps, norm)
    kept = torch.where((net(x).argmax(1) != labels)[:, None, None, None], x, torch.nan)
    for turn in range(steps + 1):
        scores, gradient, _ = robustness.ascent(net, now, labels)
        fooled = (scores.argmax(1) != labels)[:, None, None, None]
        kept = torch.where(kept.isnan() & fooled, now, kept)
        if turn < steps:
            now = robustness._project(now + 2 * step * robustness._direction(gradient, norm), x, 2 * eps, norm)
    net.float()
    assert torch.equal(broken, ~kept.isnan().flatten(1).any(1))
    torch.testing.assert_close(images, torch.where(kept.isnan(), now, kept), atol=1e-9, rtol=0)
    assert 20 < broken.sum() < 100
    assert calls[0] == 120
    assert calls == sorted(calls, reverse=True)
    assert calls[-1] < 100


def test_a_direction_has_length_1_however_small_the_gradient():
    """The squares of these are 0, or infinite, in float32; one that is 0 or not finite leads nowhere."""
    g = torch.randn(4, 1, 3, 3, generator=generator())
    g[2], g[3], g[3, 0, 0] = 0, torch.nan, torch.tensor([torch.inf, -torch.inf, torch.nan])
    for scale in (1e-30, 1.0, 1e30):
        way = robustness._direction(g * scale, "l2")
        torch.testing.assert_close(way.flatten(1).norm(dim=1), torch.tensor([1.0, 1.0, 0.0, 0.0]))
        torch.testing.assert_close(way[:2], robustness._direction(g[:2], "l2"))
        assert torch.equal(robustness._direction(g * scale, "linf"), g.nan_to_num(0, 0, 0).sign())
    assert robustness.uniform_in_ball(torch.zeros(0, 1, 2, 2), "l2", None).shape == (0, 1, 2, 2)


def test_a_model_that_answers_nan_is_fooled():
    """Whatever its argmax is: that of NaN is the first class."""
    x, labels = torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)
    broken = pgd(
        lambda images: F.pad(1 + 0 / (images == 0).flatten(1)[:, :1].float(), (0, 1)), x, labels, 0.1, "linf", generator()
    ).broken
    assert broken.all()


def test_attacks_leave_the_network_alone(digits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    x = digits[0][:4]
    labels = net(x).argmax(1)
    with torch.no_grad():  # as in an evaluation
        pgd(net, x, labels, 0.1, "linf", generator(), steps=2)
        if importlib.util.find_spec("pyautoattack"):
            autoattack(net, x, labels, 0.01, "linf", 0, attacks=["fab", "fab-t"])
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not x.requires_grad


def test_a_wrong_norm_is_refused(net, held_out):
    with pytest.raises(ValueError, match="l3"):
        pgd(net, *held_out, 0.1, "l3", generator())


def test_without_the_library_it_says_what_to_install(net, held_out, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ConfigError, match=r"hybvit\[eval\]"):
        autoattack(net, *held_out, 0.1, "linf", 0)
    assert reliability(net, *held_out, generator(), queries=0) == []


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize(("classes", "norm"), [(2, "linf"), (2, "l2"), (3, "linf"), (4, "l2"), (12, "linf")])
def test_autoattack_against_linear_classes_is_the_closed_form(norm, classes):
    logits, x, labels, closed_form = linear(classes, n=24)
    eps = LINEAR_EPS[norm][1]
    robust = closed_form(eps, norm)
    assert 0 < robust.sum() < len(x)
    attacks = ["apgd-ce", "apgd-t", "fab-t"] if classes < 10 else ["apgd-t"]
    result = autoattack(logits, x, labels, eps, norm, 0, attacks=attacks)
    assert torch.equal(result.robust, robust)
    assert result.images.dtype == x.dtype
    assert torch.equal(logits(result.images).argmax(1) == labels, robust)
    assert torch.equal(result.images[robust], x[robust])
    assert distance(result.images, x, norm).max() <= 2 * eps + 1e-6
    assert any(f"{classes - 1} target classes" in text for text in result.warnings) == (classes < 10)
    assert any("apgd-t does not exist" in text for text in result.warnings) == (classes < 4)
    assert not any("upper bound" in text or "gradient" in text for text in result.warnings)


def test_attacks_that_do_not_exist_for_so_few_classes_are_replaced():
    standard = ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert auto._possible(standard, 10) == (standard, [])
    assert auto._possible(standard, 4)[0] == standard
    assert auto._possible(standard, 3)[0] == ["apgd-ce", "apgd-dlr", "fab-t", "square"]
    assert auto._possible(standard, 2)[0] == ["apgd-ce", "fab-t", "square"]
    assert auto._possible(["apgd-dlr", "apgd-t"], 3)[0] == ["apgd-dlr"]
    with pytest.raises(ValueError, match="single class"):
        auto._possible(standard, 1)


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize(("norm", "attacks"), [("linf", None), ("l2", ["apgd-ce", "square"])])
def test_autoattack_finds_what_pgd_finds_and_leaves_no_trace(net, held_out, norm, attacks, capfd):
    x, labels = (part[:40] for part in held_out)
    logger = logging.getLogger("auto-attack")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    torch.manual_seed(5)
    before, level, propagate = torch.random.get_rng_state(), logger.level, logger.propagate
    trace, ours = sys.gettrace(), lambda *_: None
    sys.settrace(ours)  # as coverage or a debugger would
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = autoattack(net, x, labels, EPS[norm], norm, 0, attacks=attacks, queries=50)
    after = sys.gettrace()
    sys.settrace(trace)
    assert after is ours
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (logger.level, logger.propagate, logger.handlers) == (level, propagate, [handler])
    logger.removeHandler(handler)
    assert not seen
    assert capfd.readouterr() == ("", "")
    assert result.warnings == []
    broken = pgd(net, x, labels, EPS[norm], norm, generator()).broken
    assert 5 < broken.sum() < 35
    assert (broken & result.robust).sum() <= 1
    assert not (result.robust & (net(x).argmax(1) != labels)).any()
    assert distance(result.images, x, norm).max() <= 2 * EPS[norm] + 1e-6
    assert result.images.abs().max() <= 1


@needs_library
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["apgd-t", "fab-t"])
def test_target_classes_beside_each_other_are_those_of_the_library(net, held_out, norm, name):
    x, labels = (part[:24] for part in held_out)
    library, _ = auto._pyautoattack()
    model = auto._OnPixels(net, x.dtype, 10)
    pixels, right = x / 2 + 0.5, net(x).argmax(1) == labels

    def attacked(rows: int | None) -> torch.Tensor:
        attack = library.AutoAttack(model, eps=EPS[norm], norm={"linf": "Linf", "l2": "L2"}[norm], device=x.device)
        if rows is not None:
            auto._try_targets_together(attack, model, rows)
        targeted = attack.apgd_targeted if name == "apgd-t" else attack.fab
        targeted.seed, targeted.n_iter, attack.fab.targeted = 3, 30, True
        return targeted.perturb(pixels.clone(), labels)

    alone, together = attacked(1), attacked(10_000)
    assert torch.equal(alone, attacked(None))  # one class after the other: the library itself
    broken, broken_alone = ((net(2 * images - 1).argmax(1) != labels) & right for images in (together, alone))
    assert 3 < broken.sum() < right.sum()
    assert (broken != broken_alone).sum() <= 1  # another random start
    assert distance(together, pixels, norm).max() <= EPS[norm] + 1e-6
    assert torch.equal(together[~broken], pixels[~broken])


def test_an_image_that_falls_is_not_attacked_again():
    """One of four images falls in each call; the last one has room for both classes that are left."""

    class Attack:
        seed, n_target_classes = 0, 5

    def model(images):  # class 0, until the pixel is set
        return torch.arange(6.0).flip(0) + 10 * images.flatten(1)[:, :1] * torch.eye(6)[3]

    def run(images, labels, targets):
        calls.append(targets.tolist())
        images = images.clone()
        images[0] = 1
        return images

    x, labels, calls = torch.zeros(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64), []
    found = auto._by_target(Attack, run, model, x, labels, 3)
    assert calls == [[1] * 4, [2] * 3, [3] * 2, [4, 5]]
    assert found.flatten().tolist() == [1, 1, 1, 1]


def test_an_image_that_no_attack_breaks_is_given_back_as_it_was():
    """An attack answers with a changed image for each, whether it fooled the model or not."""

    class Attack:
        def run_standard_evaluation(self, images, labels, batch_size):
            fooled = images.flatten(1).mean(1) < limit
            return images + 0.1, labels + fooled

    pixels = torch.tensor([0.1, 0.3, 0.5]).reshape(3, 1, 1, 1)
    labels, limits = torch.zeros(3, dtype=torch.int64), iter((0.2, 0.4))
    found = pixels.clone()
    for limit in limits:
        found, accuracy = auto._attack_in_turn(["x"], Attack, pixels, labels, labels == 0, 3, [], lambda: None)
        assert torch.equal(found.images != pixels, (pixels < limit))
        assert torch.equal(found.broken, (pixels < limit).flatten())
        assert accuracy == {"clean": 1.0, "x": pytest.approx(1 - found.broken.double().mean().item())}


@needs_library
def test_autoattack_depends_on_its_seed_alone(net, held_out):
    x, labels = (part[:40] for part in held_out)
    runs = []
    for global_seed, seed in ((0, 0), (1, 0), (1, 1)):
        torch.manual_seed(global_seed)
        runs.append(autoattack(net, x, labels, EPS["linf"], "linf", seed, attacks=["apgd-ce"]).images)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@needs_library
def test_square_alone_breaks_some(net, held_out):
    x, labels = (part[:60] for part in held_out)
    few, many = (square_attack(net, x, labels, EPS["linf"], "linf", 0, queries=n) for n in (2, 200))
    assert few.robust.sum() > many.robust.sum()
    assert many.robust.sum() >= (~pgd(net, x, labels, EPS["linf"], "linf", generator()).broken).sum() - 1
    assert few.warnings == many.warnings == []


@pytest.mark.slow
@needs_library
def test_warnings_of_the_library_are_collected(net, held_out, capfd):
    x, labels = (part[:16] for part in held_out)

    def warned(logits, attacks=("apgd-ce",), version="standard"):
        return " | ".join(autoattack(logits, x, labels, 0.05, "linf", 0, version, attacks, queries=20).warnings)

    assert warned(net) == ""
    random = lambda images: net(images + 0.3 * torch.randn_like(images))  # noqa: E731
    assert "randomized" in warned(random)
    assert warned(random, ["apgd-dlr"], "rand") == ""
    assert "probability" in warned(lambda images: net(images).softmax(1))
    assert "zero gradient" in warned(lambda images: net(images) * 0 + net(images).detach(), ["apgd-t"])
    assert "flags_doc" not in warned(lambda images: net(images).softmax(1))

    def dynamic(images):
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            (g,) = torch.autograd.grad(net(images).logsumexp(1).sum(), images)
        return net(images + g)

    assert "dynamic" in warned(dynamic)
    assert warned(net) == ""  # the library's counts of one model are not those of the next
    assert capfd.readouterr() == ("", "")


@needs_library
def test_a_model_that_misbehaves_is_a_warning(net, held_out):
    x, labels = (part[:16] for part in held_out)
    some = ["apgd-ce", "fab-t", "square"]

    cut = autoattack(lambda images: net(images.detach())[:, :3], x, labels % 3, 0.2, "linf", 0, attacks=some, queries=60)
    assert any("no gradient" in text for text in cut.warnings)
    assert not any("failed" in text for text in cut.warnings)
    assert cut.robust.sum() < (net(x)[:, :3].argmax(1) == labels % 3).sum()  # square needs none

    class Stubborn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images):
            return images.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("no way back\nat all")

    result = autoattack(lambda images: net(Stubborn.apply(images)), x, labels, 0.2, "linf", 0, attacks=some, queries=60)
    assert any("apgd-ce failed (RuntimeError: no way back)" in text and "upper bound" in text for text in result.warnings)
    assert result.robust.sum() < 14
    assert any(
        "cannot be computed" in text for text in reliability(lambda images: net(Stubborn.apply(images)), x, labels, generator())
    )

    def root(images):
        return net(images) + (images.flatten(1)[:, :1] * 0).sqrt()

    for norm in NORMS:
        infinite = autoattack(root, x, labels, 0.2, norm, 0, attacks=some[:1])
        assert any("not always finite" in text for text in infinite.warnings)
        assert infinite.images.isfinite().all()
        assert pgd(root, x, labels, 0.2, norm, generator(), steps=3).images.isfinite().all()


def softmax_read_as_logits(net, x):
    return lambda images: net(images).softmax(1)


def saturated(net, x):
    return lambda images: net(images) * 1e5


def random_input(net, x):
    g = generator(9)
    return lambda images: net(images + 0.3 * torch.randn(images.shape, generator=g))


def quantised(net, x):
    return lambda images: net(((images + 1) * 2).round() / 2 - 1)


def detached_blur(net, x):
    return lambda images: net(F.avg_pool2d(images.detach(), 3, 1, 1, count_include_pad=False))


def nearest_prototype(net, x):
    """Purified into the closest clean image, which the input only selects; the logits' graph leads nowhere near it."""
    return lambda images: net(x[torch.cdist(images.flatten(1), x.flatten(1)).argmin(1)] + 0 * images)


def shattered(net, x):
    """A gradient that is there, finite, and without meaning: a fast small ripple."""
    return lambda images: net(images + 1e-3 * torch.sin(1e6 * images))


def clean_gradients_of_another(net, x):
    """The gradient points down: of a negated copy of the logits."""
    return lambda images: net(images).detach() - net(images) + net(images).detach()


DEFENCES = {
    softmax_read_as_logits: "probabilities",
    saturated: "is 0",
    random_input: "two calls",
    quantised: "is 0",
    detached_blur: "graph is cut",
    nearest_prototype: "is 0",
    shattered: "without gradients",
    clean_gradients_of_another: "without bounds",
}


@needs_library
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("defense", DEFENCES)
def test_a_defense_that_only_hides_is_found_out(net, held_out, norm, defense):
    x, labels = held_out
    reasons = reliability(defense(net, x), x, labels, generator(), EPS[norm], norm)
    assert any(DEFENCES[defense] in text for text in reasons), reasons


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_honest_networks_are_trusted(net, robust_net, held_out, norm, seed):
    x, labels = (part[64 * seed :] for part in held_out)
    for model in (net, robust_net):
        assert reliability(model, x, labels, generator(seed), EPS[norm], norm) == []
    logits, x, labels, _ = linear(10, dtype=torch.float32)
    assert reliability(logits, x, labels, generator(seed), LINEAR_EPS[norm][1], norm) == []


@pytest.mark.slow
def test_adversarial_training_is_what_makes_the_robust_network_robust(net, robust_net, held_out):
    plain, robust = (
        1 - pgd(model, *held_out, 0.1, "linf", generator()).broken.double().mean().item() for model in (net, robust_net)
    )
    assert robust > plain + 0.2


@needs_library
def test_each_symptom_is_seen_by_itself(net, held_out, monkeypatch):
    """What the planted defenses do not show alone: the reasons for more steps, larger eps and the blind attack."""
    x, labels = (part[:64] for part in held_out)
    share = {"one": 0.5, "many": 0.5, "double": 0.5, "far": 1.0}

    def planted(logits, x, labels, eps, norm, generator, steps, *step, start=None):
        case = "far" if start is not None else "one" if steps == 1 else "double" if eps > 0.15 else "many"
        return robustness.Attack(x, torch.arange(len(x)) < share[case] * len(x))

    monkeypatch.setattr(trust, "pgd", planted)

    def reasons(queries=0, **changed):
        share.update({"one": 0.5, "many": 0.5, "double": 0.5, "far": 1.0, **changed})
        return reliability(net, x, labels, generator(), 0.1, "linf", queries=queries)

    assert reasons() == []
    assert "without bounds leaves 9%" in "".join(reasons(far=0.9))
    assert reasons(far=0.96) == []
    assert "more steps helped" in "".join(reasons(one=0.6))
    assert "larger eps helped" in "".join(reasons(double=0.4))
    assert reasons(one=0.54, double=0.47) == []
    assert "without gradients breaks" in "".join(reasons(queries=50, one=0.0, many=0.0))


def test_of_a_few_images_a_single_one_is_no_symptom(net, held_out, monkeypatch):
    x, labels = (part[:8] for part in held_out)

    def planted(logits, x, labels, eps, norm, generator, steps, *step, start=None):
        return robustness.Attack(x, torch.arange(len(x)) < (8 if start is not None else fallen if steps == 1 else 4))

    monkeypatch.setattr(trust, "pgd", planted)
    for fallen, found in ((5, 0), (6, 1)):
        reasons = reliability(net, x, labels, generator(), 0.1, "linf", queries=0)
        assert ["more steps helped" in reason for reason in reasons] == [True] * found


def test_not_finite_gradients_and_logits_are_named(net, held_out):
    x, labels = held_out

    def root(images):
        return net(images) + (images.flatten(1)[:, :1] * 0).sqrt()

    assert "not finite for 100%" in " ".join(reliability(root, x, labels, generator(), queries=0))
    assert "logits of unchanged images are not finite" in " ".join(
        reliability(lambda images: net(images) / 0, x, labels, generator(), queries=0)
    )
