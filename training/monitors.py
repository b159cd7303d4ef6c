"""What a run shows while it goes: log, trackers and progress, and the watches that end a run that is lost."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from tqdm import tqdm

from training import checkpoint
from training.json_log import JsonLog
from training.run_state import Run
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


class NonFiniteWatch:
    """Counts the steps in a row whose gradient was not finite, so that they were skipped.

    Args:
        patience: Steps in a row after which a run is lost.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.steps = 0

    def update(self, step: int, figures: "StepFigures") -> str | None:
        """What is wrong, told at the first step of a row and at the last; None otherwise."""
        self.steps = 0 if figures.is_finite else self.steps + 1
        if self.steps not in (1, self.patience):
            return None
        return (
            f"step {step}: the loss is {float(figures.loss)} and the gradient norm {float(figures.gradient_norm)}; the step "
            f"was skipped, {self.steps} in a row. If it goes on, lower learning_rate or set mixed_precision=no (in fp16 the "
            "first few steps are, until the loss has found its scale)."
        )

    @property
    def is_lost(self) -> bool:
        return self.steps >= self.patience


class StepFigures(NamedTuple):
    """What a step has measured.

    Attributes:
        loss: DINO loss of this rank's images, a scalar.
        koleo: KoLeo regulariser before its weight, a scalar; 0 where it is off.
        gradient_norm: Global norm before clipping, a scalar, the same on all ranks.
        is_finite: Whether that norm is, and the step was taken.
        targets: Teacher probabilities, (G, B, K).
        schedule: Learning rate and the like.
    """

    loss: torch.Tensor
    koleo: torch.Tensor
    gradient_norm: torch.Tensor
    is_finite: bool
    targets: torch.Tensor
    schedule: Schedule


class Reporter:
    """What a run shows while it goes: progress bar, log, trackers, warnings. Only the main process writes; all notice trouble.

    Args:
        run: As it starts or goes on.
        output: The folder of the run; the log is `log.jsonl` in it.
    """

    def __init__(self, run: Run, output: Path):
        settings, is_main = run.settings.training, run.accelerator.is_main_process
        self.output, self.settings = output, settings
        self.collapse, self.non_finite = CollapseWatch(settings.collapse_patience), NonFiniteWatch(settings.nonfinite_patience)
        self.log = JsonLog(output / "log.jsonl", first_step=run.step + 1) if is_main else None
        hides_progress = settings.quiet or not is_main or not sys.stderr.isatty()
        self.progress = tqdm(total=settings.steps, initial=run.step, desc="Pretraining", unit="step", disable=hides_progress)
        self.waited_s, self.last_time = 0.0, time.perf_counter()
        self.logged_step, self.logged_seconds, self.logged_waited_s = run.step, run.seconds, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside is time that the step waits for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.waited_s += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside counts for no step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.last_time += time.perf_counter() - start

    def step(self, run: Run, figures: StepFigures, broken: list[str]) -> None:
        """One step more, and the images that its batch had to skip.

        Raises:
            SystemExit: If no step has been possible for `nonfinite_patience` steps; on every rank alike.
        """
        now = time.perf_counter()
        run.seconds, self.last_time = run.seconds + now - self.last_time, now
        for reason in broken:
            self._warn(f"skipped broken image {reason}")
        self.progress.update()
        warning = self.non_finite.update(run.step, figures)
        if self.non_finite.is_lost:
            newest = checkpoint.find("auto", self.output / "checkpoints")
            self._end(
                f"{warning} After nonfinite_patience={self.non_finite.patience} such steps the run stops. "
                f"The newest checkpoint is {newest or 'none, so start anew'}; if that is no better, name an older one with "
                "--resume PATH."
            )
        if warning and self.log:
            self._warn(warning)

    def write(self, run: Run, figures: StepFigures, batch: Batch) -> None:
        """A line of the log; all ranks must call it, for its figures are means over them.

        Raises:
            SystemExit: If the teacher has been collapsed for `collapse_patience` lines; on every rank alike.
        """
        entry = self._entry(run, figures, batch)
        warning = self.collapse.update(entry)
        if self.log:
            self.log.write(entry)
            run.accelerator.log({name: value for name, value in entry.items() if name != "step"}, step=run.step)
            self.progress.set_postfix(loss=f"{entry['loss']:.3f}", images_per_s=f"{entry['images_per_s']:.0f}")
            if self.progress.disable and not self.settings.quiet:
                print(console_line(entry, self.settings.steps), file=sys.stderr, flush=True)
            if warning:
                self._warn(warning)
        if self.collapse.is_lost:
            self._end(
                f"{warning} After collapse_patience={self.collapse.patience} such lines of the log the run stops; go on from a "
                f"checkpoint of an earlier step in {self.output / 'checkpoints'}, with --resume PATH."
            )

    def _entry(self, run: Run, figures: StepFigures, batch: Batch) -> dict:
        accelerator, seconds = run.accelerator, run.seconds - self.logged_seconds
        with torch.no_grad(), accelerator.autocast():
            of_teacher = teacher_figures(run.teacher, batch.views[0].to(accelerator.device), figures.targets)
        own = {
            "loss": float(figures.loss),
            **({"koleo": float(figures.koleo)} if self.settings.koleo_weight else {}),
            **of_teacher,
            "data_wait_share": (self.waited_s - self.logged_waited_s) / seconds,
            "broken_images": run.broken_images * accelerator.num_processes,  # summed, where the others are averaged
        }
        sums = accelerator.reduce(torch.tensor(list(own.values()), device=accelerator.device), "sum")
        means = dict(zip(own, (sums / accelerator.num_processes).tolist(), strict=True))
        images_per_s = self.settings.batch_size * (run.step - self.logged_step) / seconds
        self.logged_step, self.logged_seconds, self.logged_waited_s = run.step, run.seconds, self.waited_s
        return {
            "step": run.step,
            **means,
            "ln_k": math.log(figures.targets.shape[-1]),
            "gradient_norm": float(figures.gradient_norm),
            **figures.schedule._asdict(),
            "images_per_s": images_per_s,
            "images_seen": run.step * self.settings.batch_size,
            "epoch": batch.epoch,
            "broken_images": int(means["broken_images"]),
            "skipped_steps": run.skipped_steps,
        }

    def _warn(self, message: str) -> None:
        self.progress.write(message, file=sys.stderr)

    def _end(self, message: str) -> NoReturn:
        """On every rank; one of them says why."""
        raise SystemExit(message if self.log else 1)

    def close(self) -> None:
        self.progress.close()


def console_line(entry: dict, steps: int) -> str:
    """What a job's log shows of an entry, where no progress bar can be drawn."""
    return (
        f"step {entry['step']}/{steps}  loss {entry['loss']:.3f} (ln K {entry['ln_k']:.3f})  teacher entropy "
        f"{entry['teacher_entropy']:.3f}  {entry['images_per_s']:.0f} images/s"
    )
