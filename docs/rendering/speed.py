"""docs/speed.md, and the times and sizes of other pages."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from .blocks import block
from .records import result, threads, versions


@block()
def speed() -> str:
    return speed_of(result("bench"))


def speed_of(record: dict[str, Any]) -> str:
    """The joint step beside the plain reference, in the precision that training takes, from a record of `hybvit bench`."""
    size, product = record["batch_size"], record["products"][-1]  # the last precision is the fastest
    joint = {row["system"]: row for row in record["rows"] if row["row"] == "joint" and row["precision"] == product["precision"]}
    ratio, low, high = (joint["plain reference"]["speedup"][key] for key in ("median", "low", "high"))
    reached = 100 * joint["hybvit"]["fraction_of_peak"]["median"]
    return (
        f"The joint step at CIFAR-10's size (batch {size} + {size}, {product['precision']}) runs {ratio:.2f} times as fast as "
        f"a plain reference step, timed alternately (quartiles {low:.2f} to {high:.2f}), at {reached:.0f} % of the "
        f"{product['gflop_per_second']:.0f} GFLOP/s of a matrix product on the same machine. [More](docs/speed.md#measured)"
    )


@block(bench=("bench", "bench_cifar10_pocket_v2"), bench_classify=("bench_classify",))
def bench(*names: str) -> str:
    """All rows of records of `hybvit bench`, and which machine they are of."""
    lines = []
    for name in names:
        record = result(name)
        peaks = ", ".join(f"{p['gflop_per_second']:.0f} GFLOP/s in {p['precision']}" for p in record["products"])
        size = record["batch_size"]
        both = next((row["images"] for row in record["rows"] if row["row"] == "joint"), None)
        joint = f" (joint steps {size} + {both - size})" if both else ""
        lines += [
            f"`{record['subject']}`, batch {size}{joint}, {record['samples']} samples of {record['steps']} steps:",
            "",
            "| row | system | precision | ms (quartiles) | images/s | of peak | MiB | hybvit is ... as fast |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in record["rows"]:
            median, low, high = (1000 * row["seconds"][key] for key in ("median", "low", "high"))
            ratio = "{median:.2f} x ({low:.2f} to {high:.2f})".format(**row["speedup"]) if "speedup" in row else ""
            memory = "" if row["memory_mib"] is None else f"{row['memory_mib']:,.0f}"
            lines.append(
                f"| {row['row']} | {row['system']} | {row['precision']} | {median:,.0f} ({low:,.0f} to {high:,.0f}) "
                f"| {row['images_per_second']:,.0f} | {100 * row['fraction_of_peak']['median']:.0f} % | {memory} | {ratio} |"
            )
        lines += [
            "",
            f"Medians of {record['repeats']} alternating repeats, {threads(record['threads'])} of an {record['device']}, whose "
            f"large matrix products reach {peaks}; {versions(record['environment'])}.",
            "",
        ]
    return "\n".join(lines[:-1])


@block()
def loader() -> str:
    record = result("loader")
    lines = [
        "| images/s | training | loader: none | weak | strong | strong, without mixing | torchvision on PIL | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        low, high = row["speedup_range"]
        cells = [row["name"]]
        names = ("training", "loader_none", "loader_weak", "loader_strong", "strong_images_per_second", "pil_images_per_second")
        cells += [f"{row[name]:,.0f}" for name in names]
        lines.append(f"| {' | '.join(cells)} | {row['speedup']:.1f} ({low:.1f} to {high:.1f}) |")
    threads = record["environment"]["threads"]
    lines += [
        "",
        f"Training is the joint step of `digits`, `fashion_mnist_pocket` and `cifar10` on {threads} threads. Training and "
        "loader count the images of both mini-batches. The loader and the augmentations run on one thread. "
        "The last three columns count only the labeled images. "
        f"Medians of {record['repeats']} alternating repeats (`python benchmarks/loader.py`).",
    ]
    return "\n".join(lines)


@block()
def stream() -> str:
    record = result("stream_memory")
    small, whole = record["small_buffer"], record["buffer_of_everything"]
    return (
        f"Measured (`python benchmarks/stream_memory.py`): {record['samples']:,} images in {record['shards']} shards, "
        f"{record['stream_mib']:.0f} MiB, trained on for {record['epochs']} epochs with a buffer of "
        f"{small['buffer_samples']:,}. The process peaks at {small['largest_mib']:.0f} MiB and grows by "
        f"{small['growth_after_first_quarter_mib']:.1f} MiB after the first quarter; with a buffer for all images it peaks at "
        f"{whole['largest_mib']:.0f} MiB."
    )


@block()
def growth() -> str:
    """How a training step and the parts of an evaluation grow, by benchmarks/growth.py."""
    record = result("growth")
    facts = record["environment"]
    lines = [
        f"A training step of `{record['preset']}` ({record['precision']}, batch {record['batch']} where that does not grow):",
        "",
        "| grows | from ... to | time, s | GFLOP | MiB | time | operations | memory | expected of memory |",
        f"|{'---|' * 9}",
    ]
    for row in record["steps"]:
        first, last, found = row["points"][0], row["points"][-1], row["exponents"]
        spans = [f"{low} to {high}" for low, high in ((first["size"], last["size"]),)]
        spans += [f"{first['seconds']['median']:.3g} to {last['seconds']['median']:.3g}"]
        spans += [f"{first['gflop']:.3g} to {last['gflop']:.3g}"]
        measured = "memory_mib" in found
        spans += [f"{first['memory_mib']:,.0f} to {last['memory_mib']:,.0f}" if measured else "-"]
        memory = f"{found['memory_mib']:.2f}" if measured else "-"
        exponents = f"{found['seconds']:.2f} | {found['gflop']:.2f} | {memory} | {row['expected_memory']}"
        lines.append(f"| {row['what']} | {' | '.join(spans)} | {exponents} |")
    lines += [
        "",
        "Parts of an evaluation of `digits`:",
        "",
        "| part | images | time, s | exponent | expected |",
        f"|{'---|' * 5}",
    ]
    for row in record["evaluations"]:
        first, last = row["points"][0], row["points"][-1]
        times = f"{first['seconds']['median']:.3g} to {last['seconds']['median']:.3g}"
        exponents = f"{row['exponents']['seconds']:.2f} | {row['expected']}"
        lines.append(f"| {row['part']} | {first['size']} to {last['size']} | {times} | {exponents} |")
    lines += [
        "",
        f"Processor time of one thread ({facts['device']}), medians of {record['repeats']} alternating repeats at four sizes "
        f"each; {versions(facts)} (`python benchmarks/growth.py`).",
    ]
    return "\n".join(lines)


@block()
def sampling() -> str:
    """Images per second of the ways to draw, by benchmarks/sampling.py."""
    record = result("sampling")
    facts, peaks = record["environment"], record["peak_gflop_per_second"]
    batches = list(dict.fromkeys(row["images"] for row in record["rows"]))
    lines = [f"| how | precision | {' | '.join(f'{n} images' for n in batches)} |", f"|{'---|' * (2 + len(batches))}"]
    for how, precision in dict.fromkeys((row["how"], row["precision"]) for row in record["rows"]):
        rows = [row for row in record["rows"] if (row["how"], row["precision"]) == (how, precision)]
        cells = [f"{row['images_per_second']:.0f} ({100 * row['fraction_of_peak']:.0f} %)" for row in rows]
        lines.append(f"| {how} | {precision} | {' | '.join(cells)} |")
    reached = ", ".join(f"{gflops:.0f} GFLOP/s in {precision}" for precision, gflops in peaks.items())
    threads = f"{facts['threads']} thread" + ("" if facts["threads"] == 1 else "s")
    lines += [
        "",
        f"Images a second of `{record['model']}` in {record['steps']} steps of `{record['sampler']}`, by {record['clock']} of "
        f"{threads} ({facts['device']}), and the share of what large matrix products reach: {reached}. Medians of "
        f"{record['repeats']} alternating repeats; {versions(facts)} (`python benchmarks/sampling.py`).",
    ]
    return "\n".join(lines)


@block()
def busy() -> str:
    """Training with all threads, with one and by a trial, alone and beside busy programs, by benchmarks/busy.py."""
    record = result("busy")
    loads, ways = (list(dict.fromkeys(row[key] for row in record["runs"])) for key in ("busy", "way"))
    lines = ["| threads | busy programs beside it | images/s | seconds in all | threads taken |", "|---|---|---|---|---|"]
    for way in ways:
        for load in sorted(loads):
            rows = [row for row in record["runs"] if (row["way"], row["busy"]) == (way, load)]
            rates = sorted(row["images_per_second"] for row in rows)
            spread = f" ({rates[0]:,.0f} to {rates[-1]:,.0f})" if len(rates) > 1 else ""
            whole = statistics.median(row["seconds"] for row in rows)
            chosen = " or ".join(map(str, sorted({row["threads"] for row in rows})))
            lines.append(f"| {way} | {load or 'none'} | {statistics.median(rates):,.0f}{spread} | {whole:.0f} | {chosen} |")
    repeats, facts = len(record["runs"]) // len(ways) // len(loads), record["environment"]
    return "\n".join(
        [
            *lines,
            "",
            f"Trainings of `{record['command'][0]}`, {record['steps']} steps each, "
            f"{f'{repeats} (medians)' if repeats > 1 else 'one'} of each row, in turn, "
            f"on {facts['device']}; {versions(facts)} (`python benchmarks/busy.py`).",
        ]
    )


@block()
def speed_curves() -> str:
    """The losses of plain and of fast trainings, by benchmarks/curves.py."""
    record = result("curves")
    facts, ends = record["environment"], record["ends"]
    lines = ["| steps | options | loss at the end, by seed | mean | deviation of a seed |", "|---|---|---|---|---|"]
    for way, words in record["ways"].items():
        by_seed = " / ".join(f"{value:.3f}" for value in ends[way])
        spread = statistics.stdev(ends[way])
        lines.append(f"| {way} | `{' '.join(words)}` | {by_seed} | {statistics.mean(ends[way]):.3f} | {spread:.3f} |")
    gaps = [fast - plain for plain, fast in zip(*ends.values(), strict=True)]
    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    return "\n".join(
        [
            *lines,
            "",
            f"`{record['command'][0]}`, {record['steps']} steps; the loss is the mean of the last 200. Seed by seed the fast "
            f"steps end {statistics.mean(gaps):+.3f} away, with a standard error of {error:.3f}. "
            f"{threads(facts['threads'])} of an {facts['device']}, {versions(facts)} (`python benchmarks/curves.py`).",
        ]
    )


@block()
def budget() -> str:
    """The parts of a joint step, by benchmarks/budget.py."""
    record = result("budget")
    steps, facts = record["steps"], record["environment"]
    parts = list(dict.fromkeys(part for step in steps for part in step["parts"]))

    def row(name: str, cell: Callable[[dict[str, Any]], str]) -> str:
        return f"| {name} | {' | '.join(map(cell, steps))} |"

    def at_peak(step: dict[str, Any]) -> float:
        """Seconds of all operations of a step at the peak."""
        return step["flop"] / step["peak"]

    def counted(step: dict[str, Any]) -> float:
        """The share of the parts whose operations count."""
        return sum(step["parts"].get(part, 0.0) for part in ("matrix products", "attention", "convolutions"))

    lines = [row("part of the time", lambda step: f"`{step['preset']}`, {step['precision']}"), f"|{'---|' * (1 + len(steps))}"]
    lines += [row(part, lambda step, part=part: f"{100 * step['parts'].get(part, 0):.0f} %") for part in parts]
    lines += [
        row("a step, ms", lambda step: f"{1000 * step['seconds']:,.0f}"),
        row("of the peak", lambda step: f"{100 * at_peak(step) / step['seconds']:.0f} %"),
        row("faster, if all but products, attention and convolutions took no time", lambda step: f"{1 / counted(step):.2f} x"),
        row(
            "time of those parts over that of their operations at the peak",
            lambda step: f"{counted(step) * step['seconds'] / at_peak(step):.2f}",
        ),
    ]
    peaks = ", ".join(f"{step['peak'] / 1e9:.0f} GFLOP/s in {step['precision']}" for step in steps[:1])
    return "\n".join(
        [
            *lines,
            "",
            f"{record['batch']} + {record['batch']} images, {threads(facts['threads'])} of an {facts['device']}, whose large "
            f"matrix products reach {peaks}; shares of PyTorch's profiler over {record['repeats']} steps, {versions(facts)} "
            "(`python benchmarks/budget.py`).",
        ]
    )


@block()
def demo_times() -> str:
    """How long the demo takes alone and beside busy programs, by benchmarks/demo.py --record."""
    record = result("demo")
    facts, demos = record["environment"], record["demos"]
    lines = ["| beside | training | evaluation | samples | in all | threads of the training |", "|---|---|---|---|---|---|"]
    for demo in demos:
        parts = " | ".join(f"{demo['parts'][name]:.0f} s" for name in ("training", "evaluation", "samples"))
        beside = f"{demo['busy']} busy programs" if demo["busy"] else "nothing"
        lines.append(f"| {beside} | {parts} | {demo['seconds']:.0f} s | {demo['training_threads']} |")
    ratio = demos[-1]["seconds"] / demos[0]["seconds"]
    return "\n".join(
        [
            *lines,
            "",
            f"`make demo` on a machine with {demos[-1]['busy']} cores, {facts['device']}; beside as many busy programs it "
            f"takes {ratio:.1f} times as long. One run each; {versions(facts)} "
            "(`python benchmarks/demo.py --record`).",
        ]
    )


@block()
def checkpoints() -> str:
    """What a checkpoint costs the steps, by benchmarks/checkpoints.py."""
    record = result("checkpoints")
    facts = record["environment"]
    lines = [
        "| preset | parameters | MB of a checkpoint | written in | the steps wait | share | a gradient | beside the writing |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in record["presets"].items():
        lines.append(
            f"| `{name}` | {row['parameters']:,} | {row['bytes'] / 1e6:,.0f} | {1000 * row['writing']:,.0f} ms "
            f"| {1000 * row['held_up']:.1f} ms | {100 * row['share']:.1f} % "
            f"| {1000 * row['gradient']:,.0f} ms | {1000 * row['gradient_beside']:,.0f} ms |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of {record['repeats']} checkpoints, {threads(facts['threads'])} of an {facts['device']}; "
            f"{versions(facts)} (`python benchmarks/checkpoints.py`).",
        ]
    )


@block()
def deployment() -> str:
    """Processor time and quality of each form of the classifier and the denoiser (benchmarks/deployment.py)."""
    record = result("deployment")
    rows = {(row["graph"], row["form"]): row for row in record["rows"]}
    batches = [*record["rows"][0]["milliseconds"]]
    heads = [f"{graph}, batch {batch}" for graph in ("classifier", "denoiser") for batch in batches]
    lines = [f"| form | {heads[0]} | {heads[1]} | accuracy | {heads[2]} | {heads[3]} | x_0 off by |", f"|{'---|' * 7}"]
    for form in dict.fromkeys(row["form"] for row in record["rows"]):
        classifier, denoiser = rows["classifier", form], rows["denoiser", form]
        times = [[f"{row['milliseconds'][batch]['median']:.3g}" for batch in batches] for row in (classifier, denoiser)]
        cells = [*times[0], f"{100 * classifier['accuracy']:.2f} %", *times[1], f"{denoiser['difference']:.2g}"]
        lines.append(f"| {form} | {' | '.join(cells)} |")
    facts = record["environment"]
    lines += [
        "",
        f"Milliseconds of processor time per image on one thread ({facts['device']}), medians of {record['repeats']} "
        f"alternating repeats. Model `{record['model']}`, accuracy on {record['images']:,} test images. The last column is the "
        f"root mean square difference from eager fp32 in gray levels of 255. Seed {record['seed']}, torch {facts['torch']}, "
        f"onnxruntime {facts['onnxruntime']} (`{record['command']}`).",
    ]
    return "\n".join(lines)


@block()
def export_sizes() -> str:
    """What each format of an export takes on disk, and how exact it is (benchmarks/export_sizes.py)."""
    record = result("export_sizes")
    lines = ["| `--format` | file | MB | off by |", "|---|---|---|---|"]
    for row in record["rows"]:
        for name, apart in row["difference"].items():
            exact = f"{apart:.1g}" if apart else "0"
            lines.append(f"| `{row['form']}` | `{name}` | {row['megabytes'][name]:.1f} | {exact} |")
    facts = record["environment"]
    lines += [
        "",
        f"Model `{record['model']}`. The last column is the largest difference of an output from the model's for five "
        f"random inputs, relative to values above 1. torch {facts['torch']}, onnxruntime {facts['onnxruntime']} "
        f"(`{record['command']}`).",
    ]
    return "\n".join(lines)


@block()
def page() -> str:
    """How fast the page of `hybvit serve` is, by benchmarks/page.py."""
    record = result("page")
    facts, spans = record["environment"], record["milliseconds"]
    paint, view, done = (
        f"{statistics.median(times) / 1e3:.2f} s ({min(times) / 1e3:.2f} to {max(times) / 1e3:.2f})" for times in spans.values()
    )
    return (
        f"The first paint comes {paint} after the request. Of {record['images']} images of `{record['model']}` in "
        f"{record['steps']} steps the first view is there after {view}, and all after {done}. Medians of "
        f"{len(spans['first paint'])} repeats and their range, {facts['threads']} threads ({facts['device']}), Chromium "
        f"{facts['chromium']} on the same machine, gradio {facts['gradio']}, torch {facts['torch']} (`{record['command']}`)."
    )
