"""Properties that the scores of every pair of masks must have; random small masks are searched for exceptions."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn.metrics import adjusted_rand_score

from evaluation.metrics import contingency
from evaluation.metrics.contingency import (
    adjusted_rand_index,
    contingency_table,
    image_scores,
    many_to_one_miou,
    one_to_one_miou,
)

IGNORED = 255
SEGMENTS, REGIONS = 4, 3
searched = settings(deadline=None, max_examples=100)


@st.composite
def mask_pairs(draw, labels=(*range(REGIONS), IGNORED)):
    """A predicted and a true mask of up to 8 x 8 pixels."""
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=8))
    predicted = draw(arrays(np.int64, shape, elements=st.integers(0, SEGMENTS - 1)))
    return predicted, draw(arrays(np.int64, shape, elements=st.sampled_from(labels)))


def pixel_sets(mask, counted):
    """The set of (row, column) of every label."""
    sets = {}
    for place in itertools.product(*map(range, mask.shape)):
        if counted[place]:
            sets.setdefault(int(mask[place]), set()).add(place)
    return sets


def iou(first, second):
    return Fraction(len(first & second), len(first | second))


def percent_mean(ious, foreground):
    kept = [score for label, score in ious.items() if label != 0 or not foreground]
    return float(100 * sum(kept) / len(kept)) if kept else math.nan


def literal_many_to_one(segments, regions, foreground):
    unions = {label: set() for label in regions}
    for pixels in segments.values():
        unions[max(regions, key=lambda label: (len(pixels & regions[label]), -label))] |= pixels
    return percent_mean({label: iou(unions[label], regions[label]) for label in regions}, foreground)


def literal_one_to_one(segments, regions, foreground):
    """Every way to give each region its own segment or none, in fractions; ties: the highest IoU of the background."""
    choices = []
    for choice in itertools.permutations([*segments, *[None] * len(regions)], len(regions)):
        pairs = zip(regions, choice, strict=True)
        choices.append({label: iou(segments[one], regions[label]) if one is not None else Fraction(0) for label, one in pairs})
    return percent_mean(max(choices, key=lambda ious: (sum(ious.values()), ious.get(0, 0))), foreground)


def literal_ari(segments, regions, foreground):
    """Pair by pair of the pixels."""
    places = [(place, label) for label, pixels in regions.items() for place in pixels if label != 0 or not foreground]
    segment_of = {place: segment for segment, pixels in segments.items() for place in pixels}
    a = b = c = d = 0
    for (first, first_label), (second, second_label) in itertools.combinations(places, 2):
        together = segment_of[first] == segment_of[second]
        a += together and first_label == second_label
        b += not together and first_label == second_label
        c += together and first_label != second_label
        d += not together and first_label != second_label
    if not places:
        return math.nan
    return 100.0 if b == c == 0 else float(Fraction(200 * (a * d - b * c), (a + b) * (b + d) + (a + c) * (c + d)))


LITERAL = {"m2o_miou": literal_many_to_one, "o2o_miou": literal_one_to_one, "ari": literal_ari}


@searched
@given(mask_pairs())
def test_all_scores_are_the_slow_reading_of_their_definitions(masks):
    predicted, true = masks
    counted = true != IGNORED
    segments, regions = pixel_sets(predicted, counted), pixel_sets(true, counted)
    scores = image_scores(contingency_table(predicted, true, IGNORED))
    for name, literal in LITERAL.items():
        for foreground, suffix in ((False, ""), (True, "_foreground")):
            expected = literal(segments, regions, foreground) if regions else math.nan
            assert scores.pop(name + suffix) == pytest.approx(expected, nan_ok=True), name + suffix
    assert not scores


@searched
@given(mask_pairs())
def test_ari_agrees_with_scikit_learn(masks):
    predicted, true = masks
    table = contingency_table(predicted, true, IGNORED)
    for foreground in (False, True):
        counted = (true != IGNORED) & (true != 0 if foreground else True)
        expected = 100 * adjusted_rand_score(true[counted], predicted[counted]) if counted.any() else math.nan
        assert adjusted_rand_index(table, foreground) == pytest.approx(expected, nan_ok=True)


@searched
@given(mask_pairs(), st.permutations(range(SEGMENTS)))
def test_numbers_of_segments_carry_no_meaning(masks, numbers):
    predicted, true = masks
    expected = image_scores(contingency_table(predicted, true, IGNORED))
    renumbered = image_scores(contingency_table(np.array(numbers)[predicted], true, IGNORED))
    assert renumbered == pytest.approx(expected, nan_ok=True)


@searched
@given(mask_pairs(labels=range(REGIONS)), st.permutations(range(1, REGIONS)))
def test_labels_other_than_the_background_carry_no_meaning_except_in_ties(masks, labels):
    predicted, true = masks
    table = contingency_table(predicted, true)
    expected = image_scores(table)
    renamed = image_scores(contingency_table(predicted, np.array([0, *labels])[true]))
    if ((table.counts == table.counts.max(axis=1, keepdims=True)).sum(axis=1) > 1).any():
        for name in ("m2o_miou", "m2o_miou_foreground"):  # ties go to the lowest label, which may now be another
            expected.pop(name), renamed.pop(name)
    assert renamed == pytest.approx(expected, nan_ok=True)


@searched
@given(mask_pairs(), st.randoms(use_true_random=False))
def test_where_pixels_lie_is_of_no_consequence(masks, random):
    predicted, true = masks
    order = list(range(true.size))
    random.shuffle(order)
    moved = (mask.ravel()[order].reshape(1, -1) for mask in masks)
    assert image_scores(contingency_table(*moved, IGNORED)) == pytest.approx(
        image_scores(contingency_table(predicted, true, IGNORED)), nan_ok=True
    )


@searched
@given(mask_pairs())
def test_ignored_pixels_are_as_if_cut_out(masks):
    predicted, true = masks
    kept = true != IGNORED
    assume(kept.any())
    expected = image_scores(contingency_table(predicted[kept][None], true[kept][None]))
    assert image_scores(contingency_table(predicted, true, IGNORED)) == pytest.approx(expected, nan_ok=True)
    signed = np.where(kept, true, -1)
    assert image_scores(contingency_table(predicted, signed, -1)) == pytest.approx(expected, nan_ok=True)


@searched
@given(mask_pairs())
def test_a_perfect_prediction_scores_100_wherever_a_score_is_defined(masks):
    _, true = masks
    labels = set(true.flat) - {IGNORED}
    for name, score in image_scores(contingency_table(true + 3, true, IGNORED)).items():
        defined = labels - {0} if name.endswith("foreground") else labels
        assert score == 100 if defined else math.isnan(score), name


@searched
@given(mask_pairs())
def test_all_scores_stay_within_their_bounds(masks):
    for name, score in image_scores(contingency_table(*masks, IGNORED)).items():
        assert math.isnan(score) or (-100 if name.startswith("ari") else 0) <= score <= 100, name


@searched
@given(mask_pairs(labels=range(REGIONS)))
def test_one_segment_scores_the_share_of_the_largest_region(masks):
    _, true = masks
    table = contingency_table(np.zeros_like(true), true)
    expected = 100 * table.counts.max() / true.size / table.true_labels.size
    assert many_to_one_miou(table) == one_to_one_miou(table) == pytest.approx(expected)
    assert adjusted_rand_index(table) == (100 if table.true_labels.size == 1 else 0)


@searched
@given(mask_pairs(labels=range(REGIONS)))
def test_one_pixel_segments_score_100_many_to_one_and_one_pixel_of_each_region_one_to_one(masks):
    _, true = masks
    table = contingency_table(np.arange(true.size).reshape(true.shape), true)
    assert many_to_one_miou(table) == 100
    assert one_to_one_miou(table) == pytest.approx(100 * np.mean(1 / table.counts.sum(axis=0)))
    assert adjusted_rand_index(table) == (100 if np.bincount(true.flat).max() == 1 else 0)


@searched
@given(mask_pairs(), st.integers(0, SEGMENTS - 1))
def test_many_to_one_never_falls_when_a_segment_is_split_into_its_intersections(masks, segment):
    predicted, true = masks
    split = np.where(predicted == segment, SEGMENTS + true, predicted)
    before, after = (contingency_table(mask, true, IGNORED) for mask in (predicted, split))
    for foreground in (False, True):
        first, second = many_to_one_miou(before, foreground), many_to_one_miou(after, foreground)
        assert second >= first - 1e-9 or math.isnan(first)


def test_many_to_one_can_fall_when_a_part_of_a_segment_is_cut_off():
    true = np.array([[1, 1, 1, *[0] * 12]])
    whole = np.array([[5, 5, 5, 5, 5, *[6] * 10]])  # 3 of region 1 and 2 of the background; the rest of the background
    part_cut_off = np.array([[5, 7, 7, 7, 7, *[6] * 10]])  # segment 7: 2 of each, by the tie rule to the background
    before, after = (many_to_one_miou(contingency_table(mask, true)) for mask in (whole, part_cut_off))
    assert before == pytest.approx(100 * (10 / 12 + 3 / 5) / 2)
    assert after == pytest.approx(100 * (12 / 14 + 1 / 3) / 2)
    assert after < before


@pytest.mark.parametrize("numbers", [[0, 1], [1, 0]])
def test_ties_of_the_one_to_one_matching_go_to_the_background_in_any_order_of_segments(numbers):
    # Two segments with 2 and 1 pixels in each of two equal regions: IoU 2/5 and 1/4 with both of them, so the sum is
    # the same whichever is the background's.
    predicted = np.array(numbers)[np.array([[0, 0, 1, 0, 0, 1]])]
    table = contingency_table(predicted, np.array([[0, 0, 0, 1, 1, 1]]))
    assert one_to_one_miou(table) == pytest.approx(100 * (2 / 5 + 1 / 4) / 2)
    assert one_to_one_miou(table, foreground=True) == pytest.approx(100 / 4)


@pytest.mark.parametrize("true", [[[0, 0, 1, 1]], [[1, 1, 0, 0]]])
def test_a_single_segment_between_two_equal_regions_goes_to_the_background(true):
    table = contingency_table(np.zeros((1, 4), int), np.array(true))
    assert one_to_one_miou(table) == many_to_one_miou(table) == 25
    assert one_to_one_miou(table, foreground=True) == many_to_one_miou(table, foreground=True) == 0


@searched
@given(mask_pairs())
def test_large_ids_give_the_same_table(masks):
    predicted, true = masks
    small = contingency_table(predicted, true, IGNORED)
    for largest in (0, 10):  # every table, and those above 10 entries, by sorting runs
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(contingency, "LARGEST_DENSE_TABLE", largest)
            table = contingency_table(predicted, true, IGNORED)
        assert [part.tolist() for part in table] == [part.tolist() for part in small]
        assert {part.dtype for part in table} == {np.dtype(np.int64)}
