# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Reads a ViT of transformers, DINO, DINOv2 or timm: its tensors by the names of RATS, and what it tells about their sizes."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from .checkpoint_file_rats import is_checkpoint_file, read_checkpoint_file, unwrap
from .configuration_rats import height_width

# Names of transformers (ViT, DINOv2) and of the original DINO, DINOv2 and timm files -> names of RATS.
_RENAMES = (
    (r"^(embeddings\.patch_embeddings\.projection|patch_embed\.proj)\.", "embeddings.patch_embeddings."),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^mask_token$", "embeddings.mask_token"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^(embeddings\.register_tokens|reg_token)$", "register_tokens"),
    (r"^(layers|blocks)\.", "encoder.layer."),
    (r"^norm\.", "layernorm."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.", ".attention."),
    (r"\.attention\.(proj|out_proj)\.", ".attention.o_proj."),
    (r"\.attention\.(q|k|v)\.", r".attention.\1_proj."),
    (r"\.(layer_scale|ls)([12])\.(lambda1|gamma)$", r".layer_scale\2"),
)
_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_FUSED = {"attention.qkv": _QKV, "attention.kv": _QKV[1:]}
_BLOCK = ("layernorm_before", *_QKV, "attention.o_proj", "layernorm_after", "mlp.fc1", "mlp.fc2")
LAYER_SCALES = {"layer_scale1": "attention.o_proj", "layer_scale2": "mlp.fc2"}  # LayerScale -> the projection that it follows
TOLD_BY_CONFIGURATIONS = ("num_attention_heads", "hidden_act", "layer_norm_eps")  # by a configuration, and not by the weights
_HEADS = re.compile(r"(pooler|head|head_dist|classifier)\.")  # of a task, on top of the ViT

Checkpoint = str | os.PathLike | nn.Module | Mapping[str, Any]


@dataclass
class VitCheckpoint:
    """A ViT that RATS can take, and what it tells about itself."""

    label: str
    tensors: dict[str, torch.Tensor]  # by names of RATS; those without: cls_token, register_tokens, *.layer_scale1 and 2
    names: dict[str, str]  # name above -> name in the source
    not_taken: dict[str, str]  # name in the source -> why
    fixed_fields: dict[str, Any]  # fields of RatsConfig that the weights fix
    open_fields: dict[str, Any]  # fields of RatsConfig that may differ
    grid: tuple[int, int] | None  # rows and columns of the position embeddings; None if the source does not tell


def read_vit_checkpoint(checkpoint: Checkpoint) -> VitCheckpoint:
    """Reads and checks a checkpoint, as `warm_start` documents it; raises what that documents."""
    label, entries, not_taken, module = _open(checkpoint)
    prefix, is_transformers = _prefix(label, entries)
    core = module.get_submodule(prefix.rstrip(".")) if module is not None else None
    if is_transformers and core is None:
        raise ValueError(
            f"{label} is in the layout of transformers, but without its configuration (heads, activation); give the folder or "
            "the Hub name, or the loaded model."
        )
    tensors: dict[str, torch.Tensor] = {}
    names: dict[str, str] = {}
    for name, tensor in entries.items():
        own = name.removeprefix(prefix)
        if not name.startswith(prefix) or _HEADS.match(own) or not isinstance(tensor, torch.Tensor):
            not_taken[name] = "no part of the ViT (a head, another network, no tensor)"
            continue
        pieces = by_names_of_rats(own, tensor)
        tensors |= pieces
        names |= dict.fromkeys(pieces, name)
    _check(label, tensors, names)
    return VitCheckpoint(label, tensors, names, not_taken, *_fields(tensors, core))


