"""The baselines find what colour or place alone can find, repeatably, and make the segments they are asked for."""

import numpy as np
import pytest
from PIL import Image
from skimage.measure import label

from evaluation.baselines import (
    BASELINE_TITLES,
    BASELINES,
    cluster,
    color_kmeans,
    color_position_kmeans,
    slic_superpixels,
    uniform_grid,
)

EXACT = {name: baseline for name, baseline in BASELINES.items() if name != "slic"}
SEEDED = {name: BASELINES[name] for name in ("color_kmeans", "color_position_kmeans")}


@pytest.fixture
def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def stripes(height=30, width=60):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 3 :] = (250, 10, 10)
    pixels[:, 2 * width // 3 :] = (10, 250, 10)
    return Image.fromarray(pixels)


@pytest.fixture
def blobs():
    """Smooth colours, which SLIC merges into far fewer segments than it is asked for."""
    cells = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((180, 120), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("baseline", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("num_segments", [1, 5, 24])
def test_makes_the_segments_it_was_asked_for(baseline, num_segments, noise):
    segments = baseline(noise, num_segments)
    assert segments.shape == (40, 60) and segments.dtype == np.int64
    assert np.array_equal(np.unique(segments), np.arange(num_segments))


@pytest.mark.parametrize("baseline", SEEDED.values(), ids=SEEDED)
def test_is_deterministic_by_seed(baseline, noise):
    assert np.array_equal(baseline(noise, 8, seed=3), baseline(noise, 8, seed=3))
    assert not np.array_equal(baseline(noise, 8, seed=3), baseline(noise, 8, seed=4))


def test_color_kmeans_finds_flat_colours():
    segments = color_kmeans(stripes(), 3)
    assert all(len(np.unique(segments[:, column : column + 20])) == 1 for column in (0, 20, 40))
    assert len(np.unique(segments)) == 3


def test_fewer_colours_than_segments():
    assert len(np.unique(color_kmeans(stripes(), 10))) == 3
    assert np.array_equal(color_kmeans(Image.new("L", (5, 4), 7), 10), np.zeros((4, 5), np.int64))


def test_position_splits_one_colour():
    assert len(np.unique(color_position_kmeans(Image.new("RGB", (20, 20), "red"), 4))) == 4


@pytest.mark.parametrize("target_size", [(30, 60), (15, 90), (400, 300), (1, 1)])
def test_label_map_has_the_target_size(target_size):
    segments = color_kmeans(stripes(), 3, target_size=target_size)
    assert segments.shape == target_size


def test_large_images_are_clustered_small_and_keep_their_stripes():
    segments = color_kmeans(stripes(600, 900), 3)
    assert len(np.unique(segments[:, 10:290])) == len(np.unique(segments[:, 310:590])) == 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_any_image_mode(mode):
    assert color_kmeans(stripes().convert(mode), 2).shape == (30, 60)


def test_no_segments_is_refused(noise):
    for baseline in BASELINES.values():
        with pytest.raises(ValueError, match="num_segments=0 must be at least 1"):
            baseline(noise, 0)
    with pytest.raises(ValueError, match="num_segments=0 must be at least 1"):
        cluster(np.zeros((2, 1)), 0, seed=0)


def test_every_baseline_has_a_title():
    assert list(BASELINE_TITLES) == list(BASELINES)


@pytest.mark.parametrize("baseline", [slic_superpixels, uniform_grid])
def test_nothing_is_drawn_by_superpixels_and_grid(baseline, blobs):
    assert np.array_equal(baseline(blobs, 8, seed=3), baseline(blobs, 8, seed=4))


@pytest.mark.parametrize("num_segments", [1, 4, 12, 40])
def test_superpixels_are_connected_and_about_as_many_as_wanted(num_segments, blobs):
    segments = slic_superpixels(blobs, num_segments)
    assert segments.shape == (120, 180) and segments.dtype == np.int64
    assert abs(len(np.unique(segments)) - num_segments) <= max(1, num_segments / 4)
    assert label(segments + 1, connectivity=1).max() == len(np.unique(segments))


def test_superpixels_follow_colours_and_are_enlarged_to_the_target_size():
    segments = slic_superpixels(stripes(90, 180), 3, target_size=(450, 900))
    assert segments.shape == (450, 900)
    assert len({segments[225, column] for column in (150, 450, 750)}) == 3
    assert np.unique(slic_superpixels(Image.new("L", (1, 1)), 5)).size == 1


def test_grid_cells_are_nearly_square_and_as_many_as_wanted():
    cells = uniform_grid(Image.new("RGB", (6, 4)), 6)
    assert np.array_equal(cells[:, 0], [0, 0, 3, 3]) and np.array_equal(cells[0], [0, 0, 1, 1, 2, 2])
    uneven = uniform_grid(Image.new("RGB", (60, 40)), 7, target_size=(4, 12))
    areas = np.bincount(uneven.reshape(-1))
    assert len(areas) == 7 and areas.min() >= 6 and areas.max() <= 8
    assert np.unique(uniform_grid(Image.new("RGB", (2, 2)), 100)).size == 4


def test_cluster_finds_separate_groups_whatever_the_order():
    groups = np.repeat(np.eye(3), 5, axis=0) + 0.01 * np.random.default_rng(0).random((15, 3))
    order = np.random.default_rng(1).permutation(15)
    labels = cluster(groups[order], 3, seed=0)
    assert labels.dtype == np.int64
    assert all(len(set(labels[order // 5 == group])) == 1 for group in range(3)) and len(set(labels)) == 3
