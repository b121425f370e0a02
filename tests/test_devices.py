from __future__ import annotations

import pytest

from hybvit import devices
from hybvit.devices import alternating

SECONDS = {"fast": 0.1, "slow": 2.0}


@pytest.fixture
def clocked(monkeypatch):
    """Calls that take the seconds of SECONDS on a clock that stands still otherwise, and the list of calls made."""
    now, made = [0.0], []
    monkeypatch.setattr(devices.time, "perf_counter", lambda: now[0])

    def call(name):
        made.append(name)
        now[0] += SECONDS[name]

    return {name: lambda name=name: call(name) for name in SECONDS}, made


def test_repeats_alternate_after_one_call_of_each(clocked):
    calls, made = clocked
    taken = alternating(calls, 3)
    assert made == ["fast", "slow"] * 4
    assert {name: pytest.approx(values) for name, values in taken.items()} == {"fast": [0.1] * 3, "slow": [2.0] * 3}


def test_a_short_call_is_made_as_often_as_the_span_has_room(clocked):
    calls, made = clocked
    lines: list[str] = []
    taken = alternating(calls, 2, span=1.0, say=lines.append)
    assert made == ["fast", "slow", *["fast"] * 10, "slow", *["fast"] * 10, "slow"]
    assert taken["fast"] == pytest.approx([0.1, 0.1])  # of one call
    assert taken["slow"] == pytest.approx([2.0, 2.0])
    assert lines == ["  fast: 10 calls a repeat", "  slow: 1 calls a repeat"]
