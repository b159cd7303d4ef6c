"""How labelled images are read: names of classes, bytes of files, and what is refused."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.labelled_images import number_labels, open_labelled_images, read_labelled_images


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((20, 30), value, np.uint8)).save(file, "PNG")  # grey, as some images are
    return {"bytes": file.getvalue(), "path": None}


def save(folder, labels, label_feature, split="train", broken=()):
    features = datasets.Features({"image": datasets.Image(), "label": label_feature, "caption": datasets.Value("string")})
    images = [{"bytes": b"no image", "path": None} if row in broken else png(10 * row) for row in range(len(labels))]
    rows = {"image": images, "label": labels, "caption": ["words"] * len(labels)}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


NAMED = datasets.ClassLabel(names=["cat", "ant"])


@pytest.mark.parametrize(
    "labels, feature, read",
    [
        ([1, 0, 1], NAMED, ["ant", "cat", "ant"]),
        ([7, 0, 7], datasets.Value("int64"), [7, 0, 7]),
        (["b", "a", "b"], datasets.Value("string"), ["b", "a", "b"]),
    ],
    ids=["named", "integers", "strings"],
)
def test_labels_are_names_where_there_are_names(tmp_path, labels, feature, read):
    rows = open_labelled_images(save(tmp_path, labels, feature), None, "train")
    images = list(read_labelled_images(rows))
    assert [labelled.label for labelled in images] == read and [labelled.row for labelled in images] == [0, 1, 2]
    pixels = [labelled.decode() for labelled in images]
    assert [(image.mode, image.size, image.getpixel((0, 0))) for image in pixels] == [
        ("RGB", (30, 20), (level, level, level)) for level in (0, 10, 20)
    ]
    assert [labelled.label for labelled in read_labelled_images(rows, limit=2)] == read[:2]


def test_labels_of_several_splits_get_the_same_numbers():
    first, second = number_labels(["b", "a", "b"], ["c", "a"])
    assert first.tolist() == [1, 0, 1] and second.tolist() == [2, 0] and first.dtype == torch.int64


@pytest.mark.parametrize(
    "labels, feature, options, message",
    [
        ([0], NAMED, {"label_column": "fine"}, "no column 'fine'.* among: image, label, caption"),
        ([0], NAMED, {"image_column": "caption"}, "'caption' .* must hold images"),
        ([0.5], datasets.Value("float32"), {}, "'label' .* must be integers or strings"),
        ([0], NAMED, {"split": "test"}, "split=test is not in"),
    ],
    ids=["column", "images", "labels", "split"],
)
def test_a_data_set_that_is_not_labelled_images_is_refused(tmp_path, labels, feature, options, message):
    with pytest.raises(ValueError, match=message):
        open_labelled_images(**{"dataset": save(tmp_path, labels, feature), "config": None, "split": "train"} | options)


@pytest.mark.parametrize("labels", [[0, -1], [0, None]])
def test_a_row_without_a_label_is_an_error(tmp_path, labels):
    rows = open_labelled_images(save(tmp_path, labels, NAMED), None, "train")
    with pytest.raises(ValueError, match="Row 1 of split train has no label"):
        list(read_labelled_images(rows))


def test_an_image_that_cannot_be_decoded_is_an_error_with_its_row(tmp_path):
    rows = open_labelled_images(save(tmp_path, [0, 1, 0], NAMED, broken=[2]), None, "train")
    images = list(read_labelled_images(rows))
    assert images[1].decode().mode == "RGB"
    with pytest.raises(ValueError, match="image of row 2 of split train cannot be decoded"):
        images[2].decode()


def test_a_folder_of_images_gets_its_content_when_it_is_wanted(tmp_path):
    for name, level in (("ant", 10), ("cat", 20)):
        path = tmp_path / "train" / name / "0.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png(level)["bytes"])
    images = list(read_labelled_images(open_labelled_images(str(tmp_path), None, "train")))
    assert [labelled.label for labelled in images] == ["ant", "cat"]
    assert [labelled.image["bytes"] for labelled in images] == [None, None]  # the path alone
    whole = [labelled.with_content() for labelled in images]
    assert [labelled.image["bytes"] for labelled in whole] == [png(level)["bytes"] for level in (10, 20)]
    assert [labelled.decode().getpixel((0, 0))[0] for labelled in whole] == [10, 20]
    assert whole[0].with_content() is whole[0]
    Path(images[1].image["path"]).unlink()
    with pytest.raises(ValueError, match="image of row 1 of split train cannot be read"):
        images[1].with_content()


def test_a_row_without_image_is_an_error_with_its_row(tmp_path):
    save(tmp_path, [0], NAMED)
    features = datasets.Features({"image": datasets.Image(), "label": NAMED})
    rows = datasets.Dataset.from_dict({"image": [None], "label": [0]}, features=features)
    rows.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    (labelled,) = read_labelled_images(open_labelled_images(str(tmp_path), None, "train"))
    with pytest.raises(ValueError, match="image of row 0 of split train cannot be read"):
        labelled.with_content()
