"""Segments from the tokens of frozen backbones: k-means of patches, similarity to registers, heads of attention.

B batch  L patches  N registers  D hidden; the patch grid is rows, columns
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from evaluation.backbones import Backbone, Tokens
from evaluation.baselines import cluster
from evaluation.readings import PAPER, Reading
from evaluation.segmenters import ImageBatch, Segmenter
from modeling_rats.part_maps import (
    part_map,
    patches_to_pixels,
    register_patch_similarities,
    similarities_to_claimed_patches,
)


class InputSize(NamedTuple):
    """How large images are made before a backbone sees them: the same for all that compete, but for whole patches.

    Attributes:
        height: In pixels.
        width: In pixels.
        keeps_aspect_ratio: Whether an image keeps its shape and gets about the area of height x width; if not, it is
            resized to exactly these.
    """

    height: int
    width: int
    keeps_aspect_ratio: bool = False

    def in_patches(self, image: Image.Image, patch_height_width: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels for one image, each rounded to the nearest multiple of the patch, at least one.

        So 224 px are 224 px for patches of 14 and 16 px, and 512 px are 518 px for patches of 14.
        """
        sides: tuple[float, float] = (self.height, self.width)
        if self.keeps_aspect_ratio:
            scale = math.sqrt(self.height * self.width / (image.height * image.width))
            sides = (image.height * scale, image.width * scale)
        height, width = (max(1, round(side / patch)) * patch for side, patch in zip(sides, patch_height_width, strict=True))
        return height, width


def input_size(processor: Any, image_size_px: int | None = None) -> InputSize:
    """The size at which a RATS processor gives images to its model, or with `image_size_px` a square of that side.

    Raises:
        ValueError: If the processor's size is not a height and a width.
    """
    keeps_aspect_ratio = getattr(processor, "ensure_multiple_of", None) is not None
    if image_size_px is not None:
        return InputSize(image_size_px, image_size_px, keeps_aspect_ratio)
    size = dict(processor.size)
    if not (size.get("height") and size.get("width")):
        raise ValueError(f"The model's image processor has size={size}, but height and width are needed; give --image_size.")
    return InputSize(size["height"], size["width"], keeps_aspect_ratio)


