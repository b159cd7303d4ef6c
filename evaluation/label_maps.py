"""Scores outputs of any method that are saved as label maps, under the same protocol: AdaSlot, SPiT, SPFormer, Mamba-R ...

Whoever has a method's code runs it over a split of a data set and writes one folder:

    FOLDER/label_maps.json      {"method": "SPiT", "model": "spit-b16", "dataset": "coco", "split": "validation",
                                 "num_images": 500}; more entries, such as the method's settings, are welcome
    FOLDER/00000000.png         the segment of each pixel of the split's image 0
    FOLDER/00000001.npy         of its image 1, and so on

- The number in a file's name is the place of the image in the split, from 0, in the data set's own order, eight digits.
- PNG of one channel of 8 or 16 bits (indexed colours too: the index counts), or a two-dimensional NumPy file of integers.
- A map has the size of the true mask, or another size of the same frame; it is then resized by nearest neighbour. So it
  must cover the whole image, not a centre crop. A method that knows patches only may save its patch grid, if that has the
  image's aspect ratio; a square grid of a wider image must be enlarged to the image's size first.
- Every pixel has a segment, an integer from 0. Which integer stands for which segment is free, and may change from image to
  image. Pixels that the method leaves unassigned need a label of their own, and count as one more segment.
- Save all segments that the method uses: many-to-one scores rise with their number, which is reported beside the scores.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from evaluation.segmenters import ImageBatch, Segmenter
from modeling_rats.part_maps import patches_to_pixels

DESCRIPTION = "label_maps.json"
ENTRIES: dict[str, type] = {"method": str, "model": str, "dataset": str, "split": str, "num_images": int}


def read_description(folder: str | Path) -> dict[str, Any]:
    """What `label_maps.json` says of the method, the model, and the images.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If it is no JSON object, or an entry is missing or of another type.
    """
    path = Path(folder) / DESCRIPTION
    wanted = ", ".join(f"{name!r} ({kind.__name__})" for name, kind in ENTRIES.items())
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} was not found; a folder of saved label maps needs it, with the entries {wanted}. Write it, or check the "
            "folder's name."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); it must be an object with the entries {wanted}.") from error
    for name, kind in ENTRIES.items():
        value = description.get(name) if isinstance(description, Mapping) else None
        if type(value) is not kind:
            raise ValueError(f"{path} has {name}={value!r}; it must be an object with the entries {wanted}. Mend it.")
    return dict(description)


def label_map_segmenter(folder: str | Path) -> Segmenter:
    """Segment by looking the images' saved label maps up.

    Raises:
        FileNotFoundError: If there is no such folder or description; when it segments, if a map is missing.
        ValueError: If the description lacks entries; when it segments, if a map cannot be used (see `read_label_map`).
    """
    folder = Path(folder)
    num_images = read_description(folder)["num_images"]

    def segment(batch: ImageBatch) -> list[np.ndarray]:
        if len(batch.indices) != len(batch.images):
            raise ValueError(
                f"A batch of {len(batch.images)} images came with {len(batch.indices)} indices; saved label maps are found by "
                "the places of their images in the data set. Give ImageBatch its indices."
            )
        label_maps = []
        for index, target_size in zip(batch.indices, batch.target_sizes, strict=True):
            if index >= num_images:
                raise ValueError(
                    f"Image {index} is scored, but {folder / DESCRIPTION} tells of num_images={num_images} only; score the "
                    f"first {num_images} images (--limit), or save the label maps of all."
                )
            label_maps.append(read_label_map(folder, index, target_size))
        return label_maps

    return segment


def read_label_map(folder: str | Path, index: int, target_size: tuple[int, int]) -> np.ndarray:
    """The saved label map of one image, at the size of its true mask.

    Args:
        folder: Of saved label maps.
        index: The image's place in the split, from 0.
        target_size: Height and width of the true mask.

    Returns:
        (height, width), int64.

    Raises:
        FileNotFoundError: If the image has no label map.
        ValueError: If it has two, or its map cannot be read, is not (height, width) integers, or shows another frame.
    """
    present = [path for ending in ("png", "npy") if (path := Path(folder) / f"{index:08d}.{ending}").is_file()]
    if not present:
        raise FileNotFoundError(
            f"Image {index} has no label map {index:08d}.png or {index:08d}.npy in {folder}; each image that is scored needs "
            "one. Save it, or score fewer images (--limit)."
        )
    if len(present) > 1:
        raise ValueError(f"Image {index} has two label maps, {present[0]} and {present[1].name}; remove one.")
    label_map = _read(present[0])
    _check(label_map, present[0], target_size)
    return patches_to_pixels(torch.from_numpy(label_map.astype(np.int64)), target_size).numpy()


def _read(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow calls a broken PNG a SyntaxError
        raise ValueError(f"{path} cannot be read ({error}); save the label map again.") from error


def _check(label_map: np.ndarray, path: Path, target_size: tuple[int, int]) -> None:
    if label_map.ndim != 2 or label_map.dtype.kind not in "iu":
        raise ValueError(
            f"{path} holds {label_map.dtype} of shape {label_map.shape}; a label map must be integers of shape (height, "
            "width), a PNG of one channel of 8 or 16 bits or an integer NumPy file. Save the number of each pixel's segment."
        )
    if label_map.min(initial=0) < 0:
        raise ValueError(
            f"{path} holds the label {label_map.min()}; labels must be 0 or more. Give unassigned pixels a label of their own."
        )
    rows, columns = label_map.shape
    height, width = target_size
    # As of masks and images: rounding to whole pixels is forgiven, another aspect ratio is another picture.
    if not label_map.size or abs(columns * height - rows * width) > max(rows, columns, height, width):
        raise ValueError(
            f"{path} is {columns} x {rows} and the image's true mask {width} x {height} (width x height); both must show the "
            "same frame, so have the same aspect ratio. Save a map of the whole image, at the mask's size if in doubt."
        )
