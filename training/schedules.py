"""Values that change with the step. Every schedule is a pure function of the step, so that resuming needs no state."""

import math


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, peak: float, end: float) -> float:
    """Linear from 0 to `peak` over the warm-up, then half a cosine to `end` (dino/utils.py, cosine_scheduler)."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    return cosine(step - warmup_steps, total_steps - warmup_steps, peak, end)


def cosine(step: int, total_steps: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at `total_steps`."""
    share = min(step / max(total_steps, 1), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def linear(step: int, total_steps: int, start: float, end: float) -> float:
    """Linear from `start` at step 0 to `end` at `total_steps`, then constant."""
    share = min(step / total_steps, 1.0) if total_steps else 1.0
    return start + (end - start) * share
