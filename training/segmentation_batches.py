"""Which segmented images a step of fine-tuning takes, and how they become a batch: on any number of ranks, and after a resume.

B batch  S segments
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from evaluation.segmentation_data import BrokenImageError, SegmentationSample
from training.segmentation_transforms import TrainingSample, TrainingTransform
from training.source_rows import UnreadableImagesError

Place = tuple[int, int]
"""An epoch, and the number of an image in the data set."""

# First words of the seeds, so that no two uses draw the same numbers.
_ORDER, _AUGMENTATION = range(2)


class PlacedSample(NamedTuple):
    """An augmented image, and what was wrong with those that it stands in for."""

    sample: TrainingSample
    broken: list[str]


class TrainingSegments(Dataset[PlacedSample]):
    """Augmented images by epoch and number, the same whichever process makes them.

    An image that cannot be decoded is replaced by the next one that can, in the data set's order, and reported; an annotation
    that cannot be used is an error, for it may be wrong in all images.

    Args:
        data: Segmented images, such as `evaluation.segmentation_data.open_segmentation_data` gives.
        transform: The augmentation.
        seed: Of the augmentation.
    """

    def __init__(self, data: Sequence[SegmentationSample], transform: TrainingTransform, seed: int):
        self.data = data
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: Place) -> PlacedSample:
        """A sample, which is a function of the seed and its place alone; torch's generators are left as they were.

        Raises:
            UnreadableImagesError: If no image can be decoded.
            ValueError: If an annotation cannot be used.
        """
        epoch, index = place
        sample, broken = self._readable(index)
        seed = np.random.SeedSequence([_AUGMENTATION, self.seed, epoch, index]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))  # torch.manual_seed would change those of GPUs
            return PlacedSample(self.transform(sample), broken)

    def _readable(self, index: int) -> tuple[SegmentationSample, list[str]]:
        broken: list[str] = []
        for number in range(len(self.data)):
            try:
                return self.data[(index + number) % len(self.data)], broken
            except BrokenImageError as error:
                broken.append(str(error))
        raise UnreadableImagesError(f"None of {len(self.data)} images can be decoded; the first: {broken[0]}")


class StepBatches(Sampler[list[Place]]):
    """The places of each step's images that are one rank's: a batch sampler for a DataLoader.

    Epochs, each in an order of its own, follow one another without end. Step t of all ranks takes the places t x batch to
    (t + 1) x batch - 1 of them, in a batch that may reach into the next epoch; each rank takes an equal part of it, the first
    ranks the first. So the images of a step are the same on any number of ranks, and to resume takes the step's number alone.

    Args:
        num_images: In the data set.
        batch_size: Images a step, of all ranks together.
        seed: Of the order.
        rank: This process among `num_ranks`.
        num_ranks: Number of processes that share the data.
        first_step: The step to begin with.
        num_steps: The steps of a whole run, at which it ends; without end when None.

    Raises:
        ValueError: If there are no images, or the batch cannot be shared equally.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        first_step: int = 0,
        num_steps: int | None = None,
    ):
        if num_images < 1:
            raise ValueError(f"num_images={num_images} must be at least 1; choose another split.")
        if batch_size < 1 or batch_size % num_ranks:
            raise ValueError(
                f"batch_size={batch_size} must be a multiple of num_ranks={num_ranks} (each takes an equal part of it); use "
                f"{max(round(batch_size / num_ranks), 1) * num_ranks}."
            )
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.first_step = first_step
        self.num_steps = num_steps

    def __iter__(self) -> Iterator[list[Place]]:
        share = self.batch_size // self.num_ranks
        order, order_epoch = np.empty(0, np.int64), -1
        step = self.first_step
        while self.num_steps is None or step < self.num_steps:
            start = step * self.batch_size + self.rank * share
            places = []
            for number in range(start, start + share):
                epoch, place = divmod(number, self.num_images)
                if epoch != order_epoch:
                    order, order_epoch = np.random.default_rng([_ORDER, self.seed, epoch]).permutation(self.num_images), epoch
                places.append((epoch, int(order[place])))
            yield places
            step += 1


@dataclass
class SegmentBatch:
    """Augmented images.

    Attributes:
        images: (B, 3, crop, crop) uint8.
        masks: Of each image, (S, crop, crop) bool; S differs.
        labels: Of each image, (S,) int64.
        broken: What was wrong with images that others stand in for.
    """

    images: torch.Tensor
    masks: list[torch.Tensor]
    labels: list[torch.Tensor]
    broken: list[str]

    def pin_memory(self) -> "SegmentBatch":
        """Called by the loader for a GPU, so that images can be copied while it computes."""
        return SegmentBatch(
            self.images.pin_memory(),
            [masks.pin_memory() for masks in self.masks],
            [labels.pin_memory() for labels in self.labels],
            self.broken,
        )


def collate(placed: list[PlacedSample]) -> SegmentBatch:
    """A batch of samples."""
    samples = [sample for sample, _ in placed]
    return SegmentBatch(
        torch.stack([sample.image for sample in samples]),
        [sample.masks for sample in samples],
        [sample.labels for sample in samples],
        [message for _, broken in placed for message in broken],
    )
