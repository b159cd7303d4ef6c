"""Student, and the teacher that follows it (dino/main_dino.py; dino/utils.py, MultiCropWrapper).

B batch  V views  D hidden  K prototypes
"""

import copy
from itertools import groupby

import torch
from torch import nn

from modeling_rats import RatsForPreTraining, RatsImageProcessor


class MultiCropNetwork(nn.Module):
    """Views in, prototype logits out: the backbone runs once per size of view, the head once on all of them.

    Args:
        model: Backbone and DINO head.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: RatsForPreTraining):
        super().__init__()
        self.model = model
        # The processor is the only home of mean and std; here they are in levels of 0 to 255.
        mean = torch.tensor(RatsImageProcessor.image_mean) * 255
        std = torch.tensor(RatsImageProcessor.image_std) * 255
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        """
        Args:
            views: V views of B images, uint8, (B, height, width, 3); views of one size stand together.

        Returns:
            Logits over the prototypes, (V, B, K).
        """
        pooled = []
        for _, same_size in groupby(views, key=lambda view: view.shape):
            pixel_values = self.normalize(torch.cat(list(same_size)))  # (views of this size * B, 3, height, width)
            pooled.append(self.model.rats(pixel_values, pooled_only=True).pooler_output)
        logits = self.model.head(torch.cat(pooled))  # (V * B, K)
        return logits.unflatten(0, (len(views), -1))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (images, height, width, 3) -> normalised float32 (images, 3, height, width)."""
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std


def build_teacher(student: MultiCropNetwork) -> MultiCropNetwork:
    """A copy of the student that gets no gradient; in evaluation mode, so without drop path."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, head included, after the student's step."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
