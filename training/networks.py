"""The backbone that a recipe asks for, RATS, a variant or one of its twins, and the DINO head on it.

B batch  L patches  N registers  D hidden
"""

from dataclasses import asdict
from typing import NamedTuple, cast

import torch
from torch import nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, PreTrainedModel, ViTConfig, ViTModel
from transformers.utils.generic import maybe_autocast

from evaluation.register_attention_variants import VARIANTS, RatsVariantConfig, RatsVariantForPreTraining, is_rats
from modeling_rats import RatsConfig, RatsForPreTraining, RatsImageProcessor
from modeling_rats.modeling_rats import RatsProjectionHead
from training.settings import RatsSettings

RATS_TYPES = ("rats", *VARIANTS)  # values of the setting model_type whose network is a RATS, with register maps


def build_config(settings: RatsSettings, image_size_px: int) -> RatsConfig:
    """The configuration of the sizes that a recipe names.

    Raises:
        ValueError: If they do not fit together.
    """
    fields = asdict(settings)
    del fields["model_type"]
    try:
        if settings.model_type in VARIANTS:
            return RatsVariantConfig(**fields, image_size=image_size_px, attention_variant=settings.model_type)
        return RatsConfig(**fields, image_size=image_size_px)
    except Exception as error:  # the strict configuration wraps the reason
        raise ValueError(f"model settings: {error}") from error


def build_backbone_and_head(model_type: str, config: RatsConfig) -> tuple[PreTrainedModel, RatsProjectionHead]:
    """Backbone and DINO head, freshly initialised; the twins have the width, depth, heads, MLP, patch and head of RATS.

    `vit` is transformers' ViT as DINO's: one class token that the head gets. `registers` is a ViT of N plain registers, tokens
    like any other, whose mean the head gets as with RATS: what is missing is the bottleneck. It is Dinov2WithRegisters, so it
    also has a class token and LayerScale (initialised at 1). Drop path: none in `vit`, the same in all blocks of `registers`.

    A variant of RATS (`register_attention_variants`) has its weights, drawn alike, and possibly some more.

    Args:
        model_type: As in ModelSettings.
        config: That of `build_config` for this model_type.

    Raises:
        ValueError: If a twin cannot have the sizes.
    """
    if model_type in VARIANTS:
        network: RatsForPreTraining = RatsVariantForPreTraining(cast(RatsVariantConfig, config))
    else:
        network = RatsForPreTraining(config)
    if model_type in RATS_TYPES:
        return network.rats, network.head
    sizes = {
        name: getattr(config, name)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size", "layer_norm_eps")
    }
    sizes["initializer_range"] = config.initializer_range
    if model_type == "vit":
        vit_config = ViTConfig(**sizes, intermediate_size=config.intermediate_size)
        return ViTModel(vit_config, add_pooling_layer=False), network.head
    if config.intermediate_size % config.hidden_size:
        raise ValueError(
            f"intermediate_size={config.intermediate_size} must be a multiple of hidden_size={config.hidden_size} for "
            "model_type=registers, whose configuration knows their ratio alone; change it, or take another model_type."
        )
    register_config = Dinov2WithRegistersConfig(
        **sizes,
        mlp_ratio=config.intermediate_size // config.hidden_size,
        num_register_tokens=config.num_registers,
        drop_path_rate=config.drop_path_rate,
        layerscale_value=1.0,
    )
    backbone = Dinov2WithRegistersModel(register_config)
    backbone.embeddings.mask_token.requires_grad_(False)  # never used, and DDP refuses parameters without a gradient
    return backbone, network.head


class Features(NamedTuple):
    """What a backbone gives of B images, after its final LayerNorm.

    Attributes:
        pooled: What the head gets, (B, D).
        registers: (B, N, D); None for `vit`, which has none.
        patches: (B, L, D); None where they were not asked for.
    """

    pooled: torch.Tensor
    registers: torch.Tensor | None
    patches: torch.Tensor | None


def extract(backbone: PreTrainedModel, pixel_values: torch.Tensor, with_patches: bool = False) -> Features:
    """Features of images, (B, 3, height, width), of any size that the patch divides.

    Without patches RATS leaves out the patch half of its last block, since nothing reads it.
    """
    if is_rats(backbone.config):
        outputs = backbone(pixel_values, pooled_only=not with_patches)
        registers, patches = outputs.last_hidden_state.split_with_sizes(
            [backbone.config.num_registers, outputs.last_hidden_state.shape[1] - backbone.config.num_registers], dim=1
        )
        return Features(outputs.pooler_output, registers, patches if with_patches else None)
    if backbone.config.model_type == "vit":
        tokens = backbone(pixel_values, interpolate_pos_encoding=True).last_hidden_state
        return Features(tokens[:, 0], None, tokens[:, 1:] if with_patches else None)
    tokens = backbone(pixel_values).last_hidden_state
    first_patch = 1 + backbone.config.num_register_tokens  # behind the class token and the registers
    registers = tokens[:, 1:first_patch]
    return Features(registers.mean(dim=1), registers, tokens[:, first_patch:] if with_patches else None)


class ViewNetwork(nn.Module):
    """A backbone, and whatever stands on it, that takes views as the loaders make them.

    Args:
        backbone: RATS or a twin.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self.backbone = backbone
        # The processor is the only home of mean and std; here they are in levels of 0 to 255.
        mean = torch.tensor(RatsImageProcessor.image_mean) * 255
        std = torch.tensor(RatsImageProcessor.image_std) * 255
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    @property
    def _no_split_modules(self) -> list[str]:
        """The blocks that FSDP shards one by one; Accelerate asks for them under this name."""
        return sorted(self.backbone._no_split_modules or [])

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (images, height, width, 3) -> normalised float32 (images, 3, height, width)."""
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std


def in_float32(projection: nn.Linear | None, tokens: torch.Tensor | None) -> torch.Tensor | None:
    """Projected tokens; None where there is nothing to project. In bfloat16 the end of the training could not be told apart."""
    if projection is None or tokens is None:
        return None
    with maybe_autocast(tokens.device.type, enabled=False):
        return projection(tokens.float())
