"""The results of a model: JSON files in its folder's `results/`, from which its card is made wherever the folder goes.

A record of an evaluation (`measurement_kinds` lists which) is adopted: it must score these very weights, it is named by what
was measured, and it leaves the places of the measuring machine behind. The same measurement made again replaces the one before
it.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from hub_cards.measurement_kinds import WRITERS, evaluation_of, kind_of
from hub_cards.measurements import Evaluation
from hub_cards.records import ModelRecord, read_json, scored_data, without_places

FOLDER = "results"
LEADERBOARD_FOLDER = ".eval_results"  # as the Hub has it
# Of a record that an evaluation writes, and what adoption adds: names of the data set, the input in words, the weights that
# it was adopted for.
KEYS = ("scores", "protocol", "settings", "model_config", "fingerprints", "versions", "date")
WHAT = f"a record that {WRITERS} writes"
ADDED_KEYS = ("data_set", "input", "weight_files")


def adopt(path: str | Path, model: ModelRecord, any_model: bool = False) -> Evaluation:
    """Read a record of an evaluation as a result of this model.

    Args:
        path: The JSON file.
        model: The model that it must score: the same weights, file by file.
        any_model: Accept scores of other weights, such as before they were saved anew; the architecture must agree all the
            same.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a record, a score is no finite number, or it scores another model.
    """
    path = Path(path)
    record = read_json(path, KEYS, WHAT)
    with _malformed_is_told(path, WHAT):
        return _adopted(path, record, model, any_model)


def _adopted(path: Path, record: dict[str, Any], model: ModelRecord, any_model: bool) -> Evaluation:
    kind = kind_of(record)
    try:
        scores = kind.rows(record)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    _check_model(path, record, model, any_model)
    added = {
        "data_set": asdict(scored_data(record["settings"], record["fingerprints"])),
        "input": kind.input_of(record, model.processor),
        "weight_files": model.weight_files,
    }
    return _read_through({**without_places(record), "scores": _defined(path, scores), **added})


def adopt_all(paths: Sequence[str | Path], model: ModelRecord, any_model: bool = False) -> list[Evaluation]:
    """Adopt several records, of which no two may measure the same; else as `adopt`."""
    evaluations: dict[str, Evaluation] = {}
    for path in paths:
        evaluation = adopt(path, model, any_model)
        if evaluation.name in evaluations:
            raise ValueError(
                f"{path} scores {evaluation.data.identifier} like a file before it (configuration, split, size, images and "
                "options are the same); a card can show one of them. Name only one."
            )
        evaluations[evaluation.name] = evaluation
    return list(evaluations.values())


def parse(content: str | bytes, name: str) -> Evaluation:
    """A result that was adopted before; `name` is for the error.

    Raises:
        ValueError: If it is none.
    """
    what = "a result that hub_cards has adopted"
    record = read_json(Path(name), (*KEYS, *ADDED_KEYS), what, content)
    with _malformed_is_told(Path(name), what):
        return _read_through({**record, "scores": _defined(Path(name), record["scores"])})


def merge(known: Iterable[Evaluation], added: Iterable[Evaluation]) -> list[Evaluation]:
    """Each measurement once, in the order of their names: the latest that is known, or the one that is added.

    Raises:
        ValueError: If a measurement that is added lacks competitors of the one that it replaces.
    """
    merged = {one.name: one for one in sorted(known, key=lambda evaluation: evaluation.record["date"])}
    for evaluation in added:
        before = merged.get(evaluation.name, evaluation).record["scores"]
        lost = [row for row in before if row not in evaluation.record["scores"]]
        if lost:
            raise ValueError(
                f"The new result on {evaluation.heading} has no {', '.join(map(repr, lost))}, which the one before it has; a "
                "card does not lose its competitors unnoticed. Measure them again, too, or delete "
                f"{FOLDER}/{evaluation.name}.json first."
            )
        merged[evaluation.name] = evaluation
    return [merged[name] for name in sorted(merged)]


def read_results(folder: Path) -> list[Evaluation]:
    """The results that a model folder holds; other files stay out of it."""
    contents = {path: path.read_bytes() for path in sorted((folder / FOLDER).glob("*.json"))}
    return [parse(content, str(path)) for path, content in contents.items() if is_result(content)]


def check_weights(evaluations: Iterable[Evaluation], model: ModelRecord) -> None:
    """Make sure that results adopted before are not of weights that the folder no longer holds.

    Raises:
        ValueError: If one is.
    """
    outdated = [f"{FOLDER}/{evaluation.name}.json" for evaluation in evaluations if not is_of(evaluation, model)]
    if outdated:
        raise ValueError(
            f"{', '.join(outdated)} of {model.folder} are of other weights or another configuration than are there now; "
            "results are of their own model only. Delete them, and measure these weights."
        )


def is_of(evaluation: Evaluation, model: ModelRecord) -> bool:
    """Whether a result was adopted for these weights (name and SHA-256 of each file), configured as they are now."""
    return evaluation.record["weight_files"] == model.weight_files and not _differing(evaluation.record, model)


def is_result(content: bytes) -> bool:
    """Whether a file is a result that was adopted, and not somebody else's."""
    try:
        record = json.loads(content)
    except ValueError:
        return False
    return isinstance(record, dict) and {*KEYS, *ADDED_KEYS} <= record.keys()


