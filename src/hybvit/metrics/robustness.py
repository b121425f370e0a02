"""Adversarial robustness: accuracy under attack (Figure 8b, Table 12), and the symptoms that make such a number unreliable.

Shapes: x float [B, C, H, W] in [-1, 1], labels int64 [B]; ``logits`` is a callable, x -> [B, K], whose rows depend on
their own image only. Every eps and every step is on the [0, 1] scale of pixels, so 8/255 is a radius of 16/255 in x.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError

Norm = Literal["linf", "l2"]
Loss = Literal["cross_entropy", "margin"]
Logits = Callable[[Tensor], Tensor]

LINF_EPS = tuple(n / 255 for n in (1, 2, 4, 8, 12, 16, 22, 30))
L2_EPS = tuple(n / 255 for n in (50, 100, 150, 200, 250, 300, 350, 400, 450, 500))
PGD_STEPS = 50
PGD_STEP = 20 / 255
SQUARE_QUERIES = 5000  # AutoAttack's

X_PER_PIXEL = 2.0  # x is in [-1, 1], the pixels of the attack literature in [0, 1]
LOGGER = "auto-attack"  # the name of the library's logger
TARGETS = 9  # classes that AutoAttack's targeted attacks try, besides the label
SYMPTOM = 0.05  # a larger share of images is no chance finding: see `reliability`


class Attack(NamedTuple):
    """The outcome of an attack.

    Attributes:
        images: [B, C, H, W]; where ``broken`` they fool the model, elsewhere they are the last iterate.
        broken: bool [B], whether the image was misclassified at any time.
    """

    images: Tensor
    broken: Tensor


class AutoAttackResult(NamedTuple):
    """The outcome of AutoAttack.

    Attributes:
        robust: bool [B], whether the image is classified correctly before and after every attack.
        images: [B, C, H, W], the adversarial images; x itself where none was found.
        warnings: reasons not to trust ``robust``, in plain words.
    """

    robust: Tensor
    images: Tensor
    warnings: list[str]


# Projected gradient descent (Madry et al. 2018)


def pgd(  # noqa: PLR0913  the attack's own parameters, as the literature has them
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm,
    generator: torch.Generator | None,
    steps: int = PGD_STEPS,
    step: float = PGD_STEP,
    *,
    start: Tensor | None = None,
    loss: Loss = "cross_entropy",
) -> Attack:
    """Projected gradient ascent of a loss inside the ball of radius eps around x, clipped to [-1, 1].

    An image is broken as soon as any iterate is misclassified, including x itself and the start; it takes no further steps.
    Where the gradient is 0 or not finite the iterate does not move: see ``reliability``.

    Args:
        eps: the radius on the [0, 1] scale, for l2 that of the whole image.
        generator: CPU generator of the start, which is uniform in the ball.
        steps: the number of steps.
        step: their length on the [0, 1] scale, for linf that of every pixel and for l2 that of the whole image.
        start: [B, C, H, W] in [-1, 1], projected onto the ball: where to start instead.
        loss: cross_entropy, or margin: the largest logit of another class less that of the label, whose gradient does not
            vanish where the network is certain.

    Raises:
        ValueError: ``norm`` is neither linf nor l2.
    """
    _check(norm)
    radius, stride = X_PER_PIXEL * eps, X_PER_PIXEL * step
    x = x.detach()
    if start is None:
        start = x + radius * _uniform_in_ball(x, norm, generator)
    images = _project(start.detach(), x, radius, norm)
    with torch.no_grad():
        broken = _wrong(logits(x), labels)
    images = torch.where(broken[:, None, None, None], x, images)
    for _ in range(steps):
        left = (~broken).nonzero().flatten()
        if not len(left):
            break
        scores, gradient, _ = _ascent(logits, images[left], labels[left], loss)
        wrong = _wrong(scores, labels[left])
        broken[left[wrong]] = True
        left, gradient = left[~wrong], gradient[~wrong]
        images[left] = _project(images[left] + stride * _direction(gradient, norm), x[left], radius, norm)
    left = (~broken).nonzero().flatten()
    if len(left):
        with torch.no_grad():
            broken[left] = _wrong(logits(images[left]), labels[left])
    return Attack(images, broken)


def robust_curve(broken_at: Sequence[Tensor]) -> list[float]:
    """Robust accuracy at each eps, in 0..1, from the broken images (bool [N]) at each eps, in ascending order.

    The balls are nested, so an image that is broken at one eps counts as broken at all larger ones.
    """
    curve: list[float] = []
    broken: Tensor | None = None
    for found in broken_at:
        broken = found if broken is None else broken | found
        curve.append(1 - broken.double().mean().item())
    return curve


def _check(norm: str) -> None:
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm is {norm!r}: it must be linf or l2")


def _wrong(scores: Tensor, labels: Tensor) -> Tensor:
    """[B, K] -> bool [B]; NaN logits count as wrong, whatever their argmax is."""
    return (scores.argmax(dim=1) != labels) | scores.isnan().any(dim=1)


def strong_pgd(
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm,
    generator: torch.Generator | None,
    steps: int = PGD_STEPS,
) -> Attack:
    """:func:`pgd` with the margin loss and steps of eps / 8.

    A step longer than the radius, as the paper's is up to 16/255 in linf, jumps from corner to corner of the ball.
    """
    return pgd(logits, x, labels, eps, norm, generator, steps, eps / 8, loss="margin")


def _ascent(logits: Logits, x: Tensor, labels: Tensor, loss: Loss = "cross_entropy") -> tuple[Tensor, Tensor, bool]:
    """-> logits [B, K], the gradient of the loss in each image [B, C, H, W], and whether there is one (else 0)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        scores = logits(x)
        # In half precision the loss would saturate long before the model.
        exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
        total = _margin(exact, labels).sum() if loss == "margin" else F.cross_entropy(exact, labels, reduction="sum")
    gradient = None
    if total.requires_grad:
        (gradient,) = torch.autograd.grad(total, x, allow_unused=True)  # leaves the parameters' .grad alone
    return scores.detach(), torch.zeros_like(x) if gradient is None else gradient, gradient is not None


