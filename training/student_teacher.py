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

from modeling_rats import RatsImageProcessor
from modeling_rats.modeling_rats import RatsProjectionHead
from training.networks import extract
from training.sharding import own_shards, reshard


class ViewOutputs(NamedTuple):
    """What a network says of V views of B images.

    Attributes:
        logits: Over the prototypes, (V, B, K).
        pooled: What the head got, (V, B, D).
        registers: After the final LayerNorm, of the first size of views, the global ones, (views * B, N, D); None for a ViT.
        patches: Likewise, (views * B, L, D); None where they were not asked for.
    """

    logits: torch.Tensor
    pooled: torch.Tensor
    registers: torch.Tensor | None
    patches: torch.Tensor | None


class MultiCropNetwork(nn.Module):
    """Views in, prototype logits out: the backbone runs once per size of view, the head once on all of them.

    Args:
        backbone: RATS or a twin (`networks.py`).
        head: DINO head.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: PreTrainedModel, head: RatsProjectionHead):
        super().__init__()
        self.backbone = backbone
        self.head = head
        # The processor is the only home of mean and std; here they are in levels of 0 to 255.
        mean = torch.tensor(RatsImageProcessor.image_mean) * 255
        std = torch.tensor(RatsImageProcessor.image_std) * 255
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    @property
    def _no_split_modules(self) -> list[str]:
        """The blocks that FSDP shards one by one; Accelerate asks for them under this name."""
        return sorted(self.backbone._no_split_modules or [])

    def forward(self, views: Sequence[torch.Tensor], with_patches: bool = False) -> ViewOutputs:
        """
        Args:
            views: V views of B images, uint8, (B, height, width, 3); views of one size stand together, the global ones first.
            with_patches: Give the patch tokens too.
        """
        of_sizes = []
        for _, same_size in groupby(views, key=lambda view: view.shape):
            pixel_values = self.normalize(torch.cat(list(same_size)))  # (views of this size * B, 3, height, width)
            of_sizes.append(extract(self.backbone, pixel_values, with_patches))
        pooled = torch.cat([features.pooled for features in of_sizes])  # (V * B, D)
        logits = self.head(pooled).unflatten(0, (len(views), -1))  # (V, B, K)
        _, registers, patches = of_sizes[0]
        return ViewOutputs(logits, pooled.unflatten(0, (len(views), -1)), registers, patches)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (images, height, width, 3) -> normalised float32 (images, 3, height, width)."""
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std


def build_teacher(student: MultiCropNetwork) -> MultiCropNetwork:
    """A copy of the student that gets no gradient; in evaluation mode, so without drop path."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, head included, after the student's step."""
    reshard(teacher)
    torch._foreach_lerp_(own_shards(teacher.parameters()), own_shards(student.parameters()), 1 - momentum)
