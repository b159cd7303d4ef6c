# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""The weights that the authors of RATS published (`TimingYang/RATS` on the Hub) in the classes of this package.

L patches  N registers  H heads  D hidden  K prototypes

The authors' code and the names of their tensors were never at hand. Their model page says that a file holds
`{"teacher": state dict}` of backbone and DINO head, behind `module.` and `backbone.`. Its size says that there is one QKV and
one output projection a block, and one head (a test computes it). So a checkpoint is read by its structure: blocks by the names
of DINO, DINOv2, timm or transformers, registers and positions by their shapes (`original_tokens_rats`). What is left out is
reported, and what has no place is refused.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import hf_hub_download

from .checkpoint_file_rats import read_checkpoint_file, unwrap
from .configuration_rats import RatsConfig, height_width
from .modeling_rats import RatsForPartSegmentation, RatsForPreTraining, RatsPreTrainedModel
from .original_tokens_rats import RegisterOrder, TokenOptions, listing, read_tokens
from .vit_checkpoint_rats import (
    TOLD_BY_CONFIGURATIONS,
    by_names_of_rats,
    check_values,
    fold_layer_scales,
    layer_scale_names,
    needed_names,
    sizes_of_weights,
)
from .warm_start_rats import DINO_HEAD_SIZE, WarmStartReport

Model = TypeVar("Model", bound=RatsPreTrainedModel)

_WRAPPING = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # DDP, torch.compile, FSDP
_PATCH_EMBEDDING = re.compile(r"(.*\.|)(patch_embed\.proj|embeddings\.patch_embeddings(\.projection)?)\.weight")
_HEAD = re.compile(r"(?:.*\.)?(?:dino_)?head\.(.+)")
# Names of DINO's head (vision_transformer.py, DINOHead) and of torch's newer weight norm -> names of RatsProjectionHead.
_HEAD_RENAMES = (
    (r"^mlp\.", "layers."),
    (r"^last_layer\.(weight_g|parametrizations\.weight\.original0)$", "prototypes.gain"),
    (r"^last_layer\.(weight_v|parametrizations\.weight\.original1)$", "prototypes.weight"),
)
_GAIN = "prototypes.gain"
_HEAD_NAMES = {f"layers.{index}.{kind}" for index in (0, 2, 4) for kind in ("weight", "bias")} | {"prototypes.weight"}


@dataclass
class ConversionReport(WarmStartReport):
    """What became of every tensor of a checkpoint; as in a warm start, but nothing is initialised."""

    heading = "Weights of RATS from"


@dataclass
class OriginalCheckpoint:
    """A checkpoint of RATS by the names of this package.

    Attributes:
        tensors: Of `RatsModel`, float32.
        fields: Of `RatsConfig`: what the weights tell, and what was given.
        report: What became of each tensor of the source.
        head: Of the DINO head, by their names in the source; empty if there is none.
    """

    tensors: dict[str, torch.Tensor]
    fields: dict[str, Any]
    report: ConversionReport
    head: dict[str, torch.Tensor]

    def build(self, model_class: type[Model], **fields: Any) -> Model:
        """A model without DINO head of these weights, which it shares with this checkpoint, in evaluation mode.

        Args:
            model_class: A class of RATS.
            fields: Of its configuration, in place of those of the checkpoint or beside them.

        Raises:
            ValueError: If the weights do not fit into it.
        """
        return self._build(model_class, self.fields | fields, {})

    def build_with_head(self, model_class: type[Model], **fields: Any) -> Model:
        """The same with the DINO head, for `RatsForPreTraining`.

        Raises:
            ValueError: If there is no head, or another than DINO's.
        """
        if not self.head:
            raise ValueError(f"{self.report.source} has no DINO head (head.mlp, head.last_layer), but one was asked for.")
        tensors, names, told = _read_head(self.report.source, self.head)
        self.report.taken |= {f"head.{name}": source for name, source in names.items()}
        return self._build(model_class, self.fields | told | fields, {f"head.{name}": t for name, t in tensors.items()})

    def _build(self, model_class: type[Model], fields: Mapping[str, Any], head: Mapping[str, torch.Tensor]) -> Model:
        config = cast(type[RatsConfig], model_class.config_class)(**fields)
        with torch.device("meta"):  # every weight is one of the checkpoint
            model = model_class(config)
        prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
        weights = {f"{prefix}{name}": tensor for name, tensor in self.tensors.items()} | dict(head)
        own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        wrong = [
            f"{name} {given.get(name, 'missing')} instead of {own.get(name, 'none')}"
            for name in own | given
            if own.get(name) != given.get(name)
        ]
        if wrong:
            raise ValueError(
                f"{len(wrong)} tensors of {self.report.source} do not fit into a {model_class.__name__} of its sizes: "
                f"{'; '.join(wrong[:5])}. Give a whole checkpoint of RATS."
            )
        model.load_state_dict(weights, assign=True)
        return model.eval()


