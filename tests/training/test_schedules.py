"""Schedules at their ends, in the middle, and beside DINO's own table."""

import numpy as np
import pytest

from training.schedules import cosine, linear, warmup_cosine


def dino_table(peak, end, steps, warmup_steps):
    """dino/utils.py, cosine_scheduler; its warm-up reaches the peak a step early, ours when it ends."""
    decay = np.arange(steps - warmup_steps)
    decay = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * decay / len(decay)))
    return np.concatenate([np.linspace(0, peak, warmup_steps, endpoint=False), decay])


@pytest.mark.parametrize("warmup_steps", [0, 1, 10])
def test_warmup_cosine_follows_dino(warmup_steps):
    values = [warmup_cosine(step, 50, warmup_steps, peak=2.0, end=0.1) for step in range(50)]
    np.testing.assert_allclose(values, dino_table(2.0, 0.1, 50, warmup_steps))
    assert warmup_cosine(50, 50, warmup_steps, peak=2.0, end=0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("start, end", [(0.04, 0.4), (0.996, 1.0), (1.0, 0.0)])
def test_cosine_goes_from_start_to_end_and_stays(start, end):
    assert [cosine(step, 100, start, end) for step in (0, 50, 100, 150)] == pytest.approx([start, (start + end) / 2, end, end])
    assert np.all(np.diff([cosine(step, 100, start, end) for step in range(101)]) * (end - start) > 0)


def test_linear_goes_from_start_to_end_and_stays():
    assert [linear(step, 4, 0.04, 0.08) for step in (0, 1, 4, 9)] == pytest.approx([0.04, 0.05, 0.08, 0.08])


def test_no_steps_mean_the_end():
    assert linear(0, 0, 0.04, 0.07) == 0.07
    assert cosine(0, 0, 1.0, 0.5) == 1.0 and cosine(1, 0, 1.0, 0.5) == 0.5
