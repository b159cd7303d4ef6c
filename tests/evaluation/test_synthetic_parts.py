"""The embedded data set: deterministic, exact masks, readable by `datasets`, no prey for colour clustering."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from datasets import ClassLabel, load_dataset
from sklearn.metrics import adjusted_rand_score

from evaluation import synthetic_parts
from evaluation.synthetic_parts import (
    CATEGORY_NAMES,
    DIFFICULTIES,
    PART_NAMES,
    Difficulty,
    main,
    render,
    write_dataset,
)
from evaluation.synthetic_rendering import reduce_ids


@pytest.fixture(scope="module")
def samples():
    """300 samples of 64 px at medium difficulty."""
    return [render(0, index, 64, "medium") for index in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set with two splits: 1,000 images in two shards, and 30 in one."""
    output = tmp_path_factory.mktemp("synthetic") / "parts"
    write_dataset(output, 1000, 16, seed=3, num_processes=2, quiet=True)
    write_dataset(output, 30, 16, seed=4, split="validation", num_processes=1, quiet=True)
    return output


def visible_parts(mask):
    return set(np.unique(mask).tolist()) - {0}


# Scenes


def test_a_sample_depends_on_seed_and_index_alone(samples):
    again = render(0, 17, 64, "medium")
    np.testing.assert_array_equal(again.image, samples[17].image)
    np.testing.assert_array_equal(again.mask, samples[17].mask)
    assert again.category == samples[17].category
    assert (render(1, 17, 64, "medium").image != again.image).any()
    assert (render(0, 18, 64, "medium").image != again.image).any()


