"""Colours that stay with their register, and pictures of the right size and content."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_rats.register_colors import register_colors
from modeling_rats.visualization import GAP_PX, draw_part_map, draw_registers, draw_similarity, grid, side_by_side


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


def test_a_label_is_written_on_its_segment_and_stays_on_the_picture():
    image = Image.new("RGB", (120, 90), (100, 100, 100))
    segmentation = np.zeros((90, 120), int)
    segmentation[:, 60:] = 1
    segmentation[80:, 110:] = 2  # a corner, smaller than what is written on it
    plain = np.asarray(draw_part_map(image, segmentation)).astype(int)
    written = np.asarray(draw_part_map(image, segmentation, labels={1: "7", 2: "12", 5: "is not there"})).astype(int)
    changed = (written != plain).any(axis=-1)
    white = (written > 200).all(axis=-1) & changed
    assert not changed[:, :61].any() and changed[:70, 61:100].any()
    middle = np.asarray(draw_part_map(image, np.zeros((90, 120), int), labels={0: "12"})) > 200
    corner = white[70:, 90:].sum()
    assert corner == middle.all(axis=-1).sum() > 0  # nothing of it is cut off
    assert (written[changed] == 0).all(axis=-1).sum() > white.sum()  # on black, to be read on any colour


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


def test_a_register_shines_where_it_is_most_similar_of_all_images():
    """Register 1 is most similar to the left half of the first image, less to the second, and claims nothing in the third."""
    images = [Image.new("RGB", (96, 96), "white")] * 3
    of_first = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    of_second = torch.zeros(2, 2), torch.full((2, 2), 0.4)
    of_third = torch.zeros(2, 2), torch.full((2, 2), -1.0)
    similarities = [torch.stack(maps) for maps in (of_first, of_second, of_third)]
    picture = np.asarray(draw_registers(images, similarities, [1])).astype(int)
    row = picture[96 + 16 + 4 + 16 :]  # below the images, their caption, a gap and the register's caption
    left, right, second, third = row[48, 4], row[48, 91], row[48, 100 + 48], row[48, 200 + 48]
    color = register_colors(2)[1].astype(int)
    dimmed = round(255 * 0.7)
    assert row.shape == (96, 3 * 96 + 2 * 4, 3)
    assert np.abs(left - (0.85 * color + 0.15 * dimmed)).max() <= 1
    assert (right == dimmed).all() and (second == dimmed).all() and (third == dimmed).all()
