"""Panoptic segments, and where they differ from those of transformers."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Mask2FormerImageProcessor

from evaluation.panoptic_inference import NOTHING, panoptic_segments

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
