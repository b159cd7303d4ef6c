"""Trackers that get the lines of the log too: tensorboard, wandb, trackio, through Accelerate."""

import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import is_tensorboard_available, is_trackio_available, is_wandb_available

from training.run_settings import flat

PROJECT = "rats"
RUN_NAME_FILE = "tracker_run.txt"  # in the output folder

_IS_AVAILABLE = {
    "tensorboard": is_tensorboard_available,
    "trackio": is_trackio_available,
    "wandb": is_wandb_available,
}


def check_trackers(names: list[str]) -> None:
    """To be called before the Accelerator is made, which leaves out trackers whose package is not installed.

    Raises:
        ValueError: For an unknown tracker, or one that is not installed.
    """
    for name in names:
        if name not in _IS_AVAILABLE:
            raise ValueError(f"report_to={name} is no tracker that can be reported to; use some of {', '.join(_IS_AVAILABLE)}.")
    missing = [name for name in names if not _IS_AVAILABLE[name]()]
    if missing:
        raise ValueError(
            f"report_to={' '.join(missing)} needs a package that is not installed; pip install {' '.join(missing)}, or leave "
            "it out: log.jsonl is written in any case."
        )


def start_trackers(accelerator: Accelerator, settings: Iterable[Any], output: Path, step: int) -> None:
    """Starts the trackers that the Accelerator was made with; `accelerator.log` reaches them from then on.

    A run that goes on from a checkpoint stays one run. The lines between the checkpoint and the end of the sitting before are
    made twice, and what becomes of them differs:

    - tensorboard, in `output/tensorboard`: each sitting adds an event file that declares those lines void. Every sitting also
      adds its settings, as a run of its own named by the time.
    - wandb, in `output/wandb`: the run of the same id goes on, and its server keeps the lines that it has. Offline, each
      sitting is a folder of this id, which `wandb sync` uploads in their order.
    - trackio, where it keeps all projects (`TRACKIO_DIR`): the run of the same name goes on, and has those lines twice.

    Args:
        accelerator: Made with `log_with` and `project_dir`.
        settings: Groups of settings, all of which are told to the trackers.
        output: The folder of the run.
        step: Where the run starts, 0, or goes on from.
    """
    if not accelerator.log_with:
        return
    name = run_name(output, step) if accelerator.is_main_process else None  # the other processes start nothing
    accelerator.project_configuration.logging_dir = str(output / "tensorboard")
    accelerator.init_trackers(
        PROJECT,
        config=plain(flat(settings)),
        init_kwargs={
            "tensorboard": {"purge_step": step + 1},
            "wandb": {"id": name, "name": name, "resume": "allow", "dir": str(output)},
            "trackio": {"name": name, "resume": "allow"},
        },
    )


def run_name(output: Path, step: int) -> str:
    """What wandb and trackio know a run by: kept in the output folder, so that a run that goes on finds it; new at step 0."""
    file = output / RUN_NAME_FILE
    if step > 0 and file.is_file():
        return file.read_text().strip()
    folder = re.sub(r"[^A-Za-z0-9_.-]+", "-", output.resolve().name)[:100]  # wandb allows no others, and 128 of them
    name = f"{folder}-{secrets.token_hex(4)}"  # random, as many runs may have a folder of this name
    file.write_text(name + "\n")
    return name


def plain(settings: dict) -> dict:
    """Settings as all trackers take them: tensorboard knows no lists, so they become their text."""
    return {name: str(value) if isinstance(value, list) else value for name, value in settings.items()}
