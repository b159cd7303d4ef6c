"""COCO 2017 val with its panoptic annotations: each segment, thing or stuff, is a region of its own.

A segment's id is written as a colour, R + 256 G + 65536 B (cocodataset.org, format of panoptic results). Unlabelled pixels
(id 0) become label 0, and so do crowds (`iscrowd`), which hold several objects: COCO's own evaluation scores neither.
The other segments become 1, 2, 3 ... in the order in which the JSON lists them. Not checked against the published files.
"""

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evaluation.layouts.annotated_images import AnnotatedImage, Layout, read_colour_codes
from evaluation.layouts.coco_json import CocoIndex, Entry, check_categories, check_keys, check_unique, read_coco_json

VOID = 0


class PanopticImage(NamedTuple):
    """An image as the JSON lists it.

    Attributes:
        subject: How errors speak of it.
        image: Its file.
        mask: The file of its segments' ids as colours.
        segments: Its segments, with `id` and `category_id`, in the JSON's order.
    """

    subject: str
    image: Path
    mask: Path
    segments: list[Entry]


def list_panoptic_images(root: Path, images: str) -> tuple[CocoIndex, list[PanopticImage]]:
    """What annotations/panoptic_IMAGES.json lists, in order of the images' ids.

    Args:
        root: The data set's folder.
        images: Name of the folder of images below it, such as "val2017".

    Raises:
        FileNotFoundError: If the JSON is missing.
        ValueError: If ids are duplicated or dangling, or an image does not have exactly one annotation.
    """
    path = root / "annotations" / f"panoptic_{images}.json"
    index = read_coco_json(path, image_keys=(), annotation_keys=("file_name", "segments_info"))
    check_unique(path, (annotation["image_id"] for annotation in index.annotations), "image_id of annotations")
    annotations = {annotation["image_id"]: annotation for annotation in index.annotations}
    bare = [image_id for image_id in index.images if image_id not in annotations]
    if bare:
        raise ValueError(
            f"{path} has no annotation for {len(bare)} of its images, the first has id={bare[0]}; panoptic annotations cover "
            "each image. Use the published file."
        )
    listed = []
    for image_id, image in index.images.items():
        segments = annotations[image_id]["segments_info"]
        subject = f"{images}/{image['file_name']}"
        check_keys(path, segments, f"segments_info of {subject}", ("id", "category_id"))
        check_categories(index, segments, subject)
        check_unique(path, (segment["id"] for segment in segments), f"segments_info of {subject}")
        mask = path.with_suffix("") / annotations[image_id]["file_name"]
        listed.append(PanopticImage(subject, root / images / image["file_name"], mask, segments))
    return index, listed


def read_coco_panoptic(root: Path) -> list[AnnotatedImage]:
    """The images of val2017 in order of their ids.

    Raises:
        FileNotFoundError: If the JSON is missing.
        ValueError: If ids are duplicated or dangling, or an image does not have exactly one annotation.
    """
    return [
        AnnotatedImage(subject, image, partial(_read_labels, mask, _labels_of_segments(segments), subject), mask)
        for subject, image, mask, segments in list_panoptic_images(root, "val2017")[1]
    ]


def _labels_of_segments(segments: list[dict]) -> dict[int, int]:
    """Segment id -> label."""
    counted = [segment["id"] for segment in segments if not segment.get("iscrowd", 0)]
    labels = dict.fromkeys((segment["id"] for segment in segments), VOID)
    return labels | {segment_id: label for label, segment_id in enumerate(counted, start=1)}


def _read_labels(path: Path, labels: dict[int, int], subject: str) -> np.ndarray:
    codes = read_segment_ids(path, labels.keys(), subject)
    drawn_ids, places = np.unique(codes, return_inverse=True)
    label_of_place = np.array([labels.get(int(segment_id), VOID) for segment_id in drawn_ids], np.int32)
    return label_of_place[places].reshape(codes.shape)  # (height, width)


def read_segment_ids(path: Path, listed_ids: Collection[int], subject: str) -> np.ndarray:
    """The id of each pixel's segment, (height, width) int32; `VOID` where there is none.

    Args:
        path: The PNG file.
        listed_ids: The ids that the JSON gives the image.
        subject: How errors speak of the image.

    Raises:
        ValueError: If it is no RGB image, or an id is not in both PNG and JSON.
    """
    codes = read_colour_codes(path, subject)
    drawn, listed = set(np.unique(codes).tolist()) - {VOID}, set(listed_ids)
    if drawn != listed:
        only_drawn, only_listed = sorted(drawn - listed), sorted(listed - drawn)
        raise ValueError(
            f"The segments of {subject} do not fit together: its PNG alone has the ids {only_drawn[:3] or 'none'}, the JSON "
            f"alone {only_listed[:3] or 'none'}; each id must be in both. Use PNG files and JSON of the same release."
        )
    return codes


COCO_PANOPTIC = Layout(
    name="COCO panoptic",
    tree=(
        "ROOT/annotations/panoptic_val2017.json\n"
        "ROOT/annotations/panoptic_val2017/000000000139.png ...  (panoptic_val2017.zip, unpacked)\n"
        "ROOT/val2017/000000000139.jpg ..."
    ),
    read=read_coco_panoptic,
)
