"""Segments of an image, each a mask with a label, and what each task of segmentation makes of them.

S segments
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from evaluation.metrics.contingency import check_label_map

Task = Literal["semantic", "instance", "panoptic"]
TASKS: tuple[str, ...] = get_args(Task)
VOID = -1
"""In place of a label: pixels that do not count."""


class BrokenImageError(ValueError):
    """The image cannot be decoded. What is wrong with an annotation is a plain ValueError."""


class Segments(NamedTuple):
    """The annotation of one image.

    Attributes:
        masks: (S, height, width) bool; they may overlap.
        labels: (S,) int64.
        crowd: (S,) bool, segments that hold several objects.
        void: (height, width) bool, pixels that do not count; those of segments do.
    """

    masks: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    void: np.ndarray


class LabelSpace(NamedTuple):
    """What the labels 0, 1, 2 ... mean.

    Attributes:
        names: Of the labels.
        things: Labels whose objects are counted one by one.
    """

    names: tuple[str, ...]
    things: frozenset[int]

    def for_task(self, task: Task) -> "LabelSpace":
        """The labels that a task has: all (semantic, panoptic), or the things alone, numbered anew from 0 (instance)."""
        if task == "semantic":
            return LabelSpace(self.names, frozenset())
        if task == "panoptic":
            return self
        names = tuple(self.names[label] for label in sorted(self.things))
        return LabelSpace(names, frozenset(range(len(names))))


@dataclass(frozen=True)
class StoredLabels:
    """How the labels that a data set stores become labels from 0.

    Attributes:
        num_labels: How many there are.
        ignore_label: Stored label of pixels that do not count; None if there is none.
        reduce_labels: Whether the stored 0 does not count either, and the others are one too high (`do_reduce_labels` of
            transformers).
    """

    num_labels: int
    ignore_label: int | None
    reduce_labels: bool

    def read(self, stored: np.ndarray, subject: str) -> np.ndarray:
        """The labels, int64, `VOID` where they do not count; shape as `stored`.

        Raises:
            ValueError: If one is out of range.
        """
        stored = stored.astype(np.int64)
        lowest = int(self.reduce_labels)
        is_void = (stored == self.ignore_label) if self.ignore_label is not None else np.zeros(stored.shape, bool)
        is_void |= self.reduce_labels & (stored == 0)
        outside = np.unique(stored[~is_void & ((stored < lowest) | (stored >= lowest + self.num_labels))])
        if outside.size:
            ignored = [0] * self.reduce_labels + [self.ignore_label] * (self.ignore_label is not None)
            besides = f", besides {' and '.join(map(str, ignored))} for what is ignored" if ignored else ""
            raise ValueError(
                f"The annotation of {subject} holds the labels {', '.join(map(str, outside[:5].tolist()))}; they must be "
                f"{lowest} to {lowest + self.num_labels - 1}{besides}. Give the number of labels, or all their names, and "
                "ignore_label; check reduce_labels and the columns."
            )
        return np.where(is_void, VOID, stored - lowest)


def cut_out(ids: np.ndarray, labels: Mapping[int, int], crowds: Collection[int] = ()) -> Segments:
    """The segments of a map.

    Args:
        ids: (height, width) integers, the segment of each pixel.
        labels: Label of each id that occurs, or `VOID`.
        crowds: The ids of segments that hold several objects.
    """
    counted = [number for number in np.unique(ids).tolist() if labels[number] != VOID]
    masks = ids == np.array(counted, ids.dtype)[:, None, None]  # (S, height, width)
    return Segments(
        masks,
        np.array([labels[number] for number in counted], np.int64),
        np.array([number in crowds for number in counted], bool),
        ~masks.any(axis=0),
    )


def cut_out_labels(label_map: np.ndarray, stored: StoredLabels, subject: str) -> Segments:
    """The segments of a map of stored labels, (height, width), one a label.

    Raises:
        ValueError: If it is no label map, or holds a label that is out of range.
    """
    check_label_map(label_map, f"mask of {subject}", stored.ignore_label)
    present = np.unique(label_map)
    return cut_out(label_map, dict(zip(present.tolist(), stored.read(present, subject).tolist(), strict=True)))


def stack_masks(masks: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """(S, height, width) bool, also of no masks."""
    return np.stack(masks) if masks else np.zeros((0, height, width), bool)


def segments_for_task(segments: Segments, task: Task, things: Collection[int]) -> Segments:
    """The segments that a task has; those without pixels are left out.

    - semantic: one segment a label. Where segments overlap, the smaller one lies on top, and crowds lie below all else.
    - instance: the things alone, numbered anew as `LabelSpace.for_task` does.
    - panoptic: all; those of a label that is no thing are one segment.

    Args:
        segments: All there are.
        task: The task.
        things: Labels whose objects are counted one by one.
    """
    filled = np.asarray(segments.masks.any(axis=(1, 2)))  # (S,)
    if task == "semantic":
        return _by_label(segments, filled)
    is_thing = np.isin(segments.labels, sorted(things))  # (S,)
    if task == "instance":
        kept = filled & is_thing
        return Segments(
            segments.masks[kept], np.searchsorted(sorted(things), segments.labels[kept]), segments.crowd[kept], segments.void
        )
    counted = filled & (is_thing | segments.crowd)
    stuff = np.unique(segments.labels[filled & ~counted]).tolist()
    merged = [segments.masks[~counted & (segments.labels == label)].any(axis=0) for label in stuff]
    return Segments(
        np.concatenate([segments.masks[counted], stack_masks(merged, *segments.void.shape)]),
        np.concatenate([segments.labels[counted], np.array(stuff, np.int64)]),
        np.concatenate([segments.crowd[counted], np.zeros(len(stuff), bool)]),
        segments.void,
    )


def _by_label(segments: Segments, filled: np.ndarray) -> Segments:
    """One segment a label, without overlaps; `filled`, (S,) bool, tells which segments have pixels."""
    covered = segments.masks.any(axis=0)  # (height, width)
    is_by_label = len(set(segments.labels.tolist())) == len(segments.labels)
    if is_by_label and np.count_nonzero(segments.masks) == np.count_nonzero(covered):
        crowd = np.zeros(np.count_nonzero(filled), bool)
        return Segments(segments.masks[filled], segments.labels[filled], crowd, np.logical_not(covered))
    label_map = _painted(segments)
    return cut_out(label_map, {label: label for label in np.unique(label_map).tolist()})


def _painted(segments: Segments) -> np.ndarray:
    """The label of each pixel, (height, width) int64; `VOID` where there is none."""
    label_map = np.full(segments.void.shape, VOID, np.int64)
    areas = segments.masks.sum(axis=(1, 2))
    for place in np.lexsort((-areas, ~segments.crowd)):  # crowds first, then from the largest
        label_map[segments.masks[place]] = segments.labels[place]
    return label_map
