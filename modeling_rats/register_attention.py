# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Register attention: patches -> registers -> registers -> patches (RATS, arXiv 2606.14701, method figure).

B batch  L patches  N registers  H heads  n = N/H registers per head  D hidden  d = D/H head dim
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_rats import RatsConfig


class RatsRegisterAttention(nn.Module):
    r"""All talk between patches passes through registers that are partitioned exclusively over the heads.

    Head i owns the registers R^i (n = N / H of them) and shares the patches P with the other heads:

        compress     Z  = softmax(Q(R^i) K(P)^T / sqrt d) V(P)      L -> n
        communicate  Z' = softmax(Z Z^T / sqrt d) Z                 n -> n
        broadcast    O  = softmax(Q(P) Z'^T / sqrt d) Z'            n -> L

    Patches leave with O of all heads through the output projection. Registers leave with Z' of their own head through
    that head's slice of it, bias included, which equals concatenating zeros in the other heads' slots.
    Source: the three steps and that both leave the block are read from the method figure; that registers leave with Z'
    through their own slice and with the bias is inferred, not drawn.

    Of a register only the query of its own head and the output columns of its own head are computed, and no key and no
    value: the others are never used. The tests hold the literal definition beside it.
    """

    def __init__(self, config: RatsConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_registers = config.num_registers
        self.scaling = self.head_dim**-0.5
        self.is_causal = False  # or sdpa assumes causal attention when there is no mask
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, registers_only: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """
        Args:
            hidden_states: Normed tokens, registers first, (B, N + L, D).
            registers_only: Leave the broadcast out and return the registers alone.

        Returns:
            The attended tokens (B, N + L, D), or (B, N, D) with `registers_only`, and the maps of compress (B, H, n, L),
            communicate (B, H, n, n) and broadcast (B, H, L, n), None where the implementation gives none.
        """
        registers, patches = hidden_states.split(
            [self.num_registers, hidden_states.shape[1] - self.num_registers], dim=1
        )  # (B, N, D), (B, L, D)
        keys = self._split_heads(self.k_proj(patches))  # (B, H, L, d)
        values = self._split_heads(self.v_proj(patches))  # (B, H, L, d)
        compressed, compress_map = self._attend(self._register_queries(registers), keys, values, **kwargs)
        communicated, communicate_map = compressed, None  # (B, H, n, d)
        if self.config.communicate:
            communicated, communicate_map = self._attend(compressed, compressed, compressed, **kwargs)
        registers = self._project_registers(communicated)  # (B, N, D)
        if registers_only:
            return registers, compress_map, communicate_map, None

        queries = self._split_heads(self.q_proj(patches))  # (B, H, L, d)
        broadcast, broadcast_map = self._attend(queries, communicated, communicated, **kwargs)
        patches = self.o_proj(self._merge_heads(broadcast))  # (B, L, D)
        return torch.cat([registers, patches], dim=1), compress_map, communicate_map, broadcast_map

    def compress_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """How well each register's query fits the key of each patch: compress before its softmax.

        Args:
            hidden_states: Normed tokens, registers first, (B, N + L, D).

        Returns:
            Q(R) K(P)^T / sqrt d, float32 at least, (B, N, L); averaged over the heads if all hold all registers.
        """
        registers, patches = hidden_states.split([self.num_registers, hidden_states.shape[1] - self.num_registers], dim=1)
        logits = self._register_queries(registers) @ self._compress_keys(registers, patches).transpose(2, 3) * self.scaling
        logits = logits[..., -patches.shape[1] :]  # (B, H, n, L); keys of registers come first, where there are any
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.flatten(1, 2) if self.config.partition_registers else logits.mean(dim=1)

    def _compress_keys(self, registers: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """The keys of compress, (B, H, L, d): those of the patches."""
        return self._split_heads(self.k_proj(patches))

    def _attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, attention_map = attention(
            self, queries, keys, values, attention_mask=None, dropout=0.0, scaling=self.scaling, **kwargs
        )
        if attention_map is not None and attention_map.ndim != 4:  # flex attention puts log-sum-exps in its place
            attention_map = None
        return attended.transpose(1, 2), attention_map  # (B, H, queries, d), (B, H, queries, keys)

    def _register_queries(self, registers: torch.Tensor) -> torch.Tensor:
        """Each register's query in the head that owns it: (B, N, D) -> (B, H, n, d)."""
        if not self.config.partition_registers:
            return self._split_heads(self.q_proj(registers))
        if can_slice(self.q_proj, registers):
            owned = registers.unflatten(1, (self.num_heads, -1))  # (B, H, n, D)
            weight = self.q_proj.weight.unflatten(0, (self.num_heads, self.head_dim))  # (H, d, D)
            queries = torch.einsum("bhnc,hdc->bhnd", owned, weight)
            if self.q_proj.bias is not None:
                queries = queries + self.q_proj.bias.view(self.num_heads, 1, self.head_dim).to(queries.dtype)
            return queries
        queries = self.q_proj(registers).unflatten(1, (self.num_heads, -1))  # (B, H, n, D)
        queries = queries.unflatten(-1, (self.num_heads, self.head_dim))  # (B, H, n, H, d)
        return torch.diagonal(queries, dim1=1, dim2=3).movedim(-1, 1)

    def _project_registers(self, communicated: torch.Tensor) -> torch.Tensor:
        """Z' through its own head's slice of the output projection: (B, H, n, d) -> (B, N, D)."""
        if not self.config.partition_registers:
            return self.o_proj(self._merge_heads(communicated))
        if can_slice(self.o_proj, communicated):
            weight = self.o_proj.weight.unflatten(1, (self.num_heads, self.head_dim))  # (D, H, d)
            registers = torch.einsum("bhnd,chd->bhnc", communicated, weight).flatten(1, 2)
            return registers + self.o_proj.bias.to(registers.dtype)
        own_head = torch.eye(self.num_heads, dtype=communicated.dtype, device=communicated.device)  # (H, H)
        slots = torch.einsum("bhnd,hg->bhngd", communicated, own_head)  # zeros in the other heads' slots
        return self.o_proj(slots.flatten(3).flatten(1, 2))

    def _split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, tokens, d)

    def _merge_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.transpose(1, 2).flatten(2)  # (B, tokens, D)


def can_slice(projection: nn.Module, tokens: torch.Tensor) -> bool:
    """Whether a head's slice of the weight of `projection` may stand for calling it.

    Only a bare nn.Linear that would itself do nothing but `F.linear` with this weight. Not a LoRA or quantised layer
    (another class, of the module or of its weight), not an offloaded one (its weight lies on another device until a hook
    fetches it), and not one that somebody hooked (the hook would be skipped).
    """
    return (
        type(projection) is nn.Linear
        and type(projection.weight) in (nn.Parameter, torch.Tensor)  # torchao's quantised weights are subclasses
        and projection.weight.is_floating_point()
        and projection.weight.device == tokens.device
        and "forward" not in vars(projection)  # accelerate replaces the instance's forward
        and not (projection._forward_hooks or projection._forward_pre_hooks)
        and not (projection._backward_hooks or projection._backward_pre_hooks)
    )


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, the form that returns its maps: softmax(Q K^T scaling) V and the softmax."""
    attention_map = torch.matmul(query, key.transpose(2, 3)) * scaling  # (B, H, queries, keys)
    if attention_mask is not None:
        attention_map = attention_map + attention_mask
    attention_map = nn.functional.softmax(attention_map, dim=-1, dtype=torch.float32).to(query.dtype)
    attention_map = nn.functional.dropout(attention_map, p=dropout, training=module.training)
    attended = torch.matmul(attention_map, value).transpose(1, 2).contiguous()  # (B, queries, H, d)
    return attended, attention_map


__all__ = ["RatsRegisterAttention", "can_slice"]
