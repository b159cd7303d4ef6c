"""The stream of views: every image once an epoch, resumable bit for bit, unimpressed by broken images."""

import hashlib
import io
import struct
import tarfile
import time
import zlib
from collections import Counter
from functools import partial
from itertools import islice, pairwise

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data._utils import worker as torch_worker

from evaluation.data_sets import decode_image, open_images
from training.crops import MultiCrop, ViewSettings
from training.source_rows import Source, mix
from training.streaming import UnreadableImagesError, ViewStream, batches

IMAGES = 22


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def flat_image(index):
    """An image whose colour is its index, so that a view tells which image it was cut from."""
    return encode(Image.new("RGB", (8, 8), (index % 256, 255 - index % 256, index // 256)))


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
        stream = ViewStream([Source("data", rows, column)], crops, **({"seed": 0, "shuffle_buffer": 5} | kwargs))
        stream.positions = positions or {}
        return stream

    return make


@pytest.fixture
def as_worker(monkeypatch):
    """Lets this process pass for a loader worker: tests all but the processes, without their seconds."""

    def become(stream, index):
        count = stream.num_workers
        info = torch_worker.WorkerInfo(id=index, num_workers=count, seed=0, dataset=stream) if count else None
        monkeypatch.setattr(torch_worker, "_worker_info", info)
        return iter(stream)

    return become


def index_of(sample):
    red, _, blue = sample.views[0][0, 0].tolist()
    return red + 256 * blue


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


# The table: layouts x ranks x workers x resume points


def parquet_of(*sizes, row_group=3):
    def write(folder, contents):
        features = datasets.Features({"image": datasets.Image()})
        starts = np.cumsum((0, *sizes))
        for shard, (start, stop) in enumerate(pairwise(starts)):
            rows = {"image": [{"bytes": content, "path": None} for content in contents[start:stop]]}
            path = folder / f"train-{shard:05d}-of-{len(sizes):05d}.parquet"
            datasets.Dataset.from_dict(rows, features=features).to_parquet(path, batch_size=row_group)
        return folder

    return write


def arrow_file(folder, contents):
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": content, "path": None} for content in contents]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "saved")
    return next((folder / "saved").glob("*.arrow"))


def image_folder(folder, contents):
    for index, content in enumerate(contents):
        path = folder / "train" / f"class_{index // 10:03d}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def tars_of(*sizes):
    def write(folder, contents):
        remaining = iter(enumerate(contents))
        for shard, size in enumerate(sizes):
            with tarfile.open(folder / f"train-{shard:04d}.tar", "w") as tar:
                for index, content in islice(remaining, size):
                    member = tarfile.TarInfo(f"{index:04d}.png")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return folder

    return write


LAYOUTS = {
    "one parquet": parquet_of(IMAGES),
    "three parquets": parquet_of(8, 7, 7),
    "unequal parquets": parquet_of(1, 2, 19),
    "many row groups": parquet_of(IMAGES, row_group=1),
    "arrow": arrow_file,
    "folder": image_folder,
    "one tar": tars_of(IMAGES),
    "unequal tars": tars_of(1, 5, 16),
}


def image_and_numbers(image, random):
    """Views that tell the image and everything that its crops would be drawn from."""
    return [np.asarray(image), random.integers(0, 256, (2, 2, 3), dtype=np.uint8)]


@pytest.fixture(scope="module")
def open_layout(tmp_path_factory):
    opened = {}

    def open_once(layout):
        if layout not in opened:
            folder = tmp_path_factory.mktemp("layout")
            path = LAYOUTS[layout](folder, [flat_image(index) for index in range(IMAGES)])
            opened[layout] = open_images(str(path), None, "train", None)
        return opened[layout]

    return open_once


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_are_seen_once_and_resume_is_exact(open_layout, as_worker, layout, ranks, workers):
    """Three epochs of every worker of every rank, and from three points of each once more."""
    rows, column = open_layout(layout)
    readers = ranks * max(workers, 1)
    epochs = [[], [], []]
    for rank in range(ranks):
        for worker in range(max(workers, 1)):

            def start(positions, rank=rank, worker=worker):
                stream = ViewStream(
                    [Source("data", rows, column)], image_and_numbers, 0, rank, ranks, workers, shuffle_buffer=4
                )
                stream.positions = positions
                return as_worker(stream, worker)

            whole = list(islice(start({}), 3 * (IMAGES // readers + 2)))
            shares = [[index_of(sample) for sample in whole if sample.position[0] == epoch] for epoch in range(3)]
            for epoch, share in zip(epochs, shares, strict=True):
                epoch += share
            share = len(shares[0])
            assert share - IMAGES // readers in (0, 1)
            for consumed in {1, share, share + share // 2}:
                resumed = start({worker: whole[consumed - 1].position})
                assert identical(list(islice(resumed, share + 2)), whole[consumed : consumed + share + 2])
    assert [sorted(seen) for seen in epochs] == [list(range(IMAGES))] * 3


@pytest.mark.parametrize("ranks, workers", [(1, 0), (1, 3), (2, 0), (3, 0)])
@pytest.mark.parametrize("layout", ["unequal parquets", "many row groups", "unequal tars"])
def test_whole_shards_are_dealt_where_there_are_enough(open_layout, as_worker, monkeypatch, layout, ranks, workers):
    monkeypatch.setattr("training.source_rows.SHARDS_EACH", 1)
    rows, column = open_layout(layout)
    epochs = [[], []]
    for rank in range(ranks):
        for worker in range(max(workers, 1)):
            stream = ViewStream([Source("data", rows, column)], image_and_numbers, 0, rank, ranks, workers, shuffle_buffer=4)
            assert stream.sources[0].deals_shards(stream.num_readers)
            for all_seen, seen in zip(epochs, take_epochs(as_worker(stream, worker), 2), strict=True):
                all_seen += seen
    assert [sorted(seen) for seen in epochs] == [list(range(IMAGES))] * 2


def test_a_reader_of_shards_opens_no_others(open_layout, as_worker, monkeypatch):
    monkeypatch.setattr("training.source_rows.SHARDS_EACH", 1)
    rows, column = open_layout("three parquets")
    shares = []
    for rank in range(3):
        stream = ViewStream([Source("data", rows, column)], image_and_numbers, 0, rank, 3)
        shares.append(tuple(sorted(take_epochs(stream, 1)[0])))
    assert sorted(shares) == [tuple(range(8)), tuple(range(8, 15)), tuple(range(15, IMAGES))]


def test_more_readers_than_images_are_refused(make_stream, as_worker):
    stream = make_stream(1, contents=[flat_image(0)] * 2, num_workers=3)
    with pytest.raises(UnreadableImagesError, match=r"worker 2 of rank 0 read no image in epoch 0 .*lower --num_workers"):
        next(as_worker(stream, 2))


# Order


def classes_in_batches(rows, column, rank, ranks, window):
    """How many of ten classes the batches of 40 of an epoch hold, on average; of the last, as they lie in the file."""
    stream = ViewStream([Source("data", rows, column)], image_and_numbers, 0, rank, ranks, shuffle_buffer=window)
    (seen,) = take_epochs(stream, 1)
    classes = [index // 100 for index in seen]
    return np.mean([len(set(classes[start : start + 40])) for start in range(0, len(classes) - 39, 40)])


@pytest.mark.parametrize("layout", [parquet_of(1000, row_group=1000), image_folder], ids=["parquet", "folder"])
def test_data_sorted_by_class_are_mixed_over_the_window(tmp_path, layout):
    """1,000 images in ten classes, one after the other, in one shard."""
    rows, column = open_images(str(layout(tmp_path, [flat_image(index) for index in range(1000)])), None, "train", None)
    mixed = {window: classes_in_batches(rows, column, 0, 1, window) for window in (1, 100, 300, 1000)}
    assert mixed[1] <= 1.6 < 2.5 <= mixed[100] < mixed[300] and mixed[300] >= 4 and mixed[1000] >= 9.5
    # The windows of several ranks reach further together: a rank takes every third row into its own.
    assert classes_in_batches(rows, column, 1, 3, 100) == pytest.approx(mixed[300], abs=1.5)
    assert classes_in_batches(rows, column, 1, 3, 100) > mixed[100] + 1


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


def test_views_of_an_image_differ_between_places_epochs_and_ranks(make_stream):
    noise = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)))
    views = []
    for rank in range(2):
        stream = make_stream(2, contents=[noise] * 4, plain=False, rank=rank, num_ranks=2)
        views += [sample.views[0] for sample in islice(stream, 6)]
    assert not any(np.array_equal(first, second) for index, first in enumerate(views) for second in views[:index])


@pytest.mark.parametrize("consumed", [1, 6, IMAGES - 1, IMAGES, IMAGES + 7])
@pytest.mark.parametrize("shards, ranks, workers", [(1, 1, 0), (3, 2, 2)])
def test_a_resumed_stream_goes_on_bit_for_bit(make_stream, as_worker, consumed, shards, ranks, workers):
    rank, worker = ranks - 1, max(workers - 1, 0)
    common = {"plain": False, "rank": rank, "num_ranks": ranks, "num_workers": workers}
    uninterrupted = list(islice(as_worker(make_stream(shards, **common), worker), consumed + 12))
    positions = {worker: uninterrupted[consumed - 1].position}
    resumed = as_worker(make_stream(shards, **common, positions=positions), worker)
    assert identical(list(islice(resumed, 12)), uninterrupted[consumed:])


def test_what_was_read_is_not_decoded_again(make_stream, monkeypatch):
    decoded = []
    monkeypatch.setattr("training.streaming.decode_image", lambda image: decoded.append(1) or decode_image(image))
    next(iter(make_stream(positions={0: (1, 10)})))
    assert len(decoded) == 1


# One source: the order that runs have had since the first version, spelled out


def test_the_order_and_the_views_of_one_source_stay_what_they_were(open_layout):
    rows, column = open_layout("one tar")
    stream = ViewStream([Source("data", rows, column)], image_and_numbers, seed=7, shuffle_buffer=4)
    for place, sample in enumerate(islice(stream, 2 * IMAGES)):
        epoch, index = divmod(place, IMAGES)
        order = list(mix(iter(range(IMAGES)), 4, np.random.default_rng([1, 7, 0, epoch])))
        numbers = np.random.default_rng([2, 7, 0, epoch, index]).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        assert (index_of(sample), sample.position) == (order[index], (epoch, index + 1))
        assert np.array_equal(sample.views[1], numbers)


# Several sources


@pytest.fixture(scope="module")
def make_mixture(tmp_path_factory):
    """Streams over sources of so many flat images; those of source k are numbered from 1,000 k."""
    opened = {}

    def open_source(number, images, broken):
        if (number, images, broken) not in opened:
            contents = [flat_image(1000 * number + index) for index in range(images)]
            contents[:broken] = [b"no image"] * broken
            folder = write_shards(tmp_path_factory.mktemp("source"), contents, shards=1 + number)
            opened[number, images, broken] = open_images(folder, None, "train", None)
        return opened[number, images, broken]

    def make(sizes, weights=None, broken=0, rank=0, num_ranks=1, num_workers=0, positions=None):
        weights = weights or [1.0] * len(sizes)
        sources = [
            Source(f"data {number}", *open_source(number, images, broken), weight)
            for number, (images, weight) in enumerate(zip(sizes, weights, strict=True))
        ]
        stream = ViewStream(sources, image_and_numbers, 0, rank, num_ranks, num_workers, shuffle_buffer=4)
        stream.positions = positions or {}
        return stream

    return make


def source_of(sample):
    return index_of(sample) // 1000


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 2.0, 5.0], [0.001, 0.003], [3e5, 1e5, 6e5]])
def test_images_come_in_proportion_to_the_weights(make_mixture, weights):
    """Their numbers are within four standard deviations, and so are those of pairs of neighbours from one source."""
    draws = 1200
    drawn = [source_of(sample) for sample in islice(make_mixture([7, 12, 15][: len(weights)], weights), draws)]
    shares = np.array(weights) / sum(weights)
    for source, share in enumerate(shares):
        assert abs(drawn.count(source) - draws * share) < 4 * np.sqrt(draws * share * (1 - share))
    alike, chance = sum(first == second for first, second in pairwise(drawn)), (shares**2).sum()
    variance = chance - chance**2 + 2 * ((shares**3).sum() - chance**2)  # of a pair, with its overlap with the next
    assert abs(alike - draws * chance) < 4 * np.sqrt(draws * variance)


@pytest.mark.parametrize("ranks, workers", [(1, 0), (2, 0), (1, 2), (2, 2)])
def test_each_source_gives_every_image_once_in_each_of_its_epochs(make_mixture, as_worker, ranks, workers):
    sizes = [9, 22, 14]
    seen = [[[], []] for _ in sizes]
    for rank in range(ranks):
        for worker in range(max(workers, 1)):
            stream = make_mixture(sizes, [3.0, 1.0, 2.0], rank=rank, num_ranks=ranks, num_workers=workers)
            for sample in islice(as_worker(stream, worker), 1000):
                epochs = sample.position[::2]
                if min(epochs) >= 2:
                    break
                source = source_of(sample)
                if epochs[source] < 2:
                    seen[source][epochs[source]].append(index_of(sample) % 1000)
    assert [[sorted(epoch) for epoch in epochs] for epochs in seen] == [[list(range(size))] * 2 for size in sizes]


@pytest.mark.parametrize("ranks, workers", [(1, 0), (2, 0), (2, 2)])
def test_a_mixture_is_resumed_bit_for_bit(make_mixture, as_worker, ranks, workers):
    """From many points of two epochs or more of each source; some of its images are broken."""
    rank, worker = ranks - 1, max(workers - 1, 0)
    common = {"sizes": [11, 16], "weights": [1.0, 2.0], "broken": 2, "rank": rank, "num_ranks": ranks, "num_workers": workers}
    whole = list(islice(as_worker(make_mixture(**common), worker), 90))
    assert min(whole[-10].position[::2]) >= 1 and {source_of(sample) for sample in whole} == {0, 1}
    assert len({sample.position for sample in whole}) == len(whole)
    for consumed in (1, 2, 5, 9, 16, 27, 40, 61, 80):
        resumed = as_worker(make_mixture(**common, positions={worker: whole[consumed - 1].position}), worker)
        rest = list(islice(resumed, 10))
        assert identical(rest, whole[consumed : consumed + 10])
        if consumed > 1:  # what was broken before the first of them has been told
            told = [len(sample.broken) for sample in whole[consumed : consumed + 10]]
            assert [len(sample.broken) for sample in rest] == told


def test_what_a_mixture_has_read_is_not_decoded_again(make_mixture, monkeypatch):
    decoded = []
    monkeypatch.setattr("training.streaming.decode_image", lambda image: decoded.append(1) or decode_image(image))
    next(iter(make_mixture([20, 20], positions={0: (1, 10, 3, 17)})))
    assert len(decoded) == 1


def test_the_first_source_gives_in_a_mixture_what_it_gives_alone(make_mixture):
    alone = islice(make_mixture([12]), 30)
    mixed = (sample for sample in make_mixture([12, 17], [2.0, 1.0]) if source_of(sample) == 0)
    for first, second in zip(alone, mixed, strict=False):
        assert second.position[:2] == first.position
        assert all(np.array_equal(*views) for views in zip(first.views, second.views, strict=True))


def test_readers_draw_sources_and_views_of_their_own(make_mixture):
    first, second = (list(islice(make_mixture([12, 17], rank=rank, num_ranks=2), 60)) for rank in range(2))
    assert [source_of(sample) for sample in first] != [source_of(sample) for sample in second]
    numbers = {sample.views[1].tobytes() for sample in first + second}
    assert len(numbers) == 120


def test_a_data_set_named_twice_comes_in_two_orders(open_layout):
    source = Source("data", *open_layout("one tar"))
    samples = islice(ViewStream([source, source], image_and_numbers, seed=0), 120)
    orders, before = ([], []), (0, 0, 0, 0)
    for sample in samples:
        number = int(sample.position[2:] != before[2:])
        orders[number].append(index_of(sample))
        before = sample.position
    first, second = (order[:IMAGES] for order in orders)
    assert sorted(first) == sorted(second) == list(range(IMAGES)) and first != second


def test_the_epoch_of_a_batch_is_that_of_the_source_furthest_behind(make_mixture):
    told = [batch.epoch for batch in islice(batches(make_mixture([5, 40], [3.0, 1.0]), 10), 30)]
    lone = [batch.epoch for batch in islice(batches(make_mixture([5]), 10), 4)]
    assert told[0] == 0 and told[-1] == 1 and told == sorted(told)  # 75 of 300 images are the second's, 225 the first's
    assert lone == [1, 3, 5, 7]


def test_messages_name_the_source_where_there_are_several(make_mixture):
    reasons = [reason for sample in islice(make_mixture([4, 4], broken=1), 30) for reason in sample.broken]
    for number in range(2):
        assert any(f"in epoch 0 of data {number})" in reason for reason in reasons)
    assert not any(" of data " in reason for sample in islice(make_mixture([4], broken=1), 9) for reason in sample.broken)
    with pytest.raises(UnreadableImagesError, match=r"rank 0 read no image in epoch 0 of data 1 \(3 broken"):
        list(islice(make_mixture([9, 3], broken=3), 99))


def test_a_source_with_too_few_images_for_all_readers_is_refused(make_mixture, as_worker):
    with pytest.raises(UnreadableImagesError, match=r"worker 2 of rank 0 read no image in epoch 0 of data 1"):
        list(islice(as_worker(make_mixture([9, 2], num_workers=3), 2), 50))


# Torn files


@pytest.fixture
def tear(tmp_path):
    """Writes two sources, and gives their stream and functions that tear a file of the second and mend it."""
    folders = [
        write_shards(tmp_path / name, [flat_image(1000 * number + index) for index in range(30)], shards=2)
        for number, name in enumerate(("whole", "torn"))
    ]
    file = tmp_path / "torn" / "train-00001-of-00002.parquet"
    content = file.read_bytes()
    page = pq.ParquetFile(file).metadata.row_group(3).column(0).data_page_offset

    def open_stream(positions=None, num_workers=0):
        sources = [Source(folder, *open_images(folder, None, "train", None)) for folder in folders]
        stream = ViewStream(sources, image_and_numbers, seed=0, num_workers=num_workers, shuffle_buffer=2)
        stream.positions = positions or {}
        return stream

    tear = partial(file.write_bytes, content[:page] + bytes(50) + content[page + 50 :])
    return open_stream, tear, partial(file.write_bytes, content)


def test_a_file_torn_in_the_middle_is_told_of_and_a_mended_one_is_gone_on_from(tear):
    open_stream, tear, mend = tear
    whole = list(islice(open_stream(), 100))
    tear()
    before = []
    with pytest.raises(
        UnreadableImagesError, match=r"(?s)torn cannot be read: OSError: .*mend it or remove it.*--resume goes on"
    ):
        for sample in islice(open_stream(), 100):
            before.append(sample)
    assert len(before) > 5
    mend()
    rest = list(islice(open_stream({0: before[-1].position}), 100 - len(before)))
    assert identical(before + rest, whole)


def test_an_error_of_a_worker_process_is_told_without_its_traceback(tear):
    open_stream, tear, _ = tear
    tear()
    with pytest.raises(UnreadableImagesError) as error:
        list(islice(batches(open_stream(num_workers=1), 10), 20))
    assert "cannot be read: OSError: " in str(error.value) and str(error.value).endswith("from the last checkpoint.")
    assert "Traceback" not in str(error.value) and "Traceback" in str(error.value.__cause__)


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
    assert len(reasons) == 4 == len(set(reasons)) and all("row " in one and "no known image format" in one for one in reasons)
    if consumed:
        positions = {0: samples[consumed - 1].position}
        resumed = list(islice(make_stream(2, contents=contents, positions=positions), 16 - consumed))
        assert identical(resumed, samples[consumed:])


def test_a_broken_file_is_named_by_its_path(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"no image" if index == 1 else flat_image(index))
    rows, column = open_images(str(tmp_path), None, "train", None)
    stream = ViewStream([Source("data", rows, column)], MultiCrop(8, 4, 0), seed=0)
    reasons = [reason for sample in islice(stream, 4) for reason in sample.broken]
    assert reasons and all("1.png" in reason for reason in reasons)


@pytest.mark.parametrize("content", [b"-", b"no image", flat_image(1)[:40], None], ids=["byte", "text", "torn", "missing"])
def test_an_image_may_be_broken_in_any_way(make_stream, content):
    samples = list(islice(make_stream(1, contents=[flat_image(7), content]), 4))
    assert [index_of(sample) for sample in samples] == [7] * 4
    assert sum(len(sample.broken) for sample in samples) in (3, 4)


def test_a_data_set_of_broken_images_ends_the_stream(make_stream):
    with pytest.raises(
        UnreadableImagesError, match=r"read no image in epoch 0 \(5 broken, the first: image of .*no known image format"
    ):
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


def png_header(side):
    """A PNG that claims to be a large square."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(99))),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def flip_middle(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def broken_in_ten_ways(seed):
    """By kind; no two seeds give the same bytes, but for what is missing."""
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    png, jpeg, webp, bmp = (encode(noise, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP"))
    return {
        "torn JPEG": jpeg[: len(jpeg) // 2],
        "torn PNG": png[: len(png) // 2],
        "torn WebP": webp[: len(webp) // 2],
        "torn BMP": bmp[:100] + bytes([seed]),
        "flipped bits": flip_middle(png),
        "text": f"404 Not Found {seed}".encode(),
        "archive": b"PK\x03\x04" + bytes(50 + seed),
        "bomb": png_header(50_000 + seed),
        "nan": encode(Image.fromarray(np.full((8, 8 + seed), np.nan, np.float32)), "TIFF"),
        "missing": None,
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_fifty_images_broken_in_ten_ways_are_counted_and_no_other_is_lost(make_stream, ranks):
    contents = [flat_image(index) for index in range(1000)]
    broken = [content for seed in range(5) for content in broken_in_ten_ways(seed).values()]
    places = np.random.default_rng(0).permutation(1000)[:50].tolist()
    for place, content in zip(places, broken, strict=True):
        contents[place] = content
    seen, reasons = [], []
    streams = [
        make_stream(3, contents=contents, rank=rank, num_ranks=ranks, max_broken_share=0.1, shuffle_buffer=100)
        for rank in range(ranks)
    ]
    for stream in streams:
        for sample in stream:
            reasons += [reason for reason in sample.broken if "in epoch 0" in reason]
            if sample.position[0] == 1:  # it brings those that the epoch ended with
                break
            seen.append(index_of(sample))
    assert sorted(seen) == sorted(set(range(1000)) - set(places))
    assert len(reasons) == 50
    named = Counter(reason.split(" (row")[0] for reason in reasons)
    hashes = [content and f"image of sha256 {hashlib.sha256(content).hexdigest()[:16]}" for content in broken]
    assert named == Counter(name or "missing image" for name in hashes)


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_a_bomb_is_refused_unopened(make_stream, side):
    """PIL itself would decode the smaller one, of 300 MB."""
    started = time.perf_counter()
    samples = list(islice(make_stream(1, contents=[flat_image(7), png_header(side)]), 4))
    reasons = [reason for sample in samples for reason in sample.broken]
    assert reasons and all("DecompressionBomb" in reason for reason in reasons)
    assert time.perf_counter() - started < 2


def test_a_run_stops_past_a_share_of_broken_images(make_stream):
    contents = [b"no image" if index % 5 == 0 else flat_image(index) for index in range(300)]
    stream = iter(make_stream(3, contents=contents, max_broken_share=0.1))
    with pytest.raises(UnreadableImagesError, match=r"worker 0 of rank 0 found \d+ of 500 images broken, more than") as stopped:
        list(islice(stream, 600))
    assert "max_broken_share=0.1" in str(stopped.value) and "--max_broken_share (1 allows all)" in str(stopped.value)
    assert str(stopped.value).count("image of sha256") == 3
    for share in (0.25, 1.0):
        assert len(list(islice(make_stream(3, contents=contents, max_broken_share=share), 600))) == 600


def test_the_share_of_broken_images_is_not_judged_early(make_stream):
    """Not at the first images, of which half are broken."""
    contents = with_broken({0, 2, 4, 6, 8, 10})
    assert len(list(islice(make_stream(1, contents=contents, max_broken_share=0.0), 200))) == 200


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


def test_odd_images_are_not_broken(make_stream):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    torn_exif = (b"II*\x00\xff\xff\xff\xff", b"garbage", b"II*\x00\x08\0\0\0\x20\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0")
    contents = [encode(noise, "JPEG", exif=b"Exif\0\0" + exif) for exif in torn_exif]
    contents += [encode(noise.convert("CMYK"), "JPEG"), encode(Image.fromarray(np.full((8, 8), 40_000, np.uint16)))]
    assert not any(sample.broken for sample in islice(make_stream(1, contents=contents), 2 * len(contents)))


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


@pytest.mark.slow
def test_worker_processes_take_turns_and_can_be_resumed(make_stream, as_worker):
    """Two workers read one shard."""
    stream_batches = batches(make_stream(1, num_workers=2), 3)
    first = list(islice(stream_batches, 10))
    del stream_batches
    assert [batch.worker for batch in first] == [0, 1] * 5
    seen = {0: [], 1: []}
    for batch in first:
        seen[batch.worker] += batch.views[0][:, 0, 0, 0].tolist()
    assert sorted(seen[0][:11] + seen[1][:11]) == list(range(IMAGES))
    for done in (4, 5):  # also when it is the second worker's turn
        stream = make_stream(1, num_workers=2)
        stream.positions = {batch.worker: batch.position for batch in first[:done]}
        stream.next_worker = done % 2
        for batch, resumed in zip(first[done:], batches(stream, 3), strict=False):
            assert (batch.worker, batch.position) == (resumed.worker, resumed.position)
            assert all(torch.equal(view, again) for view, again in zip(batch.views, resumed.views, strict=True))