def by_names_of_rats(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor of a ViT by the name that it has in RATS; a fused one in its pieces. Unknown names stay."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    for fused, parts in _FUSED.items():  # rows of q, of k, of v (DINO vision_transformer.py, Attention)
        if f".{fused}." in name:
            rows = tensor.chunk(len(parts))
            return {name.replace(fused, part): piece for part, piece in zip(parts, rows, strict=True)}
    return {name: tensor}


def needed_names(tensors: Mapping[str, torch.Tensor]) -> set[str]:
    """The parameters that RATS must have beside tokens and positions, for as many blocks as there are in `tensors`."""
    blocks = [f"encoder.layer.{index}" for index in range(_num_layers(tensors))]
    modules = ["embeddings.patch_embeddings", "layernorm", *(f"{block}.{part}" for block in blocks for part in _BLOCK)]
    needed = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    return needed if _has_qkv_bias(tensors) else needed - {f"{block}.{part}.bias" for block in blocks for part in _QKV}


def layer_scale_names(tensors: Mapping[str, torch.Tensor]) -> set[str]:
    """The names that LayerScale vectors have, in as many blocks."""
    return {f"encoder.layer.{index}.{scale}" for index in range(_num_layers(tensors)) for scale in LAYER_SCALES}


def fold_layer_scales(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Multiplies LayerScale vectors into the projections that they follow; gives the name of each, and its projection's."""
    folded = {}
    for name in [name for name in tensors if name.endswith(tuple(LAYER_SCALES))]:
        block, _, scale = name.rpartition(".")
        projection, factors = f"{block}.{LAYER_SCALES[scale]}", tensors.pop(name)  # (D)
        tensors[f"{projection}.weight"] = tensors[f"{projection}.weight"] * factors.unsqueeze(1)  # (D, inputs)
        tensors[f"{projection}.bias"] = tensors[f"{projection}.bias"] * factors  # (D)
        folded[name] = projection
    return folded


def _open(checkpoint: Checkpoint) -> tuple[str, Mapping[str, Any], dict[str, str], nn.Module | None]:
    """A label, the entries by their own names, those already left out and why, and the module if there is one."""
    if isinstance(checkpoint, nn.Module):
        return type(checkpoint).__name__, checkpoint.state_dict(), {}, checkpoint
    if isinstance(checkpoint, Mapping):
        return "the state dict", *unwrap(checkpoint), None
    if is_checkpoint_file(checkpoint):
        return str(checkpoint), *unwrap(read_checkpoint_file(checkpoint)), None
    module, loading = AutoModel.from_pretrained(checkpoint, output_loading_info=True)
    not_taken = dict.fromkeys(sorted(loading["unexpected_keys"]), f"transformers' {type(module).__name__} does not use it")
    drawn = loading["missing_keys"]  # at random, on loading: not of the checkpoint
    return str(checkpoint), {name: t for name, t in module.state_dict().items() if name not in drawn}, not_taken, module


def _prefix(label: str, names: Iterable[str]) -> tuple[str, bool]:
    """What stands before the names of the ViT ("vit.", "module.backbone."), and whether its layout is transformers'."""
    tokens = [name for name in names if re.search(r"(^|\.)cls_token$", name)]
    if len(tokens) != 1:
        found = f"it has {', '.join(tokens)}" if tokens else f"it has none, but {list(names)[:3]} ..."
        raise ValueError(
            f"{label} must hold exactly one cls_token, the class token whose place the registers take; {found}. Give a ViT, "
            "DINO or DINOv2, or of several networks the state dict of one. Weights of RATS itself need no warm start: "
            "load_original_checkpoint or python -m hub_cards.convert."
        )
    prefix = tokens[0].removesuffix("cls_token")
    return prefix.removesuffix("embeddings."), prefix.endswith("embeddings.")


def _check(label: str, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> None:
    """Refuses what RATS cannot compute: a tensor without a place may change all that comes after it."""
    if "embeddings.position_embeddings" not in tensors:
        raise ValueError(
            f"{label} has no learned position embeddings (rotary as in DINOv3, or relative as in BEiT?), but RATS adds learned "
            "ones to its patches; give a ViT, DINO or DINOv2."
        )
    gates = [name for own, name in names.items() if re.search(r"\.mlp\.(gate_proj|w12)\.", own)]
    if gates:
        raise ValueError(
            f"{label} has a gated MLP (SwiGLU, {gates[0]}), but RATS has fc1, the activation and fc2; give a source without, "
            "such as a DINOv2 smaller than giant."
        )
    needed = needed_names(tensors)
    others = {"cls_token", "register_tokens", "embeddings.mask_token", "embeddings.position_embeddings"}
    others |= layer_scale_names(tensors)
    unknown = [name for own, name in names.items() if own not in needed | others]
    if unknown:
        raise ValueError(
            f"{label} has {len(unknown)} tensors for which RATS has no place, such as {', '.join(unknown[:3])}; give a ViT, "
            "DINO or DINOv2, or leave them out if they are no part of it."
        )
    lacking, num_layers = sorted(needed - set(tensors)), _num_layers(tensors)
    if lacking or not num_layers:
        raise ValueError(
            f"{label} has {num_layers} layers and lacks {len(lacking)} parameters, in RATS's names {', '.join(lacking[:3])}; "
            "give a whole checkpoint (of several shards, the folder)."
        )
    kernel = tensors["embeddings.patch_embeddings.weight"]
    if kernel.ndim != 4:
        raise ValueError(
            f"{names['embeddings.patch_embeddings.weight']} of {label} has the shape {tuple(kernel.shape)}, but must be a "
            "convolution over images, (hidden_size, channels, height, width); give a ViT of images."
        )
    check_values(label, tensors, names)


def check_values(label: str, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> None:
    """Refuses tensors that are not finite floating-point numbers in memory; `names` are those in the source."""
    for own, tensor in tensors.items():
        if tensor.is_meta or not tensor.is_floating_point():
            raise ValueError(
                f"{names[own]} of {label} is {tensor.dtype} on {tensor.device}, but must be a floating-point tensor in memory; "
                "load the source without quantisation and offloading."
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{names[own]} of {label} is not finite: it diverged or is damaged; give another checkpoint.")


def sizes_of_weights(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The fields of RatsConfig that the shapes of the weights tell."""
    hidden_size, num_channels, patch_height, patch_width = tensors["embeddings.patch_embeddings.weight"].shape
    return {
        "hidden_size": hidden_size,
        "num_channels": num_channels,
        "patch_size": patch_height if patch_height == patch_width else (patch_height, patch_width),
        "num_hidden_layers": _num_layers(tensors),
        "intermediate_size": tensors["encoder.layer.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": _has_qkv_bias(tensors),
    }


def _fields(
    tensors: Mapping[str, torch.Tensor], core: nn.Module | None
) -> tuple[dict[str, Any], dict[str, Any], tuple[int, int] | None]:
    """The fields of RatsConfig that the weights fix, those that may differ, and the grid of the positions."""
    fixed = sizes_of_weights(tensors)
    patch_height, patch_width = height_width(fixed["patch_size"])
    open_fields: dict[str, Any] = {}
    config = getattr(core, "config", None)
    told = {name: getattr(config, name) for name in TOLD_BY_CONFIGURATIONS if hasattr(config, name)}
    if core is not None and config is None:  # DINO's own code or timm, where the attention knows its heads
        heads = next((part.num_heads for part in core.modules() if hasattr(part, "num_heads")), None)
        told = {"num_attention_heads": heads} if heads else {}
    for name, value in told.items():
        (open_fields if name == "layer_norm_eps" else fixed)[name] = value
    grid, positions = None, tensors["embeddings.position_embeddings"].shape[1]
    root = math.isqrt(positions)  # the same with and without the class token's
    image_size = getattr(config, "image_size", None)
    if image_size is not None:
        height, width = height_width(image_size)
        grid = (height // patch_height, width // patch_width)
    elif root**2 in (positions, positions - 1):
        grid = (root, root)
    if grid is not None:
        height, width = grid[0] * patch_height, grid[1] * patch_width
        open_fields["image_size"] = height if height == width else (height, width)
    return fixed, open_fields, grid


def _num_layers(names: Iterable[str]) -> int:
    return len({name.split(".")[2] for name in names if name.startswith("encoder.layer.")})


def _has_qkv_bias(names: Iterable[str]) -> bool:
    return any(name.endswith(tuple(f"{part}.bias" for part in _QKV)) for name in names)


def check_fit(source: VitCheckpoint, wanted: Mapping[str, Any]) -> None:
    for name, theirs in source.fixed_fields.items():
        ours = wanted.get(name, theirs)
        if (height_width(ours) != height_width(theirs)) if name == "patch_size" else (ours != theirs):
            raise ValueError(
                f"{name}={ours} does not fit {source.label}, whose weights are made for {name}={theirs} and are not converted; "
                "use that, or another checkpoint."
            )


__all__ = ["TOLD_BY_CONFIGURATIONS", "Checkpoint", "VitCheckpoint", "check_fit", "read_vit_checkpoint"]
