"""Everything that a step reads and changes, saved to a checkpoint and resumed from one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from training.resume import ACCELERATION, BOOKKEEPING, find_checkpoint, generator_states, restore_generators, write_checkpoint
from training.run_settings import flat
from training.settings import AnySettings, EvaluationSettings
from training.sharding import load_trained_states, trained_states
from training.streaming import ViewStream

# Settings that a run may change when it goes on from a checkpoint.
MAY_CHANGE = (
    *BOOKKEEPING,
    *ACCELERATION,
    "warm_start",  # the checkpoint holds what became of it
    "export_image_size",
    "part_layer",  # of the exported model
    "part_similarity",
    "max_broken_share",
    "dry_run",
    *vars(EvaluationSettings()),  # a measurement changes nothing
)


@dataclass(kw_only=True)
class Run(ABC):
    """What a step of any program reads and changes; a program adds its own.

    Attributes:
        kind: Of run, as its checkpoints say.
        may_change: Settings of this kind of run, beside `MAY_CHANGE`, that it may change when it goes on from a checkpoint.
    """

    kind: ClassVar[str]
    may_change: ClassVar[tuple[str, ...]] = ()

    accelerator: Accelerator
    student: torch.nn.Module
    optimizer: torch.optim.Optimizer
    settings: AnySettings
    step: int = 0
    seconds: float = 0.0  # spent in steps, over all sittings
    broken_images: int = 0  # that this rank has skipped, over all sittings
    skipped_steps: int = 0  # whose gradient was not finite, over all sittings
    replaces: bool = True  # its first checkpoint takes the place of all that a run before has left

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """What a checkpoint holds of this kind of run besides student and optimiser. All ranks must call it."""

    @abstractmethod
    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """The reverse of `own_state`, from what the whole checkpoint holds."""

    @abstractmethod
    def default_settings(self) -> AnySettings:
        """Those of which settings are taken that there were not yet when a checkpoint was written."""

    def check(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # most have nothing to check
        """
        Raises:
            ValueError: If this run cannot go on from a checkpoint for another reason than its settings, with what follows
                on the checkpoint's path.
        """


def save_checkpoint(run: Run, stream: ViewStream, output: Path) -> None:
    """Every rank sends its stream's positions and the state of its generators; the main process writes.

    Raises:
        SystemExit: On all ranks, if it cannot be written. Going on would train towards a state that may never be kept.
    """
    own = {"positions": stream.positions, "broken_images": run.broken_images, **generator_states()}
    ranks = gather_object([own])
    scaler = run.accelerator.scaler
    state = {
        "kind": run.kind,
        "step": run.step,
        "seconds": run.seconds,
        "skipped_steps": run.skipped_steps,
        **trained_states(run.student, run.optimizer),
        **run.own_state(),
        "scaler": scaler.state_dict() if scaler else None,
        "lasting_settings": lasting_settings(run),
        "ranks": ranks,
    }
    write_checkpoint(run.accelerator, run.settings.training, output, state, replaces=run.replaces)
    run.replaces = False


def lasting_settings(run: Run) -> dict:
    """What a resumed run must share with the run that it goes on from."""
    may_change = {*MAY_CHANGE, *run.may_change}
    lasting = {name: value for name, value in flat(run.settings).items() if name not in may_change}
    return lasting | {"processes": run.accelerator.num_processes}


def find_state(run: Run, output: Path) -> dict | None:
    """What the checkpoint that the settings name holds, if there is one, and if this run can go on from it.

    Raises:
        FileNotFoundError: If there is no checkpoint where the settings name one.
        ValueError: If it is damaged, or no checkpoint of this kind of run, or not the same on all ranks, or of no use to it.
        SystemExit: If this run's settings do not fit to it.
    """
    defaults = flat(run.default_settings())
    training = run.settings.training
    return find_checkpoint(run.accelerator, training, output, run.kind, lasting_settings(run), defaults, run.check)


def restore(run: Run, stream: ViewStream, state: dict) -> None:
    """Brings run and stream to where `save_checkpoint` saw them."""
    load_trained_states(run.student, run.optimizer, state)
    run.load_own_state(state)
    if run.accelerator.scaler and state.get("scaler"):
        run.accelerator.scaler.load_state_dict(state["scaler"])
    run.step, run.seconds, run.skipped_steps = state["step"], state["seconds"], state.get("skipped_steps", 0)
    run.replaces = False
    own = state["ranks"][run.accelerator.process_index]
    run.broken_images = own["broken_images"]
    restore_generators(own)
    stream.positions, stream.next_worker = own["positions"], run.step % max(stream.num_workers, 1)  # a batch a step


def take_step(run: Run, gradient_norm: torch.Tensor) -> bool:
    """The optimiser's step after gradients were unscaled and clipped, if they are finite; else they change no weight.

    Args:
        run: Its gradients are gone afterwards.
        gradient_norm: Global norm before clipping, the same on all ranks.

    Returns:
        Whether the step was taken.
    """
    is_finite = bool(gradient_norm.isfinite())
    if is_finite:
        run.optimizer.step()
    else:
        run.skipped_steps += 1
    if run.accelerator.scaler:
        run.accelerator.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return is_finite
