# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""RATS (Register Attention Transformers, arXiv 2606.14701): model, backbone, and heads for DINO, parts and classes.

B batch  L patches  N registers  H heads  n = N/H registers per head  D hidden  d = D/H head dim  K prototypes
"""

import warnings
from collections.abc import Mapping
from itertools import islice
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, logging
from transformers.utils.generic import can_return_tuple, maybe_autocast, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_rats import RatsConfig
from .modeling_outputs_rats import (
    RatsBackboneOutput,
    RatsForPreTrainingOutput,
    RatsImageClassifierOutput,
    RatsModelOutput,
    RatsPartSegmentationOutput,
    recorded,
)
from .part_maps import register_claims, register_patch_similarities, similarities_to_claimed_patches
from .register_attention import RatsRegisterAttention

logger = logging.get_logger(__name__)


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
        patches = self.patch_embeddings(pixel_values.to(self.patch_embeddings.weight.dtype))  # (B, D, rows, columns)
        grid = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)  # (B, L, D)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("bool_masked_pos was given, but the model has no mask token; set use_mask_token=True.")
            if bool_masked_pos.shape != patches.shape[:2]:
                raise ValueError(
                    f"bool_masked_pos of shape {tuple(bool_masked_pos.shape)} must be (batch, patches), here "
                    f"{tuple(patches.shape[:2])}: {grid[0]} rows of {grid[1]} patches, row by row."
                )
            patches = torch.where(bool_masked_pos.bool().unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        patches = patches + self._positions(grid).to(patches.dtype)
        registers = self.register_tokens.to(patches.dtype).expand(patches.shape[0], -1, -1)  # (B, N, D)
        return torch.cat([registers, patches], dim=1)  # (B, N + L, D)

    def _positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Position embeddings of a patch grid, bicubically interpolated if it is not the learned one: (1, L, D)."""
        # An exported graph serves any grid if it always interpolates; at the learned grid that changes nothing.
        if not torch.compiler.is_exporting() and tuple(grid) == self.config.grid_size:
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
        if pixel_values.shape[0] == 0:
            raise ValueError(f"pixel_values of shape {tuple(pixel_values.shape)} is an empty batch; give at least one image.")
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values of type {pixel_values.dtype} must be normalised floating-point values; RatsImageProcessor makes "
                "them so."
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


