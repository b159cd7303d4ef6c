"""Top-1 and top-5 accuracy against a sort, with ties, unknown classes and scores that are no numbers."""

import math

import pytest
import torch

from evaluation.top_accuracies import places_of_true_class, positions_among, top_accuracies


def test_places_are_those_of_a_sort():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(4, (200, 9), generator=generator).float()  # with many ties
    true = torch.randint(9, (200,), generator=generator)
    expected = [
        sorted(range(9), key=lambda number: (-row[number], number)).index(own)
        for row, own in zip(scores.tolist(), true.tolist(), strict=True)
    ]
    places = places_of_true_class(scores, true)
    assert places.tolist() == expected
    counted = {"top1": 100 * expected.count(0) / 200, "top5": 100 * sum(place < 5 for place in expected) / 200}
    assert top_accuracies(places, 9) == counted and counted["top1"] < counted["top5"] < 100


@pytest.mark.parametrize("broken", [math.nan, -math.inf, math.inf])
def test_a_score_that_is_no_number_is_never_right(broken):
    assert places_of_true_class(torch.full((1, 7), broken), torch.tensor([0])).tolist() == [7]


def test_an_unknown_class_comes_behind_all():
    assert positions_among(torch.tensor([2, 5, 9]), torch.tensor([9, 2, 3, 10, -1, 5])).tolist() == [2, 0, -1, -1, -1, 1]
    places = places_of_true_class(torch.zeros(2, 3), torch.tensor([-1, 2]))
    assert places.tolist() == [3, 2]


def test_the_five_best_of_five_classes_tell_nothing():
    assert top_accuracies(torch.tensor([0, 1]), 5) == {"top1": 50.0}
    assert top_accuracies(torch.tensor([0, 5]), 6) == {"top1": 50.0, "top5": 50.0}
