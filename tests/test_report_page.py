"""The report that the documentation shows: of the best bundled model, and fit for a phone, the dark and paper."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path

import pytest

from hybvit.config import Config, override
from hybvit.evaluation import plots
from hybvit.evaluation.report import STYLE, plain, prose, trained
from hybvit.evaluation.suites import SUITES

from .browser import PROGRAM, Browser

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "report.html"
sys.path.insert(0, str(ROOT / "docs"))
import report as maker  # noqa: E402

MEASURES = """({
    width: document.documentElement.scrollWidth,
    outside: [...document.querySelectorAll('body *')].filter(
        (e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.parentElement.closest('.drawing')).length,
    smallest: Math.min(...[...document.querySelectorAll('svg text')].map((e) => e.getBoundingClientRect().height)),
    empty: [...document.querySelectorAll('td')].filter(
        (e) => !e.textContent.trim() && e.offsetHeight > 40 && getComputedStyle(e, '::before').content === 'none').length,
    paper: getComputedStyle(document.body).backgroundColor,
    shown: [...document.querySelectorAll('details')].filter((e) => getComputedStyle(e).display !== 'none').length,
})"""


def test_the_page_is_of_the_best_model_and_asks_no_other_host():
    page = PAGE.read_text(encoding="utf-8")
    assert len(page) < 750_000
    assert not re.search(r"(src|href)=[\"']?https?:|url\(|@import", page.replace("url(#", ""))
    metrics = json.loads((ROOT / "results" / f"model_{maker.MODEL}.json").read_text())["metrics"]
    for name in ("test/accuracy", "likelihood/bits_per_dim"):
        assert re.search(rf"<td>{name}<td class=n>{metrics[name]['value']:.4f}<", page), name


def test_the_page_says_what_it_leaves_out():
    page = PAGE.read_text(encoding="utf-8")
    command = re.search(r"A selection: .*?<code>hybvit evaluate fashion-mnist --suites (\S+) --report</code>", page)[1].split(
        ","
    )
    assert [name for name, suite in SUITES.items() if f"<h2>{html.escape(suite.heading)}</h2>" not in page] == command
    assert maker.with_lead("<div class=tiles>", list(SUITES)) == "<div class=tiles>"


def test_fewer_bytes_keep_words_names_and_places():
    svg = '<svg width="288pt"><metadata>M</metadata><!-- c --><path id="p056.123" d="M 1.23456 -0.04\nL 20.0 3"/>\n  ' \
          '<text transform="rotate(-0 1.5 2.25)" x="60.27">0.0012</text></svg>'  # fmt: skip
    kept = '<svg width="288pt"><path id="p056.123" d="M 1.2 -0 L 20 3"/><text x="60.3">0.0012</text></svg>'
    assert maker.small(f"<p>1.2345</p>{svg}") == f"<p>1.2345</p>{kept}"


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
def test_the_page_fits_a_phone_the_dark_and_paper(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    own = re.sub(r"<style>.*?</style>", lambda _: f"<style>{STYLE}</style>", page, count=1, flags=re.DOTALL)
    (tmp_path / "page.html").write_text(own, encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        for width, dark in ((390, False), (390, True), (1280, True)):
            browser.open((tmp_path / "page.html").as_uri(), width, dark=dark)
            browser.wait(f"document.readyState === 'complete' && innerWidth === {width}")
            found = browser.run(MEASURES)
            assert found["width"] <= width
            assert (found["outside"], found["empty"]) == (0, 0), width
            assert found["smallest"] >= 7, "words in a drawing are too small to be read"
            assert found["paper"] == ("rgb(27, 27, 27)" if dark else "rgb(255, 255, 255)")
        browser.call("Emulation.setEmulatedMedia", media="print")
        found = browser.run(MEASURES)
        assert (found["paper"], found["shown"]) == ("rgb(255, 255, 255)", 0)
        assert not [url for url in browser.requests if url.startswith("http")]


@pytest.mark.parametrize("decades", [0.1, 0.3, 1, 2, 3, 7, 12])
def test_a_logarithmic_axis_has_labels_that_can_be_read(decades):
    figure, axes = plots._axes()
    axes.plot([0, 1], [0.03, 0.03 * 10**decades])
    plots.log_y(axes)
    figure.draw_without_rendering()
    low, high = axes.get_ylim()
    assert (
        3
        <= sum(
            low <= tick <= high and bool(label.get_text())
            for tick, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        )
        <= 11
    )


@pytest.mark.parametrize(
    ("training", "init", "words"),
    [
        ({}, None, "last trained for 5,000 steps of batch 128 + 64, seed 0"),
        ({"steps": 5000}, None, "trained for 5,000 steps of batch 128 + 64, seed 0"),
        ({"steps": 400}, "runs/a", "trained for 400 of 5,000 steps of batch 128 + 64, seed 0, after runs/a"),
    ],
)
def test_the_heading_claims_no_more_training_than_is_known(training, init, words):
    cfg = override(Config(), train={"steps": 5000, "batch_size": 128, "labelled_batch_size": 64, "init": init})
    assert trained({"training": training}, cfg) == words


def test_commands_in_a_note_are_code():
    note = "the model has none (`hybvit calibrate`): <b> `x`"
    assert prose(note) == "the model has none (<code>hybvit calibrate</code>): &lt;b&gt; `x`"
    assert plain(note) == r"the model has none (`hybvit calibrate`): &lt;b&gt; \`x\`"