class PartlyFrozenModel(PreTrainedModel):
    """A model whose parameters without use are frozen from the start: DDP refuses trainable ones that get no gradient."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._auto_class = None  # that the code of a saved class goes with it is not inherited

    def post_init(self) -> None:
        super().post_init()
        self._freeze_unused()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As the parent's, which makes all parameters trainable: those that this class never uses are frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze_unused()
        return loaded

    def _freeze_unused(self) -> None:
        """Freeze what this class never uses: nothing, unless it says otherwise."""


@auto_docstring(
    custom_intro="An abstract class for the initialisation of weights, downloading and loading of pretrained RATS models."
)
class RatsPreTrainedModel(PartlyFrozenModel):
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
    # A checkpoint of one class serves the others, which have no use for its head.
    _keys_to_ignore_on_load_unexpected = [r"^head\.", r"^(part_)?classifier\."]
    _can_record_outputs = {
        "hidden_states": RatsLayer,
        "attentions": OutputRecorder(RatsRegisterAttention, index=1),  # the compress maps, (B, H, n, L)
        "communicate_attentions": OutputRecorder(RatsRegisterAttention, index=2),  # (B, H, n, n)
        "broadcast_attentions": OutputRecorder(RatsRegisterAttention, index=3),  # (B, H, L, n)
    }

    def _freeze_unused(self) -> None:
        """No head masks patches."""
        mask_token = getattr(self.base_model.embeddings, "mask_token", None) if self.base_model is not self else None
        if mask_token is not None:
            mask_token.requires_grad_(False)

    def _asked_for(self, kwargs: Mapping) -> set[str]:
        """Which recordable outputs the call or the configuration asks for."""
        return {
            name
            for name in self._can_record_outputs
            if kwargs.get(f"output_{name}", getattr(self.config, f"output_{name}", False))
        }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d, RatsPrototypes)):
            init.trunc_normal_(module.weight, mean=0.0, std=std)
            bias = getattr(module, "bias", None)
            if bias is not None:
                init.zeros_(bias)
            if isinstance(module, RatsPrototypes) and module.gain is not None:
                init.ones_(module.gain)
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
        self,
        hidden_states: torch.Tensor,
        pooled_only: bool = False,
        num_layers: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RatsModelOutput:
        r"""
        pooled_only (`bool`, *optional*, defaults to `False`):
            Leave out the patch half of the last block and return its registers alone.
        num_layers (`int`, *optional*, defaults to all of them):
            Stop after this many blocks.
        """
        num_layers = len(self.layer) if num_layers is None else num_layers
        for index, layer in enumerate(islice(self.layer, num_layers)):
            hidden_states = layer(hidden_states, registers_only=pooled_only and index == num_layers - 1, **kwargs)
        return RatsModelOutput(last_hidden_state=hidden_states)


@auto_docstring(
    custom_intro="RATS without a head: all tokens after the final LayerNorm, registers first, and the mean register."
)
class RatsModel(RatsPreTrainedModel):
    def __init__(self, config: RatsConfig):
        super().__init__(config)
        config.validate_sizes()  # again: an assigned field is checked for its type alone
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
        num_layers: int | None = None,
        apply_layernorm: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RatsModelOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            Images as [`RatsImageProcessor`] gives them, of any height and width that are multiples of the patch's.
        bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
            Which patches are replaced by the mask token.
        pooled_only (`bool`, *optional*, defaults to `False`):
            Only the registers are wanted: the patch half of the last block is not computed, and `last_hidden_state` is
            `(batch_size, num_registers, hidden_size)`. Ignored when hidden states or attentions are asked for.
        num_layers (`int`, *optional*, defaults to all of them):
            Stop after this many blocks and apply the final LayerNorm there; hidden states and maps end there, too.
        apply_layernorm (`bool`, *optional*, defaults to `True`):
            Whether the tokens, and so their mean, pass the final LayerNorm.

        Returns:
            [`RatsModelOutput`], or the tuple of its fields with `return_dict=False`.

        Examples:

        ```python
        >>> import torch
        >>> from modeling_rats import RatsConfig, RatsModel

        >>> model = RatsModel(RatsConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_registers=8))
        >>> outputs = model(torch.rand(1, 3, 224, 320))
        >>> outputs.last_hidden_state.shape  # 8 registers and 14 x 20 patches
        torch.Size([1, 288, 48])

        ```"""
        if kwargs.pop("attention_mask", None) is not None:  # type: ignore[typeddict-item]
            raise ValueError(
                "RATS takes no attention_mask: no patch is padding, for the images of a batch have one size. Resize them to "
                "one size, or give those of each size as a batch of their own."
            )
        if num_layers is not None and not 0 <= num_layers <= self.config.num_hidden_layers:
            raise ValueError(f"num_layers={num_layers} must be from 0 to the model's {self.config.num_hidden_layers} blocks.")
        hidden_states = self.embeddings(pixel_values, bool_masked_pos)  # (B, N + L, D)
        asked = self._asked_for(kwargs)
        encoded: RatsModelOutput = self.encoder(
            hidden_states, pooled_only=pooled_only and not asked, num_layers=num_layers, return_dict=True, **kwargs
        )
        self._warn_of_missing_maps([name for name in asked if not getattr(encoded, name)])
        tokens = cast(torch.Tensor, encoded.last_hidden_state)  # (B, N + L, D)
        if apply_layernorm:
            tokens = self.layernorm(tokens)
        # The paper's image representation: the mean over the final-layer registers goes into the DINO head.
        pooled = tokens[:, : self.config.num_registers].mean(dim=1)  # (B, D)
        return RatsModelOutput(last_hidden_state=tokens, pooler_output=pooled, **recorded(encoded))

    def _warn_of_missing_maps(self, missing: list[str]) -> None:
        """Say why maps that were asked for are missing: the recorder returns an empty tuple without a word."""
        if not missing:
            return
        if missing == ["communicate_attentions"] and not self.config.communicate:
            reason = "with communicate=False in its configuration this model has no communicate step"
        else:
            reason = (
                f"the attention implementation {self.config._attn_implementation!r} returns no maps; call "
                'model.set_attn_implementation("eager") to have them'
            )
        asked = " and ".join(f"output_{name}" for name in sorted(missing))
        warnings.warn(f"{asked} was asked for, but an empty tuple is returned: {reason}.", stacklevel=2)


