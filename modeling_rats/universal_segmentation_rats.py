# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Semantic, instance and panoptic segmentation with queries from registers: Mask2Former's parts, or the encoder alone.

The paper reports Mask2Former with its queries initialised from register tokens (second table) and says no more of how. Read
into it, and not given there: the projection of the registers, and the feature pyramid.

B batch  L patches  N registers  Q queries  D width of the backbone  C width of the decoder  S segments of an image
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.eomt.configuration_eomt import EomtConfig
from transformers.models.eomt.modeling_eomt import EomtLayerNorm2d, EomtMaskHead, EomtScaleBlock
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerForUniversalSegmentation,
    Mask2FormerForUniversalSegmentationOutput,
    Mask2FormerLoss,
    Mask2FormerMaskedAttentionDecoderOutput,
    Mask2FormerModelOutput,
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)
from transformers.utils import auto_docstring, logging
from transformers.utils.generic import can_return_tuple, maybe_autocast

from .configuration_universal_segmentation_rats import RatsUniversalSegmentationConfig
from .modeling_rats import PartlyFrozenModel, RatsModel

logger = logging.get_logger(__name__)


def without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """What tells a backbone's class to have no pooling layer, which would get no gradient."""
    return {"add_pooling_layer": False} if config.model_type == "vit" else {}


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """A plain vision transformer without pooling layer; RATS by its class, which transformers may not know by name."""
    dtype = torch.get_default_dtype()  # of all other parts, and not the one that the backbone was saved in
    if config.model_type == "rats":
        return RatsModel._from_config(config, dtype=dtype)
    return AutoModel.from_config(config, dtype=dtype, **without_pooler(config))


def load_encoder(name: str | PathLike, revision: str) -> PreTrainedModel:
    """The backbone of a folder or Hub name, with all of its weights."""
    config = AutoConfig.from_pretrained(name, revision=revision)
    model_class = RatsModel if config.model_type == "rats" else AutoModel
    options = {"revision": revision, "output_loading_info": True} | without_pooler(config)
    encoder, info = model_class.from_pretrained(name, **options)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{str(name)!r} lacks {len(missing)} weights of the backbone (first: {missing[0]}), which would be random; save it "
            f"with {type(encoder).__name__}.save_pretrained."
        )
    return encoder


def encode(encoder: PreTrainedModel, pixel_values: torch.Tensor, **options: Any) -> Any:
    """The output of any plain vision transformer, for images of any size that its patch divides."""
    if encoder.config.model_type == "vit":
        options["interpolate_pos_encoding"] = True
    return encoder(pixel_values.to(encoder.dtype), return_dict=True, **options)


