"""Scores of labelled masks, against outputs whose scores are known by hand: with crowds, void pixels, and empty images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.mask_scorers import InstanceScorer, PanopticScorer, SemanticScorer, label_map
from evaluation.segmentation_data import SegmentationSample
from tests.evaluation.made_segments import LEFT, RIGHT, SIDE, box, make_data, sample

CPU = torch.device("cpu")


def outputs(masks, labels, num_labels, confidence=20.0):
    """Of a model that is sure of these masks, and that all other queries are no object."""
    queries = len(masks) + 2
    classes = torch.zeros(1, queries, num_labels + 1)
    classes[..., -1] = confidence
    logits = torch.full((1, queries, SIDE, SIDE), -confidence)
    for number, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        classes[0, number, -1], classes[0, number, label] = 0, confidence
        logits[0, number][torch.from_numpy(mask)] = confidence
    return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=logits)


# Semantic


def test_a_perfect_semantic_model_has_all():
    scorer = SemanticScorer(2, CPU)
    scorer.add(outputs([LEFT, RIGHT], [0, 1], 2), sample([LEFT, RIGHT], [0, 1]))
    assert scorer.scores() == pytest.approx({"miou": 100, "pixel_accuracy": 100})


def test_miou_is_over_the_pixels_of_all_images():
    scorer = SemanticScorer(3, CPU)
    scorer.add(outputs([LEFT, RIGHT], [0, 1], 3), sample([LEFT, RIGHT], [0, 1]))
    scorer.add(outputs([LEFT | RIGHT], [0], 3), sample([LEFT | RIGHT], [1]))
    # Label 0: half an image of a half and a whole one; label 1: half an image of one and a half; label 2 never occurs.
    assert scorer.scores()["miou"] == pytest.approx(100 * (1 / 3 + 1 / 3) / 2)
    assert scorer.scores()["pixel_accuracy"] == pytest.approx(50)


def test_void_pixels_and_crowds_do_not_count_semantically():
    wrong_where_void = outputs([LEFT, RIGHT], [0, 1], 2)
    scorer = SemanticScorer(2, CPU)
    scorer.add(wrong_where_void, sample([LEFT], [0], void=RIGHT))
    scorer.add(wrong_where_void, sample([LEFT, RIGHT], [0, 0], crowd=[False, True]))
    assert scorer.scores()["miou"] == pytest.approx(100)
    assert (label_map(sample([LEFT], [0], void=RIGHT))[:, 48:] == -1).all()


def test_nothing_to_score_is_told():
    scorer = SemanticScorer(2, CPU)
    scorer.add(outputs([LEFT], [0], 2), sample([], [], void=LEFT | RIGHT))
    with pytest.raises(ValueError, match="All pixels are ignored"):
        scorer.scores()


# Instance


def test_a_perfect_instance_model_has_all_and_overlaps_count():
    masks = [box(0, 0, 60, 60), box(30, 30, 90, 90)]
    scorer = InstanceScorer()
    scorer.add(outputs(masks, [0, 1], 2), sample(masks, [0, 1]))
    scores = scorer.scores()
    assert min(scores["ap"], scores["ap50"], scores["ap75"], scores["ap_medium"]) == pytest.approx(100, abs=0.1)
    assert "ap_large" not in scores  # there is no object above 96 x 96 pixels


def test_ap50_takes_what_ap75_does_not():
    scorer = InstanceScorer()
    scorer.add(outputs([box(0, 0, 60, 60)], [0], 1), sample([box(0, 0, 60, 96)], [0]))  # IoU 0.625
    scores = scorer.scores()
    assert scores["ap50"] == pytest.approx(100, abs=0.1) and scores["ap75"] == pytest.approx(0, abs=0.1)
    assert scores["ap"] == pytest.approx(30, abs=0.1)  # at the thresholds 0.50, 0.55 and 0.60 of ten


def test_crowds_are_neither_asked_for_nor_punished():
    masks = [box(0, 0, 40, 40), box(50, 50, 90, 90)]
    scorer = InstanceScorer()
    scorer.add(outputs(masks, [0, 0], 1), sample(masks, [0, 0], crowd=[False, True]))
    assert scorer.scores()["ap"] == pytest.approx(100, abs=0.1)
    missing = InstanceScorer()
    missing.add(outputs(masks[:1], [0], 1), sample(masks, [0, 0], crowd=[False, True]))
    assert missing.scores()["ap"] == pytest.approx(100, abs=0.1)


def test_an_image_without_objects_takes_found_ones_as_wrong():
    one = box(0, 0, 40, 40)
    scorer = InstanceScorer()
    scorer.add(outputs([one], [0], 1, confidence=3.0), sample([one], [0]))
    scorer.add(outputs([one], [0], 1), sample([], []))  # more certain than the right one
    assert scorer.scores()["ap"] == pytest.approx(50, abs=1)


def test_a_missed_object_and_a_split_without_any():
    scorer = InstanceScorer()
    scorer.add(outputs([], [], 1), sample([box(0, 0, 40, 40)], [0]))
    assert scorer.scores()["ap"] == 0
    empty = InstanceScorer()
    empty.add(outputs([], [], 1), sample([], []))
    with pytest.raises(ValueError, match="No image has an object"):
        empty.scores()


def test_small_objects_of_large_images_are_read_as_they_are():
    rows, columns = np.mgrid[0:480, 0:640]
    disc = (rows - 200) ** 2 + (columns - 300) ** 2 < 10**2
    inside = 10 - np.hypot(np.mgrid[0:120, 0:160][0] * 4 + 1.5 - 200, np.mgrid[0:120, 0:160][1] * 4 + 1.5 - 300)  # in pixels
    classes = torch.tensor([[[20.0, 0.0]]])
    found = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=torch.from_numpy(inside)[None, None].float())
    scorer = InstanceScorer()
    void = np.zeros(disc.shape, bool)
    scorer.add(found, SegmentationSample(Image.new("RGB", (640, 480)), disc[None], np.array([0]), np.array([False]), void))
    assert scorer.scores()["ap"] == pytest.approx(100, abs=0.1)  # read on 384 x 384 pixels its IoU would be 0.9


# Panoptic


def test_pq_is_what_its_definition_gives():
    data = make_data("panoptic", [])
    scorer = PanopticScorer(data, CPU)
    ground, disc, other = box(0, 0, 48, SIDE), box(48, 0, SIDE, 48), box(48, 48, SIDE, SIDE)
    # The ground is found, the disc to two thirds, the box taken for another disc.
    found = [ground, box(48, 0, 80, 48), other]
    scorer.add(outputs(found, [0, 1, 1], 3), sample([ground, disc, other], [0, 1, 2]))
    scores = scorer.scores()
    pq_disc = (2 / 3) / (1 + 0.5)  # one right, one wrongly found
    assert scores["pq"] == pytest.approx(100 * (1 + pq_disc + 0) / 3, abs=0.5)
    assert scores["sq"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3, abs=0.5)
    assert scores["rq"] == pytest.approx(100 * (1 + 1 / 1.5 + 0) / 3, abs=0.5)
    assert 0 < scores["miou"] < 100


def test_pq_forgives_what_is_found_in_void_and_crowds():
    data = make_data("panoptic", [])
    for void, crowd in ((RIGHT, None), (None, [False, True])):
        scorer = PanopticScorer(data, CPU)
        masks, labels = ([LEFT], [0]) if crowd is None else ([LEFT, RIGHT], [0, 1])
        scorer.add(outputs([LEFT, RIGHT], [0, 2], 3), sample(masks, labels, crowd=crowd, void=void))
        assert scorer.scores()["pq"] == pytest.approx(100)


def test_what_is_not_found_is_missed_by_pq():
    data = make_data("panoptic", [])
    scorer = PanopticScorer(data, CPU)
    scorer.add(outputs([LEFT], [0], 3), sample([LEFT, RIGHT], [0, 1]))  # the right half is predicted to be nothing
    assert scorer.scores()["pq"] == pytest.approx(50) and scorer.scores()["rq"] == pytest.approx(50)


def test_stuff_in_two_pieces_is_one_segment():
    data = make_data("panoptic", [])
    scorer = PanopticScorer(data, CPU)
    scorer.add(outputs([LEFT, RIGHT], [0, 0], 3), sample([LEFT | RIGHT], [0]))
    assert scorer.scores()["pq"] == pytest.approx(100)
