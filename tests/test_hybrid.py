from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import hybvit
from hybvit import devices, hub
from hybvit.config import Config, DiffusionConfig, override, to_yaml
from hybvit.data.image_set import to_x
from hybvit.errors import CheckpointError, ConfigError, DataError
from hybvit.method.objective_config import Objective
from hybvit.method.vit import HybViT
from hybvit.model import HybridModel
from hybvit.presets import preset
from hybvit.waiting import Progress

CFG = Config(model=hybvit.ViTConfig(image_size=8, patch_size=2, channels=1, num_classes=4, dim=16, depth=2, heads=2))


def model(cfg: Config = CFG) -> HybridModel:
    torch.manual_seed(0)
    return HybridModel(HybViT(cfg.model), cfg, "cpu")


def test_an_image_of_a_seed_does_not_depend_on_the_batch():
    m = model()
    for sampler in ("dpmpp_2m", "ddpm", "ddim", "heun"):
        many = m.sample(7, sampler=sampler, steps=6, seed=3).int()
        few = m.sample(5, sampler=sampler, steps=6, seed=3, batch_size=2).int()
        assert many.shape == (7, 1, 8, 8)
        assert (many[:5] - few).abs().max() <= 1, sampler  # one level: another batch size may round the last bit otherwise
        assert (many - m.sample(7, sampler=sampler, steps=6, seed=4).int()).abs().max() > 50


def test_samples_are_drawn_in_bf16_where_the_device_is_fast_at_it(monkeypatch):
    drawn = {}
    for fast in (False, True):
        monkeypatch.setattr(devices, "has_fast_bf16", lambda device, fast=fast: fast)
        m = model()
        assert m.sampling_precision == ("bf16" if fast else "fp32")
        drawn[fast] = m.sample(6, steps=4, seed=3).float()
    m.sampling_precision = "fp32"
    assert torch.equal(drawn[False], m.sample(6, steps=4, seed=3).float())
    assert 0 < (drawn[True] - drawn[False]).abs().mean() < 1  # of 255 levels


def test_each_thread_draws_a_part_of_the_images_alone():
    m = model(override(CFG, model={"label_conditioning": True, "class_depth": 1}))
    labels = torch.arange(50) % 2
    parts = [m.draw(range(first, first + 25), "ddpm", 4, 7, 0.5, labels=labels[first : first + 25]) for first in (0, 25)]
    torch.set_num_threads(2)
    assert torch.equal(m.draw(range(50), "ddpm", 4, 7, 0.5, labels=labels), torch.cat(parts))
    assert torch.get_num_threads() == 2


def test_the_progress_of_images_drawn_in_threads_is_that_of_one_part():
    torch.set_num_threads(2)
    with Progress(3, "drawing", shown=False) as progress:
        model().draw(range(50), "ddpm", 4, 7)
        assert progress.reached == pytest.approx(1)


def test_the_other_parts_end_when_one_fails():
    torch.set_num_threads(2)
    steps = []

    def work(rows: slice) -> torch.Tensor:
        if rows.start == 0:
            raise DataError("of the first part")
        for step in range(1000):
            steps.append(step)
            time.sleep(0.01)
            devices.go_on()
        return torch.zeros(1)

    with pytest.raises(DataError, match="of the first part"):
        devices.in_threads(work, 2 * devices.LEAST_ROWS, torch.device("cpu"))
    assert len(steps) < 100
    devices.go_on()  # here nothing was given up


def test_a_few_rows_stay_together_and_an_error_in_a_thread_is_raised():
    torch.set_num_threads(2)
    asked = []

    def work(rows: slice) -> torch.Tensor:
        asked.append((rows.start, rows.stop, torch.get_num_threads()))
        if rows.stop == 99:
            raise ValueError("no")
        return torch.arange(rows.start, rows.stop)

    cpu, least = torch.device("cpu"), devices.LEAST_ROWS
    assert devices.in_threads(work, 2 * least - 1, cpu).tolist() == list(range(2 * least - 1))
    assert devices.in_threads(work, 2 * least, torch.device("meta")).tolist() == list(range(2 * least))
    assert devices.in_threads(work, 2 * least + 1, cpu).tolist() == list(range(2 * least + 1))
    assert sorted(asked) == sorted([(0, 2 * least - 1, 2), (0, 2 * least, 2), (0, least, 1), (least, 2 * least + 1, 1)])
    with pytest.raises(ValueError, match="no"):
        devices.in_threads(work, 99, cpu)
    with ThreadPoolExecutor(1) as later:  # what a thread sets is partly of the whole process
        assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2


