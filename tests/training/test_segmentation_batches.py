"""Samples and steps are functions of their numbers alone; a broken image is replaced, a bad annotation is not."""

import random
from itertools import chain, islice

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from evaluation.segmentation_data import BrokenImageError, SegmentationSample, open_segmentation_data
from training.segmentation_batches import StepBatches, TrainingSegments, collate
from training.segmentation_transforms import TrainingTransform
from training.source_rows import UnreadableImagesError

SIDE = 24


class Painted:
    """Images whose colour and label is their number."""

    def __init__(self, count=5, broken=(), wrong=()):
        self.count, self.broken, self.wrong = count, broken, wrong

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise BrokenImageError(f"image {index} is broken")
        if index in self.wrong:
            raise ValueError(f"label of image {index}")
        mask = np.zeros((1, SIDE, SIDE), bool)
        mask[0, 4:20, 3:15] = True
        image = Image.new("RGB", (SIDE, SIDE), (index, 0, 0))
        return SegmentationSample(image, mask, np.array([index]), np.zeros(1, bool), np.zeros((SIDE, SIDE), bool))


def segments(seed=0, **options):
    return TrainingSegments(Painted(**options), TrainingTransform(16, color_distortion=True), seed)


def equal(first, second):
    return all(torch.equal(*tensors) for tensors in zip(first.sample, second.sample, strict=True))


def take(count, **options):
    return list(islice(StepBatches(**({"num_images": 5, "batch_size": 4, "seed": 0} | options)), count))


# Samples


def test_a_sample_is_a_function_of_seed_epoch_and_number_alone():
    first = {(epoch, index): segments()[epoch, index] for epoch in range(3) for index in range(5)}
    torch.manual_seed(99)
    again = segments()
    for place in reversed(first):
        assert equal(first[place], again[place])
    masks = {sample.sample.masks.numpy().tobytes() for sample in first.values()}
    assert len(masks) > 10, "epochs and images draw differently"
    assert not all(equal(first[place], segments(seed=1)[place]) for place in first)


def test_no_generator_outside_is_touched():
    torch.manual_seed(3)
    state, python, legacy = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    segments()[0, 1]
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)


def test_a_broken_image_is_replaced_by_the_next_readable_one_and_reported():
    data = segments(broken=(3, 4))
    sample, broken = data[0, 3]
    assert set(sample.labels.tolist()) <= {0} and broken == ["image 3 is broken", "image 4 is broken"]
    assert equal(data[0, 3], data[0, 3])
    assert data[0, 2].broken == []


def test_images_that_are_all_broken_end_the_run():
    with pytest.raises(UnreadableImagesError, match="None of 5 images can be decoded; the first: image 2 is broken"):
        segments(broken=range(5))[0, 2]


def test_a_bad_annotation_is_raised():
    with pytest.raises(ValueError, match="label of image 1"):
        segments(broken=(0,), wrong=(1,))[0, 0]


# Steps


@pytest.mark.parametrize("batch_size", [1, 2, 4, 12])
def test_every_epoch_has_every_image_once_in_an_order_of_its_own(batch_size):
    places = [place for batch in take(60 // batch_size, batch_size=batch_size) for place in batch]
    epochs = [places[start : start + 5] for start in range(0, 60, 5)]
    for number, epoch in enumerate(epochs):
        assert [place[0] for place in epoch] == [number] * 5 and sorted(place[1] for place in epoch) == list(range(5))
    assert len({tuple(index for _, index in epoch) for epoch in epochs}) > 6


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_share_out_the_batches_of_one(num_ranks):
    shares = [take(15, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    joined = [list(chain.from_iterable(batches)) for batches in zip(*shares, strict=True)]
    assert joined == take(15) and {len(share) for share in shares[0]} == {4 // num_ranks}


@pytest.mark.parametrize("step", [1, 4, 13])
def test_a_run_that_is_resumed_goes_on_as_if_uninterrupted(step):
    assert take(5, first_step=step, rank=1, num_ranks=2) == take(step + 5, rank=1, num_ranks=2)[step:]


def test_seeds_give_other_orders_and_a_run_ends_with_its_steps():
    assert take(5, seed=1) != take(5)
    assert take(99, num_steps=7) == take(7)
    assert take(99, num_steps=7, first_step=5) == take(7)[5:]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 5, "num_ranks": 2}, "batch_size=5 must be a multiple of num_ranks=2 .*; use 4"),
        ({"batch_size": 1, "num_ranks": 4}, "batch_size=1 must be a multiple of num_ranks=4 .*; use 4"),
        ({"num_images": 0}, "num_images=0 must be at least 1"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        take(1, **options)


# Batches


def test_a_batch_stacks_images_and_lists_what_differs():
    data = segments(broken=(1,))
    placed = [data[0, index] for index in (0, 1, 2)]
    batch = collate(placed)
    assert batch.images.shape == (3, 3, 16, 16) and batch.images.dtype == torch.uint8
    assert batch.broken == ["image 1 is broken"]
    for (sample, _), image, masks, labels in zip(placed, batch.images, batch.masks, batch.labels, strict=True):
        assert torch.equal(sample.image, image) and torch.equal(sample.masks, masks) and torch.equal(sample.labels, labels)


def test_workers_of_a_loader_give_what_the_main_process_gives(tmp_path, monkeypatch):
    """Through pickles, as spawned workers get the data set, here from a parquet file."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {
        "image": [Painted()[index].image for index in range(5)],
        "mask": [[[index % 2] * SIDE] * SIDE for index in range(5)],
    }
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.List(datasets.List(datasets.Value("int32")))})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    data = open_segmentation_data(tmp_path / "train.parquet", "train", "semantic", num_labels=2)
    dataset = TrainingSegments(data, TrainingTransform(16), 0)
    runs = []
    for options in ({}, {"num_workers": 1, "multiprocessing_context": "spawn"}):
        steps = StepBatches(len(data), 4, seed=0, num_steps=3)
        runs.append(list(DataLoader(dataset, batch_sampler=steps, collate_fn=collate, **options)))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first.images, second.images) and first.broken == second.broken == []
        for name in ("masks", "labels"):
            assert all(torch.equal(*pair) for pair in zip(getattr(first, name), getattr(second, name), strict=True))
