"""Draw docs/architecture.svg: two mini-batches, one Vision Transformer, two read-outs, one loss.

python docs/draw_architecture.py
"""

from __future__ import annotations

import random
from pathlib import Path

PATH = Path(__file__).resolve().parent / "architecture.svg"
WIDTH, TOP, HEIGHT = 880, 30, 426  # what is drawn, from y = TOP down
INK, MUTED, LINE, PANEL = "#1f2933", "#52606d", "#9aa5b1", "#fbfcfe"
BLUE, BLUE_FILL = "#1d5fa8", "#e3eefa"  # labeled images, classification
RED, RED_FILL = "#b4501a", "#fcebdf"  # noisy images, generation
VIOLET = "#6d4aa8"  # the class token
SLAB = "#d9e2ec"
FONT = "'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
UPPER, LOWER = 150, 310  # the height of the labeled and of the noisy images on their way
SHIRT = """
..##....##..
.###....###.
#####..#####
############
##.######.##
##.######.##
...######...
...######...
...######...
...######...
...######...
............"""
BOOT = """
............
...#####....
...#####....
...#####....
...#####....
...######...
...#######..
.#########..
##########..
##########..
##########..
###..####..."""


def tag(name: str, content: str = "", **attributes: object) -> str:
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{value}"' for key, value in attributes.items())
    return f"<{name}{given}>{content}</{name}>" if content else f"<{name}{given}/>"


def text(x: float, y: float, words: str, size: float = 13, fill: str = INK, anchor: str = "middle", bold: bool = False) -> str:
    weight = {"font_weight": "bold"} if bold else {}
    return tag("text", words, x=x, y=y, font_size=size, fill=fill, text_anchor=anchor, **weight)


def sub(word: str, below: str) -> str:
    return f'{word}<tspan dy="3" font-size="10">{below}</tspan>'


def box(x: float, y: float, width: float, height: float, fill: str = "#ffffff", stroke: str = LINE, radius: float = 8) -> str:
    return tag("rect", x=x, y=y, width=width, height=height, rx=radius, fill=fill, stroke=stroke, stroke_width=1.5)


def line(path: str, stroke: str, arrow: bool = True, width: float = 2, dashes: str = "") -> str:
    extra = {"stroke_dasharray": dashes} if dashes else {}
    end = {"marker_end": f"url(#{ {BLUE: 'blue', RED: 'red'}.get(stroke, 'gray') })"} if arrow else {}
    return tag("path", d=path, fill="none", stroke=stroke, stroke_width=width, **extra, **end)


def pixels(drawing: str, noise: float, seed: int) -> list[list[float]]:
    """A picture of 12 x 12 as gray levels in [0, 1], mixed with noise."""
    draw = random.Random(seed)
    rows = drawing.split()
    return [
        [min(1.0, max(0.0, (1 - noise) * (0.85 if mark == "#" else 0.08) + noise * draw.random())) for mark in row]
        for row in rows
    ]


def picture(x: float, y: float, levels: list[list[float]], cell: float, stroke: str) -> str:
    """A path for each gray level, and a frame."""
    paths: dict[int, str] = {}
    for i, row in enumerate(levels):
        for j, level in enumerate(row):
            at = f"M{x + j * cell:g} {y + i * cell:g}h{cell:g}v{cell:g}h-{cell:g}z"
            paths[round(6 * level)] = paths.get(round(6 * level), "") + at
    side = cell * len(levels)
    parts = [tag("rect", x=f"{x:g}", y=f"{y:g}", width=side, height=side, fill="#20262e")]
    for level, path in sorted(paths.items()):
        gray = round(32 + 216 * level / 6)
        parts.append(tag("path", d=path, fill=f"#{gray:02x}{gray:02x}{gray:02x}", shape_rendering="crispEdges"))
    frame = tag("rect", x=f"{x:g}", y=f"{y:g}", width=side, height=side, rx=2, fill="none", stroke=stroke, stroke_width=2)
    return "\n".join([*parts, frame])


def mini_batches() -> list[str]:
    parts = []
    for middle, stroke, noise, title in ((UPPER, BLUE, 0.0, "labeled images"), (LOWER, RED, 0.5, "noisy images")):
        parts += [
            text(24, middle - 37, title, 14, stroke, "start", bold=True),
            picture(24, middle - 24, pixels(SHIRT, noise, 1), 4, stroke),
            picture(82, middle - 24, pixels(BOOT, noise, 2), 4, stroke),
        ]
    return [
        *parts,
        text(24, UPPER + 44, "x with label y", 13, MUTED, "start"),
        text(24, LOWER + 44, f'{sub("x", "t")}<tspan dx="5" dy="-3">at time t</tspan>', 13, MUTED, "start"),
    ]


def patches() -> list[str]:
    parts = [
        box(160, 72, 88, 304),
        *(text(204, y, word, 12, bold=True) for y, word in ((206, "conv stem"), (242, "patch"), (258, "embedding"))),
        text(204, 224, "and", 12, MUTED),
    ]
    for middle, stroke, fill in ((UPPER, BLUE, BLUE_FILL), (LOWER, RED, RED_FILL)):
        parts.append(line(f"M137 {middle}H154", stroke))
        parts.append(line(f"M250 {middle}H258", stroke, arrow=False))
        top = middle if stroke == BLUE else middle - 32  # the read-out ahead: of the class token, or of the patches
        parts.append(tag("circle", cx=269, cy=top, r=7, fill=VIOLET))
        parts += [
            tag("rect", x=262, y=top + 13 + 18 * i, width=14, height=14, rx=2, fill=fill, stroke=stroke) for i in range(4)
        ]
    parts += [text(269, 112, "class", 12, VIOLET), text(269, 126, "token", 12, VIOLET)]
    return parts


