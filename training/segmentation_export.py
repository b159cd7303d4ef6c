"""The result of fine-tuning as a transformers folder: model, Mask2Former's processor, and the record of the training."""

import math
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import Mask2FormerImageProcessor

from hub_cards.model_folder import write_folder
from hub_cards.records import read_model
from hub_cards.results import FOLDER as RESULTS
from hub_cards.results import is_of, parse
from modeling_rats import RatsForUniversalSegmentation, RatsUniversalSegmentationConfig
from modeling_rats.configuration_rats import height_width
from training.finetune_settings import SegmentationDataSettings, SegmentationSettings
from training.ranks import on_all_ranks


def build_segmentation_processor(
    settings: SegmentationDataSettings, config: RatsUniversalSegmentationConfig
) -> Mask2FormerImageProcessor:
    """Resizes the shortest side as images were trained on, or as the settings say, and both sides up to whole patches."""
    shortest = settings.test_shortest_edge or settings.crop_size
    size = {"shortest_edge": shortest, "longest_edge": settings.test_longest_edge or 4 * shortest}
    patch_size = math.lcm(*height_width(config.backbone_config.patch_size))
    return Mask2FormerImageProcessor(size=size, size_divisor=patch_size, ignore_index=255)


def export_segmentation(
    accelerator: Accelerator,
    model: RatsForUniversalSegmentation,
    settings: SegmentationSettings,
    record: dict[str, Any],
    folder: Path,
) -> None:
    """Writes the model folder; all ranks must call it.

    What else is in the folder stays, such as a card in which a person may have written, but for results of other weights.

    Args:
        accelerator: Of the run.
        model: As it was trained.
        settings: Of the run.
        record: Of the training, see `training.export.training_record`.
        folder: The model folder.
    """
    processor = build_segmentation_processor(settings.data, model.config)

    def write() -> None:
        write_folder(folder, model, processor, record)
        trained = read_model(folder)
        for path in (folder / RESULTS).glob("*.json"):
            if not is_of(parse(path.read_bytes(), path.name), trained):
                path.unlink()

    on_all_ranks(lambda: write() if accelerator.is_main_process else None)


def evaluation_arguments(settings: SegmentationSettings, folder: Path, output: Path) -> list[str]:
    """The command line of evaluation.universal_segmentation that scores the exported model as the settings say."""
    data, training = settings.data, settings.training
    options = {
        "model": folder,
        "dataset": data.dataset,
        "split": data.eval_split,
        "task": data.task,
        "layout": data.layout,
        "config": data.dataset_config,
        "dataset_revision": data.dataset_revision,
        "image_column": data.image_column,
        "mask_column": data.mask_column,
        "segment_labels_column": data.segment_labels_column,
        "objects_column": data.objects_column,
        "ignore_label": data.ignore_label,
        "label_names": data.label_names,
        "num_labels": data.num_labels,
        "thing_labels": data.thing_labels,
        "limit": training.eval_images,
        "output": output,
    }
    flags = ["--reduce_labels"] * data.reduce_labels + ["--quiet"] * training.quiet
    for name, value in options.items():
        if value is not None:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags
