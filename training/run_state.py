"""Everything that a step reads and changes, saved to a checkpoint and resumed from one."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from training import checkpoint
from training.arguments import Settings, TrainingSettings
from training.dino_loss import DinoLoss
from training.streaming import ViewStream
from training.student_teacher import MultiCropNetwork

# Settings that a run may change when it goes on from a checkpoint.
MAY_CHANGE = (
    "output_dir",
    "warm_start",  # the checkpoint holds what became of it
    "steps",
    "mixed_precision",
    "cpu_threads",
    "resume",
    "checkpoint_steps",
    "keep_checkpoints",
    "keep_every_steps",
    "log_steps",
    "export_image_size",
    "max_broken_share",
    "dry_run",
    "quiet",
)


@dataclass
class Run:
    """Everything that a step reads and changes."""

    accelerator: Accelerator
    student: torch.nn.Module
    teacher: MultiCropNetwork
    loss: DinoLoss
    optimizer: torch.optim.Optimizer
    settings: TrainingSettings
    step: int = 0
    seconds: float = 0.0  # spent in steps, over all sittings
    broken_images: int = 0  # that this rank has skipped, over all sittings


def save_checkpoint(run: Run, stream: ViewStream, settings: Settings, output: Path) -> None:
    """Every rank sends its stream's positions and the state of its generators; the main process writes.

    Raises:
        SystemExit: On all ranks, if it cannot be written. Going on would train towards a state that may never be kept.
    """
    own = {"positions": stream.positions, "generator": torch.get_rng_state(), "broken_images": run.broken_images}
    if torch.cuda.is_available():
        own["cuda_generator"] = torch.cuda.get_rng_state()
    ranks = gather_object([own])
    problem = None
    if run.accelerator.is_main_process:
        state = {
            "step": run.step,
            "seconds": run.seconds,
            "student": run.accelerator.unwrap_model(run.student).state_dict(),
            "teacher": run.teacher.state_dict(),
            "loss": run.loss.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "lasting_settings": lasting_settings(run, settings),
            "ranks": ranks,
        }
        training = run.settings
        try:
            checkpoint.save(output / "checkpoints", run.step, state, training.keep_checkpoints, training.keep_every_steps)
        except OSError as error:
            problem = (
                f"step {run.step}: the checkpoint could not be written ({error}); those before it are untouched. Make room in "
                f"{output} (a new one is whole before an old one goes) and start the same command again to go on from "
                f"{checkpoint.find('auto', output / 'checkpoints') or 'the start'}."
            )
    (problem,) = broadcast_object_list([problem])  # the others wait here until it is written
    if problem:
        raise SystemExit(problem if run.accelerator.is_main_process else 1)


def lasting_settings(run: Run, settings: Settings) -> dict:
    """What a resumed run must share with the run that it goes on from."""
    model, data, training = settings
    lasting = asdict(model) | asdict(data) | asdict(training)
    for name in MAY_CHANGE:
        del lasting[name]
    return lasting | {"processes": run.accelerator.num_processes}


def resume(run: Run, stream: ViewStream, settings: Settings, output: Path) -> None:
    """Loads the checkpoint that the settings name, if any, into the run and the stream.

    Raises:
        FileNotFoundError: If there is no checkpoint where the settings name one.
        ValueError: If it is damaged, or no checkpoint of pretraining, or not the same on all ranks.
        SystemExit: If this run's settings do not fit to it.
    """
    wanted = checkpoint.load_wanted(run.settings.resume, output / "checkpoints", run.accelerator.print)
    paths = [path and path.name for path in gather_object([wanted and wanted[0]])]
    if len(set(paths)) > 1:
        raise ValueError(
            f"the processes found different checkpoints ({', '.join(map(str, paths))}); all must go on from the same one: put "
            f"output_dir={run.settings.output_dir} on a file system that all of them see."
        )
    if wanted is None:
        return
    path, state = wanted
    if "lasting_settings" not in state:
        raise ValueError(f"{path} is no checkpoint of pretraining; --resume needs a step_*.pt file of training/pretrain.py.")
    then, now = state["lasting_settings"], lasting_settings(run, settings)
    changed = [name for name in now if then.get(name) != now[name]]
    if changed:
        raise SystemExit(
            f"{path} was written with {', '.join(f'{name}={then.get(name)}' for name in changed)}, and this run has "
            f"{', '.join(f'{name}={now[name]}' for name in changed)}; to go on these must stay the same. Use the "
            "checkpoint's settings, another --output_dir, or start anew with --resume none."
        )
    run.accelerator.unwrap_model(run.student).load_state_dict(state["student"])
    run.teacher.load_state_dict(state["teacher"])
    run.loss.load_state_dict(state["loss"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step, run.seconds = state["step"], state["seconds"]
    own = state["ranks"][run.accelerator.process_index]
    run.broken_images = own["broken_images"]
    torch.set_rng_state(own["generator"])
    if torch.cuda.is_available() and "cuda_generator" in own:
        torch.cuda.set_rng_state(own["cuda_generator"])
    stream.positions = own["positions"]
    run.accelerator.print(f"Going on from {path} at step {run.step}.")
