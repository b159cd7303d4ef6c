"""The result of a training as a transformers folder."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, ViTImageProcessor

from evaluation.register_attention_variants import RATS_FOR_PARTS
from hub_cards.model_folder import write_folder
from hub_cards.records import name_training_data
from modeling_rats import RatsImageProcessor
from training.networks import RATS_TYPES, build_backbone_and_head, build_config
from training.ranks import on_all_ranks
from training.run_settings import flat
from training.run_state import Run
from training.settings import AnySettings
from training.sharding import whole_weights

_BACKBONE = "backbone."
NOTHING: Mapping[str, Any] = {}


def model_of(run: Run, network: torch.nn.Module) -> PreTrainedModel:
    """The model of one of a run's networks on this rank's device, in evaluation mode (see `model_of_weights`).

    All ranks must call it: FSDP gathers the weights.
    """
    return model_of_weights(run.settings, whole_weights(network)).to(run.accelerator.device)


def model_of_weights(settings: AnySettings, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """The model of a network's weights, without what stands on its backbone, in evaluation mode.

    RatsForPartSegmentation, with a variant of RATS its RatsVariantForPartSegmentation, and the bare backbone of a twin.
    """
    config = build_config(settings.model, settings.data.global_crop_size)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here, on the CPU, are replaced at once
        if settings.model.model_type in RATS_TYPES:
            model: PreTrainedModel = RATS_FOR_PARTS[config.model_type](config)
        else:
            model, _ = build_backbone_and_head(settings.model.model_type, config)
    own = {name.removeprefix(_BACKBONE): value for name, value in weights.items() if name.startswith(_BACKBONE)}
    model.base_model.load_state_dict(own)
    return model.eval()


def build_processor(settings: AnySettings) -> RatsImageProcessor | ViTImageProcessor:
    side_px = settings.training.export_image_size or settings.data.global_crop_size
    size = {"height": side_px, "width": side_px}
    if settings.model.model_type in RATS_TYPES:
        return RatsImageProcessor(size=size)
    mean, std = RatsImageProcessor.image_mean, RatsImageProcessor.image_std
    return ViTImageProcessor(size=size, resample=RatsImageProcessor.resample, image_mean=mean, image_std=std)


def export(run: Run, network: torch.nn.Module, folder: Path, origin: Mapping[str, Any] = NOTHING) -> None:
    """Writes the model of a network with its processor and a record of the training. All ranks must call it.

    What else is in the folder stays: a card in which a person may have written, and its pictures.

    Args:
        run: As it is now.
        network: Of the run; its backbone is exported.
        folder: The model folder.
        origin: What the record says besides, such as of the teacher that was distilled.
    """
    model, settings = model_of(run, network), run.settings
    record = training_record(run.accelerator, flat(settings), run.step, run.seconds) | dict(origin)
    is_main = run.accelerator.is_main_process
    on_all_ranks(lambda: write_folder(folder, model, build_processor(settings), record) if is_main else None)


def asked_for(run: Run, output: Path) -> bool:
    """Whether somebody has made the file `export_now` in the folder of the run; it is taken away. All ranks must call it."""
    request = output / "export_now"
    is_there = run.accelerator.is_main_process and request.exists()
    if is_there:
        request.unlink()
    return broadcast_object_list([is_there])[0]


def training_record(accelerator: Accelerator, settings: Mapping[str, Any], step: int, seconds: float) -> dict[str, Any]:
    """What training.json says.

    Args:
        accelerator: Of the run.
        settings: All of them, by name.
        step: Finished steps.
        seconds: Spent in them.
    """
    return {
        "settings": dict(settings),
        "data_sets": name_training_data(settings),
        "steps": step,
        "images_seen": step * settings["batch_size"],
        "seconds": round(seconds, 1),
        "device": device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "versions": {name: version(name) for name in ("modeling-rats", "torch", "transformers", "accelerate", "datasets")},
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
