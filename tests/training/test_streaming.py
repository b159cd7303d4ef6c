"""The stream of views: every image once an epoch, resumable bit for bit, unimpressed by broken images."""

import io
import time
from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data._utils import worker as torch_worker

from evaluation.data_sets import decode_image, open_images
from training.crops import MultiCrop, ViewSettings
from training.streaming import ViewStream, batches

IMAGES = 22


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def flat_image(index):
    """An image whose colour is its index, so that a view tells which image it was cut from."""
    return encode(Image.new("RGB", (8, 8), (index, 255 - index, 0)))


def write_shards(folder, contents, shards):
    features = datasets.Features({"image": datasets.Image()})
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        rows = {"image": [content and {"bytes": content, "path": None} for content in contents[shard::shards]]}
        path = folder / f"train-{shard:05d}-of-{shards:05d}.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path, batch_size=3)
    return str(folder)


@pytest.fixture(scope="module")
def make_stream(tmp_path_factory):
    """Streams over flat images in any number of shards; `plain` views are the image itself."""
    folders = {}

    def make(shards=3, contents=None, plain=True, positions=None, **kwargs):
        key = shards if contents is None else object()
        if key not in folders:
            values = [flat_image(index) for index in range(IMAGES)] if contents is None else contents
            folders[key] = write_shards(tmp_path_factory.mktemp("data"), values, shards)
        rows, column = open_images(folders[key], None, "train", None)
        crops = MultiCrop(8, 4, 1)
        if plain:
            crops.views = [ViewSettings(4, (1.0, 1.0), 0.0, 0.0, jitter_probability=0.0, grayscale=0.0, flip=0.0)]
        stream = ViewStream(rows, column, crops, **({"seed": 0, "shuffle_buffer": 5} | kwargs))
        stream.positions = positions or {}
        return stream

    return make


@pytest.fixture
def as_worker(monkeypatch):
    """Lets this process pass for a loader worker: tests all but the processes, without their seconds."""

    def become(stream, index, count):
        info = torch_worker.WorkerInfo(id=index, num_workers=count, seed=0, dataset=stream) if count else None
        monkeypatch.setattr(torch_worker, "_worker_info", info)
        return iter(stream)

    return become


def index_of(sample):
    return int(sample.views[0][0, 0, 0])


def take_epochs(samples, epochs):
    """The indices of each of the first epochs."""
    seen = [[] for _ in range(epochs)]
    for sample in samples:
        if sample.position[0] >= epochs:
            return seen
        seen[sample.position[0]].append(index_of(sample))


def identical(samples, others):
    assert len(samples) == len(others)
    return all(
        first.position == second.position
        and first.worker == second.worker
        and all(np.array_equal(*views) for views in zip(first.views, second.views, strict=True))
        for first, second in zip(samples, others, strict=True)
    )


@pytest.mark.parametrize("shuffle_buffer", [1, 5, 1000])
@pytest.mark.parametrize(
    "shards, ranks, workers",
    [(1, 1, 0), (3, 1, 0), (3, 1, 1), (3, 1, 2), (3, 1, 3), (4, 2, 0), (4, 2, 1), (4, 2, 2), (3, 2, 0), (3, 2, 2), (1, 2, 0)],
)
def test_each_image_comes_once_an_epoch(make_stream, as_worker, shards, ranks, workers, shuffle_buffer):
    epochs = [[], []]
    for rank in range(ranks):
        for worker in range(max(workers, 1)):
            stream = make_stream(shards, rank=rank, num_ranks=ranks, shuffle_buffer=shuffle_buffer)
            for all_seen, seen in zip(epochs, take_epochs(as_worker(stream, worker, workers), 2), strict=True):
                all_seen += seen
    assert all(sorted(seen) == list(range(IMAGES)) for seen in epochs)


@pytest.mark.parametrize("buffer", [5, 1000])
def test_order_changes_with_epoch_and_seed_and_with_nothing_else(make_stream, buffer):
    first, second = take_epochs(make_stream(shuffle_buffer=buffer), 2)
    assert first != second
    assert [first, second] == take_epochs(make_stream(shuffle_buffer=buffer), 2)
    assert first not in take_epochs(make_stream(shuffle_buffer=buffer, seed=1), 2)


def test_an_epoch_ends_without_a_wait(make_stream):
    started = time.perf_counter()
    take_epochs(make_stream(3), 3)
    assert time.perf_counter() - started < 3


def test_views_of_an_image_differ_between_epochs_and_ranks(make_stream):
    noise = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)))
    views = []
    for rank in range(2):
        stream = make_stream(2, contents=[noise] * 2, plain=False, rank=rank, num_ranks=2)
        views += [sample.views[0] for sample in islice(stream, 3)]
    assert not any(np.array_equal(first, second) for index, first in enumerate(views) for second in views[:index])


@pytest.mark.parametrize("consumed", [1, 6, IMAGES - 1, IMAGES, IMAGES + 7])
@pytest.mark.parametrize("shards, ranks, workers", [(1, 1, 0), (3, 1, 0), (3, 2, 0), (4, 2, 2)])
def test_a_resumed_stream_goes_on_bit_for_bit(make_stream, as_worker, consumed, shards, ranks, workers):
    rank, worker = ranks - 1, max(workers - 1, 0)
    common = {"plain": False, "rank": rank, "num_ranks": ranks}
    uninterrupted = list(islice(as_worker(make_stream(shards, **common), worker, workers), consumed + 12))
    positions = {worker: uninterrupted[consumed - 1].position}
    resumed = as_worker(make_stream(shards, **common, positions=positions), worker, workers)
    assert identical(list(islice(resumed, 12)), uninterrupted[consumed:])


