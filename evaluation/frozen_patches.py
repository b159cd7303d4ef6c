"""Frozen patch features of images with masks: read batch by batch, or kept in memory to learn from.

B batch  L patches  D hidden  K classes; the patch grid is rows, columns; pixels are height, width
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import psutil
import torch

from evaluation.backbones import Backbone
from evaluation.frozen_features import processor_size_px
from evaluation.mask_samples import MaskRow, MaskSample
from evaluation.readings import Reading
from evaluation.records import fingerprint_of_data, fingerprint_of_sample
from evaluation.segmentation_heads import IGNORED
from modeling_rats.part_maps import patches_to_pixels

HIGHEST_CLASS = torch.iinfo(torch.int16).max  # classes are kept in 16 bits


class FrozenPatches:
    """Images in, a grid of patch features an image out, after the model's final LayerNorm.

    The whole image is resized to a square, as `Backbone.pixel_values` does it, so a grid covers an image to its borders.

    Args:
        backbone: In evaluation mode, on the device that computes.
        image_size_px: Side of the square input; when None that of the model's processor.
        layer: The block whose patches are read, -1 being the last.

    Raises:
        ValueError: If the model's patches do not divide the image size, or there is no such block.
    """

    def __init__(self, backbone: Backbone, image_size_px: int | None = None, layer: int = -1):
        self.backbone = backbone
        self.image_size_px = processor_size_px(backbone.processor) if image_size_px is None else image_size_px
        if self.image_size_px % backbone.patch_size:
            raise ValueError(
                f"image_size={self.image_size_px} must be a multiple of the patch size of {backbone.name}, "
                f"{backbone.patch_size} px; give another --image_size."
            )
        depth = backbone.model.config.num_hidden_layers
        if not -depth <= layer <= -1:
            raise ValueError(f"layer={layer} is none of {backbone.name}, which has {depth}; choose one from -{depth} to -1.")
        self.reading = Reading(layer=layer)

    @torch.inference_mode()
    def embed(self, samples: list[MaskSample]) -> torch.Tensor:
        """Features of a batch, float16 on the CPU, (B, D, rows, columns).

        Raises:
            ValueError: If they are not finite.
        """
        size = (self.image_size_px, self.image_size_px)
        tokens = self.backbone.tokens(self.backbone.pixel_values([sample.image for sample in samples], size), self.reading)
        grids = tokens.patches.transpose(1, 2).unflatten(2, tokens.grid)  # (B, D, rows, columns)
        kept = grids.half().cpu()
        if not kept.isfinite().all():
            raise ValueError(
                f"Patch features of {self.backbone.name} are not finite in 16 bits; a head cannot learn from them. Check the "
                "model's weights."
            )
        return kept


@dataclass
class Examples:
    """What a head learns from.

    Attributes:
        features: Of each image, float16, (D, rows, columns).
        classes: Of each image, at the size that the model sees, 0 to K - 1 or `IGNORED`, int16, (height, width).
        pixels: Of each class, counted at the masks' own size, int64, (K,).
        fingerprint: A hash of all images and masks.
    """

    features: list[torch.Tensor] = field(default_factory=list)
    classes: list[torch.Tensor] = field(default_factory=list)
    pixels: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    fingerprint: str = ""

    @property
    def num_bytes(self) -> int:
        """Of memory that features and classes take."""
        return sum(tensor.nbytes for tensor in (*self.features, *self.classes))

    def at(self, places: Sequence[int]) -> "Examples":
        """Some of the images, without a copy; pixels and fingerprint are those of all."""
        features, classes = ([of_all[place] for place in places] for of_all in (self.features, self.classes))
        return replace(self, features=features, classes=classes)


class Batch(NamedTuple):
    """Some images.

    Attributes:
        features: float16 on the CPU, (B, D, rows, columns).
        classes: Of each image, at its mask's own size, int64, (height, width).
        fingerprints: Of each image and mask.
    """

    features: torch.Tensor
    classes: list[torch.Tensor]
    fingerprints: list[str]


def classes_of_mask(mask: np.ndarray, ignore_label: int | None) -> torch.Tensor:
    """Labels as classes, int64, (height, width): the ignored label becomes `IGNORED` and leaves no gap among the others."""
    labels = torch.from_numpy(mask.astype(np.int64))
    if ignore_label is None:
        return labels
    classes = labels - (labels > ignore_label).long() if ignore_label >= 0 else labels
    return classes.masked_fill(labels == ignore_label, IGNORED)


def labels_of_classes(num_labels: int, ignore_label: int | None) -> list[int]:
    """The label of each class: 0 to num_labels - 1 without the ignored one."""
    return [label for label in range(num_labels) if label != ignore_label]


def read_batches(
    rows: Iterable[MaskRow],
    frozen: FrozenPatches,
    batch_size: int,
    split: str,
    ignore_label: int | None = None,
    num_labels: int | None = None,
) -> Iterator[Batch]:
    """Features and classes of all images, in their order; only a batch is in memory.

    Args:
        rows: Undecoded.
        frozen: Of the model.
        batch_size: Images that the model gets at once.
        split: How errors call the rows' split.
        ignore_label: Label whose pixels do not count.
        num_labels: Labels are 0 to num_labels - 1 beside the ignored one; when None, to what 16 bits hold.

    Raises:
        ValueError: If an image or mask cannot be used, or has a label outside the range.
    """
    rows = iter(rows)
    with ThreadPoolExecutor() as threads:
        while batch := _next(rows, batch_size, split):
            try:
                samples = list(threads.map(lambda row: row.decode(), batch))
            except ValueError as error:
                raise ValueError(f"Split {split}: {error}") from error
            for row, sample in zip(batch, samples, strict=True):
                _check_labels(sample.mask, f"mask of {row.subject} of split {split}", ignore_label, num_labels)
            yield Batch(
                frozen.embed(samples),
                [classes_of_mask(sample.mask, ignore_label) for sample in samples],
                [fingerprint_of_sample(*sample) for sample in samples],
            )


def keep_examples(batches: Iterable[Batch], num_images: int | None, image_size_px: int) -> Examples:
    """All batches in memory: per image 2 bytes x D x L of features and 2 x image_size_px^2 of classes.

    Args:
        batches: Of the training split.
        num_images: Where it is known, so that too many are refused at the start.
        image_size_px: Side of the squares that the masks are resized to, by nearest neighbour.

    Raises:
        ValueError: If they do not fit into the memory that is free.
    """
    examples, fingerprints = Examples(), list[str]()
    for batch in batches:
        resized = [patches_to_pixels(own, (image_size_px, image_size_px)).short() for own in batch.classes]
        bytes_an_image = batch.features[0].nbytes + resized[0].nbytes
        left = len(resized) if num_images is None else num_images - len(examples.features)
        check_memory(bytes_an_image, left, psutil.virtual_memory().available)
        # Cloned, since a view would keep its batch in one piece.
        examples.features += [own.clone() for own in batch.features]
        examples.classes += resized
        for own in batch.classes:
            counted = torch.bincount(own[own != IGNORED], minlength=len(examples.pixels))  # (K or more,)
            counted[: len(examples.pixels)] += examples.pixels
            examples.pixels = counted
        fingerprints += batch.fingerprints
    examples.fingerprint = fingerprint_of_data(fingerprints)
    return examples


def check_memory(bytes_an_image: int, num_images: int, available_bytes: int) -> None:
    """
    Raises:
        ValueError: If so many images more do not fit.
    """
    if bytes_an_image * num_images > available_bytes:
        raise ValueError(
            f"The features and masks of {num_images:,} training images take {bytes_an_image * num_images / 2**30:.3g} GiB "
            f"({bytes_an_image:,} bytes each) and {available_bytes / 2**30:.3g} GiB of memory are free; they are kept there "
            "while the heads learn. Lower --limit_train or --image_size, or use a machine with more."
        )


def _next(rows: Iterator[MaskRow], batch_size: int, split: str) -> list[MaskRow]:
    try:
        return list(islice(rows, batch_size))
    except ValueError as error:  # no rows at all
        raise ValueError(f"Split {split}: {error}") from error


def _check_labels(mask: np.ndarray, subject: str, ignore_label: int | None, num_labels: int | None) -> None:
    counted = mask if ignore_label is None else mask[mask != ignore_label]
    highest = int(counted.max(initial=0))
    if num_labels is not None and highest >= num_labels:
        raise ValueError(
            f"The {subject} holds the label {highest}; the labels must be 0 to {num_labels - 1} (as --num_labels, or else the "
            f"training masks have it). Pass --num_labels {highest + 1}, or --ignore_label {highest} if its pixels do not count."
        )
    if highest > HIGHEST_CLASS:
        raise ValueError(
            f"The {subject} holds the label {highest}; labels must be classes, 0 to {HIGHEST_CLASS}. Numbers of instances or "
            "colours are none: turn them into class ids first."
        )
