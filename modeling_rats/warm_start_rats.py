# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Warm start: everything but the registers from a ViT or DINO checkpoint, with a report of what was taken.

B batch  L patches  N registers  H heads  D hidden

Patch and position embeddings, q, k, v and output projections, MLPs and LayerNorms of RATS are those of a ViT and are taken as
they are. The paper trains from scratch: that one may start so, and how the registers start (`_registers`), is ours.
"""

import argparse
import math
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

from .configuration_rats import RatsConfig, _pair
from .modeling_rats import RatsModel, RatsPreTrainedModel

REGISTERS_PER_HEAD = 16  # RATS-B/16 of the paper: 192 registers over 12 heads
DINO_HEAD_SIZE = 64  # channels a head has in every DINO and DINOv2

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
_SCALED = {"layer_scale1": "attention.o_proj", "layer_scale2": "mlp.fc2"}  # LayerScale -> the projection that it follows
_TOLD = ("num_attention_heads", "hidden_act", "layer_norm_eps")  # by a configuration, and not by the weights
_HEADS = re.compile(r"(pooler|head|head_dist|classifier)\.")  # of a task, on top of the ViT
_WRAPPERS = ("teacher", "model", "state_dict", "student")  # in this order: the teacher is DINO's result
_FILES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")

Checkpoint = str | os.PathLike | nn.Module | Mapping[str, Any]


@dataclass
class WarmStartReport:
    """What a warm start took and what not; `print` shows a summary.

    Every tensor of the source is in exactly one of `taken` (as a value, thrice if it is a fused qkv), `folded` and
    `not_taken`; every parameter of RATS in exactly one of `taken` and `initialised`.

    Attributes:
        source: Where the weights come from.
        taken: Parameter of RATS -> tensor of the source.
        adapted: Parameter of RATS among the taken -> what was changed (position embeddings).
        folded: Tensor of the source -> module of RATS into whose weight and bias it was multiplied (LayerScale).
        initialised: Parameter of RATS that was not taken -> how it starts.
        not_taken: Tensor of the source, or entry of its file -> why it was not taken.
        assumed: Setting that matters to the weights and that the source does not tell -> the value used.
    """

    source: str
    taken: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)
    not_taken: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        in_layers = sum(name.startswith("encoder.layer.") for name in self.taken)
        lines = [
            f"Warm start from {self.source}",
            f"  taken        {len(self.taken)} parameters, {in_layers} of them in layers",
        ]
        lines += [f"  adapted      {name}: {change}" for name, change in self.adapted.items()]
        if self.folded:
            lines += [f"  folded       {len(self.folded)} LayerScale vectors, into the projections before them"]
        lines += [f"  initialised  {name}: {how}" for name, how in self.initialised.items()]
        for reason in dict.fromkeys(self.not_taken.values()):
            names = [name for name, why in self.not_taken.items() if why == reason]
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            lines += [f"  not taken    {', '.join(names[:2])}{more}: {reason}"]
        lines += [f"  assumed      {name}={value}, which the source does not tell" for name, value in self.assumed.items()]
        return "\n".join(lines)


def warm_start(
    checkpoint: Checkpoint, num_registers: int | None = None, **config_overrides
) -> tuple[RatsModel, WarmStartReport]:
    """A RatsModel of the sizes of a ViT or DINO checkpoint, filled with its weights, in float32 and evaluation mode.

    Args:
        checkpoint: A folder or Hub name of transformers (ViT, DINOv2, DINOv2 with registers; heads on top are left out); a
            `.pth`, `.pt` or `.safetensors` file in the original DINO, DINOv2 or timm layout; or such a model or state dict.
        num_registers: N; 16 per head if None, as RATS-B/16 of the paper.
        config_overrides: Fields of RatsConfig. What the weights fix (`hidden_size`, `patch_size` ...) can only be repeated;
            another `image_size` resizes the position embeddings. A file does not tell its `num_attention_heads`: unless
            given here, a head is assumed to have the 64 channels of DINO.

    Returns:
        The model and the report. The registers are random: `torch.manual_seed` repeats them.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The source is no ViT with a class token, learned positions and a plain MLP, is incomplete or not finite,
            does not fit `config_overrides`, or is a file that holds more than tensors.
    """
    unknown = [name for name in config_overrides if not hasattr(RatsConfig(), name)]
    if unknown:
        raise ValueError(f"{unknown} are no fields of RatsConfig; its documentation lists them.")
    source = _read(checkpoint)
    _check_fit(source, config_overrides)
    fields = source.open_fields | source.fixed_fields | config_overrides
    if "num_attention_heads" not in fields:
        if fields["hidden_size"] % DINO_HEAD_SIZE:
            raise ValueError(
                f"{source.label} does not tell its number of heads, and its hidden_size={fields['hidden_size']} is no multiple "
                f"of the {DINO_HEAD_SIZE} channels a head has in DINO; give num_attention_heads."
            )
        fields["num_attention_heads"] = fields["hidden_size"] // DINO_HEAD_SIZE
    if num_registers is None:
        num_registers = REGISTERS_PER_HEAD * fields["num_attention_heads"]
    model = RatsModel(RatsConfig(num_registers=num_registers, **fields))
    return model.eval(), _fill(model, source)


def load_vit_weights(model: RatsPreTrainedModel, checkpoint: Checkpoint) -> WarmStartReport:
    """Fills an existing RATS from a ViT or DINO checkpoint, keeping its sizes, dtype and device.

    Args:
        model: A RatsModel, or a model with one inside, whose head is left alone. Its registers are initialised anew.
        checkpoint: As for `warm_start`. Where it does not tell its number of heads, the model's is trusted.

    Raises:
        FileNotFoundError: No such file.
        ValueError: As for `warm_start`, or the sizes differ. The model is then unchanged.
    """
    source = _read(checkpoint)
    _check_fit(source, {name: getattr(model.config, name) for name in source.fixed_fields})
    return _fill(cast(RatsModel, model.base_model), source)


@dataclass
class _Source:
    label: str
    tensors: dict[str, torch.Tensor]  # by names of RATS; those without: cls_token, register_tokens, *.layer_scale1 and 2
    names: dict[str, str]  # name above -> name in the source
    not_taken: dict[str, str]  # name in the source -> why
    fixed_fields: dict[str, Any]  # fields of RatsConfig that the weights fix
    open_fields: dict[str, Any]  # fields of RatsConfig that may differ
    grid: tuple[int, int] | None  # rows and columns of the position embeddings; None if the source does not tell


def _read(checkpoint: Checkpoint) -> _Source:
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
    return _Source(label, tensors, names, not_taken, *_fields(tensors, core))


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
    except pickle.UnpicklingError as error:
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
    others |= {f"{block}.{scale}" for block in blocks for scale in _SCALED}
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
    told = {name: getattr(config, name) for name in _TOLD if hasattr(config, name)}
    if core is not None and config is None:  # DINO's own code or timm, where the attention knows its heads
        heads = next((part.num_heads for part in core.modules() if hasattr(part, "num_heads")), None)
        told = {"num_attention_heads": heads} if heads else {}
    for name, value in told.items():
        (open_fields if name == "layer_norm_eps" else fixed)[name] = value
    grid, positions = None, tensors["embeddings.position_embeddings"].shape[1]
    root = math.isqrt(positions)  # the same with and without the class token's
    image_size = getattr(config, "image_size", None)
    if image_size is not None:
        height, width = _pair(image_size)
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


def _check_fit(source: _Source, wanted: Mapping[str, Any]) -> None:
    for name, theirs in source.fixed_fields.items():
        ours = wanted.get(name, theirs)
        if (_pair(ours) != _pair(theirs)) if name == "patch_size" else (ours != theirs):
            raise ValueError(
                f"{name}={ours} does not fit {source.label}, whose weights are made for {name}={theirs} and are not converted; "
                "use that, or another checkpoint."
            )


@torch.no_grad()
def _fill(model: RatsModel, source: _Source) -> WarmStartReport:
    report = WarmStartReport(source.label, not_taken=dict(source.not_taken))
    tensors = {name: tensor.to("cpu", torch.float32) for name, tensor in source.tensors.items()}
    for name in [name for name in tensors if name.endswith(tuple(_SCALED))]:
        block, _, scale = name.rpartition(".")
        projection, factors = f"{block}.{_SCALED[scale]}", tensors.pop(name)  # (D)
        tensors[f"{projection}.weight"] = tensors[f"{projection}.weight"] * factors.unsqueeze(1)  # (D, inputs)
        tensors[f"{projection}.bias"] = tensors[f"{projection}.bias"] * factors  # (D)
        report.folded[source.names[name]] = projection

    positions = tensors.pop("embeddings.position_embeddings")
    class_position, patch_positions, change = _positions(positions, source, model.config)
    tensors["embeddings.position_embeddings"] = patch_positions
    report.adapted["embeddings.position_embeddings"] = change
    registers = _registers(tensors.pop("cls_token") + class_position, model.config)
    report.not_taken[source.names["cls_token"]] = "RATS has no class token; its registers start from it"
    if tensors.pop("register_tokens", None) is not None:
        # They keep artefacts out of the patches (arXiv 2309.16588); what asks the image is the class token.
        report.not_taken[source.names["register_tokens"]] = "they serve all heads at once, a register of RATS its own head"

    parameters = dict(model.named_parameters())
    if "embeddings.mask_token" in tensors:
        tensors["embeddings.mask_token"] = tensors["embeddings.mask_token"].reshape(1, 1, -1)  # (1, D) in DINOv2
        if "embeddings.mask_token" not in parameters:
            report.not_taken[source.names["embeddings.mask_token"]] = "the model has no mask token"
    report.taken = {name: source.names[name] for name in parameters if name in tensors}
    for name in report.taken:
        if tensors[name].shape != parameters[name].shape:
            raise ValueError(
                f"{source.names[name]} of {source.label} must give {name} the shape {tuple(parameters[name].shape)}, but gives "
                f"{tuple(tensors[name].shape)}; give a plain ViT, DINO or DINOv2."
            )
    as_it_was = "as the model had it (zeros in a new one), the source has none"
    report.initialised = dict.fromkeys((name for name in parameters if name not in report.taken), as_it_was)
    report.initialised["embeddings.register_tokens"] = "the class token at its position, plus noise"
    told = source.fixed_fields | source.open_fields
    report.assumed = {name: getattr(model.config, name) for name in _TOLD if name not in told}
    for name in report.taken:
        parameters[name].copy_(tensors[name])
    parameters["embeddings.register_tokens"].copy_(registers)
    return report


def _positions(learned: torch.Tensor, source: _Source, config: RatsConfig) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Position embeddings of the class token, zeros if it has none, and of the patches, and what was changed.

    Another grid is interpolated as the model's own embeddings do it, so it does not matter which of the two does. Departs
    from DINOv2 with registers, which antialiases there.
    """
    rows, columns = source.grid or config.grid_size
    before = learned.shape[1] - rows * columns
    if before not in (0, 1):  # timm's `no_embed_class` gives the class token none
        raise ValueError(
            f"{source.label} has {learned.shape[1]} position embeddings, but a class token and {rows} x {columns} patches have "
            f"{rows * columns + 1}; give image_size as the source was trained with."
        )
    class_position = learned[:, :before].sum(dim=1, keepdim=True)  # (1, 1, D)
    positions, change = learned[:, before:], "without the class token's"  # (1, L, D)
    if (rows, columns) != config.grid_size:
        positions = positions.transpose(1, 2).unflatten(-1, (rows, columns))  # (1, D, rows, columns)
        positions = nn.functional.interpolate(positions, size=config.grid_size, mode="bicubic", align_corners=False)
        positions = positions.flatten(2).transpose(1, 2)  # (1, L, D)
        change += f", {rows} x {columns} patches interpolated to {' x '.join(map(str, config.grid_size))}"
    return class_position, positions, change


def _registers(class_token: torch.Tensor, config: RatsConfig) -> torch.Tensor:
    """Registers that start as the class token, (1, 1, D) with its position, and differ by noise: (1, N, D).

    The class token is what the source learned to ask an image with. A register asks through the query of its own head alone,
    so registers of two heads differ already; those of one head would stay equal for ever, and nearly equal ones for long,
    without noise. Only its size beside the token matters, as LayerNorm comes next and takes the scale away: half of the
    token's standard deviation gives two registers a cosine of about 1 / (1 + 0.5^2) = 0.8, whatever the source; a fixed
    `initializer_range`, the least that is used, would vanish beside a large token.
    """
    deviation = max(config.initializer_range, 0.5 * class_token.std().item())
    noise = torch.empty(1, config.num_registers, config.hidden_size)
    nn.init.trunc_normal_(noise, std=deviation, a=-2 * deviation, b=2 * deviation)
    return class_token + noise


__all__ = ["WarmStartReport", "load_vit_weights", "warm_start"]