def read_original_checkpoint(
    checkpoint: str | os.PathLike | Mapping[str, Any],
    filename: str | None = None,
    *,
    revision: str | None = None,
    registers: str | None = None,
    num_registers: int | None = None,
    register_order: RegisterOrder = "head_major",
    num_attention_heads: int | None = None,
    position_grid: Sequence[int] | None = None,
    leave_out: Sequence[str] = (),
) -> OriginalCheckpoint:
    """Read a checkpoint as the authors of RATS published it.

    Args:
        checkpoint: File of torch (only tensors are unpickled) or safetensors; a state dict, wrapped or not; with `filename`,
            a repository on the Hub, such as "TimingYang/RATS".
        filename: Path of the file in the repository, such as "base/checkpoint_teacher_ep0388.pth"; it is downloaded.
        revision: Branch, tag or commit of the repository.
        registers: Name of the tensor that holds the registers, where its shape does not tell.
        num_registers: N, if it is to be checked.
        register_order: Which registers belong to which head, see `read_tokens`; not known, and ours is an assumption.
        num_attention_heads: H; a head is assumed to have the 64 channels of DINO if None.
        position_grid: Rows and columns of the learned positions, where they are no square.
        leave_out: Names of tensors that are to be no part of the model, such as a class token.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged or holds more than tensors; a block is incomplete; registers or positions are missing
            or ambiguous; a tensor has no place, a wrong shape or values that are not finite.
        huggingface_hub.errors.HfHubHTTPError: The repository or its file is not there, or the Hub cannot be reached.
    """
    if filename is not None:
        checkpoint = hf_hub_download(str(checkpoint), filename, revision=revision)
    elif revision is not None:
        raise ValueError(f"revision={revision} is that of a repository; name its file with filename, or leave it out.")
    label = "the state dict" if isinstance(checkpoint, Mapping) else os.fspath(checkpoint)
    entries, beside = unwrap(checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint_file(checkpoint))
    report = ConversionReport(label, not_taken=beside)
    parts = _sort(label, entries, leave_out, report)
    everything = listing(_tensors(entries))
    sizes = sizes_of_weights(parts.backbone)
    heads = num_attention_heads or _assumed_heads(label, sizes["hidden_size"])
    wanted = TokenOptions(parts.aliases.get(registers, registers), num_registers, register_order, position_grid)
    tokens = read_tokens(label, parts.tokens, sizes["hidden_size"], heads, wanted, everything)
    tensors = parts.backbone | {f"embeddings.{name}": tensor for name, tensor in tokens.tensors.items()}
    report.taken = parts.names | {f"embeddings.{name}": ", ".join(found) for name, found in tokens.sources.items()}
    check_values(label, tensors, report.taken)
    tensors = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in tensors.items()}
    report.folded = {report.taken.pop(name): projection for name, projection in fold_layer_scales(tensors).items()}
    report.adapted = {f"embeddings.{name}": how for name, how in tokens.adapted.items()}
    report.not_taken |= tokens.not_taken
    defaults = RatsConfig()
    report.assumed = {name: getattr(defaults, name) for name in TOLD_BY_CONFIGURATIONS} | tokens.assumed
    report.assumed |= {"num_attention_heads": heads}
    if num_attention_heads:
        del report.assumed["num_attention_heads"]
    fields = {
        **sizes,
        "num_attention_heads": heads,
        "num_registers": tokens.tensors["register_tokens"].shape[1],
        "image_size": _image_size(tokens.grid, sizes["patch_size"]),
        "use_mask_token": "mask_token" in tokens.tensors,
    }
    return OriginalCheckpoint(tensors, fields, report, parts.head)


