"""Draw docs/imports.svg: the rooms of the package, floor by floor, and which room imports which.

The arrows are the imports in src/hybvit. One that follows from others is left out: cli imports training, but the way from cli
through reproduce and evaluation to training says so already.

python docs/draw_imports.py
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "hybvit"
PATH = ROOT / "docs" / "imports.svg"

INK, MUTED, LINE, PANEL = "#1f2933", "#52606d", "#7b8794", "#fbfcfe"
BAND, BLUE, BLUE_FILL, VIOLET, VIOLET_FILL = "#eef2f7", "#1d5fa8", "#e3eefa", "#6d4aa8", "#efe9f8"
FONT = "'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
WIDTH, BOX, PITCH, GAP = 800, 36, 52, 10  # pixels: of the picture; height of a box, from row to row, between two floors
LEFT, TRUNK, RIGHT, FAR = 212, 442, 612, 738  # the middles of the columns
LANE = 326  # a way between the left column and the trunk
NARROW, WIDE = 108, 144

# Floors from the top to the bottom. A floor is rows; a row is (room, words below its name, middle, width).
FLOORS: list[tuple[str, list[list[tuple[str, str, int, int]]]]] = [
    ("command line", [[("cli", "a file for each command", TRUNK, WIDE)]]),
    (
        "work",
        [
            [("reproduce", "the paper's tables", TRUNK, WIDE)],
            [("evaluation", "every number", TRUNK, WIDE)],
            [("integrations", "other libraries", TRUNK, WIDE)],
            [
                ("training", "the loop", TRUNK, WIDE),
                ("export", "for others", LEFT, NARROW),
                ("health", "for the doctor", RIGHT, NARROW),
                ("serving", "a page, an API", FAR, NARROW),
            ],
        ],
    ),
    (
        "models, data,\nsettings, files",
        [
            [("loading", "files to a model", TRUNK, WIDE)],
            [("model", "HybridModel", TRUNK, WIDE)],
            [
                ("networks", "settings to network", TRUNK, WIDE),
                ("hub", "models by name", RIGHT, NARROW),
                ("devices", "CPU, GPU", FAR, NARROW),
            ],
            [("baselines", "JEM, ResNets, U-Net", TRUNK, WIDE), ("checkpoint", "weights on disk", RIGHT, NARROW)],
            [("data", "files to batches", TRUNK, WIDE), ("presets", "recipes by name", LEFT, WIDE)],
            [("config", "every setting", TRUNK, WIDE)],
            [("versions", "older files", TRUNK, WIDE), ("storage", "atomic writes", RIGHT, NARROW)],
            [("catalog", "facts about data sets", TRUNK, WIDE), ("distributed", "processes", FAR, NARROW)],
        ],
    ),
    ("metrics", [[("metrics", "tensors to numbers", LANE - 50, WIDE)]]),
    (
        "method",
        [
            [
                ("method", "the paper: needs torch and nothing else", 324, 300),
                ("errors", "a class per exit code", RIGHT - 18, 160),
                ("waiting", "time left", FAR, NARROW),
            ]
        ],
    ),
]
ROOMS = {room for _, rows in FLOORS for row in rows for room, *_ in row}
LEFT_OUT = {"__init__", "__main__"}  # the public names, and a call of cli: both are nothing but imports

# An arrow goes straight down unless it stands here: the side on which it leaves its box, then H and where it turns down, and
# "side" where it enters the other box from its side instead of from above.
BENDS = {
    ("cli", "export"): ("left", f"H{LEFT}"),
    ("cli", "health"): ("right", f"H{RIGHT}"),
    ("health", "loading"): ("down", "side"),
    ("export", "model"): ("down", "side"),
    ("integrations", "presets"): ("left", f"H{LEFT - 62}"),
    ("cli", "serving"): ("right", f"H{FAR}"),
    ("serving", "model"): ("down", "side"),
    ("presets", "config"): ("down", "side"),
    ("baselines", "metrics"): ("left", f"H{LANE}"),
    ("model", "hub"): ("right", f"H{RIGHT}"),
    ("model", "devices"): ("right", f"H{FAR}"),
    ("networks", "checkpoint"): ("right", "H536", "side"),
    ("config", "storage"): ("right", f"H{RIGHT - 26}"),
    ("config", "method"): ("left", "H358"),
    ("versions", "errors"): ("right", "H536"),
    ("metrics", "errors"): ("right", "H524"),
    ("metrics", "waiting"): ("right", f"H{FAR - 24}"),
    ("distributed", "errors"): ("left", "H660"),
}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports() -> dict[str, set[str]]:
    """Room -> the rooms that its files import, at their top or inside a function."""
    found: dict[str, set[str]] = {}
    for path in sorted(SOURCE.glob("**/*.py")):
        room, parts = room_of(path), path.relative_to(SOURCE).parts
        targets = found.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                whole = [*parts[: len(parts) - node.level], *(node.module.split(".") if node.module else ())]
                targets |= {whole[0]} if whole else {alias.name for alias in node.names}
    rooms = found.keys() - LEFT_OUT
    return {room: (found[room] & rooms) - {room} for room in rooms}


def thinned(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no way through other rooms implies, sorted; the graph has no circles."""

    def reached(room: str) -> set[str]:
        return graph[room].union(*map(reached, graph[room]))

    return sorted((room, to) for room in graph for to in graph[room] if all(to not in reached(by) for by in graph[room]))


