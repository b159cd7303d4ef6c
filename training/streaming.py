"""`datasets` rows -> images -> views -> batches, over ranks and loader workers, with resume and broken images.

B batch  V views
"""

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
    """An endless stream of views of one rank's images; each loader worker reads its own shards of them.

    The order is a function of (seed, epoch, rank, worker), and the views of an image one of its place in it, so a worker
    that starts at a saved position gives exactly what would have come: it reads the rows before it without decoding them.

    Args:
        rows: A streamed data set whose images are not decoded (`evaluation.data_sets.open_images`).
        image_column: Name of the column of images.
        make_views: PIL RGB image and random generator -> views.
        seed: Seed of order and views.
        rank: This process among `num_ranks`.
        num_ranks: Number of processes that share the data.
        num_workers: Loader processes wanted; a worker without a shard to read would give nothing, so there are at most as
            many as this rank has shards. 0 reads in the main process.
        shuffle_buffer: Rows that the order is mixed over, besides the order of the shards.

    Attributes:
        positions: Where each worker stands: set it before iterating to go on from there.
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
    ):
        # Shuffled before the split, so that all ranks agree on the order that they split.
        shuffled = rows.shuffle(seed=seed, buffer_size=shuffle_buffer, max_buffer_input_shards=1)
        self.rows = split_dataset_by_node(shuffled, rank=rank, world_size=num_ranks)
        self.image_column = image_column
        self.make_views = make_views
        self.seed = seed
        self.rank = rank
        self.num_workers = min(num_workers, self.rows.num_shards)
        self.positions: dict[int, Position] = {}

    def __iter__(self) -> Iterator[Sample]:
        worker_info = get_worker_info()
        worker = worker_info.id if worker_info else 0
        epoch, rows_read = self.positions.get(worker, (0, 0))
        broken: list[str] = []
        while True:
            readable = 0
            self.rows._epoch = torch.tensor(epoch)  # set_epoch would write into memory that all loader workers share
            for index, row in enumerate(self.rows):  # `datasets` gives a loader worker its own shards
                if index < rows_read:
                    readable += 1
                    continue
                try:
                    image = decode_image(row[self.image_column])
                except Exception as error:  # whatever a decoder raises, the stream goes on
                    broken.append(f"{_identity(row[self.image_column], worker, epoch, index)}: {error}")
                    continue
                readable += 1
                random = np.random.default_rng([self.seed, self.rank, worker, epoch, index])
                yield Sample(self.make_views(image, random), worker, (epoch, index + 1), broken)
                broken = []
            if not readable:
                raise RuntimeError(
                    f"worker {worker} of rank {self.rank} read no image in epoch {epoch} ({len(broken)} broken"
                    f"{', the first: ' + broken[0] if broken else ''}); the data set must hold at least one readable "
                    "image per worker: check --dataset and --dataset_split, or lower --num_workers."
                )
            epoch, rows_read = epoch + 1, 0


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


def _identity(image: dict | None, worker: int, epoch: int, index: int) -> str:
    path = (image or {}).get("path")
    return path or f"row {index} of worker {worker} in epoch {epoch}"
