"""The segmented images that fine-tuning's settings name, and the batches of a rank."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from evaluation.segmentation_data import SegmentationData, open_segmentation_data
from training.finetune_settings import SegmentationDataSettings, SegmentationSettings
from training.segmentation_batches import SegmentBatch, StepBatches, TrainingSegments, collate
from training.segmentation_transforms import TrainingTransform
from training.source_rows import UnreadableImagesError


def open_split(settings: SegmentationDataSettings, split: str) -> SegmentationData:
    """One split of the data set; errors as `open_segmentation_data`."""
    return open_segmentation_data(
        settings.dataset or "",
        split,
        settings.task,  # type: ignore[arg-type]  # the choices are the task's
        config=settings.dataset_config,
        revision=settings.dataset_revision,
        layout=settings.layout,
        image_column=settings.image_column,
        mask_column=settings.mask_column,
        segment_labels_column=settings.segment_labels_column,
        objects_column=settings.objects_column,
        ignore_label=settings.ignore_label,
        reduce_labels=settings.reduce_labels,
        label_names=settings.label_names,
        num_labels=settings.num_labels,
        thing_labels=settings.thing_labels,
    )


def training_batches(
    data: SegmentationData, settings: SegmentationSettings, accelerator: Accelerator, first_step: int
) -> Iterator[SegmentBatch]:
    """The batches of this rank from a step to the last. To ask for one more ends the loader's processes.

    Raises:
        ValueError: If a setting of the augmentation cannot be used; when a batch is made: if an annotation cannot be used.
        UnreadableImagesError: When a batch is made: if no image can be decoded.
    """
    of_data, training = settings.data, settings.training
    transform = TrainingTransform(
        of_data.crop_size,
        of_data.resize,  # type: ignore[arg-type]  # the choices are the transform's
        None if of_data.scale_range is None else (of_data.scale_range[0], of_data.scale_range[1]),
        of_data.color_distortion,
        of_data.flip_probability,
    )
    places = StepBatches(
        len(data),
        training.batch_size,
        training.seed,
        accelerator.process_index,
        accelerator.num_processes,
        first_step,
        num_steps=training.steps,
    )
    loader = DataLoader(
        TrainingSegments(data, transform, training.seed),
        batch_sampler=places,
        collate_fn=collate,
        num_workers=of_data.num_workers,
        multiprocessing_context="spawn" if of_data.num_workers else None,  # forking after threads have started can hang
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # or the loader would draw from the one that the losses' points come from
    )
    return _without_tracebacks(iter(loader))  # whose processes start here, not at the first batch


def _without_tracebacks(batches: Iterator[SegmentBatch]) -> Iterator[SegmentBatch]:
    """A loader process' error is told as the text of its traceback, which ends in the message."""
    try:
        yield from batches
    except (UnreadableImagesError, ValueError) as error:
        raise type(error)(str(error).rpartition("Error: ")[2].strip() or str(error)) from error
