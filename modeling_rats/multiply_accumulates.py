# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""How many multiply-accumulates a forward pass takes: by formula, and as torch counts them.

B batch  L patches  N registers  H heads  D hidden  d = D/H head dim  I width of the MLP  M registers that a head holds

Only matrix products count, as in the figures of the paper and of most others: no softmax, GELU, LayerNorm or addition.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, ViTConfig

from .configuration_rats import RatsConfig, height_width

_SMALL: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
_BASE: dict[str, Any] = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
ARCHITECTURES: dict[str, PreTrainedConfig] = {  # patches of 16 px, 12 blocks
    "rats-s": RatsConfig(**_SMALL, num_registers=96),
    "rats-b": RatsConfig(**_BASE, num_registers=192),
    "vit-s": ViTConfig(**_SMALL, layer_norm_eps=1e-6),
    "vit-b": ViTConfig(**_BASE, layer_norm_eps=1e-6),
}


def find_architecture(name: str) -> PreTrainedConfig:
    """The configuration of this name in `ARCHITECTURES`, or of a saved RATS or ViT model.

    Args:
        name: Such as rats-s, or the folder or Hub name of a model, of which only the configuration is read.

    Raises:
        OSError: If there is no such model.
        ValueError: If it is neither RATS nor ViT.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise type(error)(
            f"{name} is no architecture that is known ({', '.join(ARCHITECTURES)}) and no model that could be read ({error}). "
            "Name one of these, or the folder or Hub name of a RATS or ViT model."
        ) from error
    if config.model_type not in ("rats", "vit"):
        raise ValueError(
            f"{name} is a model of type {config.model_type}, whose cost no formula here describes; it must be of type rats or "
            f"vit. Name such a folder, or one of: {', '.join(ARCHITECTURES)}."
        )
    return config


def build_model(
    config: PreTrainedConfig, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """A model in evaluation mode with fresh weights of this type, with sdpa and (ViT) without a pooling layer."""
    without_pooling = {"add_pooling_layer": False} if config.model_type == "vit" else {}
    with torch.device(device):
        return AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa", **without_pooling).eval()


def forward_options(config: PreTrainedConfig) -> dict[str, bool]:
    """What a forward pass needs to be told to take images of any size; RATS takes them untold."""
    return {"interpolate_pos_encoding": True} if config.model_type == "vit" else {}


def patches_of(config: PreTrainedConfig, image_size: int) -> int:
    """Number L of patches of a square image."""
    patch_height, patch_width = height_width(config.patch_size)
    return (image_size // patch_height) * (image_size // patch_width)


def check_image_sizes(config: PreTrainedConfig, name: str, image_sizes: Sequence[int]) -> None:
    """
    Raises:
        ValueError: If a size is no positive multiple of the patch size.
    """
    for image_size in image_sizes:
        for patch in height_width(config.patch_size):
            if image_size < patch or image_size % patch:
                below = image_size // patch * patch
                nearest = f"{below} or {below + patch}" if below else str(patch)
                raise ValueError(
                    f"An image size of {image_size} px is no positive multiple of the patches of {name}, {patch} px, so that a "
                    f"rest of the image would be left out; use {nearest}."
                )


def multiply_accumulates(config: PreTrainedConfig, image_size: int, batch_size: int = 1) -> int:
    r"""Multiply-accumulates of a forward pass, by formula.

    The patch embedding takes L D C p^2, with C channels and patches of p x p pixels. A block of ViT, whose class token makes
    L + 1 tokens, takes

        (L + 1) (4 D^2 + 2 D I) + 2 (L + 1)^2 D

    which grows with L squared. A block of RATS is linear in L:

        L (4 D^2 + 2 D I)      patches: four projections and the MLP
        + N 2 D I              registers: the MLP
        + 2 R D d              registers: the query of a head, and what leaves it
        + 4 R L d              compress and broadcast: scores and weighted sums, each
        + 2 R M d              communicate

    Here M is the number of registers that a head holds and R = H M: with the registers partitioned over the heads, M = N / H
    and R = N, which for I = 4 D makes 12 D^2 a patch and 8 D^2 + 2 D d a register. Without the partition, M = N and R = N H.
    Without the communicate step its line is left out. Source: method figure of arXiv 2606.14701, and what `RatsModel` computes
    of it: a register's keys and values and its queries in foreign heads are never used.

    Args:
        config: Of a RATS or ViT.
        image_size: Side of the square images, in pixels.
        batch_size: Number of images.
    """
    patches, width, inner = patches_of(config, image_size), config.hidden_size, config.intermediate_size
    patch_height, patch_width = height_width(config.patch_size)
    embedding = patches * width * config.num_channels * patch_height * patch_width
    if config.model_type == "vit":
        tokens = patches + 1
        block = tokens * (4 * width**2 + 2 * width * inner) + 2 * tokens**2 * width
    else:
        heads, registers = config.num_attention_heads, config.num_registers
        channels = width // heads
        of_head = registers_of_head(config)
        held = heads * of_head
        block = patches * (4 * width**2 + 2 * width * inner) + registers * 2 * width * inner
        block += 2 * held * width * channels + 4 * held * patches * channels
        block += 2 * held * of_head * channels if config.communicate else 0
    return batch_size * (embedding + config.num_hidden_layers * block)


def registers_of_head(config: PreTrainedConfig) -> int:
    """Number M of registers that a head of a RATS holds: its own, or without the partition all."""
    return config.num_registers // config.num_attention_heads if config.partition_registers else config.num_registers


def count_multiply_accumulates(config: PreTrainedConfig, image_size: int, batch_size: int = 1) -> int:
    """Multiply-accumulates of a forward pass as torch counts them, operator by operator.

    Nothing is computed: the model lies on the meta device, where the counter sees the products of sdpa, which on a CPU it
    does not.
    """
    model = build_model(config, device="meta")
    pixels = torch.empty(batch_size, config.num_channels, image_size, image_size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixels, **forward_options(config))
    return counter.get_total_flops() // 2  # it counts a multiply-accumulate as two operations


def agreed_multiply_accumulates(config: PreTrainedConfig, name: str, image_size: int, batch_size: int = 1) -> int:
    """Multiply-accumulates, by formula and counted.

    Raises:
        ValueError: If the two differ, so that the formula does not describe this model.
    """
    by_formula = multiply_accumulates(config, image_size, batch_size)
    counted = count_multiply_accumulates(config, image_size, batch_size)
    if by_formula != counted:
        raise ValueError(
            f"A forward pass of {name} at {image_size} px takes {by_formula} multiply-accumulates by formula and {counted} as "
            "torch counts them; they must be equal. The formula does not describe this model: name another."
        )
    return by_formula
