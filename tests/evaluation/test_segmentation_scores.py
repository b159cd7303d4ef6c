"""Scores over a data set against counting by hand, in the cases where metrics differ: absent and ignored labels."""

import numpy as np
import pytest
import torch

from evaluation.segmentation_heads import IGNORED
from evaluation.segmentation_scores import SegmentationScores, Summary, over_seeds


def counted(pairs, num_classes):
    """IoU of each class by hand, nan where nobody has it, and the share of right pixels."""
    predicted, true = (np.concatenate([one[i].numpy().ravel() for one in pairs]) for i in range(2))
    counts = true != IGNORED
    predicted, true = predicted[counts], true[counts]
    iou = []
    for k in range(num_classes):
        union = np.sum((predicted == k) | (true == k))
        iou.append(np.sum((predicted == k) & (true == k)) / union if union else np.nan)
    return np.array(iou), np.mean(predicted == true)


def test_scores_are_the_hand_count():
    """Class 4 is nowhere, 3 is predicted only, 2 is true only; pixels of images of different sizes count alike."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for height, width in ((5, 7), (40, 30), (8, 8)):
        true = torch.randint(3, (height, width), generator=generator)
        predicted = torch.where(torch.rand(height, width, generator=generator) < 0.6, true, 1).clamp(max=1)
        predicted[0, :2] = 3
        true[-1, -3:] = IGNORED
        predicted[-1, -3:] = 4  # under ignored pixels, so nowhere
        pairs.append((predicted, true))
    scores = SegmentationScores(5)
    for pair in pairs:
        scores.add(*pair)
    summary = scores.summary([10, 11, 12, 13, 14])
    iou, accuracy = counted(pairs, 5)
    assert np.isnan(iou[4]) and iou[3] == iou[2] == 0 and 0.2 < iou[0] < 1
    assert summary.miou == pytest.approx(100 * np.nanmean(iou), rel=1e-5)
    assert summary.miou != pytest.approx(100 * np.nan_to_num(iou).mean(), rel=0.05)  # absent classes are no zeros
    assert summary.pixel_accuracy == pytest.approx(100 * accuracy, rel=1e-5)
    assert list(summary.iou) == [10, 11, 12, 13, 14] and summary.iou[14] is None
    assert [summary.iou[label] for label in (10, 11, 12, 13)] == pytest.approx(100 * iou[:4], rel=1e-5)


def test_it_is_no_mean_over_images():
    scores = SegmentationScores(2)
    scores.add(torch.zeros(10, 10, dtype=torch.int64), torch.zeros(10, 10, dtype=torch.int64))
    scores.add(torch.zeros(1, 10, dtype=torch.int64), torch.ones(1, 10, dtype=torch.int64))
    summary = scores.summary([0, 1])
    assert summary.iou == {0: pytest.approx(100 * 100 / 110), 1: 0.0}
    assert summary.pixel_accuracy == pytest.approx(100 * 100 / 110)


def test_ignored_pixels_count_nowhere():
    true = torch.tensor([[0, 0, 1, IGNORED, IGNORED]])
    one, other = SegmentationScores(3), SegmentationScores(3)
    one.add(torch.tensor([[0, 1, 1, 0, 0]]), true)
    other.add(torch.tensor([[0, 1, 1, 2, 1]]), true)
    assert one.summary([0, 1, 2]) == other.summary([0, 1, 2])
    assert one.summary([0, 1, 2]).iou == {0: pytest.approx(50), 1: pytest.approx(50), 2: None}


def test_without_a_pixel_there_is_no_score():
    scores = SegmentationScores(2)
    scores.add(torch.zeros(3, 3, dtype=torch.int64), torch.full((3, 3), IGNORED))
    with pytest.raises(ValueError, match="All pixels are ignored"):
        scores.summary([0, 1])


def test_seeds_are_averaged():
    first, second = Summary(10, 50, {0: 20.0, 1: 0.0, 2: None}), Summary(14, 52, {0: 22.0, 1: None, 2: None})
    scores, iou = over_seeds([first, second])
    assert scores == pytest.approx({"miou": 12, "miou_std": 8**0.5, "pixel_accuracy": 51, "pixel_accuracy_std": 2**0.5})
    assert iou == {0: 21, 1: 0, 2: None}
    assert over_seeds([first])[0] == {"miou": 10, "pixel_accuracy": 50}
