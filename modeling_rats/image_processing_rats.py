# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Images in, pixel values out, and model outputs back to part maps at image size.

Works without torchvision, but for `RatsImageProcessor` itself; `RatsImageProcessorPil` is its twin without it.
"""

import math
import operator
import os
from typing import Any

import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    load_image,
    make_flat_list_of_images,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import auto_docstring, logging

from .image_inputs_rats import bytes_or_floats, check_sides, data_format, rgb_image, upright
from .part_maps import segment_parts, strongest_map, upsample
from .remote_code import AUTO_MAP

logger = logging.get_logger(__name__)


class RatsImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    ensure_multiple_of (`int`, *optional*):
        If set, the image keeps its aspect ratio: it is resized to about the area of `size`, each side rounded to a multiple
        of this (the model's patch size). If not, it is resized to exactly `size`.
    """

    ensure_multiple_of: int | None


class RatsImageProcessorMixin(BaseImageProcessor):
    """What both processors share: all but the arithmetic on pixels.

    PIL images of any mode become RGB by `rgb_image`, so maps belong to the image as it is displayed. Arrays and tensors have
    1, 3 or 4 channels, first or last, are uint8 or are taken as float32, and hold 0..255 unless `do_rescale=False`. Of two
    readings of a shape, 3 channels come before 4 before 1, and channels first before last; `input_data_format` decides.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    ensure_multiple_of = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._auto_class = None  # that the code of a saved class goes with it is not inherited

    def to_dict(self) -> dict[str, Any]:
        """As the parent's; a saved file names both backends, for those who load it without this package."""
        fields = super().to_dict()
        both = AUTO_MAP["AutoImageProcessor"]
        if fields.get("auto_map", {}).get("AutoImageProcessor") in both:  # set by transformers on saving, to this class alone
            fields["auto_map"] = {"AutoImageProcessor": both}
        return fields

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open files and URLs by PIL, whichever the backend: torchvision's decoders know fewer modes."""
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(one) for one in image_url_or_urls]
        if isinstance(image_url_or_urls, str | os.PathLike):
            path = os.fspath(image_url_or_urls)
            image = PIL.Image.open(path) if os.path.isfile(path) else load_image(path)
            image.load()  # and close its file: a long list would run out of them
            return image
        return super().fetch_images(image_url_or_urls)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
        images = self.fetch_images(images)
        try:
            flat = make_flat_list_of_images(images, expected_ndims=expected_ndims)
        except ValueError as error:
            first = images[0] if isinstance(images, list) else images
            raise ValueError(
                f"images cannot be read as images (the first is a {type(first).__name__} of shape "
                f"{tuple(getattr(first, 'shape', ()))}); give PIL images, arrays or tensors, each (height, width, channels) "
                "or (channels, height, width), one or a list or a batch of them."
            ) from error
        if not flat:
            raise ValueError("images is empty; give at least one image.")
        return flat

    def _prepare_image_like_inputs(self, images: Any, *args, expected_ndims: int = 3, **kwargs) -> list:
        prepared = []
        for index, image in enumerate(self._prepare_images_structure(images, expected_ndims=expected_ndims)):
            try:
                prepared.append(self.process_image(image, *args, **kwargs))
            except ValueError as error:
                raise ValueError(f"images[{index}]: {error}") from error
        return prepared

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> Any:
        """One image as (channels, height, width), an array or a tensor as the backend needs it."""
        if isinstance(image, PIL.Image.Image):
            check_sides(image.height, image.width)
            image = rgb_image(image) if do_convert_rgb else upright(image)
        else:
            input_data_format = data_format(image.shape, do_convert_rgb, input_data_format)
            image = bytes_or_floats(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs)

    def _preprocess(
        self,
        images: list,
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        ensure_multiple_of: int | None = None,
        **kwargs,
    ) -> BatchFeature:
        if kwargs.get("do_rescale") and any("float" in str(image.dtype) and 0 < image.max() <= 1 for image in images):
            logger.warning_once(
                "An image of floats holds nothing above 1, as if it were scaled to 0..1 already, and is scaled as 0..255 all "
                "the same; pass do_rescale=False if it is."
            )
        if do_resize and ensure_multiple_of is not None:
            target_sizes = [_size_of_same_area(image.shape[-2], image.shape[-1], size, ensure_multiple_of) for image in images]
            images = [self.resize(image, target, resample) for image, target in zip(images, target_sizes, strict=True)]  # type: ignore[attr-defined]
            do_resize = False
        return super()._preprocess(images, do_resize=do_resize, size=size, resample=resample, **kwargs)

    def post_process_part_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        *,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        merge_threshold: float | None = None,
        max_parts: int | None = None,
        min_area: int = 0,
        upsample_similarities: bool = False,
    ) -> list[dict]:
        """Part maps of [`RatsForPartSegmentation`] outputs: each patch goes to its most similar register.

        That is the paper's rule and the default. The options apply in this order, so that all of their promises hold of
        the result: `merge_threshold`, assignment of patches or pixels, `mask_threshold`, `max_parts` and
        `min_area`, `threshold`.

        Args:
            outputs: `RatsPartSegmentationOutput` with `similarities`, (batch_size, num_registers, rows, columns).
            target_sizes: Height and width in pixels of each map, usually of the original image (as it is displayed: see
                `rgb_image`); the patch grid when None. A list of pairs, or integers, (batch_size, 2).
            threshold: A part whose score is lower is dropped; its pixels become -1. In [-1, 1].
            mask_threshold: A pixel whose highest similarity is lower belongs to no part and becomes -1. In [-1, 1].
            merge_threshold: Registers whose similarities over the patches correlate (Pearson) by as much or more become one
                part. Of the registers that won patches, from the most patches won to the fewest (ties: the lower index
                first), each joins the first kept one with which it does, or is kept; it is compared with kept ones alone,
                so nothing chains. The part bears the index of the kept one. In [-1, 1].
            max_parts: Only so many parts stay, the largest; the others give their pixels to the most similar of these.
            min_area: A part of fewer pixels gives them to the most similar of the registers whose parts are large enough
                (whose scores then count them), or if there is none to no part. In pixels of the map.
            upsample_similarities: Upsample the similarities bilinearly to the target size and assign pixels, which gives
                smooth borders where the paper's patches give blocks. Without target sizes it changes nothing.

        Returns:
            A dict per image: `segmentation`, register indices, -1 for no part, int64, (height, width); and `segments_info`,
            a dict for each part in it, most pixels first: `id` and `register` (its index), `registers` (those merged into
            it, itself first), `head` (the attention head that owns the register, None if the outputs do not tell in
            `register_heads`), `score` (mean similarity over the patches it won, over pixels if these are assigned; of the
            most similar of its registers if several were merged), `area` in pixels, `box` [x0, y0, x1, y1] in pixels, x1
            and y1 exclusive.

        Raises:
            ValueError: If the outputs have no similarities, the target sizes are not a pair of positive integers for each
                image, a threshold is out of range, `max_parts` is less than 1, or `min_area` is negative.
        """
        similarities = _maps(outputs, "similarities")
        for name, value in {
            "threshold": threshold,
            "mask_threshold": mask_threshold,
            "merge_threshold": merge_threshold,
        }.items():
            if value is not None and not -1 <= value <= 1:
                raise ValueError(f"{name}={value} must lie in [-1, 1], as cosines and correlations do; None leaves it out.")
        if min_area < 0:
            raise ValueError(f"min_area={min_area} must be 0 or more pixels; 0 keeps parts of any size.")
        if max_parts is not None and max_parts < 1:
            raise ValueError(f"max_parts={max_parts} must be at least 1 part; None keeps all.")
        register_heads = getattr(outputs, "register_heads", None)
        results = []
        for index, size in enumerate(_checked_sizes(target_sizes, len(similarities))):
            segmentation, segments = segment_parts(
                similarities[index],
                size,
                threshold=threshold,
                mask_threshold=mask_threshold,
                merge_threshold=merge_threshold,
                max_parts=max_parts,
                min_area=min_area,
                upsample_similarities=upsample_similarities,
                register_heads=None if register_heads is None else register_heads[index],
            )
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[BatchFeature]:
        """Label maps of the outputs' `logits`, upsampled bilinearly to the target sizes before the argmax.

        Args:
            outputs: `RatsPartSegmentationOutput` with `logits`, (batch_size, num_labels, rows, columns).
            target_sizes: Height and width in pixels of each map; the patch grid when None.
            return_segmentation_scores: Return the upsampled logits too, as other processors of transformers do.

        Returns:
            Label indices, int64, (height, width), per image; with `return_segmentation_scores` a `BatchFeature` of
            `segmentation`, the same, and `segmentation_scores`, (num_labels, height, width).

        Raises:
            ValueError: If the outputs have no logits, or the target sizes are not a pair of positive integers for each image.
        """
        logits = _maps(outputs, "logits")
        sizes = _checked_sizes(target_sizes, len(logits))
        if not return_segmentation_scores:
            return [strongest_map(one, size)[1] for one, size in zip(logits, sizes, strict=True)]
        scores = [one if size is None else upsample(one, size) for one, size in zip(logits, sizes, strict=True)]
        return [BatchFeature(data={"segmentation": one.argmax(dim=0), "segmentation_scores": one}) for one in scores]


