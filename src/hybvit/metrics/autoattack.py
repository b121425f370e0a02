"""AutoAttack (Croce & Hein 2020), from the package pyautoattack. Shapes and scales are those of :mod:`robustness`."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from ..waiting import Progress
from .robustness import X_PER_PIXEL, Attack, Logits, Norm, check_norm, misclassified

LOGGER = "auto-attack"  # the name of the library's logger
SQUARE_QUERIES = 5000  # the library's
NAMES = {"linf": "Linf", "l2": "L2"}  # of the norms in the library
AUTOATTACK_CURE = "needs pyautoattack: pip install 'hybvit[eval]'"
TARGETS = 9  # classes that the targeted attacks try, besides the label
ITERATIONS = 100  # of all attacks but square, as the library has them
GRADIENT = 3  # forward passes that a gradient takes about as long as


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
    progress: str | None = None,
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
        batch_size: images in one model call. The targeted attacks fill it up: they try several target classes beside each
            other, and an image that falls is not attacked with those that are left.
        progress: what to call it while somebody waits for it; None shows nothing.

    Raises:
        ValueError: ``norm`` is neither linf nor l2, or the model has a single class.
        ConfigError: pyautoattack is not installed.
    """
    check_norm(norm)
    library, checks = _pyautoattack()
    x = x.detach()
    with torch.no_grad():  # not caught below: a model that cannot classify its input is the caller's error
        scores = torch.cat([logits(part).detach() for part in x.split(batch_size)])
    model = _OnPixels(logits, x.dtype, scores.shape[1])

    def prepared() -> Any:
        attack = library.AutoAttack(model, eps=float(eps), norm=NAMES[norm], seed=seed, version=version, device=x.device)
        _adapt(attack, model, queries, batch_size)
        return attack

    pixels = x.float() / X_PER_PIXEL + 0.5
    with _unnoticed(checks) as said:
        names, notes = _possible(prepared().attacks_to_run if attacks is None else attacks, model.classes)
        said.extend(notes)
        right = ~misclassified(scores, labels)
        most = [len(x) * passes(name, model.classes, queries) for name in names]
        with _shown(model, progress, most) as done:
            found, accuracy = _attack_in_turn(names, prepared, pixels, labels, right, batch_size, said, done)
        checks.check_square_sr(accuracy, logger=logging.getLogger(LOGGER))
    said.extend(model.warnings())
    changed = (found.images != pixels).flatten(1).any(dim=1)[:, None, None, None]
    images = torch.where(changed, ((found.images - 0.5) * X_PER_PIXEL).to(x.dtype), x)
    return AutoAttackResult(~found.broken, images, distinct(said))


def has_autoattack() -> bool:
    """Whether the library is installed."""
    return importlib.util.find_spec("pyautoattack") is not None


def _pyautoattack() -> tuple[Any, Any]:
    """The library and its module of checks; ConfigError where it is not installed."""
    try:
        return importlib.import_module("pyautoattack"), importlib.import_module("pyautoattack.checks")
    except ImportError as error:
        raise ConfigError(f"AutoAttack {AUTOATTACK_CURE}") from error


def _attack_in_turn(
    names: Sequence[str],
    prepared: Callable[[], Any],
    pixels: Tensor,
    labels: Tensor,
    right: Tensor,
    batch_size: int,
    said: list[str],
    done: Callable[[], None],
) -> tuple[Attack, dict[str, float]]:
    """Run the attacks one at a time, each on the images that are left, so that one that raises does not discard what the
    others found. Each reseeds itself, so the outcome is that of a single run.

    Args:
        prepared: makes a new instance of the library's AutoAttack.
        pixels: float32 [B, C, H, W] in [0, 1].
        right: bool [B], which images the model classifies correctly before the attacks.
        said: a list to which a warning is appended for each attack that raises.
        done: called after each attack.

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
        finally:
            done()
        broken = answers != labels[left]
        robust[left[broken]] = False
        found[left[broken]] = images[broken]
        accuracy[name] = robust.double().mean().item()
    return Attack(found, ~robust), accuracy


def _adapt(attack: Any, model: _OnPixels, queries: int, batch_size: int) -> None:
    """Change the library's AutoAttack: silent, with this many queries of square, and with targets beside each other."""
    attack.verbose = False
    attack.square.n_queries = queries
    for targeted in (attack.apgd_targeted, attack.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, model.classes - 1)
    _try_targets_together(attack, model, batch_size)


