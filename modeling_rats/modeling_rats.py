"""RATS (Register Attention Transformers, arXiv 2606.14701): backbone, DINO pretraining and part segmentation.

B batch  L patches  N registers  H heads  n = N/H registers per head  D hidden  d = D/H head dim  K prototypes
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling, ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_rats import RatsConfig
from .part_maps import register_patch_similarities
from .register_attention import RatsRegisterAttention


@auto_docstring(custom_intro="Output of [`RatsForPreTraining`].")
@dataclass
class RatsForPreTrainingOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Cross-entropy of the logits with the target probabilities, averaged over the batch.
    logits (`torch.FloatTensor` of shape `(batch_size, num_prototypes)`):
        Cosine of the projected image with each prototype, before any temperature.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


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
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    similarities: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class RatsEmbeddings(nn.Module):
    """Register tokens, followed by patch embeddings with learned absolute positions (registers have none)."""

    def __init__(self, config: RatsConfig):
        super().__init__()
        self.config = config
        rows, columns = config.grid_size
        self.register_tokens = nn.Parameter(torch.zeros(1, config.num_registers, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_mask_token else None
        self.patch_embeddings = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_height_width,
            stride=config.patch_height_width,
        )
        self.position_embeddings = nn.Parameter(torch.zeros(1, rows * columns, config.hidden_size))

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        self._check(pixel_values)
        patches = self.patch_embeddings(pixel_values)  # (B, D, rows, columns)
        grid = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)  # (B, L, D)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("bool_masked_pos was given, but the model has no mask token; set use_mask_token=True.")
            patches = torch.where(bool_masked_pos.bool().unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        patches = patches + self._positions(grid).to(patches.dtype)
        registers = self.register_tokens.to(patches.dtype).expand(patches.shape[0], -1, -1)  # (B, N, D)
        return torch.cat([registers, patches], dim=1)  # (B, N + L, D)

    def _positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Position embeddings of a patch grid, bicubically interpolated if it is not the learned one: (1, L, D)."""
        if tuple(grid) == self.config.grid_size:
            return self.position_embeddings
        positions = self.position_embeddings.transpose(1, 2).unflatten(-1, self.config.grid_size)
        # Bicubic interpolation has no half-precision kernel everywhere, and needs none for so few numbers.
        positions = nn.functional.interpolate(positions.float(), size=grid, mode="bicubic", align_corners=False)
        return positions.flatten(2).transpose(1, 2)  # (1, L, D)

    def _check(self, pixel_values: torch.Tensor) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)} must be (batch, {self.config.num_channels} channels, "
                "height, width); RatsImageProcessor makes them so."
            )
        for side, pixels, patch in zip(
            ("height", "width"), pixel_values.shape[2:], self.config.patch_height_width, strict=True
        ):
            if pixels < patch or pixels % patch:
                raise ValueError(
                    f"image {side} {pixels} px must be a positive multiple of the patch {side} {patch} px (a convolution "
                    f"would drop the rest silently); resize it, e.g. RatsImageProcessor with ensure_multiple_of={patch}."
                )


