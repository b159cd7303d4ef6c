"""Localisation curves against the slow, obvious loop over thresholds."""

import numpy as np
import pytest

from evaluation.metrics.localisation import curves, iou_at, pointing


@pytest.fixture
def places():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (40, 3)) / 5.0  # many equal ones
    shares = rng.choice([0.0, 0.25, 1.0], (40, 2), p=[0.6, 0.2, 0.2])
    return scores, np.column_stack([shares, np.zeros(40)])


def test_curves_are_those_of_all_thresholds(places):
    scores, shares = places
    found = curves(scores, shares)
    for entry in range(3):
        for part in range(2):
            tried, previous, area = {}, 0.0, 0.0
            for threshold in sorted(set(scores[:, entry]), reverse=True):
                chosen = scores[:, entry] >= threshold
                hits = shares[chosen, part].sum()
                tried[threshold] = hits / (chosen.sum() + shares[:, part].sum() - hits)
                area += (hits - previous) / shares[:, part].sum() * hits / chosen.sum()
                previous = hits
            assert found.iou[entry, part] == pytest.approx(max(tried.values()))
            assert tried[found.threshold[entry, part]] == pytest.approx(max(tried.values()))
            assert found.average_precision[entry, part] == pytest.approx(area)
            for threshold, iou in tried.items():
                assert iou_at(scores[:, entry], shares, threshold)[part] == pytest.approx(iou)
    assert np.isnan(found.iou[:, 2]).all() and np.isnan(found.average_precision[:, 2]).all()
    assert np.isnan(iou_at(scores[:, 0], shares, 0.5)[2])


def test_a_perfect_score_finds_all_and_a_threshold_above_all_finds_nothing():
    shares = np.array([[1.0], [0.0], [1.0], [0.0]])
    found = curves(shares, shares)
    assert found.iou[0, 0] == found.average_precision[0, 0] == found.threshold[0, 0] == 1
    assert iou_at(shares[:, 0], shares, 2.0)[0] == 0


def test_the_pointing_game_looks_at_each_images_peak():
    images = np.array([3, 3, 5, 5, 9, 9])
    scores = np.array([0.1, 0.9, 0.8, 0.2, 0.0, 1.0])
    shares = np.array([[1, 0], [0.5, 0], [0.4, 0], [1, 0], [0, 0], [0, 1]], dtype=float)
    assert pointing(scores, np.column_stack([shares, np.zeros(6)]), images).tolist()[:2] == [0.5, 1.0]
    assert np.isnan(pointing(scores, np.zeros((6, 1)), images)[0])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"scores \(3, 1\) and shares \(2, 1\)"):
        curves(np.zeros((3, 1)), np.zeros((2, 1)))
