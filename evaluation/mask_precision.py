"""COCO's mask AP over all images of all processes, by pycocotools.

torchmetrics' MeanAveragePrecision leaves images without objects out, so that what a model finds there is not punished.

S segments; pixels are height, width
"""

import io
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import numpy as np
from accelerate.utils import gather_object
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the first of COCOeval.stats


class ScoredImage(NamedTuple):
    """One image as it is compared: COCO's annotations without the image's number.

    Attributes:
        true: Its objects.
        found: What was found, with scores.
    """

    true: list[dict[str, Any]]
    found: list[dict[str, Any]]


class MaskPrecision:
    """Collects true and found masks of images."""

    def __init__(self) -> None:
        self.images: list[ScoredImage] = []

    def add(
        self,
        masks: np.ndarray,
        labels: np.ndarray,
        scores: np.ndarray,
        true_masks: np.ndarray,
        true_labels: np.ndarray,
        crowd: np.ndarray,
    ) -> None:
        """One image more.

        Args:
            masks: Found ones, (S, height, width) bool.
            labels: Theirs, (S,).
            scores: Theirs, (S,).
            true_masks: (S, height, width) bool.
            true_labels: (S,).
            crowd: (S,) bool, true masks of many objects: not asked for, and what is found in them is not punished.
        """
        found = _annotations(masks, labels, np.zeros(len(masks), bool))
        for annotation, score in zip(found, scores.tolist(), strict=True):
            annotation["score"] = score
        self.images.append(ScoredImage(_annotations(true_masks, true_labels, crowd), found))

    def compute(self) -> dict[str, float]:
        """`NAMES` -> AP in percent; sizes that no true object has are left out. All ranks must ask, and get the same.

        Raises:
            ValueError: If no image has an object.
        """
        images = gather_object(self.images)
        if not any(not annotation["iscrowd"] for image in images for annotation in image.true):
            raise ValueError("No image has an object, so there is nothing to score; give another split, or check the columns.")
        labels = {annotation["category_id"] for image in images for annotation in image.true}
        with redirect_stdout(io.StringIO()):
            evaluation = COCOeval(
                _coco([image.true for image in images], labels), _coco([image.found for image in images], labels), "segm"
            )
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        stats = dict(zip(NAMES, evaluation.stats.tolist(), strict=False))
        return {name: 100 * value for name, value in stats.items() if value >= 0}


def _annotations(masks: np.ndarray, labels: np.ndarray, crowd: np.ndarray) -> list[dict[str, Any]]:
    codes = [run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    return [
        {"segmentation": code, "area": float(run_lengths.area(code)), "category_id": int(label), "iscrowd": int(is_crowd)}
        for code, label, is_crowd in zip(codes, labels, crowd, strict=True)
    ]


def _coco(images: list[list[dict[str, Any]]], labels: set[int]) -> COCO:
    """As pycocotools would have read it from a file."""
    coco = COCO()
    placed = [{**annotation, "image_id": number} for number, image in enumerate(images) for annotation in image]
    coco.dataset = {
        "images": [{"id": number, **_size(image)} for number, image in enumerate(images)],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(placed, 1)],
        "categories": [{"id": label} for label in sorted(labels)],
    }
    coco.createIndex()
    return coco


def _size(image: list[dict[str, Any]]) -> dict[str, int]:
    """Height and width of an image, which nobody needs of one without masks."""
    return dict(zip(("height", "width"), image[0]["segmentation"]["size"], strict=True)) if image else {}
