"""Everything that a step of fine-tuning reads and changes, saved to a checkpoint and resumed from one."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import Mask2FormerImageProcessor

from modeling_rats import RatsForUniversalSegmentation
from training.finetune_settings import (
    FinetuneSettings,
    SegmentationDataSettings,
    SegmentationModelSettings,
    SegmentationSettings,
)
from training.resume import ACCELERATION, BOOKKEEPING, find_checkpoint, generator_states, restore_generators, write_checkpoint
from training.run_settings import flat

KIND = "fine-tuning for segmentation"  # of its checkpoints
# Settings that a run may change when it goes on from a checkpoint.
MAY_CHANGE = (
    *BOOKKEEPING,
    *ACCELERATION,
    "num_workers",
    "eval_split",
    "eval_steps",
    "eval_images",
    "test_shortest_edge",
    "test_longest_edge",
)


@dataclass
class SegmentationRun:
    """Everything that a step reads and changes."""

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    processor: Mask2FormerImageProcessor
    settings: SegmentationSettings
    step: int = 0
    seconds: float = 0.0  # spent in steps, over all sittings
    broken_images: int = 0  # that this rank has skipped, over all sittings
    skipped_steps: int = 0  # whose gradient was not finite, over all sittings
    replaces: bool = True  # its first checkpoint takes the place of all that a run before has left


def unwrapped(run: SegmentationRun) -> RatsForUniversalSegmentation:
    """The model alone, in float32 outside of `accelerator.autocast`."""
    return run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)


def save_checkpoint(run: SegmentationRun, output: Path) -> None:
    """Every rank sends the state of its generators; the main process writes.

    Raises:
        SystemExit: On all ranks, if it cannot be written.
    """
    ranks = gather_object([{"broken_images": run.broken_images, **generator_states()}])
    scaler = run.accelerator.scaler
    state = {
        "kind": KIND,
        "step": run.step,
        "seconds": run.seconds,
        "skipped_steps": run.skipped_steps,
        "model": unwrapped(run).state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "lasting_settings": lasting_settings(run),
        "ranks": ranks,
    }
    write_checkpoint(run.accelerator, run.settings.training, output, state, replaces=run.replaces)
    run.replaces = False


def lasting_settings(run: SegmentationRun) -> dict:
    """What a resumed run must share with the run that it goes on from."""
    lasting = {name: value for name, value in flat(run.settings).items() if name not in MAY_CHANGE}
    return lasting | {"processes": run.accelerator.num_processes}


def find_state(run: SegmentationRun, output: Path) -> dict | None:
    """What the checkpoint that the settings name holds; errors as `training.resume.find_checkpoint`."""
    defaults = flat(SegmentationSettings(SegmentationModelSettings(), SegmentationDataSettings(), FinetuneSettings()))
    training = run.settings.training
    return find_checkpoint(run.accelerator, training, output, KIND, lasting_settings(run), defaults)


def restore(run: SegmentationRun, state: dict) -> None:
    """Brings the run to where `save_checkpoint` saw it."""
    unwrapped(run).load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.accelerator.scaler and state.get("scaler"):
        run.accelerator.scaler.load_state_dict(state["scaler"])
    run.step, run.seconds, run.skipped_steps, run.replaces = state["step"], state["seconds"], state["skipped_steps"], False
    own = state["ranks"][run.accelerator.process_index]
    run.broken_images = own["broken_images"]
    restore_generators(own)
