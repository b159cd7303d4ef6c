"""Streams pairs of image and true mask from any `datasets` data set, on the Hub or in a local folder or file."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from datasets import IterableDataset
from PIL import Image

from evaluation.data_sets import open_rows
from evaluation.metrics.contingency import check_label_map

DEFAULT_SPLIT = "validation"


class MaskSample(NamedTuple):
    """One image and its true mask.

    Attributes:
        image: RGB.
        mask: (height, width) integers. Overlap is counted in its pixels; the image may have more or fewer of the same
            aspect ratio.
    """

    image: Image.Image
    mask: np.ndarray


def open_mask_dataset(
    dataset: str,
    config: str | None = None,
    split: str | None = None,
    image_column: str = "image",
    mask_column: str = "mask",
) -> IterableDataset:
    """Open a stream of rows with an image and a mask; nothing is decoded yet.

    Args:
        dataset: Hub name, local folder or file, as in `data_sets.open_rows`.
        config: configuration of a data set that has several.
        split: "validation" by default; a single file has no splits, and is read whole.
        image_column: column of images.
        mask_column: column of masks: single-channel images, or rows of integers.

    Returns:
        The streaming data set, with these two columns only.

    Raises:
        FileNotFoundError: if there is no such data set.
        ValueError: if the split or a column does not exist.
    """
    rows = open_rows(dataset, config, split or DEFAULT_SPLIT)
    columns = rows.column_names or list(next(iter(rows), {}))
    for column, option in ((image_column, "image_column"), (mask_column, "mask_column")):
        if column not in columns:
            raise ValueError(
                f"{dataset} has no column {column!r}; {option} must name one of its columns: {', '.join(columns)}. "
                f"Pass --{option} NAME."
            )
    return rows.select_columns([image_column, mask_column])


def read_mask_samples(
    rows: IterableDataset,
    image_column: str = "image",
    mask_column: str = "mask",
    ignore_label: int | None = None,
    limit: int | None = None,
) -> Iterator[MaskSample]:
    """Decode the first `limit` rows one by one (all by default), in the data set's order.

    Raises:
        ValueError: at a row whose image or mask cannot be used, or if there are no rows.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1 image; leave it out to read all.")
    index = -1
    for index, row in enumerate(islice(rows, limit)):
        yield _read_sample(row[image_column], row[mask_column], f"row {index}", ignore_label)
    if index < 0:
        raise ValueError("The split holds no rows, so there is nothing to score; choose another split or data set.")


def number_of_rows(rows: IterableDataset, limit: int | None = None) -> int | None:
    """Return how many samples will be read where the data set says so, else None; for progress bars only."""
    split = (rows.info.splits or {}).get(str(rows.split))
    known = [count for count in (limit, split.num_examples if split else None) if count]
    return min(known) if known else None


def _read_sample(image, mask, subject: str, ignore_label: int | None) -> MaskSample:
    """Bring one decoded row to RGB and an integer array, or say why it cannot be used."""
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"The image of {subject} is a {type(image).__name__}; the column must decode to PIL images. Cast it with "
            "dataset.cast_column(name, datasets.Image()) and save the data set again, or choose another column."
        )
    mask = np.asarray(mask)
    check_label_map(mask, f"mask of {subject}", ignore_label)
    height, width = mask.shape
    # A mask stored at another scale is fine up to rounding to whole pixels; another shape is another picture.
    if not height * width or abs(image.width * height - image.height * width) > max(image.size + mask.shape):
        raise ValueError(
            f"The image of {subject} is {image.width} x {image.height} and its mask {width} x {height} (width x "
            "height); they must show the same frame, so have the same aspect ratio. Check that the two columns belong "
            "together, and that no rotation (EXIF) was applied to one of them only."
        )
    return MaskSample(image.convert("RGB"), mask)
