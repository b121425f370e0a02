"""No image that a model was trained on is a test image of it, wherever it lies and whatever lists it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch

import hybvit as package
from hybvit.data.fingerprint import ListedImage
from hybvit.data.trained_on import digests_of, recognize, united
from hybvit.errors import CheckpointError, ConfigError, DataError
from hybvit.evaluation.subject import open_subject
from hybvit.evaluation.unseen import calibration_images

from . import official
from .conftest import TINY, hybvit, opened
from .test_own_images import own, table

N, COLOR = 40, ("--model.channels=3", *TINY)


def images(files: dict[str, bytes]) -> tuple[list[ListedImage], list[bytes]]:
    return [ListedImage(name, len(raw)) for name, raw in files.items()], list(files.values())


def test_images_are_recognized_by_name_and_size_and_where_these_are_shared_by_content():
    listed, raw = images({"cat/1.jpg": b"aa", "dog/1.jpg": b"bb", "cat/2.jpg": b"ccc", "dog/3.jpg": b"dd", "owl/3.jpg": b"ee"})
    read = list[int]()

    def content(i: int) -> bytes:
        read.append(i)
        return raw[i]

    kept = digests_of(listed, content, [0, 2, 3])
    assert read == [0, 3]  # only those whose name and size others share
    assert recognize(kept, listed, content) == [True, False, True, True, False]
    moved = [image._replace(name=f"elsewhere/{image.name.split('/')[1]}") for image in listed]
    assert recognize(kept, moved, content) == [True, False, True, True, False]
    assert recognize(kept, [image._replace(size=9) for image in listed], content) == [False] * 5
    assert recognize(kept, [listed[1]._replace(name="1.jpg")], lambda i: b"bb") == [False]
    assert recognize(kept, [listed[1]._replace(name="1.jpg")], lambda i: b"aa") == [True]


def test_what_is_kept_takes_8_bytes_an_image_and_is_shown_only_if_all_of_it_is_known():
    listed = [ListedImage(f"{i}.png", i) for i in range(1000)]
    one, two = (digests_of(listed, lambda i: b"", part) for part in (range(600), range(400, 900)))
    assert (one.dtype, one.nbytes) == (torch.int64, 8 * 600)
    both = united(("folder", one), ("cifar10", None), ("manifest", two))
    assert recognize(both, listed, lambda i: b"") == [i < 900 for i in range(1000)]
    assert united(("folder", one), ("shards", None)) is None
    assert united(("cifar10", None)) is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder of cats and dogs, all different, in ``images``; a run trained on it in ``run``, and its export."""
    root = tmp_path_factory.mktemp("trained")
    official.unpacked(root / "images", {f"{['cat', 'dog'][i % 2]}/{i}.jpg": official.jpeg(i) for i in range(N)})
    done = hybvit("train", "digits", "--data", root / "images", "--out", root / "run", "--train.steps=2", *COLOR)
    assert done.returncode == 0, done.stderr
    package.load(root / "run", "cpu").save_pretrained(root / "export")
    return root


def own_test(trained: Path) -> set[str]:
    """The names of the images that the run was not trained on."""
    data = opened(own(trained / "images", split="hash"))
    files = sorted((trained / "images").glob("*/*.jpg"))
    judged = {image.numpy().tobytes() for image in data.test.in_memory}
    whole = opened(own(trained / "images", split="none")).test.in_memory
    return {path.name for path, image in zip(files, whole, strict=True) if image.numpy().tobytes() in judged}


def copied(trained: Path, tmp_path: Path, form: str) -> Path:
    """The images of the run in another form."""
    found = sorted((trained / "images").glob("*/*.jpg"))
    rows = [{"path": str(path), "label": path.parent.name} for path in found]
    if form == "list":
        return table(tmp_path, "csv", [{**row, "path": f"a/{Path(row['path']).name}"} for row in rows])
    if form == "absolute list":
        return table(tmp_path, "csv", rows)
    if form == "zip":
        return official.zip_file(tmp_path / "a.zip", {f"x/{path.parent.name}/{path.name}": path.read_bytes() for path in found})
    place = {"deeper": "{kind}/2026/", "some": "{kind}/", "sorted": "{part}/{kind}/"}
    for k, path in enumerate(found[:: 2 if form == "some" else 1]):
        folder = tmp_path / "a" / place[form].format(kind=path.parent.name, part="test" if k % 3 == 0 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return tmp_path / "a"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["run", "export"])
