"""The log of a run as JSON lines, of which none is lost and none stands twice, however often the run is interrupted."""

import json
import os
from pathlib import Path

from evaluation.records import read_json_lines


class JsonLog:
    """One JSON object a line, appended and flushed at once.

    Args:
        path: The log file.
        first_step: Lines of this step and later are dropped: a resumed run writes them again.
    """

    def __init__(self, path: Path, first_step: int = 0):
        kept = [line for line in read_json_lines(path) if line["step"] < first_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 (open as long as the run)

    def write(self, entry: dict) -> None:
        self._file.write(json.dumps(entry) + "\n")
