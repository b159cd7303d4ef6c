"""What was measured of a model: a record of an evaluation as a table of the card and as entries of its metadata."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from huggingface_hub import EvalResult

from hub_cards.records import DataSetName

# Score of the JSON -> its name in full and in a table's head. One that is not listed goes by its own name.
SCORE_TITLES = {
    "m2o_miou": ("Many-to-one mIoU", "M2O"),
    "o2o_miou": ("One-to-one mIoU", "O2O"),
    "ari": ("Adjusted Rand index", "ARI"),
    "boundary_f": ("Boundary F-score", "BF"),
}
# Options that decide what is measured, beside data set, configuration and split; those that were given are told.
DATA_OPTIONS = ("dataset_revision", "image_column", "mask_column", "label_column", "ignore_label")
READING_OPTIONS = ("part_similarity", "part_layer")
SHOWN_CONDITIONS = ("image_size", "images", "train_split", "train_images", "probes")
# Type and name in model-index, by which our own entries are known there.
PARTS_TASK = ("image-segmentation", "Unsupervised part segmentation")
PROBES_TASK = ("image-classification", "Image classification by a frozen model")
TASKS = (PARTS_TASK, PROBES_TASK)
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
class Evaluation(ABC):
    """One measurement of the model.

    Attributes:
        record: The JSON, as `hub_cards.results` adopts it.
    """

    record: dict[str, Any]

    @property
    def data(self) -> DataSetName:
        """The data set."""
        return DataSetName(**self.record["data_set"])

    @property
    def input(self) -> str:
        """Size of the images that the model was given."""
        return self.record["input"]

    @property
    def setting(self) -> dict[str, Any]:
        """The options of the evaluation."""
        return self.record["settings"]

    @cached_property
    def name(self) -> str:
        """Tells measurements apart, and is the same for one that is made again; a file's name without its ending."""
        place = (self.data.identifier, self.setting.get("config"), self.split)
        decides = [*place, self.conditions, self.data.content]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
        told = (*place, self.input, f"{self.conditions['images']} images", digest)
        return re.sub(r"[^\w.-]+", "-", " ".join(filter(None, told)).replace(" x ", "x"))

    @property
    def conditions(self) -> dict[str, Any]:
        """What tells it apart from others on the same split: size of the input, number of images, options that were given."""
        given = {name: self.setting.get(name) for name in DATA_OPTIONS}
        if rendered := self.setting.get("rendered"):
            given |= {"rendered": f"{rendered['difficulty']} {rendered['image_size_px']}px seed {rendered['seed']}"}
        return {"image_size": self.input, **{name: value for name, value in given.items() if value is not None}}

    @property
    @abstractmethod
    def split(self) -> str | None:
        """Split of the data set; None if it has none."""

    @property
    @abstractmethod
    def model_scores(self) -> dict[str, float | int]:
        """The scores of the model itself, by one name each."""

    @abstractmethod
    def as_table(self) -> dict[str, Any]:
        """What the template shows of it."""

    @abstractmethod
    def model_index(self) -> list[EvalResult]:
        """The model's own scores as entries of model-index.

        The conditions stand with the metric: model-index groups results by data set, configuration and split, and would lose
        them elsewhere.
        """

    def rivals(self) -> list[str]:
        """A sentence for each row that is as good as the model in any score."""
        return []

    def _entry(self, task: tuple[str, str], **metric: Any) -> EvalResult:
        """An entry of model-index for this data set; the task by its type and name."""
        return EvalResult(
            task_type=task[0],
            task_name=task[1],
            dataset_type=self.data.identifier,
            dataset_name=self.data.identifier,
            dataset_config=self.setting.get("config"),
            dataset_split=self.split,
            dataset_revision=self.setting.get("dataset_revision"),
            metric_args=self.conditions,
            **metric,
        )

    @property
    def heading(self) -> str:
        """Tells a reader what was measured; what else the table tells is left out."""
        options = [f"{name} {value}" for name, value in self.conditions.items() if name not in SHOWN_CONDITIONS]
        return ", ".join([self.data.identifier, *self._places(), self.input, *options])

    def _places(self) -> list[str]:
        places = [f"configuration `{self.setting['config']}`"] if self.setting.get("config") else []
        return places + ([f"split `{self.split}`"] if self.split else [])

    def _table(self, columns: list[str], rows: list[list[str]], data: str) -> dict[str, Any]:
        return {
            "heading": self.heading,
            "data": ", ".join([self.data.title, *self._places(), data]),
            "input": self.input,
            "columns": [column or " " for column in columns],
            "rows": [[row[0].replace("|", "\\|"), *row[1:]] for row in rows],
            "date": self.record["date"].split("T")[0],
            "seed": self.setting.get("seed", "-"),
            "commit": self.record.get("commit") or "-",
            "versions": told_versions(self.record["versions"]),
            "protocol": self.record["protocol"],
        }


@dataclass(frozen=True)
class PartScores(Evaluation):
    """A record of evaluation.part_segmentation: the rows of the model and of its competitors."""

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
        return self._table(columns, rows, f"{images:,} images{rest}")

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


@dataclass(frozen=True)
class ProbeScores(Evaluation):
    """A record of evaluation.representation: how well classifiers on the frozen model do."""

    @property
    def split(self) -> str | None:
        """The split that was classified."""
        return self.setting["test_split"]

    @property
    def conditions(self) -> dict[str, Any]:
        """With what the classifiers learned from."""
        data = self.record["data"]
        told = {
            "images": data["test"]["images"],
            "train_split": self.setting["train_split"],
            "train_images": data["train"]["images"],
            "features": self.setting["features"],
            "probes": " ".join(self.record["scores"]),
        }
        probes = list(self.record["scores"])
        learned = ("epochs", "learning_rates", "linear_batch_size") if "linear" in probes else ()
        options = (*(["temperature"] if probes != ["linear"] else []), *learned)
        return super().conditions | told | {name: self.setting[name] for name in options if name in self.setting}

    @property
    def model_scores(self) -> dict[str, float | int]:
        """Each classifier's accuracies, such as `20-NN top1`."""
        return {f"{probe} {name}": value for probe, row in self.record["scores"].items() for name, value in row.items()}

    def as_table(self) -> dict[str, Any]:
        """A row a classifier."""
        scores, train, test = self.record["scores"], self.record["data"]["train"], self.record["data"]["test"]
        measured = list(dict.fromkeys(name for row in scores.values() for name in row))
        rows = [[probe, *(told_number(row.get(name)) for name in measured)] for probe, row in scores.items()]
        columns = ["", *(name.replace("top", "Top-") for name in measured)]
        trained = f"{train['images']:,} images of split `{self.setting['train_split']}` to learn from"
        data = f"{test['images']:,} images, {trained}, {test['classes']} classes"
        return self._table(columns, rows, data)

    def model_index(self) -> list[EvalResult]:
        """An entry a classifier and accuracy."""
        return [
            self._entry(
                PROBES_TASK,
                metric_type="accuracy",
                metric_name=name.replace("top", "top-"),
                metric_config=name,
                metric_value=float(value),
            )
            for name, value in self.model_scores.items()
        ]


def evaluation_of(record: dict[str, Any]) -> Evaluation:
    """The measurement that an adopted record tells of."""
    return (PartScores if "model" in record["scores"] else ProbeScores)(record)


def told_versions(versions: Mapping[str, str]) -> str:
    """In one line."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def told_number(value: float | int | None) -> str:
    """With one digit after the point, or none for a count."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"