@pytest.mark.parametrize("image_size_px", [16, 65, 224])
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_image_and_mask_have_the_asked_size(image_size_px, difficulty):
    image, mask, category = render(0, 0, image_size_px, difficulty)
    assert (image.shape, image.dtype) == ((image_size_px, image_size_px, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((image_size_px, image_size_px), np.uint8)
    assert 0 <= category < len(CATEGORY_NAMES)


def test_the_scene_is_the_same_at_every_size():
    small, large = render(2, 5, 64, "easy"), render(2, 5, 192, "easy")
    assert small.category == large.category
    assert (large.mask[1::3, 1::3] == small.mask).mean() > 0.96  # the centre of each 3 x 3 block; edges may differ


def test_ids_are_in_range_and_every_part_and_category_occurs(samples):
    assert max(sample.mask.max() for sample in samples) < len(PART_NAMES)
    assert set().union(*(visible_parts(sample.mask) for sample in samples)) == set(range(1, len(PART_NAMES)))
    assert {sample.category for sample in samples} == set(range(len(CATEGORY_NAMES)))


def test_parts_are_shared_between_categories(samples):
    wearers = {part: set() for part in PART_NAMES}
    for sample in samples:
        for part in visible_parts(sample.mask):
            wearers[PART_NAMES[part]].add(CATEGORY_NAMES[sample.category])
    assert wearers["head"] == wearers["torso"] == {"bird", "fish", "quadruped", "snake", "lizard", "biped"}
    assert wearers["wheel"] == {"car", "bus", "bicycle", "aeroplane"}
    assert wearers["leg"] == {"bird", "quadruped", "lizard", "biped"}
    assert wearers["window"] == {"car", "bus", "aeroplane"}
    assert wearers["wing"] == {"bird", "aeroplane"}
    assert wearers["fin"] == {"fish", "aeroplane"}


@pytest.mark.parametrize("index", range(10))
def test_easy_objects_are_large_and_whole(index):
    mask = render(0, index, 64, "easy").mask
    rows, columns = np.nonzero(mask)
    assert 0.8 * 64 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 64
    assert len(visible_parts(mask)) >= 3


def test_a_mask_pixel_takes_the_most_frequent_id_of_its_block():
    ids = np.array([[1, 2, 5, 7, 3, 3], [2, 2, 7, 6, 4, 4]], np.uint8)
    assert reduce_ids(ids).tolist() == [[2, 7, 3]]  # majority; majority that is not the first; tie: the first


def test_distractors_are_background():
    bare = Difficulty(distractors=(0, 0), occlusion=0, sensor_noise=0)
    for index in range(5):
        settings = replace(bare, distractors=(30, 30), distractor_size=(0.1, 0.2), object_size=(0.1, 0.1))
        image, mask, _ = render(0, index, 64, settings)
        assert (mask > 0).sum() < 64  # the object alone is in the mask, it is 6 pixels long
        assert image.std() > 10  # yet the picture is full


def test_an_occluder_turns_part_pixels_into_background():
    free = Difficulty(occlusion=0.0, distractor_size=(0.15, 0.2))
    hidden_pixels = 0
    for index in range(20):
        open_view, occluded = render(0, index, 64, free), render(0, index, 64, replace(free, occlusion=1.0))
        changed = open_view.mask != occluded.mask
        assert (occluded.mask[changed] == 0).all()
        hidden_pixels += changed.sum()
    assert hidden_pixels > 20 * 30


# In an easy scene only the object has colour, so that colour tells a little of it; with colours of its parts a little more.
@pytest.mark.parametrize(("difficulty", "largest_ari"), [("colours", 0.2), ("easy", 0.15), ("medium", 0.08), ("hard", 0.08)])
@pytest.mark.parametrize("clusters", [5, 16])
def test_colour_clustering_fails(difficulty, largest_ari, clusters):
    scores = []
    for index in range(40):
        image, mask, _ = render(11, index, 64, difficulty)
        colours = image.reshape(-1, 3).astype(np.float32)
        stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 1.0)
        cv2.setRNGSeed(0)
        _, segments, _ = cv2.kmeans(colours, clusters, None, stop, 1, cv2.KMEANS_PP_CENTERS)
        scores.append(adjusted_rand_score(mask.ravel(), segments.ravel()))
    assert np.mean(scores) < largest_ari


def test_of_textures_nothing_but_texture_and_shape_tells_parts_and_images_apart():
    grounds, means = [], {}
    for index in range(60):
        image, mask, _ = render(11, index, 96, "textures")
        assert (image[..., :1] == image).all()  # grey
        grounds.append(image[mask == 0].mean())
        for part in np.unique(mask[mask > 0]):
            inside = cv2.erode((mask == part).astype(np.uint8), np.ones((5, 5))) > 0  # without the dark rim
            if inside.sum() > 100:
                means.setdefault(part, []).append(image[inside].mean())
    assert np.std(grounds) < 5 and abs(np.mean(grounds) - 128) < 5  # but for the light
    of_parts = [np.mean(values) for values in means.values() if len(values) > 5]
    assert len(of_parts) > 6 and max(of_parts) - min(of_parts) < 60


@pytest.mark.parametrize(("difficulty", "at_least", "at_most"), [("colours", 0.75, 1.0), ("easy", 0.0, 0.4)])
def test_of_colours_most_parts_wear_the_hue_of_their_type(difficulty, at_least, at_most):
    hues: dict[int, list[float]] = {}  # of a part type, one per image
    for index in range(150):
        image, mask, _ = render(11, index, 96, difficulty)
        hue, saturation, value = cv2.split(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV))
        for part in np.unique(mask[mask > 0]):
            coloured = (mask == part) & (saturation > 0.2) & (value > 0.2)
            if coloured.sum() > 50:
                hues.setdefault(part, []).append(np.angle(np.exp(1j * np.deg2rad(hue[coloured])).mean()))
    typical = [
        abs(np.exp(1j * np.array(of_part)).mean()) for of_part in hues.values() if len(of_part) > 20
    ]  # 1 if all are alike
    assert len(typical) > 8 and at_least < np.mean(typical) < at_most


# Data sets


def test_shards_and_label_names(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "label_names.json",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "validation-00000-of-00001.parquet",
    ]
    record = json.loads((folder / "label_names.json").read_text())
    assert record["label_names"] == list(PART_NAMES) and record["label_names"][0] == "background"
    assert record["category_names"] == list(CATEGORY_NAMES)
    assert record["ignore_index"] is None
    assert record["splits"]["train"] == {"images": 1000, "image_size_px": 16, "seed": 3, "difficulty": "medium"}


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_it(folder, tmp_path, streaming):
    splits = load_dataset(str(folder), streaming=streaming, cache_dir=str(tmp_path))
    assert set(splits) == {"train", "validation"}
    features = splits["train"].features
    assert features["category"] == ClassLabel(names=list(CATEGORY_NAMES))
    assert features["parts"].feature == ClassLabel(names=list(PART_NAMES))
    rows = list(splits["train"])
    assert len(rows) == 1000
    for index in (0, 499, 500, 999):
        row, sample = rows[index], render(3, index, 16, "medium")
        np.testing.assert_array_equal(np.asarray(row["image"]), sample.image)
        np.testing.assert_array_equal(np.asarray(row["mask"]), sample.mask)
        assert row["mask"].mode == "L"
        assert row["category"] == sample.category
        assert set(row["parts"]) == visible_parts(sample.mask)


