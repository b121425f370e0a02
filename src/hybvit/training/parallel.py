"""Training in several processes, one for each device, on PyTorch's DDP and FSDP2.

Every process computes the loss of its own rows of a batch; their mean is the loss of the batch. What is random is drawn as in
one process, so the number of processes changes a run by rounding only; but batch norm takes the statistics of each process's
own rows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import Config, minibatches
from ..data.batches import why_not_divided
from ..distributed import rank, world_size
from ..errors import ConfigError
from ..method.vit import HybViT
from ..networks import number_of_parameters

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

LARGE = 10**9  # parameters, from which on ``auto`` is fsdp


def shared(loss: nn.Module, cfg: Config) -> nn.Module:
    """A module that computes the loss, its weights shared among the processes as ``train.parallel`` says.

    Raises:
        ConfigError: the objective or the settings do not go with several processes; the first says so.
    """
    if world_size() == 1:
        return loss
    large = number_of_parameters(loss) > LARGE
    divided = cfg.train.parallel == "fsdp" or (cfg.train.parallel == "auto" and large)
    problem = why_not_shared(cfg, divided)
    if problem:  # which all processes find
        raise ConfigError(problem) if rank() == 0 else SystemExit(2)
    if not divided:
        # some objectives leave weights unused, always the same ones: DDP learns which in the first step, unless that has parts
        once = cfg.train.accumulate == 1
        return DistributedDataParallel(loss, static_graph=once, find_unused_parameters=not once, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(loss.parameters()).device.type, (world_size(),))
    for module in list(loss.modules()):
        if isinstance(module, HybViT):
            for layer in module.layers:
                fully_shard(layer, mesh=mesh)
    fully_shard(loss, mesh=mesh)
    return loss


def check_shared(cfg: Config) -> None:
    """Raise ConfigError if the settings do not go with several processes, as far as that is known without the network."""
    problem = why_not_shared(cfg, divided=cfg.train.parallel == "fsdp") if world_size() > 1 else None
    if problem:
        raise ConfigError(problem)


def why_not_shared(cfg: Config, divided: bool) -> str | None:
    """What does not go with several processes, which hold a part of the weights each if ``divided``."""
    if problem := why_not_divided(cfg.data, minibatches(cfg), world_size(), cfg.train.accumulate):
        return problem
    if cfg.objective.kind == "jem":
        return "objective.kind jem is trained in one process: its replay buffer is of the whole batch"
    if divided and cfg.train.compile is True:
        return "train.compile does not go with train.parallel fsdp, which gathers the weights layer by layer"
    return None


def is_divided(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this process holds a part of a tensor. Its class takes a second to import: one process need not wait."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a part, put together; every process must call it."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def put_together(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which each process may hold a part, put together one after the other, on the CPU of the first process; the
    others get none of those. Every process must call it."""
    found = {}
    for name, tensor in state.items():
        complete = whole(tensor)
        if not is_divided(tensor):
            found[name] = complete
        elif rank() == 0:
            found[name] = complete.cpu()
    return found


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if is_divided(tensor) else tensor


def divided_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process holds as a whole -> divided as ``like`` is; nothing is sent."""
    if not is_divided(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
