"""Part maps against loops over patches, pixels and registers."""

import math

import pytest
import torch

from modeling_rats import part_maps
from modeling_rats.part_maps import (
    NO_PART,
    merged_registers,
    part_map,
    pixel_to_patch,
    register_claims,
    register_patch_similarities,
    segment_parts,
    similarities_to_claimed_patches,
    strongest_map,
    upsample,
)


def random_similarities(registers=5, rows=3, columns=4, seed=0):
    return torch.rand(registers, rows, columns, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# From tokens to similarities


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


def test_claims_are_half_way_between_logits_and_their_log_softmax():
    logits = random_similarities().flatten(1)[None]  # (1, 5, 12)
    claims = register_claims(logits)
    for register in range(5):
        attention = logits[0, register].exp() / logits[0, register].exp().sum()
        torch.testing.assert_close(claims[0, register], (logits[0, register] + attention.log()) / 2)
    constants = torch.tensor([4.0, 0.0, -1.0, 2.0, 0.0])[:, None]  # nothing to the softmax; by the logits the first takes all
    torch.testing.assert_close(register_claims(logits + constants), claims + constants / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_patch_is_compared_with_the_mean_direction_of_those_that_a_map_claims(dtype, monkeypatch):
    monkeypatch.setattr(part_maps, "CLAIM_STEPS", 1)
    maps = torch.stack([random_similarities(), random_similarities(seed=1)])  # (2, 5, 3, 4)
    maps[1, 2] = -2  # claims nothing
    patches = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    similarities = similarities_to_claimed_patches(maps, patches)
    assert similarities.shape == (2, 5, 3, 4) and similarities.dtype == torch.float32
    for image in range(2):
        directions = [patch.float() / patch.float().norm() for patch in patches[image]]
        for register in range(5):
            claimed = [place for place in range(12) if maps[image, :, place // 4, place % 4].argmax() == register]
            mean = sum(directions[place] for place in claimed)
            for place in range(12):
                expected = directions[place] @ mean / mean.norm() if claimed else torch.tensor(-1.0)
                torch.testing.assert_close(similarities[image, register, place // 4, place % 4], expected)


def test_patches_move_to_the_mean_that_they_are_most_similar_to_step_by_step(monkeypatch):
    maps, patches = random_similarities()[None], torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0))
    at_once = similarities_to_claimed_patches(maps, patches)
    monkeypatch.setattr(part_maps, "CLAIM_STEPS", 1)
    by_steps = maps
    seen = []
    for _ in range(5):
        by_steps = similarities_to_claimed_patches(by_steps, patches)
        seen.append(part_map(by_steps))
    torch.testing.assert_close(at_once, by_steps)
    assert not torch.equal(seen[0], seen[-1])  # the first step is not the last


# From patches to pixels


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
    assert strongest_map(torch.ones(3, 2, 2), (5, 4))[1].eq(0).all()


def bilinear(maps, size):
    """Interpolation by loops: samples are at the centres of patches, and the outermost go on to the edge."""
    rows, columns = maps.shape[1:]
    upsampled = torch.empty(len(maps), *size)
    for y in range(size[0]):
        for x in range(size[1]):
            down = min(max((y + 0.5) * rows / size[0] - 0.5, 0), rows - 1)
            right = min(max((x + 0.5) * columns / size[1] - 0.5, 0), columns - 1)
            top, left = math.floor(down), math.floor(right)
            below, beside = min(top + 1, rows - 1), min(left + 1, columns - 1)
            down, right = down - top, right - left
            upsampled[:, y, x] = (1 - down) * ((1 - right) * maps[:, top, left] + right * maps[:, top, beside]) + down * (
                (1 - right) * maps[:, below, left] + right * maps[:, below, beside]
            )
    return upsampled


@pytest.mark.parametrize("size", [(3, 4), (24, 32), (10, 9), (2, 3), (1, 1)])
def test_upsampling_is_bilinear(size):
    maps = random_similarities()
    torch.testing.assert_close(upsample(maps, size), bilinear(maps, size), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [None, (3, 4), (24, 32), (2, 3)])
def test_the_strongest_map_is_that_of_all_maps_together(size):
    maps = random_similarities(registers=20)
    values, index = strongest_map(maps, size)
    together = maps if size is None else upsample(maps, size)
    assert index.dtype == torch.int64
    assert torch.equal(index, together.argmax(dim=0)) and torch.equal(values, together.amax(dim=0))


# Merging


def pearson(first, second):
    first, second = first.flatten().tolist(), second.flatten().tolist()
    first = [value - sum(first) / len(first) for value in first]
    second = [value - sum(second) / len(second) for value in second]
    norm = math.sqrt(sum(value**2 for value in first) * sum(value**2 for value in second))
    return sum(a * b for a, b in zip(first, second, strict=True)) / norm


def parts_by_loops(similarities, merge_threshold):
    """For each register the part it belongs to; the rule of `merged_registers`, register by register."""
    registers, rows, columns = similarities.shape
    parts = list(range(registers))
    if merge_threshold is None:
        return parts
    patches_won = [0] * registers
    for row in range(rows):
        for column in range(columns):
            patches_won[similarities[:, row, column].argmax()] += 1
    kept = []
    for register in sorted(range(registers), key=lambda register: (-patches_won[register], register)):
        if patches_won[register]:
            similar = [one for one in kept if pearson(similarities[register], similarities[one]) >= merge_threshold]
            parts[register] = similar[0] if similar else register
            kept += [] if similar else [register]
    return parts


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("merge_threshold", [None, -0.5, 0.0, 0.3, 0.6, 0.99])
def test_merging_follows_the_rule(seed, merge_threshold):
    similarities = random_similarities(registers=8, seed=seed)
    assert merged_registers(similarities, merge_threshold).tolist() == parts_by_loops(similarities, merge_threshold)


def test_merging_does_not_chain():
    """1 is like 0 and like 2, which are unlike each other: what 1 joins depends on what was kept, not on what 1 is."""
    angles = torch.tensor([0.0, 0.5, 1.0])  # cosines of neighbours 0.88, of the outer two 0.54
    waves = torch.arange(4)[:, None] * math.pi / 2  # one period over four patches: correlations are cosines of the angles
    similarities = torch.cos(waves - angles).T[:, None, :]  # (3, 1, 4)
    similarities[:, 0] += torch.tensor([0.3, 0.0, 0.2])[:, None]  # shifts leave correlations; 0 and 2 win more patches
    won = similarities.argmax(dim=0).flatten().bincount(minlength=3).tolist()
    assert won[0] and won[2]
    assert merged_registers(similarities, 0.8).tolist()[::2] == [0, 2]


def test_a_middle_register_that_is_kept_takes_both_neighbours():
    similarities = torch.zeros(3, 2, 6)
    similarities[0] = torch.tensor([[5.0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    similarities[1] = torch.tensor([[4.0, 2, 2, 2, 2, 4], [0, 0, 0, 0, 0, 0]])
    similarities[2] = torch.tensor([[0.0, 0, 0, 1, 1, 5], [0, 0, 0, 0, 0, 0]])
    correlations = torch.corrcoef(similarities.flatten(1))
    assert correlations[0, 1] > 0.5 and correlations[1, 2] > 0.5 and correlations[0, 2] < 0.5
    assert merged_registers(similarities, 0.5).tolist() == [0, 0, 2]  # 0 wins most patches (ties); 2 is compared with 0 alone
    similarities[1] += 0.5
    assert merged_registers(similarities, 0.5).tolist() == [1, 1, 1]  # 1 wins most, and both join it


def test_registers_without_patches_are_not_merged():
    similarities = torch.stack([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.9, -0.1]]), torch.tensor([[0.0, 1.0]])])
    assert merged_registers(similarities, 0.9).tolist() == [0, 1, 2]


def test_similarities_that_are_all_the_same_correlate_with_none():
    similarities = torch.full((2, 3, 7), 0.1)
    similarities[1, 0] = 0.3
    similarities[1, 1:] = 0.05
    assert merged_registers(similarities, 0.01).tolist() == [0, 1]
    assert merged_registers(similarities, 0.0).tolist() == [1, 1] or merged_registers(similarities, 0.0).tolist() == [0, 0]


# Parts


def parts_map_by_loops(
    similarities,
    target_size,
    *,
    threshold=None,
    mask_threshold=None,
    merge_threshold=None,
    max_parts=None,
    min_area=0,
    upsampled=False,
):
    """The map and {part: score}, place by place in plain loops: merge, assign, mask, hand over small parts, drop weak ones."""
    part_of = parts_by_loops(similarities, merge_threshold)
    height, width = target_size or similarities.shape[1:]
    if upsampled:
        similarities = bilinear(similarities, (height, width))
    rows, columns = similarities.shape[1:]
    values = similarities.tolist()

    def similarity(part, place):
        return max(values[register][place[0]][place[1]] for register in range(len(values)) if part_of[register] == part)

    def place_of(y, x):
        return math.floor((y + 0.5) * rows / height), math.floor((x + 0.5) * columns / width)

    places = [(row, column) for row in range(rows) for column in range(columns)]
    owner = {place: max(sorted(set(part_of)), key=lambda part: similarity(part, place)) for place in places}
    for place in places:
        if mask_threshold is not None and similarity(owner[place], place) < mask_threshold:
            owner[place] = -1
    area = dict.fromkeys([-1, *part_of], 0)
    for y in range(height):
        for x in range(width):
            area[owner[place_of(y, x)]] += 1
    present = [part for part in sorted(set(part_of)) if area[part] > 0]
    large = sorted(present, key=lambda part: -area[part])[:max_parts] if max_parts else sorted(set(part_of))
    large = sorted(part for part in large if area[part] >= min_area)
    for place in places:
        if owner[place] != -1 and owner[place] not in large:
            owner[place] = max(large, key=lambda part: similarity(part, place)) if large else -1
    scores = {}
    for part in set(owner.values()) - {-1}:
        won = [similarity(part, place) for place in places if owner[place] == part]
        scores[part] = sum(won) / len(won)
    for place in places:
        if threshold is not None and owner[place] != -1 and scores[owner[place]] < threshold:
            owner[place] = -1
    return [[owner[place_of(y, x)] for x in range(width)] for y in range(height)], scores


OPTIONS = [
    {},
    {"threshold": 0.55},
    {"mask_threshold": 0.6},
    {"merge_threshold": 0.1},
    {"min_area": 20},
    {"max_parts": 1},
    {"max_parts": 3},
    {"max_parts": 100},
    {"merge_threshold": 0.1, "mask_threshold": 0.4, "max_parts": 2, "min_area": 15},
    {"mask_threshold": 0.5, "min_area": 25},
    {"min_area": 25, "threshold": 0.5},
    {"merge_threshold": 0.0, "min_area": 30},
    {"threshold": 0.5, "mask_threshold": 0.4, "merge_threshold": 0.05, "min_area": 15},
    {"min_area": 10_000},
    {"threshold": 1.0},
    {"mask_threshold": 1.0},
]


@pytest.mark.parametrize("upsampled", [False, True])
@pytest.mark.parametrize("target_size", [None, (12, 16), (10, 9), (2, 3)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parts_follow_the_rules(options, target_size, upsampled):
    for seed in range(3):
        similarities = random_similarities(registers=7, seed=seed)
        segmentation, segments = segment_parts(similarities, target_size, upsample_similarities=upsampled, **options)
        expected, scores = parts_map_by_loops(similarities, target_size, upsampled=upsampled, **options)
        assert segmentation.dtype == torch.int64 and segmentation.tolist() == expected
        assert {segment["id"] for segment in segments} == set(segmentation.unique().tolist()) - {NO_PART}
        for segment in segments:
            assert segment["score"] == pytest.approx(scores[segment["id"]], abs=1e-5)


@pytest.mark.parametrize("upsampled", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_all_promises_hold_of_the_result_at_once(seed, upsampled):
    similarities = random_similarities(registers=12, rows=6, columns=6, seed=seed)
    options = {"threshold": 0.7, "mask_threshold": 0.65, "max_parts": 3, "min_area": 40, "upsample_similarities": upsampled}
    segmentation, segments = segment_parts(similarities, (24, 24), **options)
    best = strongest_map(similarities, (24, 24))[0] if upsampled else similarities.amax(0).repeat_interleave(4, 0)
    best = best if upsampled else best.repeat_interleave(4, 1)
    assert (best[segmentation != NO_PART] >= 0.65).all()
    assert all(segment["area"] >= 40 and segment["score"] >= 0.7 for segment in segments) and len(segments) <= 3


def test_without_options_parts_are_the_part_map():
    similarities = random_similarities(registers=12, rows=5, columns=7)
    for target_size in [None, (30, 41), (2, 2)]:
        assert torch.equal(segment_parts(similarities, target_size)[0], part_map(similarities, target_size))


def test_the_similarities_given_are_left_as_they_are():
    similarities = random_similarities()
    before = similarities.clone()
    segment_parts(similarities, (9, 9), threshold=0.5, mask_threshold=0.5, merge_threshold=0.1, min_area=9)
    assert torch.equal(similarities, before)


def test_segments_describe_the_pixels_they_won():
    similarities = torch.tensor([[[0.9, 0.2], [0.1, 0.2]], [[0.1, 0.4], [0.3, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    _, segments = segment_parts(similarities, (4, 6), register_heads=torch.tensor([0, 0, 1]))
    first = {"id": 1, "register": 1, "registers": [1], "head": 0, "score": pytest.approx(0.4), "area": 18, "box": [0, 0, 6, 4]}
    second = {"id": 0, "register": 0, "registers": [0], "head": 0, "score": pytest.approx(0.9), "area": 6, "box": [0, 0, 3, 2]}
    assert segments == [first, second]


def test_segments_of_merged_registers_name_them_all():
    wave = torch.tensor([[1.0, 0.9, 0.0, -1.0]])
    noise = torch.tensor([[-0.01, 0.02, 0.01, -0.01]])
    similarities = torch.stack([wave + noise, wave, -wave, wave - noise])  # win patches 1 and 2, none, 3 and 4, 0
    segmentation, segments = segment_parts(similarities, merge_threshold=0.95, register_heads=torch.tensor([0, 0, 3, 1]))
    assert segmentation.tolist() == [[0, 0, 0, 2]]
    assert [(segment["register"], segment["registers"], segment["head"]) for segment in segments] == [
        (0, [0, 3], 0),
        (2, [2], 3),
    ]
    assert segments[0]["score"] == pytest.approx((1.01 + 0.92 + 0.01) / 3)


@pytest.mark.parametrize("target_size", [(3, 4), (30, 41), (2, 2)])
def test_segments_cover_the_image_once(target_size):
    similarities = random_similarities()
    segmentation, segments = segment_parts(similarities, target_size)
    assert sum(segment["area"] for segment in segments) == target_size[0] * target_size[1]
    assert [segment["register"] for segment in segments] == [segment["id"] for segment in segments]
    assert sorted(segment["area"] for segment in segments)[::-1] == [segment["area"] for segment in segments]
    for segment in segments:
        y, x = (segmentation == segment["id"]).nonzero(as_tuple=True)
        assert segment["box"] == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert segment["area"] == len(x) and segment["head"] is None
        owned = [
            similarities[segment["id"], row, column].item()
            for row in range(3)
            for column in range(4)
            if similarities[:, row, column].argmax() == segment["id"]
        ]
        assert segment["score"] == pytest.approx(sum(owned) / len(owned))


def test_an_image_without_parts_has_no_segments():
    segmentation, segments = segment_parts(random_similarities(), (6, 6), mask_threshold=1.0)
    assert segments == [] and segmentation.eq(NO_PART).all()
