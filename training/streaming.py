"""`datasets` rows -> images -> views -> batches, over ranks and loader workers, with resume and broken images.

B batch  V views
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import DataLoader, get_worker_info

from evaluation.data_sets import decode_image

Position = tuple[int, int]
"""Where a loader worker stands: (epoch, rows of its share of that epoch already read)."""

SHARDS_EACH = 16
"""Fewest shards that a worker reads whole; with fewer, shares would differ by more than a sixteenth, and rows are dealt."""

BROKEN_JUDGED_FROM = 500
"""Images that a worker has tried before it judges the share of broken ones."""

# First words of the seeds, so that no two uses draw the same numbers.
_SHARD_ORDER, _WINDOW, _VIEWS = range(3)


class UnreadableImagesError(RuntimeError):
    """The data cannot be trained on: a worker finds no image at all, or too many that are broken."""


@dataclass
class Sample:
    """One image as views, uint8, (height, width, 3) each, and what the worker passed on the way to it."""

    views: list[np.ndarray]
    worker: int
    position: Position
    broken: list[str] = field(default_factory=list)


@dataclass
class Batch:
    """B images as V views, uint8, (B, height, width, 3) each; the position of the worker that made it; broken images."""

    views: list[torch.Tensor]
    worker: int
    position: Position
    broken: list[str]

    def pin_memory(self) -> "Batch":
        """Called by the loader for a GPU, so that views can be copied while it computes."""
        self.views = [view.pin_memory() for view in self.views]
        return self


class ViewStream(torch.utils.data.IterableDataset):
    """An endless stream of views of one rank's images, whose loader workers each read a share of their own.

    An epoch's rows, its shards in a new order, are dealt to the workers of all ranks: worker w of R takes the rows w, w + R,
    w + 2R, ..., so shares differ by one row at most however many shards there are and however unequal. That makes every
    worker read all rows (undecoded). So if there are `SHARDS_EACH` shards or more for each worker (files; row groups of
    parquet, where files are too few), whole shards are dealt instead, and shares differ by a shard.

    Each worker mixes its share over a window of `shuffle_buffer` rows; where rows are dealt, that is R times as many of the
    data set's. It goes through one epoch after the other, so nothing is dropped at an epoch's end. What a run drops is the
    rest of the epoch that each worker is in when the run ends.

    The order is a function of (seed, epoch, rank, worker) and their numbers, and the views of an image one of its place in it,
    so a worker that starts at a saved position gives exactly what would have come: it reads the rows before it undecoded.

    Args:
        rows: A streamed data set whose images are not decoded (`evaluation.data_sets.open_images`).
        image_column: Name of the column of images.
        make_views: PIL RGB image and random generator -> views.
        seed: Seed of order and views.
        rank: This process among `num_ranks`.
        num_ranks: Number of processes that share the data.
        num_workers: Loader processes; 0 reads in the main process.
        shuffle_buffer: Rows of a worker's share that its order is mixed over, besides the order of the shards.
        max_broken_share: Share of broken images, from 0 to 1, past which a worker that has tried `BROKEN_JUDGED_FROM` images
            gives up.

    Attributes:
        positions: Where each worker stands: set it before iterating to go on from there.

    Raises:
        UnreadableImagesError: While iterating, if too many images are broken, or a worker's share holds no image.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        image_column: str,
        make_views: Callable[[Image.Image, np.random.Generator], list[np.ndarray]],
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        num_workers: int = 0,
        shuffle_buffer: int = 1000,
        max_broken_share: float = 1.0,
    ):
        fewest_shards = SHARDS_EACH * num_ranks * max(num_workers, 1)
        self.rows = rows if rows.num_shards >= fewest_shards else rows.reshard()
        self.by_shards = self.rows.num_shards >= fewest_shards
        self.image_column = image_column
        self.make_views = make_views
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.num_workers = num_workers
        self.shuffle_buffer = shuffle_buffer
        self.max_broken_share = max_broken_share
        self.positions: dict[int, Position] = {}

    def __iter__(self) -> Iterator[Sample]:
        worker_info = get_worker_info()
        worker = worker_info.id if worker_info else 0
        reader = self.rank * max(self.num_workers, 1) + worker
        epoch, rows_read = self.positions.get(worker, (0, 0))
        tally = Tally(f"worker {worker} of rank {self.rank}", self.max_broken_share)
        broken: list[str] = []
        while True:
            readable = 0
            for index, row in enumerate(self._share(epoch, reader)):
                if index < rows_read:
                    readable += 1
                    continue
                try:
                    image = _decode(row[self.image_column])
                except Exception as error:  # whatever a decoder raises, the stream goes on
                    place = f"row {index} of {tally.reader} in epoch {epoch}"
                    broken.append(f"{_identity(row[self.image_column])} ({place}): {type(error).__name__}: {error}")
                    tally.count(broken[-1])
                    continue
                tally.count()
                readable += 1
                random = np.random.default_rng([_VIEWS, self.seed, reader, epoch, index])
                yield Sample(self.make_views(image, random), worker, (epoch, index + 1), broken)
                broken = []
            if not readable:
                raise UnreadableImagesError(
                    f"{tally.reader} read no image in epoch {epoch} ({len(broken)} broken"
                    f"{', the first: ' + broken[0] if broken else ''}); the data set must hold at least one readable "
                    "image per worker: check --dataset and --dataset_split, or lower --num_workers."
                )
            epoch, rows_read = epoch + 1, 0

    def _share(self, epoch: int, reader: int) -> Iterator[dict]:
        """The rows of one epoch that are this reader's among the workers of all ranks, mixed."""
        readers = self.num_ranks * max(self.num_workers, 1)
        share = split_dataset_by_node(self.rows, reader, readers, "shards" if self.by_shards else "examples")
        # `datasets` orders shards by its epoch number; the same for all, who must agree on the order that they split.
        share.set_epoch(int(np.random.default_rng([_SHARD_ORDER, self.seed, epoch]).integers(1, 2**62)))
        # Unlike iter(), iter(batch_size) does not split once more by the loader's workers.
        rows = ({name: values[0] for name, values in batch.items()} for batch in share.iter(batch_size=1))
        return mix(rows, self.shuffle_buffer, np.random.default_rng([_WINDOW, self.seed, reader, epoch]))


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


