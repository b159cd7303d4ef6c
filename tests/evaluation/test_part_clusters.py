"""Clusters are found, as many as it takes; what does not come back and what lies on the border is marked."""

import pytest
import torch
from torch import nn

from evaluation.part_clusters import cluster_segments
from evaluation.segment_features import NO_LABEL, Segments

WIDTH = 16


def segments(directions, images, border=None, noise=0.05):
    """A segment of each image for each direction."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.cat([directions + noise * torch.randn(directions.shape, generator=generator) for _ in range(images)])
    image = torch.arange(images).repeat_interleave(len(directions))
    count = len(image)
    return Segments(
        vectors=nn.functional.normalize(vectors, dim=1),
        means=nn.functional.normalize(vectors, dim=1),
        register=torch.zeros(count, dtype=torch.int64),
        image=image,
        box=torch.zeros(count, 4),
        area=torch.full((count,), 0.1),
        border=(torch.zeros(len(directions)) if border is None else torch.tensor(border)).repeat(images),
        label=torch.full((count,), NO_LABEL),
        purity=torch.zeros(count),
    )


def test_directions_are_found_with_their_segments():
    found = cluster_segments(segments(torch.eye(8, WIDTH), images=60), [8])
    cosines = found.vectors @ torch.eye(8, WIDTH).T
    assert sorted(cosines.argmax(dim=1).tolist()) == list(range(8)) and cosines.amax(dim=1).min() > 0.95
    assert sorted(torch.cat(found.members).tolist()) == list(range(480)) and found.held_out == {}
    assert found.kept().all() and found.vectors.norm(dim=1).tolist() == pytest.approx([1] * 8)


def test_the_number_is_the_first_from_which_more_do_not_help():
    found = cluster_segments(segments(torch.eye(8, WIDTH), images=60), [32, 4, 8, 16])
    assert len(found.members) == 8 and list(found.held_out) == [4, 8, 16]
    four, eight, sixteen = (1 - cosine for cosine in found.held_out.values())
    assert (four - eight) / four > 0.2 > (eight - sixteen) / eight


def test_the_same_seed_gives_the_same():
    data = segments(torch.eye(8, WIDTH), images=40)
    one, other = cluster_segments(data, [4, 8], seed=1), cluster_segments(data, [4, 8], seed=1)
    assert torch.equal(one.vectors, other.vectors) and one.held_out == other.held_out


def test_what_lies_on_the_border_and_what_does_not_come_back_is_marked():
    data = segments(torch.eye(4, WIDTH), images=40, border=[0.0, 0.9, 0.1, 0.0])
    only_once = data.image < 5  # direction 3 is in the images of one half alone
    which = ~((torch.arange(160) % 4 == 3) & ~only_once)
    found = cluster_segments(data.chosen(which), [4])
    of = (found.vectors @ torch.eye(4, WIDTH).T).argmax(dim=1).tolist()
    kept = dict(zip(of, found.kept().tolist(), strict=True))
    assert kept == {0: True, 1: False, 2: True, 3: False}
    assert found.border[of.index(1)] > 1.5 > found.border[of.index(2)]
    assert found.kept(max_border=9.0)[of.index(1)] and found.returned[of.index(3)] < 0.9


def test_too_few_segments_are_refused():
    with pytest.raises(ValueError, match=r"8 segments of 2 images are too few for 8 entries, .*ask for fewer"):
        cluster_segments(segments(torch.eye(4, WIDTH), images=2), [8])
