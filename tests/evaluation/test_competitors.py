"""Specifications become rows: their titles, what each is recorded as, how many segments it makes, and refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, ViTConfig, ViTImageProcessor, ViTModel

from evaluation.backbones import Backbone
from evaluation.competitors import competitors, default_specifications
from evaluation.readings import Reading
from evaluation.segmenters import ImageBatch, load_rats
from modeling_rats import RatsConfig, RatsForPartSegmentation, RatsImageProcessor
from modeling_rats.part_maps import part_map, register_patch_similarities, similarities_to_claimed_patches

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}
SAME, EIGHT = "same number of segments", "8 segments"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three models and the saved label maps of two images."""
    folder = tmp_path_factory.mktemp("competitors")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = RatsConfig(**SIZES, image_size=32, intermediate_size=32, num_registers=8, initializer_range=0.5)
        RatsForPartSegmentation(config).save_pretrained(folder / "rats")
        ViTModel(ViTConfig(**SIZES, image_size=32, intermediate_size=32), add_pooling_layer=False).save_pretrained(
            folder / "vit"
        )
        registers = Dinov2WithRegistersConfig(**SIZES, image_size=32, mlp_ratio=2, num_register_tokens=3)
        Dinov2WithRegistersModel(registers).save_pretrained(folder / "registers")
    RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "rats")
    for name in ("vit", "registers"):
        ViTImageProcessor().save_pretrained(folder / name)
    (folder / "maps").mkdir()
    description = {"method": "AdaSlot", "model": "adaslot-coco", "dataset": "coco", "split": "test", "num_images": 2}
    (folder / "maps" / "label_maps.json").write_text(json.dumps(description))
    for index in range(2):
        np.save(folder / "maps" / f"{index:08d}.npy", np.full((40, 60), index))
    return folder


@pytest.fixture(scope="module")
def rats(folder):
    return load_rats(str(folder / "rats"))


@pytest.fixture
def images():
    return [Image.fromarray(pixels) for pixels in np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)]


def label_maps_of(rows, images):
    """As the command does: the first row's numbers of segments are told to the others."""
    sizes, told, label_maps = [(40, 60)] * len(images), [], {}
    for title, competitor in rows.items():
        label_maps[title] = competitor.segment(ImageBatch(images, sizes, told, range(len(images))))
        told = told or [len(np.unique(label_map)) for label_map in label_maps[title]]
    return label_maps, told


def test_every_specification_has_its_rows(rats, folder, images):
    vit, registers = folder / "vit", folder / "registers"
    specifications = (
        "color_kmeans", "color_position_kmeans", "slic", "grid", "random_registers", f"random_registers:{vit}",
        f"random_registers3@means:{vit}",
        "patch_kmeans:model", f"patch_kmeans:{vit}", f"registers:{registers}", f"attention_heads:{vit}",
        f"attention_heads:{registers}", "attention_heads:model", f"label_maps:{folder / 'maps'}",
    )  # fmt: skip
    rows = competitors(*rats, specifications, untrained=True)
    own, model_of = str(folder / "rats"), {"vit": str(vit), "registers": str(registers)}
    kmeans = ("color k-means", "color + position k-means", "SLIC superpixels", "uniform grid")
    methods = ("color_kmeans", "color_position_kmeans", "slic", "grid")
    expected = {"model": ("registers", own, None), "untrained": ("registers with untrained weights", None, None)}
    for title, method in zip(kmeans, methods, strict=True):
        expected |= {f"{title}, {SAME}": (method, None, "same"), f"{title}, {EIGHT}": (method, None, 8)}
    expected |= {
        "8 random registers, patches of the model": ("random_registers", own, None),
        "8 random registers, patches of vit": ("random_registers", model_of["vit"], None),
        "3 random registers, patches of vit (means)": ("random_registers", model_of["vit"], None),
        f"patch k-means of the model, {SAME}": ("patch_kmeans", own, "same"),
        f"patch k-means of the model, {EIGHT}": ("patch_kmeans", own, 8),
        f"patch k-means of vit, {SAME}": ("patch_kmeans", model_of["vit"], "same"),
        f"patch k-means of vit, {EIGHT}": ("patch_kmeans", model_of["vit"], 8),
        "registers of registers": ("registers", model_of["registers"], None),
        "attention heads of vit": ("attention_heads", model_of["vit"], None),
        "attention heads of registers": ("attention_heads", model_of["registers"], None),
        "attention heads of the model": ("attention_heads", own, None),
        "AdaSlot (adaslot-coco), saved label maps": ("AdaSlot", "adaslot-coco", None),
    }
    assert {title: tuple(row)[1:4] for title, row in rows.items()} == expected and list(rows) == list(expected)
    assert all(row.revision is None for row in rows.values())

    label_maps, told = label_maps_of(rows, images)
    for title, of_images in label_maps.items():
        assert all(one.shape == (40, 60) and one.dtype.kind == "i" for one in of_images)
        used = [len(np.unique(one)) for one in of_images]
        if rows[title].method not in ("slic", "AdaSlot"):
            least = {"registers of registers": 3, "attention heads of vit": 4, "attention heads of registers": 4}
            bound = (least | {"3 random registers, patches of vit (means)": 3}).get(title, 8)
            wanted = rows[title].num_segments
            assert used == (told if wanted == "same" else [8, 8]) if wanted else max(used) <= bound
    assert [one.max() for one in label_maps["AdaSlot (adaslot-coco), saved label maps"]] == [0, 1]


