"""What a run shows while it goes: log, trackers and progress bar, and the watch that ends one whose gradients are lost."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Protocol

import torch
from accelerate import Accelerator
from tqdm import tqdm

from training import checkpoint
from training.json_log import JsonLog
from training.run_settings import RunSettings


class TakenStep(Protocol):
    """What a step has measured, as far as every training has it.

    Attributes:
        loss: Of this rank's images, a scalar.
        gradient_norm: Global norm before clipping, a scalar, the same on all ranks.
        is_finite: Whether that norm is, and the step was taken.
    """

    @property
    def loss(self) -> torch.Tensor: ...
    @property
    def gradient_norm(self) -> torch.Tensor: ...
    @property
    def is_finite(self) -> bool: ...


class RunInProgress(Protocol):
    """How far a run is.

    Attributes:
        accelerator: Of the run.
        step: Finished steps.
        seconds: Spent in steps, over all sittings.
        broken_images: That this rank has skipped, over all sittings.
        skipped_steps: Whose gradient was not finite, over all sittings.
    """

    accelerator: Accelerator
    step: int
    seconds: float
    broken_images: int
    skipped_steps: int


class NonFiniteWatch:
    """Counts the steps in a row whose gradient was not finite, so that they were skipped.

    Args:
        patience: Steps in a row after which a run is lost.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.steps = 0

    def update(self, step: int, figures: TakenStep) -> str | None:
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


class Progress:
    """Progress bar, log, trackers, warnings. Only the main process writes; all notice trouble.

    Args:
        run: As it starts or goes on.
        settings: Of the run.
        output: Its folder; the log is `log.jsonl` in it.
        description: What stands before the bar.
    """

    def __init__(self, run: RunInProgress, settings: RunSettings, output: Path, description: str):
        is_main = run.accelerator.is_main_process
        self.output, self.settings = output, settings
        self.non_finite = NonFiniteWatch(settings.nonfinite_patience)
        self.log = JsonLog(output / "log.jsonl", first_step=run.step + 1) if is_main else None
        hides_progress = settings.quiet or not is_main or not sys.stderr.isatty()
        self.progress = tqdm(total=settings.steps, initial=run.step, desc=description, unit="step", disable=hides_progress)
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

    def step(self, run: RunInProgress, figures: TakenStep, broken: Sequence[str]) -> None:
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

    def averaged(self, run: RunInProgress, own: dict[str, float]) -> dict[str, float]:
        """Means over the ranks of figures of each, with the share of time spent waiting and the sum of broken images."""
        accelerator, seconds = run.accelerator, run.seconds - self.logged_seconds
        own = own | {
            "data_wait_share": (self.waited_s - self.logged_waited_s) / seconds,
            "broken_images": run.broken_images * accelerator.num_processes,  # summed, where the others are averaged
        }
        sums = accelerator.reduce(torch.tensor(list(own.values()), device=accelerator.device), "sum")
        return dict(zip(own, (sums / accelerator.num_processes).tolist(), strict=True))

    def counted(self, run: RunInProgress) -> dict[str, float]:
        """How fast and how far the run is since the line before; begins a new line."""
        seconds = run.seconds - self.logged_seconds
        images_per_s = self.settings.batch_size * (run.step - self.logged_step) / seconds
        self.logged_step, self.logged_seconds, self.logged_waited_s = run.step, run.seconds, self.waited_s
        return {"images_per_s": images_per_s, "images_seen": run.step * self.settings.batch_size}

    def show(self, run: RunInProgress, entry: dict, line: str) -> None:
        """A line of the log, in the trackers, and beside the bar, or on the console where no bar can be drawn."""
        if not self.log:
            return
        self.log.write(entry)
        run.accelerator.log({name: value for name, value in entry.items() if name != "step"}, step=run.step)
        self.progress.set_postfix(loss=f"{entry['loss']:.3f}", images_per_s=f"{entry['images_per_s']:.0f}")
        if self.progress.disable and not self.settings.quiet:
            print(line, file=sys.stderr, flush=True)

    def _warn(self, message: str) -> None:
        self.progress.write(message, file=sys.stderr)

    def _end(self, message: str) -> NoReturn:
        """On every rank; one of them says why."""
        raise SystemExit(message if self.log else 1)

    def close(self) -> None:
        self.progress.close()
