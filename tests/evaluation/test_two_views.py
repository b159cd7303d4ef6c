import numpy as np
import torch
from PIL import Image

from evaluation.two_views import TwoViews

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def _images(count=3):
    return [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)) for seed in range(count)]


def test_views_depend_on_seed_place_and_draw_and_on_nothing_else():
    images = _images()
    views = TwoViews(16, MEAN, STD, seed=3)
    together, (alone, _) = views(images), views(images[2:], first=2)
    assert together[0].shape == together[1].shape == (3, 3, 16, 16)
    assert torch.equal(together[0][2:], alone)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], views(images, draw=1)[0])
    assert not torch.equal(together[0], TwoViews(16, MEAN, STD, seed=4)(images)[0])


def test_views_leave_the_generator_of_torch_as_it_was():
    state = torch.random.get_rng_state()
    TwoViews(16, MEAN, STD)(_images(1))
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_whole_image_is_resized_and_normalised():
    image = Image.new("RGB", (40, 30), (255, 0, 51))
    whole = TwoViews(8, MEAN, STD).whole(image)
    expected = [(1 - 0.5) / 0.2, -0.4 / 0.25, (0.2 - 0.3) / 0.3]
    torch.testing.assert_close(whole, torch.tensor(expected).view(1, 3, 1, 1).expand(1, 3, 8, 8))


def test_crops_are_as_large_as_the_scale_says():
    ramp = np.repeat(np.linspace(0, 255, 100).astype(np.uint8)[None, :, None], 100, axis=0).repeat(3, axis=2)
    views = TwoViews(32, (0, 0, 0), (1, 1, 1), scale=(0.04, 0.04), jitter=(0, 0, 0, 0))
    first, _ = views([Image.fromarray(ramp)] * 20)
    ranges = first.amax(dim=(1, 2, 3)) - first.amin(dim=(1, 2, 3))
    assert ranges.max() < 0.35  # a fifth of the width, and a little more at aspect ratio 4 : 3
