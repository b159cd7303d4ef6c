"""Checkpoints that are whole or refused: one file, written to a temporary name and renamed, that ends in its checksum.

Tensors and plain values only, so that loading never unpickles objects (`weights_only=True`).
"""

import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

_NAME = re.compile(r"step_(\d{8})\.pt")
# Behind what torch.save wrote, which torch.load does not mind: a mark, the number of bytes before it and their CRC-32.
# That finds torn and damaged files at several GiB/s; it is no protection against forgery, which `weights_only` is.
_MARK = b"RATSsum1"
_TRAILER = struct.Struct("<8sQI")
_CHUNK_BYTES = 1 << 24


def save(folder: Path, step: int, state: dict, keep: int, keep_every_steps: int = 0) -> Path:
    """Writes the state of `step`, then removes the checkpoints that are not to be kept.

    Args:
        folder: Folder of the run's checkpoints; made if missing.
        step: Number of finished steps.
        state: Tensors and plain values.
        keep: How many of the newest checkpoints stay.
        keep_every_steps: The first checkpoint at or after every multiple of it stays too; 0: none.

    Returns:
        The path of the new checkpoint.

    Raises:
        OSError: If it cannot be written, as on a full disk. The checkpoints that there are stay as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob("step_*.tmp"):  # of a run that was killed while it wrote
        torn.unlink()
    path = folder / f"step_{step:08d}.pt"
    temporary = path.with_suffix(".tmp")
    try:
        _write(temporary, state)
        os.replace(temporary, path)
        _sync_names(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    stay = kept([_step_of(other) for other in list_checkpoints(folder)], step, keep, keep_every_steps)
    for other in list_checkpoints(folder):
        if _step_of(other) not in stay:
            other.unlink()
    return path


def kept(steps: list[int], newest: int, keep: int, keep_every_steps: int) -> set[int]:
    """The steps, of those in ascending order, whose checkpoints stay; those after `newest` are of a run that it replaces."""
    steps = [step for step in steps if step <= newest]
    stay = set(steps[-keep:])
    if keep_every_steps:
        first_after = {step // keep_every_steps: step for step in reversed(steps) if step >= keep_every_steps}
        stay |= set(first_after.values())
    return stay


class _SummedFile:
    """A file that sums what is written to it, and remembers why it could not be written."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.size, self.checksum = 0, 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.size, self.checksum = self.size + written, zlib.crc32(data, self.checksum)
        return written

    def flush(self) -> None:
        """Left to the end, when the trailer is written too."""


def _write(path: Path, state: dict) -> None:
    with open(path, "wb", buffering=_CHUNK_BYTES) as file:
        summed = _SummedFile(file)
        try:
            torch.save(state, summed)  # type: ignore[arg-type]  # it only writes and flushes
        except Exception as error:
            raise summed.error or error from None  # torch.save puts an error of its own in front of the disk's
        file.write(_TRAILER.pack(_MARK, summed.size, summed.checksum))
        file.flush()
        os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    """The new name reaches the disk before an older checkpoint is removed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name))


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


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


def load_wanted(resume: str, folder: Path, report: Callable[[str], object] = print) -> tuple[Path, dict] | None:
    """The checkpoint that `--resume` means and its state. Of `auto` the newest that is sound; those passed over are told of.

    Raises:
        FileNotFoundError: If `resume` is a path at which there is no checkpoint.
        ValueError: If the checkpoint of that path, or every one of the run, is damaged.
    """
    path = find(resume, folder)
    if path is None:
        return None
    if resume != "auto":
        return path, load(path)
    reasons = []
    for path in reversed(list_checkpoints(folder)):
        try:
            state = load(path)
        except ValueError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            report(f"Passed over: {reason}")
        return path, state
    raise ValueError("\n".join([*reasons, f"No checkpoint in {folder} is sound; start anew with --resume none."]))


def load(path: Path) -> dict:
    """The state in a checkpoint, on the CPU.

    Raises:
        ValueError: If the file is torn, damaged or not a checkpoint.
    """
    try:
        with open(path, "rb") as file:
            _check_sum(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:
        # The text of torch.load advises to unpickle whatever is there.
        reason = error if isinstance(error, _Damaged | OSError) else type(error).__name__
        raise ValueError(
            f"checkpoint {path} cannot be read ({reason}); it must be a file that training/pretrain.py has written whole: name "
            "another with --resume PATH, let --resume auto take the newest sound one of output_dir, or start anew with "
            "--resume none."
        ) from error


class _Damaged(Exception):
    """A checkpoint is not what was written."""


def _check_sum(file: BinaryIO) -> None:
    """Compares the file with its trailer, and rewinds it. Files from before there was one are left to torch.load."""
    size = file.seek(0, os.SEEK_END) - _TRAILER.size
    file.seek(max(size, 0))
    trailer = file.read()
    file.seek(0)
    if not trailer.startswith(_MARK) or size < 0:
        return
    _, written_size, written_checksum = _TRAILER.unpack(trailer)
    checksum, left = 0, size
    while left:
        chunk = file.read(min(_CHUNK_BYTES, left))
        checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
    file.seek(0)
    if (size, checksum) != (written_size, written_checksum):
        raise _Damaged(
            f"damaged: {size} bytes with checksum {checksum:08x}, and {written_size} with {written_checksum:08x} were written"
        )