class RatsMLP(nn.Module):
    def __init__(self, config: RatsConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class RatsDropPath(nn.Module):
    """Stochastic depth per sample (arXiv 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return hidden_states
        keep = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(1 - self.rate)
        return hidden_states * keep / (1 - self.rate)


class RatsLayer(GradientCheckpointingLayer):
    """Pre-norm block: register attention, then the MLP that registers and patches share."""

    def __init__(self, config: RatsConfig, drop_path_rate: float = 0.0):
        super().__init__()
        self.num_registers = config.num_registers
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = RatsRegisterAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = RatsMLP(config)
        self.drop_path = RatsDropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, registers_only: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        attended = self.attention(self.layernorm_before(hidden_states), registers_only=registers_only, **kwargs)[0]
        if registers_only:
            hidden_states = hidden_states[:, : self.num_registers]  # (B, N, D)
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


@auto_docstring
class RatsPreTrainedModel(PreTrainedModel):
    config: RatsConfig
    base_model_prefix = "rats"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # as transformers' own vision models have it
    supports_gradient_checkpointing = True
    _no_split_modules = ["RatsEmbeddings", "RatsLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _input_embed_layer = "patch_embeddings"
    _can_record_outputs = {
        "hidden_states": RatsLayer,
        "attentions": RatsRegisterAttention,  # the compress maps, (B, H, n, L)
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d, RatsPrototypes)):
            init.trunc_normal_(module.weight, mean=0.0, std=std)
            bias = getattr(module, "bias", None)
            if bias is not None:
                init.zeros_(bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, RatsEmbeddings):
            init.trunc_normal_(module.register_tokens, mean=0.0, std=std)
            init.trunc_normal_(module.position_embeddings, mean=0.0, std=std)
            if module.mask_token is not None:
                init.zeros_(module.mask_token)


class RatsEncoder(RatsPreTrainedModel):
    def __init__(self, config: RatsConfig):
        super().__init__(config)
        # Drop path grows linearly with depth (DINO vision_transformer.py).
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layer = nn.ModuleList([RatsLayer(config, rate) for rate in rates])
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self, hidden_states: torch.Tensor, pooled_only: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutput:
        r"""
        pooled_only (`bool`, *optional*, defaults to `False`):
            Leave out the patch half of the last block and return its registers alone.
        """
        last = len(self.layer) - 1
        for index, layer in enumerate(self.layer):
            hidden_states = layer(hidden_states, registers_only=pooled_only and index == last, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


@auto_docstring
class RatsModel(RatsPreTrainedModel):
    def __init__(self, config: RatsConfig):
        super().__init__(config)
        self.embeddings = RatsEmbeddings(config)
        self.encoder = RatsEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        pooled_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
            Which patches are replaced by the mask token.
        pooled_only (`bool`, *optional*, defaults to `False`):
            Only the registers are wanted: the patch half of the last block is not computed, and `last_hidden_state` is
            `(batch_size, num_registers, hidden_size)`. Ignored when hidden states or attentions are asked for.

        Returns:
            `last_hidden_state` of shape `(batch_size, num_registers + num_patches, hidden_size)`, registers first, after the
            final LayerNorm; `pooler_output` of shape `(batch_size, hidden_size)`, their mean register.

        Examples:

        ```python
        >>> import torch
        >>> from modeling_rats import RatsConfig, RatsModel

        >>> model = RatsModel(RatsConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_registers=8))
        >>> outputs = model(torch.rand(1, 3, 224, 320))
        >>> outputs.last_hidden_state.shape  # 8 registers and 14 x 20 patches
        torch.Size([1, 288, 48])

        ```"""
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.weight.dtype)
        hidden_states = self.embeddings(pixel_values, bool_masked_pos)  # (B, N + L, D)
        pooled_only = pooled_only and not self._records_outputs(kwargs)
        encoded: BaseModelOutput = self.encoder(hidden_states, pooled_only=pooled_only, **kwargs)
        tokens = self.layernorm(encoded.last_hidden_state)  # (B, N + L, D)
        # The paper's image representation: the mean over the final-layer registers goes into the DINO head.
        pooled = tokens[:, : self.config.num_registers].mean(dim=1)  # (B, D)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=pooled,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _records_outputs(self, kwargs: Mapping) -> bool:
        names = [f"output_{name}" for name in self._can_record_outputs]
        return any(kwargs.get(name, getattr(self.config, name, False)) for name in names)


class RatsPrototypes(nn.Module):
    """Cosine similarity with K prototypes, (B, D) -> (B, K).

    The weight-normed last layer of DINO's head (vision_transformer.py, DINOHead) with its gain frozen at 1.
    Departs from DINO in the initial length of the weights, `initializer_range` as everywhere and not torch's default.
    """

    def __init__(self, features: int, num_prototypes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_prototypes, features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(nn.functional.normalize(features, dim=-1), nn.functional.normalize(self.weight, dim=-1))


class RatsProjectionHead(nn.Module):
    """DINO projection head: three linear layers with GELU, an L2-normalised bottleneck, K prototypes (DINOHead).

    It runs in float32 whatever the autocast: in bfloat16 or float16 the head is where DINO becomes NaN.
    """

    def __init__(self, config: RatsConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.hidden_size, config.head_hidden_size),
            nn.GELU(),
            nn.Linear(config.head_hidden_size, config.head_hidden_size),
            nn.GELU(),
            nn.Linear(config.head_hidden_size, config.head_bottleneck_size),
        )
        self.prototypes = RatsPrototypes(config.head_bottleneck_size, config.num_prototypes)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        with torch.autocast(pooled.device.type, enabled=False):
            return self.prototypes(self.layers(pooled.to(self.prototypes.weight.dtype)))  # (B, K)