def load_original_checkpoint(
    checkpoint: str | os.PathLike | Mapping[str, Any], filename: str | None = None, *, with_head: bool = False, **options: Any
) -> tuple[RatsForPartSegmentation | RatsForPreTraining, ConversionReport]:
    """A model with the weights of a checkpoint as the authors of RATS published it, float32, in evaluation mode.

    Args:
        checkpoint: As for `read_original_checkpoint`, with the errors that it documents.
        filename: Likewise.
        with_head: Keep the DINO head: a `RatsForPreTraining` instead of a `RatsForPartSegmentation`.
        options: As for `read_original_checkpoint`.

    Returns:
        The model, and the report of what became of each tensor.
    """
    original = read_original_checkpoint(checkpoint, filename, **options)
    if with_head:
        return original.build_with_head(RatsForPreTraining), original.report
    why = "the DINO head, which only pretraining uses; with_head (--with_head) keeps it"
    original.report.not_taken |= dict.fromkeys(original.head, why)
    return original.build(RatsForPartSegmentation), original.report


@dataclass
class _Parts:
    backbone: dict[str, torch.Tensor]  # patch embedding, blocks and final norm, by names of RATS
    names: dict[str, str]  # name above -> name in the checkpoint
    tokens: dict[str, torch.Tensor]  # all else, by name in the checkpoint
    head: dict[str, torch.Tensor]  # by name in the checkpoint
    aliases: dict[str | None, str]  # name with or without wrappers and prefix -> name in the checkpoint


def _sort(label: str, entries: Mapping[str, Any], leave_out: Sequence[str], report: ConversionReport) -> _Parts:
    """The tensors of a state dict by what they are; those that are left out are reported."""
    sources = _clean_names(label, entries, report)
    prefix = _prefix(label, sources, entries)
    aliases: dict[str | None, str] = {
        alias: source for name, source in sources.items() for alias in (name, name.removeprefix(prefix), source)
    }
    if unknown := [name for name in leave_out if name not in aliases]:
        raise ValueError(f"{label} has no {', '.join(unknown)} to leave out. {listing(_tensors(entries))}")
    left = {aliases[name] for name in leave_out}
    parts = _Parts({}, {}, {}, {}, aliases)
    for name, source in sources.items():
        if source in left:
            report.not_taken[source] = "left out as asked"
        elif _HEAD.fullmatch(name):
            parts.head[source] = entries[source]
        elif name.startswith(prefix) and entries[source].ndim:
            pieces = by_names_of_rats(name.removeprefix(prefix), entries[source])
            if twice := [piece for piece in pieces if piece in parts.backbone]:
                raise ValueError(
                    f"{label} has both {parts.names[twice[0]]} and {source}, which are one parameter of RATS ({twice[0]}); "
                    f"leave one of them out with leave_out (--leave_out). {listing(_tensors(entries))}"
                )
            parts.backbone |= pieces
            parts.names |= dict.fromkeys(pieces, source)
        else:
            parts.tokens[source] = entries[source]
    _move_strangers(label, parts, entries)
    return parts


def _move_strangers(label: str, parts: _Parts, entries: Mapping[str, Any]) -> None:
    """Moves what is no part of a block, the patch embedding or the final norm to the tokens, and refuses incomplete ones."""
    if not any(name.startswith("encoder.layer.") for name in parts.backbone):
        raise ValueError(f"{label} has no blocks (blocks.0.attn ...) beside its patch embedding. {listing(_tensors(entries))}")
    needed = needed_names(parts.backbone)
    wanted = needed | layer_scale_names(parts.backbone)
    for name in [name for name in parts.backbone if name not in wanted]:
        source = parts.names.pop(name)
        del parts.backbone[name]
        parts.tokens[source] = entries[source]
    if lacking := sorted(needed - parts.backbone.keys()):
        raise ValueError(
            f"{label} lacks {len(lacking)} parameters of a RATS, by their names here {', '.join(lacking[:3])}; give a whole "
            f"checkpoint. {listing(_tensors(entries))}"
        )
    kernel = parts.backbone["embeddings.patch_embeddings.weight"]
    if kernel.ndim != 4:
        raise ValueError(
            f"{parts.names['embeddings.patch_embeddings.weight']} of {label} has the shape {tuple(kernel.shape)}, but must be "
            "a convolution over images, (hidden_size, channels, height, width)."
        )


