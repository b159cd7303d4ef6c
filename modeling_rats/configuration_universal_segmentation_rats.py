# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Configuration of [`RatsForUniversalSegmentation`]: Mask2Former's, with a plain vision transformer as backbone."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
from transformers.utils import auto_docstring

from .configuration_rats import RatsConfig
from .remote_code import UNIVERSAL_SEGMENTATION_AUTO_MAP, WithCode

SegmentationHead = Literal["mask2former", "encoder_only"]
QuerySource = Literal["registers", "learned"]
GROUPS = 32  # Of the group normalisations in Mask2Former's pixel decoder.


@auto_docstring(
    custom_intro="""
    Configuration of a [`RatsForUniversalSegmentation`]. Apart from the first six, the fields are those of `Mask2FormerConfig`,
    with its defaults (Mask2Former, arXiv 2112.01527).
    """
)
@strict
class RatsUniversalSegmentationConfig(WithCode, Mask2FormerConfig):
    r"""
    backbone_config (`dict` or `PreTrainedConfig`, *optional*, defaults to `RatsConfig()`):
        Configuration of the backbone: a RATS, or any plain vision transformer whose tokens end with the patches, such as those
        of `model_type` `vit` (DINO v1), `dinov2`, `dinov2_with_registers` and `dinov3_vit`.
    segmentation_head (`str`, *optional*, defaults to `"mask2former"`):
        `"mask2former"`: a feature pyramid, Mask2Former's pixel decoder and transformer decoder. `"encoder_only"`: the registers
        of the last block are the queries and its patches are upscaled to pixel embeddings, without any decoder (after EoMT,
        arXiv 2503.19108, whose queries enter the last blocks; those of RATS are in the encoder from the first). Fields of the
        decoders are then without effect.
    query_source (`str`, *optional*, defaults to `"registers"`):
        What the content part of the queries starts from. `"registers"`: a learned embedding plus the projected registers of
        the backbone's last block, one query a register. `"learned"`: the learned embedding alone, as in Mask2Former.
    num_queries (`int`, *optional*):
        Number of queries. By default as many as the backbone has registers, and 100 if they do not become queries. More than
        there are registers leaves the further queries to their learned embedding.
    num_upscale_blocks (`int`, *optional*, defaults to 2):
        Of `"encoder_only"`: how often the patch grid is doubled before masks are read from it.
    num_auxiliary_layers (`int`, *optional*, defaults to 3):
        Of `"encoder_only"` with `use_auxiliary_loss`: how many blocks before the last are trained to segment as well.
    feature_size (`int`, *optional*, defaults to 256):
        Channels of the feature pyramid and the pixel decoder; divisible by 32, the groups of its group normalisations.
    mask_feature_size (`int`, *optional*, defaults to 256):
        Channels of the pixel embeddings that masks are read from.
    encoder_feedforward_dim (`int`, *optional*, defaults to 1024):
        Width of the hidden layers in the pixel decoder's MLPs.
    dim_feedforward (`int`, *optional*, defaults to 2048):
        Width of the hidden layers in the transformer decoder's MLPs.
    pre_norm (`bool`, *optional*, defaults to `False`):
        Whether the transformer decoder normalises before its attentions and MLPs, and not after them.
    enforce_input_projection (`bool`, *optional*, defaults to `False`):
        Whether the transformer decoder projects its inputs even if `feature_size` equals `hidden_dim`.
    common_stride (`int`, *optional*, defaults to 4):
        Which of `feature_strides` the pixel embeddings have.
    ignore_value (`int`, *optional*, defaults to 255):
        Of Mask2Former's configuration, and without effect, as there: pixels in no mask are in no mask.
    train_num_points (`int`, *optional*, defaults to 12544):
        Number of points of each mask at which the loss is computed.
    oversample_ratio (`float`, *optional*, defaults to 3.0):
        How many times as many points are drawn, from which the least certain ones are chosen.
    importance_sample_ratio (`float`, *optional*, defaults to 0.75):
        Share of the points that are chosen so; the others are drawn evenly.
    feature_strides (`list[int]`, *optional*, defaults to `(4, 8, 16, 32)`):
        Strides of the feature pyramid where a patch has 16 px. Others count from there, and need no change here.
    output_auxiliary_logits (`bool`, *optional*):
        Whether the logits of the layers before the last are returned.

    Example:

    ```python
    >>> from modeling_rats import RatsConfig, RatsForUniversalSegmentation, RatsUniversalSegmentationConfig

    >>> backbone = RatsConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_registers=8)
    >>> config = RatsUniversalSegmentationConfig(backbone_config=backbone, num_labels=5)
    >>> config.num_queries
    8

    ```"""

    model_type = "rats_universal_segmentation"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="rats")}
    backbones_supported = ["rats", "vit", "dinov2", "dinov2_with_registers", "dinov3_vit"]
    AUTO_MAP = UNIVERSAL_SEGMENTATION_AUTO_MAP

    backbone_config: Any = None  # a PreTrainedConfig from __post_init__ on
    segmentation_head: SegmentationHead = "mask2former"
    query_source: QuerySource = "registers"
    num_queries: int | None = None  # type: ignore[assignment]  # an int from __post_init__ on
    num_upscale_blocks: int = 2
    num_auxiliary_layers: int = 3

    def __post_init__(self, **kwargs):
        # By its class and not by its name, which transformers knows only where this package is installed.
        if self.backbone_config is None:
            self.backbone_config = RatsConfig()
        elif isinstance(self.backbone_config, dict) and self.backbone_config.get("model_type", "rats") == "rats":
            self.backbone_config = RatsConfig(**self.backbone_config)
        super().__post_init__(**kwargs)
        if self.label2id is None:  # of a user who gave id2label alone
            self.label2id = {label: index for index, label in self.id2label.items()}
        if self.num_queries is None:
            self.num_queries = self.num_registers if self.query_source == "registers" else Mask2FormerConfig.num_queries

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As the parent's, which would read the configuration of a backbone as one of its own.

        Raises:
            ValueError: If it is that of another kind of model.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"a configuration of model_type={model_type!r} is none of {cls.model_type!r}; to segment with it as backbone, "
                "use RatsForUniversalSegmentation.from_backbone(...)."
            )
        return super().from_dict(config_dict, **kwargs)

    @property
    def register_slice(self) -> slice:
        """Where the backbone's registers stand among its tokens: first in RATS, else after the class token."""
        if self.backbone_config.model_type == "rats":
            return slice(0, self.backbone_config.num_registers)
        return slice(1, 1 + getattr(self.backbone_config, "num_register_tokens", 0))

    @property
    def num_registers(self) -> int:
        """Number of the backbone's registers, 0 if it has none."""
        return self.register_slice.stop - self.register_slice.start

    def validate_sizes(self):
        """Part of `@strict` validation: the fields that must fit each other."""
        name = self.backbone_config.model_type
        if self.segmentation_head == "encoder_only" and name != "rats":
            raise ValueError(
                f"segmentation_head='encoder_only' reads masks from the registers of RATS, and the backbone is {name!r}; use "
                "segmentation_head='mask2former'."
            )
        if self.query_source == "registers" and not self.num_registers:
            raise ValueError(
                f"query_source='registers' needs a backbone with registers, and {name!r} has none; use query_source='learned'."
            )
        if self.segmentation_head == "encoder_only" and self.query_source != "registers":
            raise ValueError(
                f"segmentation_head='encoder_only' has the registers as queries, not query_source={self.query_source!r}; leave "
                "query_source out."
            )
        if self.query_source == "registers" and self.num_queries < self.num_registers:
            raise ValueError(
                f"num_queries={self.num_queries} must be at least the backbone's {self.num_registers} registers, each of which "
                "becomes a query; leave num_queries out."
            )
        if self.segmentation_head == "encoder_only" and self.num_queries != self.num_registers:
            raise ValueError(
                f"num_queries={self.num_queries} must be the backbone's {self.num_registers} registers with "
                "segmentation_head='encoder_only'; leave num_queries out."
            )
        counts = dict.fromkeys(("num_queries", "num_attention_heads", "decoder_layers", "train_num_points"), 1)
        for field, least in (counts | {"num_upscale_blocks": 0, "num_auxiliary_layers": 0}).items():
            if getattr(self, field) < least:
                raise ValueError(f"{field}={getattr(self, field)} must be at least {least}.")
        if self.feature_size % GROUPS or self.feature_size < GROUPS:
            raise ValueError(f"feature_size={self.feature_size} must be a positive multiple of {GROUPS}; use 256.")
        if self.hidden_dim % 4 or self.hidden_dim < 4:
            raise ValueError(
                f"hidden_dim={self.hidden_dim} must be a positive multiple of 4, for sine and cosine of two positions; use 256."
            )
        for field in ("hidden_dim", "feature_size"):
            if getattr(self, field) % self.num_attention_heads:
                raise ValueError(
                    f"{field}={getattr(self, field)} must be divisible by num_attention_heads={self.num_attention_heads}; "
                    "use 256 and 8."
                )
        if not self.num_labels:
            raise ValueError("the model needs at least one label; give num_labels=... or id2label={0: ...}.")


__all__ = ["QuerySource", "RatsUniversalSegmentationConfig", "SegmentationHead"]