def to_feature_map(tokens: torch.Tensor, pixel_values: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """The patches, the last of the tokens, (B, tokens, D), on their grid, (B, D, rows, columns).

    Raises:
        ValueError: If the image has a border that is in no patch, so that its masks would not lie where the segments are.
    """
    size = config.patch_size
    patch_height, patch_width = (size, size) if isinstance(size, int) else size
    height, width = pixel_values.shape[-2:]
    if height % patch_height or width % patch_width:
        raise ValueError(
            f"images of {height} x {width} px must be multiples of the patch, {patch_height} x {patch_width} px; resize or pad "
            f"them, e.g. Mask2FormerImageProcessor with size_divisor={max(patch_height, patch_width)}."
        )
    rows, columns = height // patch_height, width // patch_width
    return tokens[:, tokens.shape[1] - rows * columns :].transpose(1, 2).unflatten(-1, (rows, columns)).contiguous()


class RatsFeaturePyramid(nn.Module):
    """ViTDet's simple feature pyramid (arXiv 2203.16527, section 3; detectron2 `SimpleFeaturePyramid`).

    The last feature map alone is brought to four scales: 4 and 2 times finer by transposed convolutions, as it is, and 2 times
    coarser by max pooling, each followed by a 1 x 1 and a 3 x 3 convolution with LayerNorm. With patches of 16 px these are
    the strides 4, 8, 16, 32 that Mask2Former expects. Departs from ViTDet where a grid has an odd side, which is rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half, quarter = max(in_channels // 2, 1), max(in_channels // 4, 1)
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2),
                    EomtLayerNorm2d(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2),
                ),
                nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True),
            ]
        )
        self.projections = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(channels, out_channels, kernel_size=1, bias=False),
                    EomtLayerNorm2d(out_channels),
                    nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
                    EomtLayerNorm2d(out_channels),
                )
                for channels in (quarter, half, in_channels, in_channels)
            ]
        )

    def forward(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, D, rows, columns) to maps of `out_channels` at 4, 2, 1 and 1/2 times its resolution, finest first."""
        return tuple(projection(scale(feature_map)) for scale, projection in zip(self.scales, self.projections, strict=True))


class RatsQueryTransformerModule(Mask2FormerTransformerModule):
    """Mask2Former's transformer decoder with the content of its queries given, and not the same for all images."""

    def forward(  # type: ignore[override]  # the parent's, and the queries
        self,
        multi_scale_features: Sequence[torch.Tensor],
        mask_features: torch.Tensor,
        query_offsets: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Mask2FormerMaskedAttentionDecoderOutput:
        """
        Args:
            multi_scale_features: Of the pixel decoder, coarsest first.
            mask_features: Of the pixel decoder, (B, C, height, width).
            query_offsets: Added to the learned content of the first queries, (B, N, C).
            output_hidden_states: As Mask2Former's.
            output_attentions: As Mask2Former's.
        """
        levels, positions = [], []
        for level, (features, projection) in enumerate(zip(multi_scale_features, self.input_projections, strict=True)):
            embedded = self.position_embedder(features.shape, features.device, features.dtype, None)
            positions.append(embedded.flatten(2).permute(2, 0, 1))  # (pixels, B, C)
            projected = projection(features).flatten(2) + self.level_embed.weight[level][None, :, None]
            levels.append(projected.permute(2, 0, 1))  # (pixels, B, C)
        batch = mask_features.shape[0]
        contents = self.queries_features.weight.unsqueeze(1).repeat(1, batch, 1)  # (Q, B, C)
        if query_offsets is not None:
            others = len(contents) - query_offsets.shape[1]
            contents = contents + nn.functional.pad(query_offsets.transpose(0, 1), (0, 0, 0, 0, 0, others))
        return self.decoder(
            inputs_embeds=contents,
            multi_stage_positional_embeddings=positions,
            pixel_embeddings=mask_features,
            encoder_hidden_states=levels,
            query_position_embeddings=self.queries_embedder.weight.unsqueeze(1).repeat(1, batch, 1),
            feature_size_list=[features.shape[-2:] for features in multi_scale_features],
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )


class RatsUniversalSegmentationLoss(Mask2FormerLoss):
    """Mask2Former's losses, with the masks of all processes counted right.

    transformers (5.24) divides the mean number of masks by the number R of processes once more, so that its mask losses are R
    times those of one process with the same images, beside an unchanged loss of labels.
    """

    def get_num_masks(self, class_labels: torch.Tensor | list[torch.Tensor], device: torch.device) -> torch.Tensor:
        """Mean number of masks over the processes, at least 1."""
        num_masks = torch.tensor(sum(len(labels) for labels in class_labels), dtype=torch.float32, device=device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(num_masks)
            num_masks = num_masks / torch.distributed.get_world_size()
        return num_masks.clamp(min=1)


class RatsUniversalSegmentationPreTrainedModel(PartlyFrozenModel, Mask2FormerPreTrainedModel):
    config: RatsUniversalSegmentationConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ["RatsFeaturePyramid", "Mask2FormerPixelDecoder", "RatsQueryTransformerModule", "EomtScaleBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True  # of the backbone; Mask2Former's decoders have one form of attention

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: of custom code, transformers leaves out `_init_weights` of modules that hold weights in their children alone.

        So Mask2Former's parts would not start as Mask2Former does: its sampling offsets would be random, its layers too small.
        The flag is there to guard weights that are loaded, which `transformers.initialization` does as well.
        """
        return False

    def _freeze_unused(self) -> None:
        """The backbone's mask token, which masks no patch here, and the projections of levels that no decoder layer reads."""
        for name, parameter in self.named_parameters():
            if name.endswith("embeddings.mask_token"):
                parameter.requires_grad_(False)
        if self.config.segmentation_head == "mask2former":
            projections = cast(RatsUniversalSegmentationModel, self.base_model).transformer_module.input_projections
            projections[self.config.decoder_layers - 1 :].requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return cast(PreTrainedModel, self.base_model.encoder).get_input_embeddings()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RatsUniversalSegmentationModel) and module.query_projection is not None:
            init.xavier_uniform_(module.query_projection.weight)  # as wide a spread as that of the learned embeddings
            init.zeros_(module.query_projection.bias)
        elif isinstance(module, (EomtScaleBlock, EomtMaskHead)):  # as EoMT: masks of one spread, however narrow the model
            for layer in module.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                    init.kaiming_uniform_(layer.weight, a=5**0.5)


@auto_docstring(
    custom_intro="""
    Mask2Former without the classification of its queries: a plain vision transformer, a feature pyramid, Mask2Former's pixel
    decoder, and its transformer decoder with queries that start from the registers of the image.
    """
)
class RatsUniversalSegmentationModel(RatsUniversalSegmentationPreTrainedModel):
    def __init__(self, config: RatsUniversalSegmentationConfig):
        super().__init__(config)
        width = config.backbone_config.hidden_size
        self.encoder = build_encoder(config.backbone_config)
        self.feature_pyramid = RatsFeaturePyramid(width, config.feature_size)
        self.pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=[config.feature_size] * 4)
        self.transformer_module = RatsQueryTransformerModule(in_features=config.feature_size, config=config)
        from_registers = config.query_source == "registers"
        self.query_projection = nn.Linear(width, config.hidden_dim) if from_registers else None
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Mask2FormerModelOutput:
        tokens = encode(self.encoder, pixel_values).last_hidden_state  # (B, tokens, D), after the final LayerNorm
        feature_map = to_feature_map(tokens, pixel_values, self.encoder.config)  # (B, D, rows, columns)
        pyramid = self.feature_pyramid(feature_map)
        with maybe_autocast(feature_map.device.type, enabled=False):  # as Mask2Former: half precision cannot tell places apart
            decoded = self.pixel_decoder([level.to(self.pixel_decoder.level_embed.dtype) for level in pyramid])
        offsets = None
        if self.query_projection is not None:
            offsets = self.query_projection(tokens[:, self.config.register_slice])  # (B, N, C)
        queries = self.transformer_module(
            decoded.multi_scale_features,
            decoded.mask_features,
            offsets,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return Mask2FormerModelOutput(
            encoder_last_hidden_state=feature_map,
            pixel_decoder_last_hidden_state=decoded.mask_features,
            transformer_decoder_last_hidden_state=queries.last_hidden_state,
            encoder_hidden_states=pyramid if output_hidden_states else None,
            pixel_decoder_hidden_states=decoded.multi_scale_features if output_hidden_states else None,
            transformer_decoder_hidden_states=queries.hidden_states,
            transformer_decoder_intermediate_states=queries.intermediate_hidden_states,
            attentions=queries.attentions,
            masks_queries_logits=queries.masks_queries_logits,
        )


@auto_docstring(
    custom_intro="""
    RATS whose registers are the queries and whose upscaled patches are the pixel embeddings, without any decoder: EoMT's heads
    (arXiv 2503.19108) on a backbone that has its queries from the first block. Departs from EoMT: no attention is masked.
    """
)
class RatsEncoderOnlyModel(RatsUniversalSegmentationPreTrainedModel):
    def __init__(self, config: RatsUniversalSegmentationConfig):
        super().__init__(config)
        self.encoder = build_encoder(config.backbone_config)
        heads = EomtConfig(
            hidden_size=config.backbone_config.hidden_size,
            hidden_act=config.backbone_config.hidden_act,
            num_upscale_blocks=config.num_upscale_blocks,
        )
        self.upscale_block = EomtScaleBlock(heads)
        self.mask_head = EomtMaskHead(heads)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Mask2FormerModelOutput:
        auxiliary = self.config.num_auxiliary_layers if self.training and self.config.use_auxiliary_loss else 0
        options = {"output_hidden_states": True} if auxiliary or output_hidden_states else {}
        encoded = encode(self.encoder, pixel_values, **options, **({"output_attentions": True} if output_attentions else {}))
        norm = cast(nn.Module, self.encoder.layernorm)
        earlier = encoded.hidden_states[1:-1][-auxiliary:] if auxiliary else []  # without the embeddings
        registers, masks = [], []
        for tokens in [*map(norm, earlier), encoded.last_hidden_state]:  # each (B, N + L, D), after the final LayerNorm
            feature_map = to_feature_map(tokens, pixel_values, self.encoder.config)  # (B, D, rows, columns)
            pixels = self.upscale_block(feature_map)  # (B, D, height, width)
            registers.append(tokens[:, self.config.register_slice])  # (B, N, D)
            masks.append(torch.einsum("bqc,bchw->bqhw", self.mask_head(registers[-1]), pixels))  # (B, N, height, width)
        return Mask2FormerModelOutput(
            encoder_last_hidden_state=feature_map,
            pixel_decoder_last_hidden_state=pixels,
            transformer_decoder_last_hidden_state=registers[-1],
            encoder_hidden_states=encoded.hidden_states if output_hidden_states else None,
            transformer_decoder_intermediate_states=tuple(of_layer.transpose(0, 1) for of_layer in registers),
            attentions=encoded.attentions if output_attentions else None,
            masks_queries_logits=tuple(masks),  # type: ignore[arg-type]  # the annotation says one
        )


@auto_docstring(
    custom_intro="""
    RATS, or another plain vision transformer, that segments an image into labelled masks: semantic, instance and panoptic, as
    its training data are. Takes and gives what [`Mask2FormerForUniversalSegmentation`] does, so `Mask2FormerImageProcessor`
    prepares its inputs and reads its outputs. Padding counts as part of the image, as in Mask2Former.
    """
)
class RatsForUniversalSegmentation(RatsUniversalSegmentationPreTrainedModel, Mask2FormerForUniversalSegmentation):
    def __init__(self, config: RatsUniversalSegmentationConfig):
        RatsUniversalSegmentationPreTrainedModel.__init__(self, config)
        config.validate_sizes()  # again: an assigned field is checked for its type alone
        encoder_only = config.segmentation_head == "encoder_only"
        self.model = (RatsEncoderOnlyModel if encoder_only else RatsUniversalSegmentationModel)(config)
        self.weight_dict = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        width = config.backbone_config.hidden_size if encoder_only else config.hidden_dim
        self.class_predictor = nn.Linear(width, cast(int, config.num_labels) + 1)  # the last is: no object
        self.criterion = RatsUniversalSegmentationLoss(config=config, weight_dict=self.weight_dict)
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PathLike | PreTrainedModel,
        *,
        revision: str = "main",
        drop_path_rate: float | None = None,
        **fields: Any,
    ) -> Self:
        """A model on a pretrained backbone, everything else drawn anew: where fine-tuning starts.

        Args:
            backbone: A folder or Hub name, such as `"yangtiming/rats-vitb"` or `"facebook/dino-vits16"`, or a model, of which
                the weights are taken over as they are. A head on it is left behind.
            revision: Branch, tag or commit on the Hub.
            drop_path_rate: Stochastic depth of the backbone in training; its own when None.
            fields: Of the [`RatsUniversalSegmentationConfig`], such as `id2label={0: "road", 1: "car"}`.

        Raises:
            OSError: If there is no such folder or repository.
            ValueError: If weights of the backbone are missing, or fields do not fit.
        """
        if not isinstance(backbone, PreTrainedModel):
            backbone = load_encoder(backbone, revision)
        config = backbone.config.to_dict()
        if drop_path_rate is not None and (drop_path_rate or "drop_path_rate" in config):
            if "drop_path_rate" not in config:
                raise ValueError(
                    f"drop_path_rate={drop_path_rate} was given, and a backbone of model_type={backbone.config.model_type!r} "
                    "has no stochastic depth; leave it out."
                )
            config["drop_path_rate"] = drop_path_rate
        model = cls(RatsUniversalSegmentationConfig(backbone_config=config, **fields))
        encoder = model.model.encoder
        weights = (backbone if isinstance(backbone, type(encoder)) else backbone.base_model).state_dict()
        if missing := [name for name in encoder.state_dict() if name not in weights]:
            raise ValueError(
                f"the backbone, a {type(backbone).__name__}, lacks {len(missing)} weights (first: {missing[0]}), which would "
                "be random; give a model that has them."
            )
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})  # without a pooling layer
        return model

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_labels: list[torch.Tensor] | None = None,
        class_labels: list[torch.Tensor] | None = None,
        pixel_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> Mask2FormerForUniversalSegmentationOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            Images as `Mask2FormerImageProcessor` gives them, of any height and width that are multiples of the patch's.
        mask_labels (`list[torch.Tensor]`, *optional*):
            Of each image the true masks, `(segments, height, width)`, 0 or 1; they may overlap, and there may be none.
        class_labels (`list[torch.LongTensor]`, *optional*):
            Of each image the label of each mask, `(segments,)`, from 0 to `config.num_labels - 1`.
        pixel_mask (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Without effect, as in Mask2Former.
        output_auxiliary_logits (`bool`, *optional*):
            Whether to return the logits of the layers before the last.

        Returns:
            `Mask2FormerForUniversalSegmentationOutput`, or the tuple of its fields with `return_dict=False`.

        Examples:

        ```python
        >>> import torch
        >>> from modeling_rats import RatsConfig, RatsForUniversalSegmentation, RatsUniversalSegmentationConfig

        >>> backbone = RatsConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_registers=8)
        >>> model = RatsForUniversalSegmentation(RatsUniversalSegmentationConfig(backbone_config=backbone, num_labels=5))
        >>> outputs = model(torch.rand(1, 3, 224, 320))
        >>> outputs.class_queries_logits.shape, outputs.masks_queries_logits.shape  # 8 queries, 5 labels and "no object"
        (torch.Size([1, 8, 6]), torch.Size([1, 8, 56, 80]))

        ```"""
        if (mask_labels is None) != (class_labels is None):
            raise ValueError("mask_labels and class_labels go together, one list entry an image; one of them was not given.")
        if mask_labels is not None and class_labels is not None:
            self._check_labels(pixel_values, mask_labels, class_labels)
        if output_auxiliary_logits is None:
            output_auxiliary_logits = self.config.output_auxiliary_logits
        outputs = self.model(
            pixel_values,
            output_hidden_states=self.config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            output_attentions=self.config.output_attentions if output_attentions is None else output_attentions,
        )
        masks = outputs.masks_queries_logits  # of each layer, (B, Q, height, width)
        classes = [self.class_predictor(queries.transpose(0, 1)) for queries in outputs.transformer_decoder_intermediate_states]
        auxiliary_logits = self.get_auxiliary_logits(classes, masks)  # type: ignore[arg-type]  # annotated as one tensor
        loss = None
        if mask_labels is not None and class_labels is not None:
            loss = self.get_loss(self.get_loss_dict(masks[-1], classes[-1], mask_labels, class_labels, auxiliary_logits))
        return Mask2FormerForUniversalSegmentationOutput(
            loss=loss,
            class_queries_logits=classes[-1],
            masks_queries_logits=masks[-1],
            auxiliary_logits=auxiliary_logits if output_auxiliary_logits else None,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            pixel_decoder_last_hidden_state=outputs.pixel_decoder_last_hidden_state,
            transformer_decoder_last_hidden_state=outputs.transformer_decoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            pixel_decoder_hidden_states=outputs.pixel_decoder_hidden_states,
            transformer_decoder_hidden_states=outputs.transformer_decoder_hidden_states,
            attentions=outputs.attentions,
        )

    def get_loss_dict(  # type: ignore[override]  # the parent's annotations say one tensor
        self,
        masks_queries_logits: torch.Tensor,
        class_queries_logits: torch.Tensor,
        mask_labels: list[torch.Tensor],
        class_labels: list[torch.Tensor],
        auxiliary_predictions: list[dict[str, torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        """As Mask2Former's, in float32 whatever the autocast, and of earlier layers only with `use_auxiliary_loss`."""
        predictions = {"masks_queries_logits": masks_queries_logits, "class_queries_logits": class_queries_logits}
        last, *earlier = (
            {
                "masks_queries_logits": of_layer["masks_queries_logits"].float(),
                "class_queries_logits": of_layer["class_queries_logits"].to(self.criterion.empty_weight.dtype),
            }
            for of_layer in [predictions, *(auxiliary_predictions if self.config.use_auxiliary_loss else [])]
        )
        device = masks_queries_logits.device
        with maybe_autocast(device.type, enabled=False):
            return super().get_loss_dict(
                **last,
                mask_labels=[masks.to(device, non_blocking=True).float() for masks in mask_labels],  # type: ignore[arg-type]
                class_labels=[labels.to(device, torch.int64) for labels in class_labels],  # type: ignore[arg-type]
                auxiliary_predictions=earlier,  # type: ignore[arg-type]
            )

    def _check_labels(
        self, pixel_values: torch.Tensor, mask_labels: list[torch.Tensor], class_labels: list[torch.Tensor]
    ) -> None:
        images, num_labels, num_queries = pixel_values.shape[0], self.config.num_labels or 0, self.config.num_queries or 0
        if not len(mask_labels) == len(class_labels) == images:
            raise ValueError(
                f"{images} images came with {len(mask_labels)} mask_labels and {len(class_labels)} class_labels; there must be "
                "one entry an image, empty for one without segments."
            )
        for image, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
            if masks.ndim != 3 or labels.shape != masks.shape[:1]:
                raise ValueError(
                    f"image {image}: mask_labels of shape {tuple(masks.shape)} and class_labels of shape {tuple(labels.shape)} "
                    "must be (segments, height, width) and (segments,)."
                )
            if masks.shape[1:] != mask_labels[0].shape[1:]:
                raise ValueError(
                    f"image {image}: mask_labels of {tuple(masks.shape[1:])} px, and those of image 0 of "
                    f"{tuple(mask_labels[0].shape[1:])} px; the masks of a batch must have one size, as its images have."
                )
            if masks.dtype != torch.bool and masks.numel() and masks.max() > 1:
                raise ValueError(f"image {image}: mask_labels must be 0 or 1, but reach {masks.max().item()}; use masks > 0.")
            if labels.is_floating_point():
                raise ValueError(f"image {image}: class_labels of type {labels.dtype} must be integers, one a mask.")
            outside = labels[(labels < 0) | (labels >= num_labels)]
            if len(outside):
                raise ValueError(
                    f"image {image}: class_labels must be from 0 to {num_labels - 1}, but hold "
                    f"{outside.unique().tolist()}; pixels without a label belong to no mask."
                )
            if len(labels) > num_queries:
                logger.warning_once(
                    f"An image has {len(labels)} segments and the model {num_queries} queries: the segments that "
                    "fit the queries least are not learnt. Raise num_queries."
                )


__all__ = [
    "RatsEncoderOnlyModel",
    "RatsForUniversalSegmentation",
    "RatsUniversalSegmentationModel",
    "RatsUniversalSegmentationPreTrainedModel",
]
