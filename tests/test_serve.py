"""`hybvit serve`: the line before the model, the JSON API, and the page in a browser."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from starlette.responses import PlainTextResponse

import hybvit
from hybvit.checkpoint import digest_of_weights
from hybvit.cli import classify as classify_command
from hybvit.cli.serve import bound
from hybvit.config import Config, DataConfig, override
from hybvit.data.image_set import to_x
from hybvit.errors import ConfigError
from hybvit.hub import BUNDLED, bundled
from hybvit.model import HybridModel
from hybvit.model.weights import fingerprint_of
from hybvit.networks import build_network
from hybvit.serving import familiar, markup, nearest, tab_report
from hybvit.serving.api import build_api
from hybvit.serving.api_page import written
from hybvit.serving.app import NAMES, Guard
from hybvit.serving.drawing import Wanted, draw
from hybvit.serving.familiar import Familiar
from hybvit.serving.limits import Busy, Caller, Desk, Gone
from hybvit.serving.page import build_page
from hybvit.serving.service import Service
from hybvit.serving.tab_attack import attack
from hybvit.storage import read_json

from .browser import PROGRAM, Browser, until
from .conftest import hybvit as command
from .forked import started

ROOT = Path(__file__).resolve().parent.parent


def as_file(pixels: torch.Tensor) -> bytes:
    return markup.png(pixels[None])


# the line


def test_a_desk_works_in_order_and_turns_away_who_finds_no_place():
    desk, done, start = Desk(waiting=1), [], threading.Event()
    first = desk.submit(lambda: (start.wait(10), done.append(1)))
    second = desk.submit(lambda: done.append(2))
    with pytest.raises(Busy, match=r"2 requests .* try again"):
        desk.submit(lambda: done.append(3))
    start.set()
    first.result(10), second.result(10)
    desk.submit(lambda: done.append(4)).result(10)
    assert done == [1, 2, 4]
    desk.close()


def test_a_failed_work_gives_its_place_back():
    desk = Desk(waiting=0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            desk.submit(lambda: 1 / 0).result(10)
    assert desk.submit(lambda: 5).result(10) == 5
    desk.close()


def test_a_stream_ends_with_the_result_and_leaves_out_what_was_overtaken():
    desk, seen, said = Desk(), threading.Event(), threading.Event()

    def work(say):
        say("first")
        seen.wait(10)
        for i in range(100):
            say(i)
        said.set()
        return "done"

    stream = desk.stream(work)
    assert next(stream) == "first"
    seen.set()
    said.wait(10)
    rest = list(stream)
    assert rest[-1] == "done"
    assert len(rest) <= 2
    desk.close()


def test_work_ends_when_nobody_listens():
    desk, ended = Desk(), threading.Event()

    def work(say):
        try:
            while True:
                say(0)
        except Gone:
            ended.set()
            raise

    stream = desk.stream(work)
    next(stream)
    stream.close()
    assert ended.wait(10)
    desk.submit(lambda: None).result(10)
    assert desk.taken == 0
    desk.close()


def test_spare_work_ends_with_the_desk_and_says_why_it_failed(capsys):
    desk, began = Desk(), threading.Event()

    def pieces():
        while True:
            began.set()
            desk.go_on()
            time.sleep(0.01)
        yield

    desk.spare(pieces())
    began.wait(10)
    started_at = time.monotonic()
    desk.close()
    assert time.monotonic() - started_at < 5

    def failing():
        raise OSError("no device")
        yield

    desk = Desk()
    desk.spare(failing())
    desk.submit(lambda: None).result(10)
    desk.close()
    assert capsys.readouterr().err == "warning: OSError: no device\n"


def test_spare_work_lets_others_go_first():
    desk, done = Desk(), []
    began, go_on = threading.Event(), threading.Event()

    def pieces():
        for i in range(3):
            began.set()
            go_on.wait(10)
            done.append(i)
            yield i

    desk.spare(pieces())
    began.wait(10)
    asked = desk.submit(lambda: done.append("asked"))
    go_on.set()
    asked.result(10)
    desk.close()
    assert done[:2] == [0, "asked"]


# drawing


@pytest.fixture(scope="module")
def digits():
    return hybvit.load("digits", "cpu")


@pytest.fixture(scope="module")
def fashion():
    return hybvit.load("fashion-mnist", "cpu")


@pytest.mark.parametrize("label", [None, "Bag"])
def test_what_is_watched_is_what_sample_draws(fashion, label, monkeypatch):
    monkeypatch.setattr("hybvit.serving.drawing.EVERY", 0)
    views = []
    pixels = draw(fashion, Wanted(n=3, label=label, steps=4, seed=5), views.append)
    assert torch.equal(pixels, fashion.sample(3, steps=4, labels=label, seed=5))
    assert [view.step for view in views] == [1, 2, 3, 4]
    assert all(view.pixels.shape == pixels.shape and view.pixels.dtype == torch.uint8 for view in views)
    assert torch.equal(views[-1].pixels, pixels)  # the last step of the sampler is its x_0
    assert not torch.equal(views[0].pixels, pixels)


def test_a_class_without_guidance_is_refused_where_nothing_guides_to_it(digits):
    with pytest.raises(ValueError, match="labels and guidance belong together"):
        draw(digits, Wanted(label="3", steps=2))
    for label in ("3", 3):
        guided = draw(digits, Wanted(n=2, label=label, guidance=2.0, steps=2))
        assert torch.equal(guided, digits.sample(2, steps=2, labels=3, guidance=2.0))


# how familiar


@pytest.mark.parametrize("name", bundled())
def test_the_quantiles_are_of_the_bundled_weights_and_of_the_test_images(name):
    model = hybvit.load(name, "cpu")
    found = familiar.known(model)
    assert found.densities == sorted(found.densities)
    metrics = json.loads((ROOT / "results" / f"model_{name}.json").read_text())["metrics"]["quality/logpx_mean_test"]
    assert f"{metrics['n']:,} test images" in found.images
    assert np.mean(found.densities) == pytest.approx(metrics["value"], abs=0.05)
    assert set(read_json(familiar.BUNDLED)) == {digest_of_weights(hybvit.load(n, "cpu").net.state_dict()) for n in bundled()}


def test_the_share_below_is_that_of_the_images():
    known = Familiar([1.0, 2.0, 3.0, 4.0], "4 images")
    assert [known.share_below(value) for value in (0, 1, 1.5, 2.5, 9)] == [0, 0, 0.25, 0.5, 1]
    assert "Unusual" in markup.gauge(known, 0.5)
    assert "Familiar" in markup.gauge(known, 3.5)
    assert "of 4 images" in markup.gauge(known, 3.5)


def test_an_unknown_model_is_compared_with_what_it_draws(tiny_run):
    service = Service(hybvit.load(tiny_run, "cpu"), "tiny")
    for _ in range(2 * familiar.SAMPLES // familiar.AT_ONCE):  # each has its turn between two pieces
        service.desk.submit(lambda: None).result(60)
    assert service.familiar.images == f"{familiar.SAMPLES} images that the model drew itself"
    assert len(service.familiar.densities) == familiar.SAMPLES
    service.desk.close()


def test_the_most_similar_drawing_to_a_drawing_is_itself(service, digits):
    drawn = digits.sample(nearest.DRAWN, steps=nearest.STEPS)
    (pixels, label, cosine), *others = service.desk.submit(lambda: service.nearest(drawn[5:6])).result(60)
    assert torch.equal(pixels, drawn[5])
    assert label == digits.predict(drawn[5:6]).labels
    assert cosine == pytest.approx(1, abs=1e-5)
    assert all(cosine > other[2] for other in others)


# words


def test_names_of_classes_are_text():
    for html in (
        markup.bars(["<b>x", "y"], [0.9, 0.1], [0]),
        markup.notice("<b>x"),
        markup.figures([markup.Shown(torch.zeros(1, 2, 2, dtype=torch.uint8), "<b>x", '"<b>x')]),
        markup.table(["<b>x"], [["<b>x", "<b>x"]]),
    ):
        assert "<b>x" not in html
        assert "&lt;b&gt;x" in html


def test_a_percentage_is_never_rounded_to_certainty():
    shown = [markup.percent(p).replace("\u00a0", " ") for p in (1, 0.99999, 0.5, 0.0001, 0)]
    assert shown == ["100.0 %", ">99.9 %", "50.0 %", "<0.1 %", "0.0 %"]


def test_a_card_has_its_pictures_inside_and_no_metadata():
    text = tab_report.card(BUNDLED / "digits" / "README.md")
    assert text.lstrip().startswith("This Vision Transformer")
    assert "](data:image/png;base64," in text
    assert "samples.png" not in text


@pytest.mark.parametrize("name", bundled())
def test_a_card_shows_its_headlines_and_folds_the_rest(name):
    whole = (BUNDLED / name / "README.md").read_text(encoding="utf-8")
    text = tab_report.card(BUNDLED / name / "README.md")
    shown, _, hidden = text.partition("<details><summary>All ")
    rows = re.findall(r"^\| `.*$", whole, re.MULTILINE)
    assert hidden.startswith(f"{len(rows)} figures</summary>\n\n| metric |")
    assert all(row in hidden.partition("</details>")[0] for row in rows)
    first = re.findall(r"^\| `(.*?)`", shown, re.MULTILINE)
    assert 4 <= len(first) <= 12
    assert {"test/accuracy", "likelihood/bits_per_dim"} <= {*first}
    short = "| metric | value |\n|---|---|\n| `test/accuracy` | 1 |\n"
    assert tab_report.folded(short) == short


def test_a_report_of_other_weights_is_told_from_one_of_these(tmp_path):
    model, file = hybvit.load("digits", "cpu"), tmp_path / "results.json"
    for weights, outdated in ((fingerprint_of(model), False), ("0" * 64, True)):
        file.write_text(json.dumps({"suites": {"accuracy": {"settings": {"weights": weights}}}}))
        assert tab_report.is_outdated(file, model) is outdated
    for text in ("{}", '{"suites": []}', '{"suites": {"a": 1, "b": {"settings": []}}}', "damaged"):
        file.write_text(text)
        assert not tab_report.is_outdated(file, model)
    assert not tab_report.is_outdated(tmp_path / "missing.json", model)


def test_the_report_of_a_run_is_found_from_its_checkpoints(tmp_path):
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "report.html").write_text("<p>")
    for name in (tmp_path, tmp_path / "checkpoints" / "step-1"):
        assert tab_report.report_of(str(name)) == tmp_path / "report.html"
    assert tab_report.report_of("digits") is None


# the API


AS_JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service(digits):
    served = Service(digits, "digits")
    yield served
    served.desk.close()


@pytest.fixture(scope="module")
def api(service):
    app = build_api(service)
    app.add_middleware(Guard, most=1 << 20)
    return TestClient(app)


@pytest.fixture(scope="module")
def pixels(digits):
    return digits.sample(3, steps=3)


def test_an_error_that_nobody_foresaw_is_one_line_of_json_too(service, monkeypatch):
    def failing(*args, **kwargs):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(service, "bits_per_dim", failing)
    client = TestClient(build_api(service), raise_server_exceptions=False)
    answer = client.post("/v1/likelihood", files={"image": ("1.png", as_file(torch.zeros(1, 8, 8, dtype=torch.uint8)))})
    assert (answer.status_code, answer.json()) == (500, {"detail": "internal error: RuntimeError: CUDA out of memory"})


def test_a_bound_is_written_as_people_write_it():
    assert [written(bound) for bound in (64, 0.5, 2**63, 1e6)] == ["64", "0.5", "2^63", "1e+06"]


def test_classify_says_what_predict_does(api, digits, pixels):
    files = [("image", (f"{i}.png", as_file(image))) for i, image in enumerate(pixels)]
    answer = api.post("/v1/classify", files=files, params={"top": 2}).json()
    expected, sets = digits.predict(pixels), digits.prediction_set(pixels, 0.95)
    seen = list[dict]()
    parts = (answer["answers"], expected.labels, expected.probabilities, expected.score, sets)
    for got, label, row, score, held in zip(*parts, strict=True):
        assert got["label"] == digits.classes[label]
        assert got["probabilities"] == pytest.approx({digits.classes[k]: row[k].item() for k in row.topk(2).indices})
        assert next(iter(got["probabilities"])) == got["label"]
        assert got["log_density"] == pytest.approx(score.item())
        assert got["set"] == [digits.classes[k] for k in held.nonzero().flatten()]
        assert got["set"]
        assert got["abstains"] == bool(digits.predict(pixels, 0.05).labels[len(seen)] < 0)
        seen.append(got)
        assert 0 <= got["familiarity"] <= 1
    assert "test images" in answer["compared_with"]


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_command_line_has_the_fields_of_the_api(api, digits, pixels, calibrated, monkeypatch, tmp_path, capsys):
    noise = torch.randint(256, (1, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if not calibrated:
        monkeypatch.setattr(digits, "calibration", None)
    monkeypatch.setattr(classify_command, "load", lambda source: digits)
    for i, image in enumerate(torch.cat((pixels, noise))):
        (tmp_path / f"{i}.png").write_bytes(as_file(image))
    classify_command.main(["digits", str(tmp_path), "--json", "--top", "5"])
    ours = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    files = [("image", (path.name, path.read_bytes())) for path in sorted(tmp_path.iterdir())]
    theirs = api.post("/v1/classify", files=files).json()["answers"]
    assert any(one["abstains"] for one in ours) is calibrated
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() - {"image"} == other.keys() - {"familiarity"}
        assert {k: one[k] for k in ("label", "abstains", "set", "coverage")} == {
            k: other[k] for k in ("label", "abstains", "set", "coverage")
        }
        assert one["probabilities"] == pytest.approx(other["probabilities"])


def test_a_model_that_is_not_calibrated_answers_without_sets(api, digits, pixels, monkeypatch):
    files = [("image", ("0.png", as_file(pixels[0])))]
    (held,) = api.post("/v1/classify", files=files, params={"coverage": 0.99}).json()["answers"]
    assert held["set"] == [digits.classes[k] for k in digits.prediction_set(pixels[:1], 0.99)[0].nonzero().flatten()]
    monkeypatch.setattr(digits, "calibration", None)
    (got,) = api.post("/v1/classify", files=files, params={"coverage": 0.99}).json()["answers"]
    assert (got["set"], got["abstains"]) == (None, None)


def test_sample_gives_the_images_of_the_seed(api, digits):
    answer = api.post("/v1/sample", json={"n": 2, "steps": 3, "seed": 7}).json()
    images = [np.array(Image.open(io.BytesIO(base64.b64decode(text)))) for text in answer["images"]]
    assert np.array_equal(np.stack(images), digits.sample(2, steps=3, seed=7)[:, 0])


def test_likelihood_is_the_bound_of_each_image_alone(digits, pixels):
    short = HybridModel(digits.net, override(digits.cfg, diffusion={"steps": 20}), "cpu")
    service = Service(short, "short")
    files = [("image", (f"{i}.png", as_file(image))) for i, image in enumerate(pixels[:2])]
    answer = TestClient(build_api(service)).post("/v1/likelihood", files=files).json()
    assert [one["log_density"] for one in answer] == pytest.approx(digits.predict(pixels[:2]).score.tolist())
    alone = [short.bits_per_dim(to_x(image[None])).item() for image in pixels[:2]]
    assert [one["bits_per_dim"] for one in answer] == pytest.approx(alone)
    service.desk.close()


def bomb() -> bytes:
    """A PNG of a few kB that would be 81 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("path", "sent", "status", "words"),
    [
        ("classify", {"files": {"image": ("note.txt", b"hello")}}, 422, "note.txt: not an image of a format"),
        ("classify", {"files": {"image": ("cut.png", b"\x89PNG\r\n\x1a\n123")}}, 422, "cut.png: "),
        ("classify", {"files": {"image": ("large.png", bytes(2 << 20))}}, 413, "larger than 1 MB"),
        ("classify", {"files": [("image", ("a.png", b"1"))] * 17}, 422, "^image is 17 files: it must be 1 to 16 files$"),
        ("classify", {}, 422, "^image is missing: it must be 1 to 16 files$"),
        ("classify", {"data": {"image": "a"}}, 422, '^image is "a": it must be 1 to 16 files$'),
        (
            "classify",
            {"files": {"image": ("a.png", b"1")}, "params": {"coverage": 2}},
            422,
            "it must be a number above 0 and below 1$",
        ),
        ("classify", {"params": {"tp": 3}}, 422, "^tp: there is no such field in the query: did you mean top\\?$"),
        ("classify", {"data": {"top": 3}}, 422, "^top: there is no such field in the form: it takes image$"),
        ("sample", {"json": {"n": 65}}, 422, "^n is 65: it must be a whole number from 1 to 64$"),
        ("sample", {"json": {"n": True}}, 422, "^n is true: it must be a whole number from 1 to 64$"),
        ("sample", {"json": {"steps": 1.5}}, 422, "^steps is 1.5: it must be a whole number from 1 to 100$"),
        ("sample", {"json": {"seed": None}}, 422, "^seed is null: it must be a whole number from 0 and below 2\\^63$"),
        (
            "sample",
            {"json": {"number": 2}},
            422,
            "^number: there is no such field in the JSON: it takes n, label, guidance, steps, seed$",
        ),
        ("sample", {"content": b"[" * 100_000, "headers": AS_JSON}, 422, "^the body is no JSON: it is nested too deep$"),
        ("sample", {"content": b'{"n": "\xff"}', "headers": AS_JSON}, 422, "^the body is no JSON: it is not UTF-8$"),
        ("sample", {"json": {"label": [3]}}, 422, r"^label is \[3\]: it must be text or a whole number or null$"),
        ("sample", {"json": {"label": 10, "guidance": 1}}, 422, r"^labels must be in 0\.\.9$"),
        ("sample", {"json": [3]}, 422, r"^the body is \[3\]: it must be a JSON object of n, label,"),
        ("sample", {}, 422, "^the body is missing: it must be a JSON object of n, label,"),
        ("sample", {"json": {"label": "cat", "guidance": 1}}, 422, "label 'cat' is none of the model's classes"),
        ("sample", {"json": {"label": "3"}}, 422, "labels and guidance belong together"),
        (
            "sample",
            {"content": b"{", "headers": {"Content-Type": "application/json"}},
            422,
            "^the body is no JSON: Expecting .* at character 1$",
        ),
        ("likelihood", {"files": [("image", ("a.png", b"1"))] * 5}, 422, "^image is 5 files: it must be 1 to 4 files$"),
        ("nothing", {}, 404, "Not Found"),
    ],
)
def test_an_error_is_one_line_with_the_cure(api, path, sent, status, words):
    answer = api.post(f"/v1/{path}", **sent)
    assert answer.status_code == status
    assert re.search(words, answer.json()["detail"]), answer.json()
    assert "\n" not in answer.json()["detail"]