def layers() -> list[str]:
    parts = [box(298, 72, 158, 304), text(377, 93, "layers up to the tap", 13, bold=True)]
    parts.append(text(377, 109, "both in one pass", 12, MUTED))
    parts += [tag("rect", x=315 + 27 * i, y=120, width=17, height=246, rx=4, fill=SLAB) for i in range(5)]
    parts += [box(494, 236, 132, 140), text(560, 257, "after the tap", 13, bold=True)]
    parts += [tag("rect", x=512 + 39 * i, y=268, width=17, height=98, rx=4, fill=SLAB) for i in range(3)]
    parts += [line(f"M280 {UPPER}H488", BLUE), line(f"M280 {LOWER}H640", RED)]
    parts.append(line("M475 64V384", VIOLET, arrow=False, width=1.5, dashes="5 4"))
    parts.append(text(475, 56, "tap", 14, VIOLET, bold=True))
    for start, end, depth in ((350.5, 559.5, 400), (377.5, 520.5, 388)):  # U-ViT's long skips, hinted
        low = depth + 8
        parts.append(line(f"M{start} 378C{start} {low} {end} {low} {end} 382", LINE, width=1.5, dashes="4 3"))
    parts.append(text(465, 416, "long skips", 12, MUTED))
    return parts


def conditions() -> list[str]:
    rail = 434
    return [
        line(f"M46 362V{rail - 6}Q46 {rail} 52 {rail}H664V348", LINE),
        *(line(f"M{x} {rail}V382", LINE) for x in (204, 323.5, 598.5)),
        text(120, rail - 7, "time t", 12, MUTED),
        box(502, 192, 116, 24, RED_FILL, RED, 12),
        text(560, 208.5, "condition: label y", 12, RED),
        line("M560 217V230", RED),
    ]


def readouts() -> list[str]:
    bars = (9, 15, 7, 44, 12, 20, 6)
    return [
        box(494, 122, 132, 56, BLUE_FILL, BLUE),
        text(560, 147, "label read-out", 13, BLUE, bold=True),
        text(560, 164, "of the class token", 12, MUTED),
        line(f"M628 {UPPER}H650", BLUE),
        *(
            tag("rect", x=660 + 8 * i, y=174 - bar, width=6, height=bar, fill=BLUE if bar == max(bars) else "#9cc0e6")
            for i, bar in enumerate(bars)
        ),
        text(687, 190, "logits", 12, MUTED),
        line(f"M722 {UPPER}H752", BLUE),
        box(760, 126, 104, 48, BLUE_FILL, BLUE),
        text(812, 154.5, "cross-entropy", 12, BLUE, bold=True),
        line("M687 120V92", BLUE),
        text(687, 66, "logsumexp of the logits", 12, MUTED),
        text(687, 83, "score: log p(x) + const", 13, BLUE, bold=True),
        box(646, 278, 70, 64, RED_FILL, RED),
        text(681, 306, "pixel", 13, RED, bold=True),
        text(681, 322, "read-out", 13, RED, bold=True),
        line(f"M718 {LOWER}H726", RED, arrow=False),
        picture(728, LOWER - 18, pixels(BOOT, 1.0, 3), 3, RED),
        line(f"M766 {LOWER}H776", RED),
        text(762, 360, "predicted noise or v", 12, MUTED),
    ]


def losses() -> list[str]:
    return [
        box(784, 284, 80, 52, RED_FILL, RED),
        text(824, 306, "denoising", 13, RED, bold=True),
        text(824, 322, "loss", 13, RED, bold=True),
        line("M824 176V200", BLUE),
        line("M824 282V261", RED),
        box(688, 207, 176, 48, "#ffffff", INK, 10),
        text(700, 227, f'L = <tspan fill="{BLUE}">cross-entropy</tspan>', 13, anchor="start", bold=True),
        text(700, 245, f'+ &#945; &#183; <tspan fill="{RED}">denoising loss</tspan>', 13, anchor="start", bold=True),
    ]


def drawing() -> str:
    head = {"viewBox": "0 0 6 6", "refX": 2, "refY": 3, "markerWidth": 8, "markerHeight": 8, "orient": "auto"}
    markers = "".join(
        tag("marker", tag("path", d="M0 0L6 3L0 6z", fill=fill), id=name, **head, markerUnits="userSpaceOnUse")
        for name, fill in (("blue", BLUE), ("red", RED), ("gray", LINE))
    )
    parts = [
        tag("title", "hybvit: one Vision Transformer that classifies images and generates them"),
        tag(
            "desc",
            "Labeled and noisy images pass the stem and the layers up to the tap together. The labeled ones leave there for "
            "the label read-out: cross-entropy, and a log density. The noisy ones pass the other layers, which are conditional "
            "on a label, and the pixel read-out: the denoising loss. The loss is cross-entropy plus alpha times that.",
        ),
        tag("defs", markers),
        tag("rect", x=1, y=TOP + 1, width=WIDTH - 2, height=HEIGHT - 2, rx=14, fill=PANEL, stroke="#d3dae2", stroke_width=1.5),
        *mini_batches(), *patches(), *layers(), *conditions(), *readouts(), *losses(),
    ]  # fmt: skip
    size = {"viewBox": f"0 {TOP} {WIDTH} {HEIGHT}", "width": WIDTH, "height": HEIGHT}
    body = "\n" + "\n".join(parts) + "\n"
    return tag("svg", body, xmlns="http://www.w3.org/2000/svg", **size, role="img", font_family=FONT) + "\n"


if __name__ == "__main__":
    PATH.write_text(drawing(), encoding="utf-8")
