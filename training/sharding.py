"""FSDP2: weights sharded over the ranks, student and teacher alike, so that the teacher can follow shard by shard."""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

_WHOLE = StateDictOptions(full_state_dict=True)
_WHOLE_ON_MAIN = StateDictOptions(full_state_dict=True, cpu_offload=True)


def prepare(accelerator: Accelerator, student: nn.Module, teacher: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A student and the teacher that follows it, both on the device and shared alike over the ranks (`prepare_student`)."""
    prepared = prepare_student(accelerator, student)
    return prepared, fsdp2_prepare_model(accelerator, teacher) if accelerator.is_fsdp2 else teacher.to(accelerator.device)


def prepare_student(accelerator: Accelerator, student: nn.Module) -> nn.Module:
    """On the device; under DDP if there are several ranks, or sharded if the launcher says FSDP2.

    The optimiser is to be built afterwards, on the parameters that there are then.
    """
    return fsdp2_prepare_model(accelerator, student) if accelerator.is_fsdp2 else accelerator.prepare(student)


def own_shards(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What this rank holds of tensors that may be sharded: foreach operations want plain tensors."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def reshard(model: nn.Module) -> None:
    """Lets go of weights that FSDP gathered for a forward pass and, no backward pass having followed, still holds."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def sum_over_shards(sums: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Sums of each rank's shards -> sums of the whole tensors, which are sharded as `like` is, or not at all."""
    if isinstance(like, DTensor):
        for dimension, placement in enumerate(like.placements):
            if placement.is_shard():
                dist.all_reduce(sums, group=like.device_mesh.get_group(dimension))
    return sums


def trained_states(student: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """State dicts on the CPU of the main process, the optimiser's by names of parameters; empty ones on sharded other ranks.

    All ranks must call it. The result does not depend on how the weights are shared.
    """
    student_state, optimizer_state = get_state_dict(student, optimizer, options=_WHOLE_ON_MAIN)
    return {"student": student_state, "optimizer": optimizer_state}


def load_trained_states(student: nn.Module, optimizer: torch.optim.Optimizer, states: Mapping[str, dict]) -> None:
    """The reverse of `trained_states`, from states that every rank has read."""
    load_weights(student, states["student"])
    # Not strict: of prototypes that have been frozen so far the optimiser has no state, and must begin with them anew.
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_optimizer_state_dict(student, optimizer, states["optimizer"], options=options)
    for name, parameter in student.named_parameters():
        if name.removeprefix("module.") not in states["optimizer"]["state"]:
            optimizer.state.pop(parameter, None)


def load_weights(model: nn.Module, weights: dict) -> None:
    """Whole weights, which every rank has read, into a model that may be sharded."""
    set_model_state_dict(model, weights, options=_WHOLE)


def weights_on_main(model: nn.Module) -> dict:
    """The weights of a model on the CPU of the main process; empty on sharded other ranks. All ranks must call it."""
    return get_model_state_dict(model, options=_WHOLE_ON_MAIN)


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model on every rank. All ranks must call it."""
    return get_model_state_dict(model, options=_WHOLE)  # type: ignore[return-value]  # tensors alone
