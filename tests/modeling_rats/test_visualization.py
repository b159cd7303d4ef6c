"""Colours that stay with their register, and pictures of the right size and content."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_rats.visualization import GAP_PX, draw_part_map, draw_similarity, grid, register_colors, side_by_side


def test_a_colour_belongs_to_its_register_whatever_the_number_of_registers():
    colors = register_colors(192)
    assert colors.shape == (192, 3) and colors.dtype == np.uint8
    for num_registers in (0, 1, 24, 96, 191):
        assert np.array_equal(register_colors(num_registers), colors[:num_registers])


@pytest.mark.parametrize("num_registers, least_distance", [(24, 40), (96, 10), (192, 1)])
def test_colours_differ(num_registers, least_distance):
    colors = register_colors(num_registers).astype(int)
    distances = np.abs(colors[:, None] - colors).sum(axis=-1) + 1000 * np.eye(num_registers, dtype=int)
    assert distances.min() >= least_distance


def test_neighbouring_registers_look_different():
    colors = register_colors(192).astype(int)
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 100


def test_part_map_blends_colours_and_leaves_unassigned_pixels_alone():
    image = Image.new("RGB", (6, 4), (100, 100, 100))
    segmentation = np.full((4, 6), 2)
    segmentation[:, 3:] = -1
    picture = np.asarray(draw_part_map(image, segmentation, alpha=0.5))
    expected = np.round(0.5 * 100 + 0.5 * register_colors(3)[2])
    assert np.abs(picture[:, :2] - expected).max() <= 1
    assert (picture[:, 3:] == 100).all()
    assert (picture[:, 2] > 100).all()  # the border, lighter than either side
    mirrored = np.asarray(draw_part_map(image, segmentation[:, ::-1], alpha=0.5))
    assert (mirrored[:, :3] == 100).all()  # a border there would change an unassigned pixel


def test_alpha_zero_changes_borders_only():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    one_segment = np.zeros((8, 8), int)
    assert np.array_equal(np.asarray(draw_part_map(image, one_segment, alpha=0.0)), np.asarray(image))
    assert np.array_equal(np.asarray(draw_part_map(image, one_segment - 1)), np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "RGBA", "RGB"])
def test_part_map_takes_tensors_of_any_size_and_images_of_any_mode(mode):
    picture = draw_part_map(Image.new(mode, (28, 14)), torch.arange(8).reshape(2, 4))
    assert picture.size == (28, 14) and picture.mode == "RGB"
    assert len(np.unique(np.asarray(picture)[3, [3, 10, 17, 24]], axis=0)) == 4


@pytest.mark.parametrize(
    "segmentation, alpha, message",
    [
        (np.zeros((2, 2)), 0.5, "float64.*must be integers"),
        (torch.zeros(1, 2, 2, dtype=torch.long), 0.5, r"shape \(1, 2, 2\)"),
        (np.zeros((2, 2), int), 1.5, "alpha=1.5 must lie between"),
    ],
)
def test_part_map_refuses_what_it_cannot_draw(segmentation, alpha, message):
    with pytest.raises(ValueError, match=message):
        draw_part_map(Image.new("RGB", (2, 2)), segmentation, alpha)


def test_side_by_side_keeps_order_and_scales_to_the_first():
    picture = side_by_side([Image.new("RGB", (20, 10), "red"), Image.new("L", (20, 20), 0)])
    assert picture.size == (20 + 4 + 10, 10)
    assert picture.getpixel((5, 5)) == (255, 0, 0) and picture.getpixel((30, 5)) == (0, 0, 0)


def test_captions_are_written_above_and_kept_to_their_panel():
    panels = [Image.new("RGB", (40, 10), "red")] * 2
    picture = np.asarray(side_by_side(panels, captions=["image", "a caption far too long for its panel"]))
    bare = np.asarray(side_by_side(panels))
    added = picture.shape[0] - bare.shape[0]
    assert np.array_equal(picture[added:], bare)
    caption_row = picture[:added]
    assert (caption_row[:, :40] < 128).any() and (caption_row[:, 44:] < 128).any()
    assert (caption_row[:, 40:44] == 255).all()


def test_side_by_side_refuses_mismatches():
    with pytest.raises(ValueError, match="no images"):
        side_by_side([])
    with pytest.raises(ValueError, match="2 captions for 1 images"):
        side_by_side([Image.new("RGB", (2, 2))], captions=["a", "b"])


def test_a_grid_places_pictures_in_rows():
    pictures = [Image.new("RGB", (10, 6), color) for color in ("red", "lime", "blue")]
    sheet = grid(pictures, columns=2)
    assert sheet.size == (10 + GAP_PX + 10, 6 + GAP_PX + 6)
    assert [sheet.getpixel(at) for at in ((5, 3), (15 + GAP_PX, 3), (5, 9 + GAP_PX), (15 + GAP_PX, 9 + GAP_PX))] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    ]
    with pytest.raises(ValueError, match="no images"):
        grid([], columns=2)


def test_a_similarity_goes_from_the_dimmed_image_to_the_colour_and_between_patches_smoothly():
    image = Image.new("RGB", (40, 20), (100, 100, 100))
    picture = np.asarray(draw_similarity(image, np.array([[-5.0, 3.0]]), (255, 0, 0), low=0.0, high=2.0)).astype(int)
    assert picture.shape == (20, 40, 3)
    assert (picture[:, :10] == 70).all()  # 0.7 of its brightness
    assert np.abs(picture[:, -5:] - [0.85 * 255 + 0.15 * 70, 0.15 * 70, 0.15 * 70]).max() <= 1
    assert (np.diff(picture[10, :, 0]) >= 0).all() and len(set(picture[10, :, 0])) > 4


@pytest.mark.parametrize(
    "similarity, low, high, message",
    [(np.zeros((2, 3, 3)), 0.0, 1.0, r"shape \(2, 3, 3\)"), (np.zeros((3, 3)), 1.0, 1.0, "low=1.0 must be less")],
)
def test_similarities_that_cannot_be_drawn_are_told(similarity, low, high, message):
    with pytest.raises(ValueError, match=message):
        draw_similarity(Image.new("RGB", (8, 8)), similarity, (255, 0, 0), low, high)
