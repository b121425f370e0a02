"""What is kept of the images that a model was trained on, and what resuming and evaluating do with others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hybvit.config import load_config, override
from hybvit.data.fingerprint import ListedImage, fingerprint, numbers, shares_training_images
from hybvit.errors import ConfigError
from hybvit.evaluation.subject import open_subject
from hybvit.presets import preset

from . import official
from .conftest import TINY, hybvit, opened
from .test_own_images import own, save
from .test_shards import write_shards

IMAGES = [ListedImage(f"cat/{i}.png", 1000 + i, "cat") for i in range(50)]


@pytest.mark.parametrize(
    "others",
    [
        IMAGES[1:],
        [*IMAGES, ListedImage("cat/50.png", 7, "cat")],
        [IMAGES[0]._replace(name="cat/x.png"), *IMAGES[1:]],
        [IMAGES[0]._replace(size=0), *IMAGES[1:]],
        [IMAGES[0]._replace(class_name="dog"), *IMAGES[1:]],
    ],
    ids=["fewer", "more", "renamed", "another size", "another class"],
)
def test_a_fingerprint_tells_images_apart_but_not_their_order(others):
    kept = fingerprint(IMAGES, IMAGES[:5])
    assert kept == fingerprint(IMAGES[::-1], IMAGES[:5])
    assert kept not in {fingerprint(others, IMAGES[:5]), fingerprint(IMAGES, others), fingerprint(IMAGES[:5], IMAGES)}
    assert numbers(kept) == "50 training and 5 test images"
    assert shares_training_images(kept, others)
    override(preset("digits"), data={"fingerprint": kept})  # the configuration accepts its form


def test_images_that_were_trained_on_are_recognized_in_any_half_of_them():
    kept = fingerprint(IMAGES, [])
    assert all(shares_training_images(kept, IMAGES[start::2]) for start in (0, 1))
    assert not shares_training_images(kept, [image._replace(size=1) for image in IMAGES])
    assert not shares_training_images(kept, [])
    assert all(shares_training_images(unknown, IMAGES) for unknown in ("", "any"))


@pytest.mark.parametrize("suffix", [".bmp", ".PPM", ".tif"])
@pytest.mark.parametrize("form", ["folder", "manifest"])
def test_other_images_of_the_same_names_and_sizes_are_others(tmp_path, suffix, form):
    found = []
    for part, first in (("a", 0), ("b", 100), ("again", 0)):
        for i in range(12):
            save(tmp_path / part / "ab"[i % 2] / f"{i}{suffix}", (first + 9 * i, 77, 33))
        rows = [f"{'ab'[i % 2]}/{i}{suffix},{'ab'[i % 2]}" for i in range(12)]
        (tmp_path / part / "m.csv").write_text("\n".join(["path,label", *rows]))
        root = tmp_path / part if form == "folder" else tmp_path / part / "m.csv"
        found.append(opened(own(root, form)).fingerprint)
    assert found[0] == found[2] != found[1]
    sizes = {path.stat().st_size for path in tmp_path.glob(f"[ab]/*/*{suffix}")}
    assert len(sizes) == 1


@pytest.mark.parametrize("damaged", ["x", "1+2", "1+2 0", "a+b 0123456789abcdef 00", "1+2 0123456789abcdef " + "0" * 999])
def test_a_damaged_fingerprint_is_refused(damaged):
    with pytest.raises(ConfigError, match=r"data\.fingerprint"):
        override(preset("digits"), data={"fingerprint": damaged})


@pytest.mark.parametrize("form", ["folder", "split folder", "zip", "manifest", "huggingface", "shards"])
def test_every_form_of_ones_own_images_has_a_fingerprint(tmp_path, form):
    def build(n: int) -> Path:
        root = tmp_path / f"{n}"
        members = {f"{'ab'[i % 2]}/{i}.png": (tmp_path / f"{i}.png").read_bytes() for i in range(n)}
        if form == "zip":
            return official.zip_file(Path(f"{root}.zip"), members)
        if form == "split folder":
            return official.unpacked(
                root, {f"{split}/{name}": raw for name, raw in members.items() for split in ("train", "val")}
            )
        if form == "manifest":
            Path(f"{root}.csv").write_text("\n".join(["path,label", *(f"{i}.png,{'ab'[i % 2]}" for i in range(n))]))
            return Path(f"{root}.csv")
        if form == "huggingface":
            import datasets

            rows = {
                "image": [{"bytes": raw, "path": None} for raw in members.values()],
                "label": ["ab"[i % 2] for i in range(n)],
            }
            features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
            datasets.Dataset.from_dict(rows, features=features).to_parquet(f"{root}.parquet")
            return Path(f"{root}.parquet")
        if form == "shards":
            for split in ("train", "test"):
                write_shards(root, [n], prefix=split)
            return root
        return official.unpacked(root, members)

    for i in range(12):
        save(tmp_path / f"{i}.png", (20 * i, 0, 0))
    name = form if form in ("manifest", "huggingface", "shards") else "folder"
    first, again, more = (opened(own(build(n), name, split="hash")).fingerprint for n in (11, 11, 12))
    assert first == again != more
    assert numbers(first) != "unknown"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with images of cats and dogs in ``images``, and a run trained on them in ``run``."""
    root = tmp_path_factory.mktemp("trained")
    for i in range(30):
        save(root / "images" / ["cat", "dog"][i % 2] / f"{i}.png", (8 * i, 40, 255 - 8 * i))
    done = hybvit("train", "digits", "--data", root / "images", "--out", root / "run", "--train.steps=2", *TINY)
    assert done.returncode == 0, done.stderr
    return root


