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
    assert lines == ["  fast: 10 calls a repeat", "  slow: 1 call a repeat"]


def test_repeats_end_before_they_exceed_the_limit_but_not_before_the_third(clocked):
    calls, _ = clocked  # a repeat takes 2.1 seconds
    for limit, repeats in ((0.0, 3), (10.4, 3), (10.6, 4), (1000.0, 9)):  # the warm-up counts
        assert len(alternating(calls, 9, limit=limit)["slow"]) == repeats
    assert len(alternating(calls, 2, limit=0.0)["slow"]) == 2


def test_the_memory_of_a_call_is_what_it_holds_at_its_peak():
    import torch

    def call() -> None:
        held = torch.ones(40 * 2**18)  # 40 MiB
        held + 1

    found = [devices.working_memory(call, torch.device("cpu")) for _ in range(2)]
    if found[0] is None:
        pytest.skip("this system does not tell the peak of a process's memory")
    assert found == [pytest.approx(80, abs=10)] * 2  # what the first call freed does not hide what the second takes
    assert devices.working_memory(lambda: None, torch.device("cpu")) == pytest.approx(0, abs=5)
    assert devices.working_memory(lambda: None, torch.device("meta")) is None
