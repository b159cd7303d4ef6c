"""What pretraining shows while it goes, and the watch that ends a run whose teacher has collapsed."""

import math
from pathlib import Path
from typing import NamedTuple

import torch

from training.loop import Reporter
from training.pretraining_run import PretrainingRun
from training.schedules import Schedule
from training.streaming import Batch
from training.teacher_figures import teacher_figures


class CollapseWatch:
    """Counts the log lines in a row in which the teacher tells no images apart.

    Collapsed is a teacher whose targets are uniform (`teacher_entropy` within 0.5 % of ln K) or the same single prototype for
    every image (`teacher_marginal_entropy` below 1 % of ln K). A high or rising loss is no sign of it: DINO's rises when the
    prototypes are released.

    Args:
        patience: Lines in a row after which a run is lost; 0 for never.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.lines = 0
        self.first_step = 0

    def update(self, entry: dict) -> str | None:
        """What is wrong, told at the first line of a row and at the last; None otherwise."""
        ln_k, entropy, marginal = (entry[name] for name in ("ln_k", "teacher_entropy", "teacher_marginal_entropy"))
        uniform, single = entropy > 0.995 * ln_k, marginal < 0.01 * ln_k
        self.lines = self.lines + 1 if uniform or single else 0
        if not self.lines or self.lines not in (1, self.patience):
            return None
        self.first_step = entry["step"] if self.lines == 1 else self.first_step
        which = "uniform for every image" if uniform else "the same prototype for every image"
        return (
            f"step {entry['step']}: the teacher has collapsed, its targets are {which} (entropy {entropy:.3f}, of their mean "
            f"{marginal:.3f}, ln K {ln_k:.3f}) since step {self.first_step}. Lower teacher_temperature, or use "
            "centering=sinkhorn_knopp."
        )

    @property
    def is_lost(self) -> bool:
        return 0 < self.patience <= self.lines


class StepFigures(NamedTuple):
    """What a step has measured.

    Attributes:
        loss: DINO loss of this rank's images, a scalar.
        koleo: KoLeo regulariser before its weight, a scalar; 0 where it is off.
        register_bottleneck: Loss of the register bottleneck before its weight, a scalar; 0 where it is off.
        gradient_norm: Global norm before clipping, a scalar, the same on all ranks.
        is_finite: Whether that norm is, and the step was taken.
        targets: Teacher probabilities, (G, B, K).
        schedule: Learning rate and the like.
    """

    loss: torch.Tensor
    koleo: torch.Tensor
    register_bottleneck: torch.Tensor
    gradient_norm: torch.Tensor
    is_finite: bool
    targets: torch.Tensor
    schedule: Schedule


class PretrainingReporter(Reporter[PretrainingRun, StepFigures]):
    """What pretraining shows while it goes.

    Args:
        run: As it starts or goes on.
        output: The folder of the run; the log is `log.jsonl` in it.
    """

    def __init__(self, run: PretrainingRun, output: Path):
        super().__init__(run, run.settings.training, output, "Pretraining")
        training = run.settings.training
        self.extras = {  # name in the log -> name among the figures of a step, of what is on
            name: figure
            for name, figure, weight in (
                ("koleo", "koleo", training.koleo_weight),
                ("register_bottleneck_loss", "register_bottleneck", training.register_bottleneck_weight),
            )
            if weight
        }
        self.collapse = CollapseWatch(run.settings.training.collapse_patience)

    def write(self, run: PretrainingRun, figures: StepFigures, batch: Batch) -> None:
        """A line of the log; all ranks must call it, for its figures are means over them.

        Raises:
            SystemExit: If the teacher has been collapsed for `collapse_patience` lines; on every rank alike.
        """
        entry = self._entry(run, figures, batch)
        warning = self.collapse.update(entry)
        self.show(run, entry, console_line(entry, self.settings.steps))
        if warning and self.log:
            self._warn(warning)
        if self.collapse.is_lost:
            self._end(
                f"{warning} After collapse_patience={self.collapse.patience} such lines of the log the run stops; go on from a "
                f"checkpoint of an earlier step in {self.output / 'checkpoints'}, with --resume PATH."
            )

    def _entry(self, run: PretrainingRun, figures: StepFigures, batch: Batch) -> dict:
        with torch.no_grad(), run.accelerator.autocast():
            of_teacher = teacher_figures(run.teacher, batch.views[0].to(run.accelerator.device), figures.targets)
        extras = {name: float(getattr(figures, figure)) for name, figure in self.extras.items()}
        own = {"loss": float(figures.loss), **extras, **of_teacher}
        means = self.averaged(run, own)
        return {
            "step": run.step,
            **means,
            "ln_k": math.log(figures.targets.shape[-1]),
            "gradient_norm": float(figures.gradient_norm),
            **figures.schedule._asdict(),
            **self.counted(run),
            "epoch": batch.epoch,
            "broken_images": int(means["broken_images"]),
            "skipped_steps": run.skipped_steps,
        }


def console_line(entry: dict, steps: int) -> str:
    """What a job's log shows of an entry, where no progress bar can be drawn."""
    return (
        f"step {entry['step']}/{steps}  loss {entry['loss']:.3f} (ln K {entry['ln_k']:.3f})  teacher entropy "
        f"{entry['teacher_entropy']:.3f}  {entry['images_per_s']:.0f} images/s"
    )
