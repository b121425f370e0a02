"""The pipeline of diffusers: its images are those of hybvit's samplers, and its folder gives them again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file, save_file

import hybvit
from hybvit.config import override
from hybvit.errors import CheckpointError, ConfigError
from hybvit.integrations.diffusers_pipeline import HybViTPipeline
from hybvit.method.samplers import run_sampler, timesteps
from hybvit.method.seeds import derive_seed
from hybvit.model import image_noise
from hybvit.networks import build_network

SAME = {"ddim": DDIMScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}


@pytest.fixture(scope="module")
def digits() -> hybvit.HybridModel:
    return hybvit.load("digits", "cpu")


@pytest.fixture(scope="module")
def clothes() -> hybvit.HybridModel:
    return hybvit.load("fashion-mnist", "cpu")


def generators(number: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(derive_seed(seed, "samples", i)) for i in range(number)]


def ours(
    model: hybvit.HybridModel, sampler: str, number: int, steps: int, denoise=None, spacing: str = "trailing"
) -> torch.Tensor:
    """float [number, C, H, W] in [0, 1]."""
    noise = image_noise(range(number), 0, model.image_shape, "cpu")
    with torch.no_grad():
        *_, x = run_sampler(sampler, denoise or model.predict_x0, model.diffusion, noise, steps, spacing)
    return (x / 2 + 0.5).clamp(0, 1)


def drawn(pipe: HybViTPipeline, number: int | None, steps: int = 20, **options) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(number, num_inference_steps=steps, generator=generators(number or 1), output_type="pt", **options).images


def with_scheduler(model: hybvit.HybridModel, kind: type, **options) -> HybViTPipeline:
    pipe = HybViTPipeline.from_hybrid(model)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
    return pipe


@pytest.mark.parametrize("sampler", SAME)
def test_images_are_those_of_the_same_sampler(digits, sampler):
    found = drawn(with_scheduler(digits, SAME[sampler]), 8, 20)
    torch.testing.assert_close(found, ours(digits, sampler, 8, 20), rtol=0, atol=1e-4)


def test_images_are_those_of_heun_at_the_same_times(digits):
    times = timesteps(digits.diffusion, 20, "karras")[:-1] - 1
    pipe = with_scheduler(digits, HeunDiscreteScheduler, timestep_spacing="leading")
    found = drawn(pipe, 8, timesteps=times.tolist())
    torch.testing.assert_close(found, ours(digits, "heun", 8, 20, spacing="karras"), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="a DDIMScheduler takes none"):
        drawn(with_scheduler(digits, DDIMScheduler), 1, timesteps=[9, 3])


@pytest.mark.parametrize(("dtype", "apart"), [(torch.bfloat16, 1 / 255), (torch.float16, 0.1 / 255)], ids=str)
@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_a_network_of_low_precision_draws_nearly_the_same(digits, kind, dtype, apart):
    heun = kind is HeunDiscreteScheduler
    pipe = with_scheduler(digits, kind, timestep_spacing="leading" if heun else "trailing")
    times = (timesteps(digits.diffusion, 8, "karras")[:-1] - 1).tolist() if heun else None
    expected = drawn(pipe, 2, 20, timesteps=times)
    found = drawn(pipe.to(dtype), 2, 20, timesteps=times)
    assert pipe.denoiser.dtype == dtype
    assert 0 < (found - expected).abs().mean() < apart


def test_the_component_alone_takes_images_of_any_precision(clothes):
    net = HybViTPipeline.from_hybrid(clothes).to(torch.bfloat16).denoiser
    x = torch.randn(2, *clothes.image_shape, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float16, torch.float64):
        v = net(x.to(dtype), 500, torch.tensor([1, 2])).sample
        torch.testing.assert_close(v.float(), net(x, 500, torch.tensor([1, 2])).sample, rtol=0, atol=0.05)


@pytest.mark.parametrize("target", ["eps", "x0", "flow"])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "flow"])
def test_every_target_and_schedule_is_converted(digits, target, schedule):
    """The network answers with nonsense for another target than its own, but with the same nonsense on both sides."""
    cfg = override(digits.cfg, objective={"target": target}, diffusion={"schedule": schedule})
    model = hybvit.HybridModel(build_network(cfg), cfg, "cpu")
    model.net.load_state_dict(digits.net.state_dict())
    found = drawn(with_scheduler(model, DDIMScheduler), 4, 10)
    torch.testing.assert_close(found, ours(model, "ddim", 4, 10), rtol=0, atol=1e-4)


@pytest.mark.parametrize("w", [0.0, 0.5])
def test_labels_and_guidance_are_those_of_the_model(clothes, w):
    labels = torch.tensor([9, 1])
    found = drawn(HybViTPipeline.from_hybrid(clothes), 2, 5, class_labels=[9, 1], guidance_scale=1 + w)
    expected = ours(clothes, "dpmpp_2m", 2, 5, clothes.conditional(labels, w))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [UniPCMultistepScheduler, DDPMScheduler])
def test_schedulers_that_hybvit_lacks_draw_digits(digits, kind):
    steps = 25 if kind is UniPCMultistepScheduler else 50
    pixels = (drawn(with_scheduler(digits, kind), 16, steps) * 255).round().to(torch.uint8)
    assert digits.predict(pixels).probabilities.amax(dim=1).median() > 0.8
    if kind is UniPCMultistepScheduler:  # another solver of the same equation
        near = ours(digits, "dpmpp_2m", 16, 25)
        assert (pixels / 255 - near).abs().mean() < 0.02


def test_the_folder_of_diffusers_gives_the_same_images(clothes, tmp_path):
    pipe = HybViTPipeline.from_hybrid(clothes)
    pipe.save_pretrained(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        "model_index.json", "scheduler/scheduler_config.json", "denoiser/config.json",
        "denoiser/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["denoiser"] == ["hybvit.integrations.diffusers_pipeline", "HybViTDenoiser"]
    again = HybViTPipeline.from_pretrained(tmp_path)
    assert not again.denoiser.training
    named = drawn(again, 2, 3, class_labels="Dress")
    assert torch.equal(named, drawn(pipe, 2, 3, class_labels=3))
    assert torch.equal(named, drawn(again, 2, 3, class_labels=["Dress", 3]))
    assert again.get_label_ids(["Sandal", "T-shirt/top"]) == [5, 0]
    with pytest.raises(ValueError, match="no class 'dres': did you mean"):
        again.get_label_ids("dres")
    size = (tmp_path / "denoiser" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert size == pytest.approx(4 * sum(w.numel() for w in clothes.parameters()), rel=0.02)


def test_the_folder_is_read_strictly_and_without_pickles(digits, tmp_path):
    HybViTPipeline.from_hybrid(digits).save_pretrained(tmp_path)
    weights = tmp_path / "denoiser" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = "net.positions"
    for changed in ({name: None}, {"net.other": torch.zeros(1)}, {name: torch.zeros(1, 2, 3)}):
        found = {key: value for key, value in (tensors | changed).items() if value is not None}
        save_file(found, weights, metadata={"format": "pt"})
        with pytest.raises((CheckpointError, ValueError, RuntimeError), match=r"net\.(positions|other)"):
            HybViTPipeline.from_pretrained(tmp_path)
    weights.unlink()
    torch.save(tensors, tmp_path / "denoiser" / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        HybViTPipeline.from_pretrained(tmp_path)


def test_the_forms_of_the_result(digits):
    pipe = HybViTPipeline.from_hybrid(digits)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "batch_size": 2}
    pictures = pipe(**options, generator=generators(2)).images
    (arrays,) = pipe(**options, generator=generators(2), output_type="np", return_dict=False)
    assert [(picture.size, picture.mode) for picture in pictures] == [((8, 8), "L")] * 2
    assert arrays.shape == (2, 8, 8, 1)
    assert np.array_equal((arrays[0, ..., 0] * 255).round(), np.asarray(pictures[0]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"class_labels": 3}, "was not trained with labels"),
        ({"guidance_scale": 2.0}, "guidance needs class_labels"),
        ({"output_type": "latent"}, "output_type is 'latent'"),
        (
            {"batch_size": "a boot"},
            "batch_size is 'a boot': it must be a whole number of at least 1; the classes",
        ),
        ({"batch_size": ["Bag"]}, "the classes to draw are class_labels="),
        ({"batch_size": 2.0}, "batch_size is 2.0: it must be a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001: the process has 1000 steps"),
        ({"timesteps": [100, 500]}, "timesteps must fall"),
        ({"timesteps": [1000, 500]}, "from at most 999"),
        ({"timesteps": []}, "timesteps must fall"),
        (
            {"batch_size": 3, "generator": [torch.Generator()] * 2},
            "2 generators, and a batch_size of 3: give one, or a list of 3",
        ),
    ],
)
def test_what_the_model_cannot_do_is_refused(digits, options, said):
    with pytest.raises(ValueError, match=said):
        HybViTPipeline.from_hybrid(digits)(**options)


def test_pickles_are_not_written(digits, tmp_path):
    with pytest.raises(ValueError, match="only safetensors are read again"):
        HybViTPipeline.from_hybrid(digits).save_pretrained(tmp_path / "p", safe_serialization=False)
    assert not (tmp_path / "p").exists()


def test_in_float64_the_noise_is_the_same(digits):
    pipe = HybViTPipeline.from_hybrid(digits)
    found = drawn(pipe, 2, 5)
    torch.testing.assert_close(drawn(pipe.to(torch.float64), 2, 5).float(), found, rtol=0, atol=1e-3)


def test_a_callback_sees_every_step_and_may_change_the_image(digits):
    pipe, seen = HybViTPipeline.from_hybrid(digits), []

    def look(of, step, t, given):
        seen.append((of, step, int(t), given["latents"].clone()))

    plain = drawn(pipe, 2, 4)
    assert torch.equal(drawn(pipe, 2, 4, callback_on_step_end=look), plain)
    assert [(of, step, t) for of, step, t, _ in seen] == [(pipe, i, t) for i, t in enumerate((999, 749, 499, 249))]
    assert torch.equal((seen[-1][-1] / 2 + 0.5).clamp(0, 1), plain)
    black = drawn(pipe, 2, 4, callback_on_step_end=lambda of, step, t, given: {"latents": 0 * given["latents"] - 1})
    assert torch.equal(black, torch.zeros_like(black))


@pytest.mark.parametrize("labels", [["Bag", "Coat", 8], torch.tensor([8, 4, 8]), np.array([8, 4, 8])])
def test_labels_say_how_many_images(clothes, labels):
    pipe = HybViTPipeline.from_hybrid(clothes)
    assert torch.equal(drawn(pipe, None, 2, class_labels="Bag"), drawn(pipe, 1, 2, class_labels=8))
    found = pipe(class_labels=labels, num_inference_steps=2, generator=generators(3), output_type="pt").images
    assert torch.equal(found, drawn(pipe, 3, 2, class_labels=[8, 4, 8]))


def test_labels_out_of_range_are_refused(clothes):
    pipe = HybViTPipeline.from_hybrid(clothes)
    for labels, said in (
        (10, r"must be in 0\.\.9"),
        (["Bag", "Coat", "Bag"], r"^3 class_labels, and a batch_size of 2: give one, or 2"),
        (1.5, "class_labels is 1.5: give the name or the number"),
        ([None], r"class_labels is \[None\]: give the name or the number"),
        ([], "give the name or the number"),
    ):
        with pytest.raises(ValueError, match=said):
            pipe(2, labels)
    cfg = override(clothes.cfg, objective={"kind": "vit"})
    with pytest.raises(ConfigError, match="trained to denoise"):
        HybViTPipeline.from_hybrid(hybvit.HybridModel(clothes.net, cfg, "cpu"))
