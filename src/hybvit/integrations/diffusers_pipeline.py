"""The denoisers of hybvit as a pipeline of diffusers, which runs with the schedulers of diffusers:

    from hybvit.integrations.diffusers_pipeline import HybViTPipeline
    pipe = HybViTPipeline.from_hybrid(hybvit.load("fashion-mnist"))
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    images = pipe(batch_size=16, class_labels="Ankle boot", num_inference_steps=20).images

diffusers counts times 0..T-1 where hybvit counts 1..T. Whatever target a network was trained for, its component predicts v
(Salimans & Ho 2022), which every scheduler takes.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, get_args

import torch
from torch import Tensor

from ..config import DiffusionConfig
from ..errors import CheckpointError, ConfigError, did_you_mean
from ..method.objective_config import Target
from ..method.vit import HybViT, ViTConfig
from ..model import HybridModel

try:
    from diffusers import ConfigMixin, DiffusionPipeline, DPMSolverMultistepScheduler, ModelMixin, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.models.unets.unet_2d import UNet2DOutput
    from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError:
    raise ConfigError("a pipeline of diffusers needs diffusers: pip install 'hybvit[baselines]'") from None

OUTPUTS = ("pil", "np", "pt")
Labels = int | str | Sequence[int | str] | Tensor


class HybViTDenoiser(ModelMixin, ConfigMixin):
    """The network of a model, as a component of a pipeline.

    Args:
        vit: the fields of :class:`hybvit.ViTConfig`.
        target: what the pixel read-out was trained for: eps, x0, v or flow.
        schedule: the forward process: cosine, linear or flow.
        steps: T.

    Raises:
        ValueError: a field is unknown or out of range.
    """

    @register_to_config
    def __init__(self, vit: dict[str, Any], target: str, schedule: str, steps: int) -> None:
        super().__init__()
        unknown = vit.keys() - {field.name for field in dataclasses.fields(ViTConfig)}
        if unknown or target not in get_args(Target):
            raise ValueError(f"vit has unknown fields {sorted(unknown)}, or target {target!r} is none of {get_args(Target)}")
        self.net = HybViT(ViTConfig(**vit))
        self.diffusion = DiffusionConfig(schedule, steps).build()  # type: ignore[arg-type]

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0.

        Args:
            sample: x_t, float [B, C, H, W] of any precision; the network gets it in the type of its weights, and v has at
                least that of float32.
            timestep: t - 1, in 0..T-1, one for all or [B]; between two times the nearer one is taken.
            class_labels: int64 [B] for a network with ``label_conditioning``, where K means unconditional.
        """
        x_t, t = sample, self.times(timestep, sample)
        prediction = self.net.denoise(x_t.to(self.dtype), t, class_labels)
        v = (
            prediction
            if self.config.target == "v"
            else self.v_of(self.diffusion.to_x0(self.config.target, prediction, x_t, t), x_t, t)
        )
        return UNet2DOutput(sample=v) if return_dict else (v,)

    def times(self, timestep: Tensor | float, sample: Tensor) -> Tensor:
        """t int64 [B] in 1..T."""
        return (torch.as_tensor(timestep, device=sample.device).round().long() + 1).expand(len(sample))

    def v_of(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The v that means this x_0."""
        return self.diffusion.velocity(x0, t, self.diffusion.predict_eps(x_t, t, x0))

    def clip(self, v: Tensor, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """The v whose x_0 is clipped to [-1, 1], as hybvit's samplers clip it at every step."""
        t = self.times(timestep, sample)
        return self.v_of(self.diffusion.to_x0("v", v, sample, t).clamp(-1, 1), sample, t)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **options: Any) -> HybViTDenoiser:
        """Read what ``save_pretrained`` wrote; safetensors only.

        Raises:
            CheckpointError: a weight is missing or unexpected, or has another shape, which diffusers itself would let pass.
        """
        found, info = super().from_pretrained(source, **options | {"use_safetensors": True, "output_loading_info": True})
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if info[problem]:
                raise CheckpointError(f"{source}: {problem.replace('_', ' ')}: {next(iter(info[problem]))}")
        return found


