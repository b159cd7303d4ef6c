# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Configuration of RATS (Register Attention Transformers, arXiv 2606.14701)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.utils import auto_docstring

from .remote_code import AUTO_MAP, CUSTOM_PIPELINES, WithCode

PartSimilarity = Literal["registers", "claimed_patches"]


@auto_docstring(
    custom_intro="""
    Configuration of a RATS model. The defaults are those of RATS-B/16 in the paper.

    The authors published weights of it on the Hub (`TimingYang/RATS`), see `load_original_checkpoint`. A field that is assigned
    later is checked for its type alone; `config.validate_sizes()` checks that the fields fit each other.

    As in every backbone configuration, `out_features=["stage3", "stage12"]` or `out_indices=[3, 12]` choose the stages that
    [`RatsBackbone`] returns; 0 is `"stem"`, the embeddings.
    """
)
@strict
class RatsConfig(BackboneConfigMixin, WithCode):
    r"""
    hidden_size (`int`, *optional*, defaults to 768):
        Width D of the tokens.
    num_hidden_layers (`int`, *optional*, defaults to 12):
        Number of blocks.
    num_attention_heads (`int`, *optional*, defaults to 12):
        Number H of attention heads, over which the registers are partitioned. Divides `hidden_size`.
    intermediate_size (`int`, *optional*, defaults to 3072):
        Width of the hidden layer of the MLP that registers and patches share.
    num_registers (`int`, *optional*, defaults to 192):
        Number N of register tokens that replace the class token. Divisible by `num_attention_heads`: head h owns the
        registers `h * n` to `h * n + n - 1`, with n = N / H (the authors: 192 in RATS-B, 96 in RATS-S).
    patch_size (`int` or pair of `int`, *optional*, defaults to 16):
        Side of a patch, or its height and width, in pixels.
    image_size (`int` or pair of `int`, *optional*, defaults to 224):
        Side of the images, or their height and width, in pixels, for which the position embeddings are learned. For images of
        another size they are interpolated.
    num_channels (`int`, *optional*, defaults to 3):
        Number of image channels.
    hidden_act (`str`, *optional*, defaults to `"gelu"`):
        Activation function of the MLP, by its name in transformers.
    layer_norm_eps (`float`, *optional*, defaults to 1e-06):
        Epsilon of the layer normalisations (1e-6 as in DINO; transformers' ViT has 1e-12).
    qkv_bias (`bool`, *optional*, defaults to `True`):
        Whether the query, key and value projections have biases.
    drop_path_rate (`float`, *optional*, defaults to 0.0):
        Probability that a sample skips a residual branch of the last block in training; it grows linearly from 0 in the first.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the truncated normal distribution that weights, registers and positions start from.
    use_mask_token (`bool`, *optional*, defaults to `True`):
        Whether the embeddings hold a mask token, for `bool_masked_pos`.
    partition_registers (`bool`, *optional*, defaults to `True`):
        Whether the registers are partitioned over the heads. `False` is the paper's ablation: every head holds all N
        registers, and the heads are concatenated.
    communicate (`bool`, *optional*, defaults to `True`):
        Whether registers attend to registers between compress and broadcast. `False` is the ablation Z' = Z.
    part_layer (`int`, *optional*, defaults to -1):
        The layer whose register and patch tokens give the part similarities, as an index into `hidden_states`. The final
        LayerNorm is applied whichever it is; -1, the last layer, is the paper's choice.
    part_similarity (`str`, *optional*, defaults to `"registers"`):
        What patches are compared with, by cosine. `"registers"`: the register tokens, the paper's choice. `"claimed_patches"`:
        for each register the mean direction of the patches that it claims by the compress step of the part layer's block (see
        `register_claims`); five steps of k-means follow, so that a patch moves to the mean that it is most similar to. A
        register that claims none has -1 everywhere.
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        Label of the pixels that do not count in the loss of [`RatsForPartSegmentation`].
    apply_layernorm (`bool`, *optional*, defaults to `True`):
        Whether [`RatsBackbone`] applies the final LayerNorm to every stage that it returns.
    reshape_hidden_states (`bool`, *optional*, defaults to `True`):
        Whether the feature maps of [`RatsBackbone`] are `(batch_size, hidden_size, rows, columns)`; if not, they are the patch
        tokens, `(batch_size, num_patches, hidden_size)`.
    return_registers (`bool`, *optional*, defaults to `False`):
        Whether [`RatsBackbone`] returns the registers of each stage beside its feature map.
    num_prototypes (`int`, *optional*, defaults to 65536):
        Number K of prototypes of the DINO projection head of [`RatsForPreTraining`].
    head_hidden_size (`int`, *optional*, defaults to 2048):
        Width of the two hidden layers of the DINO projection head.
    head_bottleneck_size (`int`, *optional*, defaults to 256):
        Width of the L2-normalised output of the DINO projection head, before the prototypes.
    norm_last_layer (`bool`, *optional*, defaults to `True`):
        Whether the prototypes of the DINO projection head have length 1, as DINO's setting of this name. If not, each has a
        learned length, its gain.

    Example:

    ```python
    >>> from modeling_rats import RatsConfig, RatsModel

    >>> configuration = RatsConfig()  # RATS-B/16
    >>> model = RatsModel(configuration)
    >>> model.config.num_registers
    192

    ```"""

    model_type = "rats"
    keys_to_ignore_at_inference = ["similarities", "register_heads"]  # of a Trainer, which evaluates logits
    AUTO_MAP = AUTO_MAP
    CUSTOM_PIPELINES = CUSTOM_PIPELINES

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_registers: int = 192
    patch_size: int | list[int] | tuple[int, int] = 16
    image_size: int | list[int] | tuple[int, int] = 224
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    use_mask_token: bool = True
    partition_registers: bool = True
    communicate: bool = True
    part_layer: int = -1
    part_similarity: PartSimilarity = "registers"
    semantic_loss_ignore_index: int = 255
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    return_registers: bool = False
    num_prototypes: int = 65536
    head_hidden_size: int = 2048
    head_bottleneck_size: int = 256
    norm_last_layer: bool = True

    def __post_init__(self, **kwargs):
        labels = None if self.id2label is None else list(self.id2label.values())
        if kwargs.get("num_labels") is None and (labels is None or (labels and labels == _register_labels(len(labels)))):
            # Each register is its own class, however many registers a saved configuration had.
            self.id2label = dict(enumerate(_register_labels(self.num_registers)))
            self.label2id = {label: register for register, label in self.id2label.items()}
        self.stage_names = ["stem", *(f"stage{layer}" for layer in range(1, self.num_hidden_layers + 1))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        kwargs.pop("stage_names", None)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As the parent's, which assigns the fields given here after the others were checked: here all are checked together."""
        names = {*cls.__dataclass_fields__, "num_labels", "out_features", "out_indices"} - {"dtype"}
        given = {name: kwargs.pop(name) for name in [*kwargs] if name in names}
        saved = dict(config_dict)
        if "num_labels" in given and "id2label" not in given:
            given |= {"id2label": None, "label2id": None}
        elif given.get("id2label") and "label2id" not in given:
            given["label2id"] = {label: index for index, label in given["id2label"].items()}
        last_stage = "num_hidden_layers" in given and saved.get("out_indices") == [saved.get("num_hidden_layers")]
        if last_stage or {"out_features", "out_indices"} & given.keys():  # the saved stages are not these
            given = {"out_features": None, "out_indices": None} | given
        return super().from_dict(saved | given, **kwargs)

    @property
    def registers_are_labels(self) -> bool:
        """Whether the labels are the registers themselves, and not labels of the user's own."""
        return self.id2label == dict(enumerate(_register_labels(self.num_registers)))

    def to_diff_dict(self) -> dict:
        """As the parent's, with all labels of the user's own, and without those that follow from the registers."""
        labels = {"id2label": self.id2label, "label2id": self.label2id}
        fields = {name: value for name, value in super().to_diff_dict().items() if name not in labels}
        return fields if self.registers_are_labels else fields | labels

    @property
    def patch_height_width(self) -> tuple[int, int]:
        """Height and width of a patch, in pixels."""
        return height_width(self.patch_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the patch grid at `image_size`, the grid of the learned position embeddings."""
        image_height, image_width = height_width(self.image_size)
        patch_height, patch_width = self.patch_height_width
        return image_height // patch_height, image_width // patch_width

    def validate_sizes(self):
        """Part of `@strict` validation: the fields that must fit each other."""
        counts = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_registers")
        head_counts = ("num_prototypes", "head_hidden_size", "head_bottleneck_size")
        for name in (*counts, "num_channels", *head_counts):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("layer_norm_eps", "initializer_range"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative.")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must be a probability, 0 <= rate < 1; use 0.1 as DINO.")
        for name in ("patch_size", "image_size"):
            size = getattr(self, name)
            if not isinstance(size, int) and len(size) != 2:
                raise ValueError(
                    f"{name}={size} must be a number of pixels or two of them, height and width; use 16 or [16, 16]."
                )
            if min(height_width(size)) < 1:
                raise ValueError(f"{name}={size} must be at least 1 px.")
        heads = self.num_attention_heads
        if self.hidden_size % heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be divisible by num_attention_heads={heads} "
                f"(each head has D / H channels); use {_nearest_multiples(self.hidden_size, heads)}."
            )
        if self.partition_registers and self.num_registers % heads:
            raise ValueError(
                f"num_registers={self.num_registers} must be divisible by num_attention_heads={heads} "
                f"(each head owns N / H registers); use {_nearest_multiples(self.num_registers, heads)}."
            )
        for side, image, patch in zip(("height", "width"), height_width(self.image_size), self.patch_height_width, strict=True):
            if image < patch or image % patch:
                raise ValueError(
                    f"image_size {side} {image} px must be a positive multiple of the patch {side} {patch} px; "
                    f"use {_nearest_multiples(image, patch)}."
                )
        if not -self.num_hidden_layers - 1 <= self.part_layer <= self.num_hidden_layers:
            raise ValueError(
                f"part_layer={self.part_layer} must index the {self.num_hidden_layers + 1} hidden states "
                f"(embeddings and {self.num_hidden_layers} layers); use -1 for the last layer."
            )
        if self.part_similarity == "claimed_patches" and self.part_layer in (0, -self.num_hidden_layers - 1):
            raise ValueError(
                f"part_layer={self.part_layer} are the embeddings, before which no register reads a patch, so that none is "
                "claimed; use another layer, or part_similarity='registers'."
            )


def _register_labels(num_registers: int) -> list[str]:
    return [f"register {register}" for register in range(num_registers)]


def height_width(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _nearest_multiples(value: int, of: int) -> str:
    below = value // of * of
    return f"{below} or {below + of}" if below else str(of)


__all__ = ["PartSimilarity", "RatsConfig", "height_width"]
