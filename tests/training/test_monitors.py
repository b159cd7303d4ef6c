"""What is watched while training."""

import math

import pytest
import torch

from training.monitors import CollapseWatch
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
