"""Words that were retired for the field's own stay out of the source: identifiers, docstrings, comments and messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybvit.errors import quantity

SOURCE = Path(__file__).resolve().parent.parent / "src" / "hybvit"

RETIRED_WORDS = {  # regular expression, in any case -> what to write instead
    # names
    r"denoise_with_and_without": "denoise_cond_uncond",
    r"\bup_to_tap\b": "forward_trunk",
    r"\bto_the_end\b": "forward_tail",
    r"\bwithout_first\b": "drop_rows",
    r"\bwith_dropped\b": "drop_labels",
    r"\blightly_noised\b": "noise_some",
    r"\blabel_all\b": "classify_noisy",
    r"\bbegin_from\b": "load_init_weights",
    r"\bstart_of\b": "load_init_model",
    r"\bcarry_out\b": "run_job",
    r"\bhome_of\b": "run_dir",
    r"_in_words\b": "describe_*",
    r"\binformed_by\b": "fit_initial",
    r"\bcompile_calls\b": "compile_network",
    r"\bnetwork_of\b": "load_network",
    r"\bmultiplies_bf16\b": "has_fast_bf16",
    r"\bof_each_class\b": "select_per_class",
    r"\bform_of\b": "detect_format",
    r"\bwhat_to_do\b": "download_hint",
    r"\bis_address\b": "is_url",
    r"LazyPictures": "LazyImages",
    r"\bpicture_(files|names?)\b": "load_image_files, image_names",
    r"\bema_power": "removed (docs/ablation.md)",
    # prose
    r"\b(un)?told\b": "conditional, unconditional",
    r"fault of ours": "internal error",
    r"help` tells more": "see --help",
    r"\bcomplaints?\b": "warning",
    r"\bremarks?\b": "warning",
    r"sound checkpoint": "valid checkpoint",
    r"somebody else's": "external model",
    r"\bstands attacks": "adversarial robustness",
    r"knows what it has not seen": "out-of-distribution detection",
    r"random act\b": "random stream",
    r"lies in no\b": "is not in a",
    r"goes before\b": "takes precedence over",
    r"\bwill do\b": "is valid",
    r"\bdiscretis": "discretiz...",
    r"\binitialis": "initializ...",
    r"\bfinalis": "finaliz...",
    r"\bgrey": "gray, grayscale",
    r"\bcolour": "color",
    r"\bcatalogue": "catalog",
    r"\bfavour": "favor",
}

KEPT = {  # stored keys and fields of published files, which keep their names
    "versions.py": ['"train.ema_power": _only([])'],
    "evaluation/fidelity.py": ['"told":'],
    "reproduce/variants.py": ['"untold"'],
}


def returned(text: str, kept: list[str]) -> Iterator[tuple[int, str, str]]:
    """(line number, retired word, what to write instead) of a source text."""
    for number, line in enumerate(text.splitlines(), 1):
        for fragment in kept:
            line = line.replace(fragment, "")
        for pattern, instead in RETIRED_WORDS.items():
            if match := re.search(pattern, line, re.IGNORECASE):
                yield number, match[0], instead


def test_retired_words_do_not_return():
    lines = []
    for path in sorted(SOURCE.glob("**/*.py")):
        name = path.relative_to(SOURCE).as_posix()
        for number, word, instead in returned(path.read_text(encoding="utf-8"), KEPT.get(name, [])):
            lines.append(f"src/hybvit/{name}:{number}: {word!r} -> {instead}")
    assert lines == [], "\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def begin_from(x):", ["begin_from"]),
        ('"""It is\ntold the label."""', ["told"]),
        ("# A fault of ours", ["fault of ours"]),
        ('words = {"untold": 1}', []),
        ("the bold, the resolute and the carry_outs", []),
    ],
)
def test_a_retired_word_is_found_with_its_line(text, found):
    hits = list(returned(text, ['"untold"']))
    assert [word.lower() for _, word, _ in hits] == [word.lower() for word in found]
    assert all(number == 1 + text[: text.lower().index(word.lower())].count("\n") for number, word, _ in hits)


def test_a_noun_agrees_with_its_number():
    assert [quantity(n, "image") for n in (0, 1, 2, 2000)] == ["0 images", "1 image", "2 images", "2,000 images"]
    assert [quantity(n, "other class") for n in (1, 2)] == ["1 other class", "2 other classes"]
    assert [quantity(n, "core", "g") for n in (0.5, 1.0, 1.5)] == ["0.5 cores", "1 core", "1.5 cores"]
