"""The scores against slow, literal versions of their definitions, scikit-learn, and cases solved by hand."""

import itertools
import math
import subprocess
import sys
import time
from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from evaluation.metrics.contingency import (
    adjusted_rand_index,
    contingency_table,
    image_scores,
    many_to_one_miou,
    mean_over_images,
    one_to_one_miou,
)

METRICS = Path(__file__).resolve().parents[2] / "evaluation" / "metrics"
SCORES = {"m2o_miou": many_to_one_miou, "o2o_miou": one_to_one_miou, "ari": adjusted_rand_index}


def random_masks(seed, height=7, width=9, segments=5, regions=4):
    generator = np.random.default_rng(seed)
    return generator.integers(0, segments, (height, width)), generator.integers(0, regions, (height, width))


def pixel_iou(first, second):
    return (first & second).sum() / (first | second).sum()


def literal_many_to_one(predicted, true, foreground, ignore_label=None):
    """The docstring's sentence, pixel set by pixel set."""
    counted = np.ones(true.shape, bool) if ignore_label is None else true != ignore_label
    labels = sorted(set(true[counted].tolist()))
    unions = {label: np.zeros(true.shape, bool) for label in labels}
    for segment in set(predicted[counted].tolist()):
        pixels = (predicted == segment) & counted
        best = max(labels, key=lambda label: ((pixels & (true == label)).sum(), -label))
        unions[best] |= pixels
    ious = [pixel_iou(unions[label], true == label) for label in labels if label != 0 or not foreground]
    return 100 * np.mean(ious) if ious else math.nan


def literal_one_to_one(predicted, true):
    """The best of all ways to give each region its own segment or none."""
    labels, segments = sorted(set(true.flat)), sorted(set(predicted.flat))
    ious = [[pixel_iou(predicted == segment, true == label) for segment in segments] for label in labels]
    columns = [*range(len(segments)), *[None] * len(labels)]
    totals = (
        sum(0 if column is None else ious[row][column] for row, column in enumerate(choice))
        for choice in set(itertools.permutations(columns, len(labels)))
    )
    return 100 * max(totals) / len(labels)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("foreground", [False, True])
def test_many_to_one_is_the_literal_definition(seed, foreground):
    predicted, true = random_masks(seed)
    score = many_to_one_miou(contingency_table(predicted, true), foreground)
    assert score == pytest.approx(literal_many_to_one(predicted, true, foreground))


@pytest.mark.parametrize("seed", range(8))
def test_one_to_one_is_the_best_of_all_matchings(seed):
    predicted, true = random_masks(seed, segments=3 + seed % 3, regions=3)
    assert one_to_one_miou(contingency_table(predicted, true)) == pytest.approx(literal_one_to_one(predicted, true))


@pytest.mark.parametrize("seed", range(20))
def test_ari_agrees_with_scikit_learn(seed):
    predicted, true = random_masks(seed)
    table = contingency_table(predicted, true)
    assert adjusted_rand_index(table) == pytest.approx(100 * adjusted_rand_score(true.ravel(), predicted.ravel()))
    kept = true != 0
    expected = 100 * adjusted_rand_score(true[kept], predicted[kept])
    assert adjusted_rand_index(table, foreground=True) == pytest.approx(expected)


def test_ari_does_not_overflow_on_large_images():
    predicted, true = np.indices((2048, 2048)) // 256
    predicted[:, :100] = 9
    expected = 100 * adjusted_rand_score(true.ravel(), predicted.ravel())
    assert adjusted_rand_index(contingency_table(predicted, true)) == pytest.approx(expected)


