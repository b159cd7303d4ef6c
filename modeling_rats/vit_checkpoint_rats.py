# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Reads a ViT of transformers, DINO, DINOv2 or timm: its tensors by the names of RATS, and what it tells about their sizes."""

import argparse
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

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
    (r"\.attention\.proj\.", ".attention.o_proj."),
    (r"\.(layer_scale|ls)([12])\.(lambda1|gamma)$", r".layer_scale\2"),
)
_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_BLOCK = ("layernorm_before", *_QKV, "attention.o_proj", "layernorm_after", "mlp.fc1", "mlp.fc2")
LAYER_SCALES = {"layer_scale1": "attention.o_proj", "layer_scale2": "mlp.fc2"}  # LayerScale -> the projection that it follows
TOLD_BY_CONFIGURATIONS = ("num_attention_heads", "hidden_act", "layer_norm_eps")  # by a configuration, and not by the weights
_HEADS = re.compile(r"(pooler|head|head_dist|classifier)\.")  # of a task, on top of the ViT
_WRAPPERS = ("teacher", "model", "state_dict", "student")  # in this order: the teacher is DINO's result
_FILES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")

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
        for pattern, replacement in _RENAMES:
            own = re.sub(pattern, replacement, own)
        pieces = {own: tensor}
        if ".attention.qkv." in own:  # rows of q, of k, of v (DINO vision_transformer.py, Attention)
            pieces = {own.replace("attention.qkv", _QKV[part]): rows for part, rows in enumerate(tensor.chunk(3))}
        tensors |= pieces
        names |= dict.fromkeys(pieces, name)
    _check(label, tensors, names)
    return VitCheckpoint(label, tensors, names, not_taken, *_fields(tensors, core))


def _open(checkpoint: Checkpoint) -> tuple[str, Mapping[str, Any], dict[str, str], nn.Module | None]:
    """A label, the entries by their own names, those already left out and why, and the module if there is one."""
    if isinstance(checkpoint, nn.Module):
        return type(checkpoint).__name__, checkpoint.state_dict(), {}, checkpoint
    if isinstance(checkpoint, Mapping):
        return "the state dict", *_unwrap(checkpoint), None
    path = Path(checkpoint)
    if path.is_file() or (path.suffix in _FILES and not path.is_dir()):
        return str(checkpoint), *_unwrap(_read_file(path)), None
    module, loading = AutoModel.from_pretrained(checkpoint, output_loading_info=True)
    not_taken = dict.fromkeys(sorted(loading["unexpected_keys"]), f"transformers' {type(module).__name__} does not use it")
    drawn = loading["missing_keys"]  # at random, on loading: not of the checkpoint
    return str(checkpoint), {name: t for name, t in module.state_dict().items() if name not in drawn}, not_taken, module


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}; give a file, a folder of transformers or a Hub name.")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        # Only tensors and plain containers are unpickled, and the arguments that the full checkpoints of DINO hold.
        with torch.serialization.safe_globals([argparse.Namespace]):
            entries = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file that is no checkpoint, torch raises what its bytes lead it to
        raise ValueError(
            f"{path} holds more than tensors, or is no checkpoint of torch, and is not opened: unpickling objects can run any "
            "code. If you trust it, load it yourself and give its state dict instead."
        ) from error
    if not isinstance(entries, Mapping):
        raise ValueError(f"{path} holds a {type(entries).__name__}, but must hold a state dict, or a dict with one in it.")
    return entries


def _unwrap(entries: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The state dict in a training checkpoint, and the entries beside it."""
    chosen = next((name for name in _WRAPPERS if isinstance(entries.get(name), Mapping)), None)
    if chosen is None:
        return entries, {}
    beside = dict.fromkeys((name for name in entries if name != chosen), f"the weights are those of {chosen!r}")
    inner, beside_inner = _unwrap(entries[chosen])
    return inner, beside | beside_inner


def _prefix(label: str, names: Iterable[str]) -> tuple[str, bool]:
    """What stands before the names of the ViT ("vit.", "module.backbone."), and whether its layout is transformers'."""
    tokens = [name for name in names if re.search(r"(^|\.)cls_token$", name)]
    if len(tokens) != 1:
        found = f"it has {', '.join(tokens)}" if tokens else f"it has none, but {list(names)[:3]} ..."
        raise ValueError(
            f"{label} must hold exactly one cls_token, the class token whose place the registers take; {found}. Give a ViT, "
            "DINO or DINOv2, or of several networks the state dict of one."
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
    blocks = [f"encoder.layer.{index}" for index in range(_num_layers(tensors))]
    modules = ["embeddings.patch_embeddings", "layernorm", *(f"{block}.{part}" for block in blocks for part in _BLOCK)]
    needed = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    if not _has_qkv_bias(tensors):
        needed -= {f"{block}.{part}.bias" for block in blocks for part in _QKV}
    others = {"cls_token", "register_tokens", "embeddings.mask_token", "embeddings.position_embeddings"}
    others |= {f"{block}.{scale}" for block in blocks for scale in LAYER_SCALES}
    unknown = [name for own, name in names.items() if own not in needed | others]
    if unknown:
        raise ValueError(
            f"{label} has {len(unknown)} tensors for which RATS has no place, such as {', '.join(unknown[:3])}; give a ViT, "
            "DINO or DINOv2, or leave them out if they are no part of it."
        )
    lacking = sorted(needed - set(tensors))
    if lacking or not blocks:
        raise ValueError(
            f"{label} has {len(blocks)} layers and lacks {len(lacking)} parameters, in RATS's names {', '.join(lacking[:3])}; "
            "give a whole checkpoint (of several shards, the folder)."
        )
    kernel = tensors["embeddings.patch_embeddings.weight"]
    if kernel.ndim != 4:
        raise ValueError(
            f"{names['embeddings.patch_embeddings.weight']} of {label} has the shape {tuple(kernel.shape)}, but must be a "
            "convolution over images, (hidden_size, channels, height, width); give a ViT of images."
        )
    for own, tensor in tensors.items():
        if tensor.is_meta or not tensor.is_floating_point():
            raise ValueError(
                f"{names[own]} of {label} is {tensor.dtype} on {tensor.device}, but must be a floating-point tensor in memory; "
                "load the source without quantisation and offloading."
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{names[own]} of {label} is not finite: it diverged or is damaged; give another checkpoint.")


def _fields(
    tensors: Mapping[str, torch.Tensor], core: nn.Module | None
) -> tuple[dict[str, Any], dict[str, Any], tuple[int, int] | None]:
    """The fields of RatsConfig that the weights fix, those that may differ, and the grid of the positions."""
    hidden_size, num_channels, patch_height, patch_width = tensors["embeddings.patch_embeddings.weight"].shape
    fixed: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_channels": num_channels,
        "patch_size": patch_height if patch_height == patch_width else (patch_height, patch_width),
        "num_hidden_layers": _num_layers(tensors),
        "intermediate_size": tensors["encoder.layer.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": _has_qkv_bias(tensors),
    }
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


__all__ = ["LAYER_SCALES", "TOLD_BY_CONFIGURATIONS", "Checkpoint", "VitCheckpoint", "check_fit", "read_vit_checkpoint"]
