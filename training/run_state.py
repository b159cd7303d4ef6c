"""Everything that a step reads and changes, saved to a checkpoint and resumed from one."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

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
    "log_steps",
    "export_image_size",
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
    """Every rank sends its stream's positions and the state of its generators; the main process writes."""
    own = {"positions": stream.positions, "generator": torch.get_rng_state(), "broken_images": run.broken_images}
    if torch.cuda.is_available():
        own["cuda_generator"] = torch.cuda.get_rng_state()
    ranks = gather_object([own])
    if run.accelerator.is_main_process:
        state = {
            "step": run.step,
            "seconds": run.seconds,
            "student": run.accelerator.unwrap_model(run.student).state_dict(),
            "teacher": run.teacher.state_dict(),
            "loss": run.loss.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "lasting_settings": lasting_settings(run, stream, settings),
            "ranks": ranks,
        }
        checkpoint.save(output / "checkpoints", run.step, state, run.settings.keep_checkpoints)
    run.accelerator.wait_for_everyone()


def lasting_settings(run: Run, stream: ViewStream, settings: Settings) -> dict:
    """What a resumed run must share with the run that it goes on from."""
    model, data, training = settings
    lasting = asdict(model) | asdict(data) | asdict(training)
    for name in MAY_CHANGE:
        del lasting[name]
    # Fewer workers than asked for may have shards to read.
    return lasting | {"num_workers": stream.num_workers, "processes": run.accelerator.num_processes}


def resume(run: Run, stream: ViewStream, settings: Settings, output: Path) -> None:
    """Loads the checkpoint that the settings name, if any, into the run and the stream."""
    path = checkpoint.find(run.settings.resume, output / "checkpoints")
    if path is None:
        return
    state = checkpoint.load(path)
    then, now = state["lasting_settings"], lasting_settings(run, stream, settings)
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
