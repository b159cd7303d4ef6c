"""Register attention in other ways than ours, for ablations: pretrained, saved and scored as RATS is, and no part of it.

B batch  L patches  N registers  H heads  n = N/H registers per head  D hidden  d = D/H head dim

The paper draws none of these: what each computes is our reading of its text or of its method figure, or a question of ours.
"""

import os
from collections.abc import Mapping
from copy import copy
from typing import cast

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from modeling_rats import RatsConfig, RatsForPartSegmentation, RatsForPreTraining, RatsModel, RatsPreTrainedModel
from modeling_rats.register_attention import RatsRegisterAttention
from modeling_rats.remote_code import WithCode


class VariableRegisterAttention(RatsRegisterAttention):
    """Register attention whose parts can be replaced one by one. As it stands, it computes what its parent does (test).

    Attributes:
        needs: The fields of the configuration for which a variant is defined, and their values there.
    """

    needs: Mapping[str, bool] = {"partition_registers": True}

    def forward(
        self, hidden_states: torch.Tensor, registers_only: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """As the parent's; the maps have the shapes that the variant's keys give them."""
        registers, patches = hidden_states.split(
            [self.num_registers, hidden_states.shape[1] - self.num_registers], dim=1
        )  # (B, N, D), (B, L, D)
        keys, values = self._read_by_registers(registers, patches)
        compressed, compress_map = self._attend(self._register_queries(registers), keys, values, **kwargs)
        communicated, communicate_map = compressed, None  # (B, H, n, d)
        if self.config.communicate:
            communicated, communicate_map = self._attend(*self._communicated(compressed), **kwargs)
        attended = self._project_registers(communicated)  # (B, N, D)
        if registers_only:
            return attended, compress_map, communicate_map, None

        queries = self._split_heads(self.q_proj(patches))  # (B, H, L, d)
        keys, values = self._read_by_patches(registers, communicated)
        broadcast, broadcast_map = self._attend(queries, keys, values, **kwargs)
        patches = self.o_proj(self._merge_heads(broadcast))  # (B, L, D)
        return torch.cat([attended, patches], dim=1), compress_map, communicate_map, broadcast_map

    def _compress_keys(self, registers: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        return self._read_by_registers(registers, patches)[0]

    def _read_by_registers(self, registers: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of compress: (B, N, D) and (B, L, D) -> twice (B, H, keys, d)."""
        return self._split_heads(self.k_proj(patches)), self._split_heads(self.v_proj(patches))  # (B, H, L, d)

    def _communicated(self, compressed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of communicate: (B, H, n, d) -> three times (B, H, n, d)."""
        return compressed, compressed, compressed

    def _read_by_patches(self, registers: torch.Tensor, communicated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of broadcast: (B, N, D) and (B, H, n, d) -> twice (B, H, n, d)."""
        return communicated, communicated


class RegisterKeysAttention(VariableRegisterAttention):
    """In compress the registers of a head read each other, too: Z = softmax(Q(R^i) K([R^i; P])^T / sqrt d) V([R^i; P]).

    Another reading of the method figure (ours), whose keys and values might be those of all tokens that the head holds. The
    compress maps are (B, H, n, n + L), the head's registers first. Keys and values of all registers are computed for all
    heads, and those of foreign heads are left: H times the products that are needed.
    """

    def _read_by_registers(self, registers: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (
            torch.cat([self._own_head(project(registers)), self._split_heads(project(patches))], dim=2)
            for project in (self.k_proj, self.v_proj)
        )
        return keys, values  # (B, H, n + L, d)

    def _own_head(self, projected: torch.Tensor) -> torch.Tensor:
        """Of each register the channels of the head that owns it: (B, N, D) -> (B, H, n, d)."""
        slots = projected.unflatten(1, (self.num_heads, -1)).unflatten(-1, (self.num_heads, self.head_dim))
        return torch.diagonal(slots, dim1=1, dim2=3).movedim(-1, 1)  # (B, H, n, H, d) -> (B, n, d, H) -> (B, H, n, d)


class ProjectedCommunicateAttention(VariableRegisterAttention):
    """Communicate with projections of its own: Z' = softmax(Q(Z) K(Z)^T / sqrt d) V(Z), where RATS has the identity for each.

    Ours: Q, K and V are three linear layers d -> d that all heads of a block share, with biases if `qkv_bias`, and begin as
    all linear layers do.
    """

    needs = {"partition_registers": True, "communicate": True}

    def __init__(self, config: RatsConfig):
        super().__init__(config)
        self.communicate_q_proj = nn.Linear(self.head_dim, self.head_dim, bias=config.qkv_bias)
        self.communicate_k_proj = nn.Linear(self.head_dim, self.head_dim, bias=config.qkv_bias)
        self.communicate_v_proj = nn.Linear(self.head_dim, self.head_dim, bias=config.qkv_bias)

    def _communicated(self, compressed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        queries, keys = self.communicate_q_proj(compressed), self.communicate_k_proj(compressed)
        return queries, keys, self.communicate_v_proj(compressed)  # (B, H, n, d)


class AllHeadsAttention(VariableRegisterAttention):
    """Registers leave through all heads: Z' in every head's slot before the output projection, not zeros in foreign slots.

    Ours, to ask what the paper's "independent projection subspace" of each subset of registers is good for: it isolates the
    subsets in attention alone. The projection adds up its H slices: with fresh weights what a register gains is on average
    sqrt(H) times as large as in RATS.
    """

    def _project_registers(self, communicated: torch.Tensor) -> torch.Tensor:
        slots = communicated.repeat(1, 1, 1, self.num_heads)  # (B, H, n, D)
        return self.o_proj(slots.flatten(1, 2))  # (B, N, D)


class PerceiverAttention(VariableRegisterAttention):
    """Cross-attention alone, as Perceiver IO (arXiv 2107.14795) carries its latents: no partition and no communicate.

    Our reading of the paper's "Perceiver-IO-like" ablation, of which it draws nothing. Registers R attend to the patches P,
    and P to R, each with all H heads:

        registers  softmax(Q(R) K(P)^T / sqrt d) V(P)    L -> N
        patches    softmax(Q(P) K(R)^T / sqrt d) V(R)    N -> L

    What the patches read are the normed registers that the block was given, not what these have just read. Q, K, V and the
    output projection are shared by both. The maps are (B, H, N, L) and (B, H, L, N).
    """

    needs = {"partition_registers": False, "communicate": False}

    def _read_by_patches(self, registers: torch.Tensor, communicated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._split_heads(self.k_proj(registers)), self._split_heads(self.v_proj(registers))  # (B, H, N, d)


VARIANTS: dict[str, type[VariableRegisterAttention]] = {
    "register_keys": RegisterKeysAttention,
    "projected_communicate": ProjectedCommunicateAttention,
    "all_heads": AllHeadsAttention,
    "perceiver": PerceiverAttention,
}


@strict
class RatsVariantConfig(RatsConfig):
    r"""Configuration of a RATS with another register attention.

    A saved folder is for studies: only this project's checkout loads it, with the classes of this file or, once it is
    imported, `AutoConfig` and `AutoModel`. `config.json` names no remote code, which would be that of RATS; the code that an
    image processor lays beside it is the processor's. `RatsConfig`, and with it `RatsForPartSegmentation` and the like, take
    such a folder for one of RATS: transformers warns of another model_type (and of weights without a place, if the variant
    has some of its own), goes on, and computes the attention of RATS with the variant's weights.

    attention_variant (`str`):
        A name in `VARIANTS`.
    """

    model_type = "rats_variant"

    attention_variant: str = ""  # must be given: a variant by default would be one by mistake

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """As transformers', without the tables of remote code that the parent writes."""
        saved = copy(self)
        vars(saved).pop("auto_map", None)  # which transformers sets when the bare backbone of a head is saved, a RatsModel
        super(WithCode, saved).save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def validate_attention_variant(self):
        """Part of `@strict` validation."""
        if self.attention_variant not in VARIANTS:
            raise ValueError(
                f"attention_variant={self.attention_variant!r} must be one of {', '.join(VARIANTS)}; choose one, or use "
                "RatsConfig for the register attention of RATS."
            )
        for name, needed in VARIANTS[self.attention_variant].needs.items():
            if getattr(self, name) != needed:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be {needed} with attention_variant={self.attention_variant!r}, which "
                    f"is not defined otherwise; set {name}={needed}."
                )


class RatsVariantModel(RatsModel):
    """[`RatsModel`] with the register attention of `config.attention_variant`."""

    config: RatsVariantConfig

    def __init__(self, config: RatsVariantConfig):
        super().__init__(config)
        _replace_attention(self, self)


class RatsVariantForPreTraining(RatsForPreTraining):
    """[`RatsForPreTraining`] with the register attention of `config.attention_variant`."""

    config: RatsVariantConfig

    def __init__(self, config: RatsVariantConfig):
        super().__init__(config)
        _replace_attention(self, self.rats)


class RatsVariantForPartSegmentation(RatsForPartSegmentation):
    """[`RatsForPartSegmentation`] with the register attention of `config.attention_variant`."""

    config: RatsVariantConfig

    def __init__(self, config: RatsVariantConfig):
        super().__init__(config)
        _replace_attention(self, self.rats)


def _replace_attention(model: RatsPreTrainedModel, rats: RatsModel) -> None:
    """Give all blocks of a new model, whose backbone is `rats`, the attention of its configuration.

    The projections stay, so that with the same seed all variants start from the weights of RATS; what a variant has beside
    them is drawn now, as everything else was.
    """
    config = cast(RatsVariantConfig, model.config)
    config.validate_attention_variant()  # again: an assigned field is checked for its type alone
    for layer in rats.encoder.layer:
        attention = VARIANTS[config.attention_variant](config)
        for name, projection in cast(RatsRegisterAttention, layer.attention).named_children():
            setattr(attention, name, projection)
        layer.attention = attention
    model.init_weights()  # of those modules alone that were not initialised yet
    model._freeze_unused()


# The model for part segmentation by the model_type of a configuration: all those with register maps.
RATS_FOR_PARTS: dict[str, type[RatsForPartSegmentation]] = {
    RatsConfig.model_type: RatsForPartSegmentation,
    RatsVariantConfig.model_type: RatsVariantForPartSegmentation,
}


def is_rats(config: PreTrainedConfig) -> bool:
    """Whether a configuration is that of a RATS, with whichever register attention: registers first, no class token."""
    return config.model_type in RATS_FOR_PARTS


AutoConfig.register(RatsVariantConfig.model_type, RatsVariantConfig, exist_ok=True)
AutoModel.register(RatsVariantConfig, RatsVariantModel, exist_ok=True)
