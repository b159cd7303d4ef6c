# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""What the RATS classes return."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput, ModelOutput
from transformers.utils import auto_docstring


@auto_docstring(custom_intro="Output of [`RatsModel`].")
@dataclass
class RatsModelOutput(BaseModelOutputWithPooling):
    r"""
    last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_registers + num_patches, hidden_size)`):
        Tokens after the final LayerNorm, registers first.
    pooler_output (`torch.FloatTensor` of shape `(batch_size, hidden_size)`):
        Mean over the registers of `last_hidden_state`.
    attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
        Compress maps of each layer, `(batch_size, num_heads, num_registers_per_head, num_patches)`.
    communicate_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_communicate_attentions=True`):
        Communicate maps of each layer, `(batch_size, num_heads, num_registers_per_head, num_registers_per_head)`.
    broadcast_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_broadcast_attentions=True`):
        Broadcast maps of each layer, `(batch_size, num_heads, num_patches, num_registers_per_head)`.
    """

    communicate_attentions: tuple[torch.Tensor, ...] | None = None
    broadcast_attentions: tuple[torch.Tensor, ...] | None = None


@auto_docstring(custom_intro="Output of [`RatsBackbone`].")
@dataclass
class RatsBackboneOutput(BackboneOutput):
    r"""
    feature_maps (`tuple(torch.FloatTensor)`):
        Patch tokens of each stage in `out_features`, `(batch_size, hidden_size, rows, columns)`, or
        `(batch_size, num_patches, hidden_size)` with `reshape_hidden_states=False`.
    registers (`tuple(torch.FloatTensor)`, *optional*, returned when `return_registers` is set in the configuration):
        Register tokens of the same stages, `(batch_size, num_registers, hidden_size)`.
    attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
        Compress maps of each layer, `(batch_size, num_heads, num_registers_per_head, num_patches)`.
    communicate_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_communicate_attentions=True`):
        Communicate maps of each layer, `(batch_size, num_heads, num_registers_per_head, num_registers_per_head)`.
    broadcast_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_broadcast_attentions=True`):
        Broadcast maps of each layer, `(batch_size, num_heads, num_patches, num_registers_per_head)`.
    """

    registers: tuple[torch.Tensor, ...] | None = None
    communicate_attentions: tuple[torch.Tensor, ...] | None = None
    broadcast_attentions: tuple[torch.Tensor, ...] | None = None


@auto_docstring(custom_intro="Output of [`RatsForImageClassification`].")
@dataclass
class RatsImageClassifierOutput(ImageClassifierOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Loss of `config.problem_type`, cross-entropy for integer labels.
    logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
        Label scores, before the softmax.
    attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
        Compress maps of each layer, `(batch_size, num_heads, num_registers_per_head, num_patches)`.
    communicate_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_communicate_attentions=True`):
        Communicate maps of each layer, `(batch_size, num_heads, num_registers_per_head, num_registers_per_head)`.
    broadcast_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_broadcast_attentions=True`):
        Broadcast maps of each layer, `(batch_size, num_heads, num_patches, num_registers_per_head)`.
    """

    communicate_attentions: tuple[torch.Tensor, ...] | None = None
    broadcast_attentions: tuple[torch.Tensor, ...] | None = None


@auto_docstring(custom_intro="Output of [`RatsForPreTraining`].")
@dataclass
class RatsForPreTrainingOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Cross-entropy of the logits with the target probabilities, averaged over the batch.
    logits (`torch.FloatTensor` of shape `(batch_size, num_prototypes)`):
        Cosine of the projected image with each prototype, before any temperature.
    attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
        Compress maps of each layer, `(batch_size, num_heads, num_registers_per_head, num_patches)`.
    communicate_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_communicate_attentions=True`):
        Communicate maps of each layer, `(batch_size, num_heads, num_registers_per_head, num_registers_per_head)`.
    broadcast_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_broadcast_attentions=True`):
        Broadcast maps of each layer, `(batch_size, num_heads, num_patches, num_registers_per_head)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    communicate_attentions: tuple[torch.Tensor, ...] | None = None
    broadcast_attentions: tuple[torch.Tensor, ...] | None = None


@auto_docstring(custom_intro="Output of [`RatsForPartSegmentation`].")
@dataclass
class RatsPartSegmentationOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Cross-entropy of the logits, upsampled to the labels, averaged over the labelled pixels.
    logits (`torch.FloatTensor` of shape `(batch_size, num_labels, rows, columns)`):
        Label scores on the patch grid: the similarities themselves while each register is its own label.
    similarities (`torch.FloatTensor` of shape `(batch_size, num_registers, rows, columns)`):
        Cosine of each register token with each patch token.
    register_heads (`torch.LongTensor` of shape `(batch_size, num_registers)`, *optional*):
        Attention head that owns each register; None if `partition_registers` is off and no head owns any.
    patch_features (`torch.FloatTensor` of shape `(batch_size, hidden_size, rows, columns)`, *optional*):
        Patch tokens that parts are read from: of block `config.part_layer`, after the final LayerNorm; with
        `output_patch_features=True`.
    attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
        Compress maps of each layer, `(batch_size, num_heads, num_registers_per_head, num_patches)`.
    communicate_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_communicate_attentions=True`):
        Communicate maps of each layer, `(batch_size, num_heads, num_registers_per_head, num_registers_per_head)`.
    broadcast_attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_broadcast_attentions=True`):
        Broadcast maps of each layer, `(batch_size, num_heads, num_patches, num_registers_per_head)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    similarities: torch.Tensor | None = None
    register_heads: torch.Tensor | None = None
    patch_features: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    communicate_attentions: tuple[torch.Tensor, ...] | None = None
    broadcast_attentions: tuple[torch.Tensor, ...] | None = None


def recorded(outputs: ModelOutput) -> dict[str, tuple[torch.Tensor, ...] | None]:
    """What the encoder recorded, as the outputs of all classes hand it on."""
    names = ("hidden_states", "attentions", "communicate_attentions", "broadcast_attentions")
    return {name: getattr(outputs, name) for name in names}


__all__ = [
    "RatsBackboneOutput",
    "RatsForPreTrainingOutput",
    "RatsImageClassifierOutput",
    "RatsModelOutput",
    "RatsPartSegmentationOutput",
    "recorded",
]
