"""docs/scale.md: several processes, GPUs, and what a step costs on them."""

from __future__ import annotations

import statistics

from .blocks import block
from .records import result, versions


@block()
def gpu_steps() -> str:
    """Training steps of the GPU presets, as timed by benchmarks/steps.py."""
    record = result("gpu_steps")
    lines = [
        "| preset | ms per step | denoising only | joint over denoising | TFLOP/s | share of a matrix product's | images/s "
        "| GPU memory | hours for all steps |",
        f"|{'---|' * 9}",
    ]
    for name, found in record["presets"].items():
        joint = found["joint"]
        lines.append(
            f"| `{name}` | {1000 * joint['seconds']:.1f} | {1000 * found['denoising']['seconds']:.1f} "
            f"| {found['joint_over_denoising']:.2f} | {joint['gflop'] / 1000 / joint['seconds']:.0f} "
            f"| {joint['fraction_of_peak']:.0%} | {joint['images_per_second']:,.0f} | {found['peak_mib'] / 1024:.1f} GiB "
            f"| {joint['hours']:,.1f} |"
        )
    batches = {tuple(found["batch"]) for found in record["presets"].values()}
    assert len(batches) == 1
    denoised, labeled = batches.pop()
    facts = record["environment"]
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of {record['repeats']} alternating repeats on one {facts['device']}, torch {facts['torch']}, compiled, "
            f"bf16, {denoised} + {labeled} random images. Loading, clipping and the weight average "
            f"are not included; the memory covers both kinds of step "
            f"(`python benchmarks/steps.py "
            f"{' '.join(record['presets'])} --out FILE`).",
        ]
    )


SCALE = (  # devices, gigabytes per second that one of them sends and receives (assumed), and in words
    (1, None, ""),
    (8, 300, "NVLink"),
    (64, 45, "a 400 Gbit/s card for each"),
    (64, 1.4, "a 100 Gbit/s card for eight"),
)

ADAM, MUON, AVERAGE = 8, 4, 4  # bytes of state for a weight; weights and gradients take four each


@block()
def scale() -> str:
    """What a step of ImageNet 224 costs on 1, 8 and 64 devices: measured computation, and communication by its bytes."""
    import torch

    from hybvit.networks import build_network, number_of_parameters
    from hybvit.presets import preset
    from hybvit.training.cost import cost
    from hybvit.training.optim import matrices_of_layers

    name = "imagenet224_v2"
    found = result("gpu_steps")["presets"][name]
    cfg, seconds, images = preset(name), found["joint"]["seconds"], sum(found["batch"])
    with torch.device("meta"):
        net = build_network(cfg)
    weights, matrices = number_of_parameters(net), sum(p.numel() for p in matrices_of_layers(net))
    state = (weights - matrices) * ADAM + matrices * MUON + weights * (8 + AVERAGE)
    lines = [
        "| devices | connection | images a step | of each device | sent and received | sending alone | computing alone "
        "| days for all images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total = cost(cfg).images
    for times in (False, True):  # the preset's batch, and as many times that as there are devices
        for devices, speed, words in SCALE[times:]:
            others = (devices - 1) / devices
            sent = others * (2 * 4 * weights + 2 * matrices)  # gradients in float32, Muon's results in bfloat16
            sending = sent / (speed * 1e9) if speed else 0.0
            shared = found["batch"][0] + max(found["batch"][1], 2 * devices)  # two labeled images of a device are mixed
            own = images if times else shared // devices
            computing = seconds * own / images
            steps = total / images / (devices if times else 1)
            days = steps * max(computing, sending) / 86400
            lines.append(
                f"| {devices} | {words} | {devices * own:,} | {own} | {sent / 1e9:.2f} GB | {1000 * sending:.0f} ms "
                f"| {1000 * computing:.3g} ms | {days:.1f} |"
            )
    facts = result("gpu_steps")["environment"]
    return "\n".join(
        [
            *lines,
            "",
            f"`{name}`: {weights / 1e6:.1f} M weights, {cost(cfg).train_gflop_per_step:,.0f} GFLOP a step of "
            f"{found['batch'][0]} + {found['batch'][1]} images, {state / 1e9:.1f} GB of weights, gradients, "
            f"optimizer state and average on each (`ddp`; with `fsdp` all but the average is divided), "
            f"{found['peak_mib'] / 1024:.0f} GiB in all. Computing was measured on one {facts['device']} with all {images} "
            "images (results/gpu_steps.json); that fewer take proportionally less is the best that can be. The rest is a model "
            "that no run has checked: a ring that averages float32 gradients "
            "sends 2 (n - 1)/n times their bytes, each connection reaches the speed that is assumed for it "
            f"({', '.join(f'{words} {speed:g} GB/s' for _, speed, words in SCALE if speed)}), and the longer of computing and "
            "sending counts, since they go on at the same time.",
        ]
    )


@block()
def processes() -> str:
    """One process with all cores against a process for each, by benchmarks/processes.py."""
    found, said = result("processes"), []
    for row in found["rows"]:
        (one, alone), (many, apart) = row["seconds_per_step"].items()
        spread = max(max(part) / min(part) - 1 for part in (alone, apart)) * 100
        beside = f"; beside {row['busy']} busy programs" if row["busy"] else ""
        said.append(
            f"{beside} {1000 * statistics.median(alone):.0f} ms a step in {one} process of {many} threads and "
            f"{1000 * statistics.median(apart):.0f} ms in {many} processes of one thread ({100 * row['overhead']:+.1f} %; "
            f"{found['repeats']} alternating repeats within {spread:.0f} %)"
        )
    facts = found["environment"]
    return f"Measured: `{' '.join(found['command'])}` takes{''.join(said)}. {facts['device']}, {versions(facts)}, gloo."
