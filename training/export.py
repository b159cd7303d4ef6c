"""The result of pretraining as a transformers folder."""

import json
import os
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from modeling_rats import RatsConfig, RatsForPartSegmentation, RatsImageProcessor
from training.arguments import Settings
from training.run_state import Run


def export(run: Run, settings: Settings, folder: Path) -> None:
    """Writes the teacher as a RatsForPartSegmentation folder with its processor and a record of the training.

    What else is in the folder stays: a card in which a person may have written, and its pictures.
    """
    model_settings, data_settings, training_settings = settings
    config = RatsConfig(**asdict(model_settings), image_size=data_settings.global_crop_size)
    model = RatsForPartSegmentation(config)
    model.rats.load_state_dict(run.teacher.model.rats.state_dict())
    side = training_settings.export_image_size or data_settings.global_crop_size
    record = {
        "settings": {**asdict(model_settings), **asdict(data_settings), **asdict(training_settings)},
        "steps": run.step,
        "images_seen": run.step * training_settings.batch_size,
        "seconds": round(run.seconds, 1),
        "device": device_name(run.accelerator.device),
        "processes": run.accelerator.num_processes,
        "mixed_precision": run.accelerator.mixed_precision,
        "versions": {name: version(name) for name in ("modeling-rats", "torch", "transformers", "accelerate", "datasets")},
    }
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    RatsImageProcessor(size={"height": side, "width": side}).save_pretrained(temporary)
    (temporary / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    folder.mkdir(exist_ok=True)
    for file in temporary.iterdir():
        os.replace(file, folder / file.name)
    temporary.rmdir()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
