"""The frame of a training without labels: steps, saving, signals, measurements, log, export and push.

A program, pretraining or distillation, supplies how its networks are built and what one step computes (`Program`).
"""

import errno
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from training import checkpoint
from training.curves import draw_curves
from training.export import asked_for, build_processor
from training.hand_over import check_push, drawn, push
from training.launch import start_accelerator
from training.periodic_evaluation import PeriodicEvaluation
from training.preemption import AGREEMENT_STEPS, EXIT_CODE, StopSignals, shielded
from training.progress import Progress, TakenStep
from training.run_state import Run, find_state, restore, save_checkpoint
from training.settings import AnySettings
from training.streaming import Batch, UnreadableImagesError, ViewStream, batches
from training.trackers import check_trackers, start_trackers

AnyRun = TypeVar("AnyRun", bound=Run)
Figures = TypeVar("Figures", bound=TakenStep)


class Reporter(Progress, ABC, Generic[AnyRun, Figures]):
    """What a program shows while it goes."""

    @abstractmethod
    def write(self, run: AnyRun, figures: Figures, batch: Batch) -> None:
        """A line of the log; all ranks must call it, for its figures are means over them."""


class Program(ABC, Generic[AnyRun, Figures]):
    """What a program supplies beside the loop.

    Attributes:
        trained: What it does to a RATS, in a word.
        settings: Of the run.
    """

    trained: ClassVar[str]

    def __init__(self, settings: AnySettings):
        self.settings = settings

    @abstractmethod
    def open_stream(self, accelerator: Accelerator) -> ViewStream:
        """This rank's stream of views."""

    @abstractmethod
    def describe(self, accelerator: Accelerator, stream: ViewStream) -> str:
        """What the run would be, for --dry_run."""

    def unfit(self) -> str | None:
        """Why the model has no place on the Hub; None if it has."""
        return None

    @abstractmethod
    def build_run(self, accelerator: Accelerator) -> AnyRun:
        """Networks and optimiser as a run starts with them."""

    @abstractmethod
    def train_step(self, run: AnyRun, batch: Batch) -> Figures:
        """One optimiser step. A gradient that is not finite changes no weight."""

    @abstractmethod
    def report(self, run: AnyRun, output: Path) -> Reporter[AnyRun, Figures]:
        """What shows the run, and writes `log.jsonl` in its folder."""

    @abstractmethod
    def model(self, run: AnyRun) -> PreTrainedModel:
        """What the run has made so far, in evaluation mode, on this rank's device. All ranks must call it."""

    @abstractmethod
    def export(self, run: AnyRun, folder: Path) -> None:
        """Writes that as a model folder. All ranks must call it."""


def run_program(program: Program[AnyRun, Figures]) -> Path:
    """Trains as the settings say; returns the exported model folder, of a dry run the output folder.

    Raises:
        SystemExit: With a message, if something is wrong; with `EXIT_CODE` if a signal has stopped the run and it has saved.
    """
    settings = program.settings
    try:
        check_trackers(settings.training.report_to)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    accelerator = start_accelerator(settings.training)
    output = Path(settings.training.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    try:
        if settings.training.dry_run:
            accelerator.print(program.describe(accelerator, program.open_stream(accelerator)))
            return output
        check_push(settings.training, unfit=program.unfit())
        run = program.build_run(accelerator)
        state = find_state(run, output)
        evaluation = PeriodicEvaluation(accelerator, settings, output, start_step=state["step"] if state else 0)
        stream = program.open_stream(accelerator)
        if state:
            restore(run, stream, state)
        start_trackers(accelerator, settings, output, run.step)
    except (FileNotFoundError, ValueError, UnreadableImagesError) as error:  # what the user can mend, without a traceback
        raise SystemExit(str(error)) from error
    folder = output / "model"
    try:
        with StopSignals() as stop_signals:
            train(program, run, stream, evaluation, output, stop_signals)
        program.export(run, folder)
        if accelerator.is_main_process:
            draw_curves(output / "log.jsonl", output / "curves.png")
            accelerator.print(f"Model folder: {folder}")
    except UnreadableImagesError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise SystemExit(
            f"step {run.step}: {error}. Make room in {output} and start the same command again to go on from "
            f"{checkpoint.find('auto', output / 'checkpoints') or 'the start'}."
        ) from error
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if settings.training.push_to_hub and accelerator.is_main_process:  # last: the others do not wait for a long upload
        message = f"RATS {program.trained} for {settings.training.steps:,} steps"
        print(f"Pushed: {push(folder, settings.training, message, drawn(output))}")
    return folder


def train(
    program: Program[AnyRun, Figures],
    run: AnyRun,
    stream: ViewStream,
    evaluation: PeriodicEvaluation,
    output: Path,
    stop_signals: StopSignals,
) -> None:
    """Steps until the last, or until a signal."""
    settings, accelerator = run.settings.training, run.accelerator
    with shielded():
        stream_batches = batches(stream, settings.batch_size // accelerator.num_processes)
    agreement_steps = 1 if accelerator.num_processes == 1 else AGREEMENT_STEPS
    reporter = program.report(run, output)
    if evaluation.is_owed(run.step, run.step == settings.steps):
        measure(program, run, evaluation, output, views=None)
    while run.step < settings.steps:
        with reporter.waiting():
            batch = next(stream_batches)
        stream.positions[batch.worker] = batch.position
        run.broken_images += len(batch.broken)
        figures = program.train_step(run, batch)
        run.step += 1
        reporter.step(run, figures, batch.broken)
        ends = run.step == settings.steps
        stops = not ends and run.step % agreement_steps == 0 and stop_signals.agreed(accelerator)
        if ends or run.step % settings.log_steps == 0:
            reporter.write(run, figures, batch)
            if asked_for(run, output):
                program.export(run, output / "model")
        if ends or stops or (figures.is_finite and run.step % settings.checkpoint_steps == 0):
            save_checkpoint(run, stream, output)
        if evaluation.is_due(run.step, ends) and not stops:
            with reporter.paused():
                measure(program, run, evaluation, output, batch.views[0])
        if stops:
            again = "the same command" if settings.resume == "auto" else "the same command with --resume auto"
            accelerator.print(f"Stopped by a signal and saved at step {run.step}; {again} goes on from there.")
            accelerator.end_training()
            raise SystemExit(EXIT_CODE)
    reporter.close()


def measure(
    program: Program[AnyRun, Figures], run: AnyRun, evaluation: PeriodicEvaluation, output: Path, views: torch.Tensor | None
) -> None:
    """Scores and draws the model as it is now, and the curves so far."""
    model, processor = program.model(run), build_processor(run.settings)
    scores = evaluation.measure(run.step, model, processor, views)
    run.accelerator.log(scores, step=run.step)
    if run.accelerator.is_main_process:
        draw_curves(output / "log.jsonl", output / "curves.png")
