"""Parts that a model finds without labels, scored: a record of evaluation.part_segmentation."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from huggingface_hub import EvalResult

from hub_cards.measurements import Evaluation, told_number
from hub_cards.records import input_size

# Score of the JSON -> its name in full and in a table's head. One that is not listed goes by its own name.
SCORE_TITLES = {
    "m2o_miou": ("Many-to-one mIoU", "M2O"),
    "o2o_miou": ("One-to-one mIoU", "O2O"),
    "ari": ("Adjusted Rand index", "ARI"),
    "boundary_f": ("Boundary F-score", "BF"),
}
READING_OPTIONS = ("part_similarity", "part_layer")
PARTS_TASK = ("image-segmentation", "Unsupervised part segmentation")
ROW_TITLES = {"model": "this model", "untrained": "untrained (this architecture, fresh weights)"}
COUNTS = ("images", "images_with_foreground", "segments_used")
FOREGROUND = "_foreground"


@dataclass(frozen=True)
class Metric:
    """A score of the JSON.

    Attributes:
        score: Its name there.
    """

    score: str

    @property
    def type(self) -> str:
        """The metric itself, without the pixels it is taken over."""
        return self.score.removesuffix(FOREGROUND)

    @property
    def foreground(self) -> bool:
        """Whether the background is left out."""
        return self.score.endswith(FOREGROUND)

    @property
    def title(self) -> str:
        """Its name in full."""
        return SCORE_TITLES.get(self.type, (self.type,))[0] + (", foreground" if self.foreground else "")

    @property
    def column(self) -> str:
        """Its name in a table's head."""
        return SCORE_TITLES.get(self.type, (self.type,))[-1] + (" foreground" if self.foreground else "")


@dataclass(frozen=True)
class PartScores(Evaluation):
    """A record of evaluation.part_segmentation: the rows of the model and of its competitors."""

    TASKS = (PARTS_TASK,)

    @staticmethod
    def is_kind_of(record: Mapping[str, Any]) -> bool:
        """What is of no other kind."""
        return True

    @classmethod
    def rows(cls, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """All rows.

        Raises:
            ValueError: If none is the model's.
        """
        scores = record["scores"]
        if "model" not in scores:
            raise ValueError(
                f"scores {', '.join(scores) or 'nothing'}; the row 'model' must be among them, for it is this card's. Run "
                "evaluation.part_segmentation again."
            )
        return scores

    @classmethod
    def input_of(cls, record: Mapping[str, Any], processor: Mapping[str, Any]) -> str:
        """As the processor has it, which may keep the aspect ratio."""
        return input_size(record["settings"]["image_size"], processor)

    @property
    def split(self) -> str | None:
        """The split that was scored."""
        return self.setting.get("split")

    @property
    def conditions(self) -> dict[str, Any]:
        """With how parts were read, where that is not the model's own way."""
        read = {name: self.setting[name] for name in READING_OPTIONS if self.setting.get(name) is not None}
        return super().conditions | {"images": self.model_scores["images"]} | read

    @property
    def model_scores(self) -> dict[str, float | int]:
        """The row of the model."""
        return self.record["scores"]["model"]

    @cached_property
    def metrics(self) -> list[Metric]:
        """The scores that any row has."""
        rows = self.record["scores"].values()
        return [Metric(score) for score in dict.fromkeys(name for row in rows for name in row) if score not in COUNTS]

    def as_table(self) -> dict[str, Any]:
        """All rows, segments as the average of an image."""
        columns = ["", "Images", "Segments", *(metric.column for metric in self.metrics)]
        rows = [
            [
                ROW_TITLES.get(name, name),
                told_number(row.get("images")),
                told_number(row.get("segments_used")),
                *(told_number(row.get(metric.score)) for metric in self.metrics),
            ]
            for name, row in self.record["scores"].items()
        ]
        images, with_foreground = self.model_scores.get("images", 0), self.model_scores.get("images_with_foreground")
        rest = "" if with_foreground in (None, images) else f" ({with_foreground:,} of them with foreground)"
        return self._table(columns, rows, f"{images:,} images{rest}", "percent, segments as the average per image")

    def model_index(self) -> list[EvalResult]:
        """An entry a score."""
        return [
            self._entry(
                PARTS_TASK,
                metric_type=metric.type,
                metric_name=metric.title,
                metric_config="foreground" if metric.foreground else None,
                metric_value=float(self.model_scores[metric.score]),
            )
            for metric in self.metrics
            if metric.score in self.model_scores
        ]

    def rivals(self) -> list[str]:
        """A sentence for each row that is as good as the model in any score."""
        model = self.model_scores
        sentences = []
        for name, row in self.record["scores"].items():
            better = [
                metric.column
                for metric in self.metrics
                if name != "model" and row.get(metric.score, float("-inf")) >= model.get(metric.score, float("inf"))
            ]
            if better:
                sentences.append(
                    f'On {self.heading}, "{ROW_TITLES.get(name, name)}" scores at least as high as this '
                    f"model in {', '.join(better)}, with {told_number(row.get('segments_used'))} segments to the model's "
                    f"{told_number(model.get('segments_used'))}."
                )
        return sentences
