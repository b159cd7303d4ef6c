"""How the annotation in a row of a data set becomes segments: a map of labels, a map of segments with labels, or objects.

S segments
"""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import PIL.Image

from evaluation.layouts.coco_instances import fill_outline
from evaluation.metrics.contingency import check_label_map
from evaluation.segments import VOID, Segments, StoredLabels, cut_out, cut_out_labels, stack_masks

VOID_ID = 0
"""Number of the pixels of a segment map that no segment has."""


def read_label_map(column: str, stored: StoredLabels, row: dict, height: int, width: int, subject: str) -> Segments:
    """One segment a label.

    Args:
        column: Of the map.
        stored: How labels are stored.
        row: What the data set holds of the image.
        height: Of the image, in pixels.
        width: The same.
        subject: How errors speak of the image.

    Raises:
        ValueError: If the map cannot be decoded or is none, or a label is out of range.
    """
    return cut_out_labels(_decoded(row[column], subject), stored, subject)


def read_segment_map(
    column: str, labels_column: str, stored: StoredLabels, row: dict, height: int, width: int, subject: str
) -> Segments:
    """Segment i has the label at place i of the list; segment 0 is void.

    Args:
        column: Of the map.
        labels_column: Of the list.
        stored: How labels are stored.
        row: What the data set holds of the image.
        height: Of the image, in pixels.
        width: The same.
        subject: How errors speak of the image.

    Raises:
        ValueError: If the map cannot be decoded or is none, or a segment has no label or one out of range.
    """
    segment_map = _decoded(row[column], subject)
    check_label_map(segment_map, f"segment map of {subject}")
    labels = _integers(row[labels_column], f"labels of the segments of {subject}")
    drawn = np.setdiff1d(segment_map, [VOID_ID])
    if drawn.size and drawn[-1] >= len(labels):
        raise ValueError(
            f"The segment map of {subject} has the segment {drawn[-1]}, and its list of labels {len(labels)} entries; segment "
            "i must have its label at place i of the list, from 0. Mend the row or leave it out."
        )
    label_of_segment = dict(zip(drawn.tolist(), stored.read(labels[drawn], subject).tolist(), strict=True))
    return cut_out(segment_map, label_of_segment | {VOID_ID: VOID})


def read_objects(
    column: str, category: str, stored: StoredLabels, row: dict, height: int, width: int, subject: str
) -> Segments:
    """One segment an object; those of a label that is ignored are void where no other object lies.

    Args:
        column: Of the objects, a list of entries or an entry of lists.
        category: Field of their labels.
        stored: How labels are stored.
        row: What the data set holds of the image.
        height: Of the image, in pixels.
        width: The same.
        subject: How errors speak of the image.

    Raises:
        ValueError: If an object's outline or mask is malformed or of another size, or a label is out of range.
    """
    objects = _list_of_objects(row[column], subject)
    labels = stored.read(_integers([entry.get(category) for entry in objects], f"{category} of {subject}"), subject)
    masks = stack_masks([_object_mask(entry.get("segmentation"), height, width, subject) for entry in objects], height, width)
    crowd = np.array([bool(entry.get("iscrowd") or 0) for entry in objects], bool)
    counted = labels != VOID
    void = masks[~counted].any(axis=0) & ~masks[counted].any(axis=0)
    return Segments(masks[counted], labels[counted], crowd[counted], void)


def _list_of_objects(objects: Any, subject: str) -> list[dict]:
    """One entry an object, of a list of entries or an entry of lists."""
    if objects is None:
        return []
    if not isinstance(objects, dict):
        return list(objects)
    lengths = {field: len(values) for field, values in objects.items() if values is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"The objects of {subject} have lists of {lengths}; each field must have an entry an object. Mend the row or leave "
            "it out."
        )
    count = max(lengths.values(), default=0)
    return [{field: objects[field][place] for field in lengths} for place in range(count)]


def _object_mask(outline: Any, height: int, width: int, subject: str) -> np.ndarray:
    """The pixels of an object, (height, width) bool, from polygons, a run-length code, or a mask of zeros and others."""
    is_mask = isinstance(outline, list) and len(outline) == height and all(np.shape(line) == (width,) for line in outline)
    if is_mask or _is_file(outline) or isinstance(outline, PIL.Image.Image | np.ndarray):
        mask = _decoded(outline, subject)
        check_label_map(mask, f"mask of an object of {subject}")
        if mask.shape != (height, width):
            raise ValueError(
                f"A mask of an object of {subject} is {mask.shape[1]} x {mask.shape[0]} and the image {width} x {height} "
                "(width x height); both must be equally large. Mend the row or leave it out."
            )
        return mask != 0
    return fill_outline(outline, height, width, subject)


def _decoded(mask: Any, subject: str) -> np.ndarray:
    """A mask that is stored as an image or as rows of numbers, as an array."""
    if mask is None:
        raise ValueError(f"The mask of {subject} is missing; each image needs one. Leave the row out.")
    try:
        return np.asarray(datasets.Image().decode_example(mask) if _is_file(mask) else mask)
    except Exception as error:  # decoders raise anything, and NumPy refuses rows of unequal length
        raise ValueError(
            f"The mask of {subject} cannot be decoded ({type(error).__name__}: {error}); it must be an image of one channel, "
            "or rows of integers of equal length. Mend the data set or leave the row out."
        ) from error


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"bytes", "path"}


def _integers(values: Sequence | None, subject: str) -> np.ndarray:
    """A list of integers, (length,) int64."""
    values = [] if values is None else list(values)
    wrong = [value for value in values if not isinstance(value, int | np.integer)]
    if wrong:
        raise ValueError(f"The {subject} hold {wrong[0]!r}; labels must be integers. Number them in the order of their names.")
    return np.array(values, np.int64)
