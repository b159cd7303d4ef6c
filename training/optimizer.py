"""AdamW as DINO sets it, and clipping, per parameter as DINO does it or of all together."""

import torch
from torch import nn

from training.sharding import own_shards, sum_over_shards


def build_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay leaves biases and other 1-D parameters out (dino/utils.py).

    Learning rate and weight decay are set before each step (`set_schedule`). Registers and position embeddings are not
    1-D, so they are decayed, as in DINO.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "decays": True},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "decays": False},
    ]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=True)


def set_schedule(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


@torch.no_grad()
def clip_gradients(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Clips each parameter's gradient to `max_norm` by itself, not globally (dino/utils.py, clip_gradients).

    Args:
        model: Its gradients are scaled in place; FSDP may have sharded them.
        max_norm: Largest L2 norm of a parameter's gradient; 0 clips nothing.

    Returns:
        The global L2 norm before clipping, a scalar.
    """
    shards, norms = _gradients(model)
    if max_norm:
        scales = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(shards, list(scales.unbind()))
    return norms.norm()


@torch.no_grad()
def clip_gradients_together(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Clips all gradients by one factor, so that their global L2 norm is at most `max_norm`; otherwise as `clip_gradients`."""
    shards, norms = _gradients(model)
    norm = norms.norm()
    if max_norm:
        torch._foreach_mul_(shards, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _gradients(model: nn.Module) -> tuple[list[torch.Tensor], torch.Tensor]:
    """This rank's shards of all gradients, and the L2 norms of the whole ones, (parameters,)."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    shards = own_shards(gradients)
    norms = torch.stack(torch._foreach_norm(shards))
    return shards, sum_over_shards(norms.square(), gradients[0]).sqrt()