@auto_docstring(custom_intro="RATS with the DINO projection head on the mean register, the network that pretraining trains.")
class RatsForPreTraining(RatsPreTrainedModel):
    def __init__(self, config: RatsConfig):
        super().__init__(config)
        self.rats = RatsModel(config)
        self.head = RatsProjectionHead(config)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> RatsForPreTrainingOutput:
        r"""
        labels (`torch.FloatTensor` of shape `(batch_size, num_prototypes)`, *optional*):
            Target probabilities over the prototypes. Teacher, centre and views live in the training loop.
        """
        outputs = self.rats(pixel_values, pooled_only=True, **kwargs)
        logits = self.head(outputs.pooler_output)  # (B, K)
        loss = None
        if labels is not None:
            if labels.shape != logits.shape or not labels.is_floating_point():
                raise ValueError(
                    f"labels of shape {tuple(labels.shape)} and type {labels.dtype} must be target probabilities over the "
                    f"prototypes, of shape {tuple(logits.shape)} and a floating type."
                )
            loss = nn.functional.cross_entropy(logits.float(), labels.float())
        return RatsForPreTrainingOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring(
    custom_intro="""
    RATS that segments an image into parts by the similarity of its patches to its registers, without any label; with labels
    of one's own (`num_labels`, or `id2label`), a linear layer over the similarities names them.
    """
)
class RatsForPartSegmentation(RatsPreTrainedModel):
    def __init__(self, config: RatsConfig):
        super().__init__(config)
        self.rats = RatsModel(config)
        num_labels = config.num_labels or config.num_registers
        self.classifier = None if config.registers_are_labels else nn.Linear(config.num_registers, num_labels)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> RatsPartSegmentationOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Label of each pixel, 255 where it does not count.

        Examples:

        ```python
        >>> import torch
        >>> from modeling_rats import RatsConfig, RatsForPartSegmentation

        >>> config = RatsConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_registers=8)
        >>> model = RatsForPartSegmentation(config)
        >>> model(torch.rand(1, 3, 224, 320)).similarities.shape
        torch.Size([1, 8, 14, 20])

        ```"""
        layer = self.config.part_layer % (self.config.num_hidden_layers + 1)
        wants_hidden_states = kwargs.pop("output_hidden_states", self.config.output_hidden_states)
        is_last = layer == self.config.num_hidden_layers
        outputs = self.rats(pixel_values, output_hidden_states=wants_hidden_states or not is_last, **kwargs)
        tokens = outputs.last_hidden_state if is_last else self.rats.layernorm(outputs.hidden_states[layer])
        registers, patches = tokens[:, : self.config.num_registers], tokens[:, self.config.num_registers :]
        patch_height, patch_width = self.config.patch_height_width
        grid = (pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width)
        similarities = register_patch_similarities(registers, patches, grid)  # (B, N, rows, columns)
        logits = similarities
        if self.classifier is not None:
            features = similarities.movedim(1, -1).to(self.classifier.weight.dtype)
            logits = self.classifier(features).movedim(-1, 1)  # (B, num_labels, rows, columns)
        return RatsPartSegmentationOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            similarities=similarities,
            hidden_states=outputs.hidden_states if wants_hidden_states else None,
            attentions=outputs.attentions,
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
            raise ValueError(f"labels of shape {tuple(labels.shape)} must be ({logits.shape[0]}, height, width).")
        logits = nn.functional.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        return nn.functional.cross_entropy(logits, labels.long(), ignore_index=255)


__all__ = [
    "RatsForPartSegmentation",
    "RatsForPreTraining",
    "RatsForPreTrainingOutput",
    "RatsModel",
    "RatsPartSegmentationOutput",
    "RatsPreTrainedModel",
]
