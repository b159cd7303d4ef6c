"""Segments of tokens and attention, to the pixel: on backbones whose blocks add nothing, a patch's token is its colour's."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel, ViTConfig, ViTImageProcessor, ViTModel

from evaluation.backbones import Backbone, Tokens
from evaluation.segmenters import ImageBatch
from evaluation.token_segmenters import (
    InputSize,
    TokenReader,
    attention_segmenter,
    input_size,
    patch_kmeans_segmenter,
    random_register_segmenter,
    register_segmenter,
)
from modeling_rats import RatsConfig, RatsImageProcessor, RatsModel

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)], np.uint8)
PATCHES = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [3, 2, 2, 1], [3, 3, 3, 3]])  # the colour of each
SQUARE = InputSize(32, 32)


def transparent(model, processor):
    """The backbone with blocks that add nothing and no positions: a patch's token depends on its pixels alone."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            parameter.normal_()
            if any(part in name for part in (".o_proj.", ".fc2.", ".down_proj.", "position_embeddings")):
                parameter.zero_()
    return Backbone("transparent", model.eval(), processor)


def rats(**options):
    config = RatsConfig(**SIZES, intermediate_size=32, num_registers=4)
    return transparent(RatsModel(config), RatsImageProcessor(size={"height": 32, "width": 32}, **options))


def vit():
    return transparent(
        ViTModel(ViTConfig(**SIZES, intermediate_size=32), add_pooling_layer=False), ViTImageProcessor(resample=0)
    )


def dinov3():
    config = DINOv3ViTConfig(**SIZES, intermediate_size=32, num_register_tokens=4)
    return transparent(DINOv3ViTModel(config), DINOv3ViTImageProcessor(resample=0))


def picture(patches=PATCHES, side_px=8):
    return Image.fromarray(COLOURS[patches].repeat(side_px, axis=0).repeat(side_px, axis=1))


def batch(images, reference_segments=(), target_size=None):
    sizes = [target_size or (image.height, image.width) for image in images]
    return ImageBatch(list(images), sizes, list(reference_segments))


def same_segments(first, second):
    """Whether two label maps are equal but for the numbers of their segments."""
    pairs = {*zip(first.flat, second.flat, strict=True)}
    return len(pairs) == len(np.unique(first)) == len(np.unique(second))


@pytest.mark.parametrize("build", [rats, vit, dinov3])
def test_patches_that_differ_are_segmented_exactly(build):
    segment = patch_kmeans_segmenter(TokenReader(build(), SQUARE), seed=0, num_segments=4)
    for side_px in (8, 6):  # of the mask: as the input, and smaller, so that patches are no whole pixels
        target_size = (4 * side_px, 4 * side_px)
        (label_map,) = segment(batch([picture()], target_size=target_size))
        assert label_map.shape == target_size and label_map.dtype == np.int64
        assert same_segments(label_map, PATCHES.repeat(side_px, axis=0).repeat(side_px, axis=1))


@pytest.mark.parametrize("build", [rats, dinov3])
def test_registers_that_equal_patches_segment_exactly(build):
    backbone = build()
    reader = TokenReader(backbone, SQUARE)
    flat = [picture(np.full((4, 4), colour)) for colour in range(4)]
    pixel_values = backbone.pixel_values(flat, (32, 32))
    embedded = backbone.model.embeddings.patch_embeddings(pixel_values)[:, :, 0, 0]  # (colours, D)
    with torch.no_grad():
        backbone.model.embeddings.register_tokens.copy_(embedded[[2, 0, 3, 1]])
    (label_map,) = register_segmenter(reader)(batch([picture()]))
    register_of_colour = np.array([1, 3, 0, 2])
    assert np.array_equal(label_map, register_of_colour[PATCHES].repeat(8, axis=0).repeat(8, axis=1))


def test_kmeans_makes_as_many_segments_as_the_first_competitor_used_in_each_image():
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    segment = patch_kmeans_segmenter(TokenReader(vit(), SQUARE), seed=0)
    together = segment(batch(images, [2, 5, 9]))
    assert [len(np.unique(label_map)) for label_map in together] == [2, 5, 9]
    for image, count, label_map in zip(images, [2, 5, 9], together, strict=True):  # whatever else is in the batch
        assert np.array_equal(segment(batch([image], [count]))[0], label_map)
    (flat,) = segment(batch([picture(np.zeros((4, 4), int))], [5]))
    assert np.unique(flat).size == 1  # there is nothing to tell apart