def test_predict_takes_pixels_and_pil_images():
    m = model()
    image = Image.new("RGB", (30, 20), (250, 10, 10))
    from_pil, from_list = m.predict(image), m.predict([image, image])
    assert from_pil.labels.shape == (1,)
    torch.testing.assert_close(from_list.probabilities, from_pil.probabilities.expand(2, -1))
    torch.testing.assert_close(from_pil.probabilities.sum(1), torch.ones(1))
    pixels = torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8)
    prediction = m.predict(pixels)
    x = pixels.float() / 127.5 - 1
    with torch.no_grad():
        logits = m.net(x).logits
    torch.testing.assert_close(prediction.probabilities, logits.softmax(1))
    torch.testing.assert_close(prediction.score, logits.exp().sum(1).log())
    torch.testing.assert_close(m.log_density(x), logits.exp().sum(1).log())
    assert torch.equal(prediction.labels, logits.argmax(1))


@pytest.mark.parametrize(
    "bad", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8), torch.zeros(8, 8, dtype=torch.uint8)]
)
def test_predict_refuses_other_shapes(bad):
    with pytest.raises(ValueError, match=r"uint8 \[N, 1, 8, 8\]"):
        model().predict(bad)


def test_a_picture_is_the_same_in_every_form(tmp_path):
    m = model()
    gray = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    color = np.repeat(gray[..., None], 3, axis=2)
    expected = torch.from_numpy(gray)[None, None]
    path = tmp_path / "gray.png"
    several = [gray, gray[..., None], color, Image.fromarray(gray), path, str(path), expected[0]]
    for images in [*several[:-1], expected, expected.numpy(), color[None], np.stack([color, color])[:1], tuple(several[:1])]:
        assert torch.equal(m.as_pixels(images), expected), images
    assert torch.equal(m.as_pixels(several), expected.expand(len(several), -1, -1, -1))
    assert len(m.predict(np.stack([color, color])).labels) == 2


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (np.zeros((5, 8, 8), np.uint8), r"^images are uint8 \[5, 8, 8\]: this model takes uint8 \[N, 1, 8, 8\], or pictures"),
        (np.zeros((8, 8)), r"^images are float64 \[8, 8\]"),
        ([np.zeros((8, 8), bool)], r"^images are bool \[8, 8\]"),
        ([torch.zeros(8, 8, dtype=torch.uint8)], r"^images are torch.uint8 \[8, 8\]"),
        (["x.png"], r"^x.png: no such file"),
        (b"\x89PNG", "^images are of type bytes: .* paths"),
        (7, "^images are of type int"),
        ([None], "^images are of type NoneType"),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), "^images is empty"),
        (np.zeros((0, 8, 8, 3), np.uint8), "^images is empty"),
        ((), "^images is empty"),
    ],
)
def test_what_is_no_picture_is_refused_by_every_method(bad, said):
    m = model()
    for method in (m.predict, m.read, m.vary, m.as_pixels):
        with pytest.raises(ValueError, match=said):
            method(bad)