def test_the_first_row_and_the_models_own_registers_are_the_same(rats, folder, images):
    rows = competitors(*rats, ("registers:model", f"registers:{folder / 'rats'}"))
    assert list(rows) == ["model", "registers of the model", "registers of rats"]
    label_maps, _ = label_maps_of(rows, images)
    for title in list(rows)[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(label_maps[title], label_maps["model"], strict=True))


def test_a_reading_is_named_and_followed(rats, folder, images):
    readings = ("layer-2", "before_norm", "centered", "layer-2+before_norm+centered")
    specifications = [f"registers@{reading}:model" for reading in readings]
    specifications += ["attention_heads@layer-2:model", f"patch_kmeans@centered:{folder / 'vit'}", "random_registers@layer-2"]
    rows = competitors(*rats, specifications, num_segments=("same",), reference="registers@layer-2+centered:model")
    assert list(rows) == [
        "registers of the model (layer-2+centered)",
        "model",
        *(f"registers of the model ({reading})" for reading in readings),
        "attention heads of the model (layer-2)",
        f"patch k-means of vit (centered), {SAME}",
        "8 random registers, patches of the model (layer-2)",
    ]
    assert [row.reading for row in rows.values()][:4] == ["layer-2+centered", "", "layer-2", "before_norm"]
    label_maps, told = label_maps_of(rows, images)
    first = label_maps["registers of the model (layer-2+centered)"]
    assert told == [len(np.unique(one)) for one in first] != [len(np.unique(one)) for one in label_maps["model"]]
    assert [len(np.unique(one)) for one in label_maps[f"patch k-means of vit (centered), {SAME}"]] == told
    ways = [tuple(one.tobytes() for one in label_maps[title]) for title in rows]
    assert len(set(ways)) == len(ways)  # each reads something else

    backbone = Backbone("rats", rats[0].rats, rats[1])
    tokens = backbone.tokens(backbone.pixel_values(images, (32, 32)), Reading(-2, centered=True))
    similarities = register_patch_similarities(tokens.registers, tokens.patches, tokens.grid)
    for one, label_map in zip(similarities, first, strict=True):
        assert np.array_equal(label_map, part_map(one, (40, 60)).numpy())


@pytest.mark.parametrize("text", ["grid@centered", "label_maps@layer-2:maps", "registers@:model", "registers@norm:model"])
def test_readings_that_are_none_are_refused(rats, text):
    with pytest.raises(ValueError, match=r"names no competitor|is unknown"):
        competitors(*rats, (text,))


def test_attention_is_read_from_a_block_and_nothing_else(rats):
    for reading in ("centered", "before_norm+means"):
        with pytest.raises(ValueError, match=r"attention is read from a block, such as @layer-2 or @layer-2\+means"):
            competitors(*rats, (f"attention_heads@{reading}:model",))
    with pytest.raises(ValueError, match="k-means has no maps"):
        competitors(*rats, ("patch_kmeans@means:model",))


def test_means_are_those_of_the_patches_that_each_map_claims(rats, images):
    readings = ["registers@layer-2+centered+means:model", "attention_heads@layer-2+means:model", "random_registers@means"]
    rows = competitors(*rats, readings)
    label_maps, _ = label_maps_of(rows, images)
    backbone = Backbone("rats", rats[0].rats, rats[1])
    pixel_values = backbone.pixel_values(images, (32, 32))
    tokens = backbone.tokens(pixel_values, Reading(-2))
    maps = backbone.attention_maps(pixel_values, -2)
    similarities = similarities_to_claimed_patches(maps, tokens.patches)
    for one, label_map in zip(similarities, label_maps["attention heads of the model (layer-2+means)"], strict=True):
        assert np.array_equal(label_map, part_map(one, (40, 60)).numpy())
    centered = backbone.tokens(pixel_values, Reading(-2, centered=True))
    of_registers = register_patch_similarities(centered.registers, centered.patches, centered.grid)
    similarities = similarities_to_claimed_patches(of_registers, centered.patches)
    for one, label_map in zip(similarities, label_maps["registers of the model (layer-2+centered+means)"], strict=True):
        assert np.array_equal(label_map, part_map(one, (40, 60)).numpy())
    assert len({tuple(one.tobytes() for one in label_maps[title]) for title in rows}) == len(rows)


