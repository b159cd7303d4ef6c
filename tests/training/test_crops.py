"""Views against PIL and torchvision's first transforms, which DINO uses."""

import math

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.transforms import functional as transforms

from training import crops
from training.crops import MultiCrop, ViewSettings, jitter_colors, make_view, random_box

PLAIN = ViewSettings(32, (0.4, 1.0), blur=0.0, solarize=0.0, jitter_probability=0.0, grayscale=0.0, flip=0.0)
DINO_JITTER = (0.4, 0.4, 0.2, 0.1)


class Chosen:
    """A random generator that gives chosen numbers: every `random()` 0 or 1, `uniform` in turn."""

    def __init__(self, uniforms=(), order=(0, 1, 2, 3)):
        self.uniforms, self.order = list(uniforms), list(order)

    def uniform(self, low, high):
        value = self.uniforms.pop(0)
        assert low <= value <= high
        return value

    def permutation(self, length):
        return [operation for operation in self.order if operation < length]


@pytest.fixture(scope="module")
def photograph():
    """Smooth colours with some texture, 120 x 90, as a photograph has them."""
    random = np.random.default_rng(0)
    smooth = cv2.resize(random.integers(0, 256, (5, 6, 3), dtype=np.uint8), (120, 90), interpolation=cv2.INTER_CUBIC)
    return Image.fromarray(np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8))


def test_two_global_views_then_the_local_ones(photograph):
    views = MultiCrop(32, 16, 3)(photograph, np.random.default_rng(0))
    assert [view.shape for view in views] == [(32, 32, 3)] * 2 + [(16, 16, 3)] * 3
    assert all(view.dtype == np.uint8 and view.flags.c_contiguous for view in views)


def test_probabilities_and_scales_are_dinos():
    first, second, *local = MultiCrop(224, 96, 8).views
    assert [(view.blur, view.solarize) for view in (first, second, local[0])] == [(1.0, 0.0), (0.1, 0.2), (0.5, 0.0)]
    assert first.scale == second.scale == (0.4, 1.0) and local[0].scale == (0.05, 0.4) and len(local) == 8
    assert {(view.jitter, view.blur_sigma_px) for view in (first, second, *local)} == {((0.4, 0.4, 0.2, 0.1), (0.1, 2.0))}
    assert {(view.jitter_probability, view.grayscale, view.flip) for view in (first, second, *local)} == {(0.8, 0.2, 0.5)}


def test_settings_apply_to_every_view(photograph):
    assert {view.grayscale for view in MultiCrop(32, 16, 2, grayscale=1.0).views} == {1.0}
    for view in MultiCrop(32, 16, 2, grayscale=1.0)(photograph, np.random.default_rng(0)):
        assert (view == view[..., :1]).all()


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_jitter_factors_reach_as_far_as_the_strength_and_never_below_zero(strength):
    white = np.full((1, 1, 3), 100, np.uint8)
    levels = [int(jitter_colors(white, (strength, 0, 0, 0), np.random.default_rng(seed))[0, 0, 0]) for seed in range(300)]
    low, high = 100 * max(0, 1 - strength), min(100 * (1 + strength), 255)
    assert min(levels) == pytest.approx(low, abs=5) and max(levels) == pytest.approx(high, abs=5)


def test_views_depend_on_the_generator_alone(photograph):
    multi_crop = MultiCrop(32, 16, 2)
    views, again, other = (multi_crop(photograph, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(*pair) for pair in zip(views, again, strict=True))
    assert not any(np.array_equal(*pair) for pair in zip(views, other, strict=True))


@pytest.mark.parametrize("width, height", [(120, 90), (64, 64), (1, 1), (3, 200), (200, 3), (1000, 40)])
def test_an_image_of_any_shape_gives_views(width, height):
    image = Image.new("RGB", (width, height), (10, 200, 30))
    for seed in range(5):
        views = MultiCrop(16, 8, 2)(image, np.random.default_rng(seed))
        assert [view.shape for view in views] == [(16, 16, 3)] * 2 + [(8, 8, 3)] * 2


@pytest.mark.parametrize("scale", [(0.4, 1.0), (0.05, 0.4)])
def test_boxes_lie_in_the_image_and_keep_to_their_ranges(scale):
    random = np.random.default_rng(0)
    boxes = np.array([random_box(400, 300, scale, random) for _ in range(2000)])
    x0, y0, x1, y1 = boxes.T
    assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= 400).all() and (y1 <= 300).all()
    areas, ratios = (x1 - x0) * (y1 - y0) / (400 * 300), (x1 - x0) / (y1 - y0)
    assert areas.min() >= scale[0] * 0.98 and areas.max() <= scale[1] * 1.02
    assert ratios.min() >= 3 / 4 * 0.98 and ratios.max() <= 4 / 3 * 1.02
    if scale == (0.05, 0.4):  # nothing is refused here, so the ranges are used evenly, and every place too
        assert areas.mean() == pytest.approx(0.225, abs=0.01)
        assert np.log(ratios).mean() == pytest.approx(0.0, abs=0.02)
        assert (x0.min(), y0.min(), x1.max(), y1.max()) == (0, 0, 400, 300)
        assert (x0 / (400 - (x1 - x0))).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("width, height, expected", [(1000, 30, (480, 0, 520, 30)), (30, 1000, (0, 480, 30, 520))])
