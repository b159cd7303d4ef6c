"""COCO-style JSON with outlines: COCO 2017 val instances, and the parts of PartImageNet's two releases.

An outline is a list of polygons, which `pycocotools` (extra "eval") fills, or a run-length code (RLE), compressed or not.
Where outlines overlap, larger ones are painted first, so that small parts lie on top; what none covers is label 0. Crowds
(`iscrowd`) become `CROWD`, to be left out of scores, and lie below all else.

Folders and category names of PartImageNet are those that public readers of it use; nothing here was checked against the
published files.
"""

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools import mask as run_lengths

from evaluation.layouts.annotated_images import AnnotatedImage, Layout
from evaluation.layouts.coco_json import CocoIndex, Entry, check_categories, check_unique, read_coco_json

CROWD = 2**16 - 1
BACKGROUND = 0


class OutlinedImage(NamedTuple):
    """An image as the JSON lists it.

    Attributes:
        subject: How errors speak of it.
        image: Its file.
        height: Of the image, in pixels, as the JSON has it.
        width: The same.
        annotations: Those of the image, in order of their ids, with `category_id` and `segmentation`.
    """

    subject: str
    image: Path
    height: int
    width: int
    annotations: list[Entry]


def list_outlined_images(
    root: Path, annotations: str, images: str, by_class: bool = False
) -> tuple[CocoIndex, list[OutlinedImage]]:
    """What a JSON file with outlines lists, in order of the images' ids, also images without any outline.

    Args:
        root: The data set's folder.
        annotations: The JSON file below it.
        images: The folder of images below it.
        by_class: Whether images lie in a subfolder a class, named by what their file name has before its first "_".

    Raises:
        FileNotFoundError: If the JSON is missing.
        ValueError: If ids are duplicated or dangling.
    """
    path = root / annotations
    index = read_coco_json(path, ("height", "width"), ("id", "category_id", "segmentation"))
    check_unique(path, (annotation["id"] for annotation in index.annotations), "annotations")
    check_categories(index, index.annotations, "an annotation")
    outlines = defaultdict(list)
    for annotation in sorted(index.annotations, key=lambda annotation: annotation["id"]):
        outlines[annotation["image_id"]].append(annotation)
    listed = []
    for image_id, image in index.images.items():
        name = image["file_name"]
        place = f"{name.split('_')[0]}/{name}" if by_class and "/" not in name else name
        size = image["height"], image["width"]
        listed.append(OutlinedImage(f"{images}/{place}", root / images / place, *size, outlines[image_id]))
    return index, listed


def read_coco_outlines(
    root: Path,
    annotations: str,
    images: str,
    region: Literal["instance", "category"],
    by_class: bool = False,
) -> list[AnnotatedImage]:
    """The images of `list_outlined_images` with label maps.

    Args:
        root: The data set's folder.
        annotations: The JSON file below it.
        images: The folder of images below it.
        region: What one region is. "instance": an annotation, labelled 1, 2, 3 ... in order of the annotations' ids.
            "category": all annotations of a category, labelled 1 + the category's place in order of the categories' ids.
        by_class: Whether images lie in a subfolder a class, named by what their file name has before its first "_".

    Raises:
        FileNotFoundError: If the JSON is missing.
        ValueError: If ids are duplicated or dangling.
    """
    index, listed = list_outlined_images(root, annotations, images, by_class)
    label_of_category = {category: label for label, category in enumerate(index.categories, start=1)}
    read = []
    for subject, image, height, width, entries in listed:
        shapes = []
        for number, annotation in enumerate(entries, start=1):
            label = number if region == "instance" else label_of_category[annotation["category_id"]]
            shapes.append((CROWD if annotation.get("iscrowd", 0) else label, annotation["segmentation"]))
        read.append(AnnotatedImage(subject, image, partial(_paint, shapes, height, width, subject)))
    return read


def _paint(shapes: list[tuple[int, Any]], height: int, width: int, subject: str) -> np.ndarray:
    """The label map of outlines, crowds first, then from the largest to the smallest."""
    decoded = [(label, fill_outline(outline, height, width, subject)) for label, outline in shapes]
    decoded.sort(key=lambda shape: (shape[0] != CROWD, -int(shape[1].sum())))
    label_map = np.full((height, width), BACKGROUND, np.int32)
    for label, filled in decoded:
        label_map[filled] = label
    return label_map


def fill_outline(outline: Any, height: int, width: int, subject: str) -> np.ndarray:
    """The pixels of one outline, (height, width) bool.

    Args:
        outline: Polygons, or a run-length code, as `segmentation` has them.
        height: Of the image, in pixels.
        width: The same.
        subject: How errors speak of the image.

    Raises:
        ValueError: If it is malformed, or a code of another size.
    """
    try:
        if isinstance(outline, list):
            outline = run_lengths.merge(run_lengths.frPyObjects(_checked_polygons(outline), height, width))
        if list(outline["size"]) != [height, width]:
            raise ValueError(f"the code's size is {outline['size']}")
        counts = outline["counts"]
        runs = np.asarray(counts if isinstance(counts, list) else _decompressed(counts), np.int64)
        # Not left to pycocotools: its pixels beyond a code's end are whatever was in memory.
        if runs.min(initial=0) < 0 or runs.sum() != height * width:
            raise ValueError(f"its runs cover {runs.sum()} pixels")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"An outline of {subject} cannot be read ({error}); it must be polygons of at least three points, or a run-length "
            f"code of {height} x {width} (height x width) pixels. Use the published annotation file, or mend the outline."
        ) from error
    return np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(width, height).T  # runs go down the columns


def _checked_polygons(polygons: list) -> list[list[float]]:
    """The polygons; of four numbers `pycocotools` would make a box."""
    if not polygons:
        raise ValueError("it has no polygon")
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(np.asarray(polygon, np.float64)).all():
            raise ValueError(f"a polygon of {len(polygon)} numbers is no list of x, y of three or more points")
    return polygons


def _decompressed(code: str | bytes) -> list[int]:
    """The runs of a compressed code.

    A character holds five bits of a number, lowest first, above 48, and a sixth that says whether more follow; numbers are
    signed. From the fourth on, they are differences to the last run but one.
    """
    runs: list[int] = []
    number, shift = 0, 0
    for character in code.encode() if isinstance(code, str) else code:
        bits = character - 48
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (bits & 16) >> 4 << shift  # the sign
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number, shift = 0, 0
    return runs


COCO_INSTANCES = Layout(
    name="COCO instances",
    tree="ROOT/annotations/instances_val2017.json\nROOT/val2017/000000000139.jpg ...",
    read=partial(read_coco_outlines, annotations="annotations/instances_val2017.json", images="val2017", region="instance"),
)
PARTIMAGENET = Layout(
    name="PartImageNet (Seg)",
    tree=(
        "ROOT/PartImageNet/annotations/test/test.json  (PartImageNet_Seg.zip, unpacked)\n"
        "ROOT/PartImageNet/images/test/n01440764_10029.JPEG ..."
    ),
    read=partial(read_coco_outlines, annotations="annotations/test/test.json", images="images/test", region="category"),
    folder="PartImageNet",
)
PARTIMAGENET_OOD = Layout(
    name="PartImageNet (OOD)",
    tree="ROOT/PartImageNet/test.json\nROOT/PartImageNet/test/n01440764/n01440764_10029.JPEG ...",
    read=partial(read_coco_outlines, annotations="test.json", images="test", region="category", by_class=True),
    folder="PartImageNet",
)