def _margin(scores: Tensor, labels: Tensor) -> Tensor:
    """The largest logit of another class less that of the label, [B]; with a single class minus its logit."""
    own = scores.gather(1, labels[:, None])[:, 0]
    if scores.shape[1] < 2:
        return -own
    return scores.scatter(1, labels[:, None], -torch.inf).amax(dim=1) - own


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Steepest ascent of length 1 in the norm; 0 where the gradient is 0 or NaN."""
    gradient = gradient.nan_to_num(nan=0.0)
    if norm == "linf":
        return gradient.sign()
    # First divided by its largest entry: the squares of a small gradient would underflow.
    flat = gradient.flatten(1)
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    return flat.reshape(gradient.shape)


def _project(images: Tensor, x: Tensor, radius: float, norm: Norm) -> Tensor:
    """Project onto the ball around x, then clip to [-1, 1]; x is in there, so this moves no pixel away from it."""
    if norm == "linf":
        images = torch.minimum(torch.maximum(images, x - radius), x + radius)
    else:
        moved = (images - x).flatten(1)
        length = moved.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        images = x + (moved * (radius / length).clamp(max=1)).reshape(x.shape)
    return images.clamp(-1, 1)


def _uniform_in_ball(x: Tensor, norm: Norm, generator: torch.Generator | None) -> Tensor:
    """A uniform point of the ball of radius 1 for each image, like x."""
    if norm == "linf":
        return (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1).to(x.device)
    direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    direction = direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
    share = torch.rand(len(x), 1, 1, 1, generator=generator, dtype=x.dtype)
    return (direction * share ** (1 / x[0].numel())).to(x.device)


# AutoAttack (Croce and Hein 2020), from the package pyautoattack


def autoattack(  # noqa: PLR0913  the attack's own parameters, as the library has them
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm,
    seed: int,
    version: Literal["standard", "plus", "rand"] = "standard",
    attacks: Sequence[str] | None = None,
    *,
    queries: int = SQUARE_QUERIES,
    batch_size: int = 250,
) -> AutoAttackResult:
    """AutoAttack: an ensemble of parameter-free attacks, each on the images that the ones before it did not break.

    Every image is attacked in float32. The random state of torch, the library's logger and the parameters' .grad are left
    unchanged. An attack that raises is skipped with a warning: ``robust`` is then an upper bound.

    Args:
        eps: the radius, on the [0, 1] scale.
        seed: of the attacks' random numbers.
        version: the library's sets of attacks; "rand" is for randomized models.
        attacks: some of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square, instead of the version's, with its settings. What does
            not exist for K classes is left out or replaced, with a warning: DLR needs 3 classes, apgd-t needs 4.
        queries: model calls of square for each batch.
        batch_size: images in one model call.

    Raises:
        ValueError: ``norm`` is neither linf nor l2, or the model has a single class.
        ConfigError: pyautoattack is not installed.
    """
    _check(norm)
    library, checks = _pyautoattack()
    x = x.detach()
    with torch.no_grad():  # not caught below: a model that cannot classify its input is the caller's error
        scores = torch.cat([logits(part).detach() for part in x.split(batch_size)])
    model = _OnPixels(logits, x.dtype, scores.shape[1])

    def prepared() -> Any:
        attack = library.AutoAttack(
            model, eps=float(eps), norm={"linf": "Linf", "l2": "L2"}[norm], seed=seed, version=version, device=x.device
        )
        attack.verbose = False
        attack.square.n_queries = queries
        for targeted in (attack.apgd_targeted, attack.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, model.classes - 1)
        return attack

    pixels = x.float() / X_PER_PIXEL + 0.5
    with _unnoticed(checks) as said:
        names, notes = _possible(prepared().attacks_to_run if attacks is None else attacks, model.classes)
        said.extend(notes)
        found, accuracy = _attack_in_turn(names, prepared, pixels, labels, ~_wrong(scores, labels), batch_size, said)
        checks.check_square_sr(accuracy, logger=logging.getLogger(LOGGER))
    said.extend(model.warnings())
    changed = (found.images != pixels).flatten(1).any(dim=1)[:, None, None, None]
    images = torch.where(changed, ((found.images - 0.5) * X_PER_PIXEL).to(x.dtype), x)
    return AutoAttackResult(~found.broken, images, _distinct(said))


def _pyautoattack() -> tuple[Any, Any]:
    """The library and its module of checks; ConfigError where it is not installed."""
    try:
        return importlib.import_module("pyautoattack"), importlib.import_module("pyautoattack.checks")
    except ImportError as error:
        raise ConfigError("AutoAttack needs pyautoattack: pip install 'hybvit[eval]'") from error


def _attack_in_turn(
    names: Sequence[str],
    prepared: Callable[[], Any],
    pixels: Tensor,
    labels: Tensor,
    right: Tensor,
    batch_size: int,
    said: list[str],
) -> tuple[Attack, dict[str, float]]:
    """Run the attacks one at a time, each on the images that are left, so that one that raises does not discard what the
    others found. Each reseeds itself, so the outcome is that of a single run.

    Args:
        prepared: makes a new instance of the library's AutoAttack.
        pixels: float32 [B, C, H, W] in [0, 1].
        right: bool [B], which images the model classifies correctly before the attacks.
        said: a list to which a warning is appended for each attack that raises.

    Returns:
        The attack's images, in pixels, and the accuracy in 0..1 before the attacks ("clean") and after each.
    """
    robust, found = right.clone(), pixels.clone()
    accuracy = {"clean": robust.double().mean().item()}
    for name in names:
        left = robust.nonzero().flatten()
        if not len(left):
            break
        try:
            attack = prepared()
            attack.attacks_to_run = [name]
            images, answers = attack.run_standard_evaluation(pixels[left], labels[left], batch_size=batch_size)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            said.append(f"{name} failed ({type(error).__name__}: {reason}): the robust accuracy is an upper bound")
            continue
        broken = answers != labels[left]
        robust[left[broken]] = False
        found[left[broken]] = images[broken]
        accuracy[name] = robust.double().mean().item()
    return Attack(found, ~robust), accuracy


def square_attack(
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm,
    seed: int,
    queries: int = SQUARE_QUERIES,
    *,
    batch_size: int = 250,
) -> AutoAttackResult:
    """Square attack (Andriushchenko et al. 2020): a random search, which a hidden gradient does not stop.

    For l2 images must be at least 5 pixels high and wide. All else is as in ``autoattack``.
    """
    return autoattack(logits, x, labels, eps, norm, seed, attacks=["square"], queries=queries, batch_size=batch_size)


def _possible(attacks: Sequence[str], classes: int) -> tuple[list[str], list[str]]:
    """The attacks that exist for this number of classes, and warnings about those that do not."""
    if classes < 2:
        raise ValueError("the model has a single class: there is nothing to attack")
    names: list[str] = []
    notes: list[str] = []
    for name in attacks:
        instead = name
        if name == "apgd-t" and classes < 4:
            instead = "apgd-dlr" if classes == 3 else ""
        elif name == "apgd-dlr" and classes < 3:
            instead = ""
        if instead != name:
            notes.append(
                f"{name} does not exist for {classes} classes: " + (f"{instead} takes its place" if instead else "left out")
            )
        if instead and instead not in names:
            names.append(instead)
    targeted = [name for name in names if name in ("apgd-t", "fab-t")]
    if targeted and classes <= TARGETS:
        notes.append(f"{' and '.join(targeted)}: {classes - 1} target classes in place of {TARGETS}, all that there are")
    return names, notes


def _distinct(said: Sequence[str]) -> list[str]:
    """Each warning once. Of those that differ only in a number, since every batch gives one, that with the largest."""
    kept: dict[str, str] = {}
    for text in said:
        text = re.sub(r"\s*See \S+ for details\.", "", text)  # a page of the library
        number = re.compile(r"\d+(?:\.\d+)?")
        key = number.sub("#", text)
        before = kept.setdefault(key, text)
        if [float(n) for n in number.findall(text)] > [float(n) for n in number.findall(before)]:
            kept[key] = text
    return list(kept.values())


class _OnPixels:
    """The model as the library needs it: float32 images in [0, 1] -> float32 logits, a copy that it may modify."""

    def __init__(self, logits: Logits, dtype: torch.dtype, classes: int) -> None:
        self.logits, self.dtype, self.classes = logits, dtype, classes
        self.without_gradient = self.not_finite = False

    def __call__(self, pixels: Tensor) -> Tensor:
        if not len(pixels):  # Square calls the model without images where all margins are 0
            return pixels.new_zeros(0, self.classes)
        if torch.is_grad_enabled() and pixels.requires_grad:
            scores: Tensor = _Apart.apply(pixels, self)
            return scores
        with torch.no_grad():
            return self.on_x(pixels).detach().clone().float()

    def on_x(self, pixels: Tensor) -> Tensor:
        return self.logits(((pixels - 0.5) * X_PER_PIXEL).to(self.dtype))

    def warnings(self) -> list[str]:
        """What was wrong with the gradients that the attacks asked for."""
        found = []
        if self.without_gradient:
            found.append("the logits have no gradient in the image: attacks that use one saw 0")
        if self.not_finite:
            found.append("the logits' gradient in the image is not always finite: attacks that use one saw 0 there")
        return found


class _Apart(torch.autograd.Function):
    """A separate graph for each call: the library's backward() does not reach the parameters, and where the model's graph is
    cut the library gets a gradient of 0 instead of an exception."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, model: _OnPixels) -> Tensor:
        with torch.enable_grad():
            ctx.pixels = pixels.detach().requires_grad_()
            ctx.scores = model.on_x(ctx.pixels)
        ctx.model = model
        scores: Tensor = ctx.scores.detach().clone().float()
        return scores

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        gradient = None
        if ctx.scores.requires_grad:
            (gradient,) = torch.autograd.grad(
                ctx.scores, ctx.pixels, outer[0].to(ctx.scores.dtype), retain_graph=True, allow_unused=True
            )
        if gradient is None:
            ctx.model.without_gradient = True
            return torch.zeros_like(ctx.pixels), None
        if not gradient.isfinite().all():
            ctx.model.not_finite = True
            gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return gradient, None