@auto_docstring(
    custom_intro="Image processor of RATS on torchvision: images of any mode to pixel values, and outputs to part maps."
)
class RatsImageProcessor(RatsImageProcessorMixin, TorchvisionBackend):  # type: ignore[misc]  # its backend spells options out
    valid_kwargs = RatsImageProcessorKwargs

    def __init__(self, **kwargs: Unpack[RatsImageProcessorKwargs]):
        super().__init__(**kwargs)  # type: ignore[misc]  # it takes any


def _size_of_same_area(height: int, width: int, size: SizeDict, multiple: int) -> SizeDict:
    """About the area of `size` in the image's aspect ratio, each side a multiple of `multiple` and at least one."""
    if multiple < 1:
        raise ValueError(f"ensure_multiple_of={multiple} must be at least 1; it is the model's patch size, or None.")
    if not (size.height and size.width):
        raise ValueError(
            f"size={size} must have height and width where ensure_multiple_of={multiple} is set: the image gets about their "
            'area; give size={"height": ..., "width": ...}.'
        )
    scale = math.sqrt(size.height * size.width / (height * width))
    sides = [max(round(side * scale / multiple), 1) * multiple for side in (height, width)]
    return SizeDict(height=sides[0], width=sides[1])


def _maps(outputs: Any, name: str) -> Any:
    """A field of model outputs that post-processing cannot do without, one finite map an image."""
    maps = getattr(outputs, name, None)
    if maps is None:
        raise ValueError(
            f"{type(outputs).__name__} has no {name}; post-processing reads the outputs of RatsForPartSegmentation "
            "(loaded from the same checkpoint as any RATS model), called without return_dict=False."
        )
    for index, one in enumerate(maps):
        if one.ndim != 3:
            raise ValueError(
                f"{name} of image {index} have the shape {tuple(one.shape)}, but must be (registers or labels, rows, columns); "
                "post-processing reads the outputs of RatsForPartSegmentation."
            )
        if not one.isfinite().all():
            raise ValueError(
                f"{name} of image {index} are not all finite; its pixel values hold nan or infinity (which RatsImageProcessor "
                "refuses), or the model's weights do."
            )
    return maps


def _checked_sizes(target_sizes: Any, batch_size: int) -> list[tuple[int, int] | None]:
    if target_sizes is None:
        return [None] * batch_size
    if len(target_sizes) != batch_size:
        raise ValueError(
            f"target_sizes has {len(target_sizes)} entries for a batch of {batch_size}; give one (height, width) per image."
        )
    return [_checked_size(size, index) for index, size in enumerate(target_sizes)]


def _checked_size(size: Any, index: int) -> tuple[int, int]:
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"target_sizes[{index}]={size} must be two positive integers, height and width in pixels.")
    return height, width


__all__ = ["RatsImageProcessor", "RatsImageProcessorKwargs", "RatsImageProcessorMixin"]