def resumed(run: Path, images: Path, *more: str):
    return hybvit("train", "digits", "--data", images, "--out", run, "--train.steps=2", *TINY, *more)


@pytest.mark.slow
def test_a_run_is_not_resumed_on_other_images_unless_told(trained, tmp_path):
    run, images = (shutil.copytree(trained / name, tmp_path / name) for name in ("run", "images"))
    assert resumed(run, images).returncode == 0  # the same images in another place
    (images / "cat" / "0.png").unlink()
    refused = resumed(run, images)
    assert refused.returncode == 2
    kept = load_config(run / "config.yaml").data.fingerprint
    assert numbers(kept) in refused.stderr
    assert "--data.fingerprint any" in refused.stderr
    told = resumed(run, images, "--data.fingerprint", "any")
    assert told.returncode == 0
    assert "until now" in told.stdout
    assert load_config(run / "config.yaml").data.fingerprint not in ("any", kept)
    assert resumed(run, images).returncode == 0


@pytest.mark.slow
def test_a_run_is_resumed_for_more_steps_and_says_so(trained, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    longer = hybvit("train", "digits", "--data", trained / "images", "--out", run, "--train.steps=4", *TINY)
    assert longer.returncode == 0, longer.stderr
    assert "was started for 2 steps" in longer.stdout
    assert "resumed at step 2 of 4" in longer.stdout
    assert "train.steps = 4, not 2" in resumed(run, trained / "images").stderr  # fewer are refused


@pytest.mark.slow
@pytest.mark.parametrize("change", ["none", "moved", "one more", "one fewer", "others"])
def test_an_evaluation_knows_which_images_were_trained_on(trained, tmp_path, change, capfd):
    """Of the model's own images, those that it was not trained on are judged; of others, all are."""
    images, own_test = trained / "images", len(opened_for(trained / "run", trained / "images").test)
    assert own_test < 15
    if change != "none":
        images = shutil.copytree(images, tmp_path / "elsewhere")
    if change == "one more":
        save(images / "cat" / "new.png")
    if change == "one fewer":
        (images / "dog" / "1.png").unlink()
    if change == "others":
        for path in sorted(images.glob("*/*.png")):
            path.rename(path.with_name(f"new{path.name}"))
    capfd.readouterr()
    data = opened_for(trained / "run", images)
    said = capfd.readouterr().err
    if change == "others":
        assert len(data.test) == 30
        assert "all are test images" in said
    else:
        assert abs(len(data.test) - own_test) <= 1
        assert ("not the images" in said) is (change not in ("none", "moved"))


def opened_for(run: Path, images: Path):
    return open_subject(str(run), None, str(images)).data


def test_an_evaluation_of_a_named_set_s_model_judges_all_of_a_folder(tiny_run, tmp_path):
    for i in range(30):
        save(tmp_path / f"{i % 10}" / f"{i}.png", mode="L")
    assert len(opened_for(tiny_run, tmp_path).test) == 30


@pytest.mark.slow
def test_an_evaluation_takes_test_images_from_elsewhere(trained, tmp_path):
    for i in range(5):
        save(tmp_path / "tests" / ["cat", "dog"][i % 2] / f"t{i}.png")
    words = [
        "evaluate",
        trained / "run",
        "--suites",
        "accuracy",
        "--out",
        tmp_path / "out",
        "--data.test_root",
        tmp_path / "tests",
    ]
    done = hybvit(*words, "--data", trained / "images")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]["test/accuracy"]["n"] == 5
    assert "give --data too" in hybvit(*words).stderr


def test_training_needs_training_images(tmp_path):
    for i in range(4):
        save(tmp_path / "images" / "ab"[i % 2] / f"{i}.png")
    refused = hybvit("train", "digits", "--data", tmp_path / "images", "--out", tmp_path / "run", "--data.split=none", *TINY)
    assert refused.returncode == 2
    assert "data.split is none" in refused.stderr
