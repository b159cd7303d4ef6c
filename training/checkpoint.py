"""Checkpoints that are whole or not there: one file, written to a temporary name and renamed.

Tensors and plain values only, so that loading never unpickles objects (`weights_only=True`).
"""

import os
import re
from pathlib import Path

import torch

_NAME = re.compile(r"step_(\d{8})\.pt")


def save(folder: Path, step: int, state: dict, keep: int) -> Path:
    """Writes the state of `step`, then removes all but the newest `keep` checkpoints.

    Args:
        folder: Folder of the run's checkpoints; made if missing.
        step: Number of finished steps.
        state: Tensors and plain values.
        keep: How many checkpoints stay.

    Returns:
        The path of the new checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    checkpoints = list_checkpoints(folder)
    newest = checkpoints.index(path) + 1  # later ones are of a run that this one replaces
    for other in checkpoints[: max(newest - keep, 0)] + checkpoints[newest:]:
        other.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name))


def find(resume: str, folder: Path) -> Path | None:
    """The checkpoint that `--resume` means: `auto` the newest of the run if there is one, `none`, or a path.

    Raises:
        FileNotFoundError: If `resume` is a path at which there is no checkpoint.
    """
    if resume == "none":
        return None
    if resume == "auto":
        checkpoints = list_checkpoints(folder)
        return checkpoints[-1] if checkpoints else None
    path = Path(resume)
    found = list_checkpoints(path)[-1:] if path.is_dir() else [path] * path.is_file()
    if not found:
        there = ", ".join(checkpoint.name for checkpoint in list_checkpoints(folder)) or "none"
        raise FileNotFoundError(
            f"resume={resume} is no checkpoint: it must be a step_*.pt file or a folder of them, `auto` or `none` "
            f"(checkpoints of this run in {folder}: {there})."
        )
    return found[0]


def load(path: Path) -> dict:
    """The state in a checkpoint, on the CPU.

    Raises:
        ValueError: If the file is torn or not a checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); it must be a file written by training/pretrain.py: "
            "delete it to go on from the one before, or start anew with --resume none."
        ) from error
