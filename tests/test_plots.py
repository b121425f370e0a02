"""What the plots that no suite draws show (those of the suites: tests/recorded.py)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hybvit.evaluation import plots

from .recorded import drawn


@pytest.fixture(autouse=True)
def _not_rendered(monkeypatch):
    monkeypatch.setattr(plots, "svg", drawn)


def test_points_stand_in_the_middle_of_their_own_intervals():
    words, axes = plots.intervals({"one": (2.0, 1.5, 4.0), "_two": (5.0, 4.0, 5.5)}, "seconds")
    assert words == "seconds"
    assert axes["words"][-2:] == [" _two", "one"]  # from below
    assert axes["errors"] == [[[4.0, 0], [5.5, 0]], [[1.5, 1], [4.0, 1]]]
    assert [line for line in axes["lines"] if len(line[0]) == 1 and line[0] in ([2.0], [5.0])] == [[[5.0], [0]], [[2.0], [1]]]


def test_a_share_stands_in_its_interval_beside_the_wanted_one():
    (axes,) = plots.shares({"a": SimpleNamespace(value=0.8, low=0.7, high=0.95)}, "share", wanted=0.9)
    assert axes["errors"] == [[[pytest.approx(0.7), 0], [pytest.approx(0.95), 0]]]
    assert [[0.8], [0]] in axes["lines"]
    assert [[0.9, 0.9], [0, 1]] in axes["lines"]


def test_a_power_law_is_a_line_of_its_exponent_through_the_middle_of_the_points():
    (axes,) = plots.power_laws({"bits": ([(1.0, 8.0), (4.0, 4.0), (16.0, 2.0)], {"ours": -0.5, "theirs": 1.0})}, "images")
    ours, theirs, points = axes["lines"]
    assert ours == [[1.0, 4.0, 16.0], pytest.approx([8.0, 4.0, 2.0])]
    assert theirs == [[1.0, 4.0, 16.0], pytest.approx([1.0, 4.0, 16.0])]
    assert points == [[1.0, 4.0, 16.0], [8.0, 4.0, 2.0]]
    assert {"images", "bits", "ours: -0.50", "theirs: 1.00", "log"} <= set(axes["words"])


def test_published_figures_stand_beside_ours():
    ours = SimpleNamespace(value=90.0, low=88.0, high=93.0)
    alone = SimpleNamespace(value=70.0, low=None, high=None)
    (axes,) = plots.paired({"accuracy": [("HybViT", 95.9, ours), ("ViT", None, alone)]})
    assert [[95.9], [1]] in axes["lines"]
    assert [[90.0], [1]] in axes["lines"]
    assert [[70.0], [0]] in axes["lines"]
    assert axes["errors"] == [[[88.0, 1], [93.0, 1]]]
    below, above = plots.paired({"FID | distance": [("HybViT", 26.4, ours)]})  # not comparable: two axes
    assert [[26.4], [0]] in below["lines"]
    assert [[90.0], [0]] in above["lines"]
    assert [[90.0], [0]] not in below["lines"]
    assert "FID, published" in below["words"]
    assert "distance, ours" in above["words"]


def test_a_cell_of_a_heat_map_is_darkest_at_the_top():
    axes, _ = plots.heat_map({"fog": [10.0, 40.0], "snow": [20.0, 30.0]}, [1, 2], "severity", "error %")
    assert axes["cells"] == [[[10.0, 40.0], [20.0, 30.0]]]
    assert axes["texts"] == [[0, 0, "10"], [1, 0, "40"], [0, 1, "20"], [1, 1, "30"]]


def test_the_cells_of_a_confusion_matrix_are_shares_of_their_rows():
    (axes,) = plots.confusion([[8, 2], [0, 5]], ["cat", "$dog$"])
    assert axes["cells"] == [[[0.8, 0.2], [0.0, 1.0]]]
    assert axes["texts"] == [[0, 0, "8"], [1, 0, "2"], [1, 1, "5"]]
    assert axes["words"][-2:] == ["cat", r"\$dog\$"]
