"""Everything that a step of pretraining reads and changes, saved to a checkpoint and resumed from one."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from training.dino_loss import DinoLoss
from training.resume import ACCELERATION, BOOKKEEPING, find_checkpoint, generator_states, restore_generators, write_checkpoint
from training.run_settings import flat
from training.settings import DataSettings, EvaluationSettings, ModelSettings, Settings, TrainingSettings
from training.sharding import load_whole_states, whole_states
from training.streaming import ViewStream

# Settings that a run may change when it goes on from a checkpoint.
MAY_CHANGE = (
    *BOOKKEEPING,
    *ACCELERATION,
    "warm_start",  # the checkpoint holds what became of it
    "collapse_patience",
    "export_image_size",
    "part_layer",  # of the exported model
    "part_similarity",
    "max_broken_share",
    "dry_run",
)


@dataclass
class Run:
    """Everything that a step reads and changes."""

    accelerator: Accelerator
    student: torch.nn.Module
    teacher: torch.nn.Module
    loss: DinoLoss
    optimizer: torch.optim.Optimizer
    settings: Settings
    step: int = 0
    seconds: float = 0.0  # spent in steps, over all sittings
    broken_images: int = 0  # that this rank has skipped, over all sittings
    skipped_steps: int = 0  # whose gradient was not finite, over all sittings
    replaces: bool = True  # its first checkpoint takes the place of all that a run before has left


def save_checkpoint(run: Run, stream: ViewStream, output: Path) -> None:
    """Every rank sends its stream's positions and the state of its generators; the main process writes.

    Raises:
        SystemExit: On all ranks, if it cannot be written. Going on would train towards a state that may never be kept.
    """
    own = {"positions": stream.positions, "broken_images": run.broken_images, **generator_states()}
    ranks = gather_object([own])
    states = whole_states(run.student, run.teacher, run.optimizer)
    scaler = run.accelerator.scaler
    state = {
        "step": run.step,
        "seconds": run.seconds,
        "skipped_steps": run.skipped_steps,
        **states,
        "loss": run.loss.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "lasting_settings": lasting_settings(run),
        "ranks": ranks,
    }
    write_checkpoint(run.accelerator, run.settings.training, output, state, replaces=run.replaces)
    run.replaces = False


def lasting_settings(run: Run) -> dict:
    """What a resumed run must share with the run that it goes on from."""
    lasting = flat(run.settings)
    for name in (*MAY_CHANGE, *vars(EvaluationSettings())):  # a measurement changes nothing
        del lasting[name]
    return lasting | {"processes": run.accelerator.num_processes}


def find_state(run: Run, output: Path) -> dict | None:
    """What the checkpoint that the settings name holds, if there is one, and if this run can go on from it.

    Raises:
        FileNotFoundError: If there is no checkpoint where the settings name one.
        ValueError: If it is damaged, or no checkpoint of pretraining, or not the same on all ranks.
        SystemExit: If this run's settings do not fit to it.
    """
    defaults = flat(Settings(ModelSettings(), DataSettings(), TrainingSettings(), EvaluationSettings()))
    return find_checkpoint(run.accelerator, run.settings.training, output, "pretraining", lasting_settings(run), defaults)


def restore(run: Run, stream: ViewStream, state: dict) -> None:
    """Brings run and stream to where `save_checkpoint` saw them."""
    load_whole_states(run.student, run.teacher, run.optimizer, state)
    run.loss.load_state_dict(state["loss"])
    if run.accelerator.scaler and state.get("scaler"):
        run.accelerator.scaler.load_state_dict(state["scaler"])
    run.step, run.seconds, run.skipped_steps = state["step"], state["seconds"], state.get("skipped_steps", 0)
    run.replaces = False
    own = state["ranks"][run.accelerator.process_index]
    run.broken_images = own["broken_images"]
    restore_generators(own)
    stream.positions, stream.next_worker = own["positions"], run.step % max(stream.num_workers, 1)  # a batch a step
