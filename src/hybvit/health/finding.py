"""One thing that was looked at, and what would mend it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

State = Literal["ok", "absent", "warning", "broken"]
WORSE: tuple[State, ...] = ("ok", "absent", "warning", "broken")  # each is worse than those before it


class Finding(NamedTuple):
    """What was found.

    Attributes:
        section: the heading that it belongs to.
        name: what was looked at.
        words: what was found, for a reader.
        state: ok; absent, where it is optional; warning, where hybvit works, but slower or not all of it; broken, where it is
            needed.
        cure: what would mend it; empty where nothing is to be mended.
        facts: what was found, for a program.
    """

    section: str
    name: str
    words: str
    state: State = "ok"
    cure: str = ""
    facts: dict[str, Any] = {}


def worst(findings: list[Finding]) -> State:
    """The worst state of all."""
    return max((finding.state for finding in findings), key=WORSE.index, default="ok")
