"""The rows of one data set: dealt to all readers, mixed, and what is told of files that cannot be read."""

import io
import tarfile

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluation.data_sets import open_images
from training.source_rows import Source, UnreadableImagesError, mix


def write_parquets(folder, rows_of_files, row_group=2):
    folder.mkdir(exist_ok=True)
    numbers = iter(range(sum(rows_of_files)))
    features = datasets.Features({"image": datasets.Image()})
    for number, count in enumerate(rows_of_files):
        rows = [{"bytes": np.random.default_rng(next(numbers)).bytes(200), "path": None} for _ in range(count)]
        path = folder / f"train-{number:05d}-of-{len(rows_of_files):05d}.parquet"
        datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(path, batch_size=row_group)


def write_tars(folder, rows_of_files):
    folder.mkdir(exist_ok=True)
    for number, count in enumerate(rows_of_files):
        with tarfile.open(folder / f"train-{number:04d}.tar", "w") as tar:
            for index in range(count):
                member = tarfile.TarInfo(f"{number:02d}{index:04d}.png")
                member.size = 2000
                tar.addfile(member, io.BytesIO(np.random.default_rng([number, index]).bytes(2000)))


def open_source(folder):
    rows, column = open_images(str(folder), None, "train", None)
    return Source("the pictures", rows, column)


@pytest.mark.parametrize("files, readers, whole", [(3, 1, False), (16, 1, True), (33, 2, True), (31, 2, False)])
def test_shards_are_dealt_whole_from_sixteen_each(tmp_path, files, readers, whole):
    write_parquets(tmp_path, [1] * files)
    source = open_source(tmp_path).for_readers(readers)
    assert source.deals_shards(readers) is whole


@pytest.mark.parametrize("files, readers", [([5, 1, 4], 1), ([5, 1, 4], 3), ([2] * 34, 2)], ids=["one", "rows", "shards"])
def test_readers_share_an_epoch(tmp_path, files, readers):
    write_parquets(tmp_path, files)
    source = open_source(tmp_path).for_readers(readers)
    shares = [[row["image"]["bytes"] for row in source.share(r, readers, np.random.default_rng(0))] for r in range(readers)]
    images = [image for share in shares for image in share]
    assert len(images) == len(set(images)) == sum(files)
    assert max(map(len, shares)) - min(map(len, shares)) <= (2 if source.deals_shards(readers) else 1)


def test_shards_come_in_a_new_order(tmp_path):
    write_parquets(tmp_path, [1] * 20)
    source = open_source(tmp_path)
    orders = [[row["image"]["bytes"] for row in source.share(0, 1, np.random.default_rng(seed))] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])


def test_an_item_comes_from_the_window_before_it():
    window = 50
    order = list(mix(iter(range(400)), window, np.random.default_rng(0)))
    assert sorted(order) == list(range(400)) and order != sorted(order)
    assert all(item < place + window for place, item in enumerate(order))
    assert list(mix(iter(range(9)), 1, np.random.default_rng(0))) == list(range(9))


def cut_off(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2 + 900])  # not between two members of a tar, where it would just end


def overwrite_a_page(file):
    """Of the fourth row group, so that the file opens."""
    start = pq.ParquetFile(file).metadata.row_group(3).column(0).data_page_offset
    content = file.read_bytes()
    file.write_bytes(content[:start] + bytes(50) + content[start + 50 :])


def empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize(
    "write, tear, error_of_the_library",
    [
        (write_parquets, cut_off, "ArrowInvalid: "),
        (write_parquets, overwrite_a_page, "OSError: "),
        (write_parquets, empty, "ArrowInvalid: "),
        (write_tars, cut_off, "ReadError: unexpected end of data"),
    ],
    ids=["torn parquet", "overwritten parquet", "empty parquet", "torn tar"],
)
def test_a_file_that_cannot_be_read_is_told_of_with_its_data_set(tmp_path, write, tear, error_of_the_library):
    write(tmp_path, [20, 20, 20])
    tear(sorted(tmp_path.iterdir())[1])
    with pytest.raises(UnreadableImagesError) as error:
        list(open_source(tmp_path).for_readers(2).share(0, 2, np.random.default_rng(0)))
    message = str(error.value)
    assert message.startswith(f"the pictures cannot be read: {error_of_the_library}")
    assert "mend it or remove it and start the same command again; --resume goes on" in message
    assert type(error.value.__cause__).__name__ in error_of_the_library


def test_what_stops_a_reader_is_no_torn_file(tmp_path):
    write_parquets(tmp_path, [4])
    share = open_source(tmp_path).share(0, 1, np.random.default_rng(0))
    next(share)
    with pytest.raises(KeyboardInterrupt):
        share.throw(KeyboardInterrupt)
