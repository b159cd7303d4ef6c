"""What is shown and watched in every training."""

import math
from types import SimpleNamespace

import torch

from training.progress import NonFiniteWatch


def figures_of(gradient_norm):
    norm = torch.tensor(gradient_norm)
    return SimpleNamespace(loss=torch.tensor(5.0), gradient_norm=norm, is_finite=bool(norm.isfinite()))


def test_steps_without_a_finite_gradient_are_told_of_and_lost_after_some_in_a_row():
    watch, nan = NonFiniteWatch(patience=3), math.nan
    said = [watch.update(step, figures_of(norm)) for step, norm in enumerate([1.0, nan, nan, 2.0, math.inf, nan])]
    assert [bool(message) for message in said] == [False, True, False, False, True, False] and not watch.is_lost
    assert "step 1: the loss is 5.0 and the gradient norm nan; the step was skipped, 1 in a row" in said[1]
    assert "3 in a row" in watch.update(6, figures_of(nan)) and watch.is_lost
