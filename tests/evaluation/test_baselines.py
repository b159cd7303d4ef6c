"""The baselines find what colour alone can find, repeatably, and never make more segments than asked."""

import numpy as np
import pytest
from PIL import Image

from evaluation.baselines import BASELINES, color_kmeans, color_position_kmeans


@pytest.fixture
def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def stripes(height=30, width=60):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 3 :] = (250, 10, 10)
    pixels[:, 2 * width // 3 :] = (10, 250, 10)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
@pytest.mark.parametrize("num_segments", [1, 5, 24])
def test_makes_the_segments_it_was_asked_for(baseline, num_segments, noise):
    segments = baseline(noise, num_segments)
    assert segments.shape == (40, 60) and segments.dtype == np.int64
    assert np.array_equal(np.unique(segments), np.arange(num_segments))


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
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
    with pytest.raises(ValueError, match="num_segments=0 must be at least 1"):
        color_kmeans(noise, 0)
