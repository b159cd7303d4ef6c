"""Images in, pixel values out, and model outputs back to part maps at image size."""

import math
from typing import Any

import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils import auto_docstring

from .part_maps import part_map, part_segments


class RatsImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    ensure_multiple_of (`int`, *optional*):
        If set, the image keeps its aspect ratio: it is resized to about the area of `size`, each side rounded to a multiple
        of this (the model's patch size). If not, it is resized to exactly `size`.
    """

    ensure_multiple_of: int | None


@auto_docstring
class RatsImageProcessor(TorchvisionBackend):
    valid_kwargs = RatsImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    ensure_multiple_of = None

    def _preprocess(  # type: ignore[override]  # transformers' processors take their own options here
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        ensure_multiple_of: int | None = None,
        **kwargs,
    ) -> BatchFeature:
        if do_resize and ensure_multiple_of is not None:
            target_sizes = [_size_of_same_area(image.shape[-2], image.shape[-1], size, ensure_multiple_of) for image in images]
            images = [self.resize(image, target, resample) for image, target in zip(images, target_sizes, strict=True)]
            do_resize = False
        return super()._preprocess(images, do_resize=do_resize, size=size, resample=resample, **kwargs)

    def post_process_part_segmentation(self, outputs: Any, target_sizes: list[tuple[int, int]] | None = None) -> list[dict]:
        """Part maps of [`RatsForPartSegmentation`] outputs: each patch goes to its most similar register.

        Args:
            outputs: `RatsPartSegmentationOutput` with `similarities`, (batch_size, num_registers, rows, columns).
            target_sizes: Height and width in pixels of each map, usually of the original image; the patch grid when None.

        Returns:
            A dict per image: `segmentation`, register indices, int64, (height, width), and `segments_info`, a dict for each
            register that won a pixel (`id`, `register`, `score`, `area`, `box`: see `part_maps.part_segments`).

        Raises:
            ValueError: If the number of target sizes is not the batch size.
        """
        similarities = outputs.similarities
        sizes = _checked_sizes(target_sizes, len(similarities))
        maps = [part_map(one, size) for one, size in zip(similarities, sizes, strict=True)]
        return [
            {"segmentation": segmentation, "segments_info": part_segments(segmentation, one)}
            for segmentation, one in zip(maps, similarities, strict=True)
        ]

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """Label maps of the outputs' `logits`, upsampled bilinearly to the target sizes before the argmax.

        Args:
            outputs: `RatsPartSegmentationOutput` with `logits`, (batch_size, num_labels, rows, columns).
            target_sizes: Height and width in pixels of each map; the patch grid when None.

        Returns:
            Label indices, int64, (height, width), per image.

        Raises:
            ValueError: If the number of target sizes is not the batch size.
        """
        maps = []
        for logits, size in zip(outputs.logits, _checked_sizes(target_sizes, len(outputs.logits)), strict=True):
            if size is not None:
                logits = torch.nn.functional.interpolate(logits[None].float(), size=size, mode="bilinear")[0]
            maps.append(logits.argmax(dim=0))
        return maps


def _size_of_same_area(height: int, width: int, size: SizeDict, multiple: int) -> SizeDict:
    """About the area of `size` in the image's aspect ratio, each side a multiple of `multiple` and at least one."""
    if not (size.height and size.width):
        raise ValueError(
            f"size={size} must have height and width where ensure_multiple_of={multiple} is set: the image gets about their "
            'area; give size={"height": ..., "width": ...}.'
        )
    scale = math.sqrt(size.height * size.width / (height * width))
    sides = [max(round(side * scale / multiple), 1) * multiple for side in (height, width)]
    return SizeDict(height=sides[0], width=sides[1])


def _checked_sizes(target_sizes: list[tuple[int, int]] | None, batch_size: int) -> list[tuple[int, int] | None]:
    if target_sizes is None:
        return [None] * batch_size
    if len(target_sizes) != batch_size:
        raise ValueError(
            f"target_sizes has {len(target_sizes)} entries for a batch of {batch_size}; give one (height, width) per image."
        )
    return [(int(height), int(width)) for height, width in target_sizes]


__all__ = ["RatsImageProcessor", "RatsImageProcessorKwargs"]
