"""Each view shows what the model says of the picture, and the same register looks the same on every one."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_rats.part_files import part_map_image
from modeling_rats.pipeline_rats import PartSegmentationPipeline
from modeling_rats.register_colors import register_colors


@pytest.fixture(scope="module")
def options():
    from part_viewer import PartOptions

    return PartOptions


@pytest.fixture(scope="module")
def viewed(viewer, bird, options):
    return viewer.view(bird, "bird.png", 128, options())


def pixels(picture):
    return np.asarray(picture.convert("RGB")).astype(int)


def test_parts_are_those_of_the_pipeline(viewer, viewed, bird):
    pipeline = PartSegmentationPipeline(model=viewer.model, image_processor=viewer.image_processor, device="cpu")
    expected = pipeline(bird, size={"height": 128, "width": 128}, ensure_multiple_of=8)
    assert [part["register"] for part in viewed.segments] == [part["register"] for part in expected]
    numbers = np.asarray(viewer.mask_files(viewed)[0]).astype(int) - 1
    for part in expected:
        assert np.array_equal(numbers == part["register"], np.asarray(part["mask"]) == 255)


def test_the_overlay_has_the_colours_of_the_registers_and_their_numbers(viewer, viewed):
    overlay = pixels(viewer.overlay(viewed))
    assert overlay.shape[:2] == tuple(viewed.segmentation.shape) == (640, 640)
    for part in viewed.segments[:3]:
        inside = (viewed.segmentation == part["register"]).numpy()
        expected = 0.4 * pixels(viewed.shown)[inside] + 0.6 * register_colors(16)[part["register"]]
        close = np.abs(overlay[inside] - expected).max(axis=-1) <= 1
        assert 0.8 < close.mean() < 1  # all but its borders and its number
    legend = viewer.legend(viewed)
    assert all(f"<b>register {part['register']}</b>" in legend for part in viewed.segments)
    color = "#{:02x}{:02x}{:02x}".format(*register_colors(16)[viewed.segments[0]["register"]])
    assert legend.count("<li>") == len(viewed.segments) and legend.index(color) < 100


def test_controls_change_the_parts(viewer, viewed, options):
    few = viewer.view_again(viewed, options(max_parts=3))
    assert len(few.segments) == 3 < len(viewed.segments)
    merged = viewer.view_again(viewed, options(merge_threshold=0.5))
    assert sum(len(part["registers"]) > 1 for part in merged.segments) and "with " in viewer.legend(merged)
    large = viewer.view_again(viewed, options(min_area_percent=10))
    assert all(part["area"] >= 0.1 * 640 * 640 for part in large.segments) and len(large.segments) < len(viewed.segments)
    smooth = viewer.view_again(viewed, options(smooth=True))
    assert not torch.equal(smooth.segmentation, viewed.segmentation)
    assert viewer.legend(viewer.view_again(viewed, options(min_area_percent=100))).startswith("<p>No part")


def test_parts_bear_names_of_the_dictionary(viewer, viewed, options):
    named = viewer.view_again(viewed, options(named=True))
    assert named.names and set(named.names.values()) <= set(viewer.dictionary.names)
    register, name = next(iter(named.names.items()))
    assert f"{name} (register {register})" in viewer.legend(named) and not viewed.names
    assert name in [one["name"] for one in viewer.mask_files(named)[1]["categories"]]
    assert not np.array_equal(pixels(viewer.overlay(named)), pixels(viewer.overlay(viewed)))


def test_names_from_outside_are_no_html(viewer, viewed, options):
    from dataclasses import replace

    register = viewed.segments[0]["register"]
    assert "<script>" not in viewer.legend(replace(viewed, names={register: "<script>alert(1)</script>"}))


def test_a_click_finds_the_part_below_it(viewer, viewed, options):
    for picture in (viewed, viewer.view_again(viewed, options(max_parts=2, smooth=True))):
        for x, y in ((0, 0), (639, 639), (320.7, 300.2), (100, 500)):
            assert picture.register_at(x, y) == picture.segmentation[int(y), int(x)]
    nothing = viewer.view_again(viewed, options(min_area_percent=100))
    assert nothing.register_at(320, 300) == viewed.register_at(320, 300)


def test_a_register_is_shown_on_one_scale_on_all_pictures(viewer, viewed):
    register = viewed.register_at(320, 300)
    here = pixels(viewer.register_map(viewed, register))
    color = register_colors(16)[register]
    grey = pixels(viewed.shown.convert("L"))
    assert here.shape == (640, 640, 3)
    colored = np.abs(here - 0.7 * grey).sum(axis=-1) > 30
    on_register = (viewed.segmentation == register).numpy()
    assert colored[on_register].mean() > 0.9 > 0.5 > colored[~on_register].mean()
    sheet = viewer.register_in_examples(viewed, register)
    assert sheet.width == 5 * 96 + 4 * 4 and sheet.height == 3 * 96 + 2 * 4  # twelve examples
    assert np.abs(pixels(sheet) - 0.85 * color).sum(axis=-1).min() < 60  # it shines somewhere else, too
    gallery = viewer.gallery(viewed)
    assert [name for _, name in gallery] == [f"register {part['register']}" for part in viewed.segments]


def test_the_dictionary_is_browsed_and_its_entries_found(viewer, viewed):
    rows = viewer.entries(viewed)
    found = {one["name"]: one for one in viewer.dictionary.search(viewed.parts.outputs, k=None)[0]}
    assert len(rows) == len(viewer.dictionary) and found
    assert {row[0] for row in rows[: len(found)]} == found.keys() and all(row[1] for row in rows[: len(found)])
    assert all(row[1] == "" for row in viewer.entries(None))
    name = rows[0][0]
    heat = viewer.dictionary.localize(viewed.parts.outputs, name, target_size=(640, 640))[0].numpy()
    shown, grey = pixels(viewer.entry_map(viewed, name)), pixels(viewed.shown.convert("L"))
    colored = np.abs(shown - 0.7 * grey).sum(axis=-1) > 30
    assert heat[colored].mean() > heat[~colored].mean() + 0.1
    assert viewer.entry_in_examples(name).size == viewer.register_in_examples(viewed, 0).size


def test_a_model_without_a_dictionary_has_none_to_show(viewer, bird, options):
    from part_viewer import PartViewer

    plain = PartViewer(viewer.model, viewer.image_processor, [("bird", bird)])
    viewed = plain.view(bird, "bird.png", 128, options(named=True))
    assert plain.entries(viewed) == [] and viewed.names == {}


def test_attention_is_that_of_the_layer_and_head(viewer, viewed):
    compress, table, broadcast = viewer.attention(viewed, 0, 1)
    assert [told.split(",")[0] for _, told in compress] == [f"register {number}" for number in (4, 5, 6, 7)]
    assert len(broadcast) == 4 and abs(table.width - table.height) == 0
    inputs = viewer.image_processor(images=viewed.parts.image, return_tensors="pt", size={"height": 128, "width": 128})
    with torch.no_grad():
        attentions = viewer.model(**inputs, output_attentions=True).attentions
    assert compress[2][1] == f"register 6, {attentions[0][0, 1, 2].max().item():.2g} at most"
    other = viewer.attention(viewed, 3, 1)[0]
    assert not np.array_equal(pixels(other[0][0]), pixels(compress[0][0]))


def test_files_have_the_size_of_the_picture_as_it_came(viewer, options, bird):
    large = bird.resize((2000, 1500))
    viewed = viewer.view(large, "large.png", 128, options(max_parts=4))
    assert max(viewed.parts.image.size) == 1024 and viewed.shown.size == (640, 480)
    assert viewer.mask_files(viewed)[0].size == (2000, 1500)
    told = viewer.mask_files(viewed)[1]
    assert told["images"][0] == {"id": 1, "file_name": "large.png", "height": 1500, "width": 2000}
    assert sum(one["area"] for one in told["annotations"]) == 2000 * 1500
    segmentation = viewed.parts.segment((1500, 2000), max_parts=4)["segmentation"]
    assert np.array_equal(np.asarray(viewer.mask_files(viewed)[0]), np.asarray(part_map_image(segmentation)))


@pytest.mark.parametrize("size", [(16, 200), (700, 44)])
def test_pictures_of_any_shape_are_shown(viewer, options, size):
    viewed = viewer.view(Image.new("RGB", size, "red"), "odd.png", 128, options())
    assert max(viewed.shown.size) == 640 and viewer.overlay(viewed).size == viewed.shown.size
    viewer.register_map(viewed, viewed.register_at(viewed.shown.width - 1, viewed.shown.height - 1))
    viewer.attention(viewed, 0, 0)
