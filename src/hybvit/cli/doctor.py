"""`hybvit doctor`: what this machine and this installation offer, and what would mend each trouble."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from itertools import groupby

from ..errors import ConfigError, quantity
from ..health.finding import Finding, worst
from .arguments import ArgumentParser
from .next_step import suggest
from .output import hanging

CHECKS = ("packages.packages", "packages.extras", "machine.devices", "machine.threads", "machine.memory", "machine.compiler",
          "places.caches", "places.models", "places.data_sets")  # fmt: skip


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit doctor",
        description="Say what this machine and this installation offer: versions, extras, devices, threads, memory, compiler, "
        "caches, models and data sets; and what would mend each trouble. It changes nothing. The exit code is 0 unless "
        "something that hybvit needs is broken.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(arguments: list[str]) -> None:
    args = build_parser().parse_args(arguments)
    findings = [finding for check in CHECKS for finding in examine(check)]
    if args.json:
        print(json.dumps({"state": worst(findings), "findings": [finding._asdict() for finding in findings]}))
    else:
        print("\n".join(describe(findings)))
    if broken := [finding.name for finding in findings if finding.state == "broken"]:
        raise ConfigError(f"needed, but broken: {', '.join(broken)}; what would mend it is said above")
    if not args.json:
        suggest("doctor")


def examine(check: str) -> Iterator[Finding]:
    """What a check finds. One that fails is a finding, and the next ones go on."""
    module, _, function = check.partition(".")
    try:
        yield from getattr(importlib.import_module(f"..health.{module}", __package__), function)()
    except Exception as error:  # such as an installation of torch that cannot be imported, which `packages` explains
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        yield Finding(function, "the check itself", f"cannot be made ({reason})", "warning", "see what is broken above")


def describe(findings: list[Finding]) -> Iterator[str]:
    """A line for each finding, below the heading of its section, and one for what would mend it."""
    width = max(len(finding.name) for finding in findings) + 2
    for section, group in groupby(findings, key=lambda finding: finding.section):
        yield section.replace("_", " ")
        for finding in group:
            state = finding.state.upper() if finding.state == "broken" else finding.state
            yield hanging(f"  {state:<9}{finding.name:<{width}}{finding.words}", 11 + width)
            if finding.cure:
                yield hanging(f"{'':<{11 + width}}-> {finding.cure}", 14 + width)
    warnings = sum(finding.state == "warning" for finding in findings)
    if worst(findings) != "broken":
        yield f"everything that is needed works; {quantity(warnings, 'warning') if warnings else 'no warnings'}"
