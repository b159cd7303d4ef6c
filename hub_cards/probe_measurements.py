"""What is learned from a frozen model's features: by classifiers (evaluation.representation), by heads that segment
(evaluation.segmentation_probe)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult

from hub_cards.measurements import Evaluation, told_number
from hub_cards.records import folder_name
from hub_cards.segmentation_measurements import TITLES

PROBES_TASK = ("image-classification", "Image classification by a frozen model")
HEADS_TASK = ("image-segmentation", "Semantic segmentation by a frozen model")
MAJORITY = "majority"
SPREAD = "_std"  # of a score over seeds, at the end of its name


@dataclass(frozen=True)
class ProbeScores(Evaluation):
    """A record of evaluation.representation: how well classifiers on the frozen model do."""

    TASKS = (PROBES_TASK,)
    IN_TABLE = ("image_size", "images", "train_split", "train_images", "probes")

    @staticmethod
    def is_kind_of(record: Mapping[str, Any]) -> bool:
        """By the option that names classifiers."""
        return "probe" in record["settings"]

    @classmethod
    def rows(cls, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The accuracies; beside them there is how they were chosen."""
        return {
            probe: {name: value for name, value in row.items() if name.startswith("top")}
            for probe, row in record["scores"].items()
        }

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


@dataclass(frozen=True)
class HeadScores(Evaluation):
    """A record of evaluation.segmentation_probe: how well heads on the frozen model segment, and on models beside it."""

    TASKS = (HEADS_TASK,)
    DATA_OPTIONS = ("dataset_revision", "image_column", "mask_column", "ignore_label", "num_labels", "layer")
    DEFAULTS = {"image_column": "image", "mask_column": "mask", "layer": -1}
    LEARNED = ("epochs", "batch_size", "learning_rates")
    IN_TABLE = ("image_size", "images", "train_split", "train_images", "heads", *LEARNED)

    @staticmethod
    def is_kind_of(record: Mapping[str, Any]) -> bool:
        """By the option that names heads."""
        return "head" in record["settings"]

    @classmethod
    def rows(cls, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The model's heads, those of the models beside it, and the most frequent label everywhere."""
        scores = dict(record["scores"])
        majority = {MAJORITY: scores.pop(MAJORITY)} if MAJORITY in scores else {}
        for other in record["beside"]:
            name = _name_of(other)
            for head, row in other["scores"].items():
                if head != MAJORITY:
                    scores[_free(f"{head} on {name}", scores)] = row
        return scores | majority

    @property
    def heads(self) -> list[str]:
        """The rows of the model itself."""
        return list(self.record["by_seed"])

    @property
    def split(self) -> str | None:
        """The split that was segmented."""
        return self.setting["test_split"]

    @property
    def conditions(self) -> dict[str, Any]:
        """With what the heads learned from, and how."""
        data = self.record["data"]
        told = {
            "images": data["test"]["images"],
            "train_split": self.setting["train_split"],
            "train_images": data["train"]["images"],
            "heads": " ".join(self.heads),
        }
        return super().conditions | told | {name: self.setting[name] for name in self.LEARNED}

    @property
    def model_scores(self) -> dict[str, float | int]:
        """Each head's means over seeds, such as `linear miou`."""
        return {f"{head} {name}": self.record["scores"][head][name] for head, name in self._measured()}

    def as_table(self) -> dict[str, Any]:
        """A row a head, with the spread over seeds."""
        scores, train, test = self.record["scores"], self.record["data"]["train"], self.record["data"]["test"]
        measured = [name for name in TITLES if any(name in row for row in scores.values())]
        rows = [[_told_row(head), *(_told_score(row, name) for name in measured)] for head, row in scores.items()]
        seeds = len(self.record["by_seed"][self.heads[0]])
        spread = f"percent, mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else "percent"
        learned = (
            f"{train['images']:,} images of split `{self.setting['train_split']}` to learn from, with {train['labels']} "
            f"labels; epochs {self.setting['epochs']}, batch size {self.setting['batch_size']}, learning rates tried "
            f"{', '.join(map(str, self.setting['learning_rates']))}"
        )
        return self._table(["", *(TITLES[name][1] for name in measured)], rows, f"{test['images']:,} images; {learned}", spread)

    def model_index(self) -> list[EvalResult]:
        """An entry a head and score; the spread stands with the conditions."""
        entries = []
        for head, name in self._measured():
            row, (kind, title) = self.record["scores"][head], TITLES[name]
            spread = {"standard_deviation": float(row[f"{name}{SPREAD}"])} if f"{name}{SPREAD}" in row else {}
            entries.append(
                self._entry(
                    HEADS_TASK,
                    metric_type=kind,
                    metric_name=f"{head} {title}",
                    metric_config=head,
                    metric_value=float(row[name]),
                    metric_args=self.conditions | {"seeds": len(self.record["by_seed"][head])} | spread,
                )
            )
        return entries

    def rivals(self) -> list[str]:
        """A sentence for each other row of the same head, and the majority, that is as good as one of the model's heads."""
        scores = self.record["scores"]
        sentences = []
        for head in self.heads:
            for name in scores.keys() - {*self.heads}:
                if name != MAJORITY and not name.startswith(f"{head} on "):
                    continue
                shared = [one for one in TITLES if one in scores[head] and one in scores[name]]
                if better := [TITLES[one][1] for one in shared if scores[name][one] >= scores[head][one]]:
                    sentences.append(
                        f'On {self.heading}, "{_told_row(name)}" scores at least as high as the head "{head}" on this model in '
                        f"{', '.join(better)}."
                    )
        return sorted(sentences)

    def _measured(self) -> Iterator[tuple[str, str]]:
        """The model's heads, each with the names of its scores."""
        for head in self.heads:
            yield from ((head, name) for name in TITLES if name in self.record["scores"][head])


def _name_of(other: Mapping[str, Any]) -> str:
    """Hub names stay whole; of a folder the own name is told, or its run's where training has called it `model`."""
    return folder_name(other["model"]) if other["revision"] is None else other["model"]


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """The name, numbered if it is taken."""
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free


def _told_row(name: str) -> str:
    return "the most frequent training label everywhere" if name == MAJORITY else name


def _told_score(row: Mapping[str, Any], name: str) -> str:
    spread = f" ± {told_number(row[f'{name}{SPREAD}'])}" if f"{name}{SPREAD}" in row else ""
    return told_number(row.get(name)) + spread