@pytest.mark.parametrize("form", ["list", "absolute list", "zip", "deeper", "some", "sorted"])
def test_no_image_of_the_training_is_judged(trained, tmp_path, capfd, form, model):
    if form == "list":
        shutil.copytree(trained / "images", tmp_path / "b")
        (tmp_path / "a").mkdir()
        for path in (tmp_path / "b").glob("*/*.jpg"):
            shutil.copy(path, tmp_path / "a")
    place = copied(trained, tmp_path, form)
    data = open_subject(str(trained / model), None, str(place)).data
    said = capfd.readouterr().err
    assert not data.all_test
    assert "all are test images" not in said
    fresh = own_test(trained)
    whole = opened(own(trained / "images", split="none")).test.in_memory
    names = [path.name for path in sorted((trained / "images").glob("*/*.jpg"))]
    allowed = {image.numpy().tobytes() for name, image in zip(names, whole, strict=True) if name in fresh}
    judged = {image.numpy().tobytes() for image in data.test.in_memory}
    assert judged
    assert judged <= allowed
    if form not in ("some", "sorted"):
        assert judged == allowed


@pytest.mark.slow
def test_a_folder_that_also_holds_the_training_images_calibrates_by_the_others(trained, tmp_path):
    images = shutil.copytree(trained / "images", tmp_path / "images" / "train").parent
    files = {f"test/{['cat', 'dog'][i % 2]}/{i}.jpg": official.jpeg(i) for i in range(100, 120)}
    official.unpacked(images, files)
    subject = open_subject(str(trained / "run"), None, str(images))
    taken, words = calibration_images(subject, half_of_test=True)
    assert (len(taken), words) == (10, "half of the test images of images")
    assert len(calibration_images(subject)[0]) == 20
    subject.model.trained_on = None  # then only a few images of the training are known, and some are here
    with pytest.raises(ConfigError, match="trained on some of these images"):
        calibration_images(subject)


@pytest.mark.slow
def test_a_model_is_not_judged_on_nothing_but_what_it_was_trained_on(trained, tmp_path):
    fresh = own_test(trained)
    for path in sorted((trained / "images").glob("*/*.jpg")):
        if path.name not in fresh:
            (tmp_path / "images" / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "images" / path.parent.name)
    with pytest.raises(DataError, match=f"was trained on all of its {N - len(fresh)} images"):
        open_subject(str(trained / "run"), None, str(tmp_path / "images"))


@pytest.mark.slow
def test_a_run_with_test_images_elsewhere_names_them_in_its_hint_and_is_not_judged_without(trained, tmp_path):
    official.unpacked(tmp_path / "other", {f"{['cat', 'dog'][i % 2]}/{i}.jpg": official.jpeg(100 + i) for i in range(6)})
    images = shutil.copytree(trained / "images", tmp_path / "images")
    words = ["--data", images, "--data.test_root", tmp_path / "other"]
    done = hybvit("train", "digits", *words, "--out", tmp_path / "run", "--train.steps=2", *COLOR)
    assert f"next: hybvit evaluate {tmp_path / 'run'} {' '.join(map(str, words))} --report" in done.stderr
    with pytest.raises(DataError, match=rf"was trained on all of its {N} images: .*--data\.test_root"):
        open_subject(str(tmp_path / "run"), None, str(images))
    assert len(open_subject(str(tmp_path / "run"), None, str(images), str(tmp_path / "other")).data.test) == 6
    both = shutil.copytree(images, tmp_path / "both")
    shutil.copytree(tmp_path / "other", both, dirs_exist_ok=True, copy_function=lambda a, b: shutil.copy(a, f"{b}.jpg"))
    assert len(open_subject(str(tmp_path / "run"), None, str(both)).data.test) == 6  # those that are new