PIXELS = torch.randint(256, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
T2 = torch.tensor([1, 2])
OF_CLEAN = {
    name: (lambda m, x, name=name: getattr(m, name)(x)) for name in ("logits", "features", "log_density", "bits_per_dim")
}
OF_NOISY = {
    "denoise": lambda m, x: m.denoise(x, T2),
    "predict_x0": lambda m, x: m.predict_x0(x, T2),
    "predict_x0_labels": lambda m, x: m.predict_x0_labels(x, T2, T2[:, None]),
}


@pytest.mark.parametrize("method", OF_CLEAN | OF_NOISY)
def test_every_method_of_x_refuses_what_is_no_x(method):
    m, call = model(override(CFG, diffusion={"steps": 4})), (OF_CLEAN | OF_NOISY)[method]
    bad = {
        "x has type torch.uint8": PIXELS.to(torch.uint8),
        "x has type ndarray": PIXELS.numpy() / 127.5 - 1,
        "x has no image": torch.zeros(0, 1, 8, 8),
        r"x has shape \[2, 3, 8, 8\]": torch.zeros(2, 3, 8, 8),
    }
    if method in OF_CLEAN:
        bad |= {"to 25.: it must be in": PIXELS.float(), "from nan to nan": torch.full((2, 1, 8, 8), torch.nan)}
    for said, x in bad.items():
        with pytest.raises(ValueError, match=said):
            call(m, x)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", OF_CLEAN)
def test_images_in_0_to_1_are_warned_of_and_bright_ones_are_not(method):
    m, call = model(override(CFG, diffusion={"steps": 4})), OF_CLEAN[method]
    with pytest.raises(UserWarning, match=r"x has no value below 0, .* 2 \* x - 1 scales"):
        call(m, PIXELS / 255)
    bright = (PIXELS // 2 + 128).to(torch.uint8)
    assert bright.min() > 127
    call(m, hybvit.to_x(bright))
    call(m, torch.zeros(2, 1, 8, 8))


def test_x_of_another_precision_is_that_of_the_weights():
    m, x = model(CFG), hybvit.to_x(PIXELS.to(torch.uint8))
    assert torch.equal(m.logits(x.double()), m.logits(x))
    assert torch.equal(m.denoise(x.double(), T2), m.denoise(x, T2))


def test_the_networks_of_others_refuse_it_too():
    net = torch.nn.Conv2d(1, 1, 1)
    net.denoise, net.classify = (lambda x, t: net.forward(x)), net.forward
    m = HybridModel(net, CFG, "cpu")
    for call in (lambda x: m.denoise(x, T2), m.logits):
        assert call(torch.zeros(2, 1, 8, 8)).shape == (2, 1, 8, 8)
        with pytest.raises(ValueError, match=r"x has type torch.uint8"):
            call(PIXELS.to(torch.uint8))


@pytest.mark.parametrize("target", ["eps", "x0", "v", "flow"])
def test_denoise_gives_eps_and_predict_x0_the_image_whatever_the_target(target):
    m = model(override(CFG, objective={"target": target}))
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 400, 900])
    raw = m.net(x_t, t).prediction
    torch.testing.assert_close(m.denoise(x_t, t), m.diffusion.to_eps(target, raw, x_t, t))
    torch.testing.assert_close(m.predict_x0(x_t, t), m.diffusion.to_x0(target, raw, x_t, t))
    x0 = m.diffusion.predict_x0(x_t.double(), t, m.denoise(x_t, t).double())
    torch.testing.assert_close(m.predict_x0(x_t, t).double(), x0, rtol=1e-3, atol=1e-4)