class HybViTPipeline(DiffusionPipeline):
    """Images from noise, by a denoiser of hybvit and a scheduler of diffusers.

    The network runs in the type of its weights (``pipe.to(torch.bfloat16)``), everything around it in float32.

    Args:
        denoiser: the network.
        scheduler: any that takes v_prediction, for the same forward process. :meth:`from_hybrid` makes one, and
            ``SCHEDULER.from_config(pipe.scheduler.config)`` another one of the same process.
        id2label: the name of each class by its number in digits, as the DiT pipeline of diffusers stores it; ``labels`` is the
            other way round.
    """

    model_cpu_offload_seq = "denoiser"

    def __init__(self, denoiser: HybViTDenoiser, scheduler: SchedulerMixin, id2label: dict[str, str] | None = None) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler)
        self.labels = {name: int(k) for k, name in (id2label or {}).items()}
        self.register_to_config(id2label=id2label or {})

    @classmethod
    def from_hybrid(cls, model: HybridModel) -> HybViTPipeline:
        """A pipeline with a copy of a model's weights on its device, and DPM-Solver++(2M), its default sampler.

        Raises:
            ConfigError: its network is no HybViT, or was not trained to denoise.
        """
        if not isinstance(model, HybridModel):
            raise ConfigError(f"{model!r} is no HybridModel: give hybvit.load(...)")
        if not isinstance(model.net, HybViT) or not model.has_denoiser:
            raise ConfigError("only a HybViT that was trained to denoise makes a pipeline of diffusers")
        cfg = model.cfg
        vit, target = dataclasses.asdict(cfg.model), cfg.objective.target
        denoiser = HybViTDenoiser(vit=vit, target=target, schedule=cfg.diffusion.schedule, steps=cfg.diffusion.steps)
        denoiser.net.load_state_dict(model.net.state_dict())
        scheduler = DPMSolverMultistepScheduler(
            num_train_timesteps=model.diffusion.T,
            trained_betas=model.diffusion.beta[1:].tolist(),
            prediction_type="v_prediction",
            timestep_spacing="trailing",
        )
        id2label = {str(k): name for k, name in enumerate(model.classes)}  # JSON has no other keys
        return cls(denoiser.eval().to(model.device), scheduler, id2label)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **options: Any) -> HybViTPipeline:
        """Read what ``save_pretrained`` wrote; safetensors only, strictly.

        Raises:
            CheckpointError: a weight is missing or unexpected, or has another shape.
        """
        return super().from_pretrained(source, **{"low_cpu_mem_usage": False} | options | {"use_safetensors": True})

    @torch.no_grad()
    def __call__(  # noqa: PLR0913  the names are those of diffusers
        self,
        batch_size: int | None = None,
        class_labels: Labels | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 20,
        timesteps: Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        clip_sample: bool = True,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate ``batch_size`` images.

        Args:
            batch_size: None takes as many as there are ``class_labels``, or one.
            class_labels: the class of each image, or one for all, by number or name, for a network with
                ``label_conditioning``; None means unconditional.
            guidance_scale: of classifier-free guidance: 1 is none, 1 + w is the ``guidance`` w of :meth:`HybridModel.sample`.
            timesteps: the times t - 1, in place of ``num_inference_steps``, for a scheduler that takes them.
            generator: of the noise; a list has one for each image.
            clip_sample: whether to clip the predicted image to [-1, 1] at every step.
            output_type: pil, np (float [B, H, W, C] in [0, 1]) or pt (float [B, C, H, W] in [0, 1]).
            callback_on_step_end: called after each step with the pipeline, the number of the step, its time and {"latents":
                x_t}; the "latents" that it returns, if any, are gone on with.

        Raises:
            ValueError: an argument is out of range, or there are labels and the network takes none, or guidance without labels.
        """
        vit, device = self.denoiser.net.cfg, self._execution_device
        labels = self._labels(class_labels, guidance_scale)
        if batch_size is None:
            batch_size = 1 if labels is None else labels.numel()
        _check_numbers(batch_size=batch_size, num_inference_steps=num_inference_steps)
        if labels is not None and labels.numel() not in (1, batch_size):
            raise ValueError(f"{len(labels)} class_labels, and a batch_size of {batch_size}: give one, or {batch_size}")
        _check_generators(generator, batch_size)
        labels = None if labels is None else labels.expand(batch_size)
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type is {output_type!r}: it must be {', '.join(OUTPUTS)}")
        self._set_times(num_inference_steps, timesteps)
        dtype = torch.promote_types(self.denoiser.dtype, torch.float32)  # schedulers add small steps to large numbers
        noise = randn_tensor((batch_size, *vit.image_shape), generator, device, torch.float32).to(dtype)
        image = noise * self.scheduler.init_noise_sigma
        takes = inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if "generator" in takes else {}
        for step, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            x_t = self.scheduler.scale_model_input(image, t)
            v = self.denoiser(x_t, t, labels).sample
            if guidance_scale != 1:
                uncond = self.denoiser(x_t, t).sample
                v = uncond + guidance_scale * (v - uncond)
            v = self.denoiser.clip(v, x_t, t) if clip_sample else v
            image = self.scheduler.step(v, t, image, **extra).prev_sample
            if callback_on_step_end is not None:
                image = (callback_on_step_end(self, step, t, {"latents": image}) or {}).get("latents", image)
        self.maybe_free_model_hooks()
        images = self._output(image, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _output(self, x: Tensor, output_type: str) -> Any:
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).float().numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """The numbers of classes, by their names.

        Raises:
            ValueError: a class is unknown.
        """
        names = [label] if isinstance(label, str) else list(label)
        for name in names:
            if name not in self.labels:
                raise ValueError(f"no class {name!r}{did_you_mean(name, self.labels)}; `labels` has all")
        return [self.labels[name] for name in names]

    def save_pretrained(self, save_directory: str | os.PathLike[str], safe_serialization: bool = True, **options: Any) -> None:
        """Write the folder that :meth:`from_pretrained` reads.

        Raises:
            ValueError: ``safe_serialization`` is False: pickles are not read.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization is False: only safetensors are read again, leave it out")
        super().save_pretrained(save_directory, **options)

    def _set_times(self, number: int, timesteps: Sequence[int] | None) -> None:
        most = self.denoiser.diffusion.T
        if timesteps is None and number > most:
            raise ValueError(f"num_inference_steps is {number}: the process has {most} steps")
        falling = timesteps is None or all(earlier >= later for earlier, later in pairwise(timesteps))  # Heun has each twice
        if timesteps is not None and not (len(timesteps) and falling and all(0 <= t < most for t in timesteps)):
            raise ValueError(f"timesteps must fall, from at most {most - 1} to at least 0, and be one or more")
        if timesteps is None:
            self.scheduler.set_timesteps(number, device=self._execution_device)
        elif "timesteps" in inspect.signature(self.scheduler.set_timesteps).parameters:
            self.scheduler.set_timesteps(timesteps=list(timesteps), device=self._execution_device)
        else:
            raise ValueError(f"timesteps are given, but a {type(self.scheduler).__name__} takes none: leave them out")

    def _labels(self, given: Labels | None, guidance_scale: float) -> Tensor | None:
        """int64 [] or [N]; arguments and errors are those of :meth:`__call__`."""
        vit = self.denoiser.net.cfg
        if given is None:
            if guidance_scale != 1:
                raise ValueError(f"guidance_scale is {guidance_scale}: guidance needs class_labels")
            return None
        if not vit.label_conditioning:
            raise ValueError("class_labels are given, but this denoiser was not trained with labels: leave them out")
        numbers: Any = given
        if isinstance(given, str):
            (numbers,) = self.get_label_ids(given)
        elif isinstance(given, Sequence):
            numbers = [self.get_label_ids(label)[0] if isinstance(label, str) else label for label in given]
        try:
            labels = torch.as_tensor(numbers, device=self._execution_device)
        except (TypeError, ValueError, RuntimeError):  # None, lists of several lengths, dicts ...
            labels = torch.empty(0)
        if labels.dtype.is_floating_point or labels.dtype == torch.bool or labels.ndim > 1 or not labels.numel():
            raise ValueError(f"class_labels is {str(given)[:60]}: give the name or the number of a class, or a list of them")
        if not bool(((labels >= 0) & (labels < vit.num_classes)).all()):
            raise ValueError(f"class_labels must be in 0..{vit.num_classes - 1}")
        return labels.long()


def _check_generators(given: object, batch_size: int) -> None:
    """Raises ValueError for a list that has not one generator for each image."""
    if isinstance(given, list) and len(given) != batch_size:
        raise ValueError(f"{len(given)} generators, and a batch_size of {batch_size}: give one, or a list of {batch_size}")


def _check_numbers(**given: Any) -> None:
    for name, value in given.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            cure = "; the classes to draw are class_labels=" if isinstance(value, (str, Sequence)) else ""
            raise ValueError(f"{name} is {value!r}: it must be a whole number of at least 1{cure}")
