"""Segmented images of every source for every task, from small files, and what is said of annotations that are wrong."""

import io
import json
import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths

from evaluation.segmentation_data import BrokenImageError, open_segmentation_data

SHARED_DATA = Path(os.environ.get("RATS_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
HEIGHT, WIDTH = 12, 20


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """`datasets` keeps what it opens; the tests' own is not for anybody else."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def encode(pixels, format="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return {"bytes": file.getvalue(), "path": None}


def picture(height=HEIGHT, width=WIDTH, **options):
    return encode(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8), **options)


def bands(*values, dtype=np.uint8):
    """Equal bands of these values, from top to bottom."""
    return np.repeat(np.array(values, dtype), HEIGHT // len(values))[:, None].repeat(WIDTH, axis=1)


def rectangle(top, bottom, left, right):
    filled = np.zeros((HEIGHT, WIDTH), bool)
    filled[top:bottom, left:right] = True
    return filled


def polygon(top, bottom, left, right):
    return [[float(number) for number in (left, top, right, top, right, bottom, left, bottom)]]


def compressed(filled):
    code = run_lengths.encode(np.asfortranarray(filled.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def uncompressed(filled):
    flat = filled.ravel(order="F").astype(int)
    starts = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": list(filled.shape), "counts": np.diff([0, *starts, flat.size]).tolist()}


def write_table(folder, columns, features=None, split="train", image=None):
    """A parquet folder with an image column and others; features are told where they cannot be inferred."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    rows = {"image": [image or picture()] * count, **columns}
    inferred = datasets.Dataset.from_dict(columns).features
    features = datasets.Features({"image": datasets.Image(), **inferred, **(features or {})})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def write_maps(folder, *maps, name="mask", more=None, image=None):
    """A parquet folder of maps stored as PNG."""
    columns = {name: [encode(label_map) for label_map in maps], **(more or {})}
    return write_table(folder, columns, {name: datasets.Image()}, image=image)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def assert_segments(sample, expected, crowd=()):
    """The sample's segments are the expected pairs of label and mask, in any order."""
    found = {(label, mask.tobytes()) for label, mask in zip(sample.labels.tolist(), sample.masks, strict=True)}
    assert found == {(label, np.asarray(mask, bool).tobytes()) for label, mask in expected}
    assert len(sample.labels) == len(sample.masks) == len(sample.crowd) == len(expected)
    assert sorted(sample.labels[sample.crowd].tolist()) == sorted(crowd)
    assert sample.masks.shape[1:] == sample.void.shape == (sample.image.height, sample.image.width)
    assert (sample.masks.dtype, sample.labels.dtype, sample.crowd.dtype, sample.void.dtype) == (bool, np.int64, bool, bool)
    assert sample.image.mode == "RGB"


# Maps of labels


def test_each_label_of_a_map_is_a_segment_and_255_is_void(tmp_path):
    data = open_segmentation_data(write_maps(tmp_path, bands(2, 0, 255)), "train", "semantic", num_labels=3)
    (sample,) = data
    assert_segments(sample, [(0, bands(0, 1, 0)), (2, bands(1, 0, 0))])
    np.testing.assert_array_equal(sample.void, bands(0, 0, 1).astype(bool))
    assert data.id2label == {0: "label 0", 1: "label 1", 2: "label 2"} and data.thing_labels == frozenset()
    assert (data.task, data.subject(0)) == ("semantic", f"row 0 of {tmp_path.name} train")


def test_reduced_labels_are_one_lower_and_0_is_void(tmp_path):
    folder = write_maps(tmp_path, bands(0, 1, 3, 255))
    (sample,) = open_segmentation_data(folder, "train", "semantic", num_labels=3, reduce_labels=True)
    assert_segments(sample, [(0, bands(0, 1, 0, 0)), (2, bands(0, 0, 1, 0))])
    np.testing.assert_array_equal(sample.void, bands(1, 0, 0, 1).astype(bool))


def test_an_image_of_void_alone_has_no_segment(tmp_path):
    (sample,) = open_segmentation_data(write_maps(tmp_path, bands(7)), "train", "semantic", num_labels=3, ignore_label=7)
    assert_segments(sample, [])
    assert sample.masks.shape == (0, HEIGHT, WIDTH) and sample.void.all()


@pytest.mark.parametrize(
    "column, feature",
    [
        (encode(bands(1, 0, dtype=np.uint16)), datasets.Image()),
        (bands(1, 0).tolist(), datasets.List(datasets.List(datasets.Value("int32")))),
        (bands(1, 0).tolist(), datasets.Array2D((HEIGHT, WIDTH), "int32")),
    ],
    ids=["16 bits", "rows", "array"],
)
def test_maps_are_read_in_every_form(tmp_path, column, feature):
    folder = write_table(tmp_path, {"labels": [column]}, {"labels": feature})
    (sample,) = open_segmentation_data(folder, "train", "semantic", mask_column="labels", num_labels=2)
    assert_segments(sample, [(1, bands(1, 0)), (0, bands(0, 1))])


def test_a_single_file_is_read_whole(tmp_path):
    write_maps(tmp_path, bands(0), bands(1))
    data = open_segmentation_data(tmp_path / "train-00000-of-00001.parquet", "any", "semantic", num_labels=2)
    assert [sample.labels.tolist() for sample in data] == [[0], [1]]


# Names of labels


def test_names_are_those_of_the_file_beside_the_data_without_what_is_ignored(tmp_path):
    folder = write_maps(tmp_path, bands(0, 2))
    write_json(folder / "label_names.json", {"label_names": ["none", "cat", "dog"], "ignore_index": 0})
    data = open_segmentation_data(folder, "train", "semantic")
    assert list(data.id2label.values()) == ["none", "cat", "dog"]
    assert_segments(data[0], [(2, bands(0, 1))])  # label 0 is told to be ignored
    data = open_segmentation_data(folder, "train", "semantic", reduce_labels=True)
    assert list(data.id2label.values()) == ["cat", "dog"]
    assert_segments(data[0], [(1, bands(0, 1))])
    assert open_segmentation_data(folder, "train", "semantic", label_names=["a", "b", "c"]).id2label[2] == "c"


def test_255_is_a_label_where_there_are_so_many(tmp_path):
    folder = write_maps(tmp_path, bands(255, 0))
    (sample,) = open_segmentation_data(folder, "train", "semantic", num_labels=256)
    assert sample.labels.tolist() == [0, 255] and not sample.void.any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "Nothing tells how many labels .* has; .* cannot be counted in one split"),
        ({"num_labels": 2, "label_names": ["a"]}, "num_labels=2 was given, and label_names of .* names 1 labels"),
        ({"num_labels": 2, "thing_labels": [2]}, "thing_labels has 2; they must be among the labels of .*, 0 to 1"),
        ({"num_labels": 2, "task": "parts"}, "task=parts must be one of semantic, instance, panoptic"),
        ({"num_labels": 2, "task": "instance"}, r"for instance segmentation it must have segment_mask and segment_labels, or"),
        ({"num_labels": 2, "task": "instance", "mask_column": "mask"}, "'mask' of .* does not hold what instance segmentation"),
        ({"num_labels": 2, "mask_column": "masks"}, "has no column 'masks'; its columns: image, mask"),
        ({"num_labels": 2, "image_column": "photo"}, "has no column 'photo'; image_column must name"),
        ({"num_labels": 2, "segment_labels_column": "mask"}, "was given without mask_column"),
        ({"num_labels": 2, "mask_column": "mask", "objects_column": "mask"}, "either objects or maps are read"),
        ({"num_labels": 2, "objects_column": "mask"}, "must have segmentation, and category or category_id"),
        ({"layout": "ade"}, "layout=ade is not known; .* coco_instances, coco_panoptic, ade20k"),
        ({"layout": "ade20k", "num_labels": 150}, "layout=ade20k was given with options"),
        ({"layout": "ade20k", "task": "panoptic"}, "layout=ade20k has no annotation for task=panoptic"),
        ({"layout": "ade20k", "split": "test"}, "split=test is not in ade20k; it has: train, validation"),
        ({"num_labels": 2, "split": "test"}, "split=test is not in"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(tmp_path, options, message):
    options = {"split": "train", "task": "semantic"} | options
    with pytest.raises(ValueError, match=message):
        open_segmentation_data(write_maps(tmp_path, bands(0)), **options)


@pytest.mark.parametrize(
    "content, message",
    [({"label_names": ["a", "b"], "isthing": [1]}, "must have a 0 or 1"), ({"label_names": 3}, "must hold a list of names")],
)
def test_a_broken_file_of_names_is_refused(tmp_path, content, message):
    folder = write_maps(tmp_path, bands(0))
    write_json(folder / "label_names.json", content)
    with pytest.raises(ValueError, match=message):
        open_segmentation_data(folder, "train", "semantic")


# Maps of segments


SEGMENTS = bands(0, 1, 2, 3, 5, 6)  # 4 is listed, and not drawn
SEGMENT_LABELS = [0, 1, 1, 2, 3, 3, 3]  # 1 and 2 are things
KNOWN = {"label_names": ["none", "cat", "dog", "grass"], "isthing": [0, 1, 1, 0], "ignore_index": 0}


@pytest.fixture
def segment_map(tmp_path):
    folder = write_maps(tmp_path, SEGMENTS, name="segment_mask", more={"segment_labels": [SEGMENT_LABELS]})
    write_json(folder / "label_names.json", KNOWN)
    return folder


def test_panoptic_things_are_apart_and_stuff_is_one_segment_a_label(segment_map):
    data = open_segmentation_data(segment_map, "train", "panoptic", reduce_labels=True)
    assert list(data.id2label.values()) == ["cat", "dog", "grass"] and data.thing_labels == {0, 1}
    assert_segments(data[0], [(0, SEGMENTS == 1), (0, SEGMENTS == 2), (1, SEGMENTS == 3), (2, SEGMENTS >= 5)])
    np.testing.assert_array_equal(data[0].void, SEGMENTS == 0)


def test_instances_are_the_things_numbered_from_0(segment_map):
    data = open_segmentation_data(segment_map, "train", "instance")
    assert list(data.id2label.values()) == ["cat", "dog"] and data.thing_labels == {0, 1}
    assert_segments(data[0], [(0, SEGMENTS == 1), (0, SEGMENTS == 2), (1, SEGMENTS == 3)])
    data = open_segmentation_data(segment_map, "train", "instance", thing_labels=[1, 3])
    assert list(data.id2label.values()) == ["cat", "grass"]
    assert_segments(data[0], [(0, SEGMENTS == 1), (0, SEGMENTS == 2), (1, SEGMENTS == 5), (1, SEGMENTS == 6)])


def test_segments_of_a_label_are_one_for_semantic_segmentation(segment_map):
    data = open_segmentation_data(segment_map, "train", "semantic", reduce_labels=True)
    expected = [(0, (SEGMENTS == 1) | (SEGMENTS == 2)), (1, SEGMENTS == 3), (2, SEGMENTS >= 5)]
    assert_segments(data[0], expected)
    np.testing.assert_array_equal(data[0].void, SEGMENTS == 0)


def test_panoptic_needs_to_know_the_things(segment_map):
    (segment_map / "label_names.json").unlink()
    with pytest.raises(ValueError, match=r"Nothing tells which labels .* are things.*isthing"):
        open_segmentation_data(segment_map, "train", "panoptic", num_labels=4)
    assert len(open_segmentation_data(segment_map, "train", "instance", num_labels=4).thing_labels) == 4


# Objects


LARGE, SMALL, CROWD = (2, 10, 2, 14), (4, 6, 4, 8), (0, 4, 10, 20)


def objects_of(outlines, crowd=(0, 0, 1), labels=(0, 1, 1)):
    return {"segmentation": outlines, "category": list(labels), "iscrowd": list(crowd)}


def write_objects(folder, *objects, as_list=True, image=None):
    fields = objects[0].keys()
    rows = list(objects)
    if as_list:
        rows = [[dict(zip(fields, entry, strict=True)) for entry in zip(*row.values(), strict=True)] for row in objects]
    return write_table(folder, {"objects": rows}, image=image)


@pytest.mark.parametrize("as_list", [True, False], ids=["list of entries", "entry of lists"])
@pytest.mark.parametrize(
    "form",
    [lambda box: polygon(*box), lambda box: compressed(rectangle(*box)), lambda box: uncompressed(rectangle(*box)),
     lambda box: rectangle(*box).astype(int).tolist()],
    ids=["polygons", "compressed", "uncompressed", "mask"],
)  # fmt: skip
def test_objects_of_every_form_keep_their_overlaps(tmp_path, form, as_list):
    objects = objects_of([form(LARGE), form(SMALL), form(CROWD)])
    data = open_segmentation_data(write_objects(tmp_path, objects, as_list=as_list), "train", "instance", num_labels=2)
    assert_segments(data[0], [(0, rectangle(*LARGE)), (1, rectangle(*SMALL)), (1, rectangle(*CROWD))], crowd=[1])
    assert not data[0].void.any() and data.thing_labels == {0, 1}


def test_masks_of_objects_may_be_images_and_names_those_of_the_column(tmp_path):
    entries = [{"segmentation": encode(rectangle(*box)), "category_id": 1} for box in (LARGE, SMALL)]
    entry = {"segmentation": datasets.Image(), "category_id": datasets.ClassLabel(names=["cat", "dog"])}
    folder = write_table(tmp_path, {"things": [entries]}, {"things": datasets.List(entry)})
    data = open_segmentation_data(folder, "train", "instance", objects_column="things")
    assert list(data.id2label.values()) == ["cat", "dog"]
    assert_segments(data[0], [(1, rectangle(*LARGE)), (1, rectangle(*SMALL))])


def test_smaller_objects_lie_on_top_for_semantic_segmentation_and_crowds_below(tmp_path):
    folder = write_objects(tmp_path, objects_of([polygon(*SMALL), polygon(*LARGE), polygon(*CROWD)], labels=(0, 1, 0)))
    (sample,) = open_segmentation_data(folder, "train", "semantic", num_labels=2)
    large, small, crowd = rectangle(*LARGE), rectangle(*SMALL), rectangle(*CROWD)
    assert_segments(sample, [(0, small | (crowd & ~large)), (1, large & ~small)])
    np.testing.assert_array_equal(sample.void, ~(small | large | crowd))


def test_two_objects_that_overlap_do_not_as_labels(tmp_path):
    folder = write_objects(tmp_path, objects_of([polygon(*SMALL), polygon(*LARGE)], crowd=(0, 0), labels=(0, 1)))
    (sample,) = open_segmentation_data(folder, "train", "semantic", num_labels=2)
    assert_segments(sample, [(0, rectangle(*SMALL)), (1, rectangle(*LARGE) & ~rectangle(*SMALL))])


def test_objects_without_pixels_are_left_out_and_images_without_objects_are_not(tmp_path):
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    full = objects_of([compressed(rectangle(*SMALL)), compressed(nothing)], crowd=(0, 0), labels=(0, 1))
    folder = write_objects(tmp_path, full, objects_of([], crowd=(), labels=()))
    data = open_segmentation_data(folder, "train", "instance", num_labels=2)
    assert_segments(data[0], [(0, rectangle(*SMALL))])
    assert_segments(data[1], [])


def test_objects_of_an_ignored_label_are_void_but_for_what_lies_on_them(tmp_path):
    folder = write_objects(tmp_path, objects_of([polygon(*LARGE), polygon(*SMALL)], crowd=(0, 0), labels=(5, 1)))
    (sample,) = open_segmentation_data(folder, "train", "instance", num_labels=2, ignore_label=5)
    assert_segments(sample, [(1, rectangle(*SMALL))])
    np.testing.assert_array_equal(sample.void, rectangle(*LARGE) & ~rectangle(*SMALL))


# What is wrong with a row


def broken_row(folder, kind):
    if kind == "label":
        return write_maps(folder, bands(0, 3, 9)), {"task": "semantic", "num_labels": 3}
    if kind == "reduced label":
        return write_maps(folder, bands(0, 3, 4)), {"task": "semantic", "num_labels": 3, "reduce_labels": True}
    if kind == "colours":
        return write_maps(folder, np.zeros((HEIGHT, WIDTH, 3), np.uint8)), {"task": "semantic", "num_labels": 3}
    if kind == "size":
        return write_maps(folder, bands(0)[:6, :10]), {"task": "semantic", "num_labels": 3}
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        return write_maps(folder, bands(0), image=picture(format="JPEG", exif=exif)), {"task": "semantic", "num_labels": 3}
    if kind == "no mask":
        return write_table(folder, {"mask": [None]}, {"mask": datasets.Image()}), {"task": "semantic", "num_labels": 3}
    if kind == "broken mask":
        table = write_table(folder, {"mask": [{"bytes": b"no image", "path": None}]}, {"mask": datasets.Image()})
        return table, {"task": "semantic", "num_labels": 3}
    if kind == "ragged mask":
        return write_table(folder, {"mask": [[[1, 2], [3]]]}), {"task": "semantic", "num_labels": 3}
    if kind == "segment without label":
        more = {"segment_labels": [[0, 1]]}
        return write_maps(folder, bands(0, 1, 2), name="segment_mask", more=more), {"task": "instance", "num_labels": 3}
    if kind == "label of segment":
        more = {"segment_labels": [[0, 1, 7]]}
        return write_maps(folder, bands(0, 1, 2), name="segment_mask", more=more), {"task": "instance", "num_labels": 3}
    objects = {
        "label of object": objects_of([polygon(*SMALL)], (0,), (-1,)),
        "word": objects_of([polygon(*SMALL)], (0,), ("cat",)),
        "polygon": objects_of([[[1.0, 1, 5, 5]]], (0,), (0,)),
        "run lengths": objects_of([{"size": [HEIGHT, WIDTH], "counts": [3, 2]}], (0,), (0,)),
        "no outline": objects_of([polygon(*SMALL), None], (0, 0), (0, 0)),
        "unequal lists": objects_of([polygon(*SMALL)], (0,), (0, 0)),
    }[kind]
    return write_objects(folder, objects, as_list=kind != "unequal lists"), {"task": "instance", "num_labels": 3}


@pytest.mark.parametrize(
    "kind, message",
    [
        ("label", "annotation of row 0 of .* holds the labels 3, 9; they must be 0 to 2, besides 255 for what is ignored"),
        ("reduced label", "holds the labels 4; they must be 1 to 3, besides 0 and 255 for what is ignored"),
        ("colours", r"mask of row 0 of .* has shape \(12, 20, 3\); it must be \(height, width\)"),
        ("size", r"image of row 0 of .* is 20 x 12 and its mask 10 x 6 \(width x height\).*nearest neighbour"),
        ("turned", r"is 12 x 20 and its mask 20 x 12 .*EXIF"),
        ("no mask", "mask of row 0 of .* is missing"),
        ("broken mask", "mask of row 0 of .* cannot be decoded"),
        ("ragged mask", "mask of row 0 of .* cannot be decoded .*rows of integers of equal length"),
        ("segment without label", "segment map of row 0 of .* has the segment 2, and its list of labels 2 entries"),
        ("label of segment", "annotation of row 0 of .* holds the labels 7; they must be 0 to 2"),
        ("label of object", "annotation of row 0 of .* holds the labels -1"),
        ("word", "category of row 0 of .* hold 'cat'; labels must be integers"),
        ("polygon", "outline of row 0 of .* cannot be read .*polygon of 4 numbers"),
        ("run lengths", "outline of row 0 of .* cannot be read .*runs cover 5 pixels"),
        ("no outline", "outline of row 0 of .* cannot be read"),
        ("unequal lists", "objects of row 0 of .* have lists of .*'category': 2"),
    ],
)
def test_a_bad_annotation_is_named_when_it_is_read(tmp_path, kind, message):
    folder, options = broken_row(tmp_path, kind)
    data = open_segmentation_data(folder, "train", **options)
    with pytest.raises(ValueError, match=message) as caught:
        data[0]
    assert not isinstance(caught.value, BrokenImageError)


def test_a_broken_image_is_an_error_of_its_own_and_spoils_no_other(tmp_path):
    write_maps(tmp_path, bands(0), image={"bytes": b"no image", "path": None})
    data = open_segmentation_data(tmp_path, "train", "semantic", num_labels=2)
    with pytest.raises(BrokenImageError, match=r"image of row 0 of .* cannot be decoded \(UnidentifiedImageError"):
        data[0]


def test_an_image_is_turned_upright_before_it_is_compared_with_its_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = write_maps(tmp_path, bands(0, 1).T, image=picture(format="JPEG", exif=exif))
    (sample,) = open_segmentation_data(folder, "train", "semantic", num_labels=2)
    assert sample.image.size == (HEIGHT, WIDTH) and sample.masks.shape == (2, WIDTH, HEIGHT)


# Official files


CATEGORIES = [
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 3, "name": "car", "isthing": 1},
    {"id": 184, "name": "tree-merged", "isthing": 0},
]


def write_picture(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(**options)["bytes"])


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(pixels)["bytes"])