class TokenReader:
    """Reads the tokens of whole images. Several competitors may share one: a batch goes through the backbone once.

    Args:
        backbone: The frozen model.
        size: How large it sees the images.
        reading: Which tokens and maps are read.
    """

    def __init__(self, backbone: Backbone, size: InputSize, reading: Reading = PAPER):
        self.backbone = backbone
        self.size = size
        self.reading = reading
        self._images: list[Image.Image] = []
        self._tokens: list[Tokens] = []

    def tokens(self, images: Sequence[Image.Image]) -> list[Tokens]:
        """The tokens of each image, as of a batch of one."""
        same = len(images) == len(self._images) and all(new is old for new, old in zip(images, self._images, strict=True))
        if not same:
            self._tokens = []
            for pixel_values in self._pixel_values(images):
                tokens = self.backbone.tokens(pixel_values, self.reading)
                for index in range(len(pixel_values)):
                    class_token, registers, patches = (None if one is None else one[index : index + 1] for one in tokens[:3])
                    self._tokens.append(Tokens(class_token, registers, patches, tokens.grid))  # type: ignore[arg-type]
            self._images = list(images)  # last, so that nothing is remembered of a batch that failed
        return self._tokens

    def attention_maps(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        """The maps of each image (see `Backbone.attention_maps`), (maps, rows, columns)."""
        return [
            one
            for pixel_values in self._pixel_values(images)
            for one in self.backbone.attention_maps(pixel_values, self.reading.layer)
        ]

    def _pixel_values(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        """All images in one batch if they get one size, else each in its own."""
        sizes = [self.size.in_patches(image, self.backbone.patch_height_width) for image in images]
        if len(set(sizes)) == 1:
            return [self.backbone.pixel_values(images, sizes[0])]
        return [self.backbone.pixel_values([image], size) for image, size in zip(images, sizes, strict=True)]


def patch_kmeans_segmenter(reader: TokenReader, seed: int, num_segments: int | None = None) -> Segmenter:
    """Segment by k-means of each image's own patch tokens, L2-normalised, so by cosine.

    Args:
        reader: Of the backbone whose patches are clustered.
        seed: Of the k-means start, the same for each image.
        num_segments: How many clusters; as many as the first competitor used in the image when None.
    """

    def segment(batch: ImageBatch) -> list[np.ndarray]:
        wanted = batch.reference_segments if num_segments is None else [num_segments] * len(batch.images)
        label_maps = []
        for tokens, count, target_size in zip(reader.tokens(batch.images), wanted, batch.target_sizes, strict=True):
            patches = nn.functional.normalize(tokens.patches[0].float(), dim=-1)  # (L, D)
            clusters = torch.from_numpy(cluster(patches.cpu().numpy(), count, seed))  # (L,)
            label_maps.append(patches_to_pixels(clusters.view(tokens.grid), target_size).numpy())
        return label_maps

    return segment


def register_segmenter(reader: TokenReader) -> Segmenter:
    """Segment by register, as RATS does: each patch goes to the register whose token has the highest cosine.

    Tokens are those that the reader reads. As many segments come out as registers win patches, at most N.

    Raises:
        ValueError: If the model has no registers.
    """
    backbone = reader.backbone
    if not backbone.num_registers:
        raise ValueError(
            f"Model {backbone.name!r} has no registers (model_type {backbone.model.config.model_type!r}), so it has no "
            f"register maps; let it compete as patch_kmeans:{backbone.name} or attention_heads:{backbone.name}."
        )
    return _similarity_segmenter(reader, lambda tokens: tokens.registers)


def random_register_segmenter(reader: TokenReader, num_registers: int, seed: int) -> Segmenter:
    """Segment by random directions in place of registers, the same for each image: what similarity to nothing gives.

    Args:
        reader: Of the backbone whose patches are compared with them.
        num_registers: How many directions; as many segments come out as of these win patches.
        seed: Of the directions, which are uniform on the sphere.
    """
    config = reader.backbone.model.config
    directions = torch.randn(1, num_registers, config.hidden_size, generator=torch.Generator().manual_seed(seed))  # (1, N, D)
    return _similarity_segmenter(reader, lambda tokens: directions.to(tokens.patches))


def attention_segmenter(reader: TokenReader) -> Segmenter:
    """Segment by attention: each patch goes to the map of the read block that is highest there.

    With `means` the patch tokens of that block decide, which the maps only claim. The maps are those of the class token, one a
    head, so there are at most H segments; of RATS the compress maps, one a register, so at most N. See
    `Backbone.attention_maps`.
    """

    def segment(batch: ImageBatch) -> list[np.ndarray]:
        maps = reader.attention_maps(batch.images)
        if reader.reading.means:
            of_images = zip(maps, reader.tokens(batch.images), strict=True)
            maps = [similarities_to_claimed_patches(one[None], tokens.patches)[0] for one, tokens in of_images]
        return [part_map(one, size).cpu().numpy() for one, size in zip(maps, batch.target_sizes, strict=True)]

    return segment


def _similarity_segmenter(reader: TokenReader, registers_of: Callable[[Tokens], Any]) -> Segmenter:
    def segment(batch: ImageBatch) -> list[np.ndarray]:
        label_maps = []
        for tokens, target_size in zip(reader.tokens(batch.images), batch.target_sizes, strict=True):
            similarities = register_patch_similarities(registers_of(tokens), tokens.patches, tokens.grid)
            if reader.reading.means:
                similarities = similarities_to_claimed_patches(similarities, tokens.patches)
            label_maps.append(part_map(similarities[0], target_size).cpu().numpy())
        return label_maps

    return segment
