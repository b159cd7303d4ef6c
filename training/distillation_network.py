"""The student of a distillation, with the projections into its teacher's space.

B batch  L patches  N registers  D hidden of the student  T hidden of the teacher
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from training.distill_settings import DistillSettings
from training.networks import ViewNetwork, build_backbone_and_head, build_config, extract, in_float32


class DistillationOutputs(NamedTuple):
    """What the student says of B views; None is what no loss asks for.

    Attributes:
        registers: After the final LayerNorm, (B, N, D).
        patches: Likewise, (B, L, D).
        projected_patches: (B, L, T).
        projected_registers: What each register stands for in the teacher's space, (B, N, T).
        projected_pooled: Of the mean register, (B, T).
        register_codes: What each register stands for in all images, (N, T).
    """

    registers: torch.Tensor
    patches: torch.Tensor | None
    projected_patches: torch.Tensor | None
    projected_registers: torch.Tensor | None
    projected_pooled: torch.Tensor | None
    register_codes: torch.Tensor | None


class DistillationNetwork(ViewNetwork):
    """Views in, tokens and their projections out. The projections are trained with the backbone and not exported.

    Args:
        backbone: A RATS, or a variant.
        teacher_size: T.
        with_patches: Whether patches are projected.
        with_registers: Whether registers are, each by itself.
        with_pooled: Whether the mean register is.
        with_codes: Whether each register has a code.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        teacher_size: int,
        with_patches: bool,
        with_registers: bool,
        with_pooled: bool,
        with_codes: bool,
    ):
        super().__init__(backbone)
        width = backbone.config.hidden_size
        self.patch_projection = nn.Linear(width, teacher_size) if with_patches else None
        self.register_projection = nn.Linear(width, teacher_size) if with_registers else None
        self.global_projection = nn.Linear(width, teacher_size) if with_pooled else None
        # Directions alone count; lengths of about 1 change slowly enough at the learning rates of the others.
        codes = torch.randn(backbone.config.num_registers, teacher_size) / teacher_size**0.5 if with_codes else None
        self.register_codes = None if codes is None else nn.Parameter(codes)

    def forward(self, views: torch.Tensor) -> DistillationOutputs:
        """
        Args:
            views: uint8, (B, height, width, 3).
        """
        of_patches = (self.patch_projection, self.register_projection, self.register_codes)
        with_patches = any(one is not None for one in of_patches)
        pooled, registers, patches = extract(self.backbone, self.normalize(views), with_patches)
        assert registers is not None  # of a RATS
        return DistillationOutputs(
            registers,
            patches,
            in_float32(self.patch_projection, patches),
            in_float32(self.register_projection, registers),
            in_float32(self.global_projection, pooled),
            self.register_codes,
        )


def build_student(settings: DistillSettings, teacher_size: int) -> DistillationNetwork:
    """The student with the projections that its losses ask for, freshly initialised.

    Raises:
        ValueError: If the network cannot have its sizes.
    """
    training = settings.training
    config = build_config(settings.model, settings.data.global_crop_size)
    backbone, _ = build_backbone_and_head(settings.model.model_type, config)
    weights = (
        training.patch_weight,
        training.register_bottleneck_weight,
        training.global_weight,
        training.register_code_weight,
    )
    return DistillationNetwork(backbone, teacher_size, *(weight > 0 for weight in weights))
