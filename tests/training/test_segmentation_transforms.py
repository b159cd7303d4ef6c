"""Masks go where the image goes, whatever is drawn; padding, colours, and what is left out."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_erosion
from torchvision import tv_tensors

from evaluation.segmentation_data import SegmentationSample
from training.segmentation_transforms import PADDING, ColorDistortion, TrainingTransform, pack_masks, unpack_masks

GROUND = (10, 250, 10)


def color_of(label):
    """Far from those of other labels, from the ground's and from that of the padding."""
    return (20 * label, 30, 255 - 20 * label)


def painted_sample(height=90, width=130, num_segments=10, crowd=()):
    """An image painted by its own segments, which are rectangles apart from each other; the crowd's are painted as well."""
    pixels = np.full((height, width, 3), GROUND, np.uint8)
    masks = np.zeros((num_segments, height, width), bool)
    columns = -(-num_segments // 2)
    for label in range(num_segments):
        row, column = divmod(label, columns)
        top, left = row * height // 2, column * width // columns
        masks[label, top + 2 : top + height // 2 - 3 - label, left + 1 : left + width // columns - 2] = True
        pixels[masks[label]] = color_of(label)
    is_crowd = np.isin(np.arange(num_segments), crowd)
    return SegmentationSample(
        Image.fromarray(pixels), masks, np.arange(num_segments), is_crowd, np.zeros((height, width), bool)
    )


def augmented(sample, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TrainingTransform(**({"crop_size_px": 64} | options))(sample)


def away_from_borders(mask):
    """Pixels whose neighbours up to 3 pixels away are all in the mask and in the crop.

    A border, also one just outside of the crop, is mixed over 4 pixels where an image is enlarged four times.
    """
    return binary_erosion(mask, np.ones((3, 3)), iterations=3)


@pytest.mark.parametrize("size", [(90, 130), (160, 100), (33, 47)])
@pytest.mark.parametrize("resize", ["scale_jitter", "shortest_edge"])
def test_masks_go_where_the_image_goes(resize, size):
    """Inside each mask, away from interpolated borders, the image has the segment's colour, and outside of all it has not."""
    seen, checked = set(), 0
    for seed in range(40):
        image, masks, labels = augmented(painted_sample(*size), seed, resize=resize)
        assert image.shape == (3, 64, 64) and masks.shape == (len(labels), 64, 64)
        assert (image.dtype, masks.dtype, labels.dtype) == (torch.uint8, torch.bool, torch.int64)
        assert type(image) is type(masks) is type(labels) is torch.Tensor
        assert masks.flatten(1).any(1).all() and masks.sum(0).max() <= 1
        pixels = image.permute(1, 2, 0).numpy().astype(int)
        outside = np.ones((64, 64), bool)
        for mask, label in zip(masks.numpy(), labels.tolist(), strict=True):
            inside = away_from_borders(mask)
            assert np.abs(pixels[inside] - color_of(label)).max(initial=0) <= 1
            outside &= ~mask
            checked += inside.sum()
            seen.add(label)
        far = pixels[away_from_borders(outside)]
        assert all((np.abs(far - color_of(label)).max(1) > 1).all() for label in range(10))
    assert seen == set(range(10)) and checked > 2000


@pytest.mark.parametrize("resize", ["scale_jitter", "shortest_edge"])
@pytest.mark.parametrize("scale", [0.1, 0.3, 0.7, 1.6])
def test_masks_are_not_shifted_against_the_image(resize, scale):
    """Centres of image and mask agree to a fraction of a pixel; torch's "nearest" would shift by up to half of one."""
    resized = TrainingTransform(400, resize, scale_range=(scale, scale)).augment.transforms[0]
    shifts = []
    for height, width in [(300, 400), (301, 397), (467, 331), (500, 333), (256, 411), (311, 299)]:
        mask = torch.zeros((1, height, width), dtype=torch.uint8)
        mask[:, height // 3 : height // 2, width // 3 : width // 2] = 1
        image, mask = resized(tv_tensors.Image(255 * mask.expand(3, -1, -1)), tv_tensors.Mask(mask))
        assert image.shape[1:] == mask.shape[1:]
        shifts += [abs(first - second) for first, second in zip(centre_of(image[0]), centre_of(mask[0]), strict=True)]
    assert np.mean(shifts) < 0.2


def centre_of(weights):
    """Row and column of the centre of gravity, in pixels."""
    weights = weights.as_subclass(torch.Tensor).double()
    return [
        float(weights.sum(1 - axis) @ torch.arange(side, dtype=torch.float64) / weights.sum())
        for axis, side in enumerate(weights.shape)
    ]


@pytest.mark.parametrize("num_masks", [0, 1, 8, 9, 21])
def test_masks_are_packed_and_unpacked_unchanged_with_their_overlaps(num_masks):
    masks = np.random.default_rng(0).random((num_masks, 5, 7)) < 0.4
    masks[3:4] = False
    planes = pack_masks(masks)
    assert planes.shape == (-(-num_masks // 8), 5, 7)
    numbers, unpacked = unpack_masks(torch.from_numpy(planes))
    assert numbers.tolist() == [number for number in range(num_masks) if number != 3]
    np.testing.assert_array_equal(unpacked.numpy(), masks[numbers.numpy()])


def test_a_crop_of_the_whole_image_changes_nothing_but_the_side():
    sample = painted_sample(64, 64)
    pixels = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)
    for flip, flipped in ((0.0, lambda tensor: tensor), (1.0, lambda tensor: tensor.flip(2))):
        image, masks, labels = augmented(sample, scale_range=(1.0, 1.0), flip_probability=flip)
        torch.testing.assert_close(image, flipped(pixels), rtol=0, atol=0)
        torch.testing.assert_close(masks, flipped(torch.from_numpy(sample.masks)))
        assert labels.tolist() == sample.labels.tolist()


def test_crowds_and_what_lies_outside_of_the_crop_are_left_out():
    sample = painted_sample(crowd=(2, 5))
    found = [set(augmented(sample, seed, scale_range=(2.0, 2.0)).labels.tolist()) for seed in range(20)]
    assert not set.union(*found) & {2, 5}
    assert max(map(len, found)) < 8 and set.union(*found) == set(range(10)) - {2, 5}


def test_an_image_without_segments_is_augmented_all_the_same():
    image, masks, labels = augmented(painted_sample(num_segments=0))
    assert image.shape == (3, 64, 64) and masks.shape == (0, 64, 64) and labels.shape == (0,)


def test_small_images_are_padded_with_grey_and_without_mask():
    image, masks, _ = augmented(painted_sample(60, 60), scale_range=(0.5, 0.5))
    padding = (image == PADDING).all(0)
    assert padding.sum() == 64**2 - 32**2 and not masks[:, padding].any() and masks.any()


@pytest.mark.parametrize("resize", ["scale_jitter", "shortest_edge"])
@pytest.mark.parametrize("size", [(1, 1), (3000, 4), (4, 3000)])
def test_images_of_any_form_are_taken(resize, size):
    sample = SegmentationSample(
        Image.new("RGB", size[::-1]), np.ones((1, *size), bool), np.zeros(1, np.int64), np.zeros(1, bool), np.zeros(size, bool)
    )
    for seed in range(5):
        image, masks, _ = augmented(sample, seed, resize=resize)
        assert image.shape == (3, 64, 64) and masks.any()


@pytest.mark.parametrize(
    "resize, size, sides",
    [
        ("scale_jitter", (100, 200), {(round(32 * scale), round(64 * scale)) for scale in (0.5, 1.0)}),
        ("shortest_edge", (100, 200), {(32, 64), (64, 128)}),
        ("shortest_edge", (100, 1000), {(25, 256)}),  # the longest side is at most 4 x 64
    ],
)
def test_sides_are_those_of_mask2former(resize, size, sides):
    transform = TrainingTransform(64, resize, scale_range=(0.5, 1.0))
    found = {transform.augment.transforms[0](torch.zeros(3, *size)).shape[1:] for _ in range(300)}
    lowest, highest = (tuple(edge(side[axis] for side in sides) for axis in (0, 1)) for edge in (min, max))
    heights, widths = zip(*found, strict=True)
    assert abs(min(heights) - lowest[0]) <= 1 and abs(max(heights) - highest[0]) <= 1
    assert abs(min(widths) - lowest[1]) <= 1 and abs(max(widths) - highest[1]) <= 1


def test_the_default_scales_are_those_of_the_recipes():
    assert TrainingTransform(1024).augment.transforms[0].scale_range == (0.1, 2.0)
    shortest = TrainingTransform(512, "shortest_edge").augment.transforms[0]
    # configs/ade20k/semantic-segmentation/Base-ADE20K-SemanticSegmentation.yaml
    assert shortest.min_size == [int(number * 0.1 * 512) for number in range(5, 21)] and shortest.max_size == 2048


def test_colours_are_distorted_and_places_are_not():
    plain = [augmented(painted_sample(), seed) for seed in range(8)]
    distorted = [augmented(painted_sample(), seed, color_distortion=True) for seed in range(8)]
    assert all(torch.equal(first.masks, second.masks) for first, second in zip(plain, distorted, strict=True))
    assert sum(not torch.equal(first.image, second.image) for first, second in zip(plain, distorted, strict=True)) >= 4


def test_channels_keep_their_order():
    image = torch.tensor([200, 60, 60], dtype=torch.uint8)[:, None, None].expand(3, 4, 4).contiguous()
    for seed in range(30):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            assert ColorDistortion()(image).double().mean((1, 2)).argmax() == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crop_size_px": 0}, "crop_size_px=0 must be at least 1"),
        ({"resize": "jitter"}, "resize=jitter must be scale_jitter or shortest_edge"),
        ({"scale_range": (2.0, 1.0)}, r"scale_range=\(2.0, 1.0\) must be two rising scales"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingTransform(**({"crop_size_px": 64} | options))
