"""The rows of one data set, dealt to the loader workers of all ranks, in a new order each epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node

SHARDS_EACH = 16
"""Fewest shards that a reader gets whole; with fewer, shares would differ by more than a sixteenth, and rows are dealt."""


class UnreadableImagesError(RuntimeError):
    """The data cannot be trained on: a worker finds no image at all, too many broken ones, or a file that cannot be read."""


@dataclass
class Source:
    """A data set that a stream draws from; its readers are the loader workers of all ranks.

    An epoch's rows, its shards in a new order, are dealt to R readers: reader r takes the rows r, r + R, r + 2R, ..., so shares
    differ by one row at most however many shards there are and however unequal. That makes every reader read all rows
    (undecoded). So if there are `SHARDS_EACH` shards or more for each (files; row groups of parquet, where files are too few),
    whole shards are dealt instead, and shares differ by a shard.

    Args:
        name: What messages call it.
        rows: Streamed, its images not decoded (`evaluation.data_sets.open_images`).
        image_column: Name of the column of images.
        weight: It gives images in proportion to its weight among those of all sources.
    """

    name: str
    rows: datasets.IterableDataset
    image_column: str
    weight: float = 1.0

    def deals_shards(self, num_readers: int) -> bool:
        """Whether readers get whole shards, rather than rows in turn."""
        return self.rows.num_shards >= SHARDS_EACH * num_readers

    def for_readers(self, num_readers: int) -> "Source":
        """The same in smaller shards, where there are too few to deal them whole.

        Raises:
            UnreadableImagesError: If a file cannot be read.
        """
        if self.deals_shards(num_readers):
            return self
        with self._reading():
            return replace(self, rows=self.rows.reshard())

    def share(self, reader: int, num_readers: int, shard_order: np.random.Generator) -> Iterator[dict]:
        """A reader's rows of an epoch; all readers must pass a generator in the same state, to agree on what they split.

        Raises:
            UnreadableImagesError: While iterating, if a file cannot be read.
        """
        by = "shards" if self.deals_shards(num_readers) else "examples"
        share = split_dataset_by_node(self.rows, reader, num_readers, by)
        share.set_epoch(int(shard_order.integers(1, 2**62)))  # `datasets` orders shards by its epoch number
        with self._reading():
            # Unlike iter(), iter(batch_size) does not split once more by the loader's workers.
            for batch in share.iter(batch_size=1):
                yield {name: values[0] for name, values in batch.items()}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tells of which data set it is what goes wrong inside: of a torn file each format's library raises what it likes."""
        try:
            yield
        except Exception as error:
            said = str(error).strip().rstrip(".")
            raise UnreadableImagesError(
                f"{self.name} cannot be read: {type(error).__name__}: {said}. A file of it is torn or out of reach: mend it or "
                "remove it and start the same command again; --resume goes on from the last checkpoint."
            ) from error


def mix(rows: Iterator[dict], window: int, random: np.random.Generator) -> Iterator[dict]:
    """Rows in random order: each next one is drawn from `window` rows, and its place is taken by the next that comes in."""
    held: list[dict] = []
    for row in rows:
        if len(held) < window:
            held.append(row)
            continue
        place = random.integers(window)
        drawn, held[place] = held[place], row
        yield drawn
    for place in random.permutation(len(held)):
        yield held[place]