def test_bytes_do_not_depend_on_processes_or_row_groups(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_parts, "IMAGES_PER_ROW_GROUP", 7)
    write_dataset(tmp_path, 40, 16, seed=3, num_processes=1, quiet=True)
    chunked = load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache")).with_format("arrow")[:40]
    whole = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache")).with_format("arrow")[:40]
    assert chunked.equals(whole)


def test_a_failure_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    def fail(seed, index, image_size_px, difficulty):
        if index == 150:
            raise RuntimeError("broken")
        return render(seed, index, image_size_px, difficulty)

    monkeypatch.setattr(synthetic_parts, "render", fail)
    with pytest.raises(RuntimeError, match="broken"):
        write_dataset(tmp_path, 200, 16, seed=0, num_processes=1, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_overwrite_replaces_all_shards_of_the_split_only(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_parts, "IMAGES_PER_SHARD", 5)
    write_dataset(tmp_path, 10, 16, seed=0, num_processes=1, quiet=True)
    write_dataset(tmp_path, 5, 16, seed=1, split="test", num_processes=1, quiet=True)
    write_dataset(tmp_path, 5, 16, seed=2, num_processes=1, quiet=True, overwrite=True)
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00001.parquet",
    ]
    splits = json.loads((tmp_path / "label_names.json").read_text())["splits"]
    assert (splits["train"]["seed"], splits["test"]["seed"]) == (2, 1)


# Errors and command line


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": 0}, "images=0 must be at least 1"),
        ({"image_size_px": 15}, "image_size=15 must be at least 16 px"),
        ({"difficulty": "nightmare"}, "difficulty='nightmare' must be .* easy, medium, hard"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"split": "training"}, "split='training' must be one of train, validation, test"),
        ({"num_processes": 0}, "num_processes=0 must be at least 1"),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(tmp_path, changed, message):
    request = {"output": tmp_path / "parts", "images": 2, "image_size_px": 16, "seed": 0, "num_processes": 1}
    with pytest.raises(ValueError, match=message):
        write_dataset(**{**request, **changed}, quiet=True)
    assert not (tmp_path / "parts").exists()


def test_render_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="index=-1 must not be negative"):
        render(0, -1, 64)
    with pytest.raises(ValueError, match="image_size=8"):
        render(0, 0, 8)


def test_an_occupied_output_is_refused(folder, tmp_path):
    file = tmp_path / "file"
    file.write_text("not ours")
    with pytest.raises(NotADirectoryError, match="is a file"):
        write_dataset(file, 2, 16, seed=0, quiet=True)
    with pytest.raises(FileExistsError, match=r"already holds split 'train'.*--overwrite"):
        write_dataset(folder, 2, 16, seed=9, quiet=True)
    with pytest.raises(ValueError, match=r"seed=3 made split 'train'"):
        write_dataset(folder, 2, 16, seed=3, split="test", quiet=True)
    (tmp_path / "label_names.json").write_text('{"label_names": ["background", "bumper"]}')
    with pytest.raises(ValueError, match="holds something else"):
        write_dataset(tmp_path, 2, 16, seed=0, quiet=True)


def test_command_line(tmp_path, capsys):
    command = ["--output", str(tmp_path), "--images", "3", "--image_size", "32", "--seed", "5", "--difficulty", "easy"]
    main([*command, "--num_processes", "1"])
    printed = capsys.readouterr()
    assert "3 images in 1 shard" in printed.out and printed.err == ""  # no progress bar: this is no terminal
    with pytest.raises(SystemExit):
        main(command)
    assert "already holds split 'train'" in capsys.readouterr().err
    main([*command, "--overwrite", "--quiet"])
    assert capsys.readouterr().out == ""
