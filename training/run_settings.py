"""Settings that every run has, whatever it trains."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class RunSettings:
    """Length, machine and bookkeeping of a run."""

    output_dir: str = field(default="outputs", metadata={"help": "Folder of everything the run writes."})
    steps: int = field(default=100_000, metadata={"help": "Optimiser steps of the whole run."})
    batch_size: int = field(default=512, metadata={"help": "Images per step over all ranks."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, order and augmentation."})
    mixed_precision: str = field(
        default="auto",
        metadata={
            "help": "auto: the launcher's bf16 or fp16, or else bf16 where the device computes in it.",
            "choices": ["auto", "no", "bf16", "fp16"],
        },
    )
    attn_implementation: str = field(
        default="auto",
        metadata={
            "help": "auto: eager on a CPU, whose sdpa is slow backwards, and sdpa elsewhere; or another of transformers' "
            "names, such as flash_attention_2."
        },
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Parts that a rank's share of a step's images is computed in, one after the other."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Keep the blocks' inputs alone for the backward pass and compute the rest again."}
    )
    torch_compile: bool = field(default=False, metadata={"help": "Compile the backbones with torch.compile."})
    cpu_threads: int | None = field(
        default=None, metadata={"help": "Threads per CPU process; all cores over the processes when not given."}
    )
    resume: str = field(
        default="auto", metadata={"help": "auto, none (start anew and replace the run in output_dir), or a checkpoint's path."}
    )
    checkpoint_steps: int = field(default=1000, metadata={"help": "Steps between checkpoints."})
    keep_checkpoints: int = field(default=2, metadata={"help": "How many of the newest stay."})
    keep_every_steps: int = field(
        default=0, metadata={"help": "The first checkpoint at or after every multiple of it stays too; 0: none."}
    )
    nonfinite_patience: int = field(
        default=20,
        metadata={"help": "Steps in a row with a gradient that is not finite, all skipped, after which the run stops."},
    )
    log_steps: int = field(default=50, metadata={"help": "Steps between lines of the log."})
    report_to: list[str] = field(
        default_factory=list, metadata={"help": "Trackers that get the log too: tensorboard, wandb, trackio; none by default."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Push the model folder to hub_model_id at the end."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository on the Hub to push to: owner/name."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Make it private, if it is made by this push."})
    quiet: bool = field(default=False, metadata={"help": "No progress bar."})


def flat(settings: Iterable[Any]) -> dict[str, Any]:
    """All settings of several groups by name; no two groups have one of the same name."""
    return {name: value for group in settings for name, value in asdict(group).items()}
