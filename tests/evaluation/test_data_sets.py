"""Opening data sets of every layout, and what is said when there is none."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from evaluation import part_segmentation, proxy_masks, representation, visualize
from evaluation.benchmarks import open_benchmark
from evaluation.data_sets import decode_image, open_images, open_rows
from modeling_rats import RatsForPartSegmentation, RatsImageProcessor


def png(value, size=4):
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_parquet(path, values=range(4), **columns):
    """Images of one grey value each; further columns are given as (values, feature)."""
    rows = {"image": [{"bytes": png(value), "path": None} for value in values]}
    rows |= {name: column for name, (column, _) in columns.items()}
    features = datasets.Features({"image": datasets.Image()} | {name: feature for name, (_, feature) in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(path)


def parquet_file(folder):
    return write_parquet(folder / "images.parquet")


def parquet_folder(folder):
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", [0, 1])
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", [2, 3])
    return str(folder / "data")


def arrow_file(folder):
    dataset = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(value), "path": None} for value in range(4)]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    dataset.save_to_disk(folder / "saved")
    (path,) = (folder / "saved").glob("*.arrow")
    return str(path)


def image_folder(folder):
    for value, name in enumerate(("bird", "bird", "car", "car")):
        (folder / "images" / "train" / name).mkdir(parents=True, exist_ok=True)
        (folder / "images" / "train" / name / f"{value}.png").write_bytes(png(value))
    return str(folder / "images")


def webdataset_file(folder):
    with tarfile.open(folder / "images.tar", "w") as tar:
        for value in range(4):
            for suffix, content in (("png", png(value)), ("json", json.dumps({"value": value}).encode())):
                member = tarfile.TarInfo(f"{value:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(folder / "images.tar")


def webdataset_folder(folder):
    (folder / "tars").mkdir()
    webdataset_file(folder / "tars")
    return str(folder / "tars")


@pytest.mark.parametrize(
    "layout, column",
    [
        (parquet_file, "image"),
        (parquet_folder, "image"),
        (arrow_file, "image"),
        (image_folder, "image"),
        (webdataset_file, "png"),
        (webdataset_folder, "png"),
    ],
)
def test_every_layout_gives_undecoded_images(tmp_path, layout, column):
    rows, found = open_images(layout(tmp_path), None, "train", None)
    assert found == column
    values = []
    for row in rows:
        assert set(row) == {column}
        image = row[column]
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        values.append(int(np.asarray(Image.open(io.BytesIO(content)))[0, 0, 0]))
    assert sorted(values) == [0, 1, 2, 3]


def test_a_broken_image_does_not_end_the_stream(tmp_path):
    contents = [png(1), b"no image", png(2)]
    images = ([{"bytes": content, "path": None} for content in contents], datasets.Image())
    rows, _ = open_images(write_parquet(tmp_path / "a.parquet", range(3), photo=images), None, "train", "photo")
    assert [row["photo"]["bytes"] for row in rows] == contents


def test_of_image_and_mask_the_image_is_read(tmp_path):
    masks = ([{"bytes": png(9), "path": None}] * 4, datasets.Image())
    path = write_parquet(tmp_path / "a.parquet", mask=masks)
    assert open_images(path, None, "train", None)[1] == "image"
    rows, column = open_images(path, None, "train", "mask")
    assert column == "mask" and next(iter(rows))["mask"]["bytes"] == png(9)


@pytest.mark.parametrize(
    "names, image_column, message",
    [
        (["left", "right"], None, "has 2 image columns; .*left, right.*--image_column"),
        ([], None, "has 0 image columns; .*caption.*--image_column"),
        (["left", "right"], "image", "has no image column image; its image columns: left, right"),
        ([], "image", "its image columns: none .all columns: caption."),
        (["left"], "caption", "has no image column caption; its image columns: left"),
    ],
)
def test_an_unclear_image_column_is_refused(tmp_path, names, image_column, message):
    rows = {name: [{"bytes": png(0), "path": None}] for name in names} | {"caption": ["a bird"]}
    features = datasets.Features({name: datasets.Image() for name in names} | {"caption": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        open_images(str(tmp_path), None, "train", image_column)


def test_a_split_is_chosen_by_name(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00001.parquet", range(3))
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", range(2))
    assert len(list(open_rows(str(tmp_path), split="validation"))) == 2
    with pytest.raises(ValueError, match=r"split=test is not in .*; it has: train, validation"):
        open_rows(str(tmp_path), split="test")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is an empty folder; it must hold images or parquet"):
        open_rows(str(tmp_path), split="train")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="has 0 image columns"):
        open_images(str(tmp_path), None, "train", None)


@pytest.mark.parametrize("name", ["notes.md", "sub/notes.md", "sub/sub/empty"])
def test_a_folder_without_data_is_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if path.name == "empty" else path.write_text("no data")
    with pytest.raises(FileNotFoundError, match="was not found or holds no data"):
        open_images(str(tmp_path), None, "train", None)


@pytest.mark.parametrize("name", ["{}/nowhere", "{}/nowhere.parquet", "./nowhere", "~/nowhere", "no where!", "a/b/c", ""])
def test_a_missing_data_set_is_refused(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"was not found or holds no data.*Check the spelling"):
        open_rows(name.format(tmp_path), split="train")


def test_a_hub_name_that_cannot_be_reached_is_refused(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("evaluation.data_sets.get_dataset_split_names", unreachable)
    with pytest.raises(FileNotFoundError, match=r"owner/name was not found .*no network.* the connection"):
        open_rows("owner/name", split="train")


def test_a_revision_of_the_hub_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "evaluation.data_sets.get_dataset_split_names", lambda *_, revision: asked.append(revision) or ["train"]
    )
    monkeypatch.setattr("evaluation.data_sets.load_dataset", lambda *_, revision, **kwargs: asked.append(revision))
    open_rows("owner/name", split="train", revision="v1.0")
    open_rows("owner/name", split="train")
    assert asked == ["v1.0", "v1.0", None, None]


@pytest.mark.parametrize("layout", [parquet_file, image_folder])
def test_a_revision_of_a_local_data_set_is_refused(tmp_path, layout):
    with pytest.raises(ValueError, match=r"revision=main was given for .*, which is a local .*Leave it out"):
        open_images(layout(tmp_path), None, "train", None, revision="main")


@pytest.mark.parametrize("name", ["images.csv", "images"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"a single file must be one of .parquet, .tar, .arrow"):
        open_rows(str(tmp_path / name))


def test_a_torn_parquet_file_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"a.parquet"):
        open_images(str(path), None, "train", None)


@pytest.mark.parametrize("as_struct", [False, True], ids=["bytes", "bytes and path"])
@pytest.mark.parametrize("named", [None, "picture"])
def test_parquet_of_other_tools_holds_images_without_saying_so(tmp_path, as_struct, named):
    content = {"bytes": png(20), "path": None} if as_struct else png(20)
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}) if as_struct else pyarrow.binary()
    table = pyarrow.table({"picture": pyarrow.array([content], kind), "label": [3]})
    parquet.write_table(table, tmp_path / "train.parquet")
    rows, column = open_images(str(tmp_path), None, "train", named)
    (row,) = rows
    assert column == "picture" and decode_image(row[column]).getpixel((0, 0)) == (20, 20, 20)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (part_segmentation, ["--model", "model"]),
        (representation, ["--model", "model", "--train_split", "train", "--test_split", "test"]),
        (proxy_masks, ["--model", "sam", "--output", "masks"]),
        (visualize, ["--model", "model", "--output", "pictures"]),
    ],
)
def test_every_command_asks_for_the_revision_that_it_is_given(make_config, tmp_path, monkeypatch, command, options):
    """As its refusal for local data shows."""
    monkeypatch.chdir(tmp_path)
    RatsForPartSegmentation(make_config()).save_pretrained("model")
    RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained("model")
    image_folder(tmp_path)
    with pytest.raises(SystemExit, match=r"revision=v1\.0 was given for images, which is a local file or folder"):
        command.main([*options, "--dataset", "images", "--dataset_revision", "v1.0"])


def test_a_benchmark_is_read_at_a_revision_of_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr("evaluation.benchmarks.open_mask_dataset", lambda *given: asked.append(given) or [])
    open_benchmark("ade20k", revision="v1.0")
    assert asked[0][-1] == "v1.0"
    with pytest.raises(ValueError, match=r"revision=v1\.0 was given with root=\.; only data sets on the Hub"):
        open_benchmark("ade20k", ".", revision="v1.0")
