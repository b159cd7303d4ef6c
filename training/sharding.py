"""FSDP2: student and teacher sharded alike over the ranks, so that the teacher can follow shard by shard."""

from collections.abc import Iterable

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
    """Both on the device; the student under DDP if there are several ranks, or both sharded if the launcher says FSDP2.

    The optimiser is to be built afterwards, on the parameters that there are then.
    """
    if accelerator.is_fsdp2:
        return fsdp2_prepare_model(accelerator, student), fsdp2_prepare_model(accelerator, teacher)
    return accelerator.prepare(student), teacher.to(accelerator.device)


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


def whole_states(student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """State dicts on the CPU of the main process, the optimiser's by names of parameters; empty ones on sharded other ranks.

    All ranks must call it. The result does not depend on how the weights are shared.
    """
    student_state, optimizer_state = get_state_dict(student, optimizer, options=_WHOLE_ON_MAIN)
    teacher_state = get_model_state_dict(teacher, options=_WHOLE_ON_MAIN)
    return {"student": student_state, "teacher": teacher_state, "optimizer": optimizer_state}


def load_whole_states(
    student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, states: dict[str, dict]
) -> None:
    """The reverse of `whole_states`, from states that every rank has read."""
    set_model_state_dict(student, states["student"], options=_WHOLE)
    set_model_state_dict(teacher, states["teacher"], options=_WHOLE)
    # Not strict: of prototypes that have been frozen so far the optimiser has no state, and must begin with them anew.
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_optimizer_state_dict(student, optimizer, states["optimizer"], options=options)
    for name, parameter in student.named_parameters():
        if name.removeprefix("module.") not in states["optimizer"]["state"]:
            optimizer.state.pop(parameter, None)


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model on every rank. All ranks must call it."""
    return get_model_state_dict(model, options=_WHOLE)  # type: ignore[return-value]  # tensors alone