@pytest.fixture
def instances(tmp_path):
    """Image 7 with a person on a car and a crowd of cars, and image 9 without objects; categories in reverse."""
    write_json(
        tmp_path / "annotations" / "instances_train2017.json",
        {
            "images": [{"id": number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH} for number in (9, 7)],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 3, "segmentation": polygon(*LARGE), "iscrowd": 0},
                {"id": 2, "image_id": 7, "category_id": 1, "segmentation": polygon(*SMALL), "iscrowd": 0},
                {"id": 3, "image_id": 7, "category_id": 3, "segmentation": uncompressed(rectangle(*CROWD)), "iscrowd": 1},
            ],
            "categories": CATEGORIES[1::-1],
        },
    )
    for number in (7, 9):
        write_picture(tmp_path / "train2017" / f"{number}.jpg", format="JPEG")
    return tmp_path


def test_coco_instances_have_labels_in_order_of_their_ids(instances):
    data = open_segmentation_data(instances, "train", "instance", layout="coco_instances")
    assert data.id2label == {0: "person", 1: "car"} and data.thing_labels == {0, 1}
    assert [data.subject(index) for index in (0, 1)] == ["train2017/7.jpg", "train2017/9.jpg"]
    assert_segments(data[0], [(0, rectangle(*SMALL)), (1, rectangle(*LARGE)), (1, rectangle(*CROWD))], crowd=[1])
    assert_segments(data[1], [])
    assert not data[0].void.any() and not data[1].void.any()