class _Ear(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def _unnoticed(checks: Any) -> Iterator[list[str]]:
    """Collect the library's warnings, print nothing, and restore logger, tracing and random state afterwards."""
    said: list[str] = []
    logger = logging.getLogger(LOGGER)
    handlers, propagate, level, disabled = logger.handlers, logger.propagate, logger.level, logger.disabled
    # The library's check for defenses that differentiate inside counts calls under sys.settrace. It ends the trace of a
    # debugger or of coverage, and never resets its counts, so one such model would make all later ones suspect.
    trace, counts = sys.gettrace(), dict(checks.funcs)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None  # fork_rng does not restore it
    logger.handlers, logger.propagate, logger.disabled = [_Ear(said)], False, False
    logger.setLevel(logging.WARNING)
    checks.funcs.update(dict.fromkeys(counts, 0))
    try:
        with torch.random.fork_rng(devices), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        # Only the library's: those of the model were shown when it classified the clean images.
        own = [w for w in caught if "pyautoattack" in w.filename]
        said.extend(str(w.message) for w in own if not issubclass(w.category, (DeprecationWarning, FutureWarning)))
    finally:
        logger.handlers, logger.propagate, logger.disabled = handlers, propagate, disabled
        logger.setLevel(level)
        sys.settrace(trace)
        if mps is not None:
            torch.mps.set_rng_state(mps)
        checks.funcs.update(counts)


# Whether the numbers can be trusted


def reliability(  # noqa: PLR0913  the parameters of the attacks that it makes
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    eps: float = 8 / 255,
    norm: Norm = "linf",
    *,
    steps: int = 20,
    queries: int = 200,
    max_images: int = 64,
) -> list[str]:
    """Reasons not to trust this model's robust accuracy, in plain words; empty if nothing speaks against it.

    They are symptoms of gradient masking (Athalye et al. 2018, Sec. 3.1; Carlini et al. 2019), looked for on the first images
    of x. A share of images counts if it is above 5 %: of 64 images that is four, more than the random start of an attack
    changes. The cost is about 4 * steps + queries model calls.

    Args:
        generator: CPU generator of all random numbers.
        eps: a radius at which the model is evaluated, on the [0, 1] scale.
        steps: of the white-box attack at eps, of length eps / 4, long enough to cross the ball and short enough to converge.
        queries: of the black-box attack; 0 skips it, and then pyautoattack is not needed.
        max_images: the first images of x that are used.

    Raises:
        ValueError: ``norm`` is neither linf nor l2.
        ConfigError: pyautoattack is needed and not installed.
    """
    _check(norm)
    x, labels = x[:max_images].detach(), labels[:max_images]
    # Kernels may sum in another order from call to call, hence AutoAttack's tolerance.
    with torch.no_grad():
        first, second = logits(x).detach().clone().float(), logits(x).detach().float()
    reasons = _symptoms_in_logits(first, second)
    right = (~_wrong(first, labels)).nonzero().flatten()
    if not len(right):
        return reasons  # with no image left to break, the robust accuracy of 0 is right
    try:
        reasons += _symptoms_in_gradients(logits, x[right], labels[right])
    except RuntimeError as error:
        return [*reasons, f"the gradient in the image cannot be computed: {(str(error).splitlines() or [''])[0]}"]

    def broken(radius: float, count: int, stride: float, start: Tensor | None = None) -> Tensor:
        return pgd(logits, x, labels, radius, norm, generator, count, stride, start=start).broken

    # It starts in the small ball: a random start in the large one is noise, which breaks most images without any gradient.
    near = x + X_PER_PIXEL * eps * _uniform_in_ball(x, norm, generator)
    far = 1.0 if norm == "linf" else x[0].numel() ** 0.5
    unbounded = broken(far, 2 * steps, far / 10, near)
    one_step, attacked, doubled = broken(eps, 1, eps), broken(eps, steps, eps / 4), broken(2 * eps, steps, eps / 2)
    reasons += _symptoms_in_attacks(unbounded, one_step, attacked, doubled)
    if queries:
        seed = int(torch.randint(2**31, (), generator=generator))
        blind = square_attack(logits, x, labels, eps, norm, seed, queries)
        missed = (~blind.robust & ~attacked).double().mean().item()
        if missed > _threshold(len(x)):
            reasons.append(f"an attack without gradients breaks {missed:.0%} of the images that the one with gradients cannot")
        reasons.extend(text for text in blind.warnings if text.startswith("square failed"))
    return reasons


def _threshold(images: int) -> float:
    """The share of the images above which a symptom counts: 5 %, or more than one image where that is less."""
    return max(SYMPTOM, 1.5 / images)


def _symptoms_in_logits(first: Tensor, second: Tensor) -> list[str]:
    """Symptoms in the logits [B, K] of two calls on the same images."""
    reasons = []
    if not first.isfinite().all():
        reasons.append("the logits of unchanged images are not finite")
    elif ((first - second).norm(dim=1) > 1e-4 * first.norm(dim=1).clamp_min(1e-10)).any():
        reasons.append("two calls on the same images differ: a random defense must be attacked in expectation")
    # The tolerance is that of bfloat16.
    if first.amin() > -1e-2 and first.amax() < 1 + 1e-2 and ((first.sum(dim=1) - 1).abs() < 1e-2).all():
        reasons.append("the outputs are probabilities, not logits: a second softmax flattens the loss")
    return reasons


def _symptoms_in_gradients(logits: Logits, x: Tensor, labels: Tensor) -> list[str]:
    """Symptoms in the gradient in images that are classified correctly."""
    _, gradient, exists = _ascent(logits, x, labels)
    if not exists:
        return ["the logits have no gradient in the image: the graph is cut"]
    size = gradient.flatten(1).abs().amax(dim=1)  # of NaN, NaN
    shares = {"0": (size == 0).double().mean(), "not finite": (~size.isfinite()).double().mean()}
    return [
        f"the gradient in the image is {words} for {share:.0%} of the images"
        for words, share in shares.items()
        if share > SYMPTOM
    ]


def _symptoms_in_attacks(unbounded: Tensor, one_step: Tensor, attacked: Tensor, doubled: Tensor) -> list[str]:
    """Symptoms in the outcomes of four attacks, each as the broken images, bool [B].

    Args:
        unbounded: of the attack in a ball that contains every image.
        one_step: at the radius of interest, with one step.
        attacked: at that radius, with all steps.
        doubled: at twice that radius, with all steps.
    """
    reasons = []
    survived = 1 - unbounded.double().mean().item()
    # The attacker chooses the image, so a sound model has an accuracy of 0 here, not the 1/K of chance.
    if survived > SYMPTOM:
        reasons.append(f"an attack without bounds leaves {survived:.0%} accuracy: it cannot find images that surely exist")
    for words, weak, strong in (("more steps", one_step, attacked), ("a larger eps", attacked, doubled)):
        before, after = (1 - found.double().mean().item() for found in (weak, strong))
        if after > before + _threshold(len(weak)):
            reasons.append(f"{words} helped the defense: accuracy rose from {before:.0%} to {after:.0%}")
    return reasons
