"""Records of what was measured: JSON files that are written whole or not at all, with all that a reader needs to repeat it."""

import hashlib
import json
import math
import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import CONFIG_NAME, cached_file

from hub_cards.records import hash_weight_files

VERSIONS_OF = (
    "modeling-rats",
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "scikit-image",
    "pillow",
)


def describe_run(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What every record says of how it came about: versions, the commit of a checkout, date and command.

    Args:
        module: Such as `evaluation.part_segmentation`.
        arguments: Those of its command line.
    """
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS_OF}},
        "commit": commit_of_checkout(Path(__file__).parent),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", module, *arguments]),
    }


def commit_of_checkout(folder: Path) -> str | None:
    """The commit that a folder of the project is at, with "+" if files differ from it; None where git knows of none."""
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True).stdout.strip()


def fingerprint_of_weights(model: torch.nn.Module) -> str:
    """A hash of a model's weights, so that records of the same model are known by it wherever its folder was."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hashes_of_weight_files(model: str, revision: str | None = None) -> dict[str, str]:
    """SHA-256 of the safetensors files of a model that has been loaded, by name: of its folder, or in the Hub's cache."""
    return hash_weight_files(Path(str(cached_file(model, CONFIG_NAME, revision=revision))).parent)


def fingerprint_of_sample(image: Image.Image, mask: np.ndarray) -> str:
    """A hash of one image's decoded pixels and its mask; another decoder of JPEG files may give another."""
    digest = hashlib.blake2b(f"{image.size} {mask.shape}".encode(), digest_size=16)
    digest.update(image.tobytes())
    digest.update(np.ascontiguousarray(mask, dtype=np.int64).data)
    return digest.hexdigest()


def fingerprint_of_arrays(image: Image.Image, *arrays: np.ndarray) -> str:
    """A hash of one image's decoded pixels and of arrays that belong to it, such as masks and their labels."""
    digest = hashlib.blake2b(str(image.size).encode(), digest_size=16)
    digest.update(image.tobytes())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def fingerprint_of_data(samples: Iterable[str]) -> str:
    """A hash of the fingerprints of all samples, in whatever order they were read."""
    return hashlib.blake2b("".join(sorted(samples)).encode(), digest_size=16).hexdigest()


def short_name(model: str) -> str:
    """A model's name in a table: a Hub name stays whole; of a path the folder's own name is told, since where it lies says
    nothing to others, or its run's, since pretraining calls each `model`."""
    if not os.path.exists(model):
        return model
    folder = Path(model).resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def refuse_folder(output: str | Path) -> None:
    """Called before the work, since a record cannot take a folder's name.

    Raises:
        IsADirectoryError: If there is a folder of this name.
    """
    if Path(output).is_dir():
        raise IsADirectoryError(f"output={output} is a folder; it must be the name of a JSON file. Name one, such as in it.")


def write_json(path: str | Path, record: Any) -> None:
    """Write a record whole or not at all; nan becomes null, since JSON has none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(_without_nan(record), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json_lines(path: Path) -> list[dict]:
    """The entries of a file of JSON lines; a last line that was cut off while it was written is left out."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