def tag(name: str, content: str = "", **attributes: object) -> str:
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{value}"' for key, value in attributes.items())
    return f"<{name}{given}>{content}</{name}>" if content else f"<{name}{given}/>"


def text(x: float, y: float, words: str, size: float = 12, fill: str = INK, anchor: str = "middle", bold: bool = False) -> str:
    weight = {"font_weight": "bold"} if bold else {}
    return tag("text", words, x=x, y=y, font_size=size, fill=fill, text_anchor=anchor, **weight)


def places() -> tuple[dict[str, tuple[int, int, int]], list[tuple[str, int, int]], int]:
    """Room -> (middle, top, width); floors as (words, top, height); the height of the picture."""
    boxes, bands, y = {}, [], GAP
    for words, rows in FLOORS:
        top = y
        for row in rows:
            boxes |= {room: (middle, y + (PITCH - BOX) // 2, width) for room, _, middle, width in row}
            y += PITCH
        bands.append((words, top, y - top))
        y += GAP
    return boxes, bands, y


def arrow(start: tuple[int, int, int], end: tuple[int, int, int], bends: tuple[str, ...]) -> str:
    """A path with rounded corners from one box down to another; boxes are (middle, top, width)."""
    (x0, y0, w0), (x1, y1, w1) = start, end
    leave, *way = bends or ("down",)
    middle = y0 + BOX // 2
    points = [{"down": (x0, y0 + BOX), "left": (x0 - w0 // 2, middle), "right": (x0 + w0 // 2, middle)}[leave]]
    for step in way:
        if step == "side":
            y = y1 + BOX // 2 - (8 if leave == "down" else 0)
            points += [(points[-1][0], y), (x1 + sign(points[-1][0] - x1) * (w1 // 2 + 7), y)]
        else:
            points.append((int(step[1:]), points[-1][1]))
    if "side" not in way:
        points.append((points[-1][0], y1 - 7))
    path = f"M{points[0][0]} {points[0][1]}"
    for (xa, ya), (xb, yb), (xc, yc) in zip(points, points[1:], points[2:], strict=False):
        before = (xb - 7 * sign(xb - xa), yb - 7 * sign(yb - ya))
        after = (xb + 7 * sign(xc - xb), yb + 7 * sign(yc - yb))
        path += f"L{before[0]} {before[1]}Q{xb} {yb} {after[0]} {after[1]}"
    path += f"L{points[-1][0]} {points[-1][1]}"
    return tag("path", d=path, fill="none", stroke=LINE, stroke_width=1.5, marker_end="url(#head)")


def sign(x: int) -> int:
    return (x > 0) - (x < 0)


def drawing() -> str:
    graph = imports()
    assert graph.keys() == ROOMS, f"rooms without a place, or places without a room: {graph.keys() ^ ROOMS}"
    boxes, bands, height = places()
    arrows = thinned(graph)
    assert set(BENDS) <= set(arrows), f"no longer arrows: {set(BENDS) - set(arrows)}"
    for room, to in arrows:
        assert boxes[to][1] > boxes[room][1], f"{room} stands no higher than {to}, which it imports"
    parts = [
        tag("title", "The rooms of hybvit and their imports"),
        tag("desc", "Arrows point downward. " + "; ".join(f"{room} imports {to}" for room, to in arrows) + "."),
        tag("defs", tag("marker", tag("path", d="M0 0L6 3L0 6z", fill=LINE), id="head", viewBox="0 0 6 6", refX=1, refY=3,
                        markerWidth=8, markerHeight=8, orient="auto", markerUnits="userSpaceOnUse")),
        tag("rect", x=1, y=1, width=WIDTH - 2, height=height - 2, rx=14, fill=PANEL, stroke="#d3dae2", stroke_width=1.5),
    ]  # fmt: skip
    for words, top, tall in bands:
        parts.append(tag("rect", x=GAP, y=top, width=WIDTH - 2 * GAP, height=tall, rx=8, fill=BAND))
        lines = words.split("\n")
        parts += [
            text(22, top + tall / 2 + 4 + 16 * (i - (len(lines) - 1) / 2), line, 12, MUTED, "start", bold=True)
            for i, line in enumerate(lines)
        ]
    parts += [arrow(boxes[room], boxes[to], BENDS.get((room, to), ())) for room, to in arrows]
    for room, words, middle, width in (box for _, rows in FLOORS for row in rows for box in row):
        top = boxes[room][1]
        folder = (SOURCE / room).is_dir()
        stroke, fill = (VIOLET, VIOLET_FILL) if room == "method" else (BLUE, BLUE_FILL) if folder else (LINE, "#ffffff")
        parts.append(
            tag("rect", x=middle - width // 2, y=top, width=width, height=BOX, rx=7, fill=fill, stroke=stroke, stroke_width=1.5)
        )
        parts += [
            text(middle, top + 15, room + ("/" if folder else ""), 13, bold=True),
            text(middle, top + 29, words, 11, MUTED),
        ]
    size = {"viewBox": f"0 0 {WIDTH} {height}", "width": WIDTH, "height": height}
    body = "\n" + "\n".join(parts) + "\n"
    return tag("svg", body, xmlns="http://www.w3.org/2000/svg", **size, role="img", font_family=FONT) + "\n"


if __name__ == "__main__":
    PATH.write_text(drawing(), encoding="utf-8")
