"""`datasets` rows -> images -> views -> batches, from one or several sources, over ranks and loader workers, with resume.

B batch  V views
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, get_worker_info

from evaluation.data_sets import decode_image
from training.source_rows import Source, UnreadableImagesError, mix

Position = tuple[int, ...]
"""Where a loader worker stands: of each source in turn its epoch, and the rows of the worker's share of it already read."""

BROKEN_JUDGED_FROM = 500
"""Images that a worker has tried before it judges the share of broken ones."""

# First words of the seeds, so that no two uses draw the same numbers.
_SHARD_ORDER, _WINDOW, _VIEWS, _SOURCE = range(4)


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

    @property
    def epoch(self) -> int:
        """The epoch that the worker is in; of several sources, of the one that it has gone through least often."""
        return min(self.position[::2])

    def pin_memory(self) -> "Batch":
        """Called by the loader for a GPU, so that views can be copied while it computes."""
        self.views = [view.pin_memory() for view in self.views]
        return self


class ViewStream(torch.utils.data.IterableDataset):
    """An endless stream of views of one rank's images, whose loader workers each read a share of their own.

    Each worker draws, image after image, the source that the next one comes from, with the sources' weights as probabilities.
    Every source has epochs of its own, whose rows are dealt to the workers of all ranks (`source_rows.Source`).

    Each worker mixes its share over a window of `shuffle_buffer` rows; where rows are dealt to R workers one by one, that is R
    times as many of the data set's. It goes through one epoch after the other, so nothing is dropped at an epoch's end. What a
    run drops is the rest of the epoch that each worker is in when the run ends.

    The order of a source is a function of (seed, epoch, rank, worker) and their numbers, the views of an image one of its place
    in it, and the next source one of the worker's place in all of them. So a worker that starts at a saved position gives
    exactly what would have come: it reads the rows before it undecoded.

    Args:
        sources: One or several data sets.
        make_views: PIL RGB image and random generator -> views.
        seed: Seed of order and views.
        rank: This process among `num_ranks`.
        num_ranks: Number of processes that share the data.
        num_workers: Loader processes; 0 reads in the main process.
        shuffle_buffer: Rows of a worker's share of a source that its order is mixed over, besides the order of the shards.
        max_broken_share: Share of broken images, from 0 to 1, past which a worker that has tried `BROKEN_JUDGED_FROM` images
            gives up.

    Attributes:
        positions: Where each worker stands.
        next_worker: Whose turn it is; workers make batches in turn. Set both before iterating to go on from there.

    Raises:
        UnreadableImagesError: If a file cannot be read; while iterating also if too many images are broken, or a worker's share
            of a source holds no image.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        make_views: Callable[[Image.Image, np.random.Generator], list[np.ndarray]],
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        num_workers: int = 0,
        shuffle_buffer: int = 1000,
        max_broken_share: float = 1.0,
    ):
        self.num_readers = num_ranks * max(num_workers, 1)
        self.sources = [source.for_readers(self.num_readers) for source in sources]
        weights = np.array([source.weight for source in sources])
        self.probabilities = weights / weights.sum()
        self.make_views = make_views
        self.seed = seed
        self.rank = rank
        self.num_workers = num_workers
        self.shuffle_buffer = shuffle_buffer
        self.max_broken_share = max_broken_share
        self.positions: dict[int, Position] = {}
        self.next_worker = 0

    def __iter__(self) -> Iterator[Sample]:
        worker_info = get_worker_info()
        # The loader begins with its first process, whichever worker's turn it is.
        worker = (worker_info.id + self.next_worker) % self.num_workers if worker_info else 0
        reader = self.rank * max(self.num_workers, 1) + worker
        tally = Tally(f"worker {worker} of rank {self.rank}", self.max_broken_share)
        position = self.positions.get(worker, (0, 0) * len(self.sources))
        places = zip(position[::2], position[1::2], strict=True)
        images = [self._images(number, reader, *place, tally) for number, place in enumerate(places)]
        while True:
            random = np.random.default_rng([_SOURCE, self.seed, reader, *position])
            number = int(random.choice(len(images), p=self.probabilities))
            image, (epoch, rows_read), broken = next(images[number])
            random = self._random(_VIEWS, number, reader, epoch, rows_read - 1)
            position = (*position[: 2 * number], epoch, rows_read, *position[2 * number + 2 :])
            yield Sample(self.make_views(image, random), worker, position, broken)

    def _images(
        self, number: int, reader: int, epoch: int, rows_read: int, tally: "Tally"
    ) -> Iterator[tuple[Image.Image, tuple[int, int], list[str]]]:
        """A reader's images of a source, without end: image, (epoch, rows read with it), broken ones before it."""
        source = self.sources[number]
        of_source = f" of {source.name}" if len(self.sources) > 1 else ""
        broken: list[str] = []
        while True:
            readable = 0
            for index, row in enumerate(self._share(number, epoch, reader)):
                if index < rows_read:
                    readable += 1
                    continue
                try:
                    image = _decode(row[source.image_column])
                except Exception as error:  # whatever a decoder raises, the stream goes on
                    place = f"row {index} of {tally.reader} in epoch {epoch}{of_source}"
                    broken.append(f"{_identity(row[source.image_column])} ({place}): {type(error).__name__}: {error}")
                    tally.count(broken[-1])
                    continue
                tally.count()
                readable += 1
                yield image, (epoch, index + 1), broken
                broken = []
            if not readable:
                raise UnreadableImagesError(
                    f"{tally.reader} read no image in epoch {epoch}{of_source} ({len(broken)} broken"
                    f"{', the first: ' + broken[0] if broken else ''}); the data set must hold at least one readable "
                    "image per worker: check --dataset and --dataset_split, or lower --num_workers."
                )
            epoch, rows_read = epoch + 1, 0

    def _share(self, number: int, epoch: int, reader: int) -> Iterator[dict]:
        """The rows of one epoch of a source that are this reader's among the workers of all ranks, mixed."""
        rows = self.sources[number].share(reader, self.num_readers, self._random(_SHARD_ORDER, number, epoch))
        return mix(rows, self.shuffle_buffer, self._random(_WINDOW, number, reader, epoch))

    def _random(self, use: int, number: int, *numbers: int) -> np.random.Generator:
        """The generator of one use of a source; the first source has those that it would have alone."""
        return np.random.default_rng([use, self.seed, *numbers, *([number] if number else [])])


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
    """Endless batches of a stream, made by its workers in turn.

    Raises:
        UnreadableImagesError: While iterating, as the stream.
    """
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
    return _without_tracebacks(iter(loader))  # whose workers start here, not at the first batch


def _without_tracebacks(loader_batches: Iterator[Batch]) -> Iterator[Batch]:
    """The loader tells a worker's error as the text of its traceback, which ends in the message."""
    try:
        yield from loader_batches
    except UnreadableImagesError as error:
        message = str(error).rpartition(f"{UnreadableImagesError.__name__}: ")[2].strip()
        raise UnreadableImagesError(message) from error


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
