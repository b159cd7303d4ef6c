"""COCO 2017 and ADE20K, train and val, as segments with labels: what segmentation is trained on and scored by.

A layout lists its images with what their annotation needs, and nothing is decoded before it is asked for. Labels are the
categories in order of their ids. Not checked against the published files.

S segments
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from evaluation.layouts.ade20k import read_ade20k
from evaluation.layouts.annotated_images import FolderTree, image_like
from evaluation.layouts.coco_instances import fill_outline, list_outlined_images
from evaluation.layouts.coco_panoptic import VOID as VOID_ID
from evaluation.layouts.coco_panoptic import list_panoptic_images, read_segment_ids
from evaluation.packed_list import PackedList
from evaluation.segments import (
    VOID,
    BrokenImageError,
    LabelSpace,
    Segments,
    StoredLabels,
    Task,
    cut_out,
    cut_out_labels,
    stack_masks,
)

ADE20K_LABELS = 150


class SegmentedImage(NamedTuple):
    """An image of a layout, nothing decoded.

    Attributes:
        subject: How errors speak of it: its file name below the data set's folder.
        image: Its file.
        mask: The file of its mask; None where the masks are in the annotations.
        read_segments: Decodes them; raises ValueError that names `subject`, or what a broken file raises.
    """

    subject: str
    image: Path
    mask: Path | None
    read_segments: Callable[[], Segments]


class ListedImages:
    """The images of a layout, in a fixed order.

    Args:
        images: All of the split.
    """

    def __init__(self, images: Sequence[SegmentedImage]):
        self._images = PackedList(images)

    def __len__(self) -> int:
        return len(self._images)

    def subject(self, index: int) -> str:
        """How errors speak of an image."""
        return self._images[index].subject

    def read(self, index: int) -> tuple[PIL.Image.Image, Segments]:
        """An image, RGB, and its segments of the same size.

        Raises:
            BrokenImageError: If the image cannot be decoded.
            ValueError: If its annotation cannot be used.
        """
        subject, image_file, _, read_segments = self._images[index]
        try:
            segments = read_segments()
        except (OSError, SyntaxError) as error:  # the second is what Pillow raises for some broken PNG files
            raise ValueError(
                f"The mask of {subject} cannot be decoded ({error}); all masks must be readable. Unpack the archive again."
            ) from error
        try:
            return image_like(image_file, segments.void.shape), segments
        except Exception as error:  # decoders raise anything
            raise BrokenImageError(
                f"The image of {subject} cannot be decoded ({type(error).__name__}: {error}); images must be readable. Unpack "
                "the archive again."
            ) from error


@dataclass(frozen=True, kw_only=True)
class SegmentationLayout(FolderTree):
    """How a split of a data set lies on disk.

    Attributes:
        tasks: What its annotation is good for.
        read: Lists the images below the data set's folder and the meaning of their labels.
    """

    tasks: tuple[Task, ...]
    read: Callable[[Path], tuple[LabelSpace, list[SegmentedImage]]]

    def open(self, root: str | Path) -> tuple[LabelSpace, ListedImages]:
        """The images below `root`; nothing is decoded.

        Raises:
            FileNotFoundError: If a folder, an annotation file, an image or a mask is missing.
            ValueError: If the annotations contradict themselves, or there are no images.
        """
        with self.opened(root) as folder:
            labels, images = self.read(folder)
            self.check_files(folder, images)
        return labels, ListedImages(images)


def read_instances(root: Path, folder: str) -> tuple[LabelSpace, list[SegmentedImage]]:
    """COCO's objects; every label is a thing.

    Raises:
        FileNotFoundError: If the JSON is missing.
        ValueError: If ids are duplicated or dangling.
    """
    index, listed = list_outlined_images(root, f"annotations/instances_{folder}.json", folder)
    label_of_category = {category: label for label, category in enumerate(index.categories)}
    images = []
    for subject, image, height, width, annotations in listed:
        objects = [
            (label_of_category[entry["category_id"]], bool(entry.get("iscrowd", 0)), entry["segmentation"])
            for entry in annotations
        ]
        images.append(SegmentedImage(subject, image, None, partial(fill_objects, objects, height, width, subject)))
    names = tuple(category["name"] for category in index.categories.values())
    return LabelSpace(names, frozenset(range(len(names)))), images


def fill_objects(objects: list[tuple[int, bool, Any]], height: int, width: int, subject: str) -> Segments:
    """Segments from outlines; no pixel is void, for what no object covers is known to be none.

    Args:
        objects: Label, whether it is a crowd, and outline of each.
        height: Of the image, in pixels.
        width: The same.
        subject: How errors speak of the image.

    Raises:
        ValueError: If an outline is malformed.
    """
    masks = [fill_outline(outline, height, width, subject) for _, _, outline in objects]
    return Segments(
        stack_masks(masks, height, width),
        np.array([label for label, _, _ in objects], np.int64),
        np.array([is_crowd for _, is_crowd, _ in objects], bool),
        np.zeros((height, width), bool),
    )


def read_panoptic(root: Path, folder: str) -> tuple[LabelSpace, list[SegmentedImage]]:
    """COCO's things and stuff.

    Raises:
        FileNotFoundError: If the JSON is missing.
        ValueError: If ids are duplicated or dangling, a category does not say whether it is a thing, or an image does not have
            exactly one annotation.
    """
    index, listed = list_panoptic_images(root, folder)
    unclear = [category["name"] for category in index.categories.values() if category.get("isthing") not in (0, 1)]
    if unclear:
        raise ValueError(
            f"{index.path}: {len(unclear)} categories have no isthing, the first is {unclear[0]!r}; each must have isthing 0 "
            "or 1. Use the published annotation file."
        )
    label_of_category = {category: label for label, category in enumerate(index.categories)}
    images = []
    for subject, image, mask, entries in listed:
        segments = [(entry["id"], label_of_category[entry["category_id"]], bool(entry.get("iscrowd", 0))) for entry in entries]
        images.append(SegmentedImage(subject, image, mask, partial(_read_panoptic, mask, segments, subject)))
    things = frozenset(label for label, category in enumerate(index.categories.values()) if category["isthing"])
    return LabelSpace(tuple(category["name"] for category in index.categories.values()), things), images


def _read_panoptic(mask: Path, segments: list[tuple[int, int, bool]], subject: str) -> Segments:
    labels = {number: label for number, label, _ in segments}
    ids = read_segment_ids(mask, labels.keys(), subject)
    return cut_out(ids, labels | {VOID_ID: VOID}, {number for number, _, is_crowd in segments if is_crowd})


def read_ade20k_labels(root: Path, folder: str) -> tuple[LabelSpace, list[SegmentedImage]]:
    """ADE20K's 150 classes, 0 to 149 here; what is none of them is void.

    Names are those of `objectInfo150.txt`, in whose last column the archive has them; without it "label 0" and so on.

    Raises:
        FileNotFoundError: If a folder is missing, or an image or mask has no partner.
        ValueError: If the file of names has not 150 of them.
    """
    images = [
        SegmentedImage(image.subject, image.image, image.mask, partial(_read_ade20k, image.read_mask, image.subject))
        for image in read_ade20k(root, folder)
    ]
    return LabelSpace(_ade20k_names(root / "objectInfo150.txt"), frozenset()), images


def _ade20k_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(f"label {label}" for label in range(ADE20K_LABELS))
    lines: Sequence[str] = path.read_text(encoding="utf-8").splitlines()[1:]  # the first names the columns
    names = tuple(line.split("\t")[-1].strip() for line in lines if line.strip())
    if len(names) != ADE20K_LABELS:
        raise ValueError(f"{path} has {len(names)} names; it must have {ADE20K_LABELS}. Unpack the archive again.")
    return names


def _read_ade20k(read_mask: Callable[[], np.ndarray], subject: str) -> Segments:
    return cut_out_labels(read_mask(), StoredLabels(ADE20K_LABELS, None, reduce_labels=True), subject)


def _coco(kind: str, folder: str, masks: str, tasks: tuple[Task, ...], read: Callable) -> SegmentationLayout:
    return SegmentationLayout(
        name=f"COCO {kind}, {folder}",
        tree=f"ROOT/annotations/{kind}_{folder}.json\n{masks}ROOT/{folder}/000000000139.jpg ...",
        tasks=tasks,
        read=partial(read, folder=folder),
    )


def _ade20k(folder: str) -> SegmentationLayout:
    return SegmentationLayout(
        name=f"ADE20K, {folder}",
        tree=(
            f"ROOT/ADEChallengeData2016/images/{folder}/ADE_..._00000001.jpg ...\n"
            f"ROOT/ADEChallengeData2016/annotations/{folder}/ADE_..._00000001.png ...\n"
            "ROOT/ADEChallengeData2016/objectInfo150.txt  (names; optional)"
        ),
        folder="ADEChallengeData2016",
        tasks=("semantic",),
        read=partial(read_ade20k_labels, folder=folder),
    )


def _png_folder(folder: str) -> str:
    return f"ROOT/annotations/panoptic_{folder}/000000000139.png ...  (panoptic_{folder}.zip, unpacked)\n"


COCO_FOLDERS = {"train": "train2017", "validation": "val2017"}
SEGMENTATION_LAYOUTS = {
    "coco_instances": {
        split: _coco("instances", folder, "", ("instance", "semantic"), read_instances)
        for split, folder in COCO_FOLDERS.items()
    },
    "coco_panoptic": {
        split: _coco("panoptic", folder, _png_folder(folder), ("panoptic", "instance", "semantic"), read_panoptic)
        for split, folder in COCO_FOLDERS.items()
    },
    "ade20k": {"train": _ade20k("training"), "validation": _ade20k("validation")},
}
"""Name -> split -> layout."""
