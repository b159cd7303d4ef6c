"""Going on from a checkpoint: what a run may change meanwhile, and that all ranks do the same or stop together."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from training import checkpoint
from training.ranks import on_all_ranks
from training.run_settings import RunSettings

# Settings that a run may change when it goes on: what is kept and told of it,
BOOKKEEPING = (
    "output_dir",
    "steps",
    "resume",
    "checkpoint_steps",
    "keep_checkpoints",
    "keep_every_steps",
    "nonfinite_patience",
    "log_steps",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "quiet",
)
# and how the same is computed.
ACCELERATION = (
    "mixed_precision",
    "attn_implementation",
    "gradient_accumulation_steps",  # of DINO gives the same gradients up to rounding and drop path
    "gradient_checkpointing",
    "torch_compile",
    "cpu_threads",
)


def write_checkpoint(
    accelerator: Accelerator, settings: RunSettings, output: Path, state: dict[str, Any], replaces: bool
) -> None:
    """The main process writes; all ranks must call it.

    Args:
        accelerator: Of the run.
        settings: Of the run.
        output: Its folder.
        state: Tensors and plain values, with the number of finished steps in "step".
        replaces: Whether this first checkpoint of a run takes the place of all that a run before has left.

    Raises:
        SystemExit: On all ranks, if it cannot be written. Going on would train towards a state that may never be kept.
    """
    problem = None
    if accelerator.is_main_process:
        keeps = (1, 0) if replaces else (settings.keep_checkpoints, settings.keep_every_steps)
        try:
            checkpoint.save(output / "checkpoints", state["step"], state, *keeps)
        except OSError as error:
            problem = (
                f"step {state['step']}: the checkpoint could not be written ({error}); those before it are untouched. Make "
                f"room in {output} (a new one is whole before an old one goes) and start the same command again to go on from "
                f"{checkpoint.find('auto', output / 'checkpoints') or 'the start'}."
            )
    (problem,) = broadcast_object_list([problem])  # the others wait here until it is written
    if problem:
        raise SystemExit(problem if accelerator.is_main_process else 1)


def find_checkpoint(
    accelerator: Accelerator,
    settings: RunSettings,
    output: Path,
    kind: str,
    lasting: Mapping[str, Any],
    defaults: Mapping[str, Any],
    check: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any] | None:
    """What the checkpoint that the settings name holds, if there is one, and if this run can go on from it.

    Args:
        accelerator: Of the run.
        settings: Of the run.
        output: Its folder.
        kind: Of run, as its checkpoints say; those that say nothing are of "pretraining".
        lasting: What a resumed run must share with the run that it goes on from.
        defaults: Of settings that there were not yet when the checkpoint was written.
        check: Raises ValueError if a run cannot go on from this state for another reason than its settings.

    Raises:
        FileNotFoundError: If there is no checkpoint where the settings name one.
        ValueError: If it is damaged, or that of another kind of run, or not the same on all ranks, or `check` raises it.
        SystemExit: If this run's settings do not fit to it.
    """
    wanted = on_all_ranks(lambda: checkpoint.load_wanted(settings.resume, output / "checkpoints", accelerator.print))
    paths = [path and path.name for path in gather_object([wanted and wanted[0]])]
    if len(set(paths)) > 1:
        raise ValueError(
            f"the processes found different checkpoints ({', '.join(map(str, paths))}); all must go on from the same one: put "
            f"output_dir={settings.output_dir} on a file system that all of them see."
        )
    if wanted is None:
        return None
    path, state = wanted
    if "lasting_settings" not in state or state.get("kind", "pretraining") != kind:
        raise ValueError(f"{path} is no checkpoint of {kind}; --resume needs a step_*.pt file that the same program wrote.")
    if check:
        try:
            check(state)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error
    then = {**defaults, **state["lasting_settings"]}
    changed = [name for name in lasting if then.get(name) != lasting[name]]
    if changed:
        raise SystemExit(
            f"{path} was written with {', '.join(f'{name}={then.get(name)}' for name in changed)}, and this run has "
            f"{', '.join(f'{name}={lasting[name]}' for name in changed)}; to go on these must stay the same. Use the "
            "checkpoint's settings, another --output_dir, or start anew with --resume none."
        )
    if state["step"] > settings.steps:
        raise SystemExit(f"{path} has done {state['step']} steps already, and steps={settings.steps} is less; raise --steps.")
    accelerator.print(f"Going on from {path} at step {state['step']}.")
    return state


def generator_states() -> dict[str, torch.Tensor]:
    """Of this rank, where randomness in the network goes on."""
    states = {"generator": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda_generator"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: Mapping[str, Any]) -> None:
    """The reverse of `generator_states`."""
    torch.set_rng_state(states["generator"])
    if torch.cuda.is_available() and "cuda_generator" in states:
        torch.cuda.set_rng_state(states["cuda_generator"])
