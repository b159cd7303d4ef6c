"""Values that change with the step. Every schedule is a pure function of the step, so that resuming needs no state."""

import math
from typing import NamedTuple

from training.finetune_settings import FinetuneSettings
from training.settings import LoopSettings, TrainingSettings


class OptimizerSchedule(NamedTuple):
    """The values of one step that AdamW has."""

    learning_rate: float
    weight_decay: float


class Schedule(NamedTuple):
    """The values of one step of pretraining."""

    learning_rate: float
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float


def schedule_at(step: int, settings: TrainingSettings) -> Schedule:
    return Schedule(
        *optimizer_schedule_at(step, settings),
        teacher_momentum=cosine(step, settings.steps, settings.teacher_momentum, 1.0),
        teacher_temperature=linear(
            step,
            settings.warmup_teacher_temperature_steps,
            settings.warmup_teacher_temperature,
            settings.teacher_temperature,
        ),
    )


def optimizer_schedule_at(step: int, settings: LoopSettings) -> OptimizerSchedule:
    return OptimizerSchedule(
        learning_rate=warmup_cosine(
            step,
            settings.steps,
            settings.warmup_steps,
            peak=settings.learning_rate * settings.batch_size / 256,
            end=settings.min_learning_rate,
        ),
        weight_decay=cosine(step, settings.steps, settings.weight_decay, settings.weight_decay_end),
    )


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


def segmentation_learning_rate(step: int, settings: FinetuneSettings) -> float:
    """Learning rate of the head: linear warm-up, and what `schedule` says of the whole run (Mask2Former's configurations)."""
    share = min(step / settings.steps, 1.0)
    if settings.schedule == "poly":
        factor = (1 - share) ** 0.9
    elif settings.schedule == "multistep":
        factor = 0.1 ** sum(share >= dropped for dropped in (8 / 9, 26 / 27))
    else:
        factor = cosine(step, settings.steps, 1.0, 0.0)
    return settings.learning_rate * factor * min((step + 1) / (settings.warmup_steps + 1), 1.0)