@pytest.mark.slow
def test_what_is_not_known_is_not_claimed(trained, tmp_path, capfd):
    """A model without the file, and images that a table stores beside files."""
    run = shutil.copytree(trained / "export", tmp_path / "old")
    model = package.load(run, "cpu")
    model.trained_on = None
    model.save_pretrained(tmp_path / "without")
    assert not (tmp_path / "without" / "trained_on.safetensors").exists()
    for path in sorted((trained / "images").glob("*/*.jpg")):
        (tmp_path / "images" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "images" / path.parent.name / f"new{path.name}")
    open_subject(str(tmp_path / "without"), None, str(tmp_path / "images"))
    said = capfd.readouterr().err
    assert "it is not known if the model was trained on some of these images" in said
    assert "not the images" not in said
    open_subject(str(trained / "run"), None, str(tmp_path / "images"))
    assert "not the images that the model was trained on, by names and sizes" in capfd.readouterr().err


@pytest.mark.slow
def test_the_file_belongs_to_the_model(trained, tmp_path):
    folder = shutil.copytree(trained / "export", tmp_path / "export")
    kept = package.load(folder, "cpu").trained_on
    assert torch.equal(kept, package.load(trained / "run", "cpu").trained_on)
    assert len(kept) == N - len(own_test(trained))
    file = folder / "trained_on.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"trained_on\.safetensors: damaged"):
        package.load(folder, "cpu")
    model = package.load(trained / "run", "cpu")
    model.trained_on = kept.float()
    model.save_pretrained(tmp_path / "odd")
    with pytest.raises(CheckpointError, match="must hold digests"):
        package.load(tmp_path / "odd", "cpu")


@pytest.mark.slow
def test_what_a_run_was_trained_on_before_is_kept_when_it_goes_on_with_others(trained, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    official.unpacked(tmp_path / "other", {f"{['cat', 'dog'][i % 2]}/o{i}.jpg": official.jpeg(100 + i) for i in range(20)})
    words = ["--data", tmp_path / "other", "--out", run, "--train.steps=4", "--data.fingerprint=any", *COLOR]
    assert hybvit("train", "digits", *words).returncode == 0
    for place, n in ((trained / "images", len(own_test(trained))), (tmp_path / "other", None)):
        data = open_subject(str(run), None, str(place)).data
        assert not data.all_test
        assert n is None or len(data.test) == n
    done = hybvit(
        "train",
        "digits",
        "--data",
        tmp_path / "other",
        "--out",
        tmp_path / "next",
        "--train.init",
        run,
        "--train.steps=2",
        *COLOR,
    )
    assert done.returncode == 0, done.stderr
    assert len(open_subject(str(tmp_path / "next"), None, str(trained / "images")).data.test) == len(own_test(trained))


@pytest.mark.parametrize("inside", ["run", ".", "cat/run", "../link/run"])
def test_a_folder_among_the_images_is_not_written_to(tmp_path, inside):
    root = official.unpacked(tmp_path / "a", {f"{kind}/{i}.jpg": official.jpeg(i) for kind in ("cat", "dog") for i in range(5)})
    (tmp_path / "link").symlink_to(root)
    before = sorted(root.glob("**/*"))
    refused = hybvit("train", "digits", "--data", root, "--out", root / inside, "--train.steps=2", *COLOR)
    assert refused.returncode == 2
    assert "lies among the images of" in refused.stderr
    with pytest.raises(ConfigError, match="lies among the images of"):
        package.train(own(root), root / inside)
    data = opened(own(root))
    external = package.Adapted(logits=lambda x: x.flatten(1)[:, :2], image_shape=(3, 8, 8), classes=data.classes)
    with pytest.raises(ConfigError, match="lies among the images of"):
        package.evaluate(external, root, suites="accuracy", out=root / inside)
    assert sorted(root.glob("**/*")) == before


def test_samples_are_not_mixed_with_other_images(tmp_path):
    for name in itertools.chain(("cat/0.jpg",), ("0.jpg",), ("000000.jpg",)):
        root = official.unpacked(tmp_path / name.replace("/", "-"), {name: official.jpeg(1)})
        refused = hybvit("sample", "digits", "-n", "2", "--steps", "2", "--folder", root)
        assert refused.returncode == 3
        assert f"holds {name}, not one of these 2" in refused.stderr