@pytest.mark.slow
def test_pixels_are_counted_before_they_are_decoded(api):
    answer = api.post("/v1/classify", files={"image": ("bomb.png", bomb())})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "bomb.png: 9000 x 9000 is more than 64,000,000 pixels: reduce its size"


def test_a_full_line_is_said_and_does_not_hide_the_health(api, service):
    go_on = threading.Event()
    held = [service.desk.submit(lambda: go_on.wait(20)) for _ in range(service.desk.places)]
    try:
        answer = api.post("/v1/sample", json={"steps": 1})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        assert "busy" in answer.json()["detail"]
        health = api.get("/healthz").json()
        assert health == {"status": "ok", "model": "digits", "version": hybvit.__version__, "in_line": service.desk.places}
    finally:
        go_on.set()
    for one in held:
        one.result(20)


async def post(app, path, content, left: asyncio.Event) -> list[dict]:
    """What a client is sent that disconnects at an event."""
    sent, messages = [], [{"type": "http.request", "body": content}]

    async def receive():
        if not messages:
            await left.wait()
            return {"type": "http.disconnect"}
        return messages.pop()

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"here"), (b"content-type", b"application/json")]
    await app({"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}, receive, send)
    return sent


def test_clients_that_leave_keep_no_place(api, service):
    async def crowd():
        left, longest = asyncio.Event(), json.dumps({"n": 64, "steps": 100}).encode()
        asked = [asyncio.create_task(post(api.app, "/v1/sample", longest, left)) for _ in range(service.desk.places)]
        while service.desk.taken < service.desk.places or service.desk.served is None:
            await asyncio.sleep(0.01)
        left.set()
        await asyncio.wait_for(asyncio.gather(*asked), 10)  # a drawing like this takes longer

    with ThreadPoolExecutor(1) as pool:  # in the main thread, asyncio.run would drop the event loop that gradio made, unclosed
        pool.submit(asyncio.run, crowd()).result()
    assert api.post("/v1/sample", json={"steps": 1}).status_code == 200
    assert service.desk.taken == 0


@pytest.mark.parametrize(
    "work",
    [
        lambda service, pixels: service.bits_per_dim(pixels),
        lambda service, pixels: service.model.certify(pixels),
        lambda service, pixels: attack(service.model, pixels, 0.03),
        lambda service, pixels: service.model.vary(pixels),
        lambda service, pixels: service.model.counterfactual(pixels, 0),
        lambda service, pixels: service.model.read(pixels, "diffusion"),
    ],
)
def test_all_work_ends_at_its_next_step(fashion, work):
    service, caller = Service(fashion, "fashion-mnist"), Caller()
    pixels = fashion.sample(1, steps=1)
    with pytest.raises(Gone):
        service.desk.submit(lambda: (caller.leave(), work(service, pixels)), caller).result(20)
    service.desk.close()


def test_an_address_answers_to_its_names_and_methods_alone(service):
    app = build_api(service)
    app.mount("/", PlainTextResponse("the page"))
    app.add_middleware(Guard, names=NAMES)
    for name in ("127.0.0.1:80", "localhost", "[::1]:7860"):
        assert TestClient(app, f"http://{name}").get("/").text == "the page"
    other = TestClient(app, "http://elsewhere.example").get("/healthz")
    assert (other.status_code, other.json()) == (
        400,
        {"detail": "the Host is 'elsewhere.example': it must be 127.0.0.1 or localhost or [::1]"},
    )
    wrong = TestClient(app, "http://localhost").get("/v1/classify")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert wrong.json() == {"detail": "/v1/classify takes POST only"}


def test_the_page_of_the_api_names_every_call_and_asks_nobody(api):
    document, page = api.get("/openapi.json").json(), api.get("/docs").text
    assert set(document["paths"]) == {"/v1/classify", "/v1/sample", "/v1/likelihood", "/healthz"}
    for path in document["paths"]:
        assert f"{path}</code></h2>" in page
    assert "Sampler steps. (from 1 to 100, default 20)" in page
    assert "curl -F image=@picture.png http://testserver/v1/classify" in page
    assert not re.search(r"(src|href)=.?(https?:)?//", page)


# the command


@pytest.mark.parametrize("port", [65536, 99999, 10**12])
def test_a_port_that_there_is_not_is_refused(port):
    with pytest.raises(ConfigError, match=f"--port {port}: a port is at most 65535"):
        bound("127.0.0.1", port)


@pytest.mark.parametrize("host", ["example.invalid", "192.0.2.1", "a..b"])
def test_a_host_that_is_another_is_said(host):
    with pytest.raises(ConfigError, match=rf"^--host {host}: [^;]*; give an address of this machine, such as 127.0.0.1$"):
        bound(host, 0)


def test_a_port_that_is_taken_is_said(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = command("serve", "digits", "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert re.search(r"hybvit: --host 127.0.0.1 --port \d+: .*in use.*; give another --port, or 0", done.stderr)


def test_a_missing_gradio_is_named_with_its_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("hybvit.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = command("serve", "digits", "--port", "0")
    assert done.returncode == 2
    assert "pip install 'hybvit[serve]'" in done.stderr


# the page


@pytest.fixture
def server():
    """The address of a server, as a user starts it."""
    running = started("serve", "fashion-mnist", "--port", 0)
    said = Path(running.folder.name) / "out"
    until(lambda: running.poll() is not None or (said.exists() and said.read_text()), 120, "the server answers")
    yield re.match(r"(http://127\.0\.0\.1:\d+) shows fashion-mnist; Ctrl-C ends it\n", said.read_text())[1]
    os.kill(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.poll(), out.splitlines()[1:], err) == (0, ["ended"], "")


def text_of(selector: str) -> str:
    return f'(document.querySelector("{selector}")?.innerText ?? "")'


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium")
def test_the_page_in_a_browser(server, fashion, tmp_path):
    note, shoe = tmp_path / "note.png", tmp_path / "shoe.png"
    note.write_text("hello")
    image = fashion.sample(1, labels="Ankle boot", steps=5)
    shoe.write_bytes(as_file(image[0]))
    with Browser(tmp_path / "profile") as browser:
        browser.open(server, width=390, height=844)
        browser.upload(".picture input[type=file]", note)
        browser.wait(f'{text_of("#labels .notice")}.includes("note.png: not an image of a format")')
        browser.use('.picture [aria-label="Remove Image"]')
        browser.upload(".picture input[type=file]", shoe)
        first = browser.wait(text_of("#labels .seen b"))
        assert first == fashion.classes[fashion.predict(image).labels]
        assert "of the 10,000 test images" in browser.run(text_of("#labels .gauge"))

        browser.use("[role=tab]", "Draw")
        browser.use_until("#draw", f'{text_of("#drawn [role=status]")}.startsWith("20 steps")')
        assert browser.run('document.querySelector("#drawn img").naturalWidth') == 4 * 28 + 5  # 16 images with gaps

        browser.use("[role=tab]", "Edit")
        browser.wait('document.querySelector("#brush img")?.naturalWidth === 28')
        browser.use_until("#edit", f'{text_of("#edited .notice")}.includes("nothing is painted")')
        browser.run('document.querySelector("#brush canvas").focus()')
        browser.press("Space")
        browser.press("ArrowRight", 3)
        browser.press("Space")
        browser.use_until("#edit", 'document.querySelectorAll("#edited figure").length === 5')

        browser.use("[role=tab]", "Attack")
        browser.use_until("#attack", 'document.querySelectorAll("#attacked tbody tr").length === 3')

        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert "Traceback" not in browser.run("document.body.innerText")
        kept = Path(browser.run('document.querySelector(".picture img").src').partition("file=")[2])
        assert kept.parent.is_dir()
        assert httpx.get(f"{server}/healthz", headers={"Host": "elsewhere.example"}).status_code == 400
        assert httpx.get(f"{server}/v1/classify").status_code == 405  # though the page is mounted below
        places = {address.split("/")[2] for address in browser.requests if not address.startswith(("data:", "blob:"))}
        assert places == {server.split("/")[2]}
        assert browser.faults == []


@pytest.mark.parametrize("kind", ["genvit", "hybvit"])
def test_the_model_draws_a_picture_for_every_tab(kind):
    cfg = Config(
        model=hybvit.ViTConfig(image_size=8, patch_size=4, channels=1, dim=16, depth=1, heads=2), data=DataConfig("digits")
    )
    cfg = override(cfg, objective={"kind": kind}, diffusion={"steps": 4})
    service = Service(HybridModel(build_network(cfg), cfg, torch.device("cpu")), kind)
    page = build_page(service)
    pictures = [fn for fn in page.fns.values() if fn.outputs and not fn.inputs and isinstance(fn.outputs[0], gr.Image)]
    draws = [fn for fn in pictures if callable(fn.fn)]
    assert draws
    for fn in draws:
        found = asyncio.run(page.process_api(fn, []))["data"]
        assert len(found) == len(fn.outputs) == (1 if kind == "genvit" else 3)
        assert all(Path(one["path"]).is_file() for one in found)
    service.desk.close()


SENT_BY_HAND = {  # what the page of itself does not send -> the line in the panel
    "drawn": [
        (4, -1, "Seed is -1: it must be a number from 0 to 9,223,372,036,854,775,807"),
        (4, 2**63, "Seed is 9223372036854775808: it must be"),
        (4, "7", "Seed is &#x27;7&#x27;: it must be a number"),
        (4, math.nan, "Seed is nan"),
        (3, 99, "Guidance to the class is 99: it must be a number from 0 to 5"),
        (2, None, "Steps is None: it must be a number from 1 to 100"),
        (1, 65, "Images is 65: it must be a number from 1 to 64"),
        (1, True, "Images is True"),
        (0, "cat", "Class is &#x27;cat&#x27;: it must be one of any class, 0, 1"),
    ],
    "edited": [
        (1, "Sharpen", "Edit is &#x27;Sharpen&#x27;: it must be one of Fill in, Variations, Counterfactual"),
        (4, 2, "Strength is 2: it must be a number from 0.05 to 1"),
        (5, -1, "Seed is -1"),
    ],
    "attacked": [(1, 1e9, "Epsilon is 1000000000.0: it must be a number from 0 to 16")],
}
VALUES = {
    "drawn": ["any class", 1, 2, 0.0, 0],
    "edited": [None, "Variations", None, "any class", 0.5, 0],
    "attacked": [None, 8],
}


@pytest.mark.parametrize("panel", SENT_BY_HAND)
def test_a_call_by_hand_gets_a_line_in_the_panel_and_the_terminal_nothing(service, panel, capfd):
    page = build_page(service)
    call = next(fn for fn in page.fns.values() if [out.elem_id for out in fn.outputs] == [panel] and len(fn.inputs) > 1)
    for place, value, said in SENT_BY_HAND[panel]:
        sent = [*VALUES[panel]]
        sent[place] = value
        assert call.inputs[place].preprocess(value) is value
        (line,) = call.fn(*sent)
        assert line.startswith(f'<p class="notice" role="alert">{said}'), line
    assert capfd.readouterr() == ("", "")
