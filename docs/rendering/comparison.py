"""docs/compare.md."""

from __future__ import annotations

from .blocks import block
from .records import MODELS, result

TASKS = {  # number in benchmarks/compare -> what it is
    "1": "train a classifier; test accuracy with its interval",
    "2": "draw 16 images of a class with 20 evaluations (theirs trains a generator first)",
    "3": "calibrate; ECE, sets of classes at 95 %, risk and coverage",
    "4": "foreign images: AUROC of six scores",
    "5": "accuracy under AutoAttack, 16 images",
}


@block()
def compare() -> str:
    """The lines of the programs of benchmarks/compare, and the time they took."""
    record = result("compare")
    lines = ["| task | here, lines | the peer, lines | of | here, s | the peer, s |", "|---|---|---|---|---|---|"]
    totals = [0, 0]
    for number, task in TASKS.items():
        pair = {name[-3:]: found for name, found in record["programs"].items() if name.startswith(number)}
        ours, theirs = pair[".sh"], pair[".py"]
        peers = ", ".join(f"{name} {version}" for name, version in theirs["peers"].items())
        seconds = " | ".join(f"{found['cpu_seconds']:.0f}" for found in (ours, theirs))
        lines.append(f"| {task} | {ours['lines']} | {theirs['lines']} | {peers} | {seconds} |")
        totals = [totals[0] + ours["lines"], totals[1] + theirs["lines"]]
    where = record["environment"]
    lines += [
        f"| together | {totals[0]} | {totals[1]} | | | |",
        "",
        f"Seconds of processor time on one thread of {where['device']}, a shared machine, the import of torch included; torch "
        f"{where['torch']}, {record['date']} (`python benchmarks/compare/run.py`). Networks were trained for "
        f"{record['programs']['1_timm.py']['steps']} steps.",
    ]
    return "\n".join(lines)


@block()
def compare_results() -> str:
    """What the programs of benchmarks/compare found."""
    record = result("compare")
    ours = {name: found["value"] for name, found in record["ours"].items()}
    numbers = {name: found["n"] for name, found in record["ours"].items()}
    theirs = {name[0]: found["printed"] for name, found in record["programs"].items() if name.endswith(".py")}
    aurocs = {line.split()[0]: float(line.split("'AUROC': ")[1].split(",")[0]) for line in theirs["4"]}
    rows = {
        "1": [
            (
                f"test accuracy {ours['test/accuracy']:.4f} ({record['ours']['test/accuracy']['low']:.4f} to "
                f"{record['ours']['test/accuracy']['high']:.4f}), n {numbers['test/accuracy']}",
                theirs["1"][-1],
            )
        ],
        "3": list(
            zip(
                (
                    f"ECE {ours['calibration/ece_15']:.4f} -> {ours['calibration/ece_15_scaled']:.4f}",
                    f"sets at 95 %: coverage {ours['doubt/coverage_thr_95']:.4f}, size {ours['doubt/set_size_thr_95']:.3f}",
                    f"AURC {ours['doubt/aurc_max_prob']:.5f}, risk at 80 % coverage "
                    f"{ours['doubt/risk_at_80_coverage_max_prob']:.4f}",
                ),
                theirs["3"],
                strict=True,
            )
        ),
        "4": [
            *((f"AUROC of {name} {ours[f'ood/noise/auroc_{name}']:.4f}", f"{value:.4f}") for name, value in aurocs.items()),
            (f"of the fused score {ours['ood/noise/auroc_fused']:.4f}", "none"),
        ],
        "5": [
            (
                f"accuracy under AutoAttack at 8/255: {ours['robustness/autoattack_linf_8']:.4f}, "
                f"n {numbers['robustness/autoattack_linf_8']}",
                theirs["5"][-1],
            )
        ],
    }
    lines = ["| task | here | the peer |", "|---|---|---|"]
    for number, pairs in rows.items():
        lines += [f"| {TASKS[number] if not k else ''} | {here} | {there} |" for k, (here, there) in enumerate(pairs)]
    return "\n".join(lines)


@block()
def compare_facts() -> str:
    """How much the peers have of what they do better."""
    record, versions = result("compare"), dict[str, str]()
    for program in record["programs"].values():
        versions |= program["peers"]
    found = record["facts"]
    return (
        f"  timm {versions['timm']} lists {found['timm_models']:,} networks and {found['timm_weights']:,} sets of weights, "
        f"diffusers {versions['diffusers']} has {found['diffusers_schedulers']} schedulers and pipelines for published models, "
        f"pytorch-ood {versions['pytorch-ood']} has {found['pytorch_ood_detectors']} detectors. hybvit brings "
        f"{len(MODELS)} small networks: {', '.join(MODELS)}."
    )
