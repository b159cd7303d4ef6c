"""What the ranks of an evaluation have finished, on disk: there they meet, and from there an interrupted run goes on."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from evaluation.records import read_json_lines, refuse_folder, write_json


class Journal:
    """A folder beside the record that is to be: the settings of the run, and a file of JSON lines a rank, a line a batch.

    A batch is finished when its line is there, whoever wrote it, so a run may go on with another number of ranks.

    Args:
        output: The record that the run will write; the journal is `.<its name>.journal` beside it.
        settings: All that decides what a batch's line says; JSON.
        rank: Of this process; each writes a file of its own.

    Raises:
        IsADirectoryError: If the record would have the name of a folder.
        ValueError: If there is an unfinished run with other settings, of which a batch is finished.
    """

    def __init__(self, output: str | Path, settings: dict[str, Any], rank: int = 0):
        output = Path(output)
        refuse_folder(output)
        self.folder = output.with_name(f".{output.name}.journal")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check(output, json.loads(json.dumps(settings)))
        self.path = self.folder / f"rank{rank:05d}.jsonl"
        self.finished = {entry["batch"] for entry in self._read()}
        kept = read_json_lines(self.path)  # without a line that was cut off
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        os.replace(temporary, self.path)

    def write(self, batch: int, entry: dict[str, Any]) -> None:
        """One batch is finished."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"batch": batch, **entry}) + "\n")

    def entries(self, num_batches: int) -> list[dict[str, Any]]:
        """The lines of all ranks, in the order of the batches.

        Raises:
            RuntimeError: If one is missing.
        """
        by_batch = {entry["batch"]: entry for entry in self._read()}
        missing = [batch for batch in range(num_batches) if batch not in by_batch]
        if missing:
            raise RuntimeError(
                f"{self.folder} lacks {len(missing)} of {num_batches} batches (the first: {missing[0]}), so a rank has ended "
                "early; start the same command again to go on."
            )
        return [by_batch[batch] for batch in range(num_batches)]

    def remove(self) -> None:
        """The record is written; the journal has done its work."""
        shutil.rmtree(self.folder)

    def _read(self) -> list[dict[str, Any]]:
        return [entry for path in sorted(self.folder.glob("rank*.jsonl")) for entry in read_json_lines(path)]

    def _check(self, output: Path, settings: dict[str, Any]) -> None:
        path = self.folder / "settings.json"
        if not path.is_file() or not self._read():  # a run that finished nothing binds nobody to its settings
            write_json(path, settings)  # all ranks write the same
            return
        written = json.loads(path.read_text())
        different = sorted(name for name in written.keys() | settings.keys() if written.get(name) != settings.get(name))
        if different:
            told = "; ".join(f"{name} was {written.get(name)} and is now {settings.get(name)}" for name in different)
            raise ValueError(
                f"{self.folder} holds an unfinished run for {output.name} with other settings ({told}). Start it with its own "
                "settings to go on, name another --output, or delete that folder to begin anew."
            )
