"""Reads what a card is made from: the model folder's JSON files, its safetensors headers, and score files.

Nothing else is a source of a card's numbers. Every file is checked here, so that what reads the records need not.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

# Of the record that training/pretrain.py writes beside the weights, and of one that evaluation/part_segmentation.py writes.
TRAINING_KEYS = (
    "settings",
    "steps",
    "images_seen",
    "seconds",
    "device",
    "processes",
    "mixed_precision",
    "versions",
)
SCORES_KEYS = ("scores", "protocol", "settings", "model_config", "versions", "date")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name


@dataclass(frozen=True)
class ModelRecord:
    """What a model folder says of itself.

    Attributes:
        folder: The folder, as it was given.
        config: config.json.
        processor: preprocessor_config.json.
        training: training.json; None if the folder has none.
        num_parameters: Elements of all tensors in the safetensors files.
    """

    folder: Path
    config: dict[str, Any]
    processor: dict[str, Any]
    training: dict[str, Any] | None
    num_parameters: int


@dataclass(frozen=True)
class DataSetName:
    """How a card speaks of a data set.

    Attributes:
        identifier: Hub name, or a short name where there is none; for the metadata.
        title: For the reader, in Markdown.
        on_hub: Whether the identifier is a Hub name.
        synthetic: Whether it is the data set rendered by evaluation.synthetic_parts.
    """

    identifier: str
    title: str
    on_hub: bool = False
    synthetic: bool = False


def read_model(folder: str | Path) -> ModelRecord:
    """Read a model folder that save_pretrained wrote.

    Raises:
        FileNotFoundError: If the configuration, the processor or the weights are missing.
        ValueError: If one of them cannot be read, or the model is no RATS model.
    """
    folder = Path(folder)
    for name, writer in (("config.json", "model"), ("preprocessor_config.json", "image processor")):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"Model folder {folder} has no {name}; a card is made for a folder that save_pretrained wrote, with model and "
                f"image processor. Check the path, or call the {writer}'s save_pretrained({str(folder)!r})."
            )
    config = _read_json(folder / "config.json", ("model_type",), "the configuration of a transformers model")
    if config["model_type"] != "rats":
        raise ValueError(
            f"{folder / 'config.json'} has model_type {config['model_type']!r}; this card describes models of model_type "
            "'rats' only. Name a RATS model folder."
        )
    has_training = (folder / "training.json").is_file()
    return ModelRecord(
        folder=folder,
        config=config,
        processor=_read_json(folder / "preprocessor_config.json", ("size",), "the configuration of an image processor"),
        training=_read_json(folder / "training.json", TRAINING_KEYS, "the record of training") if has_training else None,
        num_parameters=_count_parameters(folder),
    )


def read_scores(path: str | Path, model: ModelRecord, repo_id: str | None = None, any_model: bool = False) -> dict[str, Any]:
    """Read a record of evaluation.part_segmentation, and make sure that it scores this model.

    Args:
        path: The JSON file.
        model: The model that the card is for.
        repo_id: Its Hub name; scores of the model under this name are its own as well.
        any_model: Accept scores of a model in another place, such as before the folder was moved. The architecture must
            agree all the same.

    Returns:
        The record; in `scores`, what is no finite number is left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a record, or it scores another model.
    """
    path = Path(path)
    record = _read_json(path, SCORES_KEYS, "a record that evaluation.part_segmentation --output writes")
    if not isinstance(record["scores"], dict) or not {"model", "dataset", "image_size"} <= set(record["settings"]):
        raise ValueError(f"{path} is no record that evaluation.part_segmentation --output writes; name one that is.")
    if "model" not in record["scores"]:
        raise ValueError(
            f"{path} scores {', '.join(record['scores']) or 'nothing'}; the row 'model' must be among them, for it is this "
            "card's. Run evaluation.part_segmentation again."
        )
    scored = record["settings"]["model"]
    if not any_model and scored != repo_id and Path(scored).resolve() != model.folder.resolve():
        raise ValueError(
            f"{path} scores the model {scored}, and the card is for {model.folder}; a card holds scores of its own model "
            "only. Score this folder, or pass --any_model if both are the same model."
        )
    differing = {
        name: (value, model.config[name])
        for name, value in record["model_config"].items()
        if name in model.config and value != model.config[name]
    }
    if differing:
        shown = ", ".join(f"{name}={theirs} (here {ours})" for name, (theirs, ours) in differing.items())
        raise ValueError(
            f"{path} scores a model with {shown}; it must have the architecture of {model.folder}. "
            "The scores are of another or an older model: score this one."
        )
    record["scores"] = {row: _finite(scores) for row, scores in record["scores"].items()}
    return record


def training_data(settings: Mapping[str, Any]) -> list[DataSetName]:
    """Name the data sets of training.json's settings; none given means the rendered one."""
    if settings["dataset"] is not None:
        return [_name_of(dataset) for dataset in as_list(settings["dataset"])]
    made_with = (
        f"{settings['synthetic_images']:,} images, {settings['synthetic_image_size']} px, "
        f"difficulty {settings['synthetic_difficulty']}, seed {settings['synthetic_seed']}"
    )
    title = f"synthetic articulated objects rendered by `evaluation.synthetic_parts` ({made_with})"
    return [DataSetName("synthetic_parts", title, synthetic=True)]


def as_list(value: Any) -> list:
    """A setting of several data sets; records from before there could be several have one value."""
    return value if isinstance(value, list) else [value]


def scored_data(settings: Mapping[str, Any], training: Mapping[str, Any] | None) -> DataSetName:
    """Name the data set of a score file's settings; the folder that training rendered into is known by its place."""
    trained_on = training["settings"] if training else {}
    if trained_on.get("dataset", "") is None and trained_on.get("output_dir"):
        rendered = Path(trained_on["output_dir"]) / "data"  # as training/pretrain.py has it
        if Path(settings["dataset"]).resolve() == rendered.resolve():
            title = "synthetic articulated objects rendered by `evaluation.synthetic_parts`"
            return DataSetName("synthetic_parts", title, synthetic=True)
    return _name_of(settings["dataset"])


def _name_of(dataset: str) -> DataSetName:
    """A Hub name stays whole; of a path only the last part is told, for the rest is that machine's own business."""
    if HUB_NAME.fullmatch(dataset) and not dataset.startswith(".") and not os.path.exists(dataset):
        return DataSetName(dataset, f"[{dataset}](https://huggingface.co/datasets/{dataset})", on_hub=True)
    name = Path(dataset).resolve().name
    return DataSetName(name, f"`{name}` (local data)")


def _read_json(path: Path, keys: tuple[str, ...], what: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it must be {what}. Check the spelling and the working folder.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path} is no JSON file ({error}); it must be {what}. Write it again.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}; it must be {what}. Check that it is the right file.")
    missing = [key for key in keys if key not in record]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}; it must be {what}. Check that it is the right file, and write it again."
        )
    return record


def _count_parameters(folder: Path) -> int:
    """Read headers only, so that it takes no memory, whatever the model's size."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"Model folder {folder} has no .safetensors file; a card describes weights. Call the model's "
            f"save_pretrained({str(folder)!r})."
        )
    count = 0
    for file in files:
        with safe_open(file, framework="numpy") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def _finite(scores: Mapping[str, Any]) -> dict[str, int | float]:
    return {name: value for name, value in scores.items() if isinstance(value, int | float) and math.isfinite(value)}
