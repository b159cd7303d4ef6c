"""Part maps as PNG and as COCO's annotation keep every pixel."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_rats.part_files import coco_annotations, part_map_image
from modeling_rats.part_maps import segment_parts
from modeling_rats.register_colors import register_colors


def saved(picture):
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return Image.open(file)


@pytest.mark.parametrize("registers, mode", [(16, "P"), (255, "P"), (256, "I;16")])
def test_a_png_holds_the_number_of_each_register(registers, mode):
    segmentation = torch.randint(-1, registers, (20, 30), generator=torch.Generator().manual_seed(0))
    segmentation[0, 0], segmentation[0, 1] = registers - 1, -1
    picture = saved(part_map_image(segmentation))
    assert picture.mode == mode and picture.size == (30, 20)
    assert np.array_equal(np.asarray(picture).astype(int) - 1, segmentation.numpy())


def test_a_png_is_shown_in_the_colours_of_the_registers():
    segmentation = torch.tensor([[-1, 0, 5, 254]])
    shown = np.asarray(saved(part_map_image(segmentation)).convert("RGB"))[0]
    assert np.array_equal(shown, [[0, 0, 0], *register_colors(255)[[0, 5, 254]]])


@pytest.mark.parametrize("seed", range(4))
def test_coco_gives_back_every_mask(seed):
    coco_mask = pytest.importorskip("pycocotools.mask")
    similarities = torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(seed))
    segmentation, segments = segment_parts(similarities, (17, 13), mask_threshold=0.7)
    told = json.loads(json.dumps(coco_annotations("car.jpg", segmentation, segments, {segments[0]["id"]: "wheel"})))
    assert told["images"] == [{"id": 1, "file_name": "car.jpg", "height": 17, "width": 13}]
    assert told["categories"][0]["name"] == "wheel" and len(told["annotations"]) == len(segments)
    for annotation, segment in zip(told["annotations"], segments, strict=True):
        code = coco_mask.frPyObjects(annotation["segmentation"], 17, 13)
        assert np.array_equal(coco_mask.decode(code), (segmentation == segment["id"]).numpy())
        assert coco_mask.area(code) == annotation["area"] and coco_mask.toBbox(code).tolist() == annotation["bbox"]
        assert annotation["category_id"] == segment["register"] + 1


def test_coco_of_one_part_and_of_none():
    whole = coco_annotations("a.png", *segment_parts(torch.ones(1, 2, 2), (3, 4)))
    assert whole["annotations"][0]["segmentation"] == {"size": [3, 4], "counts": [0, 12]}
    none = coco_annotations("a.png", *segment_parts(torch.zeros(1, 2, 2), (3, 4), mask_threshold=0.5))
    assert none["annotations"] == [] and none["categories"] == []