def _try_targets_together(attack: Any, model: _OnPixels, rows: int) -> None:
    """Let the targeted attacks of an AutoAttack try several target classes beside each other, up to ``rows`` rows at a time.

    The library tries one after the other. On a CPU, nine batches of a few images take several times as long as one.
    """
    apgd, fab, untargeted = attack.apgd_targeted, attack.fab, attack.fab.perturb
    gradients = fab.get_diff_logits_grads_batch_targeted

    def run_apgd(x: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        apgd.init_hyperparam(x)
        apgd.y_target = targets
        images: Tensor = apgd.attack_single_run(x, labels)[3]
        return images

    def run_fab(x: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        attacked = targets[model(x).argmax(dim=1) == labels]  # the library takes no others
        fab.target_class = 1  # instead of one class for all rows, which is left unused:
        fab.get_diff_logits_grads_batch_targeted = lambda images, of, unused: gradients(images, of, attacked)
        images: Tensor = fab.attack_single_run(x, labels, is_targeted=True)
        moved = (images - x).flatten(1)
        length = moved.abs().amax(dim=1) if fab.norm == "Linf" else moved.norm(dim=1)
        return torch.where((length <= fab.eps)[:, None, None, None], images, x)  # FAB looks for the nearest, however far

    apgd.perturb = lambda x, labels: _by_target(apgd, run_apgd, model, x, labels, rows)
    fab.perturb = lambda x, labels: _by_target(fab, run_fab, model, x, labels, rows) if fab.targeted else untargeted(x, labels)


def _by_target(
    attack: Any, run: Callable[[Tensor, Tensor, Tensor], Tensor], model: _OnPixels, x: Tensor, labels: Tensor, rows: int
) -> Tensor:
    """A targeted attack on x [B, C, H, W] -> the images, those that fell replaced.

    Args:
        attack: the library's, of which only the seed and the number of target classes are used.
        run: (x, labels, target classes), a row for each image and class -> images.
        rows: the most rows of a call of ``run``, unless there are more images.
    """
    torch.random.manual_seed(attack.seed)
    images, robust = x.clone(), model(x).argmax(dim=1) == labels
    rank, last = 2, attack.n_target_classes + 1  # of the target class by its logit; the first is the label's
    while rank <= last and bool(robust.any()):
        left = robust.nonzero().flatten()
        ranks = range(rank, min(last + 1, rank + max(1, rows // len(left))))
        order, at = model(x[left]).sort(dim=1).indices, left.repeat(len(ranks))
        found = run(x[at], labels[at], torch.cat([order[:, -r] for r in ranks]))
        fooled = model(found).argmax(dim=1) != labels[at]
        for candidate, fell in zip(found.split(len(left)), fooled.split(len(left)), strict=True):
            new = fell & robust[left]  # of several classes the first counts
            images[left[new]] = candidate[new]
            robust[left[new]] = False
        rank = ranks.stop
    return images


@contextmanager
def _shown(model: _OnPixels, what: str | None, most: Sequence[int]) -> Iterator[Callable[[], None]]:
    """Show how far attacks are that take at most so many forward passes each -> what to call when one of them is done."""
    with Progress(sum(most), what or "", shown=what is not None, at_most=True) as progress:
        model.passed, each = progress.part, iter(most)
        yield lambda: progress.update(next(each))


def passes(attack: str, classes: int, queries: int = SQUARE_QUERIES) -> int:
    """What one of the library's attacks costs for an image at most, in forward passes; a gradient counts two more. An image
    that falls takes no more of them."""
    if attack == "square":
        return queries
    of_target = ITERATIONS * (GRADIENT + 1 if attack.startswith("fab") else GRADIENT)
    return of_target * (min(TARGETS, classes - 1) if attack in ("apgd-t", "fab-t") else 1)


def square_attack(  # noqa: PLR0913  as autoattack
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm,
    seed: int,
    queries: int = SQUARE_QUERIES,
    *,
    batch_size: int = 250,
    progress: str | None = None,
) -> AutoAttackResult:
    """Square attack (Andriushchenko et al. 2020): a random search, which a hidden gradient does not stop.

    For l2 images must be at least 5 pixels high and wide. All else is as in ``autoattack``.
    """
    return autoattack(
        logits, x, labels, eps, norm, seed, attacks=["square"], queries=queries, batch_size=batch_size, progress=progress
    )


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


def distinct(said: Sequence[str]) -> list[str]:
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
        self.passed: Callable[[float], object] = bool  # gets how many forward passes each call is worth

    def __call__(self, pixels: Tensor) -> Tensor:
        with_gradient = torch.is_grad_enabled() and pixels.requires_grad
        self.passed(len(pixels) * (GRADIENT if with_gradient else 1))
        if not len(pixels):  # Square calls the model without images where all margins are 0
            return pixels.new_zeros(0, self.classes)
        if with_gradient:
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
