"""Scores of semantic segmentation over a whole data set: mIoU, pixel accuracy, IoU of each label.

K classes; pixels are height, width
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from evaluation.segmentation_heads import IGNORED


class Summary(NamedTuple):
    """Scores in percent.

    Attributes:
        miou: Mean of `iou` over the labels that have one.
        pixel_accuracy: Pixels whose label is found, of all that count.
        iou: Label -> IoU over all images together; None where neither a true nor a predicted pixel has the label.
    """

    miou: float
    pixel_accuracy: float
    iou: dict[int, float | None]


class SegmentationScores:
    """Counts the pixels of all images in one confusion matrix, as PASCAL VOC and ADE20K are scored.

        IoU(k) = true and predicted k / (true k + predicted k - true and predicted k),    mIoU = mean of IoU(k) over k

    with pixels summed over all images before they are divided, those of class `IGNORED` left out, and classes left out of the
    mean that no true and no predicted pixel has. The counting and dividing is torchmetrics'.

    Args:
        num_classes: K, at least 2.
        device: Of the pixels; the CPU when None.
    """

    def __init__(self, num_classes: int, device: torch.device | None = None):
        options: dict[str, Any] = {"num_classes": num_classes, "ignore_index": IGNORED}
        self.metrics = MetricCollection(
            {
                "miou": MulticlassJaccardIndex(average="macro", **options),
                "iou": MulticlassJaccardIndex(average="none", **options),
                "confusion": MulticlassConfusionMatrix(**options),
                "pixel_accuracy": MulticlassAccuracy(average="micro", **options),
            },
            compute_groups=[["miou", "iou", "confusion"], ["pixel_accuracy"]],  # the first three share the confusion matrix
        ).to(device or "cpu")

    def add(self, predicted: torch.Tensor, true: torch.Tensor) -> None:
        """Count the pixels of an image: classes from 0 to K - 1, of the true also `IGNORED`, (height, width)."""
        self.metrics.update(predicted[None], true[None])

    def summary(self, labels: Sequence[int]) -> Summary:
        """The scores of all images so far, of all processes together; each must ask for them.

        Args:
            labels: Of each class, K of them.

        Raises:
            ValueError: If no pixel counts.
        """
        computed = self.metrics.compute()
        confusion = computed["confusion"]  # (K, K): rows are true, columns predicted
        if not confusion.any():
            raise ValueError(
                "All pixels are ignored, so there is nothing to score; give another --ignore_label, or another split."
            )
        present = (confusion.sum(dim=0) + confusion.sum(dim=1) > 0).tolist()
        iou = zip(labels, computed["iou"].tolist(), present, strict=True)
        return Summary(
            100 * float(computed["miou"]),
            100 * float(computed["pixel_accuracy"]),
            {label: 100 * value if there else None for label, value, there in iou},
        )


def over_seeds(summaries: Sequence[Summary]) -> tuple[dict[str, float], dict[int, float | None]]:
    """Means over the seeds, and for several seeds the sample standard deviations.

    Returns:
        `miou`, `pixel_accuracy` and, if there are two seeds or more, `miou_std` and `pixel_accuracy_std`; and label -> mean
        IoU over those seeds where it has one.
    """
    scores: dict[str, float] = {}
    for name in ("miou", "pixel_accuracy"):
        values = torch.tensor([getattr(summary, name) for summary in summaries], dtype=torch.float64)
        scores[name] = float(values.mean())
        if len(values) > 1:
            scores[f"{name}_std"] = float(values.std())
    iou: dict[int, float | None] = {}
    for label in summaries[0].iou:
        told = [value for summary in summaries if (value := summary.iou[label]) is not None]
        iou[label] = sum(told) / len(told) if told else None
    return scores, iou