@auto_docstring(
    custom_intro="""
    RATS as a backbone: patch feature maps of any stages, and on request their registers, for frameworks such as Mask2Former,
    UPerNet or DETR. The stages are `stem`, the embeddings, and `stage1` to `stage<num_hidden_layers>`; all have the same size.
    """
)
class RatsBackbone(BackboneMixin, RatsPreTrainedModel):
    def __init__(self, config: RatsConfig):
        super().__init__(config)
        self.rats = RatsModel(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    @auto_docstring
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> RatsBackboneOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            Images as [`RatsImageProcessor`] gives them, of any height and width that are multiples of the patch's.

        Returns:
            [`RatsBackboneOutput`], or the tuple of its fields with `return_dict=False`.

        Examples:

        ```python
        >>> import torch
        >>> from modeling_rats import RatsBackbone, RatsConfig

        >>> config = RatsConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_registers=8, out_indices=[1, 2])
        >>> outputs = RatsBackbone(config)(torch.rand(1, 3, 224, 320))
        >>> [tuple(feature_map.shape) for feature_map in outputs.feature_maps]
        [(1, 48, 14, 20), (1, 48, 14, 20)]

        ```"""
        outputs = self.rats(pixel_values, return_dict=True, **kwargs)
        feature_maps, registers = [], []
        for stage, tokens in zip(self.stage_names, outputs.hidden_states, strict=True):
            if stage in self.out_features:
                tokens = self.rats.layernorm(tokens) if self.config.apply_layernorm else tokens
                stage_registers, patches = _split_registers(tokens, self.config)
                if self.config.reshape_hidden_states:
                    patches = patches.transpose(1, 2).unflatten(-1, _patch_grid(pixel_values, self.config)).contiguous()
                feature_maps.append(patches)  # (B, D, rows, columns)
                registers.append(stage_registers)  # (B, N, D)
        return RatsBackboneOutput(
            feature_maps=tuple(feature_maps),  # type: ignore[arg-type]  # the parent's annotation says one
            registers=tuple(registers) if self.config.return_registers else None,
            **recorded(outputs),
        )


def _weight_dtype(layer: nn.Linear, otherwise: torch.dtype) -> torch.dtype:
    """The type that a layer wants; after torch's int8 quantisation `weight` is a method, and the layer takes floats."""
    return layer.weight.dtype if isinstance(layer.weight, torch.Tensor) else otherwise


def _split_registers(tokens: torch.Tensor, config: RatsConfig) -> tuple[torch.Tensor, torch.Tensor]:
    return tokens[:, : config.num_registers], tokens[:, config.num_registers :]  # (B, N, D), (B, L, D)


def _patch_grid(pixel_values: torch.Tensor, config: RatsConfig) -> tuple[int, int]:
    """Rows and columns of the patches of images of this size."""
    patch_height, patch_width = config.patch_height_width
    return pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width


class RatsPrototypes(nn.Module):
    """Cosine similarity with K prototypes, times the gain of each where it is learned, (B, D) -> (B, K).

    The weight-normed last layer of DINO's head (vision_transformer.py, DINOHead), with its gain frozen at 1 by default.
    Departs from DINO in the initial length of the weights, `initializer_range` as everywhere and not torch's default.
    """

    def __init__(self, features: int, num_prototypes: int, norm_last_layer: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_prototypes, features))
        self.gain = None if norm_last_layer else nn.Parameter(torch.ones(num_prototypes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # The products are divided by the prototypes' lengths, and not the prototypes, which are far more numbers.
        lengths = torch.linalg.vector_norm(self.weight, dim=-1).clamp(min=1e-12)  # (K)
        cosines = nn.functional.linear(nn.functional.normalize(features, dim=-1), self.weight) / lengths  # (B, K)
        return cosines if self.gain is None else cosines * self.gain


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
        self.prototypes = RatsPrototypes(config.head_bottleneck_size, config.num_prototypes, config.norm_last_layer)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        with maybe_autocast(pooled.device.type, enabled=False):
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
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            Images as [`RatsImageProcessor`] gives them, of any height and width that are multiples of the patch's.
        labels (`torch.FloatTensor` of shape `(batch_size, num_prototypes)`, *optional*):
            Target probabilities over the prototypes. Teacher, centre and views live in the training loop.

        Returns:
            [`RatsForPreTrainingOutput`], or the tuple of its fields with `return_dict=False`.
        """
        outputs = self.rats(pixel_values, pooled_only=True, return_dict=True, **kwargs)
        logits = self.head(outputs.pooler_output)  # (B, K)
        loss = None
        if labels is not None:
            if labels.shape != logits.shape or not labels.is_floating_point():
                raise ValueError(
                    f"labels of shape {tuple(labels.shape)} and type {labels.dtype} must be target probabilities over the "
                    f"prototypes, of shape {tuple(logits.shape)} and a floating type."
                )
            loss = nn.functional.cross_entropy(logits.float(), labels.float())
        return RatsForPreTrainingOutput(loss=loss, logits=logits, **recorded(outputs))


@auto_docstring(
    custom_intro="""
    RATS with a linear classifier on the mean register, the image representation that DINO trains (`pooler_output`). Patch
    tokens are left out: in pretraining those of the last layer get no gradient.
    """
)
class RatsForImageClassification(RatsPreTrainedModel):
    def __init__(self, config: RatsConfig):
        super().__init__(config)
        if config.registers_are_labels:
            logger.warning_once(
                f"The configuration has no labels of its own, so that the classifier gets one output for each of the "
                f"{config.num_registers} registers, without a meaning; give num_labels=... or id2label={{0: ..., 1: ...}}."
            )
        self.num_labels = config.num_labels or 0
        self.rats = RatsModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels) if self.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> RatsImageClassifierOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            Images as [`RatsImageProcessor`] gives them, of any height and width that are multiples of the patch's.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Label of each image; `(batch_size, num_labels)` of a floating type for several labels an image.

        Returns:
            [`RatsImageClassifierOutput`], or the tuple of its fields with `return_dict=False`.

        Examples:

        ```python
        >>> import torch
        >>> from modeling_rats import RatsConfig, RatsForImageClassification

        >>> config = RatsConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_registers=8, num_labels=5)
        >>> RatsForImageClassification(config)(torch.rand(1, 3, 224, 224)).logits.shape
        torch.Size([1, 5])

        ```"""
        outputs = self.rats(pixel_values, pooled_only=True, return_dict=True, **kwargs)
        logits = self.classifier(outputs.pooler_output)  # (B, num_labels)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return RatsImageClassifierOutput(loss=loss, logits=logits, **recorded(outputs))


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
        self.part_classifier = None if config.registers_are_labels else nn.Linear(config.num_registers, num_labels)
        self.post_init()

    def _freeze_unused(self) -> None:
        super()._freeze_unused()
        for layer in self.rats.encoder.layer[self._part_layer() :]:
            layer.requires_grad_(False)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_patch_features: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RatsPartSegmentationOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            Images as [`RatsImageProcessor`] gives them, of any height and width that are multiples of the patch's.
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Label of each pixel, `config.semantic_loss_ignore_index` where it does not count.
        output_patch_features (`bool`, *optional*, defaults to `False`):
            Also return the patch tokens that parts are read from, as [`PartDictionary`] takes them.

        Returns:
            [`RatsPartSegmentationOutput`], or the tuple of its fields with `return_dict=False`.

        Examples:

        ```python
        >>> import torch
        >>> from modeling_rats import RatsConfig, RatsForPartSegmentation

        >>> config = RatsConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_registers=8)
        >>> model = RatsForPartSegmentation(config)
        >>> model(torch.rand(1, 3, 224, 320)).similarities.shape
        torch.Size([1, 8, 14, 20])

        ```"""
        outputs = (self._recorded if self._asked_for(kwargs) else self._unrecorded)(pixel_values, **kwargs)
        similarities = cast(torch.Tensor, outputs.similarities)
        logits = similarities  # (B, N, rows, columns)
        if self.part_classifier is not None:
            features = similarities.movedim(1, -1).to(_weight_dtype(self.part_classifier, self.dtype))
            logits = self.part_classifier(features).movedim(-1, 1)  # (B, num_labels, rows, columns)
        return RatsPartSegmentationOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            similarities=similarities,
            register_heads=self._register_heads(similarities),
            patch_features=outputs.patch_features if output_patch_features else None,
            **recorded(outputs),
        )

    def _part_layer(self) -> int:
        """How many blocks the tokens pass that give the parts."""
        return self.config.part_layer % (self.config.num_hidden_layers + 1)

    def _unrecorded(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> RatsPartSegmentationOutput:
        """The similarities and patch features alone, by no more blocks than they need."""
        claimed = self.config.part_similarity == "claimed_patches"
        num_layers = self._part_layer() - claimed  # of claims the last one's input is wanted, too
        outputs = self.rats(pixel_values, num_layers=num_layers, apply_layernorm=False, return_dict=True, **kwargs)
        entering = leaving = outputs.last_hidden_state
        if claimed:
            leaving = self.rats.encoder.layer[num_layers](entering)
        similarities, features = self._similarities(entering, leaving, _patch_grid(pixel_values, self.config))
        return RatsPartSegmentationOutput(similarities=similarities, patch_features=features)

    @filter_output_hidden_states  # all are recorded, and those that nobody asked for are taken out again
    def _recorded(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> RatsPartSegmentationOutput:
        """The similarities and patch features alone, with what was asked for of all blocks."""
        outputs = self.rats(pixel_values, return_dict=True, **kwargs)
        part_layer, grid = self._part_layer(), _patch_grid(pixel_values, self.config)
        entering, leaving = (outputs.hidden_states[index] for index in (max(part_layer - 1, 0), part_layer))
        similarities, features = self._similarities(entering, leaving, grid)
        told = recorded(outputs)
        return RatsPartSegmentationOutput(similarities=similarities, patch_features=features, **told)  # type: ignore[arg-type]

    def _similarities(
        self, entering: torch.Tensor, leaving: torch.Tensor, grid: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """By the tokens, (B, N + L, D), that enter the block parts are read from and those that leave it.

        Returns:
            The similarities, (B, N, *grid), and the patch features, (B, D, *grid).
        """
        registers, patches = _split_registers(self.rats.layernorm(leaving), self.config)
        features = patches.transpose(1, 2).unflatten(-1, grid)  # (B, D, rows, columns)
        if self.config.part_similarity == "registers":
            return register_patch_similarities(registers, patches, grid), features
        block = cast(RatsLayer, self.rats.encoder.layer[self._part_layer() - 1])
        logits = block.attention.compress_logits(block.layernorm_before(entering))  # (B, N, L)
        return similarities_to_claimed_patches(register_claims(logits).unflatten(-1, grid), patches), features

    def _register_heads(self, similarities: torch.Tensor) -> torch.Tensor | None:
        if not self.config.partition_registers:
            return None
        registers = torch.arange(self.config.num_registers, device=similarities.device)
        heads = registers // (self.config.num_registers // self.config.num_attention_heads)  # (N,)
        return heads.expand(similarities.shape[0], -1)  # (B, N)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
            raise ValueError(f"labels of shape {tuple(labels.shape)} must be ({logits.shape[0]}, height, width).")
        if labels.is_floating_point():
            raise ValueError(f"labels of type {labels.dtype} must be integers, one label a pixel.")
        if logits.shape[1] < 2:
            raise ValueError("a cross-entropy over one label is always 0; use num_labels=2, the background being one of them.")
        ignored = self.config.semantic_loss_ignore_index
        counted = labels != ignored  # (B, height, width)
        outside = (labels < 0) | (labels >= logits.shape[1])
        if not torch.compiler.is_compiling() and (outside & counted).any():
            raise ValueError(
                f"labels must be from 0 to {logits.shape[1] - 1}, or {ignored} (semantic_loss_ignore_index) for pixels that do "
                f"not count, but hold {labels[outside & counted].unique().tolist()}."
            )
        logits = nn.functional.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        loss = nn.functional.cross_entropy(logits, labels.long(), ignore_index=ignored, reduction="sum")
        return loss / counted.sum().clamp(min=1)  # 0 and not nan if no pixel counts


__all__ = [
    "RatsBackbone",
    "RatsForImageClassification",
    "RatsForPartSegmentation",
    "RatsForPreTraining",
    "RatsModel",
    "RatsPreTrainedModel",
]
