"""What a model that was fine-tuned to segment finds: a record of evaluation.universal_segmentation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult

from hub_cards.measurements import Evaluation, told_number

# Score of the JSON -> the metric's type in model-index, and its title. In the order of a table's columns.
TITLES = {
    "miou": ("mean_iou", "mIoU"),
    "pixel_accuracy": ("pixel_accuracy", "Pixel accuracy"),
    "ap": ("mask_ap", "Mask AP"),
    "ap50": ("mask_ap50", "AP50"),
    "ap75": ("mask_ap75", "AP75"),
    "ap_small": ("mask_ap_small", "AP small"),
    "ap_medium": ("mask_ap_medium", "AP medium"),
    "ap_large": ("mask_ap_large", "AP large"),
    "pq": ("pq", "PQ"),
    "sq": ("sq", "SQ"),
    "rq": ("rq", "RQ"),
}
TASK_NAMES = {  # in model-index, by the task of the record
    "semantic": "Semantic segmentation by a fine-tuned model",
    "instance": "Instance segmentation by a fine-tuned model",
    "panoptic": "Panoptic segmentation by a fine-tuned model",
}


@dataclass(frozen=True)
class SegmentationScores(Evaluation):
    """A record of evaluation.universal_segmentation: one row, with the scores of the task."""

    TASKS = tuple(("image-segmentation", name) for name in TASK_NAMES.values())
    DATA_OPTIONS = (
        "dataset_revision",
        "image_column",
        "mask_column",
        "segment_labels_column",
        "objects_column",
        "ignore_label",
        "reduce_labels",
        "thing_labels",
    )
    DEFAULTS = {"image_column": "image", "reduce_labels": False}

    @staticmethod
    def is_kind_of(record: Mapping[str, Any]) -> bool:
        """By the task, which no other record has."""
        return "task" in record

    @classmethod
    def rows(cls, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The scores stand alone; here they become the model's row."""
        return {"model": record["scores"]}

    @property
    def split(self) -> str | None:
        """The split that was scored."""
        return self.setting.get("split")

    @property
    def task(self) -> str:
        """Semantic, instance or panoptic."""
        return self.record["task"]

    @property
    def conditions(self) -> dict[str, Any]:
        """With the task."""
        return super().conditions | {"images": self.record["images"], "task": self.task}

    @property
    def model_scores(self) -> dict[str, float | int]:
        """The row of the model."""
        return self.record["scores"]["model"]

    def as_table(self) -> dict[str, Any]:
        """One row."""
        measured = [name for name in TITLES if name in self.model_scores]
        row = ["this model", *(told_number(float(self.model_scores[name])) for name in measured)]
        first = "the first " if self.setting.get("limit") else ""
        data = f"{first}{self.record['images']:,} images, {self.record['labels']} labels"
        return self._table(["", *(TITLES[name][1] for name in measured)], [row], data)

    def model_index(self) -> list[EvalResult]:
        """An entry a score."""
        return [
            self._entry(
                ("image-segmentation", TASK_NAMES[self.task]),
                metric_type=kind,
                metric_name=title,
                metric_value=float(self.model_scores[name]),
            )
            for name, (kind, title) in TITLES.items()
            if name in self.model_scores
        ]
