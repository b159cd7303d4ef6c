"""Student, and the teacher that follows it (dino/main_dino.py; dino/utils.py, MultiCropWrapper).

B batch  V views  L patches  N registers  D hidden  K prototypes
"""

import copy
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_rats.modeling_rats import RatsProjectionHead
from training.networks import Features, ViewNetwork, extract, in_float32
from training.sharding import own_shards, reshard


class ViewOutputs(NamedTuple):
    """What a network says of V views of B images.

    Attributes:
        logits: Over the prototypes, (V, B, K).
        pooled: What the head got, (V, B, D).
        registers: After the final LayerNorm, of the first size of views, the global ones, (views * B, N, D); None for a ViT.
        patches: Likewise, (views * B, L, D); None where they were not asked for.
        projected_registers: What each of the registers stands for among the teacher's patches, (views * B, N, D); None without
            the register bottleneck.
    """

    logits: torch.Tensor
    pooled: torch.Tensor
    registers: torch.Tensor | None
    patches: torch.Tensor | None
    projected_registers: torch.Tensor | None = None


class MultiCropNetwork(ViewNetwork):
    """Views in, prototype logits out: the backbone runs once per size of view, the head once on all of them.

    Args:
        backbone: RATS or a twin (`networks.py`).
        head: DINO head.
        with_bottleneck: Whether registers are projected, for the loss of the register bottleneck; then patches are given, too.
    """

    def __init__(self, backbone: PreTrainedModel, head: RatsProjectionHead, with_bottleneck: bool = False):
        super().__init__(backbone)
        self.head = head
        width = backbone.config.hidden_size
        self.register_projection = nn.Linear(width, width) if with_bottleneck else None

    def forward(self, views: Sequence[torch.Tensor], with_patches: bool = False) -> ViewOutputs:
        """
        Args:
            views: V views of B images, uint8, (B, height, width, 3); views of one size stand together, the global ones first.
            with_patches: Give the patch tokens too.
        """
        with_patches = with_patches or self.register_projection is not None
        of_sizes: list[Features] = []
        for _, same_size in groupby(views, key=lambda view: view.shape):
            pixel_values = self.normalize(torch.cat(list(same_size)))  # (views of this size * B, 3, height, width)
            of_sizes.append(extract(self.backbone, pixel_values, with_patches and not of_sizes))
        pooled = torch.cat([features.pooled for features in of_sizes])  # (V * B, D)
        logits = self.head(pooled).unflatten(0, (len(views), -1))  # (V, B, K)
        _, registers, patches = of_sizes[0]
        projected = in_float32(self.register_projection, registers)  # (views * B, N, D)
        return ViewOutputs(logits, pooled.unflatten(0, (len(views), -1)), registers, patches, projected)


def build_teacher(student: MultiCropNetwork) -> MultiCropNetwork:
    """A copy of the student that gets no gradient; in evaluation mode, so without drop path."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, head included, after the student's step."""
    reshard(teacher)
    torch._foreach_lerp_(own_shards(teacher.parameters()), own_shards(student.parameters()), 1 - momentum)
