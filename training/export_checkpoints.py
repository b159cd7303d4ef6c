"""Model folders of the checkpoints that a run has kept, to be looked at or scored one after the other.

    python -m training.export_checkpoints RUN_FOLDER [--output FOLDER]

How parts are read (`part_layer`, `part_similarity`) and the size of images are those of the run's folder `model`, if it is
there. Checkpoints stay if `--keep_every_steps` asks for it. `evaluation.visualize --video` shows how registers become parts.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from hub_cards.model_folder import write_folder
from hub_cards.records import name_training_data
from training import checkpoint
from training.export import build_processor, model_of_weights
from training.settings import DataSettings, EvaluationSettings, ModelSettings, Settings, TrainingSettings


def export_checkpoints(run_folder: Path, output: Path) -> list[Path]:
    """Write a model folder for each checkpoint of a run, with the image processor and a record of the training until there.

    Args:
        run_folder: The output_dir of a pretraining or distillation.
        output: Gets the folders, step_00000100 and so on; those that are there are replaced.

    Returns:
        The folders, in order of their steps.

    Raises:
        FileNotFoundError: If the run has no checkpoints.
        ValueError: If one is damaged.
    """
    paths = checkpoint.list_checkpoints(run_folder / "checkpoints")
    if not paths:
        raise FileNotFoundError(
            f"{run_folder} has no checkpoints/step_*.pt; it must be the output_dir of a pretraining or distillation. "
            "Name another, or let a run keep some (--keep_every_steps)."
        )
    output.mkdir(parents=True, exist_ok=True)
    exported = run_folder / "model" / "training.json"  # tells, too, what may change from one sitting to the next
    current = json.loads(exported.read_text(encoding="utf-8"))["settings"] if exported.is_file() else {}
    folders = []
    for path in paths:
        state = checkpoint.load(path)
        told = current | state["lasting_settings"]
        settings = _settings(told)
        record = {
            "settings": told,
            "data_sets": name_training_data(told),
            "steps": state["step"],
            "images_seen": state["step"] * told["batch_size"],
            "seconds": round(state["seconds"], 1),
        }
        if teacher := state.get("frozen_teacher"):  # of a distillation, whose student is what it makes
            record["teacher"] = teacher
        weights = state["student" if teacher else "teacher"]
        folders.append(output / path.stem)
        write_folder(folders[-1], model_of_weights(settings, weights), build_processor(settings), record)
    return folders


def _settings(told: dict) -> Settings:
    """The settings that are told; others are at their default."""

    def of(kind):
        return kind(**{field.name: told[field.name] for field in fields(kind) if field.name in told})

    return Settings(of(ModelSettings), of(DataSettings), of(TrainingSettings), EvaluationSettings())


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Runs the command line; what the user can mend ends it with a message and no traceback."""
    parser = argparse.ArgumentParser(prog="python -m training.export_checkpoints", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="output_dir of a run")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: the folder steps of the run")
    given = parser.parse_args(arguments)
    output = given.output or given.run / "steps"
    try:
        folders = export_checkpoints(given.run, output)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(f"{len(folders)} model folders in {output}")
    return folders


if __name__ == "__main__":
    main()
