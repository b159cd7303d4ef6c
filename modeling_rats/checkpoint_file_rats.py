# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Opens a checkpoint of torch or safetensors without running code, and finds the state dict in it."""

import argparse
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
WRAPPERS = ("teacher", "model", "state_dict", "student")  # in this order: the teacher is DINO's result


def is_checkpoint_file(path: str | os.PathLike) -> bool:
    """Whether a path names a file, there or missing, and not a folder or a Hub name."""
    path = Path(path)
    return path.is_file() or (path.suffix in CHECKPOINT_SUFFIXES and not path.is_dir())


def read_checkpoint_file(path: str | os.PathLike) -> Mapping[str, Any]:
    """The dict that a checkpoint file holds, on the CPU. Only tensors, plain containers and DINO's arguments are unpickled.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged, no checkpoint, or holds other objects, which could run any code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}; give a file, a folder of transformers or a Hub name.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error}); download or copy it again.") from error
    try:
        # Beside tensors, the full checkpoints of DINO hold the arguments of their run.
        with torch.serialization.safe_globals([argparse.Namespace]):
            entries = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file that is no checkpoint, torch raises what its bytes lead it to
        if _is_cut_short(path):
            raise ValueError(
                f"{path} ({path.stat().st_size:,} bytes) is damaged: it begins as a checkpoint of torch and has no end, as "
                "after a download that was interrupted. Download or copy it again."
            ) from error
        raise ValueError(
            f"{path} is no checkpoint of torch, or holds more than tensors. Objects in a pickle can run any code, so it is not "
            "opened. If it is a checkpoint that you trust, load it yourself and pass its state dict."
        ) from error
    if not isinstance(entries, Mapping):
        raise ValueError(f"{path} holds a {type(entries).__name__}, but must hold a state dict, or a dict with one in it.")
    return entries


def unwrap(entries: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The state dict in a training checkpoint, and each entry beside it with the reason why it is left."""
    chosen = next((name for name in WRAPPERS if isinstance(entries.get(name), Mapping)), None)
    if chosen is None:
        return entries, {}
    beside = dict.fromkeys((name for name in entries if name != chosen), f"the weights are those of {chosen!r}")
    inner, beside_inner = unwrap(entries[chosen])
    return inner, beside | beside_inner


def _is_cut_short(path: Path) -> bool:
    """Whether a file begins as a zip archive, as torch writes them, and lacks the directory at its end."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(path)


__all__ = ["CHECKPOINT_SUFFIXES", "WRAPPERS", "is_checkpoint_file", "read_checkpoint_file", "unwrap"]
