"""Plots as SVG text: white background, readable without color. One function per kind of figure."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

INK = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#475569")
STYLES = ("-", "--", "-.", ":")
HALF = 28  # characters of a legend that half of a figure's width holds


def _axes(width: float = 4, height: float = 2.8) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    same = {"svg.hashsalt": "hybvit"}  # otherwise the ids differ with every rendering
    with matplotlib.rc_context(same | {"svg.fonttype": "none"}):  # words are text: half the size, and they can be searched
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def literal(text: str) -> str:
    """A name as matplotlib shows it letter by letter.

    Without this, what stands between two $ is read as a formula, and a name that begins with _ has no place in a legend.
    """
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def curve(points: Sequence[tuple[float, float]], x: str, y: str, log: bool = False) -> str:
    """One line."""
    figure, axes = _axes()
    axes.plot(*zip(*points, strict=True), color=INK[0], linewidth=1.5)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if log:
        log_y(axes)
    return svg(figure)


def log_y(axes: Any) -> None:
    """Make the y-axis of what is drawn logarithmic, with as many labels as can be read, over part of a decade or over many."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    subs = (1, 1.5, 2, 3, 5, 7) if decades < 1.2 else (1, 2, 5) if decades < 3.4 else (1,)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)) if decades < 0.6 else LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, from_zero: bool = True, markers: bool = True
) -> str:
    """Several named lines, with or without markers at their points. A long legend stands below, where it covers none."""
    below = len(lines) > 4
    columns = 2 if max(map(len, lines), default=0) <= HALF else 1
    figure, axes = _axes(4.6, 3 + (0.2 * -(-len(lines) // columns) if below else 0))
    marker = "o" if markers else ""
    for i, (name, points) in enumerate(lines.items()):
        axes.plot(*zip(*points, strict=True), STYLES[i % 4], color=INK[i % 6], marker=marker, markersize=3, label=literal(name))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if from_zero:
        axes.set_ylim(bottom=0)
    if below:
        figure.legend(fontsize=8, loc="outside lower left", ncols=columns)
    else:
        axes.legend(fontsize=8)
    return svg(figure)


def histograms(values: Mapping[str, Sequence[float]], x: str, bins: int = 50) -> str:
    """Overlaid densities of several samples; the outermost 0.5 % of all values are clipped on each side."""
    import numpy as np

    figure, axes = _axes(4.6, 3)
    everything = np.concatenate([np.asarray(part, dtype=float) for part in values.values()])
    low, high = np.quantile(everything, [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for i, (name, part) in enumerate(values.items()):
        density, _ = np.histogram(np.clip(part, edges[0], edges[-1]), edges, density=True)
        axes.stairs(density, edges, fill=True, alpha=0.25, color=INK[i % 6])
        axes.stairs(density, edges, color=INK[i % 6], label=literal(name))
    axes.set_xlabel(x)
    axes.set_yticks([])
    axes.legend(fontsize=8)
    return svg(figure)


def histogram_panels(values: Mapping[str, Sequence[float]], x: str, bins: int = 30) -> str:
    """One small histogram per sample, all on the same x-axis."""
    import numpy as np
    from matplotlib.figure import Figure

    across = min(len(values), 5)
    down = -(-len(values) // across)
    figure = Figure(figsize=(1.7 * across, 1.3 * down + 0.4), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, squeeze=False).ravel()
    everything = np.concatenate([np.asarray(part, dtype=float) for part in values.values()])
    edges = np.linspace(everything.min(), max(everything.max(), everything.min() + 1e-6), bins + 1)
    for axes, (name, part) in zip(grid, values.items(), strict=False):
        density, _ = np.histogram(part, edges, density=True)
        axes.stairs(density, edges, fill=True, color=INK[0], alpha=0.7)
        axes.set_title(literal(f"{name} ({len(part)})"), fontsize=8)
        axes.set_yticks([])
        axes.tick_params(axis="x", labelsize=7)
    for axes in grid[len(values) :]:
        axes.set_visible(False)
    figure.supxlabel(x, fontsize=8)
    return svg(figure)


def reliability(confidence: Sequence[float], accuracy: Sequence[float], count: Sequence[int], title: str) -> str:
    """Accuracy against confidence in equal-width bins, and the share of images per bin (Figures 6 and 12 of the paper)."""
    figure, axes = _axes(3.6, 3.6)
    draw_reliability(axes, confidence, accuracy, count, title)
    return svg(figure)


def draw_reliability(
    axes: Any, confidence: Sequence[float], accuracy: Sequence[float], count: Sequence[int], title: str
) -> None:
    bins = len(count)
    centers = [(i + 0.5) / bins for i in range(bins)]
    heights = [value if n else 0 for value, n in zip(accuracy, count, strict=True)]
    axes.bar(centers, heights, 1 / bins, color=INK[0], edgecolor="white", linewidth=0.5, label="accuracy")
    gaps = [c - a if n else 0 for c, a, n in zip(confidence, heights, count, strict=True)]
    hatched = {"facecolor": "none", "edgecolor": INK[1], "hatch": "/////", "linewidth": 0.6}  # seen on the bars and above them
    axes.bar(centers, gaps, 1 / bins, heights, **hatched, label="gap")
    total = max(sum(count), 1)
    axes.plot(centers, [n / total for n in count], color=INK[5], linewidth=1, marker=".", label="share of images")
    axes.plot([0, 1], [0, 1], "--", color="black", linewidth=0.8)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy, share of images", title=title)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3, frameon=False)  # on no bar


def bars(values: Mapping[str, float], x: str) -> str:
    """Named horizontal bars."""
    figure, axes = _axes(4.2, 0.7 + 0.24 * len(values))
    names = list(values)[::-1]
    axes.barh(range(len(names)), [values[name] for name in names], color=INK[0])
    axes.set_yticks(range(len(names)), [literal(name) for name in names])
    axes.set_xlabel(x)
    axes.tick_params(labelsize=8)
    return svg(figure)


def shares(values: Mapping[str, Any], x: str, wanted: float) -> str:
    """Named shares with their intervals (value, low, high), and a line at the wanted one."""
    figure, axes = _axes(4.4, 0.8 + 0.22 * len(values))
    names = list(values)[::-1]
    for y, share in enumerate(values[name] for name in names):
        error = [[max(share.value - share.low, 0)], [max(share.high - share.value, 0)]]
        axes.errorbar([share.value], [y], xerr=error, fmt="o", color=INK[0], markersize=4, capsize=2)
    axes.axvline(wanted, linestyle="--", color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), [literal(name) for name in names])
    axes.set_xlabel(x)
    axes.tick_params(labelsize=8)
    return svg(figure)


def intervals(values: Mapping[str, tuple[float, float, float]], x: str) -> str:
    """Named points (value, low, high) with their intervals, from 0 on."""
    figure, axes = _axes(5.4, 0.7 + 0.2 * len(values))
    names = list(values)[::-1]
    for y, (value, low, high) in enumerate(values[name] for name in names):
        axes.errorbar([value], [y], xerr=[[value - low], [high - value]], fmt="o", color=INK[0], markersize=4, capsize=2)
    axes.set_yticks(range(len(names)), [literal(name) for name in names])
    axes.set_ylim(-0.5, len(names) - 0.5)  # of two rows the points would lie on the frame
    axes.set_xlim(left=0)
    figure.supxlabel(x, fontsize=9)  # of the figure: beside long names the axes are too narrow for it
    axes.tick_params(labelsize=8)
    return svg(figure)


def power_laws(panels: Mapping[str, tuple[Sequence[tuple[float, float]], Mapping[str, float]]], x: str) -> str:
    """Panels of points on logarithmic axes, with a line through their middle for each named exponent: name of the y-axis ->
    (points, exponents)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(3.6 * len(panels), 3), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False).ravel()
    for axes, (title, (points, exponents)) in zip(grid, panels.items(), strict=True):
        at, values = zip(*points, strict=True)
        middle = [math.exp(sum(map(math.log, part)) / len(part)) for part in (at, values)]
        for i, (name, exponent) in enumerate(exponents.items()):
            line = [middle[1] * (size / middle[0]) ** exponent for size in at]
            axes.plot(at, line, STYLES[i % 4], color=INK[1 + i % 5], linewidth=1.2, label=literal(f"{name}: {exponent:.2f}"))
        axes.plot(at, values, "o", color=INK[0], markersize=5)
        axes.set(xscale="log", xlabel=x, ylabel=title)
        axes.set_xticks(at, [f"{size:g}" for size in at])
        axes.xaxis.set_minor_formatter(NullFormatter())
        log_y(axes)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return svg(figure)


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """True class by row, predicted class by column; shading is the share of the row."""
    from matplotlib.figure import Figure

    k = len(classes)
    side = min(1.5 + 0.3 * k, 12)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    totals = [max(sum(row), 1) for row in counts]
    axes.imshow([[c / total for c in row] for row, total in zip(counts, totals, strict=True)], cmap="Blues", vmin=0, vmax=1)
    if k <= 30:
        shown = [literal(name) for name in classes]
        axes.set_xticks(range(k), shown, rotation=90)
        axes.set_yticks(range(k), shown)
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                if count:
                    color = "white" if count > totals[i] / 2 else "black"
                    axes.text(j, i, str(count), ha="center", va="center", fontsize=7, color=color)
    return svg(figure)


def heat_map(rows: Mapping[str, Sequence[float]], columns: Sequence[object], x: str, label: str) -> str:
    """Named rows of numbers in cells, the larger the darker."""
    from matplotlib.figure import Figure

    values = list(rows.values())
    figure = Figure(figsize=(2.6 + 0.52 * len(columns), 0.9 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    top = max(max(row) for row in values) or 1
    shades = axes.imshow(values, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    axes.set_xticks(range(len(columns)), [str(column) for column in columns])
    axes.set_yticks(range(len(rows)), [literal(name) for name in rows], fontsize=8)
    axes.set_xlabel(x)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            axes.text(
                j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value > 0.7 * top else "black"
            )
    figure.colorbar(shades, label=label)
    return svg(figure)


def paired(panels: Mapping[str, Sequence[tuple[str, float | None, Any]]]) -> str:
    """Published figures (hollow) beside ours (filled, with intervals), one panel per column of a table.

    Where the two are not comparable (the title contains a bar), each has its own x-axis: below and above.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for points in panels.values() for name, _, _ in points))[::-1]
    across = min(len(panels), 4)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(2.2 + 2.4 * across, down * (1.0 + 0.22 * len(names))), layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes, (title, points) in zip(grid, panels.items(), strict=False):
        theirs, _, own = title.partition(" | ")
        other = axes.twiny() if own else axes
        for name, published, ours in points:
            y = names.index(name)
            if published is not None:
                axes.plot([published], [y], "o", markerfacecolor="none", color=INK[5], markersize=6)
            error = None if ours.low is None else [[max(ours.value - ours.low, 0)], [max(ours.high - ours.value, 0)]]
            other.errorbar([ours.value], [y], xerr=error, fmt="o", color=INK[0], markersize=4, capsize=2)
        axes.set_yticks(range(len(names)), [literal(name) for name in names], fontsize=7)
        axes.grid(alpha=0.3)
        axes.set_xlabel(f"{theirs}, published" if own else theirs, fontsize=8, color=INK[5] if own else "black")
        axes.tick_params(axis="x", labelsize=7)
        if own:
            other.set_xlabel(f"{own}, ours", fontsize=8, color=INK[0])
            other.tick_params(axis="x", labelsize=7)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return svg(figure)


def panels(drawings: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[int]]]) -> str:
    """Several reliability diagrams side by side (Figures 6 and 12 of the paper): name -> (confidence, accuracy, count)."""
    from matplotlib.figure import Figure

    across = min(len(drawings), 3)
    down = -(-len(drawings) // across)
    figure = Figure(figsize=(3.0 * across, 3.1 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (name, (confidence, accuracy, count)) in zip(grid, drawings.items(), strict=False):
        draw_reliability(axes, confidence, accuracy, count, name)
    for axes in grid[len(drawings) :]:
        axes.set_visible(False)
    return svg(figure)
