"""Segments from queries, and where they differ from those of transformers."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Mask2FormerImageProcessor

from evaluation.mask_inference import NOTHING, instance_segments, panoptic_segments, semantic_map

SIZE = (8, 8)
SURE = 20.0


def logits(masks, labels, num_labels=3, confidence=SURE):
    classes = torch.full((len(masks), num_labels + 1), 0.0)
    classes[torch.arange(len(masks)), torch.tensor(labels)] = confidence
    return classes, torch.where(torch.stack(masks), SURE, -SURE)


def columns(first, last):
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[:, first:last] = True
    return mask


def test_a_segment_has_the_pixels_it_is_probable_at_and_no_more():
    classes, masks = logits([columns(0, 4)], [1])
    segments, labels = panoptic_segments(classes, masks, SIZE, stuff=())
    assert (segments[:, :4] == 1).all() and (segments[:, 4:] == NOTHING).all() and labels == {1: 1}
    outputs = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    (found,) = Mask2FormerImageProcessor().post_process_panoptic_segmentation(outputs, target_sizes=[SIZE])
    assert (found["segmentation"] == 1).all()  # if this fails, transformers' own will do


def test_stuff_is_one_segment_and_things_are_several():
    classes, masks = logits([columns(0, 2), columns(2, 4), columns(4, 6), columns(6, 8)], [0, 0, 1, 1])
    segments, labels = panoptic_segments(classes, masks, SIZE, stuff={0})
    assert segments[0].tolist() == [1, 1, 1, 1, 2, 2, 3, 3] and labels == {1: 0, 2: 1, 3: 1}


def test_unsure_covered_and_no_object_queries_are_left_out():
    classes, masks = logits([columns(0, 8), columns(0, 7), columns(0, 8), columns(0, 8)], [1, 2, 0, 3])  # 3 is: no object
    classes[1] /= 2  # sure enough, but less than the first, which covers it
    classes[2] = torch.tensor([1.0, 0, 0, 0])
    segments, labels = panoptic_segments(classes, masks, SIZE, stuff=())
    assert (segments == 1).all() and labels == {1: 1}
    nothing, none = panoptic_segments(classes[3:], masks[3:], SIZE, stuff=())
    assert (nothing == NOTHING).all() and none == {}


@pytest.mark.parametrize("size", [(16, 16), (5, 9)])
def test_any_size_comes_out(size):
    classes, masks = logits([columns(0, 4), columns(4, 8)], [1, 2])
    segments, labels = panoptic_segments(classes, masks, size, stuff=())
    assert segments.shape == size and segments[0, 0] == 1 and segments[0, -1] == 2 and len(labels) == 2


def test_semantic_labels_add_up_over_queries():
    classes, masks = logits([columns(0, 4), columns(0, 4), columns(4, 8)], [1, 2, 0])
    classes[:2] = torch.tensor([[0.0, 1.0, 1.5, 0.0]])  # two queries lean towards label 2
    assert semantic_map(classes, masks, (4, 4)).tolist() == [[2, 2, 0, 0]] * 4


def test_instances_are_pairs_of_query_and_label_by_their_scores():
    classes, masks = logits([columns(0, 4), columns(4, 8), columns(0, 0)], [1, 0, 0], num_labels=2)
    found, labels, scores = instance_segments(classes, masks, SIZE)
    assert sorted(labels[:2].tolist()) == [0, 1] and scores[:2].tolist() == pytest.approx([1, 1], abs=1e-3)
    assert len(found) == 4 and scores[2:].max() < 1e-3  # two masks with two labels each; the empty mask is left out
    assert all(
        mask.equal(columns(0, 4) if label == 1 else columns(4, 8)) for mask, label in zip(found[:2], labels, strict=False)
    )
