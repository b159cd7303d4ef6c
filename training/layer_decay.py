"""AdamW with a learning rate for each depth of a backbone, and one for what is new on it."""

import torch
from torch import nn

from modeling_rats import RatsForUniversalSegmentation
from training.finetune_settings import FinetuneSettings

# Beside norms and biases these are not decayed (Mask2Former's WEIGHT_DECAY_NORM and WEIGHT_DECAY_EMBED are 0).
EMBEDDINGS = ("register_tokens", "cls_token", "mask_token", "position_embeddings")


def build_layer_decay_optimizer(model: RatsForUniversalSegmentation, settings: FinetuneSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; the learning rate is set before each step (`set_learning_rate`).

    A block of the backbone has `backbone_multiplier` times the learning rate of the head, times `layer_decay` for each block
    after it; its embeddings come before the first block, its final norm after the last (BEiT, optim_factory.py). Departs from
    Mask2Former, whose biases are decayed.

    Args:
        model: On its device, not in DDP.
        settings: Of the run.
    """
    embedded = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    scales = learning_rate_scales(model, settings.backbone_multiplier, settings.layer_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name not in embedded and not name.endswith(EMBEDDINGS)
            groups.setdefault((scales[name], decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "scale": scale, "weight_decay": settings.weight_decay if decays else 0.0}
            for (scale, decays), parameters in sorted(groups.items(), key=lambda group: group[0])
        ],
        lr=0.0,
        fused=True,
    )


def learning_rate_scales(model: RatsForUniversalSegmentation, multiplier: float, decay: float) -> dict[str, float]:
    """By name of each parameter, its learning rate over that of the head."""
    encoder = model.model.encoder
    depth = encoder.config.num_hidden_layers
    blocks = next(
        f"{name}." for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth
    )
    scales, after = {}, False
    for name, _ in model.named_parameters():
        within = name.removeprefix("model.encoder.")
        if within == name:
            scales[name] = 1.0
            continue
        if within.startswith(blocks):
            place, after = 1 + int(within.removeprefix(blocks).split(".")[0]), True
        else:
            place = depth if after else 0
        scales[name] = multiplier * decay ** (depth - place)
    return scales


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]
