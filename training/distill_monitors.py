"""What distillation shows while it goes.

B batch  L patches  N registers  D hidden
"""

from pathlib import Path
from typing import NamedTuple

import torch

from training.distillation_run import DistillationRun
from training.loop import Reporter
from training.schedules import OptimizerSchedule
from training.streaming import Batch
from training.teacher_figures import rankme, register_figures

SHOWN_IMAGES = 32  # whose tokens a step keeps for the log


class DistillFigures(NamedTuple):
    """What a step has measured.

    Attributes:
        loss: Weighted sum of the losses of this rank's images, a scalar.
        losses: Those that are on, before their weights, by the names that the log has for them; scalars.
        gradient_norm: Global norm before clipping, a scalar, the same on all ranks.
        is_finite: Whether that norm is, and the step was taken.
        schedule: Learning rate and weight decay.
        registers: Of a few images, (B, N, D).
        patches: Likewise, (B, L, D); None where no loss asks for them.
    """

    loss: torch.Tensor
    losses: dict[str, torch.Tensor]
    gradient_norm: torch.Tensor
    is_finite: bool
    schedule: OptimizerSchedule
    registers: torch.Tensor
    patches: torch.Tensor | None


class DistillationReporter(Reporter[DistillationRun, DistillFigures]):
    """What distillation shows while it goes.

    Args:
        run: As it starts or goes on.
        output: The folder of the run; the log is `log.jsonl` in it.
    """

    def __init__(self, run: DistillationRun, output: Path):
        super().__init__(run, run.settings.training, output, "Distilling")

    def write(self, run: DistillationRun, figures: DistillFigures, batch: Batch) -> None:
        own = {"loss": float(figures.loss), **{name: float(loss) for name, loss in figures.losses.items()}}
        own["rankme"] = rankme(figures.registers.mean(dim=1))
        if figures.patches is not None:
            own |= register_figures(figures.registers, figures.patches)
        means = self.averaged(run, own)
        entry = {
            "step": run.step,
            **means,
            "gradient_norm": float(figures.gradient_norm),
            **figures.schedule._asdict(),
            **self.counted(run),
            "epoch": batch.epoch,
            "broken_images": int(means["broken_images"]),
            "skipped_steps": run.skipped_steps,
        }
        told = "  ".join(f"{name.replace('_', ' ')} {entry[name]:.3f}" for name in ("loss", *figures.losses))
        line = f"step {run.step}/{self.settings.steps}  {told}  {entry['images_per_s']:.0f} images/s"
        self.show(run, entry, line)
