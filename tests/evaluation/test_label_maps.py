"""Saved label maps: found by the image's place, brought to the mask's size, and refused in words where they cannot be used."""

import json

import numpy as np
import pytest
from PIL import Image

from evaluation.label_maps import label_map_segmenter, read_description, read_label_map
from evaluation.segmenters import ImageBatch

DESCRIPTION = {"method": "SPiT", "model": "spit-b16", "dataset": "coco", "split": "validation", "num_images": 3}
MAP = np.array([[0, 1, 2], [7, 7, 2]])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "label_maps.json").write_text(json.dumps(DESCRIPTION))
    return tmp_path


def batch(indices, target_sizes):
    images = [Image.new("RGB", (3, 2)) for _ in target_sizes]
    return ImageBatch(images, target_sizes, [], indices)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_of_8_and_16_bits_keep_their_labels(folder, dtype):
    expected = MAP * np.iinfo(dtype).max // 7
    Image.fromarray(expected.astype(dtype)).save(folder / "00000002.png")
    label_map = read_label_map(folder, 2, (2, 3))
    assert label_map.dtype == np.int64 and np.array_equal(label_map, expected)


def test_indexed_colours_count_by_their_index(folder):
    image = Image.fromarray(MAP.astype(np.uint8))
    image.putpalette([number % 256 for number in range(768)][::-1])
    image.save(folder / "00000000.png")
    assert Image.open(folder / "00000000.png").mode == "P"
    assert np.array_equal(read_label_map(folder, 0, (2, 3)), MAP)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint32])
def test_numpy_files_of_integers(folder, dtype):
    np.save(folder / "00000000.npy", MAP.astype(dtype))
    assert np.array_equal(read_label_map(folder, 0, (2, 3)), MAP)


def test_another_size_of_the_same_frame_is_resized_by_nearest_neighbour(folder):
    np.save(folder / "00000000.npy", MAP)
    assert np.array_equal(read_label_map(folder, 0, (4, 6)), MAP.repeat(2, axis=0).repeat(2, axis=1))
    np.save(folder / "00000001.npy", MAP.repeat(3, axis=0).repeat(3, axis=1))
    assert np.array_equal(read_label_map(folder, 1, (2, 3)), MAP)


def test_a_segmenter_finds_each_image_by_its_place_in_the_data_set(folder):
    for index in range(3):
        np.save(folder / f"{index:08d}.npy", MAP + 10 * index)
    label_maps = label_map_segmenter(folder)(batch([2, 0], [(2, 3), (4, 6)]))
    assert np.array_equal(label_maps[0], MAP + 20)
    assert label_maps[1].shape == (4, 6) and np.array_equal(label_maps[1][::2, ::2], MAP)


@pytest.mark.parametrize(
    "label_map, message",
    [
        (MAP.astype(np.float32), r"holds float32 of shape \(2, 3\); .*must be integers"),
        (MAP > 0, "holds bool"),
        (MAP[None], r"int64 of shape \(1, 2, 3\)"),
        (np.where(MAP == 7, -1, MAP), "holds the label -1.*label of their own"),
        (MAP.T, "is 2 x 3 and the image's true mask 6 x 4.*same frame"),
        (MAP[:0], "same frame"),
    ],
)
def test_label_maps_that_cannot_be_used_are_refused(folder, label_map, message):
    np.save(folder / "00000000.npy", label_map)
    with pytest.raises(ValueError, match=message):
        read_label_map(folder, 0, (4, 6))


def test_colour_pictures_and_broken_files_are_refused(folder):
    Image.new("RGB", (3, 2)).save(folder / "00000000.png")
    with pytest.raises(ValueError, match=r"00000000.png holds uint8 of shape \(2, 3, 3\)"):
        read_label_map(folder, 0, (2, 3))
    (folder / "00000001.png").write_bytes((folder / "00000000.png").read_bytes()[:40])
    (folder / "00000002.npy").write_bytes(b"nothing")
    for index in (1, 2):
        with pytest.raises(ValueError, match="cannot be read"):
            read_label_map(folder, index, (2, 3))


def test_an_image_has_exactly_one_label_map(folder):
    with pytest.raises(FileNotFoundError, match=r"Image 1 has no label map 00000001.png or 00000001.npy"):
        label_map_segmenter(folder)(batch([1], [(2, 3)]))
    Image.fromarray(MAP.astype(np.uint8)).save(folder / "00000001.png")
    np.save(folder / "00000001.npy", MAP)
    with pytest.raises(ValueError, match="two label maps"):
        read_label_map(folder, 1, (2, 3))


def test_images_that_were_not_saved_and_batches_without_places_are_refused(folder):
    segment = label_map_segmenter(folder)
    with pytest.raises(ValueError, match=r"Image 3 is scored, but .*num_images=3 only"):
        segment(batch([3], [(2, 3)]))
    with pytest.raises(ValueError, match="batch of 1 images came with 0 indices"):
        segment(batch((), [(2, 3)]))


@pytest.mark.parametrize("broken", [{"method": None}, {"num_images": "3"}, {"num_images": True}, {"split": 1}])
def test_a_description_needs_every_entry_of_its_type(folder, broken):
    (folder / "label_maps.json").write_text(json.dumps(DESCRIPTION | broken))
    with pytest.raises(ValueError, match=f"has {next(iter(broken))}=.*'method' .str., 'model' .str."):
        label_map_segmenter(folder)


def test_a_description_may_say_more_and_must_be_there(folder):
    (folder / "label_maps.json").write_text(json.dumps(DESCRIPTION | {"slots": 7}))
    assert read_description(folder) == DESCRIPTION | {"slots": 7}
    (folder / "label_maps.json").write_text("[1]")
    with pytest.raises(ValueError, match="must be an object"):
        read_description(folder)
    (folder / "label_maps.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_description(folder)
    with pytest.raises(FileNotFoundError, match=r"label_maps.json was not found; .*'num_images' \(int\)"):
        label_map_segmenter(folder / "elsewhere")
