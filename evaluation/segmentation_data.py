"""Images with labelled segments, by number: what semantic, instance and panoptic segmentation are trained on and scored by.

    data = open_segmentation_data("coco_panoptic_200", "train", "panoptic", reduce_labels=True)
    image, masks, labels, crowd, void = data[0]

S segments
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, get_args, overload

import numpy as np
import PIL.Image

from evaluation.label_spaces import LabelOptions, find_label_file, find_label_space
from evaluation.layouts.segmented_images import SEGMENTATION_LAYOUTS, SegmentationLayout
from evaluation.segmentation_tables import AnnotationColumns, TableImages, choose_columns, label_feature, open_table
from evaluation.segments import BrokenImageError, LabelSpace, Segments, Task, segments_for_task

__all__ = ["BrokenImageError", "SegmentationData", "SegmentationSample", "Task", "open_segmentation_data"]

SPLIT_NAMES = {"val": "validation", "training": "train"}


class SegmentationSample(NamedTuple):
    """One image and its segments.

    Attributes:
        image: RGB.
        masks: (S, height, width) bool, of the image's size. Those of instances may overlap; the others do not, but for crowds.
        labels: (S,) int64, from 0.
        crowd: (S,) bool, regions of many objects (COCO's `iscrowd`): not trained on, and neither asked for nor punished in AP
            and PQ.
        void: (height, width) bool, pixels that do not count.
    """

    image: PIL.Image.Image
    masks: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    void: np.ndarray


class ImageSource(Protocol):
    """Images with all their segments, whatever the task."""

    def __len__(self) -> int: ...
    def subject(self, index: int) -> str: ...
    def read(self, index: int) -> tuple[PIL.Image.Image, Segments]: ...


class SegmentationData(Sequence[SegmentationSample]):
    """The segmented images of one split, decoded one by one when they are asked for; it can be pickled for loader workers.

    Args:
        name: What errors call it.
        task: The task.
        labels: All labels of the source.
        source: The images.

    Attributes:
        name: What errors call it.
        task: The task.
        id2label: The names of the labels that come out.
        thing_labels: Labels whose objects are counted one by one: all of instance, none of semantic segmentation.
    """

    def __init__(self, name: str, task: Task, labels: LabelSpace, source: ImageSource):
        self.name = name
        self.task = task
        task_labels = labels.for_task(task)
        self.id2label = dict(enumerate(task_labels.names))
        self.thing_labels = task_labels.things
        self._things = labels.things
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def subject(self, index: int) -> str:
        """How errors speak of an image: its file, or its row."""
        return self._source.subject(range(len(self))[index])

    @overload
    def __getitem__(self, index: int) -> SegmentationSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[SegmentationSample]: ...
    def __getitem__(self, index: int | slice) -> SegmentationSample | list[SegmentationSample]:
        """One sample, or a list of them.

        Raises:
            BrokenImageError: If the image cannot be decoded; a kind of ValueError.
            IndexError: If there are not so many.
            ValueError: If the annotation cannot be used (see `open_segmentation_data`).
        """
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        image, segments = self._source.read(place)
        height, width = segments.void.shape
        if image.size != (width, height):
            raise ValueError(
                f"The image of {self.subject(place)} is {image.width} x {image.height} and its mask {width} x {height} "
                "(width x height); both must be equally large. Resize the mask by nearest neighbour, and check that no "
                "rotation (EXIF) was applied to one of them only."
            )
        return SegmentationSample(image, *segments_for_task(segments, self.task, self._things))


def open_segmentation_data(
    dataset: str | Path,
    split: str,
    task: Task,
    *,
    config: str | None = None,
    revision: str | None = None,
    layout: str | None = None,
    image_column: str = "image",
    mask_column: str | None = None,
    segment_labels_column: str | None = None,
    objects_column: str | None = None,
    ignore_label: int | None = None,
    reduce_labels: bool = False,
    label_names: Sequence[str] | None = None,
    num_labels: int | None = None,
    thing_labels: Collection[int] | None = None,
) -> SegmentationData:
    """Open the segmented images of one split.

    What is read of a data set that `datasets` opens is told by the columns that are named; where none is, by the first of these
    that it has:

    - `mask`, a map of labels (semantic);
    - `segment_mask`, a map of segments, with `segment_labels`, a list of the label of each segment from segment 0, which is
      void (all tasks);
    - `objects`, a dict of lists or a list of dicts with `segmentation` (polygons, a run-length code, or a mask of the image's
      size), `category` or `category_id` and, perhaps, `iscrowd` (instance, semantic).

    Maps are images of one channel or rows of integers, as large as the image, which is decoded upright (EXIF).

    With `layout`, official files below the folder `dataset` are read instead: "coco_instances" (instance, semantic),
    "coco_panoptic" (all) or "ade20k" (semantic), splits "train" and "validation". Labels are the categories in order of their
    ids, and their names and things are known.

    What the tasks make of it:

    - semantic: one segment a label. Where objects overlap, the smaller one lies on top; pixels without any are void. Crowds are
      part of their label, as in the maps that Mask2Former trains on (prepare_coco_semantic_annos_from_panoptic_annos.py).
    - instance: the segments of thing labels alone, numbered anew from 0. Masks overlap where objects do. Void is what a map
      leaves unlabelled; COCO's own objects have no void pixels.
    - panoptic: things, and for each stuff label one segment. Unlabelled pixels are void.

    Segments without pixels are left out. An image may have no segment.

    Args:
        dataset: Hub name, local folder or file, as in `data_sets.open_rows`; with a layout, the folder of the official files.
        split: Name of the split; a single file has none.
        task: "semantic", "instance" or "panoptic".
        config: Configuration of a data set that has several.
        revision: Branch, tag or commit of a data set on the Hub; its newest state when None.
        layout: Official files instead of what `datasets` opens.
        image_column: Column of images.
        mask_column: Column of maps.
        segment_labels_column: Column of the labels of segments; the map then numbers segments.
        objects_column: Column of objects.
        ignore_label: Stored label that does not count. When None, `ignore_index` of a label_names.json, else 255
            unless that is one of the labels.
        reduce_labels: Whether the stored 0 does not count either, and the others are one too high, as in ADE20K (150 labels
            stored as 1 to 150): they come out one lower.
        label_names: Names of the labels as they come out, from 0. When None: those of a ClassLabel feature, or of a
            label_names.json in the local folder or beside the file (`label_names` from the stored 0, so without the first if
            labels are reduced), or "label 0" and so on.
        num_labels: How many labels come out; needed if nothing names them. They are not counted in the masks, for one split may
            lack some that another has.
        thing_labels: Labels, as they come out of semantic and panoptic data, whose objects are counted one by one. When None:
            `isthing` of label_names.json; without it, all are things for "instance", and "panoptic" is refused.

    Raises:
        FileNotFoundError: If there is no such data set, or a file of the layout is missing.
        ValueError: If the options, the columns or the annotation files contradict each other or the task. When a sample is
            read: if a label is out of range, a map has another size than its image or a segment without a label, an outline is
            malformed, or something cannot be decoded (`BrokenImageError` for the image).
    """
    if task not in get_args(Task):
        raise ValueError(f"task={task} must be one of {', '.join(get_args(Task))}.")
    columns = AnnotationColumns(mask_column, segment_labels_column, objects_column)
    options = LabelOptions(ignore_label, reduce_labels, label_names, num_labels, thing_labels)
    dataset = str(dataset)
    if layout is not None:
        if (config, revision, columns, options) != (None, None, AnnotationColumns(), LabelOptions()):
            raise ValueError(
                f"layout={layout} was given with options for what `datasets` opens; official files tell their labels. "
                "Leave layout or the other options out."
            )
        labels, files = _find_layout(layout, split, task).open(dataset)
        return SegmentationData(f"{layout} {split}", task, labels, files)
    name = f"{Path(dataset).name if Path(dataset).expanduser().exists() else dataset} {split}"
    table = open_table(dataset, config, split, revision)
    columns = choose_columns(table, name, task, columns)
    labels, stored = find_label_space(name, task, label_feature(table, columns), find_label_file(dataset), options)
    return SegmentationData(name, task, labels, TableImages(table, name, image_column, columns, stored))


def _find_layout(layout: str, split: str, task: Task) -> SegmentationLayout:
    """The layout of a split.

    Raises:
        ValueError: If there is none, or it does not serve the task.
    """
    if layout not in SEGMENTATION_LAYOUTS:
        raise ValueError(f"layout={layout} is not known; it must be one of: {', '.join(SEGMENTATION_LAYOUTS)}.")
    splits = SEGMENTATION_LAYOUTS[layout]
    found = splits.get(SPLIT_NAMES.get(split, split))
    if found is None:
        raise ValueError(f"split={split} is not in {layout}; it has: {', '.join(splits)}. Name one of them.")
    if task not in found.tasks:
        raise ValueError(f"layout={layout} has no annotation for task={task}; it serves {', '.join(found.tasks)}.")
    return found
