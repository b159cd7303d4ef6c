"""What is watched while training."""

import math

import pytest
import torch

from training.monitors import CollapseWatch, StepFigures
from training.progress import NonFiniteWatch
from training.schedules import Schedule
from training.teacher_figures import teacher_entropies

UNIFORM = torch.full((2, 6, 8), 1 / 8)
ONE_PROTOTYPE = torch.eye(8)[0].expand(2, 6, 8)
ONE_EACH = torch.eye(8).reshape(2, 4, 8)


def entry_of(targets, step=1):
    return {"step": step, "ln_k": math.log(targets.shape[-1]), **teacher_entropies(targets)}


@pytest.mark.parametrize(
    "targets, which", [(UNIFORM, "uniform"), (ONE_PROTOTYPE, "the same prototype")], ids=["uniform", "one"]
)
def test_a_collapse_is_told_at_once_and_lost_after_some_lines_in_a_row(targets, which):
    watch = CollapseWatch(patience=3)
    said = [watch.update(entry_of(targets, step)) for step in (1, 2, 3)]
    assert which in said[0] and said[1] is None and "since step 1" in said[2]
    assert watch.is_lost


def test_a_teacher_that_recovers_is_not_lost():
    watch = CollapseWatch(patience=3)
    for step, targets in enumerate([UNIFORM, UNIFORM, ONE_EACH, UNIFORM, UNIFORM]):
        watch.update(entry_of(targets, step))
        assert not watch.is_lost


def test_health_and_the_early_hump_of_the_loss_say_nothing():
    watch = CollapseWatch(patience=1)
    for loss in (7.3, 9.2, 6.0):
        assert watch.update(entry_of(ONE_EACH) | {"loss": loss}) is None and not watch.is_lost


def test_no_patience_never_stops():
    watch = CollapseWatch(patience=0)
    assert watch.update(entry_of(UNIFORM)) and not any(watch.update(entry_of(UNIFORM)) for _ in range(50))
    assert not watch.is_lost


def figures_of(gradient_norm):
    norm = torch.tensor(gradient_norm)
    return StepFigures(torch.tensor(5.0), torch.zeros(()), norm, bool(norm.isfinite()), ONE_EACH, Schedule(0.1, 0.1, 0.9, 0.04))


def test_steps_without_a_finite_gradient_are_told_of_and_lost_after_some_in_a_row():
    watch, nan = NonFiniteWatch(patience=3), math.nan
    said = [watch.update(step, figures_of(norm)) for step, norm in enumerate([1.0, nan, nan, 2.0, math.inf, nan])]
    assert [bool(message) for message in said] == [False, True, False, False, True, False] and not watch.is_lost
    assert "step 1: the loss is 5.0 and the gradient norm nan; the step was skipped, 1 in a row" in said[1]
    assert "3 in a row" in watch.update(6, figures_of(nan)) and watch.is_lost
