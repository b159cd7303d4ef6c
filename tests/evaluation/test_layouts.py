"""Each official layout, read from small files of exactly that layout, and what is said of files that are wrong."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths

from evaluation.benchmarks import open_benchmark
from evaluation.layouts.coco_instances import CROWD

HEIGHT, WIDTH = 12, 20


def write_image(path, height=HEIGHT, width=WIDTH, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def write_mask(path, mask, mode=None, file_format="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask, mode).save(path, file_format)


def colours(codes):
    """Ids as R + 256 G + 65536 B."""
    channels = [codes % 256, codes // 256 % 256, codes // 65536]
    return np.stack(channels, axis=2).astype(np.uint8)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def rectangle(top, bottom, left, right):
    filled = np.zeros((HEIGHT, WIDTH), bool)
    filled[top:bottom, left:right] = True
    return filled


def polygon(top, bottom, left, right):
    return [[left, top, right, top, right, bottom, left, bottom]]


def uncompressed(filled):
    """Lengths of runs of zeros and ones in turn, column by column, as COCO writes crowds."""
    flat = filled.ravel(order="F").astype(int)
    starts = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": list(filled.shape), "counts": np.diff([0, *starts, flat.size]).tolist()}


def compressed(filled):
    code = run_lengths.encode(np.asfortranarray(filled.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def sample(name, root, index=0):
    return list(open_benchmark(name, root))[index].decode()


# COCO panoptic


def panoptic_content():
    """Two images, listed in reverse order of their ids; the second has a crowd and an id above 65535."""
    images = [{"id": image_id, "file_name": f"{image_id:012}.jpg", "height": HEIGHT, "width": WIDTH} for image_id in (285, 139)]
    segments = {
        139: [{"id": 7, "category_id": 1, "iscrowd": 0}],
        285: [
            {"id": 3226956, "category_id": 1, "iscrowd": 0},
            {"id": 300, "category_id": 1, "iscrowd": 1},
            {"id": 200, "category_id": 184, "iscrowd": 0},
        ],
    }
    return {
        "info": {},
        "images": images,
        "annotations": [
            {"image_id": image_id, "file_name": f"{image_id:012}.png", "segments_info": segments[image_id]}
            for image_id in (285, 139)
        ],
        "categories": [
            {"id": 1, "name": "person", "supercategory": "person", "isthing": 1},
            {"id": 184, "name": "tree-merged", "supercategory": "plant", "isthing": 0},
        ],
    }


def panoptic_codes():
    first, second = np.zeros((HEIGHT, WIDTH), np.int64), np.zeros((HEIGHT, WIDTH), np.int64)
    first[:6] = 7
    second[:4], second[4:8], second[8:, :5] = 200, 300, 3226956
    return {139: first, 285: second}


@pytest.fixture
def coco(tmp_path):
    write_json(tmp_path / "annotations" / "panoptic_val2017.json", panoptic_content())
    for image_id, codes in panoptic_codes().items():
        write_mask(tmp_path / "annotations" / "panoptic_val2017" / f"{image_id:012}.png", colours(codes))
        write_image(tmp_path / "val2017" / f"{image_id:012}.jpg")
    return tmp_path


def test_panoptic_segments_are_regions_in_the_jsons_order_and_crowds_are_void(coco):
    rows = list(open_benchmark("coco", coco))
    assert [row.subject for row in rows] == ["val2017/000000000139.jpg", "val2017/000000000285.jpg"]
    assert [row.index for row in rows] == [0, 1]
    image, mask = rows[1].decode()
    assert image.mode == "RGB" and image.size == (WIDTH, HEIGHT)
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[8:, :5], expected[:4] = 1, 2
    np.testing.assert_array_equal(mask, expected)


def test_nothing_is_decoded_before_it_is_asked_for(coco):
    (coco / "val2017" / "000000000139.jpg").write_bytes(b"no image")
    (coco / "annotations" / "panoptic_val2017" / "000000000285.png").write_bytes(b"no image")
    rows = list(open_benchmark("coco", coco))
    for row in rows:
        with pytest.raises(ValueError, match=rf"image or mask of {row.subject} cannot be decoded"):
            row.decode()


def broken(change):
    """The panoptic JSON after a change in place."""
    content = panoptic_content()
    change(content)
    return content


@pytest.mark.parametrize(
    "content, message",
    [
        (broken(lambda c: c["images"].append(c["images"][0])), "the id 285 occurs twice in images"),
        (broken(lambda c: c["annotations"].append(c["annotations"][0])), "the id 285 occurs twice in image_id"),
        (broken(lambda c: c["images"].pop()), "1 annotations of images that it does not list, the first of image_id=139"),
        (broken(lambda c: c["annotations"].pop()), "no annotation for 1 of its images, the first has id=139"),
        (broken(lambda c: c["categories"].pop()), "category_id=184, which its categories do not list"),
        (broken(lambda c: c["images"][0].pop("file_name")), "entry 0 of images has no file_name"),
        (broken(lambda c: c["annotations"][1].pop("segments_info")), "entry 1 of annotations has no segments_info"),
        (
            broken(lambda c: c["annotations"][1]["segments_info"][0].pop("id")),
            "entry 0 of segments_info of .*139.jpg has no id",
        ),
        (
            broken(lambda c: c["annotations"][1].update(segments_info=c["annotations"][1]["segments_info"] * 2)),
            "the id 7 occurs twice in segments_info of val2017/000000000139.jpg",
        ),
        (broken(lambda c: c.pop("categories")), "has no list 'categories'"),
        ([], "has no list 'images'"),
    ],
)
def test_a_contradictory_json_is_refused_at_once(coco, content, message):
    write_json(coco / "annotations" / "panoptic_val2017.json", content)
    with pytest.raises(ValueError, match=message):
        open_benchmark("coco", coco)


def test_what_is_no_json_is_refused(coco):
    (coco / "annotations" / "panoptic_val2017.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        open_benchmark("coco", coco)


def test_a_split_without_images_is_refused(coco):
    write_json(coco / "annotations" / "panoptic_val2017.json", {"images": [], "annotations": [], "categories": []})
    with pytest.raises(ValueError, match="holds no images"):
        open_benchmark("coco", coco)


@pytest.mark.parametrize(
    "missing",
    ["annotations/panoptic_val2017.json", "annotations/panoptic_val2017/000000000285.png", "val2017/000000000285.jpg"],
)
def test_a_missing_file_is_named_with_the_expected_tree(coco, missing):
    (coco / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"(?s){missing}.*Expected layout \(COCO panoptic\):\nROOT/annotations"):
        open_benchmark("coco", coco)


def test_only_the_images_that_are_scored_must_be_there(coco):
    (coco / "val2017" / "000000000285.jpg").unlink()
    assert [row.subject for row in open_benchmark("coco", coco, limit=1)] == ["val2017/000000000139.jpg"]


def test_segments_must_be_in_both_png_and_json(coco):
    write_mask(coco / "annotations" / "panoptic_val2017" / "000000000139.png", colours(np.full((HEIGHT, WIDTH), 65536 + 8)))
    with pytest.raises(ValueError, match=r"PNG alone has the ids \[65544\], the JSON alone \[7\]"):
        sample("coco", coco)


def test_a_grey_panoptic_mask_is_refused(coco):
    write_mask(coco / "annotations" / "panoptic_val2017" / "000000000139.png", np.full((HEIGHT, WIDTH), 7, np.uint8))
    with pytest.raises(ValueError, match=r"000000000139\.jpg is a PNG of mode L"):
        sample("coco", coco)


# Outlines


OBJECT = (2, 8, 3, 9)  # top, bottom, left, right


def annotate(outlines, **more):
    """COCO-style annotations of image 1, from (id, category, outline)."""
    return [
        {"id": number, "image_id": 1, "category_id": category, "segmentation": outline, "iscrowd": 0, "area": 1, **more}
        for number, category, outline in outlines
    ]


def write_instances(root, annotations, images=(1,), categories=(1, 3)):
    content = {
        "images": [{"id": number, "file_name": f"{number:012}.jpg", "height": HEIGHT, "width": WIDTH} for number in images],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"category {number}"} for number in categories],
    }
    write_json(root / "annotations" / "instances_val2017.json", content)
    for number in images:
        write_image(root / "val2017" / f"{number:012}.jpg")


@pytest.mark.parametrize(
    "outline",
    [polygon(*OBJECT), uncompressed(rectangle(*OBJECT)), compressed(rectangle(*OBJECT))],
    ids=["polygon", "uncompressed", "compressed"],
)
def test_every_kind_of_outline_gives_the_same_mask(tmp_path, outline):
    write_instances(tmp_path, annotate([(5, 1, outline)]))
    np.testing.assert_array_equal(sample("coco_instances", tmp_path).mask, rectangle(*OBJECT).astype(int))


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_compressed_codes_are_read_as_pycocotools_writes_them(tmp_path, density):
    """Long and short runs, and differences of both signs."""
    filled = np.random.default_rng(0).random((HEIGHT, WIDTH)) < density
    write_instances(tmp_path, annotate([(5, 1, compressed(filled))]))
    np.testing.assert_array_equal(sample("coco_instances", tmp_path).mask, filled.astype(int))


def test_an_object_of_several_polygons_is_one_region(tmp_path):
    write_instances(tmp_path, annotate([(5, 3, polygon(0, 4, 0, 4) + polygon(6, 9, 10, 15))]))
    expected = rectangle(0, 4, 0, 4) | rectangle(6, 9, 10, 15)
    np.testing.assert_array_equal(sample("coco_instances", tmp_path).mask, expected.astype(int))


def test_smaller_objects_lie_on_larger_ones_and_crowds_below_all(tmp_path):
    small, large, crowd = rectangle(4, 6, 4, 6), rectangle(2, 8, 2, 10), rectangle(3, 5, 8, 12)
    annotations = annotate([(20, 1, compressed(small)), (10, 1, compressed(large))])
    annotations += annotate([(30, 3, uncompressed(crowd))], iscrowd=1)
    write_instances(tmp_path, annotations)
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[crowd] = CROWD
    expected[large], expected[small] = 1, 2  # numbered in order of the annotations' ids
    np.testing.assert_array_equal(sample("coco_instances", tmp_path).mask, expected)


def test_an_image_without_objects_is_background(tmp_path):
    write_instances(tmp_path, annotate([(5, 1, polygon(*OBJECT))]), images=(2, 1))
    rows = list(open_benchmark("coco_instances", tmp_path))
    assert [row.subject for row in rows] == ["val2017/000000000001.jpg", "val2017/000000000002.jpg"]
    assert rows[0].decode().mask.any() and not rows[1].decode().mask.any()


@pytest.mark.parametrize(
    "outline, reason",
    [
        ([], "no polygon"),
        ([[1, 1, 5, 5]], "polygon of 4 numbers"),  # which pycocotools would take for a box
        ([[1, 1, 5, 5, 3, 4, 2]], "polygon of 7 numbers"),
        ([[1, 1, 5, 5, 3, float("nan")]], "no list of x, y"),
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, r"size is \[20, 12\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [3, 2]}, "runs cover 5 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}, "runs cover 240 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "runs cover 0 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": compressed(rectangle(*OBJECT))["counts"][:-2]}, "runs cover [0-9]+ pixels"),
        ({"size": [HEIGHT, WIDTH]}, "counts"),
        (5, "cannot be read"),
    ],
)
def test_a_broken_outline_is_refused_by_the_name_of_its_image(tmp_path, outline, reason):
    write_instances(tmp_path, annotate([(5, 1, outline)]))
    with pytest.raises(ValueError, match=rf"outline of val2017/000000000001.jpg .*{reason}"):
        sample("coco_instances", tmp_path)


@pytest.mark.parametrize(
    "annotations, message",
    [
        (annotate([(5, 1, polygon(*OBJECT)), (5, 1, polygon(*OBJECT))]), "the id 5 occurs twice in annotations"),
        (annotate([(5, 2, polygon(*OBJECT))]), "category_id=2"),
        (annotate([(5, 1, polygon(*OBJECT))], image_id=9), "image_id=9"),
    ],
)
def test_contradictory_instances_are_refused_at_once(tmp_path, annotations, message):
    write_instances(tmp_path, annotations)
    with pytest.raises(ValueError, match=message):
        open_benchmark("coco_instances", tmp_path)


# PartImageNet


def write_parts(root, annotations, image, annotation_file):
    names = ["Quadruped Head", "Quadruped Body", "Quadruped Foot"]
    content = {
        "images": [{"id": 1, "file_name": "n02071294_10.JPEG", "height": HEIGHT, "width": WIDTH}],
        "annotations": annotations,
        "categories": [{"id": number, "name": name, "supercategory": "Quadruped"} for number, name in enumerate(names)],
    }
    write_json(root / annotation_file, content)
    write_image(root / image, format="JPEG")


@pytest.mark.parametrize(
    "name, annotation_file, image",
    [
        ("partimagenet", "annotations/test/test.json", "images/test/n02071294_10.JPEG"),
        ("partimagenet_ood", "test.json", "test/n02071294/n02071294_10.JPEG"),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_annotations_of_a_part_category_are_one_region(tmp_path, name, annotation_file, image, inside):
    body, head, feet = (2, 9, 2, 14), (2, 5, 11, 14), [(9, 11, 3, 4), (9, 11, 10, 11)]
    outlines = [(0, 0, polygon(*head)), (1, 1, polygon(*body)), (2, 2, polygon(*feet[0])), (3, 2, polygon(*feet[1]))]
    root = tmp_path / "PartImageNet"
    write_parts(root, annotate(outlines), image, annotation_file)
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[rectangle(*body)] = 2
    expected[rectangle(*head)] = 1  # smaller, so on top of the body
    expected[rectangle(*feet[0]) | rectangle(*feet[1])] = 3
    rows = list(open_benchmark(name, root if inside else tmp_path))
    assert [row.subject for row in rows] == [image]
    np.testing.assert_array_equal(rows[0].decode().mask, expected)


# ADE20K


def write_ade(root, mask, name="ADE_val_00000001", **options):
    folder = root / "ADEChallengeData2016"
    write_image(folder / "images" / "validation" / f"{name}.jpg")
    write_mask(folder / "annotations" / "validation" / f"{name}.png", mask, **options)


def labels(*rows):
    """Equal bands of these labels."""
    return np.repeat(np.array(rows, np.uint8), HEIGHT // len(rows))[:, None].repeat(WIDTH, axis=1)


def test_ade20k_is_read_in_order_of_file_names(tmp_path):
    write_ade(tmp_path, labels(3, 150), "ADE_val_00000002")
    write_ade(tmp_path, labels(0, 12, 1))
    (tmp_path / "ADEChallengeData2016" / "images" / "validation" / "._ADE_val_00000002.jpg").touch()  # an unzipper's
    rows = list(open_benchmark("ade20k", tmp_path))
    assert [row.subject for row in rows] == [f"images/validation/ADE_val_0000000{number}.jpg" for number in (1, 2)]
    np.testing.assert_array_equal(rows[0].decode().mask, labels(0, 12, 1))
    np.testing.assert_array_equal(rows[1].decode().mask, labels(3, 150))


def test_a_palette_does_not_change_labels(tmp_path):
    write_ade(tmp_path, labels(0, 12, 1), "ADE_val_00000001")
    path = tmp_path / "ADEChallengeData2016" / "annotations" / "validation" / "ADE_val_00000001.png"
    indexed = Image.fromarray(labels(0, 12, 1))
    indexed.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    indexed.save(path)
    with Image.open(path) as file:
        assert file.mode == "P"
    np.testing.assert_array_equal(sample("ade20k", tmp_path).mask, labels(0, 12, 1))


@pytest.mark.parametrize(
    "mask, file_format, message",
    [
        (labels(0, 151, 200), "PNG", r"labels 151, 200, which ADE20K val does not have; its labels are 0 to 150"),
        (labels(1, 2)[:, :10], "PNG", r"20 x 12 and its mask 10 x 12"),
        (labels(1, 2).astype(np.float32), "TIFF", "dtype float32"),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), "PNG", r"shape \(12, 20, 3\)"),
    ],
    ids=["unknown labels", "another size", "floats", "colours"],
)
def test_a_mask_that_cannot_be_used_is_refused_by_name(tmp_path, mask, file_format, message):
    write_ade(tmp_path, mask, file_format=file_format)
    with pytest.raises(ValueError, match=rf"images/validation/ADE_val_00000001.jpg .*{message}"):
        sample("ade20k", tmp_path)


@pytest.mark.parametrize("kept, alone", [("images", "images"), ("annotations", "annotations")])
def test_images_and_masks_without_partner_are_refused(tmp_path, kept, alone):
    write_ade(tmp_path, labels(1, 2))
    write_ade(tmp_path, labels(1, 2), "ADE_val_00000002")
    for path in (tmp_path / "ADEChallengeData2016").rglob("*2.*"):
        if kept not in path.parts:
            path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 images or masks .* ADE_val_00000002 of .*{alone}/validation"):
        open_benchmark("ade20k", tmp_path)


def test_two_images_of_a_name_are_refused(tmp_path):
    write_ade(tmp_path, labels(1, 2))
    write_image(tmp_path / "ADEChallengeData2016" / "images" / "validation" / "ADE_val_00000001.jpeg")
    with pytest.raises(ValueError, match="have the same name"):
        open_benchmark("ade20k", tmp_path)


def test_an_empty_split_and_a_missing_folder_are_refused(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    (folder / "images" / "validation").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"(?s)annotations/validation is missing.*ROOT/ADEChallengeData2016/images"):
        open_benchmark("ade20k", tmp_path)
    (folder / "annotations" / "validation").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"(?s)holds no images.*ROOT/ADEChallengeData2016/images"):
        open_benchmark("ade20k", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"(?s)elsewhere is no folder.*ROOT/ADEChallengeData2016/images"):
        open_benchmark("ade20k", tmp_path / "elsewhere")


# ImageNet-S


def write_imagenet_s(root, codes, name="ILSVRC2012_val_00000293", image=write_image):
    folder = root / "ImageNetS919"
    image(folder / "validation" / "n01440764" / f"{name}.JPEG")
    write_mask(folder / "validation-segmentation" / "n01440764" / f"{name}.png", codes)


def test_imagenet_s_labels_are_red_plus_256_green(tmp_path):
    codes = labels(0, 0, 0).astype(np.int64)
    codes[4:8], codes[8:] = 919, 1000
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[4:8], pixels[8:] = (151, 3, 0), (232, 3, 0)
    write_imagenet_s(tmp_path, pixels)
    rows = list(open_benchmark("imagenet_s919", tmp_path))
    assert [row.subject for row in rows] == ["validation/n01440764/ILSVRC2012_val_00000293.JPEG"]
    np.testing.assert_array_equal(rows[0].decode().mask, codes)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.full((HEIGHT, WIDTH, 3), (1, 0, 1), np.uint8), "labels 65537"),
        (np.full((HEIGHT, WIDTH, 3), (152, 3, 0), np.uint8), "labels 920, which .* 0 to 919, and 1000 for what is ignored"),
        (np.zeros((HEIGHT, WIDTH), np.uint8), "mode L"),
    ],
)
def test_what_imagenet_s_does_not_write_is_refused(tmp_path, pixels, message):
    write_imagenet_s(tmp_path, pixels)
    with pytest.raises(ValueError, match=rf"ILSVRC2012_val_00000293.JPEG .*{message}"):
        sample("imagenet_s919", tmp_path)


@pytest.mark.parametrize("upright", [True, False])
def test_the_mask_tells_whether_exif_turns_the_image(tmp_path, upright):
    """Orientation 6: stored 20 wide and 12 high, shown 12 wide and 20 high."""
    exif = Image.Exif()
    exif[0x0112] = 6
    shape = (WIDTH, HEIGHT) if upright else (HEIGHT, WIDTH)
    codes = np.zeros((*shape, 3), np.uint8)
    write_imagenet_s(tmp_path, codes, image=lambda path: write_image(path, format="JPEG", exif=exif))
    image, mask = sample("imagenet_s919", tmp_path)
    assert mask.shape == (image.height, image.width) == shape
    with Image.open(next((tmp_path / "ImageNetS919" / "validation").rglob("*.JPEG"))) as file:
        stored = file.convert("RGB")
    expected = stored.transpose(Image.Transpose.ROTATE_270) if upright else stored
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
