"""Part maps against loops over patches and pixels."""

import math

import pytest
import torch

from modeling_rats.part_maps import part_map, part_segments, pixel_to_patch, register_patch_similarities


def random_similarities(registers=5, rows=3, columns=4):
    return torch.rand(registers, rows, columns, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_similarities_are_the_cosines_of_every_register_and_patch():
    generator = torch.Generator().manual_seed(0)
    registers, patches = torch.randn(2, 3, 8, generator=generator), torch.randn(2, 10, 8, generator=generator)
    similarities = register_patch_similarities(registers, patches, (2, 5))
    assert similarities.shape == (2, 3, 2, 5)
    for image, register, row, column in [(0, 0, 0, 0), (0, 2, 1, 4), (1, 1, 0, 3), (1, 2, 1, 0)]:
        first, second = registers[image, register], patches[image, 5 * row + column]
        cosine = first @ second / (first.norm() * second.norm())
        torch.testing.assert_close(similarities[image, register, row, column], cosine)


def test_similarities_of_zero_tokens_are_zero():
    assert register_patch_similarities(torch.zeros(1, 1, 4), torch.ones(1, 2, 4), (1, 2)).eq(0).all()


@pytest.mark.parametrize("pixels, patches", [(8, 8), (32, 4), (10, 4), (4, 10), (7, 3), (1, 5), (5, 1), (375, 14)])
def test_a_pixel_belongs_to_the_patch_that_holds_its_centre(pixels, patches):
    expected = [math.floor((pixel + 0.5) * patches / pixels) for pixel in range(pixels)]
    assert pixel_to_patch(pixels, patches).tolist() == expected


@pytest.mark.parametrize("target_size", [None, (3, 4), (24, 32), (10, 9), (2, 50)])
def test_each_pixel_goes_to_the_most_similar_register_of_its_patch(target_size):
    similarities = random_similarities()
    segmentation = part_map(similarities, target_size)
    height, width = target_size or (3, 4)
    assert segmentation.shape == (height, width) and segmentation.dtype == torch.int64
    for y in range(height):
        for x in range(width):
            row, column = math.floor((y + 0.5) * 3 / height), math.floor((x + 0.5) * 4 / width)
            scores = similarities[:, row, column].tolist()
            assert segmentation[y, x] == scores.index(max(scores))


def test_a_batch_gives_each_image_its_own_map():
    batch = torch.stack([random_similarities(), -random_similarities()])
    maps = part_map(batch, (12, 8))
    assert all(torch.equal(one_map, part_map(one, (12, 8))) for one_map, one in zip(maps, batch, strict=True))


def test_ties_go_to_the_lower_register():
    assert part_map(torch.ones(3, 2, 2)).eq(0).all()


def test_segments_describe_the_pixels_they_won():
    similarities = torch.tensor([[[0.9, 0.2], [0.1, 0.2]], [[0.1, 0.4], [0.3, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    segments = part_segments(part_map(similarities, (4, 6)), similarities)
    assert segments == [
        {"id": 1, "register": 1, "score": pytest.approx(0.4), "area": 18, "box": [0, 0, 6, 4]},
        {"id": 0, "register": 0, "score": pytest.approx(0.9), "area": 6, "box": [0, 0, 3, 2]},
    ]


@pytest.mark.parametrize("target_size", [(3, 4), (30, 41), (2, 2)])
def test_segments_cover_the_image_once(target_size):
    similarities = random_similarities()
    segmentation = part_map(similarities, target_size)
    segments = part_segments(segmentation, similarities)
    assert sum(segment["area"] for segment in segments) == target_size[0] * target_size[1]
    assert [segment["register"] for segment in segments] == [segment["id"] for segment in segments]
    assert sorted(segment["area"] for segment in segments)[::-1] == [segment["area"] for segment in segments]
    for segment in segments:
        y, x = (segmentation == segment["id"]).nonzero(as_tuple=True)
        assert segment["box"] == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert segment["area"] == len(x)
        owned = [
            similarities[segment["id"], row, column].item()
            for row in range(3)
            for column in range(4)
            if similarities[:, row, column].argmax() == segment["id"]
        ]
        assert segment["score"] == pytest.approx(sum(owned) / len(owned))
