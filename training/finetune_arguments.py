"""Fills the settings of fine-tuning from a recipe and the command line, and checks them."""

from training.arguments import ReportError, check_ranges, fill
from training.finetune_settings import SegmentationSettings
from training.run_settings import flat

NECESSARY = ("backbone", "dataset")
AT_LEAST_ONE = ("crop_size", "test_shortest_edge", "test_longest_edge")
AT_LEAST_ZERO = ("class_weight", "mask_weight", "dice_weight", "no_object_weight", "backbone_multiplier", "num_workers")


def parse(arguments: list[str] | None = None) -> SegmentationSettings:
    """Settings from `RECIPE [--setting value ...]`.

    Raises:
        SystemExit: With a message, for an unreadable recipe, an unknown setting or a value of the wrong type or range.
    """
    filled, error = fill(
        tuple(SegmentationSettings.__annotations__.values()),
        arguments,
        program="finetune_segmentation.py",
        description="Fine-tuning for segmentation on images with true masks. RECIPE is a YAML file of settings; the defaults "
        "below, Mask2Former's where it has them, hold for settings that it leaves out.",
    )
    settings = SegmentationSettings(*filled)
    if settings.data.eval_split == "none":
        settings.data.eval_split = None
    _check(settings, error)
    return settings


def _check(settings: SegmentationSettings, error: ReportError) -> None:
    """Ranges of settings and rules between them. What concerns the network alone, its configuration checks."""
    model, data, training = settings
    check_ranges(flat(settings), error)
    for name, value in flat(settings).items():
        if name in NECESSARY and value is None:
            error(f"{name} is missing: name it in the recipe or with --{name}.")
        if name in AT_LEAST_ZERO and value < 0:
            error(f"{name}={value} must be at least 0.")
        if name in AT_LEAST_ONE and value is not None and value < 1:
            error(f"{name}={value} must be at least 1 px.")
    if not 0 <= model.drop_path_rate < 1 or (model.freeze_backbone and model.drop_path_rate):
        error(f"drop_path_rate={model.drop_path_rate} must be 0 <= rate < 1, and 0 with a frozen backbone.")
    if not 0 < training.layer_decay <= 1:
        error(f"layer_decay={training.layer_decay} must be above 0 and at most 1; 1 leaves all blocks alike.")
    if not 0 <= data.flip_probability <= 1:
        error(f"flip_probability={data.flip_probability} must lie between 0 and 1.")
    scale = data.scale_range
    if scale is not None and (len(scale) != 2 or not 0 < scale[0] <= scale[1]):
        error(f"scale_range={scale} must be two rising scales above 0, such as 0.1 2.0.")
    if data.eval_split == data.train_split:
        error(f"eval_split={data.eval_split} is the split to train on; score another, or none.")
    if training.warmup_steps >= training.steps:
        error(f"warmup_steps={training.warmup_steps} must be less than steps={training.steps}; lower --warmup_steps.")
