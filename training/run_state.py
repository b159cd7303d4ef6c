"""Everything that a step reads and changes, saved to a checkpoint and resumed from one."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from training import checkpoint
from training.dino_loss import DinoLoss
from training.ranks import on_all_ranks
from training.settings import DataSettings, EvaluationSettings, ModelSettings, Settings, TrainingSettings, flat
from training.sharding import load_whole_states, whole_states
from training.streaming import ViewStream

# Settings that a run may change when it goes on from a checkpoint.
MAY_CHANGE = (
    "output_dir",
    "warm_start",  # the checkpoint holds what became of it
    "steps",
    "mixed_precision",
    "attn_implementation",
    "gradient_accumulation_steps",  # gives the same gradients up to rounding and drop path
    "gradient_checkpointing",
    "torch_compile",
    "cpu_threads",
    "resume",
    "checkpoint_steps",
    "keep_checkpoints",
    "keep_every_steps",
    "collapse_patience",
    "nonfinite_patience",
    "log_steps",
    "report_to",
    "export_image_size",
    "part_layer",  # of the exported model
    "part_similarity",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "max_broken_share",
    "dry_run",
    "quiet",
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
    own = {"positions": stream.positions, "generator": torch.get_rng_state(), "broken_images": run.broken_images}
    if torch.cuda.is_available():
        own["cuda_generator"] = torch.cuda.get_rng_state()
    ranks = gather_object([own])
    states = whole_states(run.student, run.teacher, run.optimizer)
    scaler, problem = run.accelerator.scaler, None
    if run.accelerator.is_main_process:
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
        training = run.settings.training
        keeps = (1, 0) if run.replaces else (training.keep_checkpoints, training.keep_every_steps)
        try:
            checkpoint.save(output / "checkpoints", run.step, state, *keeps)
        except OSError as error:
            problem = (
                f"step {run.step}: the checkpoint could not be written ({error}); those before it are untouched. Make room in "
                f"{output} (a new one is whole before an old one goes) and start the same command again to go on from "
                f"{checkpoint.find('auto', output / 'checkpoints') or 'the start'}."
            )
    (problem,) = broadcast_object_list([problem])  # the others wait here until it is written
    run.replaces = False
    if problem:
        raise SystemExit(problem if run.accelerator.is_main_process else 1)


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
    training = run.settings.training
    wanted = on_all_ranks(lambda: checkpoint.load_wanted(training.resume, output / "checkpoints", run.accelerator.print))
    paths = [path and path.name for path in gather_object([wanted and wanted[0]])]
    if len(set(paths)) > 1:
        raise ValueError(
            f"the processes found different checkpoints ({', '.join(map(str, paths))}); all must go on from the same one: put "
            f"output_dir={training.output_dir} on a file system that all of them see."
        )
    if wanted is None:
        return None
    path, state = wanted
    if "lasting_settings" not in state:
        raise ValueError(f"{path} is no checkpoint of pretraining; --resume needs a step_*.pt file of training/pretrain.py.")
    then = _defaults() | state["lasting_settings"]  # a setting that there was not yet
    now = lasting_settings(run)
    changed = [name for name in now if then.get(name) != now[name]]
    if changed:
        raise SystemExit(
            f"{path} was written with {', '.join(f'{name}={then.get(name)}' for name in changed)}, and this run has "
            f"{', '.join(f'{name}={now[name]}' for name in changed)}; to go on these must stay the same. Use the "
            "checkpoint's settings, another --output_dir, or start anew with --resume none."
        )
    if state["step"] > training.steps:
        raise SystemExit(f"{path} has done {state['step']} steps already, and steps={training.steps} is less; raise --steps.")
    run.accelerator.print(f"Going on from {path} at step {state['step']}.")
    return state


def _defaults() -> dict:
    return flat(Settings(ModelSettings(), DataSettings(), TrainingSettings(), EvaluationSettings()))


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
    torch.set_rng_state(own["generator"])
    if torch.cuda.is_available() and "cuda_generator" in own:
        torch.cuda.set_rng_state(own["cuda_generator"])
    stream.positions, stream.next_worker = own["positions"], run.step % max(stream.num_workers, 1)  # a batch a step
