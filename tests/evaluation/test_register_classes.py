"""Registers matched to the classes of a data set: against one table over all pixels, and a case solved by hand."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn.metrics.cluster import contingency_matrix

from evaluation.metrics.contingency import contingency_table, image_scores
from evaluation.metrics.register_classes import (
    RegisterClasses,
    add_tables,
    many_to_one_accuracy,
    one_to_one_accuracy,
)

IGNORED = 255


@st.composite
def images(draw):
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=5))
    registers = draw(arrays(np.int64, shape, elements=st.sampled_from([0, 1, 5, 17])))
    return registers, draw(arrays(np.int64, shape, elements=st.sampled_from([0, 1, 2, 9, IGNORED])))


def count(pairs):
    classes = RegisterClasses()
    for pair in pairs:
        classes.add(*pair, ignore_label=IGNORED)
    return classes


def same_tables(first, second):
    return all(np.array_equal(one, other) and one.dtype == other.dtype for one, other in zip(first, second, strict=True))


@settings(deadline=None, max_examples=100)
@given(st.lists(images(), min_size=1, max_size=5))
def test_the_sum_over_images_is_the_table_of_all_pixels_in_one_image(pairs):
    registers, labels = (np.concatenate([pair[side].ravel() for pair in pairs])[None] for side in (0, 1))
    expected = contingency_table(registers, labels, IGNORED)
    classes = count(pairs)
    assert same_tables(classes.table, expected) and classes.images == len(pairs)
    kept = labels != IGNORED
    if kept.any():
        assert classes.table.counts.tolist() == contingency_matrix(registers[kept], labels[kept]).tolist()
    summary = classes.summary()
    for name, score in image_scores(expected).items():
        if not name.startswith("ari"):
            assert summary[f"dataset_{name}"] == pytest.approx(score, nan_ok=True)


@settings(deadline=None, max_examples=50)
@given(st.lists(images(), max_size=5), st.integers(0, 5))
def test_ranks_can_be_joined_in_any_order(pairs, cut):
    together, first, second = count(pairs), count(pairs[:cut]), count(pairs[cut:])
    assert same_tables(add_tables(first.table, second.table), add_tables(second.table, first.table))
    sent = pickle.loads(pickle.dumps(second))
    first.extend(sent)
    assert same_tables(first.table, together.table) and first.images == together.images
    assert same_tables(sent.table, second.table)


@settings(deadline=None, max_examples=100)
@given(images(), st.booleans())
def test_accuracy_is_the_share_of_pixels_with_the_matched_class(pair, foreground):
    registers, labels = pair
    classes = count([pair])
    counted = (labels != IGNORED) & (labels != 0 if foreground else True)
    majority = {match.register: match.label for match in classes.matches()}
    hits = [majority[register] == label for register, label in zip(registers[counted], labels[counted], strict=True)]
    expected = 100 * np.mean(hits) if hits else math.nan
    assert many_to_one_accuracy(classes.table, foreground) == pytest.approx(expected, nan_ok=True)
    if not foreground and hits:
        assert one_to_one_accuracy(classes.table) <= many_to_one_accuracy(classes.table)


def test_a_case_solved_by_hand():
    wheel, door = 3, 4
    classes = RegisterClasses()
    classes.add(np.array([[17, 17, 5, 0]]), np.array([[wheel, wheel, door, 0]], np.uint8))
    classes.add(np.array([[17, 8, 0, 0]]), np.array([[0, wheel, 0, IGNORED]], np.uint8), ignore_label=IGNORED)
    # 17: two pixels wheel, one background; 5: one door; 8: one wheel; 0: two background.
    assert classes.table.predicted_ids.tolist() == [0, 5, 8, 17] and classes.table.true_labels.tolist() == [0, 3, 4]
    assert classes.table.counts.tolist() == [[2, 0, 0], [0, 0, 1], [0, 1, 0], [1, 2, 0]]
    *_, wheel_register = classes.matches()
    assert [match[:3] for match in classes.matches()] == [(0, 0, 2), (5, door, 1), (8, wheel, 1), (17, wheel, 3)]
    assert wheel_register[3:] == pytest.approx((200 / 3, 200 / 3, 50))
    # Many to one: background 2/3, wheel {17, 8} 3/4, door 1. One to one: 17 is the wheel (2/4), 8 is left over.
    assert classes.summary() == pytest.approx(
        {
            "images": 2,
            "registers": 4,
            "classes": 3,
            "dataset_m2o_miou": 100 * (2 / 3 + 3 / 4 + 1) / 3,
            "dataset_m2o_miou_foreground": 100 * (3 / 4 + 1) / 2,
            "dataset_m2o_accuracy": 100 * 6 / 7,
            "dataset_m2o_accuracy_foreground": 100,
            "dataset_o2o_miou": 100 * (2 / 3 + 2 / 4 + 1) / 3,
            "dataset_o2o_miou_foreground": 100 * (2 / 4 + 1) / 2,
            "dataset_o2o_accuracy": 100 * 5 / 7,
            "dataset_o2o_accuracy_foreground": 100 * 3 / 4,
            # Of the wheel 17 has 2 of 3 pixels, of the door 5 has all.
            "part_share_top1": 100 * (2 / 3 + 1) / 2,
            "part_share_top3": 100,
            # The second mask on the first map: the wheel's pixel lies on 17.
            "part_share_top1_of_others": 100,
            "part_share_top3_of_others": 100,
        }
    )


def test_a_part_that_has_its_register_has_a_larger_share_than_on_maps_of_other_images():
    part, other = 4, 9
    images = [np.roll(np.array([[0, 0, part, part, other, other]]), shift) for shift in range(6)]
    steady, frequent, changing = RegisterClasses(), RegisterClasses(), RegisterClasses()
    for place, mask in enumerate(images * 6):
        steady.add(np.select([mask == part, mask == other], [1, 2], 3), mask)
        frequent.add(np.full(mask.shape, 7), mask)  # one register takes everything
        changing.add((np.select([mask == part, mask == other], [1, 2], 3) + place // 6) % 6, mask)
    of_steady, of_frequent, of_changing = (counted.summary() for counted in (steady, frequent, changing))
    assert of_steady["part_share_top1"] == 100 and of_steady["part_share_top1_of_others"] == pytest.approx(50, abs=3)
    assert of_frequent["part_share_top1"] == of_frequent["part_share_top1_of_others"] == 100
    assert of_changing["part_share_top1"] == pytest.approx(100 / 6) and of_changing["part_share_top3"] == pytest.approx(50)
    assert steady.of_others.counts.sum() == 35 * 6  # all images but the first, which has none before it


def test_the_map_of_another_image_is_laid_on_a_mask_of_another_size():
    classes = RegisterClasses()
    classes.add(np.array([[5, 6], [7, 8]]), np.zeros((2, 2), int))
    classes.add(np.zeros((4, 6), int), np.repeat([[0, 0, 0, 2, 2, 2]], 4, axis=0))
    assert classes.of_others.predicted_ids.tolist() == [5, 6, 7, 8]
    assert classes.of_others.counts.tolist() == [[6, 0], [0, 6], [6, 0], [0, 6]]


def test_registers_that_change_their_meaning_score_lower_than_in_each_image():
    mask = np.array([[0, 0, 1, 1]])
    steady, changing = RegisterClasses(), RegisterClasses()
    for label_map in (np.array([[2, 2, 3, 3]]), np.array([[3, 3, 2, 2]])):
        assert image_scores(contingency_table(label_map, mask))["m2o_miou"] == 100
        steady.add(np.array([[2, 2, 3, 3]]), mask)
        changing.add(label_map, mask)
    assert steady.summary()["dataset_m2o_miou"] == 100
    assert changing.summary()["dataset_m2o_accuracy"] == 50


def test_nothing_counted_gives_no_scores():
    classes = RegisterClasses()
    assert classes.matches() == []
    classes.add(np.zeros((2, 2), int), np.full((2, 2), IGNORED), IGNORED)
    summary = classes.summary()
    assert (summary.pop("images"), summary.pop("registers"), summary.pop("classes")) == (1, 0, 0)
    assert all(math.isnan(score) for score in summary.values())


def test_sums_are_exact_beyond_the_integers_of_a_float():
    large = contingency_table(np.array([[1]]), np.array([[1]]))
    large = large._replace(counts=np.array([[2**53]]))
    assert add_tables(large, contingency_table(np.array([[1]]), np.array([[1]]))).counts.item() == 2**53 + 1


def test_masks_of_different_sizes_are_refused_and_leave_the_sums_alone():
    classes = count([(np.zeros((2, 2), int), np.zeros((2, 2), int))])
    with pytest.raises(ValueError, match="differ in size"):
        classes.add(np.zeros((2, 3), int), np.zeros((2, 2), int))
    assert classes.images == 1 and classes.table.counts.tolist() == [[4]]