def as_files(evaluations: Iterable[Evaluation]) -> dict[str, bytes]:
    """Where each result goes in a model folder, and what is written there."""
    return {
        f"{FOLDER}/{evaluation.name}.json": json.dumps(evaluation.record, indent=2, allow_nan=False).encode() + b"\n"
        for evaluation in evaluations
    }


def as_eval_results(evaluations: Iterable[Evaluation], repo_id: str, tasks: Mapping[str, str]) -> dict[str, bytes]:
    """The files of a model's repository that the leaderboards of benchmarks on the Hub read.

    Args:
        evaluations: Those on data sets of the Hub are written; the data set must be registered there as a benchmark.
        repo_id: Where the results are to be found.
        tasks: Task of the benchmark -> which score of the model it ranks, such as m2o_miou_foreground.

    Raises:
        ValueError: If no data set is of the Hub, or none has the scores.
    """
    files: dict[str, bytes] = {}
    ranked: dict[str, str] = {}  # data set -> what of it
    for evaluation in evaluations:
        scores, settings = evaluation.model_scores, evaluation.setting
        if not evaluation.data.on_hub or not set(tasks.values()) <= scores.keys():
            continue
        data, told = evaluation.data.identifier, evaluation.heading
        if ranked.setdefault(data, told) != told:
            raise ValueError(
                f"There are two results on {data} ({ranked[data]}; {told}), and a leaderboard ranks one of a model. Push "
                "one of them without --eval_results."
            )
        entries = [
            EvalResultEntry(
                dataset_id=evaluation.data.identifier,
                task_id=task,
                value=float(scores[score]),
                dataset_revision=settings.get("dataset_revision"),
                date=evaluation.record["date"],
                notes=told,
                source_url=f"https://huggingface.co/{repo_id}/blob/main/{FOLDER}/{evaluation.name}.json",
            )
            for task, score in tasks.items()
        ]
        files[f"{LEADERBOARD_FOLDER}/{evaluation.name}.yaml"] = yaml_dump(eval_result_entries_to_yaml(entries)).encode()
    if not files:
        raise ValueError(
            f"No result on a data set of the Hub has {', '.join(tasks.values())}, and only such can have a leaderboard there. "
            "Name a score as the records do, such as m2o_miou_foreground."
        )
    return files


def _check_model(path: Path, record: Mapping[str, Any], model: ModelRecord, any_model: bool) -> None:
    differing = _differing(record, model)
    if differing:
        shown = ", ".join(f"{name}={theirs} (here {ours})" for name, (theirs, ours) in differing.items())
        raise ValueError(
            f"{path} scores a model with {shown}; it must have the architecture of {model.folder}. "
            "The scores are of another or an older model: score this one."
        )
    if not any_model and record["fingerprints"].get("weight_files") != model.weight_files:
        raise ValueError(
            f"{path} scores {record['settings']['model']}, whose weights were not those of {model.folder}; a model's results "
            "are of its own weights only. Score this model, or pass --any_model if both are the same in your eyes."
        )


def _differing(record: Mapping[str, Any], model: ModelRecord) -> dict[str, tuple[Any, Any]]:
    """Fields of the configuration that are not what they were when the model was scored: (then, now). Options stand apart."""
    return {
        name: (value, model.config[name])
        for name, value in record["model_config"].items()
        if name in model.config and value != model.config[name] and record["settings"].get(name) is None
    }


@contextmanager
def _malformed_is_told(path: Path, what: str) -> Iterator[None]:
    """What a record of another form leads to as one error that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not {what}, or an entry was changed ({reason}); name one that is.") from error


def _read_through(record: dict[str, Any]) -> Evaluation:
    """A record whose every entry that a card reads is there and of the right kind."""
    evaluation = evaluation_of(record)
    evaluation.as_table(), evaluation.model_index()
    return evaluation


def _defined(path: Path, scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int | float]]:
    """The rows without the scores that are null, which no image had."""
    for row, row_scores in scores.items():
        for name, value in row_scores.items():
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
            ):
                raise ValueError(f"{path} has {name}={value!r} in row {row!r}; a score is a finite number. Measure it again.")
    return {row: {name: value for name, value in row_scores.items() if value is not None} for row, row_scores in scores.items()}
