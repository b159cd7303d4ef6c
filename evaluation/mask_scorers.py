"""Compare a model's labelled masks with true ones, image by image: one scorer a task.

S segments; pixels are height, width
"""

from collections.abc import Collection
from typing import Any, Protocol

import numpy as np
import torch
from torchmetrics.detection import PanopticQuality

from evaluation.mask_inference import instance_segments, panoptic_segments, semantic_map
from evaluation.mask_precision import MaskPrecision
from evaluation.segmentation_data import SegmentationData, SegmentationSample
from evaluation.segmentation_heads import IGNORED
from evaluation.segmentation_scores import SegmentationScores


class Scorer(Protocol):
    """Compares outputs with true segments, image by image."""

    def add(self, outputs: Any, sample: SegmentationSample) -> None: ...

    def scores(self) -> dict[str, float]: ...


class SemanticScorer:
    """mIoU and pixel accuracy.

    Args:
        num_labels: How many labels there are.
        device: Where the pixels are counted.
    """

    def __init__(self, num_labels: int, device: torch.device):
        # Two classes at least, as torchmetrics has it; one that never occurs is left out of the mean.
        self.num_classes = max(num_labels, 2)
        self.counts = SegmentationScores(self.num_classes, device)

    def add(self, outputs: Any, sample: SegmentationSample) -> None:
        (classes,), (masks,) = outputs.class_queries_logits, outputs.masks_queries_logits
        predicted = semantic_map(classes, masks, sample.void.shape)
        self.counts.add(predicted, torch.from_numpy(label_map(sample)).to(predicted.device))

    def scores(self) -> dict[str, float]:
        summary = self.counts.summary(range(self.num_classes))
        return {"miou": summary.miou, "pixel_accuracy": summary.pixel_accuracy}


class InstanceScorer:
    """COCO's mask AP."""

    def __init__(self) -> None:
        self.precision = MaskPrecision()

    def add(self, outputs: Any, sample: SegmentationSample) -> None:
        (classes,), (masks,) = outputs.class_queries_logits, outputs.masks_queries_logits
        found, labels, scores = (one.cpu().numpy() for one in instance_segments(classes, masks, sample.void.shape))
        self.precision.add(found, labels, scores, sample.masks, sample.labels, sample.crowd)

    def scores(self) -> dict[str, float]:
        return self.precision.compute()


class StrictPanopticQuality(PanopticQuality):
    """PQ, SQ and RQ as COCO's panopticapi has them, where pixels may be predicted to be nothing.

    torchmetrics forgives a true segment that is mostly predicted to be nothing; a label of its own for nothing, left out of
    the means, makes it count as missed.

    Args:
        things: Labels whose objects are counted one by one.
        stuff: The other labels.

    Attributes:
        nothing: The label of predicted pixels without one.
    """

    def __init__(self, things: Collection[int], stuff: Collection[int]):
        self.nothing = len(things) + len(stuff)
        super().__init__(set(things), {*stuff, self.nothing})

    def compute(self) -> torch.Tensor:
        """Means over the labels that some true or predicted segment has, (3,), from 0 to 1; nan if none has."""
        right, wrong, missed = (one[:-1].double() for one in (self.true_positives, self.false_positives, self.false_negatives))
        present = right + wrong + missed > 0
        right, wrong, missed, iou = right[present], wrong[present], missed[present], self.iou_sum[:-1][present]
        segmentation = iou / right.clamp(min=1)
        recognition = right / (right + wrong / 2 + missed / 2)
        return torch.stack([segmentation * recognition, segmentation, recognition]).mean(dim=1)


class PanopticScorer:
    """PQ, and mIoU of the same model read semantically.

    Args:
        data: Tells which labels are things.
        device: Where pixels are counted.
    """

    def __init__(self, data: SegmentationData, device: torch.device):
        self.stuff = set(data.id2label) - data.thing_labels
        self.quality = StrictPanopticQuality(data.thing_labels, self.stuff).to(device)
        self.semantic = SemanticScorer(len(data.id2label), device)

    def add(self, outputs: Any, sample: SegmentationSample) -> None:
        (classes,), (masks,) = outputs.class_queries_logits, outputs.masks_queries_logits
        segments, label_of = panoptic_segments(classes, masks, sample.void.shape, self.stuff)
        predicted = torch.stack([torch.full_like(segments, self.quality.nothing), segments], dim=-1)  # (height, width, 2)
        for number, label in label_of.items():
            predicted[..., 0][segments == number] = label
        true = torch.full_like(predicted, self.quality.nothing + 1)  # unknown to the metric, so void
        for number, (mask, label, crowd) in enumerate(zip(sample.masks, sample.labels, sample.crowd, strict=True)):
            if not crowd:
                true[torch.from_numpy(mask).to(true.device)] = true.new_tensor([int(label), number])
        self.quality.update(predicted[None], true[None])
        self.semantic.add(outputs, sample)

    def scores(self) -> dict[str, float]:
        quality = 100 * self.quality.compute()
        return {**dict(zip(("pq", "sq", "rq"), quality.tolist(), strict=True)), **self.semantic.scores()}


def label_map(sample: SegmentationSample) -> np.ndarray:
    """The label of each pixel, (height, width) int64; `IGNORED` for void ones, crowds and those of no segment."""
    labels = np.full(sample.void.shape, IGNORED, np.int64)
    for mask, label, crowd in zip(sample.masks, sample.labels, sample.crowd, strict=True):
        labels[mask] = IGNORED if crowd else label
    labels[sample.void] = IGNORED
    return labels


def scorer_for(data: SegmentationData, device: torch.device) -> Scorer:
    """The scorer of a data set's task.

    Args:
        data: The images.
        device: Where pixels are counted.
    """
    if data.task == "semantic":
        return SemanticScorer(len(data.id2label), device)
    return InstanceScorer() if data.task == "instance" else PanopticScorer(data, device)