@dataclass
class Tally:
    """Counts the images that a reader has tried since it started, and gives up when too many of them are broken."""

    reader: str
    max_broken_share: float
    tried: int = 0
    broken: int = 0
    first: list[str] = field(default_factory=list)

    def count(self, broken: str | None = None) -> None:
        self.tried += 1
        if broken is not None:
            self.broken += 1
            self.first = [*self.first, broken][:3]
        if self.tried >= BROKEN_JUDGED_FROM and self.broken > self.max_broken_share * self.tried:
            raise UnreadableImagesError(
                f"{self.reader} found {self.broken} of {self.tried} images broken, more than "
                f"max_broken_share={self.max_broken_share:g} allows; the first: {'; '.join(self.first)}. Mend the data, or "
                "allow more with --max_broken_share (1 allows all)."
            )


def batches(stream: ViewStream, batch_size: int) -> Iterator[Batch]:
    """Endless batches of a stream, made by its workers in turn."""
    loader = DataLoader(
        stream,
        batch_size=batch_size,
        generator=torch.Generator(),  # or its seed would be drawn from the state that resuming has restored
        num_workers=stream.num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        # Forking after threads have started can hang, and a fork server's children outlive a killed main process.
        multiprocessing_context="spawn" if stream.num_workers else None,
    )
    return iter(loader)


def collate(samples: list[Sample]) -> Batch:
    views = [torch.from_numpy(np.stack(view)) for view in zip(*(sample.views for sample in samples), strict=True)]
    last = samples[-1]
    return Batch(views, last.worker, last.position, [name for sample in samples for name in sample.broken])


def _decode(image: dict | None) -> Image.Image:
    """An image of at most `PIL.Image.MAX_IMAGE_PIXELS`; PIL itself decodes twice as many with a mere warning."""
    if image is None:
        raise ValueError("the row holds no image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's do not tell of which image they speak
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return decode_image(image)


def _identity(image: dict | None) -> str:
    """What a broken image can be found by: its path, or the hash of its bytes."""
    if image is None or (image.get("path") is None and image.get("bytes") is None):
        return "missing image"
    return image.get("path") or f"image of sha256 {hashlib.sha256(image['bytes']).hexdigest()[:16]}"