def _clean_names(label: str, entries: Mapping[str, Any], report: ConversionReport) -> dict[str, str]:
    """The names of the tensors without those of wrappers -> their own; of teacher and student the teacher's alone."""
    sources: dict[str, str] = {}
    for source, entry in entries.items():
        name = ".".join(part for part in source.split(".") if part not in _WRAPPING)
        if not isinstance(entry, torch.Tensor):
            report.not_taken[source] = "no tensor"
        elif name in sources:
            raise ValueError(
                f"{label} has both {sources[name]} and {source}, which are one name without wrappers; give one of them."
            )
        else:
            sources[name] = source
    if any(name.startswith("teacher.") for name in sources):
        students = [name for name in sources if name.startswith("student.")]
        report.not_taken |= {sources.pop(name): "the weights are those of 'teacher'" for name in students}
    return sources


def _prefix(label: str, sources: Mapping[str, str], entries: Mapping[str, Any]) -> str:
    """What stands before the names of the backbone, such as "backbone."."""
    found = [match[1] for name in sources if (match := _PATCH_EMBEDDING.fullmatch(name))]
    if len(found) != 1:
        number = "no patch embedding" if not found else f"{len(found)} patch embeddings"
        raise ValueError(
            f"{label} has {number} (patch_embed.proj.weight), but must hold one vision transformer; give the authors' file, or "
            f"the state dict of one network. {listing(_tensors(entries))}"
        )
    return found[0]


def _tensors(entries: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: entry for name, entry in entries.items() if isinstance(entry, torch.Tensor)}


def _assumed_heads(label: str, hidden_size: int) -> int:
    if hidden_size % DINO_HEAD_SIZE:
        raise ValueError(
            f"{label} does not tell its number of heads, and its hidden_size={hidden_size} is no multiple of the "
            f"{DINO_HEAD_SIZE} channels that a head has in DINO; give num_attention_heads."
        )
    return hidden_size // DINO_HEAD_SIZE


def _image_size(grid: tuple[int, int], patch_size: int | tuple[int, int]) -> int | tuple[int, int]:
    height, width = (sides * patch for sides, patch in zip(grid, height_width(patch_size), strict=True))
    return height if height == width else (height, width)


def _read_head(label: str, found: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, Any]]:
    """DINO's projection head by the names of RATS, their sources, and the fields of RatsConfig that it tells."""
    tensors: dict[str, torch.Tensor] = {}
    names: dict[str, str] = {}
    for source, tensor in found.items():
        clean = ".".join(part for part in source.split(".") if part not in _WRAPPING)
        name = cast(re.Match, _HEAD.fullmatch(clean))[1]
        for pattern, replacement in _HEAD_RENAMES:
            name = re.sub(pattern, replacement, name)
        tensors[name], names[name] = tensor, source
    if tensors.keys() - {_GAIN} != _HEAD_NAMES:
        raise ValueError(
            f"{label} has a head that is not DINO's (three linear layers, weight-normed prototypes, no batch norm). "
            f"{listing(found)} Leave with_head (--with_head) out: parts and features need no head."
        )
    check_values(label, tensors, names)
    tensors = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in tensors.items()}
    fields = {
        "head_hidden_size": tensors["layers.0.weight"].shape[0],
        "head_bottleneck_size": tensors["prototypes.weight"].shape[1],
        "num_prototypes": tensors["prototypes.weight"].shape[0],
        "norm_last_layer": True,
    }
    if _GAIN in tensors:
        gain = tensors.pop(_GAIN).flatten()  # (K)
        if not (gain == 1).all():
            tensors[_GAIN], fields["norm_last_layer"] = gain, False
    return tensors, names, fields


__all__ = ["ConversionReport", "OriginalCheckpoint", "load_original_checkpoint", "read_original_checkpoint"]
