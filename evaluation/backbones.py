"""Frozen vision transformers of five kinds, read alike: RATS, ViT (DINO v1), DINOv2 with and without registers, DINOv3.

The variants of RATS (`register_attention_variants`) are read as RATS is.

B batch  L patches  N registers  H heads  n = N/H registers per head  D hidden; the patch grid is rows, columns
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

import modeling_rats  # noqa: F401  # registers RATS with the Auto classes
from evaluation.readings import PAPER, Reading
from evaluation.register_attention_variants import is_rats  # registers the variants with the Auto classes

SUPPORTED = {  # model_type -> what it is
    "rats": "RATS",
    "vit": "ViT, DINO v1",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
    "dinov3_vit": "DINOv3",
    "rats_variant": "RATS with another register attention",
}


class Tokens(NamedTuple):
    """What a backbone gives of B images, after its final LayerNorm.

    Attributes:
        class_token: (B, D); None for RATS, which has none.
        registers: (B, N, D); None for a model without registers.
        patches: Row by row, (B, L, D).
        grid: Rows and columns of the patches.
    """

    class_token: torch.Tensor | None
    registers: torch.Tensor | None
    patches: torch.Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Backbone:
    """A frozen model and its image processor.

    Attributes:
        name: As it was asked for: a folder or a Hub name.
        model: Without a head, in evaluation mode.
        processor: Its image processor.
        revision: The commit on the Hub; None for a folder.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    revision: str | None = None

    @property
    def patch_height_width(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        patch_size = self.model.config.patch_size
        height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        return height, width

    @property
    def patch_size(self) -> int:
        """Side in pixels of the smallest square that whole patches fill: that of a patch, where patches are square."""
        return math.lcm(*self.patch_height_width)

    @property
    def num_registers(self) -> int:
        """Number of register tokens; 0 for a model that has none."""
        config = self.model.config
        return config.num_registers if is_rats(config) else getattr(config, "num_register_tokens", 0)

    def pixel_values(self, images: Sequence[Image.Image], size: tuple[int, int]) -> torch.Tensor:
        """Whole images as the model takes them, on its device, (B, 3, height, width).

        Each is resized to exactly `size` with the processor's resampling, and rescaled and normalised by it. Departs from
        what some processors do by default: no centre crop and no kept aspect ratio, since a mask is scored to its borders.

        Args:
            images: RGB.
            size: Height and width in pixels.
        """
        whole: dict[str, Any] = {"do_resize": True, "do_center_crop": False}
        if hasattr(self.processor, "ensure_multiple_of"):
            whole["ensure_multiple_of"] = None
        height, width = size
        inputs = self.processor(images=list(images), size={"height": height, "width": width}, return_tensors="pt", **whole)
        return inputs["pixel_values"].to(self.model.device)

    @torch.no_grad()
    def tokens(self, pixel_values: torch.Tensor, reading: Reading = PAPER) -> Tokens:
        """The tokens of images of any size that the patch divides, (B, 3, height, width).

        Positions are those that the model itself has at this size: interpolated ones, or rotary ones in DINOv3.

        Args:
            pixel_values: As `pixel_values` makes them.
            reading: Which tokens; by default those of the last block after the final LayerNorm.

        Raises:
            ValueError: If the patch does not divide the image, or the model has fewer blocks than the reading needs.
        """
        grid = self._grid(pixel_values)
        tokens = self._tokens(pixel_values, reading)  # (B, N + L, D) or (B, 1 + N + L, D)
        class_token, first = (None, 0) if is_rats(self.model.config) else (tokens[:, 0], 1)
        registers, patches = tokens[:, first : first + self.num_registers], tokens[:, first + self.num_registers :]
        if reading.centered:
            registers, patches = (one - one.mean(dim=1, keepdim=True) for one in (registers, patches))
        return Tokens(class_token, registers if self.num_registers else None, patches, grid)

    @torch.no_grad()
    def attention_maps(self, pixel_values: torch.Tensor, layer: int = -1) -> torch.Tensor:
        """How much of each patch a block's attention reads, softmax over all keys, (B, maps, rows, columns).

        One map a head: the attention of the class token to the patches, as DINO draws it (arXiv 2104.14294, figure 1). For
        RATS, which has no class token, the compress maps: one a register, that of its own head; with registers that are
        not partitioned one for each head and register. Rows sum to less than 1 where there are keys of other tokens.

        Args:
            pixel_values: As `pixel_values` makes them.
            layer: Which block, -1 being the last.

        Raises:
            ValueError: If the patch does not divide the image, or there is no such block.
        """
        self._check_layer(layer)
        grid = self._grid(pixel_values)
        recorded = (self.model._can_record_outputs or {})["attentions"]  # the class, or an OutputRecorder of it
        layers = [layer for layer in self.model.modules() if isinstance(layer, getattr(recorded, "target_class", recorded))]
        maps: list[torch.Tensor] = []
        # The hook keeps one block's maps; output_attentions=True would keep those of all blocks, gigabytes at 512 px.
        hook = layers[layer].register_forward_hook(lambda _module, _inputs, outputs: maps.append(outputs[1]))
        try:
            with _eager_attention(self.model):
                self._forward(pixel_values)
        finally:
            hook.remove()
        (attention,) = maps  # (B, H, queries, keys)
        if is_rats(self.model.config):  # a variant may have keys of registers before those of the L patches
            attention = attention[..., -grid[0] * grid[1] :].flatten(1, 2)  # (B, N, L): head h owns h * n to h * n + n - 1
            return attention.unflatten(-1, grid)  # (B, N, rows, columns)
        return attention[:, :, 0, 1 + self.num_registers :].unflatten(-1, grid)  # (B, H, rows, columns)

    def _tokens(self, pixel_values: torch.Tensor, reading: Reading) -> torch.Tensor:
        """All tokens of a block, (B, tokens, D)."""
        if reading.layer == -1 and reading.normed:
            return self._forward(pixel_values).last_hidden_state
        self._check_layer(reading.layer)
        tokens = self._forward(pixel_values, output_hidden_states=True).hidden_states[reading.layer]
        norm = getattr(self.model, "norm" if self.model.config.model_type == "dinov3_vit" else "layernorm")
        return norm(tokens) if reading.normed else tokens

    def _forward(self, pixel_values: torch.Tensor, **options: bool) -> Any:
        # ViT alone refuses other sizes than its own unless it is told to interpolate.
        if self.model.config.model_type == "vit":
            options["interpolate_pos_encoding"] = True
        return self.model(pixel_values.to(self.model.device), **options)

    def _check_layer(self, layer: int) -> None:
        depth = self.model.config.num_hidden_layers
        if not -depth <= layer <= -1:
            raise ValueError(f"Block {layer} of {self.name} was asked for, which has {depth}; choose one from -{depth} to -1.")

    def _grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        height, width = pixel_values.shape[-2:]
        patch_height, patch_width = self.patch_height_width
        if min(height, width) < 1 or height % patch_height or width % patch_width:
            raise ValueError(
                f"An image of {height} x {width} px (height x width) has no whole number of patches of {self.name}, which are "
                f"{patch_height} x {patch_width} px; each side must be a multiple. Resize it."
            )
        return height // patch_height, width // patch_width


def load_backbone(name: str, revision: str = "main") -> Backbone:
    """Load a frozen model and its image processor from a folder or the Hub.

    Any checkpoint of these kinds will do, one with a head as well: only the backbone is read.

    Args:
        name: A folder that `save_pretrained` wrote, or a Hub name such as facebook/dino-vits16 (DINO v1, a ViT).
        revision: Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If there is no such folder or repository.
        ValueError: If it is of no supported kind, or its weights do not fill the backbone.
    """
    model_type = read_model_type(name, revision)
    if model_type not in SUPPORTED:
        kinds = ", ".join(f"{kind} ({what})" for kind, what in SUPPORTED.items())
        raise ValueError(f"Model {name!r} has model_type {model_type!r}; it must be one of: {kinds}. Choose such a model.")
    options = {"add_pooling_layer": False} if model_type == "vit" else {}  # DINO's checkpoints have no pooling layer
    model, info = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True, **options)
    refuse_missing_weights(name, info["missing_keys"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = AutoImageProcessor.from_pretrained(name, revision=revision)
    return Backbone(name, model.eval().to(device), processor, getattr(model.config, "_commit_hash", None))


def read_model_type(name: str, revision: str = "main") -> str | None:
    """The model_type in the configuration of a folder or repository.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or it holds no configuration.
    """
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"Model {name!r} is a folder without config.json; it must be one that save_pretrained wrote.")
    try:
        config, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    except OSError as error:
        raise FileNotFoundError(
            f"Model {name!r} was not found ({error}). It must be a Hub name (owner/name) or a folder that "
            "save_pretrained wrote, with config.json; check the spelling and the working folder."
        ) from error
    return config.get("model_type")


def refuse_missing_weights(name: str, missing_keys: set[str]) -> None:
    """
    Raises:
        ValueError: If there are any.
    """
    missing = sorted(missing_keys)
    if missing:
        raise ValueError(
            f"Model {name!r} lacks {len(missing)} weights of the backbone (first: {missing[0]}), which would be random; "
            "scores need them all. Save it with save_pretrained of its own class."
        )


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Compute attention written out, the only form that has maps, and go back to the model's own form."""
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(own)