def test_a_case_solved_by_hand():
    true = np.array([[0, 0, 1, 1], [0, 0, 1, 2]])
    predicted = np.array([[5, 5, 7, 7], [5, 8, 8, 7]])
    # Segment 5 -> 0, 7 -> 1 (2 pixels of 3), 8 -> 0 by the tie rule; region 2 gets nothing.
    # IoU 0: {5, 8} has 5 pixels, 4 shared, union 5. IoU 1: 7 has 3 pixels, 2 shared, union 4. IoU 2: 0.
    table = contingency_table(predicted, true)
    assert table.counts.tolist() == [[3, 0, 0], [0, 2, 1], [1, 1, 0]]
    assert table.predicted_ids.tolist() == [5, 7, 8] and table.true_labels.tolist() == [0, 1, 2]
    assert many_to_one_miou(table) == pytest.approx(100 * (4 / 5 + 2 / 4 + 0) / 3)
    assert many_to_one_miou(table, foreground=True) == pytest.approx(100 * (2 / 4 + 0) / 2)
    # One to one: 5-0 (3/4), 7-2 (1/3), 8-1 (1/4) sum to more than 5-0 (3/4), 7-1 (2/4) and nothing for region 2.
    assert one_to_one_miou(table) == pytest.approx(100 * (3 / 4 + 1 / 4 + 1 / 3) / 3)
    assert one_to_one_miou(table, foreground=True) == pytest.approx(100 * (1 / 4 + 1 / 3) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_numbers_of_segments_carry_no_meaning(seed):
    predicted, true = random_masks(seed)
    renumbered = np.random.default_rng(seed).permutation(100)[predicted]
    expected = image_scores(contingency_table(predicted, true))
    assert image_scores(contingency_table(renumbered, true)) == pytest.approx(expected)


def test_a_perfect_match_scores_100_everywhere():
    _, true = random_masks(0)
    scores = image_scores(contingency_table(true + 3, true))
    assert scores == dict.fromkeys(scores, 100.0)


def test_one_segment_for_everything():
    true = np.zeros((4, 4), int)
    true[0] = 1  # 4 of 16 pixels
    scores = image_scores(contingency_table(np.zeros_like(true), true))
    assert scores["m2o_miou"] == pytest.approx(100 * (12 / 16) / 2)  # the background takes all, region 1 scores 0
    assert scores["m2o_miou_foreground"] == 0
    assert scores["ari"] == 0
    assert scores["ari_foreground"] == 100  # the documented triviality of FG-ARI on a single foreground region


def test_splitting_segments_raises_many_to_one_to_100_and_lowers_one_to_one():
    _, true = random_masks(1)
    each_pixel_its_own = np.arange(true.size).reshape(true.shape)
    table = contingency_table(each_pixel_its_own, true)
    assert many_to_one_miou(table) == 100
    assert one_to_one_miou(table) < 20


def test_ignored_pixels_count_nowhere():
    predicted, true = random_masks(2)
    true[:2] = 255
    table = contingency_table(predicted, true.astype(np.uint8), ignore_label=255)
    expected = image_scores(contingency_table(predicted[2:], true[2:]))
    assert image_scores(table) == pytest.approx(expected)
    signed = np.where(true == 255, -1, true)
    assert image_scores(contingency_table(predicted, signed, ignore_label=-1)) == pytest.approx(expected)
    assert many_to_one_miou(table) == pytest.approx(literal_many_to_one(predicted, true, False, ignore_label=255))


def test_background_only_has_no_foreground_score():
    scores = image_scores(contingency_table(np.arange(6).reshape(2, 3), np.zeros((2, 3), int)))
    undefined = {name for name, score in scores.items() if math.isnan(score)}
    assert undefined == {"m2o_miou_foreground", "o2o_miou_foreground", "ari_foreground"}
    all_ignored = image_scores(contingency_table(np.zeros((2, 3), int), np.full((2, 3), 255), ignore_label=255))
    assert all(math.isnan(score) for score in all_ignored.values())


def test_mean_over_images_leaves_out_undefined_scores():
    assert mean_over_images([50.0, math.nan, 100.0]) == (75.0, 2)
    mean, count = mean_over_images([math.nan])
    assert math.isnan(mean) and count == 0


def test_huge_ids_give_the_same_table():
    predicted, true = random_masks(3)
    small, huge = contingency_table(predicted, true), contingency_table(predicted * 10**9 + 7, true * 10**7)
    assert np.array_equal(small.counts, huge.counts)
    assert huge.predicted_ids.tolist() == [id * 10**9 + 7 for id in small.predicted_ids.tolist()]
    assert huge.true_labels.tolist() == [label * 10**7 for label in small.true_labels.tolist()]


def test_a_512_pair_takes_less_than_10_ms():
    predicted, true = random_masks(4, 512, 512, segments=192, regions=134)
    durations_s = []
    for _ in range(5):
        start = time.perf_counter()
        contingency_table(predicted, true.astype(np.uint8))
        durations_s.append(time.perf_counter() - start)
    assert min(durations_s) < 0.010


@pytest.mark.parametrize(
    "predicted, true, message",
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"predicted \(2, 3\), true \(3, 2\).*nearest"),
        (np.zeros((2, 3)), np.zeros((2, 3), int), "predicted mask has dtype float64"),
        (np.zeros((2, 3), int), np.zeros((2, 3), np.float32), "true mask has dtype float32"),
        (np.zeros((2, 3), int), np.full((2, 3), -1), "true mask holds the id -1.*ignore_label"),
        (np.full((2, 3), -2), np.zeros((2, 3), int), "predicted mask holds the id -2"),
        (np.zeros((2, 3), int), np.zeros((2, 3, 3), int), r"true mask has shape \(2, 3, 3\)"),
    ],
)
def test_what_is_no_label_map_is_refused(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        contingency_table(predicted, true)


def test_only_the_ignore_label_may_be_negative():
    with pytest.raises(ValueError, match="holds the id -2"):
        contingency_table(np.zeros((1, 2), int), np.array([[-1, -2]]), ignore_label=-1)


def test_the_core_does_not_need_torch():
    code = "import sys, evaluation.metrics.contingency; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=METRICS.parents[1])


@pytest.mark.parametrize("name", SCORES)
def test_the_evaluate_module_loads_by_path_and_agrees(name, tmp_path):
    metric = evaluate.load(str(METRICS / name), cache_dir=str(tmp_path))
    masks = [random_masks(0), random_masks(1, height=3, width=5), (np.array([[0, 1]]), np.array([[0, 255]]))]
    predictions, references = zip(*masks, strict=True)
    result = metric.compute(predictions=predictions, references=references, ignore_label=255)
    tables = [contingency_table(*pair, ignore_label=255) for pair in masks]
    mean, count = mean_over_images(SCORES[name](table) for table in tables)
    foreground_mean, foreground_count = mean_over_images(SCORES[name](table, foreground=True) for table in tables)
    assert result == {
        name: pytest.approx(mean),
        f"{name}_foreground": pytest.approx(foreground_mean),
        "num_images": count,
        "num_foreground_images": foreground_count,
    }
    assert (count, foreground_count) == (3, 2)
    assert metric.description.startswith(SCORES[name].__doc__.strip()[:20])


def test_the_evaluate_module_refuses_floats_that_arrow_would_truncate(tmp_path):
    metric = evaluate.load(str(METRICS / "m2o_miou"), cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="prediction mask 1 has dtype float64"):
        metric.compute(predictions=[[[1]], [[1.5]]], references=[[[1]], [[1]]])
    with pytest.raises(ValueError, match="reference mask 0 has dtype float64"):
        metric.add(prediction=np.array([[1]]), reference=np.array([[1.0]]))
