"""Streams images for dictionaries of parts: alone, or with a true mask, or with a category as well."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import ClassLabel
from PIL import Image

from evaluation.data_sets import decode_image, open_images, open_rows
from evaluation.mask_samples import decode_sample, undecoded


class PartSample(NamedTuple):
    """One image, and what is known of it.

    Attributes:
        image: RGB.
        mask: Its true mask, (height, width) integers; None without.
        category: What it shows; None where no column tells.
    """

    image: Image.Image
    mask: np.ndarray | None = None
    category: str | None = None


@dataclass(frozen=True)
class PartRow:
    """One image, not decoded yet: what is dealt out to ranks.

    Attributes:
        index: Its place in the data set's order, from 0.
        row: What the data set holds of it.
        columns: Of which `image`, `mask` and `category` are read; the last two may be None.
        categories: Names of categories that are numbers; None where they are text.
        ignore_label: Label of mask pixels that do not count; they become -1.
    """

    index: int
    row: dict[str, Any]
    columns: tuple[str, str | None, str | None]
    categories: ClassLabel | None
    ignore_label: int | None = None

    def decode(self) -> PartSample:
        """
        Raises:
            ValueError: If image or mask cannot be used, with the row's number.
        """
        image_column, mask_column, category_column = self.columns
        category = None if category_column is None else self.row[category_column]
        if self.categories is not None:
            category = self.categories.int2str(category)
        told = None if category is None else str(category)
        if mask_column is not None:
            sample = decode_sample(self.row[image_column], self.row[mask_column], f"row {self.index}", self.ignore_label)
            mask = sample.mask.astype(np.int64)
            return PartSample(sample.image, np.where(mask == self.ignore_label, -1, mask), told)
        try:
            return PartSample(decode_image(self.row[image_column]), None, told)
        except Exception as error:  # decoders raise anything
            raise ValueError(f"The image of row {self.index} cannot be decoded ({type(error).__name__}: {error}).") from error


def part_rows(
    dataset: str,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    category_column: str | None = None,
    limit: int | None = None,
    ignore_label: int | None = None,
) -> Iterator[PartRow]:
    """The first rows of a data set, in its order.

    Args:
        dataset: Hub name, local folder or file, as in `data_sets.open_rows`.
        config: Configuration of a data set that has several.
        split: Name of the split; a single file has none.
        revision: Branch, tag or commit of a data set on the Hub.
        image_column: Found where there is one.
        mask_column: Column of masks; None reads none.
        category_column: Column of what images show, class labels or text; None reads none.
        limit: The most images; None for all.
        ignore_label: Label of mask pixels that do not count, such as 255.

    Raises:
        FileNotFoundError: If there is no such data set.
        ValueError: If the split or a column does not exist, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1 image; leave it out to read all.")
    _, image_column = open_images(dataset, config, split, image_column, revision)
    rows = undecoded(open_rows(dataset, config, split, revision))
    columns = (image_column, mask_column, category_column)
    for column in columns:
        if column is not None and column not in rows.features:
            raise ValueError(f"{dataset} has no column {column!r}; its columns: {', '.join(rows.features)}. Name one of them.")
    kind = None if category_column is None else rows.features[category_column]
    categories = kind if isinstance(kind, ClassLabel) else None
    wanted = rows.select_columns([column for column in columns if column is not None])
    return (PartRow(index, row, columns, categories, ignore_label) for index, row in enumerate(islice(wanted, limit)))


def read_label_names(path: str | Path) -> list[str]:
    """Names of a mask's labels, 0 first: a JSON list, or an object with such a list as `label_names`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no such list.
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); it must be a list of names.") from error
    names = told.get("label_names") if isinstance(told, dict) else told
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} must hold a list of names, label 0 first, or an object with such a list as label_names.")
    return names