def test_coco_instances_become_a_map_for_semantic_segmentation(instances):
    data = open_segmentation_data(instances, "train", "semantic", layout="coco_instances")
    car = (rectangle(*LARGE) | rectangle(*CROWD)) & ~rectangle(*SMALL)
    assert_segments(data[0], [(0, rectangle(*SMALL)), (1, car)])


def test_a_file_that_is_missing_is_told_with_the_layout(instances):
    (instances / "train2017" / "9.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"(?s)1 of 2 images .*9\.jpg.*COCO instances, train2017\):\nROOT/annotations"):
        open_segmentation_data(instances, "train", "instance", layout="coco_instances")
    with pytest.raises(FileNotFoundError, match=r"(?s)instances_val2017.json is missing.*COCO instances, val2017"):
        open_segmentation_data(instances, "val", "instance", layout="coco_instances")


def test_broken_official_images_and_annotations_are_told_apart(instances):
    (instances / "train2017" / "9.jpg").write_bytes(b"no image")
    (instances / "train2017" / "7.jpg").write_bytes(picture(6, 10, format="JPEG")["bytes"])
    data = open_segmentation_data(instances, "train", "instance", layout="coco_instances")
    with pytest.raises(BrokenImageError, match=r"image of train2017/9\.jpg cannot be decoded"):
        data[1]
    with pytest.raises(ValueError, match=r"image of train2017/7\.jpg is 10 x 6 and its mask 20 x 12"):
        data[0]


