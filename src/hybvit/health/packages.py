"""The installed packages beside those that hybvit asks for. Nothing here needs them, except for ``packaging``."""

from __future__ import annotations

import importlib
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from .. import __version__
from .finding import Finding

OPTIONAL = {  # what a lean installation may leave out -> who needs it
    "timm": "evaluating timm's models, bench",
    "huggingface-hub": "models and data sets of the hub",
    "matplotlib": "reports, show-data, corruptions",
    "scikit-learn": "the digits, evaluate",
    "torch-fidelity": "evaluate",
    "scipy": "evaluate, calibrate, certificates, corruptions",
}
MODULES = {  # that must be importable for anything to work: package -> module
    "torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "pillow": "PIL", "pyyaml": "yaml",
    "safetensors": "safetensors", "tqdm": "tqdm",
}  # fmt: skip
LISTED = 6  # packages of an extra that are named with their versions
REINSTALL = "pip install --force-reinstall --no-deps hybvit"


def packages() -> Iterator[Finding]:
    """hybvit, Python, and every package that hybvit always asks for."""
    yield hybvit_itself()
    yield Finding("versions", "python", platform.python_version(), facts={"version": platform.python_version()})
    for requirement in requirements():
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield package(requirement)


def hybvit_itself() -> Finding:
    try:
        installed = version("hybvit")
    except PackageNotFoundError:
        cure = "pip install . in the clone; without it no versions can be compared"
        return Finding("versions", "hybvit", f"{__version__}, not installed", "warning", cure, {"version": __version__})
    facts = {"version": __version__, "installed": installed}
    if installed != __version__:
        words = f"{__version__}, installed as {installed}, whose requirements follow"
        return Finding("versions", "hybvit", words, "warning", "pip install . in the clone", facts)
    return Finding("versions", "hybvit", __version__, facts=facts)


def requirements() -> list[Any]:
    """What the installed hybvit asks for, as ``packaging.requirements.Requirement``; with an extra, its marker says so."""
    from packaging.requirements import Requirement

    try:
        return [Requirement(text) for text in requires("hybvit") or ()]
    except PackageNotFoundError:
        return []


def package(requirement: Any) -> Finding:
    """A package that hybvit asks for: whether it is there, fits, and can be imported."""
    name, facts = requirement.name.lower().replace("_", "-"), compare(requirement)
    said = {"ok": facts["version"], "missing": "not installed"}.get(facts["fit"], f"{facts['version']} is {facts['fit']}")
    words = f"{said} ({facts['allowed']})" if facts["allowed"] else said
    cure = f"pip install '{name}{requirement.specifier}'"
    if facts["fit"] == "missing" and name in OPTIONAL:
        return Finding("versions", name, f"{words}; for {OPTIONAL[name]}", "warning", cure, facts)
    if facts["fit"] == "too new":
        return Finding("versions", name, f"{words}; not tried with hybvit", "warning", cure, facts)
    if facts["fit"] != "ok":
        return Finding("versions", name, words, "broken", cure, facts)
    try:
        if name in MODULES:
            importlib.import_module(MODULES[name])
    except Exception as error:  # torchvision raises RuntimeError beside a torch that it was not built for
        reason = " ".join(str(error).split())[:150]
        pair = (
            "pip install --force-reinstall torch torchvision, which fit each other only in pairs" if "torch" in name else cure
        )
        return Finding("versions", name, f"{words}; cannot be imported: {reason}", "broken", pair, {**facts, "error": reason})
    return Finding("versions", name, words, facts=facts)


def compare(requirement: Any) -> dict[str, Any]:
    """The installed version, the allowed ones, and whether it fits: ok, missing, too old or too new."""
    from packaging.version import Version

    facts: dict[str, Any] = {"version": None, "allowed": str(requirement.specifier), "fit": "missing"}
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return facts
    lowest = [Version(part.version) for part in requirement.specifier if part.operator in (">=", ">", "==", "~=")]
    fits = requirement.specifier.contains(found, prereleases=True)
    fit = "ok" if fits else "too old" if any(Version(found) < least for least in lowest) else "too new"
    return {**facts, "version": found, "fit": fit}


def extras() -> Iterator[Finding]:
    """Each extra: whether all of its packages are there, and fit."""
    asked: dict[str, dict[str, dict[str, Any]]] = {}
    for requirement in requirements():
        for extra in re.findall(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker)):
            asked.setdefault(extra, {})[requirement.name] = compare(requirement)
    for name, found in asked.items():
        fits = {package: facts["fit"] for package, facts in found.items() if facts["fit"] != "ok"}
        if not fits:
            listed = ", ".join(f"{package} {facts['version']}" for package, facts in found.items())
            words = listed if len(found) <= LISTED else f"all {len(found)} packages"
            yield Finding("extras", name, words, facts=found)
            continue
        words = ", ".join(f"{package} is {fit}" for package, fit in fits.items())
        wrong = any(fit != "missing" for fit in fits.values())
        yield Finding("extras", name, words, "warning" if wrong else "absent", f"pip install 'hybvit[{name}]'", found)
