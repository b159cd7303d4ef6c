"""Augmentation of segmented images for fine-tuning, as Mask2Former trains (arXiv 2112.01527), with torchvision's v2.

| here | Mask2Former (facebookresearch/Mask2Former) and detectron2 |
|---|---|
| "scale_jitter" | `coco_instance_lsj`, `coco_panoptic_lsj`: flip, `ResizeScale` 0.1 to 2.0 x crop, `FixedSizeCrop` |
| "shortest_edge", `color_distortion` | `mask_former_semantic`: `ResizeShortestEdge`, crop, `ColorAugSSDTransform`, flip |

Both pad images with grey, 128, and masks with 0. Departs from Mask2Former in that outlines become masks before they are scaled,
that a small image lies anywhere in its crop (v2.RandomCrop), not at its top left, and that colours are distorted after padding,
that of the padding too. Masks are resized by nearest neighbour of pixel centres, as detectron2 does through PIL; "nearest"
of torch shifts them against the image.

S segments
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from evaluation.segmentation_data import SegmentationSample

Resize = Literal["scale_jitter", "shortest_edge"]
PADDING = 128


class _Registered:
    """A resize whose masks keep their place to within half a pixel, and whose images keep a pixel, however long they are."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = super().make_params(flat_inputs)["size"]  # type: ignore[misc]
        return {"size": (max(height, 1), max(width, 1))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return v2.functional.resize(inpt, params["size"], v2.InterpolationMode.NEAREST_EXACT)
        return super().transform(inpt, params)  # type: ignore[misc]


class ScaleJitter(_Registered, v2.ScaleJitter):
    """Fits the image into a square, then scales it at random."""


class RandomShortestSize(_Registered, v2.RandomShortestSize):
    """Draws the shortest side."""


class ColorDistortion(v2.RandomPhotometricDistort):
    """SSD's colours as detectron2 has them: hue by up to 18 of 180 steps, channels in their order.

    Departs from detectron2 in that brightness is multiplied by 0.875 to 1.125, where it adds up to 32 of 255, and that contrast
    is about the image's mean grey, not about black.
    """

    def __init__(self) -> None:
        super().__init__(hue=(-0.1, 0.1))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return super().make_params(flat_inputs) | {"channel_permutation": None}


class TrainingSample(NamedTuple):
    """One augmented image.

    Attributes:
        image: (3, crop, crop) uint8.
        masks: (S, crop, crop) bool; S may be 0.
        labels: (S,) int64.
    """

    image: torch.Tensor
    masks: torch.Tensor
    labels: torch.Tensor


class TrainingTransform:
    """Resize, crop, flip and colours; it draws from torch's global generator.

    Crowds are left out, and so are segments without a pixel in the crop. Pixels of neither a segment nor a crowd are not told
    from others: as in Mask2Former, they belong to no mask.

    Args:
        crop_size_px: Side of the square that comes out.
        resize: "scale_jitter" fits the image into the square and scales it by `scale_range`; "shortest_edge" draws the shortest
            side from steps of a tenth of `crop_size_px` in `scale_range`, with the longest at most 4 x `crop_size_px`.
        scale_range: Smallest and largest scale; when None, 0.1 to 2.0 for "scale_jitter" and 0.5 to 2.0 for "shortest_edge".
        color_distortion: Whether colours are distorted.
        flip_probability: Of a horizontal flip.

    Raises:
        ValueError: If `crop_size_px`, `resize` or `scale_range` cannot be used.
    """

    def __init__(
        self,
        crop_size_px: int,
        resize: Resize = "scale_jitter",
        scale_range: tuple[float, float] | None = None,
        color_distortion: bool = False,
        flip_probability: float = 0.5,
    ):
        if crop_size_px < 1:
            raise ValueError(f"crop_size_px={crop_size_px} must be at least 1 pixel; Mask2Former has 512 and 1024.")
        if scale_range is not None and not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"scale_range={scale_range} must be two rising scales above 0, such as 0.1 and 2.0.")
        steps: list[torch.nn.Module] = [
            _resize(crop_size_px, resize, scale_range),
            v2.RandomCrop(crop_size_px, pad_if_needed=True, fill={tv_tensors.Image: PADDING, tv_tensors.Mask: 0}),
            v2.RandomHorizontalFlip(flip_probability),
        ]
        self.augment = v2.Compose([*steps, ColorDistortion()] if color_distortion else steps)

    def __call__(self, sample: SegmentationSample) -> TrainingSample:
        """The augmented image and what is left of its segments."""
        counted = ~sample.crowd
        image = tv_tensors.Image(v2.functional.pil_to_tensor(sample.image))  # (3, height, width)
        planes = tv_tensors.Mask(torch.from_numpy(pack_masks(sample.masks[counted])))  # (S / 8, height, width)
        image, planes = self.augment(image, planes)  # (3, crop, crop), (S / 8, crop, crop)
        present, masks = unpack_masks(planes.as_subclass(torch.Tensor))  # (S left,), (S left, crop, crop)
        return TrainingSample(image.as_subclass(torch.Tensor), masks, torch.from_numpy(sample.labels[counted])[present])


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """(S, height, width) bool as bits, (S / 8 rounded up, height, width) uint8, which augmentation moves eight at a time.

    Mask s is bit s % 8 of plane s // 8. `numpy.packbits` takes several times longer along the first axis.
    """
    planes = np.zeros((-(-len(masks) // 8), *masks.shape[1:]), np.uint8)
    for number, mask in enumerate(masks.view(np.uint8)):
        planes[number // 8] |= mask << (number % 8)
    return planes


def unpack_masks(planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the masks of `pack_masks` that have a pixel, (S left,) int64, and these masks, (S left, height, width)."""
    drawn = torch.from_numpy(np.bitwise_or.reduce(planes.flatten(1).numpy(), axis=1))  # (S / 8,)
    numbers = (drawn[:, None] >> torch.arange(8) & 1).flatten().nonzero().flatten()  # (S left,)
    bits = (1 << (numbers % 8)).to(torch.uint8)
    return numbers, (planes[numbers // 8] & bits[:, None, None]).bool()


def _resize(crop_size_px: int, resize: Resize, scale_range: tuple[float, float] | None) -> v2.Transform:
    if resize == "scale_jitter":
        return ScaleJitter((crop_size_px, crop_size_px), scale_range or (0.1, 2.0))
    if resize != "shortest_edge":
        raise ValueError(f"resize={resize} must be scale_jitter or shortest_edge.")
    lowest, highest = scale_range or (0.5, 2.0)
    tenths = range(round(10 * lowest), round(10 * highest) + 1)
    return RandomShortestSize([max(int(crop_size_px * tenth / 10), 1) for tenth in tenths], max_size=4 * crop_size_px)