def test_random_registers_are_the_same_directions_for_every_image():
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    reader = TokenReader(vit(), SQUARE)
    label_maps = random_register_segmenter(reader, 6, seed=1)(batch(images))
    directions = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
    for image, label_map in zip(images, label_maps, strict=True):
        patches = reader.backbone.tokens(reader.backbone.pixel_values([image], (32, 32))).patches[0]  # (L, D)
        cosines = torch.nn.functional.cosine_similarity(patches[:, None], directions, dim=-1)  # (L, N)
        assert np.array_equal(label_map[::8, ::8], cosines.argmax(dim=-1).view(4, 4).numpy())
    other = random_register_segmenter(reader, 6, seed=2)(batch(images))
    assert any((one != two).any() for one, two in zip(label_maps, other, strict=True))


@pytest.mark.parametrize("build, num_maps", [(vit, 2), (rats, 4), (dinov3, 2)])
def test_attention_gives_each_patch_to_the_highest_map(build, num_maps):
    reader = TokenReader(build(), SQUARE)
    images = [picture(), picture(PATCHES.T)]
    label_maps = attention_segmenter(reader)(batch(images))
    maps = reader.backbone.attention_maps(reader.backbone.pixel_values(images, (32, 32)))
    assert maps.shape == (2, num_maps, 4, 4)
    for one, label_map in zip(maps, label_maps, strict=True):
        assert np.array_equal(label_map[::8, ::8], one.argmax(dim=0).numpy()) and label_map.max() < num_maps
        assert np.array_equal(label_map, label_map[::8, ::8].repeat(8, axis=0).repeat(8, axis=1))


def test_a_batch_goes_through_the_backbone_once_for_all_who_share_a_reader(monkeypatch):
    reader, calls = TokenReader(vit(), SQUARE), []
    forward = reader.backbone.model.forward
    monkeypatch.setattr(reader.backbone.model, "forward", lambda *given, **more: calls.append(1) or forward(*given, **more))
    images = [picture(), picture(PATCHES.T)]
    segment = patch_kmeans_segmenter(reader, seed=0, num_segments=4)
    first = segment(batch(images))
    random_register_segmenter(reader, 3, seed=0)(batch(images))
    assert len(calls) == 1
    second = segment(batch(images[::-1]))
    assert len(calls) == 2 and same_segments(second[0], first[1]) and not same_segments(first[0], first[1])
    assert len(segment(batch(images[:1]))) == 1


def test_images_that_keep_their_shape_are_read_one_by_one():
    wide = np.concatenate([PATCHES, PATCHES], axis=1)
    size = input_size(rats(ensure_multiple_of=8).processor)
    assert size == InputSize(32, 32, keeps_aspect_ratio=True)
    segment = patch_kmeans_segmenter(TokenReader(vit(), InputSize(32, 64, True)), seed=0, num_segments=4)
    label_maps = segment(batch([picture(wide), picture(np.full((4, 4), 2))]))
    assert same_segments(label_maps[0], wide.repeat(8, axis=0).repeat(8, axis=1)) and np.unique(label_maps[1]).size == 1


def test_sizes_are_rounded_to_whole_patches():
    image = Image.new("RGB", (640, 480))
    assert InputSize(224, 224).in_patches(image, (14, 14)) == InputSize(224, 224).in_patches(image, (16, 16)) == (224, 224)
    assert InputSize(512, 512).in_patches(image, (14, 14)) == (518, 518)
    assert InputSize(5, 100).in_patches(image, (16, 8)) == (16, 96)
    assert InputSize(224, 224, True).in_patches(image, (16, 16)) == (192, 256)
    assert input_size(rats().processor, 64) == InputSize(64, 64)
    with pytest.raises(ValueError, match=r"size=.*shortest_edge.*give --image_size"):
        input_size(ViTImageProcessor(size={"shortest_edge": 40}))


def test_a_model_without_registers_has_no_register_maps():
    with pytest.raises(ValueError, match=r"'transparent' has no registers \(model_type 'vit'\).*patch_kmeans:transparent"):
        register_segmenter(TokenReader(vit(), SQUARE))


def test_kmeans_clusters_directions_and_not_lengths(monkeypatch):
    reader = TokenReader(vit(), SQUARE)
    patches = torch.tensor([[[1.0, 0.1], [9.0, 0.0], [0.1, 1.0], [0.0, 9.0]]])
    monkeypatch.setattr(reader, "tokens", lambda images: [Tokens(None, None, patches, (2, 2))])
    (label_map,) = patch_kmeans_segmenter(reader, seed=0, num_segments=2)(batch([picture()], target_size=(2, 2)))
    assert same_segments(label_map, np.array([[0, 0], [1, 1]]))