def test_bits_per_dim_has_one_value_per_image_and_follows_its_seed():
    m = model(override(CFG, diffusion={"steps": 20}))
    x = torch.randint(256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    bits = m.bits_per_dim(x)
    assert bits.shape == (3,)
    assert bool((bits > 7).all())  # an untrained denoiser cannot beat the 8 bits of a uniform guess by much
    assert torch.equal(bits, m.bits_per_dim(x))
    assert not torch.equal(bits, m.bits_per_dim(x, seed=1))


def test_guidance_raises_the_probability_of_the_label():
    m = model(override(CFG, diffusion={"steps": 50}))
    m.logits = lambda x: torch.stack((torch.zeros(len(x)), 20 * x.mean((1, 2, 3)), *torch.full((2, len(x)), -9.0)), dim=1)
    m.predict_x0 = lambda x_t, t: 0.3 * x_t.clamp(-1, 1)
    plain = m.sample(8, steps=10).float().mean()
    bright = m.sample(8, steps=10, labels=1, guidance=3.0).float().mean()
    dark = m.sample(8, steps=10, labels=torch.zeros(8, dtype=torch.int64), guidance=3.0).float().mean()
    assert dark < plain - 3
    assert bright > plain + 3


def test_a_network_that_takes_labels_draws_them_with_and_without_guidance():
    told = override(CFG, model={"class_depth": 1, "label_conditioning": True}, objective={"target": "x0"})
    m, unlabelled = model(override(told, data={"classes": tuple("abcd")})), model(told)

    def denoise(x_t, t, y=None):  # the images of class y are flat, y / 4 bright; without a label they are black
        return torch.full_like(x_t, -1.0) if y is None else torch.where(y == 4, -1.0, y / 4)[:, None, None, None].expand_as(x_t)

    real = model(override(told, data={"classes": tuple("abcd")}))
    m.predict_x0 = unlabelled.predict_x0 = denoise
    m.net.denoise_cond_uncond = lambda x_t, t, y: (denoise(x_t, t, y), denoise(x_t, t))  # its target is x0
    assert m.sample(2, steps=5, labels=[0, 2]).float().mean((1, 2, 3)).tolist() == pytest.approx([127.5, 191.25], abs=0.5)
    assert torch.equal(m.sample(2, steps=5, labels=["a", "C"]), m.sample(2, steps=5, labels=[0, 2]))
    assert torch.equal(m.sample(2, steps=5, labels="d"), m.sample(2, steps=5, labels=3))
    drawn = m.sample(40, steps=5).float().mean((1, 2, 3))  # each with a random label, the same ones for the same seed
    assert set((4 * (2 * drawn / 255 - 1)).round().tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert torch.equal(m.sample(8, steps=5).float().mean((1, 2, 3)), drawn[:8])
    assert unlabelled.sample(2, steps=5).float().mean() == 0
    assert (m.draws_by_label, unlabelled.draws_by_label) == (True, False)
    wished = m.sample(8, steps=5, guidance=0.1).float().mean((1, 2, 3))  # the same labels, a little beyond the label's image
    torch.testing.assert_close(wished, (1.1 * drawn[:8]).clamp(max=255), rtol=0, atol=1)
    with pytest.raises(ValueError, match="belong together"):
        unlabelled.sample(1, guidance=1.0)
    x_t, t, y = torch.randn(2, 1, 8, 8), torch.tensor([30, 700]), torch.tensor([1, 3])
    for target in ("eps", "v"):
        real.cfg = override(real.cfg, objective={"target": target})
        expected = 3 * real.predict_x0(x_t, t, y) - 2 * real.predict_x0(x_t, t)
        torch.testing.assert_close(real.conditional(y, 2.0)(x_t, t), expected)


def test_sampling_arguments_are_checked():
    m = model()
    for arguments, named in (
        ({"n": 0}, "n is 0"),
        ({"n": 1, "steps": 1001}, "steps is 1001"),
        ({"n": 1, "sampler": "euler"}, "sampler is 'euler'"),
        ({"n": 1, "labels": 1}, "belong together"),
        ({"n": 1, "guidance": 1.0}, "belong together"),
        ({"n": 1, "labels": 9, "guidance": 1.0}, r"0\.\.3"),
        ({"n": 2, "labels": [1, 2, 3], "guidance": 1.0}, "one for each of n = 2"),
        ({"n": 1, "labels": 1.5, "guidance": 1.0}, "whole number"),
        ({"n": 1, "labels": "4", "guidance": 1.0}, r"'4' is none of the model's classes.*; or 0 to 3"),
        ({"n": 1, "labels": 1, "guidance": float("nan")}, "finite"),
    ):
        with pytest.raises(ValueError, match=named):
            m.sample(**arguments)


def test_a_pure_classifier_has_no_denoiser():
    m = model(override(CFG, objective={"kind": "vit"}))
    with pytest.raises(ConfigError, match="no denoiser"):
        m.sample(1)
    with pytest.raises(ConfigError, match="no denoiser"):
        m.bits_per_dim(torch.zeros(1, 1, 8, 8))


def test_a_pure_generator_neither_labels_nor_steers_by_labels():
    m = model(override(CFG, objective={"kind": "genvit"}))
    with pytest.raises(ConfigError, match="no labels to give"):
        m.predict(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="no classifier to guide"):
        m.sample(1, labels=1, guidance=1.0)


def test_unknown_words_in_a_configuration_are_refused():
    for group, name, word in (("objective", "norm", "L1"), ("objective", "kind", "hyb"), ("diffusion", "schedule", "sqrt")):
        with pytest.raises(ConfigError, match=f"{group}.{name} is '{word}'"):
            override(CFG, **{group: {name: word}})


def test_load_a_run_folder(tiny_run, tmp_path):
    m = hybvit.load(tiny_run)
    assert not m.net.training
    assert m.classes == tuple("0123456789")
    assert m.cfg.train.steps == 20
    m.save_pretrained(tmp_path / "export")
    x = torch.zeros(2, 1, 8, 8)
    assert torch.equal(hybvit.load(tmp_path / "export").logits(x), m.logits(x))


def test_load_says_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="neither a run folder nor an exported model"):
        hybvit.load(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        hybvit.load(tmp_path / "none" / "at" / "all")
    (tmp_path / "config.yaml").write_text(to_yaml(preset("digits")))
    with pytest.raises(DataError, match="a file, not a model: give the folder"):
        hybvit.load(tmp_path / "config.yaml")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        hybvit.load(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"an exported model without its manifest\.json"):
        hybvit.load(tmp_path)


@pytest.mark.slow
def test_every_preset_reloads(tmp_path):
    from hybvit.config import load_config
    from hybvit.presets import PRESETS

    for name in PRESETS:
        cfg = preset(name)
        (tmp_path / "config.yaml").write_text(to_yaml(cfg))
        assert load_config(tmp_path / "config.yaml") == cfg
    assert preset("digits_paper").model.time == "token_scalars"
    assert preset("digits_paper").objective == Objective()
    assert preset("digits_paper").diffusion == DiffusionConfig()


def test_a_bundled_model_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "BUNDLED", tmp_path / "assets")
    m = model()
    m.save_pretrained(tmp_path / "assets" / "tiny")
    assert hub.bundled() == ["tiny"]
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(hybvit.load("tiny", "cpu").logits(x), m.logits(x))
    assert torch.equal(HybridModel.from_pretrained("tiny", "cpu").logits(x), m.logits(x))
    for call in (lambda: hybvit.load("tiny@main"), lambda: HybridModel.from_pretrained("tiny", revision="main")):
        with pytest.raises(DataError, match=r"^tiny(@main)?: a bundled model has no revisions: it is 'tiny', without one$"):
            call()
    with pytest.raises(DataError, match=r"none of the bundled models \(tiny: did you mean tiny\?\)"):
        hybvit.load("tyny")
    with pytest.raises(DataError, match=r"^assets/tyni: no such folder: did you mean assets/tiny\?$"):  # the hub is not asked
        hybvit.load("assets/tyni")
    other = model(override(CFG, model={"depth": 1}))
    other.save_pretrained(tmp_path / "tiny")  # a folder of that name goes first
    assert torch.equal(hybvit.load("tiny", "cpu").logits(x), other.logits(x))


def test_a_model_says_what_it_is_in_one_line():
    assert repr(hybvit.load("digits", "cpu")) == (
        "<HybridModel of digits: 8 x 8 gray, 10 classes (0, 1, 2, ...), 617,419 parameters on cpu; "
        "classifies (calibrated), denoises, draws>"
    )
    assert repr(model()).endswith("4 classes (0, 1, 2, ...), 15,428 parameters on cpu; classifies, denoises, draws>")
    for kind, said in (("vit", "cpu; classifies>"), ("genvit", "cpu; denoises, draws>")):
        assert repr(model(override(CFG, objective={"kind": kind}))).endswith(said)


@pytest.mark.parametrize("name", hub.bundled())
def test_every_bundled_model_is_sound(name):
    m = hybvit.load(name, "cpu")
    assert m.cfg.data.root is None
    assert m.sample(2, steps=2).shape == (2, *m.image_shape)
    assert len(m.classes) == m.cfg.model.num_classes


def test_the_bound_of_an_image_is_its_own(tmp_path):
    m = model(override(CFG, diffusion={"steps": 20}))
    x = to_x(PIXELS.to(torch.uint8))
    alone = torch.cat([m.bits_per_dim(image[None], seed=3) for image in x])
    torch.testing.assert_close(m.bits_per_dim(x, seed=3), alone)


def test_pictures_of_12_bits_are_read_by_the_depth_that_the_model_was_trained_at(tmp_path):
    values = torch.linspace(0, 4095, 64).reshape(8, 8).round().numpy()
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "dark.png")
    m = model()
    m.cfg = override(m.cfg, data={"bits": 12})
    expected = torch.from_numpy(np.round(values / 4095 * 255).astype(np.uint8))[None, None]
    assert torch.equal(m.as_pixels(tmp_path / "dark.png"), expected)
    assert torch.equal(m.as_pixels([Image.open(tmp_path / "dark.png")]), expected)


@pytest.mark.parametrize("labels", [10**23, [10**23, 1], [[1], [1, 2]], [None, 1]])
def test_labels_that_are_none_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels must be .* whole numbers in 0\.\.9"):
        hybvit.load("digits", "cpu").sample(2, labels=labels, guidance=1.0, steps=1)
