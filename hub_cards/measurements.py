"""What was measured of a model: a record of an evaluation as a table of the card and as entries of its metadata.

What all kinds share; `measurement_kinds` lists them.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from huggingface_hub import EvalResult

from hub_cards.records import DataSetName, pixels


@dataclass(frozen=True)
class Evaluation(ABC):
    """One measurement of the model.

    Attributes:
        record: The JSON, as `hub_cards.results` adopts it.
    """

    record: dict[str, Any]

    # Options that decide what is measured, beside data set, configuration and split; those that were given are told.
    DATA_OPTIONS: ClassVar[tuple[str, ...]] = (
        "dataset_revision",
        "image_column",
        "mask_column",
        "label_column",
        "ignore_label",
    )
    # Values of theirs that need no telling.
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    # Conditions that a heading leaves out, since the table tells them.
    IN_TABLE: ClassVar[tuple[str, ...]] = ("image_size", "images")
    # Type and name in model-index, by which our own entries are known there.
    TASKS: ClassVar[tuple[tuple[str, str], ...]] = ()

    @staticmethod
    @abstractmethod
    def is_kind_of(record: Mapping[str, Any]) -> bool:
        """Whether a record, adopted or not, is of this kind."""

    @classmethod
    def rows(cls, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The scores of a record that is adopted, as a row each of the model and of what it is compared with.

        Raises:
            ValueError: If there is none of the model.
        """
        return record["scores"]

    @classmethod
    def input_of(cls, record: Mapping[str, Any], processor: Mapping[str, Any]) -> str:
        """Size of the images that the model was given, of a record that is adopted for a model with this processor."""
        return pixels(record["settings"]["image_size"])

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
        given = {name: self.setting.get(name) for name in self.DATA_OPTIONS}
        if rendered := self.setting.get("rendered"):
            given |= {"rendered": f"{rendered['difficulty']} {rendered['image_size_px']}px seed {rendered['seed']}"}
        told = {name: value for name, value in given.items() if value is not None and value != self.DEFAULTS.get(name)}
        return {"image_size": self.input, **told}

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

    def _entry(self, task: tuple[str, str], metric_args: dict[str, Any] | None = None, **metric: Any) -> EvalResult:
        """An entry of model-index for this data set; the task by its type and name."""
        return EvalResult(
            task_type=task[0],
            task_name=task[1],
            dataset_type=self.data.identifier,
            dataset_name=self.data.identifier,
            dataset_config=self.setting.get("config"),
            dataset_split=self.split,
            dataset_revision=self.setting.get("dataset_revision"),
            metric_args=metric_args or self.conditions,
            **metric,
        )

    @property
    def heading(self) -> str:
        """Tells a reader what was measured; what else the table tells is left out."""
        options = [f"{name} {value}" for name, value in self.conditions.items() if name not in self.IN_TABLE]
        return ", ".join([self.data.identifier, *self._places(), self.input, *options])

    def _places(self) -> list[str]:
        places = [f"configuration `{self.setting['config']}`"] if self.setting.get("config") else []
        return places + ([f"split `{self.split}`"] if self.split else [])

    def _table(self, columns: list[str], rows: list[list[str]], data: str, unit: str = "percent") -> dict[str, Any]:
        return {
            "heading": self.heading,
            "data": ", ".join([self.data.title, *self._places(), data]),
            "input": self.input,
            "unit": unit,
            "columns": [column or " " for column in columns],
            "rows": [[row[0].replace("|", "\\|"), *row[1:]] for row in rows],
            "date": self.record["date"].split("T")[0],
            "run": told_run(self.setting.get("seed"), self.record.get("commit")),
            "versions": told_versions(self.record["versions"]),
            "protocol": self.record["protocol"],
        }


def told_versions(versions: Mapping[str, str]) -> str:
    """In one line."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def told_run(seed: int | list[int] | None, commit: str | None) -> str:
    """Seed and commit, as far as a record has them."""
    seeds = "" if seed is None else str(seed) if isinstance(seed, int) else ", ".join(map(str, seed))
    told = [f"{name} {value}" for name, value in (("seed", seeds), ("commit", commit)) if value]
    return ", ".join(told)


def told_number(value: float | int | None) -> str:
    """With one digit after the point, or none for a count."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"