def test_a_reference_has_a_number_of_segments_of_its_own(rats):
    with pytest.raises(ValueError, match=r"'grid' makes a wanted number of segments"):
        competitors(*rats, reference="grid")


def test_numbers_of_segments_can_be_chosen(rats, images):
    rows = competitors(*rats, ("grid", "patch_kmeans:model"), num_segments=(3, "same", 5))
    assert [row.num_segments for row in rows.values()] == [None, 3, "same", 5, 3, "same", 5]
    label_maps, told = label_maps_of(rows, images)
    assert [len(np.unique(of_images[1])) for of_images in label_maps.values()] == [told[1], 3, told[1], 5, 3, told[1], 5]


def test_all_models_see_images_at_one_size(rats, images, folder, monkeypatch):
    rows = competitors(*rats, (f"attention_heads:{folder / 'vit'}",), image_size_px=48)
    label_map = rows["attention heads of vit"].segment(ImageBatch(images, [(6, 6)] * 2, []))[0]
    coarse = competitors(*rats, (f"attention_heads:{folder / 'vit'}",), image_size_px=16)
    other = coarse["attention heads of vit"].segment(ImageBatch(images, [(6, 6)] * 2, []))[0]
    assert np.array_equal(other, other[::3, ::3].repeat(3, axis=0).repeat(3, axis=1))  # 2 x 2 patches
    assert not np.array_equal(label_map, label_map[::3, ::3].repeat(3, axis=0).repeat(3, axis=1))  # 6 x 6


@pytest.mark.parametrize(
    "text",
    [
        "kmeans",
        "color_kmeans:vit",
        "grid:",
        "patch_kmeans",
        "patch_kmeans:",
        "registers",
        "random_registers:",
        "random_registers0",
        "registers3:vit",
        "label_maps",
    ],
)
def test_what_is_no_specification_is_answered_with_all(rats, text):
    with pytest.raises(
        ValueError, match=rf"{text!r} names no competitor; .*slic, grid, .*patch_kmeans\[@READING\]:MODEL.*label_maps:FOLDER"
    ):
        competitors(*rats, (text,))


def test_rows_must_differ(rats):
    with pytest.raises(ValueError, match="'grid' gives a second row 'uniform grid, same number of segments'"):
        competitors(*rats, ("grid", "slic", "grid"))


def test_what_pretraining_wrote_is_named_by_its_run(rats, folder, tmp_path):
    for run in ("vit-seed0", "vit-seed1"):
        shutil.copytree(folder / "vit", tmp_path / run / "model")
    rows = competitors(*rats, [f"attention_heads:{tmp_path / run / 'model'}" for run in ("vit-seed0", "vit-seed1")])
    assert list(rows) == ["model", "attention heads of vit-seed0", "attention heads of vit-seed1"]


@pytest.mark.parametrize("num_segments", [(), (0,), ("all",), (3, 3), (2.5,)])
def test_numbers_of_segments_that_are_none_are_refused(rats, num_segments):
    with pytest.raises(ValueError, match="num_segments="):
        competitors(*rats, num_segments=num_segments)


def test_a_model_without_registers_asked_for_register_maps_is_refused(rats, folder):
    with pytest.raises(ValueError, match=r"vit' has no registers \(model_type 'vit'\).*as patch_kmeans:"):
        competitors(*rats, (f"registers:{folder / 'vit'}",))
    with pytest.raises(ValueError, match=r"model_type 'dinov2_with_registers'.*registers:MODEL if it has registers"):
        load_rats(str(folder / "registers"))


def test_what_is_not_there_is_told(rats, folder):
    with pytest.raises(FileNotFoundError, match="'no/such/model' was not found"):
        competitors(*rats, ("patch_kmeans:no/such/model",))
    with pytest.raises(FileNotFoundError, match=r"label_maps.json was not found"):
        competitors(*rats, (f"label_maps:{folder}",))


def test_a_distilled_model_competes_with_its_teacher_by_default(tmp_path):
    (tmp_path / "teacher").mkdir()
    folder = tmp_path / "student"
    folder.mkdir()
    assert default_specifications(str(folder)) == ["color_kmeans"]

    def distilled(name, on_hub):
        record = {"teacher": {"name": name, "on_hub": on_hub}}
        (folder / "training.json").write_text(json.dumps(record))
        return default_specifications(str(folder))

    assert distilled("facebook/dinov2-small", True) == ["color_kmeans", "patch_kmeans:facebook/dinov2-small"]
    assert distilled(str(tmp_path / "teacher"), False) == ["color_kmeans", f"patch_kmeans:{tmp_path / 'teacher'}"]
    assert distilled(str(tmp_path / "gone"), False) == ["color_kmeans"]
    (folder / "training.json").write_text(json.dumps({"steps": 3}))
    assert default_specifications(str(folder)) == ["color_kmeans"]
