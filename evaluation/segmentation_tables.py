"""Segmented images of any data set that `datasets` opens: rows by number, and which of their columns are read."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import PIL.Image

from evaluation.data_sets import decode_image, open_rows
from evaluation.segment_rows import read_label_map, read_objects, read_segment_map
from evaluation.segments import BrokenImageError, Segments, StoredLabels, Task


@dataclass(frozen=True)
class AnnotationColumns:
    """The columns that hold the annotation, in one of three forms.

    Attributes:
        mask: Column of maps: of labels, or, with `segment_labels`, of segments.
        segment_labels: Column of lists with the label of each segment of the map.
        objects: Column of objects, each with `segmentation` and `category` or `category_id`.
    """

    mask: str | None = None
    segment_labels: str | None = None
    objects: str | None = None

    def named(self) -> list[str]:
        """Those that are used."""
        return [column for column in (self.mask, self.segment_labels, self.objects) if column is not None]


KNOWN_COLUMNS = {
    "semantic": (
        AnnotationColumns("mask"),
        AnnotationColumns("segment_mask", "segment_labels"),
        AnnotationColumns(objects="objects"),
    ),
    "instance": (AnnotationColumns("segment_mask", "segment_labels"), AnnotationColumns(objects="objects")),
    "panoptic": (AnnotationColumns("segment_mask", "segment_labels"),),
}
"""What is looked for where no column of annotations is named."""


def open_table(dataset: str, config: str | None, split: str, revision: str | None) -> datasets.Dataset:
    """All rows of a split, by number; images are not decoded.

    `datasets` keeps them as an Arrow file in its cache, once for all processes, so a local data set takes its size once more.

    Raises:
        FileNotFoundError: As `data_sets.open_rows`.
        ValueError: As `data_sets.open_rows`.
    """
    rows = open_rows(dataset, config, split, revision)  # which has a word for everything that cannot be opened
    path = Path(dataset).expanduser()
    with _quiet_unless_terminal():
        if path.is_file():
            table = datasets.load_dataset(rows.info.builder_name, data_files=str(path), split="train")
        else:
            source = str(path) if path.exists() else dataset
            table = datasets.load_dataset(source, name=config, split=split, revision=revision)
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table


@contextmanager
def _quiet_unless_terminal() -> Iterator[None]:
    """No progress bars of `datasets` in files of output."""
    hide = not sys.stderr.isatty() and datasets.utils.are_progress_bars_disabled() is False
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


def choose_columns(table: datasets.Dataset, name: str, task: Task, columns: AnnotationColumns) -> AnnotationColumns:
    """The columns that are named, or else the first of `KNOWN_COLUMNS` that the table has.

    Raises:
        ValueError: If a column does not exist, none is known, or they do not hold what the task needs.
    """
    if not columns.named():
        known = [known for known in KNOWN_COLUMNS[task] if set(known.named()) <= set(table.column_names)]
        if not known:
            wanted = ", or ".join(" and ".join(known.named()) for known in KNOWN_COLUMNS[task])
            raise ValueError(
                f"{name} has the columns {', '.join(table.column_names)}; for {task} segmentation it must have {wanted}. Name "
                "the columns of its annotation: mask_column, segment_labels_column, objects_column. In a folder of images "
                'their maps are named in metadata.jsonl: {"file_name": "001.jpg", "mask_file_name": "001.png"}.'
            )
        columns = known[0]
    missing = [column for column in columns.named() if column not in table.column_names]
    if missing:
        raise ValueError(
            f"{name} has no column {missing[0]!r}; its columns: {', '.join(table.column_names)}. Name one of them."
        )
    if columns.objects is not None and len(columns.named()) > 1:
        raise ValueError(
            f"objects_column={columns.objects} was given with another column of annotations; either objects or maps are read. "
            "Leave one out."
        )
    if columns.segment_labels is not None and columns.mask is None:
        raise ValueError(
            f"segment_labels_column={columns.segment_labels} was given without mask_column; labels of segments need the map of "
            "segments. Name it."
        )
    if task != "semantic" and columns.segment_labels is None and (columns.objects is None or task == "panoptic"):
        raise ValueError(
            f"The column {columns.named()[0]!r} of {name} does not hold what {task} segmentation needs: a map of segments with "
            f"their labels{' (mask_column and segment_labels_column)' if task == 'panoptic' else ', or objects'}. Name other "
            "columns, or another task."
        )
    return columns


def label_feature(table: datasets.Dataset, columns: AnnotationColumns) -> Any:
    """The feature of the labels, of which `evaluation.label_spaces` takes names."""
    if columns.objects is None:
        return table.features[columns.segment_labels or columns.mask]
    fields = _object_fields(table.features[columns.objects])
    return fields[_category_field(fields)]


class TableImages:
    """Rows of a table as segmented images.

    Args:
        table: As `open_table` gives it.
        name: What errors call the data set.
        image_column: Column of images.
        columns: Columns of the annotation, as `choose_columns` gives them.
        stored: How labels are stored.

    Raises:
        ValueError: If the column of images does not exist, or that of objects has no outlines or labels.
    """

    def __init__(self, table: datasets.Dataset, name: str, image_column: str, columns: AnnotationColumns, stored: StoredLabels):
        if image_column not in table.column_names:
            raise ValueError(
                f"{name} has no column {image_column!r}; image_column must name one of its columns: "
                f"{', '.join(table.column_names)}."
            )
        self.rows = table.select_columns([image_column, *columns.named()])
        self.name = name
        self.image_column = image_column
        self.read_segments: Callable[[dict, int, int, str], Segments]
        if columns.objects is not None:
            category = _category_field(_object_fields(table.features[columns.objects]))
            self.read_segments = partial(read_objects, columns.objects, category, stored)
        elif columns.mask is not None and columns.segment_labels is not None:
            self.read_segments = partial(read_segment_map, columns.mask, columns.segment_labels, stored)
        elif columns.mask is not None:
            self.read_segments = partial(read_label_map, columns.mask, stored)

    def __len__(self) -> int:
        return len(self.rows)

    def subject(self, index: int) -> str:
        """How errors speak of an image."""
        return f"row {index} of {self.name}"

    def read(self, index: int) -> tuple[PIL.Image.Image, Segments]:
        """An image, RGB and upright, and its segments.

        Raises:
            BrokenImageError: If the image cannot be decoded.
            ValueError: If its annotation cannot be used.
        """
        subject = self.subject(index)
        try:
            row = self.rows[index]
        except Exception as error:  # of images within objects, which `datasets` decodes at once
            raise ValueError(
                f"The annotation of {subject} cannot be decoded ({type(error).__name__}: {error}). Mend the data set or leave "
                "the row out."
            ) from error
        try:
            image = decode_image(row[self.image_column])
        except Exception as error:  # decoders raise anything
            raise BrokenImageError(
                f"The image of {subject} cannot be decoded ({type(error).__name__}: {error}); images must be readable. Mend "
                "the data set or leave the row out."
            ) from error
        return image, self.read_segments(row, image.height, image.width, subject)


def _object_fields(feature: Any) -> dict[str, Any]:
    """The fields of objects, which are a list of dicts or a dict of lists."""
    inner = getattr(feature, "feature", feature)
    return inner if isinstance(inner, dict) else {}


def _category_field(fields: dict[str, Any]) -> str:
    present = [field for field in ("category", "category_id") if field in fields]
    if not present or "segmentation" not in fields:
        raise ValueError(
            f"The objects have the fields {', '.join(fields) or 'none'}; each object must have segmentation, and category or "
            "category_id. Rename them, or name another column (objects_column)."
        )
    return present[0]
