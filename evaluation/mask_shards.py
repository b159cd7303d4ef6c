"""A folder of parquet shards with images and proxy masks, grown by several processes, so that an interrupted run goes on.

FOLDER/proxy_masks.json                    settings, and once all shards are there the counts and the broken images
FOLDER/.unfinished/SPLIT-00000.parquet     shards until the last one is written: `datasets` reads no hidden folders,
                                           so that nobody scores on a part of the data set without knowing
FOLDER/data/SPLIT-00000.parquet            the same shards then
FOLDER/README.md                           tells `datasets`, and readers on the Hub, which files are the split
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Features, Image, Value
from pyarrow import parquet

from evaluation.records import write_json

FEATURES = Features(
    {
        "image": Image(),
        "mask": Image(),
        "image_id": Value("int64"),
        "file_name": Value("string"),
        "num_masks": Value("int32"),
    }
)
_METADATA_KEY = b"proxy_masks"
_ROWS_IN_A_GROUP = 100  # what a reader holds in memory at once; also keeps a column below Arrow's 2 GiB of bytes
_README = """---
configs:
- config_name: default
  data_files:
  - split: {split}
    path: data/{split}-*.parquet
---

# Proxy masks

{method}

`image` is the file as it was, `mask` a label map of the image's size (0: in no mask), `image_id` the row in the data set
that was read, `file_name` its name there, `num_masks` the number of labels. Settings, versions and counts are in
`proxy_masks.json`.
"""


class MaskShards:
    """The shards of one split in one folder, with the settings they were made with.

    A shard is there whole or not at all, whichever process wrote it, so a run may go on with another number of processes.

    Args:
        folder: Made if it is missing.
        split: Its name in `datasets`.
        settings: All that decides what is in a shard; JSON. The text `method` is told in README.md, too.
        description: What else the record says of the run; JSON.

    Raises:
        ValueError: If the folder holds masks that were made with other settings, or other data.
    """

    def __init__(self, folder: str | Path, split: str, settings: Mapping[str, Any], description: Mapping[str, Any]):
        self.folder, self.split = Path(folder), split
        self.growing, self.whole = self.folder / ".unfinished", self.folder / "data"
        self.record_path = self.folder / "proxy_masks.json"
        self.record = {"finished": False, "settings": json.loads(json.dumps(settings)), **description}
        self._check()
        if not self.whole.is_dir():
            self._write_readme()  # from the start, or else `datasets` takes the record for data
            self.growing.mkdir(exist_ok=True)

    def has(self, shard: int) -> bool:
        """Whether this shard is written."""
        # In this order, since another process may move all shards from the first folder to the second at any time.
        return any((folder / self._name(shard)).is_file() for folder in (self.growing, self.whole))

    def write(self, shard: int, rows: Sequence[Mapping[str, Any]], broken_images: Sequence[Mapping[str, Any]]) -> None:
        """Write one shard.

        Args:
            shard: Its number, from 0.
            rows: Of FEATURES, images undecoded; there may be none.
            broken_images: What the record says of the images that were left out.
        """
        counts = {
            "images": len(rows),
            "masks": sum(row["num_masks"] for row in rows),
            "images_without_mask": sum(row["num_masks"] == 0 for row in rows),
            "broken_images": list(broken_images),
        }
        schema = FEATURES.arrow_schema
        schema = schema.with_metadata({**schema.metadata, _METADATA_KEY: json.dumps(counts)})
        temporary = self.growing / f".{self._name(shard)}.partial"  # what a killed run left is written anew
        with parquet.ParquetWriter(temporary, schema) as writer:
            for start in range(0, len(rows), _ROWS_IN_A_GROUP):
                writer.write_table(pyarrow.Table.from_pylist(rows[start : start + _ROWS_IN_A_GROUP], schema=schema))
        os.replace(temporary, self.growing / self._name(shard))

    def finish(self, num_shards: int) -> dict[str, Any] | None:
        """Once all shards are there, open the folder to readers; whoever comes last does so, and nobody waits for it.

        Returns:
            The record, or None while other processes are still at work.
        """
        if not all(self.has(shard) for shard in range(num_shards)):
            return None
        if not self.whole.is_dir():  # as it is if a run was killed right after
            try:
                os.rename(self.growing, self.whole)
            except FileNotFoundError:
                if not self.whole.is_dir():  # another process has been faster
                    raise
        self.record = {**self.record, "finished": True, "counts": {"shards": num_shards, **self._counts(num_shards)}}
        self.record["broken_images"] = self.record["counts"].pop("broken_images")
        self.record["counts"]["broken_images"] = len(self.record["broken_images"])
        write_json(self.record_path, self.record)
        return self.record

    def _name(self, shard: int) -> str:
        return f"{self.split}-{shard:05d}.parquet"

    def _write_readme(self) -> None:
        temporary = self.folder / f".README.md.{os.getpid()}.partial"
        temporary.write_text(_README.format(split=self.split, method=self.record["settings"]["method"]), encoding="utf-8")
        os.replace(temporary, self.folder / "README.md")

    def _counts(self, num_shards: int) -> dict[str, Any]:
        """What all shards say of themselves, added up."""
        names = [self.whole / self._name(shard) for shard in range(num_shards)]
        counts = [json.loads(parquet.read_metadata(name).metadata[_METADATA_KEY]) for name in names]
        return {key: sum((of_shard[key] for of_shard in counts), start=type(counts[0][key])()) for key in counts[0]}

    def _check(self) -> None:
        """Take over the record of the run that began here, or begin one."""
        if not self.record_path.is_file():
            if self.whole.exists():
                raise ValueError(
                    f"{self.folder} has a folder data but no {self.record_path.name}, so it holds something else than proxy "
                    "masks; they must have a folder of their own. Name another --output."
                )
            write_json(self.record_path, self.record)  # all processes write the same settings
            return
        written = json.loads(self.record_path.read_text(encoding="utf-8"))
        old, new = written["settings"], self.record["settings"]
        different = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        if different:
            told = "; ".join(f"{name} was {old.get(name)} and is now {new.get(name)}" for name in different)
            raise ValueError(
                f"{self.folder} holds proxy masks with other settings ({told}); all masks in a folder must be made alike. "
                "Start it with its own settings to go on, name another --output, or delete that folder to begin anew."
            )
        if written["finished"]:
            self.record = written