@pytest.fixture
def panoptic(tmp_path):
    """One image: a person, a crowd of persons, a car, trees and an unlabelled band."""
    numbers = {"person": 200, "crowd": 300, "car": 70000, "tree": 5}
    listed = [
        {"id": numbers[name], "category_id": category, "iscrowd": int(name == "crowd")}
        for name, category in (("person", 1), ("crowd", 1), ("car", 3), ("tree", 184))
    ]
    write_json(
        tmp_path / "annotations" / "panoptic_val2017.json",
        {
            "images": [{"id": 7, "file_name": "7.jpg", "height": HEIGHT, "width": WIDTH}],
            "annotations": [{"image_id": 7, "file_name": "7.png", "segments_info": listed}],
            "categories": CATEGORIES,
        },
    )
    codes = np.repeat([0, *numbers.values(), 5], 2)[:, None].repeat(WIDTH, axis=1)
    colours = np.stack([codes % 256, codes // 256 % 256, codes // 65536], axis=2).astype(np.uint8)
    write_png(tmp_path / "annotations" / "panoptic_val2017" / "7.png", colours)
    write_picture(tmp_path / "val2017" / "7.jpg", format="JPEG")
    return tmp_path


PANOPTIC_BANDS = bands(0, 1, 2, 3, 4, 4)


@pytest.mark.parametrize(
    "task, expected, crowd, things",
    [
        ("panoptic", [(0, 1), (0, 2), (1, 3), (2, 4)], [0], {0, 1}),
        ("instance", [(0, 1), (0, 2), (1, 3)], [0], {0, 1}),
        ("semantic", [(0, (1, 2)), (1, 3), (2, 4)], [], set()),
    ],
)
def test_coco_panoptic_serves_every_task(panoptic, task, expected, crowd, things):
    data = open_segmentation_data(panoptic, "validation", task, layout="coco_panoptic")
    expected = [(label, np.isin(PANOPTIC_BANDS, band)) for label, band in expected]
    assert_segments(data[0], expected, crowd)
    np.testing.assert_array_equal(data[0].void, PANOPTIC_BANDS == 0)
    assert list(data.id2label.values()) == ["person", "car", "tree-merged"][: 2 if task == "instance" else 3]
    assert data.thing_labels == things


def test_panoptic_categories_must_say_whether_they_are_things(panoptic):
    path = panoptic / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    del content["categories"][2]["isthing"]
    write_json(path, content)
    with pytest.raises(ValueError, match="1 categories have no isthing, the first is 'tree-merged'"):
        open_segmentation_data(panoptic, "validation", "panoptic", layout="coco_panoptic")


def test_a_panoptic_segment_that_is_not_listed_is_refused(panoptic):
    write_png(panoptic / "annotations" / "panoptic_val2017" / "7.png", np.full((HEIGHT, WIDTH, 3), 9, np.uint8))
    data = open_segmentation_data(panoptic, "validation", "panoptic", layout="coco_panoptic")
    with pytest.raises(ValueError, match=r"segments of val2017/7\.jpg do not fit together"):
        data[0]
    (panoptic / "annotations" / "panoptic_val2017" / "7.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"mask of val2017/7\.jpg cannot be decoded"):
        data[0]


def write_ade20k(root, label_map, folder="training", **options):
    write_picture(root / "ADEChallengeData2016" / "images" / folder / "ADE_1.jpg", format="JPEG", **options)
    write_png(root / "ADEChallengeData2016" / "annotations" / folder / "ADE_1.png", label_map)


def test_ade20k_labels_are_one_lower_and_0_is_void(tmp_path):
    write_ade20k(tmp_path, bands(0, 1, 150))
    data = open_segmentation_data(tmp_path, "train", "semantic", layout="ade20k")
    assert_segments(data[0], [(0, bands(0, 1, 0)), (149, bands(0, 0, 1))])
    np.testing.assert_array_equal(data[0].void, bands(1, 0, 0).astype(bool))
    assert len(data.id2label) == 150 and data.id2label[149] == "label 149" and data.thing_labels == frozenset()
    assert data.subject(0) == "images/training/ADE_1.jpg"


def test_ade20k_names_are_those_of_its_file(tmp_path):
    write_ade20k(tmp_path, bands(0))
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{index}\t0.1\t9\t9\t1\tname {index}, other" for index in range(1, 151))]
    names = tmp_path / "ADEChallengeData2016" / "objectInfo150.txt"
    names.write_text("\n".join(lines))
    data = open_segmentation_data(tmp_path, "train", "semantic", layout="ade20k")
    assert data.id2label[0] == "name 1, other" and data.id2label[149] == "name 150, other"
    names.write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="has 149 names; it must have 150"):
        open_segmentation_data(tmp_path, "train", "semantic", layout="ade20k")


def test_a_label_that_ade20k_does_not_have_is_refused(tmp_path):
    write_ade20k(tmp_path, bands(1, 151))
    with pytest.raises(
        ValueError, match=r"annotation of images/training/ADE_1\.jpg holds the labels 151; they must be 1 to 150"
    ):
        open_segmentation_data(tmp_path, "train", "semantic", layout="ade20k")[0]


@pytest.mark.parametrize("upright", [True, False])
def test_an_official_mask_tells_whether_exif_turns_the_image(tmp_path, upright):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_ade20k(tmp_path, bands(1, 2).T if upright else bands(1, 2), exif=exif)
    sample = open_segmentation_data(tmp_path, "train", "semantic", layout="ade20k")[0]
    assert sample.image.size == ((HEIGHT, WIDTH) if upright else (WIDTH, HEIGHT))


# As a sequence


@pytest.mark.parametrize("source", ["table", "layout"])
def test_it_is_a_sequence_that_can_be_pickled(tmp_path, instances, source):
    if source == "table":
        folder = write_maps(tmp_path / "table", bands(0), bands(1), bands(0, 1))
        data = open_segmentation_data(folder, "train", "semantic", num_labels=2)
    else:
        data = open_segmentation_data(instances, "train", "instance", layout="coco_instances")
    again = pickle.loads(pickle.dumps(data))
    assert len(again) == len(data) and again.id2label == data.id2label
    for sample, other in zip(data, again, strict=True):
        assert all(np.array_equal(*fields) for fields in zip(sample, other, strict=True))
    assert np.array_equal(data[-1].masks, data[len(data) - 1].masks)
    assert [sample.labels.tolist() for sample in data[:2]] == [data[index].labels.tolist() for index in range(2)]
    with pytest.raises(IndexError):
        data[len(data)]


@pytest.mark.skipif(not (SHARED_DATA / "coco_panoptic_200").is_dir(), reason=f"no {SHARED_DATA}/coco_panoptic_200")
def test_coco_panoptic_200_agrees_with_itself():
    """Its semantic masks are its segments by label, so both must give the same semantic segments."""
    folder = SHARED_DATA / "coco_panoptic_200"
    options = {"split": "validation", "reduce_labels": True}
    by_mask = open_segmentation_data(folder, task="semantic", **options)
    columns = {"mask_column": "segment_mask", "segment_labels_column": "segment_labels"}
    by_segments = open_segmentation_data(folder, task="semantic", **columns, **options)
    panoptic = open_segmentation_data(folder, task="panoptic", **options)
    assert len(by_mask) == 100 and len(panoptic.id2label) == 133 and panoptic.id2label[0] == "person"
    assert panoptic.thing_labels == frozenset(range(80))
    for index in range(0, 100, 10):
        first, second, third = by_mask[index], by_segments[index], panoptic[index]
        np.testing.assert_array_equal(first.void, second.void)
        np.testing.assert_array_equal(first.labels, second.labels)
        np.testing.assert_array_equal(first.masks, second.masks)
        np.testing.assert_array_equal(third.masks.sum(0), ~third.void)  # each pixel has one segment or none
        assert set(third.labels.tolist()) == set(first.labels.tolist())