def test_elongated_images_give_their_middle(width, height, expected):
    assert random_box(width, height, (0.9, 1.0), np.random.default_rng(0)) == expected


def test_a_box_of_the_whole_image_is_possible():
    boxes = {random_box(64, 64, (1.0, 1.0), np.random.default_rng(seed)) for seed in range(20)}
    assert boxes == {(0, 0, 64, 64)}


def test_cuts_and_resizes_as_torchvision_does_with_pil(photograph, monkeypatch):
    for box in [(0, 0, 120, 90), (7, 11, 71, 75), (30, 5, 50, 28)]:
        monkeypatch.setattr(crops, "random_box", lambda *args, box=box: box)
        view = make_view(np.array(photograph), PLAIN, np.random.default_rng(0))
        x0, y0, x1, y1 = box
        expected = transforms.resized_crop(photograph, y0, x0, y1 - y0, x1 - x0, [32, 32], transforms.InterpolationMode.BICUBIC)
        difference = np.abs(view.astype(int) - np.asarray(expected))
        assert difference.max() <= 1 and difference.mean() < 0.1


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"flip": 1.0}, lambda view: transforms.hflip(view)),
        ({"grayscale": 1.0}, lambda view: transforms.rgb_to_grayscale(view, 3)),
        ({"solarize": 1.0}, lambda view: ImageOps.solarize(view)),
    ],
    ids=["flip", "grayscale", "solarize"],
)
def test_single_changes_are_those_of_torchvision(photograph, change, expected):
    plain = make_view(np.array(photograph), PLAIN, np.random.default_rng(0))
    settings = ViewSettings(**(vars(PLAIN) | change))
    view = make_view(np.array(photograph), settings, np.random.default_rng(0))
    assert np.abs(view.astype(int) - np.asarray(expected(Image.fromarray(plain)))).max() <= 1
    assert not np.array_equal(view, plain)


def test_blur_smooths(photograph):
    plain = make_view(np.array(photograph), PLAIN, np.random.default_rng(0))
    blurred = make_view(np.array(photograph), ViewSettings(**(vars(PLAIN) | {"blur": 1.0})), np.random.default_rng(0))
    roughness = lambda view: np.abs(np.diff(view.astype(int), axis=1)).mean()  # noqa: E731
    assert roughness(blurred) < 0.9 * roughness(plain)
    assert blurred.mean() == pytest.approx(plain.mean(), abs=1)


@pytest.mark.parametrize(
    "operation, factors, reference",
    [
        (0, (0.6, 1.0, 1.4), transforms.adjust_brightness),
        (1, (0.6, 1.0, 1.4), transforms.adjust_contrast),
        (2, (0.8, 1.0, 1.2), transforms.adjust_saturation),
        (3, (-0.1, 0.0, 0.03, 0.1), transforms.adjust_hue),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_colours_change_as_in_torchvision(photograph, operation, factors, reference):
    for factor in factors:
        view = jitter_colors(np.asarray(photograph), DINO_JITTER, Chosen([factor], order=[operation]))
        expected = np.asarray(reference(photograph, factor)).astype(int)
        difference = np.abs(view.astype(int) - expected)
        assert difference.mean() <= 2, factor
        neutral = 0.0 if operation == 3 else 1.0
        if factor != neutral:  # the change itself is larger than the error
            assert np.abs(np.asarray(photograph).astype(int) - expected).mean() > 2 * difference.mean()


def test_colours_change_in_any_order(photograph):
    factors = {0: 0.7, 1: 1.3, 2: 0.8, 3: 0.05}
    references = [transforms.adjust_brightness, transforms.adjust_contrast, transforms.adjust_saturation, transforms.adjust_hue]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        expected = photograph
        for operation in order:
            expected = references[operation](expected, factors[operation])
        view = jitter_colors(np.asarray(photograph), DINO_JITTER, Chosen([factors[operation] for operation in order], order))
        assert np.abs(view.astype(int) - np.asarray(expected)).mean() <= 3, order


def test_changes_happen_as_often_as_they_should(photograph):
    small = photograph.resize((12, 12))
    counts, trials = {"grayscale": 0, "flip": 0}, 400
    corner = Image.new("RGB", (12, 12))
    corner.putpixel((0, 0), (255, 0, 0))
    for seed in range(trials):
        gray = make_view(np.array(small), ViewSettings(**(vars(PLAIN) | {"grayscale": 0.2})), np.random.default_rng(seed))
        counts["grayscale"] += int((gray[..., 0] == gray[..., 1]).all() and (gray[..., 0] == gray[..., 2]).all())
        whole = ViewSettings(12, (1.0, 1.0), 0.0, 0.0, jitter_probability=0.0, grayscale=0.0, flip=0.5)
        counts["flip"] += int(make_view(np.array(corner), whole, np.random.default_rng(seed))[0, 0, 0] < 128)
    for name, probability in (("grayscale", 0.2), ("flip", 0.5)):
        assert abs(counts[name] - trials * probability) < 4 * math.sqrt(trials * probability * (1 - probability)), name
