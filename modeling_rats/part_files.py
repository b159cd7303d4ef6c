# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Part maps as files for other tools: a PNG of numbers in the registers' colours, and COCO's annotation of masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .part_maps import NO_PART
from .register_colors import register_colors

PALETTE_SIZE = 256


def part_map_image(segmentation: torch.Tensor) -> Image.Image:
    """A part map as an image to be saved as PNG: each pixel is its register's number + 1, and 0 where there is no part.

    Args:
        segmentation: Register indices or `NO_PART`, integers, (height, width).

    Returns:
        Of mode "P", shown in the registers' colours, where numbers fit in 8 bits, else of mode "I;16", in grey.
    """
    numbers = (segmentation - NO_PART).cpu().numpy()
    if numbers.max(initial=0) >= PALETTE_SIZE:
        return Image.fromarray(numbers.astype(np.uint16))
    picture = Image.fromarray(numbers.astype(np.uint8)).convert("P")
    picture.putpalette(bytes([0, 0, 0]) + register_colors(PALETTE_SIZE - 1).tobytes())
    return picture


def coco_annotations(
    file_name: str,
    segmentation: torch.Tensor,
    segments: Sequence[Mapping[str, Any]],
    names: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """The parts of one image in COCO's layout, as pycocotools and annotation tools read it.

    Args:
        file_name: Of the image.
        segmentation: Register indices, (height, width), and
        segments: what is known of each part: the two values of a result of `post_process_part_segmentation`.
        names: Of parts, by their number in the map; others are called after their register.

    Returns:
        A dict of plain values: `images` (one), `categories` (a part each; its id is the register's number + 1, since COCO's
        begin with 1) and `annotations`, whose `segmentation` is a run-length code without loss: `size` [height, width] and
        `counts`, column by column, zeros first. `bbox` is [x, y, width, height] in pixels.
    """
    height, width = segmentation.shape
    categories, annotations = [], []
    for number, segment in enumerate(segments, 1):
        register, (x0, y0, x1, y1) = segment["register"], segment["box"]
        name = (names or {}).get(segment["id"], f"register {register}")
        categories.append({"id": register + 1, "name": name, "supercategory": "part"})
        annotations.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": register + 1,
                "segmentation": {"size": [height, width], "counts": _run_lengths(segmentation == segment["id"])},
                "area": segment["area"],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
                "score": segment["score"],
            }
        )
    image = {"id": 1, "file_name": file_name, "height": height, "width": width}
    return {"images": [image], "categories": categories, "annotations": annotations}


def _run_lengths(mask: torch.Tensor) -> list[int]:
    pixels = mask.T.flatten().cpu().numpy()
    starts = np.flatnonzero(np.diff(pixels, prepend=False))  # where a run begins, but for the first of zeros
    return np.diff(starts, prepend=0, append=len(pixels)).tolist()


__all__ = ["coco_annotations", "part_map_image"]
