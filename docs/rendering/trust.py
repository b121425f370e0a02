"""Certificates, corruptions, doubt, readings and unfamiliar images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .blocks import block
from .records import machine, measured_by, result, value


@block()
def certified() -> str:
    """Certified accuracy at radii, the votes, the attacks, and what the noise was chosen by (benchmarks/certified.py)."""
    record = result("certified")
    rows = record["certified"].values()

    def share(metric: dict[str, float]) -> str:
        return f"{100 * metric['value']:.1f} ({100 * metric['low']:.1f} to {100 * metric['high']:.1f})"

    def lines_of(split: str) -> list[str]:
        chosen = [row for row in rows if row["split"] == split]
        radii = list(chosen[0]["accuracy"])
        heads = ["model", "votes", "noise", "n", *(f"radius {r}, %" for r in radii), "abstained, %", "votes/s", "CPU"]
        lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for row in chosen:
            reading = "its own" if row["kind"] == "noisy" else "after denoising"
            shown = [share(row["accuracy"][r]) if float(r) < row["largest_radius"] else "-" for r in radii]
            cells = [f"`{row['model']}`", reading, f"{row['noise']:g}", f"{row['n']:,}", *shown, share(row["abstained"])]
            part = record["parts"]["{model} {split} {kind} {noise:g}".format(**row)]
            lines.append(f"| {' | '.join(cells)} | {row['votes_per_cpu_second']:,} | {part['environment']['device']} |")
        return lines

    edges = list(next(iter(rows))["share_of_votes"])
    spread = [f"| model | votes | noise | {' | '.join(edges)} |", f"|---|---|---|{'---|' * len(edges)}"]
    for row in (row for row in rows if row["split"] == "test"):
        reading = "its own" if row["kind"] == "noisy" else "after denoising"
        counts = " | ".join(f"{100 * count / row['n']:.1f}" for count in row["share_of_votes"].values())
        spread.append(f"| `{row['model']}` | {reading} | {row['noise']:g} | {counts} |")
    attacks = "; ".join(
        f"`{model}` (n {next(iter(found.values()))['n']}): "
        + ", ".join(f"{share(metric)} % at {radius}" for radius, metric in found.items())
        for model, found in record["attacked"].items()
        if found
    )
    strongest = result("model_fashion-mnist")["metrics"]["robustness/autoattack_l2_128"]
    facts = next(iter(record["parts"].values()))["environment"]
    pace = record["certified"]["fashion-mnist test noisy 0.25"]["votes_per_cpu_second"]
    few = min(row["votes"] for row in rows if row["split"] == "train")
    within = [
        f"Attacks inside of the certified radius (`{found['model']}`, SmoothAdv at {record['inside_share']:g} of it, noise "
        f"{found['noise']:g}): "
        f"{found['broken']} of {found['attacked']} certified images were broken, and {found['below_theorem']} lost more votes "
        f"than the theorem allows. The mean share of the votes fell from {found['mean_share_before']:.3f} to "
        f"{found['mean_share_after']:.3f}, the least is {found['least_share']:.3f}."
        for found in record["inside"].values()
    ]
    return "\n".join([
        *lines_of("test"),
        "",
        f"Test images, evenly spaced; {record['votes']:,} votes after {record['selection']} that select, confidence "
        f"{record['confidence']:g}, float32, seed {record['seed']}; 95 % intervals in parentheses; a dash where not even "
        "votes that all agree certify the radius. Votes per second of one "
        f"thread (torch {facts['torch']}; `python benchmarks/certified.py`): 500 images of `fashion-mnist` "
        f"take {500 * (record['votes'] + record['selection']) / pace / 60:.0f} minutes of one core.",
        "",
        "The same classifier without smoothing, under a strong PGD in L2 (50 steps, margin loss), which is an upper bound and "
        f"no certificate: {attacks}. AutoAttack leaves `fashion-mnist` {share(strongest)} % at 128/255 (n {strongest['n']}).",
        "",
        *within,
        "",
        "Share of the test images, in %, by the share of the votes that the true label gets:",
        "",
        *spread,
        "",
        f"The same on training images, to choose the noise by ({few} votes each; the figures are those of {record['votes']:,} "
        "votes in the same shares, and higher than those of test images, since the network knows these by heart):",
        "",
        *lines_of("train"),
    ])  # fmt: skip


@block()
def corruptions() -> str:
    """The bundled models under the common corruptions, by benchmarks/corruptions.py."""
    records = result("corruptions")
    lines = [
        "| | " + " | ".join(["clean", *(f"severity {severity}" for severity in range(1, 6))]) + " |",
        f"|---|{'---|' * 6}",
    ]
    rows = {
        "error": ("error", True), "error of the accepted": ("accepted_error", True), "share accepted": ("accepted", True),
        "ECE, 15 bins": ("ece_15", True), "NLL, nats": ("nll", False), "AUROC, log p(x)": ("auroc_logpx", False),
        "AUROC, denoising error": ("auroc_denoising", False),
    }  # fmt: skip
    for name, record in records.items():
        for title, (metric, percent) in rows.items():
            cells = [value(record, f"corruptions/{metric}_severity_{severity}", percent) for severity in range(6)]
            lines.append(f"| `{name}`: {title} | {' | '.join(cells)} |")
    for name, record in records.items():
        worst = sorted(record["tables"]["error"].items(), key=lambda item: -item[1][4])[:3]
        shown = ", ".join(f"{corruption} {100 * errors[4]:.0f} %" for corruption, errors in worst)
        facts, settings = record["environment"], record["settings"]
        lines += [
            "",
            f"`{name}` (`{record['command']}`): mean error {value(record, 'corruptions/mean_error')}; worst at severity 5: "
            f"{shown}. Constants of {record['tables']['constants']}, {record['tables']['images']['all']} test images, seed "
            f"{settings['seed']}; {record['seconds']:.0f} s on {machine(facts)} beside other programs; torch {facts['torch']}. "
            + " ".join(record["notes"]),
        ]
    return "\n".join(lines)


@block()
def doubt_calibration() -> str:
    """The calibration of the bundled models before and after scaling, by benchmarks/doubt.py."""
    record = result("doubt")
    models, bins = record["models"], record["bins"]
    lines = ["| | " + " | ".join(f"`{name}`" for name in models) + " |", "|---|" + "---|" * len(models)]

    def halves(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda m: f"{100 * m['halves'][name]['mean']:.2f} % (deviation {100 * m['halves'][name]['deviation']:.2f})"

    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "calibrated on": lambda m: f"{m['calibrated_on'][0]:,} images ({m['calibrated_on'][1]})",
        "chosen by cross-validation": lambda m: f"{m['scaling']}, {m['metrics']['calibration/temperature']['value']:.3f}",
        f"ECE of {bins} bins, as trained": lambda m: value(m, f"calibration/ece_{bins}", digits=2),
        f"ECE of {bins} bins, scaled": lambda m: value(m, f"calibration/ece_{bins}_scaled", digits=2),
        "ECE of 20 bins, scaled": lambda m: value(m, "calibration/ece_20_scaled", digits=2),
        "NLL, as trained, nats": lambda m: value(m, "calibration/nll", percent=False, digits=4),
        "NLL, scaled": lambda m: value(m, "calibration/nll_scaled", percent=False, digits=4),
        "change of the NLL": lambda m: value(m, "calibration/nll_change", percent=False, digits=4),
        f"mean ECE over {record['number_of_halves']} random halves, scaled": halves("ece"),
        "the same if every probability were exactly right": halves("ece_if_right"),
    }
    lines += [f"| {name} | " + " | ".join(cell(model) for model in models.values()) + " |" for name, cell in rows.items()]
    return "\n".join([*lines, "", measured_by(record)])


@block()
def doubt_scores() -> str:
    """Selective classification by each score, and abstention."""
    from hybvit.evaluation.doubt import RISKS, SCORE_LABELS

    models = result("doubt")["models"]
    lines = [SELECTIVE_HEAD, f"|{'---|' * 6}"]
    for name, model in models.items():
        for score, words in SCORE_LABELS.items():
            lines.append(f"| `{name}` | {words} | {' | '.join(selective(model, 'doubt', score))} |")
    lines += ["", "| model | promised risk | images answered | wrong among them |", f"|{'---|' * 4}"]
    for name, model in models.items():
        for risk in RISKS:
            key = f"doubt/abstain_above_{100 * risk:.0f}"
            known = f"{key}_risk" in model["metrics"]
            cells = [value(model, f"{key}_{what}", digits=2) for what in ("answered", "risk")] if known else ["none", "-"]
            lines.append(f"| `{name}` | {risk:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


@block()
def doubt_sets() -> str:
    """Coverage and size of conformal sets: of one half, and over random halves."""
    record = result("doubt")
    models, n = record["models"], record["number_of_halves"]
    lines = [
        f"| model | score | coverage asked | covered | mean size | no class | covered, {n} halves | mean size, {n} halves |",
        f"|{'---|' * 8}",
    ]
    for name, model in models.items():
        for row in model["tables"]["conformal"]:
            key = f"{row['method']}_{100 * row['coverage']:.0f}"
            if row["random"]:
                covered, over, size = f"{row['covered']:.1%}", ["-", "-"], f"{row['size']:.3f}"
            else:
                covered = value(model, f"doubt/coverage_{key}")
                size = value(model, f"doubt/set_size_{key}", percent=False, digits=3)
                spread = [model["halves"][f"{what}_{key}"] for what in ("coverage", "size")]
                over = [f"{spread[0]['mean']:.2%} (deviation {100 * spread[0]['deviation']:.2f})", f"{spread[1]['mean']:.3f}"]
            words = f"{row['method']}{', with random numbers' if row['random'] else ''}"
            cells = [f"`{name}`", words, f"{row['coverage']:.0%}", covered, size, f"{row['empty']:.1%}", *over]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@block()
def readings() -> str:
    """Accuracy and calibration of the three readings, and what their agreement is worth (benchmarks/readings.py readings)."""
    words = {
        "label": "label read-out", "diffusion": "diffusion classifier", "denoised": "after a denoising step",
        "together": "mean of the three",
    }  # fmt: skip
    lines, notes = ["| model | reading | accuracy | NLL, nats | ECE, 15 bins |", f"|{'---|' * 5}"], []
    for model, record in result("readings").items():
        for name, reading in words.items():
            cells = (
                value(record, f"readings/{name}_accuracy"),
                value(record, f"readings/{name}_nll", percent=False),
                value(record, f"readings/{name}_ece_15"),
            )
            lines.append(f"| `{model}` | {reading} | {' | '.join(cells)} |")
        notes.append(
            f"`{model}`: all three give one label to {value(record, 'readings/all_agree')} of the test images. There the label "
            f"read-out is right for {value(record, 'readings/label_accuracy_where_agreeing')}; elsewhere for "
            f"{value(record, 'readings/label_accuracy_where_disagreeing')}. {of_model(model, record, 'readings')}"
        )
    return "\n\n".join(["\n".join(lines), *notes])


@block()
def readings_agreement() -> str:
    """The agreement of the readings as a confidence, beside the largest probability, on the same images."""
    lines, notes = [SELECTIVE_HEAD, f"|{'---|' * 6}"], []
    for model, record in result("readings").items():
        for name, words in (("max_prob", "largest probability"), ("agreement", "agreement of the readings")):
            lines.append(f"| `{model}` | {words} | {' | '.join(selective(record, 'readings', name))} |")
        lowered = record["metrics"]["readings/aurc_lowered_by"]
        change, least, most = (-100 * lowered[part] for part in ("value", "high", "low"))
        notes.append(f"`{model}`: the agreement changes the AURC by {change:+.1f} % ({least:+.1f} to {most:+.1f}).")
    return "\n\n".join(["\n".join(lines), *notes])


SELECTIVE_HEAD = "| model | score | AURC, 10^-3 | AUGRC, 10^-3 | coverage at 5 % risk | risk at 80 % coverage |"


def selective(record: dict[str, Any], suite: str, score: str) -> list[str]:
    """The cells of a score of selective classification."""
    areas = (record["metrics"][f"{suite}/{what}_{score}"] for what in ("aurc", "augrc"))
    cells = [f"{1000 * m['value']:.1f} ({1000 * m['low']:.1f} to {1000 * m['high']:.1f})" for m in areas]
    return cells + [
        value(record, f"{suite}/{what}_{score}", digits=2) for what in ("coverage_at_5_risk", "risk_at_80_coverage")
    ]


def of_model(name: str, record: dict[str, Any], what: str) -> str:
    facts, command = record["environment"], f"python benchmarks/readings.py {what} --model {name} {options_of(record, what)}"
    return (
        f"Seed 0, torch {facts['torch']}, {record['seconds'] / 60:.0f} minutes on one thread of a crowded machine "
        f"({facts['device']}; `{command}`). 95 % intervals in parentheses."
    )


def options_of(record: dict[str, Any], what: str) -> str:
    """The options of benchmarks/readings.py that a record was measured with."""
    if what == "ood":
        sets = dict.fromkeys(name.split("/")[1] for name in record["metrics"])
        plain = [name for name in sets if not name.endswith(", as JPEG")]
        return f"--ood {','.join(plain)} --images {record['images']}" + (" --jpeg 75" if len(plain) < len(sets) else "")
    options = record["options"]
    if what == "attacks":
        return f"--images {options['reading_attacks']} --steps {options['attack_steps']}"
    return f"--images {options['reading_images']}"


@block()
def readings_attacks() -> str:
    """Accuracy of each reading under attacks through the whole of it (benchmarks/readings.py attacks)."""
    words = {
        "label_attacked": "label read-out, attacked",
        **{
            f"{name}_{how}": f"{reading}, {how}"
            for name, reading in (
                ("denoised", "after a denoising step"),
                ("diffusion", "diffusion classifier"),
                ("together", "mean of the three"),
            )
            for how in ("transfer", "fixed", "eot")
        },
    }
    records = result("readings_attacks")
    lines = [f"| reading, attack | {' | '.join(f'`{model}`' for model in records)} |", f"|---|{'---|' * len(records)}"]
    for name, text in words.items():
        cells = [value(record, f"readings/{name}_linf_8") for record in records.values()]
        if set(cells) != {"-"}:
            lines.append(f"| {text} | {' | '.join(cells)} |")
    notes = [
        f"`{model}`: PGD with the margin loss, {record['options']['attack_steps']} steps of 1/255 in L-inf 8/255. "
        + of_model(model, record, "attacks")
        for model, record in records.items()
    ]
    return "\n\n".join(["\n".join(lines), *notes])


@block()
def ood_choice() -> str:
    """The AUROC of fused scores on altered training images (benchmarks/readings.py choose)."""
    parts = []
    for model, record in result("ood_choice").items():
        sets = [name for name in next(iter(record["combinations"].values())) if name != "mean"]
        lines = [f"| combination | mean | {' | '.join(sets)} |", f"|{'---|' * (2 + len(sets))}"]
        for names, areas in [*record["combinations"].items()][:8]:
            lines.append(f"| {names} | {' | '.join(f'{areas[name]:.3f}' for name in ('mean', *sets))} |")
        parts += [
            "\n".join(lines),
            f"The best eight of {len(record['combinations'])}, AUROC of the fused score of `{model}`, {record['images']} "
            f"images each (`python benchmarks/readings.py choose --model {model}`).",
        ]
    return "\n\n".join(parts)


@block()
def ood_both() -> str:
    """AUROC of each score on each set (benchmarks/readings.py ood); compressed sets have a table of their own."""
    parts, jpeg = [], ", as JPEG"
    for model, record in result("ood_both").items():
        sets = list(dict.fromkeys(name.split("/")[1] for name in record["metrics"]))
        plain, compressed = ([name for name in sets if name.endswith(jpeg) is wanted] for wanted in (False, True))
        for some in filter(None, (plain, compressed)):
            lines = [f"| `{model}` | passes | {' | '.join(some)} |", f"|{'---|' * (2 + len(some))}"]
            for score, passes in record["passes"].items():
                cells = [value(record, f"ood/{name}/auroc_{score}", percent=False, digits=3) for name in some]
                lines.append(f"| `{score}` | {passes} | {' | '.join(cells)} |")
            rates = [value(record, f"ood/{name}/fpr95_fused") for name in some]
            lines.append(f"| accepted by `fused` where 95 % of test images are | | {' | '.join(rates)} |")
            parts.append("\n".join(lines))
        parts.append(f"`{model}`: {of_model(model, record, 'ood')}")
    return "\n\n".join(parts)
