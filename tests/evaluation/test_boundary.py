"""The boundary F-score against the slow reading of its definition, and cases solved by hand."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from evaluation.metrics.boundary import boundary_pixels, boundary_scores, boundary_tolerance_px

IGNORED = 255
SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=8)


@st.composite
def mask_pairs(draw, labels=(0, 1, 2, IGNORED)):
    shape = draw(SHAPES)
    return draw(arrays(np.int64, shape, elements=st.integers(0, 3))), draw(
        arrays(np.int64, shape, elements=st.sampled_from(labels))
    )


def literal_boundary(label_map, counted):
    height, width = label_map.shape
    boundary = set()
    for row in range(height):
        for column in range(width):
            for other in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                inside = 0 <= other[0] < height and 0 <= other[1] < width
                if inside and counted[row, column] and counted[other] and label_map[row, column] != label_map[other]:
                    boundary.add((row, column))
    return boundary


def literal_scores(predicted, true, ignore_label, tolerance_share):
    counted = true != ignore_label
    if not counted.any():
        return math.nan, math.nan, math.nan
    tolerance = max(1, tolerance_share * math.sqrt(true.shape[0] ** 2 + true.shape[1] ** 2))
    first, second = literal_boundary(predicted, counted), literal_boundary(true, counted)

    def share(pixels, others):
        found = sum(any(math.dist(pixel, other) <= tolerance for other in others) for pixel in pixels)
        return 100 * found / len(pixels) if pixels else math.nan

    precision, recall = share(first, second), share(second, first)
    if not first and not second:
        return 100.0, precision, recall
    if not first or not second or precision + recall == 0:
        return 0.0, precision, recall
    return 2 * precision * recall / (precision + recall), precision, recall


@settings(deadline=None, max_examples=100)
@given(mask_pairs(), st.sampled_from([0.0075, 0.19, 0.33]))
def test_the_scores_are_the_literal_definition(masks, tolerance_share):
    scores = boundary_scores(*masks, IGNORED, tolerance_share)
    assert scores == pytest.approx(literal_scores(*masks, IGNORED, tolerance_share), nan_ok=True)


@settings(deadline=None, max_examples=100)
@given(mask_pairs(), st.permutations(range(4)))
def test_neither_numbers_nor_flips_matter(masks, numbers):
    predicted, true = masks
    expected = boundary_scores(predicted, true, IGNORED)
    turned = [
        boundary_scores(np.array(numbers)[predicted], true, IGNORED),
        boundary_scores(predicted[::-1], true[::-1], IGNORED),
        boundary_scores(predicted[:, ::-1], true[:, ::-1], IGNORED),
        boundary_scores(predicted.T, true.T, IGNORED),
    ]
    assert turned == [pytest.approx(expected, nan_ok=True)] * 4


@settings(deadline=None, max_examples=50)
@given(mask_pairs(labels=(0, 1, 2)))
def test_changing_places_swaps_precision_and_recall(masks):
    predicted, true = masks
    there, back = boundary_scores(predicted, true), boundary_scores(true, predicted)
    assert (back.f, back.precision, back.recall) == pytest.approx((there.f, there.recall, there.precision), nan_ok=True)


@settings(deadline=None, max_examples=50)
@given(mask_pairs())
def test_a_perfect_prediction_scores_100(masks):
    _, true = masks
    scores = boundary_scores(np.where(true == IGNORED, 7, true), true, IGNORED)
    if (true == IGNORED).all():
        assert math.isnan(scores.f)
    else:
        assert scores.f == 100 and all(math.isnan(score) or score == 100 for score in scores)


def halves(border, size=8):
    return (np.indices((size, size))[1] >= border).astype(int)


def test_a_border_within_the_tolerance_is_found_and_one_beyond_is_not():
    # Columns 3 | 4 against 4 | 5: at 1 px the inner and the outer columns are all within reach.
    assert boundary_scores(halves(5), halves(4)) == (100, 100, 100)
    # Columns 3 | 4 against 5 | 6: columns 4 and 5 are 1 px apart, 3 and 6 are 2 px or more from any of the other.
    assert boundary_scores(halves(6), halves(4)) == (50, 50, 50)
    assert boundary_scores(halves(7), halves(4)) == (0, 0, 0)
    assert boundary_scores(halves(7), halves(4), tolerance_share=0.3) == (100, 100, 100)  # 3.4 px


def test_too_many_borders_cost_precision_only():
    scores = boundary_scores(np.arange(64).reshape(8, 8), halves(4))
    assert scores.recall == 100
    assert scores.precision == 50  # all 64 pixels are boundary, columns 2 to 5 lie within 1 px of columns 3 and 4
    assert scores.f == pytest.approx(200 / 3)


def test_one_segment_and_one_region():
    one = np.zeros((8, 8), int)
    assert boundary_scores(one, one) == pytest.approx((100, math.nan, math.nan), nan_ok=True)
    assert boundary_scores(one, halves(4)) == pytest.approx((0, math.nan, 0), nan_ok=True)
    assert boundary_scores(halves(4), one) == pytest.approx((0, 0, math.nan), nan_ok=True)
    assert boundary_scores([[3]], [[0]]).f == 100


def test_an_ignored_strip_hides_the_borders_on_it_and_around_it():
    true = halves(4)
    true[:, 3:5] = IGNORED
    assert boundary_scores(halves(4), true, IGNORED).f == 100  # no border is left in either mask
    assert boundary_scores(halves(3), true, IGNORED).f == 100  # between column 2 and ignored column 3
    assert boundary_scores(halves(2), true, IGNORED) == pytest.approx((0, 0, math.nan), nan_ok=True)
    assert boundary_scores(halves(4), true).recall == 100  # without an ignore label the strip is a region


def test_both_sides_of_a_border_are_boundary():
    expected = [[0, 1, 1], [1, 1, 1], [1, 1, 0]]
    label_map = np.array([[0, 0, 1], [0, 1, 2], [3, 2, 2]])
    label_map[1, 0], expected[1][0] = 0, 1
    assert boundary_pixels(label_map, np.ones((3, 3), bool)).astype(int).tolist() == expected


def test_the_tolerance_is_a_share_of_the_diagonal_but_at_least_one_pixel():
    assert boundary_tolerance_px((8, 8)) == 1
    assert boundary_tolerance_px((300, 400)) == 3.75
    with pytest.raises(ValueError, match=r"tolerance_share=2 .* from 0 to 1"):
        boundary_scores(halves(4), halves(4), tolerance_share=2)


@pytest.mark.parametrize(
    "predicted, true, message",
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"predicted \(2, 3\), true \(3, 2\).*nearest"),
        (np.zeros((2, 3)), np.zeros((2, 3), int), "predicted mask has dtype float64"),
        (np.zeros((2, 3), int), np.full((2, 3), -1), "true mask holds the id -1.*ignore_label"),
    ],
)
def test_what_is_no_label_map_is_refused(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        boundary_scores(predicted, true)


def test_a_512_pair_takes_less_than_10_ms():
    rows, columns = np.indices((512, 512))
    predicted, true = (rows // 40) * 13 + columns // 40, (rows // 56) * 10 + columns // 56
    durations_s = []
    for _ in range(10):
        start = time.process_time()
        boundary_scores(predicted, true, IGNORED)
        durations_s.append(time.process_time() - start)
    assert min(durations_s) < 0.010
