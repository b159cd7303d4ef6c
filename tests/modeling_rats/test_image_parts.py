"""One look at an image serves all later questions, and its attention is the model's own."""

import pytest
import torch
from PIL import Image

from modeling_rats import RatsForPartSegmentation, RatsImageProcessor
from modeling_rats.image_parts import attention_maps, look

SIZE = {"height": 32, "width": 48}


@pytest.fixture(scope="module")
def image():
    return Image.effect_noise((60, 40), 90).convert("RGB")


@pytest.fixture(scope="module", params=[True, False], ids=["partitioned", "unpartitioned"])
def model(request, make_config):
    torch.manual_seed(0)
    config = make_config(partition_registers=request.param, initializer_range=0.5, attn_implementation="eager")
    return RatsForPartSegmentation(config).eval()


@pytest.fixture(scope="module")
def processor():
    return RatsImageProcessor(size={"height": 32, "width": 32})


def test_a_look_answers_as_the_model_does(model, processor, image):
    parts = look(image, model, processor, size=SIZE)
    inputs = processor(images=image, return_tensors="pt", size=SIZE)
    with torch.no_grad():
        outputs = model(**inputs, output_patch_features=True)
    assert parts.similarities.shape == (8, 4, 6) and torch.equal(parts.similarities, outputs.similarities[0])
    assert torch.equal(parts.outputs["patch_features"], outputs.patch_features)
    (expected,) = processor.post_process_part_segmentation(outputs, target_sizes=[(40, 60)], max_parts=3)
    result = parts.segment(max_parts=3)
    assert torch.equal(result["segmentation"], expected["segmentation"])
    assert result["segments_info"] == expected["segments_info"]
    assert parts.segment((7, 9))["segmentation"].shape == (7, 9)


def test_the_register_at_a_pixel_is_that_of_the_part_map(model, processor, image):
    parts = look(image, model, processor, size=SIZE)
    segmentation = parts.segment()["segmentation"]
    assert len(segmentation.unique()) > 2
    for x in range(0, 60, 7):
        for y in range(0, 40, 5):
            assert parts.register_at(x, y) == segmentation[y, x]
    assert parts.register_at(59.9, 39.9) == segmentation[-1, -1]
    for x, y in ((60, 0), (0, 40), (-1, 0)):
        with pytest.raises(ValueError, match="must lie in the image, 60 x 40 px"):
            parts.register_at(x, y)


def test_attention_maps_are_the_models_with_patches_in_rows_and_columns(model, processor, image):
    maps = attention_maps(image, model, processor, size=SIZE)
    inputs = processor(images=image, return_tensors="pt", size=SIZE)
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True, output_communicate_attentions=True, output_broadcast_attentions=True)
    n = 2 if model.config.partition_registers else 8
    for layer in range(2):
        assert maps.compress[layer].shape == maps.broadcast[layer].shape == (4, n, 4, 6)
        assert maps.communicate[layer].shape == (4, n, n)
        assert torch.equal(maps.compress[layer].flatten(-2), outputs.attentions[layer][0])
        assert torch.equal(maps.communicate[layer], outputs.communicate_attentions[layer][0])
        for row, column in ((0, 0), (1, 4), (3, 5)):
            asked = outputs.broadcast_attentions[layer][0, :, row * 6 + column]
            assert torch.equal(maps.broadcast[layer][:, :, row, column], asked)


def test_attention_that_gives_no_maps_is_refused(make_config, processor, image):
    model = RatsForPartSegmentation(make_config(attn_implementation="sdpa")).eval()
    with pytest.raises(ValueError, match="'sdpa' gives no attention maps"):
        attention_maps(image, model, processor)
