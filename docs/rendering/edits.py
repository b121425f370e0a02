"""docs/editing.md."""

from __future__ import annotations

import statistics
from typing import Any

from .blocks import block
from .records import machine, percent, result


def editing_measured(*parts: dict[str, Any]) -> str:
    facts, seconds = [part["environment"] for part in parts], sum(part["seconds"] for part in parts)
    where = " and ".join(dict.fromkeys(map(machine, facts)))
    versions = ", ".join(dict.fromkeys(fact["torch"] for fact in facts))
    return (
        f"95 % intervals in parentheses. Seed {parts[0]['seed']}, {seconds:,} s on {where}, shared with other work, torch "
        f"{versions} (`python benchmarks/editing.py`)."
    )


@block()
def editing_counterfactuals() -> str:
    lines = [
        "| model | confidence | n | classifier agrees | judge agrees | both | distance | nearest training image "
        "| closer than it | both agree and closer |",
        f"|{'---|' * 10}",
    ]
    notes, parts = [], []
    for name, record in result("editing").items():
        found, far = record["counterfactuals"], record["rivals"]
        parts += [found, far]
        for key, row in found.items():
            if not key.startswith("confidence_"):
                continue
            shares = (percent(row[what]) for what in ("classifier", "judge", "both"))
            lines.append(
                f"| `{name}` | {key.removeprefix('confidence_')} | {row['both']['n']} | {' | '.join(shares)} "
                f"| {row['distance']:.2f} | {row['nearest']:.2f} | {percent(row['closer'])} "
                f"| {percent(row['both_and_closer'])} |"
            )
        notes.append(
            f"`{name}`: the judge is {found['judge_name']}. Of the nearest training images of the wanted classes, both "
            f"classifiers agree with the label of {percent(found['nearest_both'])}; the nearest ones that both accept are at "
            f"{far['nearest_accepted']:.2f} on average (n {far['n']})."
        )
    return "\n\n".join(["\n".join(lines), *notes, editing_measured(*parts)])


@block()
def editing_inpainting() -> str:
    lines = [
        "| model | hidden | n | known pixels changed | error | of the training images' mean | of the known pixels' mean "
        "| class kept | judge |",
        f"|{'---|' * 9}",
    ]
    parts = []
    for name, record in result("editing").items():
        parts.append(record["inpainting"])
        for key, words in (("right_half", "right half"), ("center", "a quarter, in the center")):
            row = record["inpainting"][key]
            errors = (f"{row[what]:.3f}" for what in ("rmse", "rmse_mean_of_training_images", "rmse_mean_of_known_pixels"))
            kept = (
                f"{percent(row[a])}, original {100 * row[b]['value']:.1f} %"
                for a, b in (("same_class", "before"), ("judge", "judge_before"))
            )
            cells = (words, str(row["same_class"]["n"]), str(row["known_pixels_changed"]), *errors, *kept)
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n\n".join(["\n".join(lines), "Class kept: the label of the data set is predicted. " + editing_measured(*parts)])


@block()
def editing_inversion() -> str:
    found = {name: record["inversion"] for name, record in result("editing").items()}
    ends = " and ".join(
        f"{row['rmse_gray_levels']:.2f} of 255 gray levels (at most {row['largest_rmse']:.2f}, `{name}`, n {row['n']})"
        for name, row in found.items()
    )
    steps = next(iter(found.values()))["steps"]
    return f"Both ends reproduce the images to a root mean square error of {ends}, in {steps} steps each way."


@block()
def editing_variations() -> str:
    lines = ["| model | strength | n | distance | class of the data set |", f"|{'---|' * 5}"]
    for name, record in result("editing").items():
        lines += [
            f"| `{name}` | {strength} | {row['same_class']['n']} | {row['distance']:.2f} | {percent(row['same_class'])} |"
            for strength, row in record["variations"].items()
            if strength[0].isdigit()
        ]
    return "\n".join(lines)


@block()
def editing_tries() -> str:
    found = result("editing")["fashion-mnist"]["tries"]
    words = {"plain": "one sample each", "tries_2": "up to 2 tries", "tries_4": "up to 4 tries"}
    for m in (2, 4):
        words |= {f"best_of_{m}_{by}": f"best of {m} by {said}" for by, said in (
            ("probability", "p(y\\|x)"), ("familiarity", "familiarity"), ("both", "the ranks of both"))}  # fmt: skip
    lines = [
        "| rule | samples drawn for each | Frechet distance | precision | recall | judge agrees | classifier agrees |",
        f"|{'---|' * 7}",
    ]
    for key, said in words.items():
        rows = found["rules"][key]
        cells = [f"{statistics.mean(row[what] for row in rows):.3f}" for what in ("frechet", "precision", "recall")]
        if len(rows) > 1:
            cells[0] += f" ({min(row['frechet'] for row in rows):.3f} to {max(row['frechet'] for row in rows):.3f})"
        cells += [f"{100 * statistics.mean(row[what]['value'] for row in rows):.1f} %" for what in ("judge", "classifier")]
        lines.append(f"| {said} | {statistics.mean(row['draws'] for row in rows):.2f} | {' | '.join(cells)} |")
    every, n = found["rules"]["all"], found["n"]
    return "\n".join(
        [
            *lines,
            "",
            f"{n:,} samples of `fashion-mnist` a row, all chosen from the same {every['n']:,} (dpmpp_2m, {found['steps']} "
            f"steps, classes in turn); distances from {found['reference']:,} training images, precision and recall from {n:,}. "
            f"Plain rows and tries are means over {len(found['rules']['plain'])} orders of the candidates, with their range. "
            f"At equal cost, all {every['n']:,} plain samples have a distance of {every['frechet']:.3f} at that n, precision "
            f"{every['precision']:.3f} and recall {every['recall']:.3f} from as many training images. Do not compare these "
            f"three with the rows: all depend on n. The judge is {found['judge_name']}. Seed {found['seed']}.",
        ]
    )
