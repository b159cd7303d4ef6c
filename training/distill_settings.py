"""The settings of distillation; `--help` and the recipes are made of them, `distill_arguments.py` fills and checks them."""

from dataclasses import dataclass, field
from typing import NamedTuple

from training.settings import EvaluationSettings, ImageSettings, LoopSettings, RatsSettings


@dataclass
class StudentSettings(RatsSettings):
    """The network; names and meanings as in RatsConfig."""

    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth of the last block."})


@dataclass
class DistillDataSettings(ImageSettings):
    """The images and their views, which student and teacher both see. Sizes in pixels."""

    num_global_crops: int = field(default=1, metadata={"help": "Views of an image, each distilled by itself."})
    global_crops_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0], metadata={"help": "Range of the area share of a view."}
    )
    color_jitter: list[float] = field(
        default_factory=lambda: [0.2, 0.2, 0.1, 0.0],
        metadata={"help": "Strength of the jitter of brightness, contrast, saturation and hue."},
    )
    grayscale: float = field(default=0.0, metadata={"help": "Probability of grayscale."})


@dataclass
class DistillTrainingSettings(LoopSettings):
    """The run: teacher, losses, steps, optimiser, bookkeeping. Schedules count optimiser steps."""

    output_dir: str = field(default="outputs/distill", metadata={"help": "Folder of everything the run writes."})
    teacher: str | None = field(
        default=None,
        metadata={"help": "Frozen teacher: folder or Hub name of a ViT (DINO v1), DINOv2, DINOv3 or RATS. Necessary."},
    )
    teacher_revision: str | None = field(
        default=None, metadata={"help": "Its branch, tag or commit on the Hub; main when not given."}
    )
    patch_weight: float = field(
        default=1.0, metadata={"help": "Weight of the loss between projected patches and the teacher's; 0: off."}
    )
    register_bottleneck_weight: float = field(
        default=1.0, metadata={"help": "Weight of the loss of the teacher's patches explained by the registers; 0: off."}
    )
    register_code_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the loss of the patches explained by one constant code for each register; 0: off."},
    )
    register_balance_weight: float = field(
        default=0.0, metadata={"help": "Weight of the loss that asks all registers to share out the patches of a step; 0: off."}
    )
    global_weight: float = field(
        default=1.0, metadata={"help": "Weight of the loss between the mean register and the teacher's class token; 0: off."}
    )
    warm_start: str = field(
        default="none",
        metadata={
            "help": "none: random weights; teacher: those of a teacher that is a ViT of the student's sizes; or another ViT or "
            "DINO checkpoint (folder, Hub name or file). Only the registers begin anew."
        },
    )
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Peak learning rate at a batch of 256; scaled linearly with the batch."}
    )
    warmup_steps: int = field(default=1000, metadata={"help": "Steps of linear warm-up of the learning rate."})
    weight_decay_end: float = field(default=0.04, metadata={"help": "Weight decay at the end."})
    clip_gradient: float = field(default=1.0, metadata={"help": "Largest norm of all gradients together; 0: off."})


class DistillSettings(NamedTuple):
    """All settings of a run."""

    model: StudentSettings
    data: DistillDataSettings
    training: DistillTrainingSettings
    evaluation: EvaluationSettings
