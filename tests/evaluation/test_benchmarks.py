"""The records, what `datasets` opens by them, and the command; official layouts are in test_layouts.py."""

import dataclasses
import io
import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from evaluation import benchmarks
from evaluation.benchmarks import BENCHMARKS, Benchmark, find_benchmark, open_benchmark
from evaluation.synthetic_parts import write_dataset

SHARED_DATA = Path(os.environ.get("RATS_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
SIDE = 16


def write_rows(folder, masks, split="validation", mask_column="mask"):
    """A parquet folder; masks are arrays of integers, stored as PNG, or lists, stored as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    as_images = all(isinstance(mask, np.ndarray) for mask in masks)
    rows = {"image": [image] * len(masks), mask_column: [Image.fromarray(mask) if as_images else mask for mask in masks]}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data = data.cast_column(mask_column, datasets.Image()) if as_images else data
    data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def bands(*labels, dtype=np.uint8):
    return np.repeat(np.array(labels, dtype), SIDE // len(labels))[:, None].repeat(SIDE, axis=1)


def run(capsys, *arguments):
    benchmarks.main(list(arguments))
    return capsys.readouterr().out


# Records


def test_the_papers_five_are_there_with_the_masks_it_scores():
    kinds = {name: BENCHMARKS[name].mask_kind for name in ("coco_proxy", "ade20k", "imagenet", "imagenet_s919", "partimagenet")}
    assert kinds == {
        "coco_proxy": "proxy",
        "ade20k": "semantic",
        "imagenet": "proxy",
        "imagenet_s919": "semantic",
        "partimagenet": "parts",
    }
    own_annotation = [name for name, kind in kinds.items() if kind != "proxy"]
    assert all(BENCHMARKS[name].layout is not None for name in own_annotation)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_record_says_what_one_must_know(name):
    record = BENCHMARKS[name]
    assert record.name == name
    assert all([record.title, record.source, record.licence, record.labels])
    assert not record.hub_verified, "nothing was tried on the Hub; say in the record what was"
    assert record.background == (record.ignore_label != 0), "label 0 either counts as background or is ignored"
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.split = "train"


def test_names_are_unique():
    from evaluation.benchmark_records import RECORDS

    assert len(RECORDS) == len(BENCHMARKS)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"benchmark=ade is not known; .*ade20k"):
        find_benchmark("ade")


# What `datasets` opens


def test_proxy_masks_keep_sixteen_bits(tmp_path):
    masks = [bands(0, 1, 300, 40_000, dtype=np.uint16), bands(2, 1, dtype=np.uint16)]
    rows = list(open_benchmark("imagenet", write_rows(tmp_path, masks)))
    assert [row.index for row in rows] == [0, 1]
    for row, mask in zip(rows, masks, strict=True):
        image, read = row.decode()
        assert image.mode == "RGB"
        np.testing.assert_array_equal(read, mask)


def test_rendered_objects_are_a_benchmark(tmp_path):
    write_dataset(tmp_path, 3, 32, seed=1, split="validation", num_processes=1, quiet=True)
    rows = list(open_benchmark("synthetic_parts", tmp_path))
    assert len(rows) == 3 and all(row.decode().mask.shape == (32, 32) for row in rows)


def test_a_record_of_ones_own_opens_any_data_set(tmp_path):
    """By the road of the Hub, on which a folder may stand for a name."""
    folder = write_rows(tmp_path, [bands(1, 2), bands(0, 255)], split="test", mask_column="labels")
    mine = Benchmark(
        name="mine",
        title="Mine",
        hub_id=str(folder),
        hub_has_masks=True,
        split="test",
        mask_column="labels",
        ignore_label=255,
        num_labels=3,
    )
    rows = list(open_benchmark(mine))
    np.testing.assert_array_equal(rows[1].decode().mask, bands(0, 255))
    assert [row.index for row in open_benchmark(mine, limit=1)] == [0]
    with pytest.raises(ValueError, match="no column 'mask'"):
        open_benchmark(dataclasses.replace(mine, mask_column="mask"))
    with pytest.raises(ValueError, match="split=validation is not in"):
        open_benchmark(dataclasses.replace(mine, split="validation"))


def test_rows_can_be_sent_to_other_processes(tmp_path):
    (row,) = open_benchmark("coco_proxy", write_rows(tmp_path, [bands(1, 2)]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(row)).decode().mask, bands(1, 2))
    folder = tmp_path / "ADEChallengeData2016"
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        (folder / kind / "validation").mkdir(parents=True)
        Image.fromarray(bands(1, 2)).save(folder / kind / "validation" / f"ADE_val_00000001.{suffix}")
    (row,) = open_benchmark("ade20k", tmp_path)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(row)).decode().mask, bands(1, 2))


@pytest.mark.parametrize(
    "mask, message",
    [
        (bands(0, 9), "labels 9, which Car parts does not have; its labels are 0 to 8. Use"),
        (bands(0, 1)[:, :4], "16 x 16 and its mask 4 x 16"),
        ((bands(0, 1) + 0.5).tolist(), "dtype float64"),
    ],
    ids=["unknown labels", "another size", "floats"],
)
def test_a_mask_that_cannot_be_used_is_refused_by_its_row(tmp_path, mask, message):
    (row,) = open_benchmark("car_parts", write_rows(tmp_path, [mask]))
    with pytest.raises(ValueError, match=f"row 0 .*{message}"):
        row.decode()


def test_an_empty_split_is_refused(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    datasets.Dataset.from_dict({"image": [], "mask": []}, features=features).to_parquet(
        tmp_path / "validation-00000-of-00001.parquet"
    )
    with pytest.raises(ValueError, match="holds no rows"):
        list(open_benchmark("car_parts", tmp_path))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_is_at_least_one(tmp_path, limit):
    with pytest.raises(ValueError, match=f"limit={limit} must be at least 1"):
        open_benchmark("ade20k", tmp_path, limit)


@pytest.mark.parametrize(
    "name, message",
    [
        ("imagenet_s919", r"(?s)no Hub data set .*--root DIR.*ROOT/ImageNetS919/validation"),
        ("coco", r"(?s)nielsr/coco-panoptic-val2017 on the Hub, without label maps.*ROOT/annotations"),
        ("imagenet", r"ILSVRC/imagenet-1k on the Hub, without label maps.*evaluation\.proxy_masks"),
        ("car_parts", r"no Hub data set .*parquet folder"),
    ],
)
def test_what_cannot_be_read_from_the_hub_asks_for_a_root(name, message):
    with pytest.raises(ValueError, match=message):
        open_benchmark(name)


def test_a_root_that_is_not_there_is_never_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr(benchmarks, "open_mask_dataset", lambda *_: pytest.fail("looked elsewhere"))
    with pytest.raises(FileNotFoundError, match="root=owner/name does not exist"):
        open_benchmark("car_parts", "owner/name")


# The command


def test_the_table_has_every_record_and_marks_what_was_not_verified(capsys):
    lines = run(capsys).splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(BENCHMARKS)
    (ade,) = (line for line in lines if line.startswith("ade20k"))
    assert all(text in ade for text in ("merve/scene_parse_150 (unverified)", "validation", "0-150", "BSD-3-Clause"))


def test_a_record_is_shown_with_its_layout(capsys):
    shown = run(capsys, "partimagenet")
    assert "annotations/test/test.json" in shown and "background    True" in shown


def test_a_folder_is_checked(tmp_path, capsys):
    write_rows(tmp_path, [bands(0, 1, 2, 2), bands(0, 5), bands(7, 8)])
    shown = run(capsys, "coco_panoptic_200_semantic", "--root", str(tmp_path), "--decode", "2")
    assert "3 images of 100 that the split has" in shown
    assert "first 2 were decoded: sides of 16 to 16 pixels, 1 to 2 regions an image, 37.5 % of the pixels ignored" in shown
    assert "0 in 2, 1 in 1, 2 in 1, 5 in 1." in shown


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["ade"], "benchmark=ade is not known"),
        (["ade20k", "--root", "nowhere"], "Expected layout"),
        (["car_parts", "--root", "nowhere"], "does not exist"),
    ],
)
def test_what_the_user_can_mend_ends_without_a_traceback(arguments, message):
    with pytest.raises(SystemExit, match=message):
        benchmarks.main(arguments)


@pytest.mark.parametrize("arguments, message", [(["--root", "."], "needs the name"), (["coco", "--decode", "0"], "at least 1")])
def test_options_that_make_no_sense_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        benchmarks.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, folder",
    [
        ("car_parts", "car_parts"),
        ("car_parts_fine", "car_parts"),
        ("coco_panoptic_200", "coco_panoptic_200"),
        ("coco_panoptic_200_semantic", "coco_panoptic_200"),
    ],
)
def test_photographs_are_read_by_their_records(name, folder):
    if not (SHARED_DATA / folder).exists():
        pytest.skip(f"{SHARED_DATA / folder} is not there; set RATS_SHARED_DATA to the folder with {folder}")
    rows = list(open_benchmark(name, SHARED_DATA / folder))
    assert len(rows) == BENCHMARKS[name].num_images
    stored = parquet.read_table(next((SHARED_DATA / folder).glob("validation*"))).to_pylist()
    for row in rows[::10]:
        mask = Image.open(io.BytesIO(stored[row.index][BENCHMARKS[name].mask_column]["bytes"]))
        np.testing.assert_array_equal(row.decode().mask, np.asarray(mask))