def test_what_was_read_is_not_decoded_again(make_stream, monkeypatch):
    decoded = []
    monkeypatch.setattr("training.streaming.decode_image", lambda image: decoded.append(1) or decode_image(image))
    next(iter(make_stream(positions={0: (1, 10)})))
    assert len(decoded) == 1


# Broken images


def with_broken(broken, count=12):
    return [b"no image" if index in broken else flat_image(index) for index in range(count)]


@pytest.mark.parametrize("consumed", [0, 3, 8])
def test_broken_images_are_skipped_and_named(make_stream, consumed):
    broken = {0, 4, 5, 11}
    contents = with_broken(broken)
    samples = list(islice(make_stream(2, contents=contents), 16))
    assert sorted(index_of(sample) for sample in samples[:8]) == sorted(set(range(12)) - broken)
    reasons = [reason for sample in samples[:9] for reason in sample.broken if "epoch 0" in reason]
    assert len(reasons) == 4 == len(set(reasons)) and all("row " in one and "cannot identify" in one for one in reasons)
    if consumed:
        positions = {0: samples[consumed - 1].position}
        resumed = list(islice(make_stream(2, contents=contents, positions=positions), 16 - consumed))
        assert identical(resumed, samples[consumed:])


def test_a_broken_file_is_named_by_its_path(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"no image" if index == 1 else flat_image(index))
    rows, column = open_images(str(tmp_path), None, "train", None)
    stream = ViewStream(rows, column, MultiCrop(8, 4, 0), seed=0)
    reasons = [reason for sample in islice(stream, 4) for reason in sample.broken]
    assert reasons and all("1.png" in reason for reason in reasons)


@pytest.mark.parametrize("content", [b"-", b"no image", flat_image(1)[:40], None], ids=["byte", "text", "torn", "missing"])
def test_an_image_may_be_broken_in_any_way(make_stream, content):
    samples = list(islice(make_stream(1, contents=[flat_image(7), content]), 4))
    assert [index_of(sample) for sample in samples] == [7] * 4
    assert sum(len(sample.broken) for sample in samples) in (3, 4)


def test_a_data_set_of_broken_images_ends_the_stream(make_stream):
    with pytest.raises(RuntimeError, match=r"read no image in epoch 0 \(5 broken, the first: row .*cannot identify"):
        next(iter(make_stream(1, contents=[b"no image"] * 5)))


def test_an_empty_data_set_ends_the_stream(make_stream):
    with pytest.raises(RuntimeError, match=r"read no image in epoch 0 .*at least one readable image"):
        next(iter(make_stream(1, contents=[])))


def test_memory_errors_of_ours_are_not_taken_for_broken_images(make_stream, monkeypatch):
    def interrupt(image):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.streaming.decode_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(iter(make_stream()))


# Decoding


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK", "I;16"])
def test_images_of_any_mode_become_rgb(mode):
    levels = np.full((4, 6), 40_000 if mode == "I;16" else 90, np.uint16)
    image = Image.fromarray(levels) if mode == "I;16" else Image.new("RGB", (6, 4), (200, 30, 90)).convert(mode)
    decoded = decode_image({"bytes": encode(image, "TIFF"), "path": None})
    assert decoded.mode == "RGB" and decoded.size == (6, 4)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert decode_image({"bytes": encode(Image.new("RGB", (8, 4)), "JPEG", exif=exif), "path": None}).size == (4, 8)


# Batches


def test_a_batch_holds_its_images_views_and_its_last_position(make_stream):
    first, second = islice(batches(make_stream(plain=False), 4), 2)
    samples = list(islice(make_stream(plain=False), 8))
    for batch, its_samples in ((first, samples[:4]), (second, samples[4:])):
        assert [view.shape for view in batch.views] == [(4, 8, 8, 3)] * 2 + [(4, 4, 4, 3)]
        assert all(view.dtype == torch.uint8 for view in batch.views)
        for view, arrays in zip(batch.views, zip(*(sample.views for sample in its_samples), strict=True), strict=True):
            assert np.array_equal(view.numpy(), np.stack(arrays))
        assert (batch.worker, batch.position) == (0, its_samples[-1].position)


def test_broken_images_are_counted_in_the_batch(make_stream):
    stream = make_stream(2, contents=with_broken({0, 4, 5, 11}))
    reasons = [reason for batch in islice(batches(stream, 3), 3) for reason in batch.broken]
    assert len([reason for reason in reasons if "epoch 0" in reason]) == 4


def test_making_batches_leaves_the_random_state_alone(make_stream):
    """A resumed run has loaded its generator's state before it opens the stream."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(batches(make_stream(), 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_worker_processes_take_turns_and_can_be_resumed(make_stream, as_worker):
    """Asked for more workers than there are shards: two processes, as a third would have nothing to read."""
    assert make_stream(4, num_workers=3, num_ranks=2).num_workers == 2
    stream_batches = batches(make_stream(2, num_workers=3), 3)
    first = list(islice(stream_batches, 10))
    del stream_batches
    assert [batch.worker for batch in first] == [0, 1] * 5
    seen = {0: [], 1: []}
    for batch in first:
        seen[batch.worker] += batch.views[0][:, 0, 0, 0].tolist()
    assert sorted(seen[0][:11] + seen[1][:11]) == list(range(IMAGES))
    positions = {batch.worker: batch.position for batch in first[:4]}
    for worker in range(2):
        resumed = as_worker(make_stream(2, positions=positions), worker, 2)
        for batch in first[4 + worker :: 2]:
            samples = list(islice(resumed, 3))
            assert (batch.worker, batch.position) == (samples[-1].worker, samples[-1].position)
            assert np.array_equal(batch.views[0].numpy(), np.stack([sample.views[0] for sample in samples]))
