"""The data sets that the settings name, or rendered images, as a stream of views."""

from pathlib import Path

from accelerate import Accelerator

from evaluation.data_sets import open_images
from evaluation.synthetic_parts import recorded_splits, write_dataset
from training.crops import Crops, MultiCrop
from training.original_crops import OriginalMultiCrop
from training.settings import AnySettings, ImageSettings, LoopSettings, Settings
from training.source_rows import Source
from training.streaming import ViewStream


def open_stream(accelerator: Accelerator, settings: Settings) -> ViewStream:
    """This rank's stream of DINO's views (`open_views`)."""
    data = settings.data
    crops = MultiCrop(
        data.global_crop_size,
        data.local_crop_size,
        data.num_local_crops,
        data.global_crops_scale,
        data.local_crops_scale,
        blur_sigma_px=data.blur_sigma,
        jitter=data.color_jitter,
        grayscale=data.grayscale,
    )
    return open_views(accelerator, settings, crops)


def open_views(accelerator: Accelerator, settings: AnySettings, crops: Crops) -> ViewStream:
    """This rank's stream of views, mixed of all data sets; rendered images if the settings name none.

    Raises:
        FileNotFoundError: If a data set does not exist, or holds no data.
        ValueError: If one does not have the split or the column of images.
        UnreadableImagesError: If a file cannot be read.
    """
    data, training = settings.data, settings.training
    with accelerator.main_process_first():
        names = data.dataset or [render_synthetic(data, training)]
    return ViewStream(
        open_sources(names, data),
        crops if data.augmentation == "fast" else OriginalMultiCrop(crops.views),
        training.seed,
        accelerator.process_index,
        accelerator.num_processes,
        data.num_workers,
        data.shuffle_buffer,
        data.max_broken_share,
    )


def open_sources(names: list[str], data: ImageSettings) -> list[Source]:
    """Each data set with its own of the settings that may differ between them."""
    splits = data.dataset_split * len(names) if len(data.dataset_split) == 1 else data.dataset_split
    configs, revisions, columns = (
        one_each(values, len(names)) for values in (data.dataset_config, data.dataset_revision, data.image_column)
    )
    weights = data.dataset_weights or [1.0] * len(names)
    sources = []
    for name, config, split, column, revision, weight in zip(names, configs, splits, columns, revisions, weights, strict=True):
        rows, image_column = open_images(name, config, split, column, revision)
        sources.append(Source(f"{name} ({f'{config}, ' if config else ''}{split})", rows, image_column, weight))
    return sources


def one_each(values: list[str] | None, number: int) -> list[str | None]:
    """A setting's value for each of `number` data sets; it holds none, one for all or one for each, or the word none."""
    values = values or ["none"]
    values = values * number if len(values) == 1 else values
    return [None if value.lower() == "none" else value for value in values]


def render_synthetic(data: ImageSettings, training: LoopSettings) -> str:
    """The embedded data set in the output folder; rendered again only if its settings have changed."""
    folder = Path(training.output_dir) / "data"
    wanted: dict = {
        "images": data.synthetic_images,
        "image_size_px": data.synthetic_image_size,
        "seed": data.synthetic_seed,
        "difficulty": data.synthetic_difficulty,
    }
    if recorded_splits(folder).get("train") != wanted:
        write_dataset(folder, **wanted, split="train", quiet=training.quiet, overwrite=True)
    return str(folder)
