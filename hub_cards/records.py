"""Reads what a model folder says of itself: its JSON files and its weights.

Every file is checked here, so that what reads the records need not.
"""

import json
import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub.utils.sha import sha_fileobj
from safetensors import safe_open

SEGMENTER = "rats_universal_segmentation"
MODEL_TYPES = ("rats", SEGMENTER)  # of the configurations of which there are cards
# Of the record that training writes beside the weights.
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
CONVERSION_KEYS = ("source", "assumed", "adapted", "not_taken", "settings", "versions")  # of that of hub_cards.convert
LICENCE_KEYS = ("license", "license_name", "license_link")  # of a card's metadata
ABSOLUTE_FOLDER = re.compile(r"(file://|(?<![\w.~/-]))/([^\s'\":/][^'\":/]*/)+")  # also in patch_kmeans:/home/of/somebody/model
WEIGHT_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")  # as save_pretrained names them, and no adapter's
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name


@dataclass(frozen=True)
class ModelRecord:
    """What a model folder says of itself.

    Attributes:
        folder: The folder, as it was given.
        config: config.json.
        processor: preprocessor_config.json.
        training: training.json, and in `data_sets` how its data sets are called, in `base_model` the Hub name of the model that
            it started from or was distilled from, or None; None if the folder has none.
        num_parameters: Elements of all tensors in the safetensors files.
        weight_files: Name and SHA-256 of those files.
        source: Of weights that `hub_cards.convert` took from elsewhere what training.json says, and None in `training`.
    """

    folder: Path
    config: dict[str, Any]
    processor: dict[str, Any]
    training: dict[str, Any] | None
    num_parameters: int
    weight_files: dict[str, str]
    source: dict[str, Any] | None = None

    @property
    def is_segmenter(self) -> bool:
        """Whether it was fine-tuned to segment, and is no backbone."""
        return self.config["model_type"] == SEGMENTER

    @property
    def is_distilled(self) -> bool:
        """Whether it learned from a frozen teacher."""
        return bool(self.training and self.training.get("teacher"))

    @property
    def base_model(self) -> str | None:
        """The Hub name of the model whose weights these are, that the training started from, or that was its teacher."""
        if self.source:
            return self.source["source"]["repo_id"]
        return self.training["base_model"] if self.training else None


@dataclass(frozen=True)
class DataSetName:
    """How a card speaks of a data set.

    Attributes:
        identifier: Hub name, or a short name where there is none; for the metadata.
        title: For the reader, in Markdown.
        on_hub: Whether the identifier is a Hub name.
        synthetic: Whether it is the data set rendered by evaluation.synthetic_parts.
        content: A hash of what was read of it where its name is not enough, for many local folders are called alike.
    """

    identifier: str
    title: str
    on_hub: bool = False
    synthetic: bool = False
    content: str | None = None


def read_model(folder: str | Path) -> ModelRecord:
    """Read a model folder that save_pretrained wrote.

    Raises:
        FileNotFoundError: If the configuration, the processor or the weights are missing.
        ValueError: If one of them cannot be read, or the model is no RATS model.
    """
    folder = Path(folder)
    record = read_model_without_weights(folder)
    return replace(record, num_parameters=_count_parameters(folder), weight_files=hash_weight_files(folder))


def read_model_without_weights(folder: Path) -> ModelRecord:
    """Read the JSON files of a model folder; errors as in `read_model`, and what the weights tell is left empty."""
    for name, writer in (("config.json", "model"), ("preprocessor_config.json", "image processor")):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"Model folder {folder} has no {name}; a card is made for a folder that save_pretrained wrote, with model and "
                f"image processor. Check the path, or call the {writer}'s save_pretrained({str(folder)!r})."
            )
    config = read_json(folder / "config.json", ("model_type",), "the configuration of a transformers model")
    if config["model_type"] not in MODEL_TYPES:
        raise ValueError(
            f"{folder / 'config.json'} has model_type {config['model_type']!r}; cards are made for "
            f"{' and '.join(map(repr, MODEL_TYPES))} only. Name a RATS model folder."
        )
    record = _read_training(folder / "training.json")
    is_converted = record is not None and "source" in record
    return ModelRecord(
        folder=folder,
        config=config,
        processor=read_json(folder / "preprocessor_config.json", ("size",), "the configuration of an image processor"),
        training=None if is_converted else record,
        num_parameters=0,
        weight_files={},
        source=record if is_converted else None,
    )


def training_data(training: Mapping[str, Any]) -> list[DataSetName]:
    """The data sets of a training, as `read_model` has named them."""
    return [DataSetName(**data) for data in training["data_sets"]]


def _read_training(path: Path) -> dict[str, Any] | None:
    """The record of a conversion, or that of training with the names of its data sets and of the model that it started from,
    which can be told only where they lie; None if there is none."""
    if not path.is_file():
        return None
    if "source" in read_json(path, (), "the record of training"):
        return read_json(path, CONVERSION_KEYS, "the record of a conversion")
    training = read_json(path, TRAINING_KEYS, "the record of training")
    settings = training["settings"]
    return {"data_sets": name_training_data(settings), "base_model": _base_model(training)} | training


def _base_model(training: Mapping[str, Any]) -> str | None:
    """The teacher of a distillation if it was on the Hub, or what warm starts and fine-tuning name, if it is no folder here."""
    settings, teacher = training["settings"], training.get("teacher")
    if teacher:
        return teacher["name"] if teacher["on_hub"] else None
    start = settings.get("warm_start") or settings.get("backbone")
    return start if start and HUB_NAME.fullmatch(start) and not os.path.exists(start) else None


