"""Streams pairs of image and true mask from any `datasets` data set, on the Hub or in a local folder or file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets import IterableDataset
from PIL import Image

from evaluation.data_sets import decode_image, open_rows
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


@dataclass(frozen=True)
class MaskRow:
    """One image and its true mask, not decoded yet: what is dealt out to ranks.

    Attributes:
        index: Its place in the data set's order, from 0.
        subject: How errors speak of it, such as "row 3" or a file name.
        decode: Reads image and mask; raises ValueError, in words that name `subject`, if they cannot be used.
    """

    index: int
    subject: str
    decode: Callable[[], MaskSample]


def open_mask_dataset(
    dataset: str,
    config: str | None = None,
    split: str | None = None,
    image_column: str = "image",
    mask_column: str = "mask",
    revision: str | None = None,
) -> IterableDataset:
    """Open a stream of rows with an image and a mask; nothing is decoded yet.

    Args:
        dataset: Hub name, local folder or file, as in `data_sets.open_rows`.
        config: configuration of a data set that has several.
        split: "validation" by default; a single file has no splits, and is read whole.
        image_column: column of images.
        mask_column: column of masks: single-channel images, or rows of integers.
        revision: branch, tag or commit of a data set on the Hub; its newest state when None.

    Returns:
        The streaming data set, with these two columns only.

    Raises:
        FileNotFoundError: if there is no such data set.
        ValueError: if the split or a column does not exist, or a local data set is asked for a revision.
    """
    rows = open_rows(dataset, config, split or DEFAULT_SPLIT, revision)
    columns = rows.column_names or list(next(iter(rows), {}))
    for column, option in ((image_column, "image_column"), (mask_column, "mask_column")):
        if column not in columns:
            raise ValueError(
                f"{dataset} has no column {column!r}; {option} must name one of its columns: {', '.join(columns)}. "
                f"Pass --{option} NAME."
            )
    return rows.select_columns([image_column, mask_column])


def mask_rows(
    rows: IterableDataset,
    image_column: str = "image",
    mask_column: str = "mask",
    ignore_label: int | None = None,
    limit: int | None = None,
) -> Iterator[MaskRow]:
    """The first `limit` rows of `open_mask_dataset` (all by default), in the data set's order.

    Raises:
        ValueError: if there are no rows.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1 image; leave it out to read all.")
    index = -1
    for index, row in enumerate(islice(undecoded(rows), limit)):
        subject = f"row {index}"
        yield MaskRow(index, subject, partial(decode_sample, row[image_column], row[mask_column], subject, ignore_label))
    if index < 0:
        raise ValueError("The split holds no rows, so there is nothing to score; choose another split or data set.")


def read_mask_samples(
    rows: IterableDataset,
    image_column: str = "image",
    mask_column: str = "mask",
    ignore_label: int | None = None,
    limit: int | None = None,
) -> Iterator[MaskSample]:
    """Decode the rows of `mask_rows` one by one.

    Raises:
        ValueError: at a row whose image or mask cannot be used, or if there are no rows.
    """
    return (row.decode() for row in mask_rows(rows, image_column, mask_column, ignore_label, limit))


def number_of_rows(rows: IterableDataset, limit: int | None = None) -> int | None:
    """Return how many samples will be read where the data set says so, else None; for progress bars only."""
    split = (rows.info.splits or {}).get(str(rows.split))
    known = [count for count in (limit, split.num_examples if split else None) if count]
    return min(known) if known else None


def undecoded(rows: IterableDataset) -> IterableDataset:
    """The rows with the files of their images in place of the images, which costs little for rows of another rank."""
    features = rows._resolve_features().features if rows.features is None else rows.features
    for column, feature in features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def decode_sample(image: Any, mask: Any, subject: str, ignore_label: int | None) -> MaskSample:
    """Image and mask of one row, or why they cannot be used."""
    if not _is_file(image):
        raise ValueError(
            f"The image of {subject} is a {type(image).__name__}; the column must hold images. Cast it with "
            "dataset.cast_column(name, datasets.Image()) and save the data set again, or choose another column."
        )
    if mask is None:
        raise ValueError(f"The mask of {subject} is missing; each image that is scored needs one. Leave the row out.")
    try:
        true = np.asarray(datasets.Image().decode_example(mask) if _is_file(mask) else _rectangle(mask, subject))
        return check_sample(decode_image(image), true, subject, ignore_label)
    except OSError as error:
        raise ValueError(
            f"The image or mask of {subject} cannot be decoded ({error}); all images that are scored must be readable. Mend "
            "the data set or leave the row out."
        ) from error


def _rectangle(mask: Any, subject: str) -> Any:
    """A mask of rows of integers, if the rows are equally long."""
    lengths = {len(row) for row in mask if isinstance(row, list)} if isinstance(mask, list) else set()
    if len(lengths) > 1:
        raise ValueError(
            f"The mask of {subject} has rows of {min(lengths)} to {max(lengths)} pixels; all must be equally long, (height, "
            "width). Mend the row or leave it out."
        )
    return mask


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"bytes", "path"}


def check_sample(image: Image.Image, mask: np.ndarray, subject: str, ignore_label: int | None = None) -> MaskSample:
    """An RGB image with its mask.

    Args:
        image: RGB.
        mask: (height, width) integers.
        subject: How errors speak of the pair.
        ignore_label: The one label that may be negative.

    Raises:
        ValueError: If the mask is no label map, or does not show the image's frame.
    """
    check_label_map(mask, f"mask of {subject}", ignore_label)
    height, width = mask.shape
    # A mask stored at another scale is fine up to rounding to whole pixels; another shape is another picture.
    if not height * width or abs(image.width * height - image.height * width) > max(image.size + mask.shape):
        raise ValueError(
            f"The image of {subject} is {image.width} x {image.height} and its mask {width} x {height} (width x "
            "height); they must show the same frame, so have the same aspect ratio. Check that the two columns belong "
            "together, and that no rotation (EXIF) was applied to one of them only."
        )
    return MaskSample(image, mask)
