"""DINO's own augmentation, and how far the fast one is from it on average."""

import io

import numpy as np
import pytest
from PIL import Image

from training.benchmark_crops import photograph
from training.crops import MultiCrop
from training.original_crops import OriginalMultiCrop


@pytest.fixture(scope="module")
def image():
    return Image.open(io.BytesIO(photograph(200, 150))).convert("RGB")


def test_views_are_those_of_multi_crop_in_shape_and_order(image):
    multi_crop = MultiCrop(32, 16, 3)
    views = OriginalMultiCrop(multi_crop.views)(image, np.random.default_rng(0))
    assert [view.shape for view in views] == [(32, 32, 3)] * 2 + [(16, 16, 3)] * 3
    assert all(view.dtype == np.uint8 for view in views)


def test_views_depend_on_the_generator_alone(image):
    original = OriginalMultiCrop(MultiCrop(32, 16, 2).views)
    views, again, other = (original(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(*pair) for pair in zip(views, again, strict=True))
    assert not any(np.array_equal(*pair) for pair in zip(views, other, strict=True))


def test_the_fast_views_are_distributed_as_the_original_ones(image):
    """Brightness, contrast, colour and roughness of 400 views each: means and spreads agree."""
    multi_crop = MultiCrop(32, 16, 0)
    original = OriginalMultiCrop(multi_crop.views)

    def measures(make_views):
        views = [view.astype(float) for seed in range(400) for view in make_views(image, np.random.default_rng(seed))]
        return {
            "brightness": [view.mean() for view in views],
            "contrast": [view.std() for view in views],
            "colour": [np.abs(view[..., 0] - view[..., 2]).mean() for view in views],
            "roughness": [np.abs(np.diff(view, axis=1)).mean() for view in views],
        }

    ours, theirs = measures(multi_crop), measures(original)
    for name in ours:
        spread = np.std(theirs[name])
        assert abs(np.mean(ours[name]) - np.mean(theirs[name])) < 0.15 * spread, name
        assert np.std(ours[name]) == pytest.approx(spread, rel=0.15), name