def name_training_data(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a training calls its data sets in its record; to be asked where they lie, for a path may look like a Hub name.

    Args:
        settings: Of the training; no data set given means the rendered one.

    Returns:
        A `DataSetName` each, as a dict.
    """
    if settings.get("layout"):
        names = [_official(settings["layout"])]
    elif settings["dataset"] is not None:
        names = [_name_of(dataset) for dataset in as_list(settings["dataset"])]
    else:
        names = [_rendered(*(settings[f"synthetic_{name}"] for name in ("images", "image_size", "difficulty", "seed")))]
    return [asdict(name) for name in names]


def as_list(value: Any) -> list:
    """A setting of several data sets; records from before there could be several have one value."""
    return value if isinstance(value, list) else [value]


def scored_data(settings: Mapping[str, Any], fingerprints: Mapping[str, str] | None = None) -> DataSetName:
    """Name the data set of a score file's settings, and its content by the file's fingerprints."""
    if settings.get("rendered"):
        made = settings["rendered"]
        return _rendered(made["images"], made["image_size_px"], made["difficulty"], made["seed"])
    if settings.get("benchmark") and settings.get("root"):
        return DataSetName(settings["benchmark"], f"`{settings['benchmark']}` of `python -m evaluation.benchmarks`")
    read = fingerprints or {}
    if settings.get("layout"):
        return replace(_official(settings["layout"]), content=read.get("data"))
    name = _name_of(settings["dataset"], settings.get("dataset_is_local"))
    return name if name.on_hub else replace(name, content=read.get("data", read.get("test")))


def _rendered(images: int, image_size_px: int, difficulty: Any, seed: int) -> DataSetName:
    made_with = f"{images:,} images, {image_size_px} px, difficulty {difficulty}, seed {seed}"
    title = f"synthetic articulated objects rendered by `evaluation.synthetic_parts` ({made_with})"
    return DataSetName("synthetic_parts", title, synthetic=True)


def _official(layout: str) -> DataSetName:
    return DataSetName(layout, f"`{layout}`, its official files")


def _name_of(dataset: str, is_local: bool | None = None) -> DataSetName:
    """A Hub name stays whole; of a path only the last part is told, for the rest is that machine's own business."""
    if is_local is None:  # a record from before it was told
        is_local = os.path.exists(dataset)
    if HUB_NAME.fullmatch(dataset) and not dataset.startswith(".") and not is_local:
        return DataSetName(dataset, f"[{dataset}](https://huggingface.co/datasets/{dataset})", on_hub=True)
    name = Path(dataset).resolve().name
    return DataSetName(name, f"`{name}` (local data)")


def folder_name(folder: str) -> str:
    """The last part of a model folder's path, or the one before where training has called it `model`."""
    path = Path(folder)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def read_json(path: Path, keys: tuple[str, ...], what: str, content: str | bytes | None = None) -> dict[str, Any]:
    """Read an object with these keys.

    Args:
        path: The file; with `content` its name alone, for the error.
        keys: Those that it must have.
        what: What it must be, in words.
        content: Its text, where it lies elsewhere.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON object with these keys, or holds a number that JSON has not (NaN, Infinity).
    """
    if content is None and not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it must be {what}. Check the spelling and the working folder.")
    try:
        record = json.loads(path.read_text(encoding="utf-8") if content is None else content, parse_constant=_refuse)
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


def input_size(size: Any, processor: Mapping[str, Any]) -> str:
    """Size of what the model is given."""
    if processor.get("ensure_multiple_of") is None:
        return pixels(size)
    return f"about the area of {pixels(size)} in the image's own aspect ratio"


def pixels(size: Any) -> str:
    """A size in words: a side, height and width, or a dict of an image processor."""
    if isinstance(size, Mapping):
        sides = {name: side for name, side in size.items() if side is not None}
        if set(sides) == {"shortest_edge", "longest_edge"}:
            return f"shortest edge {sides['shortest_edge']} px, longest edge at most {sides['longest_edge']} px"
        if set(sides) != {"height", "width"}:
            return ", ".join(f"{name.replace('_', ' ')} {side} px" for name, side in sides.items())
        size = (sides["height"], sides["width"])
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} x {width} px"


def without_places(value: Any) -> Any:
    """A record's absolute paths, of which the last part stays: the rest is the measuring machine's own business."""
    if isinstance(value, Mapping):
        return {
            name: shlex.join(without_places(shlex.split(entry))) if name == "command" else without_places(entry)
            for name, entry in value.items()
        }
    if isinstance(value, list):
        return [without_places(entry) for entry in value]
    return ABSOLUTE_FOLDER.sub("", value) if isinstance(value, str) else value


def hash_weight_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of the model's own weights by name, as the Hub shows it of large files without sending them."""
    digests = {}
    for file in sorted(folder.glob("*.safetensors")):
        if WEIGHT_FILE.fullmatch(file.name) is None:
            continue
        with file.open("rb") as content:
            digests[file.name] = sha_fileobj(content).hex()
    return digests


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _count_parameters(folder: Path) -> int:
    """Read headers only, so that it takes no memory, whatever the model's size."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if WEIGHT_FILE.fullmatch(file.name)]
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
