"""Fills settings from a recipe (YAML) and the command line, which wins, and checks those of pretraining."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from training.run_settings import flat
from training.settings import AnySettings, ImageSettings, Settings

QUICKSTART = Path(__file__).parent / "recipes" / "quickstart.yaml"
ReportError = Callable[[str], NoReturn]


def parse(arguments: list[str] | None = None) -> Settings:
    """Settings from `[RECIPE] [--setting value ...]`; without a recipe, those of recipes/quickstart.yaml.

    Raises:
        SystemExit: With a message, for an unreadable recipe, an unknown setting or a value of the wrong type.
    """
    filled, error = fill(
        tuple(Settings.__annotations__.values()),
        arguments,
        program="pretrain.py",
        description=f"DINO pretraining of RATS. RECIPE is a YAML file of settings (default: {QUICKSTART.name}); the defaults "
        "below hold for settings that it leaves out.",
        recipe=QUICKSTART,
    )
    settings = Settings(*filled)
    _check(settings, error)
    return settings


def fill(
    groups: tuple[Any, ...],
    arguments: list[str] | None,
    program: str,
    description: str,
    recipe: Path | None = None,
) -> tuple[list[Any], ReportError]:
    """Groups of settings from `[RECIPE] [--setting value ...]`.

    The recipe's entries stand as flags before the command line's, so types, choices and unknown names are checked alike
    and the command line wins.

    Args:
        groups: Dataclasses; no two have a field of the same name.
        arguments: The command line; that of the process when None.
        program: For the usage line.
        description: For the help.
        recipe: Of a command line without one; None makes it necessary.

    Returns:
        An instance of each group, and what ends the program with the usage and a message.

    Raises:
        SystemExit: With a message, for an unreadable recipe, an unknown setting or a value of the wrong type.
    """
    flags = list(sys.argv[1:] if arguments is None else arguments)
    if flags and not flags[0].startswith("-"):
        recipe = Path(flags.pop(0))
    parser = HfArgumentParser(
        groups,
        prog=program,
        usage=f"{program} {'[RECIPE]' if recipe else 'RECIPE'} [--setting value ...]",
        description=description,
        allow_abbrev=False,
    )
    if recipe is None and not {"-h", "--help"} & set(flags):
        parser.error("the first argument must be a recipe, a YAML file of settings; training/recipes/ has some.")
    arguments = (recipe_flags(recipe, parser, groups) if recipe else []) + flags
    *filled, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        parser.error(f"unknown settings or values: {' '.join(unknown)}; --help lists the settings.")
    return filled, parser.error


def recipe_flags(recipe: Path, parser: HfArgumentParser, groups: tuple[Any, ...]) -> list[str]:
    """The entries of a recipe as command-line flags."""
    try:
        entries = yaml.safe_load(recipe.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(f"recipe {recipe} cannot be read: {error}\nA recipe is a YAML file like {QUICKSTART}.")
    if not isinstance(entries, dict):
        parser.error(f"recipe {recipe} holds a {type(entries).__name__}; it must be lines `setting: value`.")
    known = {name.name for settings in groups for name in fields(settings)}
    unknown = [str(name) for name in entries if name not in known]
    if unknown:
        parser.error(f"recipe {recipe}: unknown settings {', '.join(unknown)}; the settings are: {', '.join(sorted(known))}")
    flags: list[str] = []
    for name, value in entries.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={value}")
    return flags


# Settings that must reach a least value, and those that must lie between 0 and 1.
_AT_LEAST_ONE = {"steps", "batch_size", "checkpoint_steps", "keep_checkpoints", "log_steps", "shuffle_buffer", "patch_size"}
_AT_LEAST_ONE |= {"cpu_threads", "synthetic_images", "gradient_accumulation_steps", "nonfinite_patience"}
_AT_LEAST_ONE |= {"num_global_crops", "eval_images", "knn_train_images", "knn_test_images", "knn_neighbors"}
_AT_LEAST_ZERO = {"seed", "learning_rate", "clip_gradient", "warmup_steps", "weight_decay", "freeze_last_layer_steps"}
_AT_LEAST_ZERO |= {"num_workers", "num_local_crops", "collapse_patience", "keep_every_steps", "koleo_weight"}
_AT_LEAST_ZERO |= {"eval_steps", "eval_pictures", "min_learning_rate", "weight_decay_end"}
_AT_LEAST_ZERO |= {
    "patch_weight",
    "register_bottleneck_weight",
    "register_code_weight",
    "register_balance_weight",
    "global_weight",
}
_ABOVE_ZERO = {"student_temperature", "teacher_temperature", "warmup_teacher_temperature", "register_bottleneck_temperature"}
_SHARES = {"teacher_momentum", "center_momentum", "grayscale", "max_broken_share"}


def check_ranges(values: Mapping[str, Any], error: ReportError) -> None:
    """That numbers are finite and in the range of their settings, by name."""
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            error(f"{name}={value} must be a finite number.")
        if name in _AT_LEAST_ONE and value < 1:
            error(f"{name}={value} must be at least 1.")
        if name in _AT_LEAST_ZERO and value < 0:
            error(f"{name}={value} must be at least 0.")
        if name in _ABOVE_ZERO and value <= 0:
            error(f"{name}={value} must be above 0.")
        if name in _SHARES and not 0 <= value <= 1:
            error(f"{name}={value} must lie between 0 and 1.")


def check_shared(settings: AnySettings, views: Sequence[str], error: ReportError) -> None:
    """Ranges of settings and the rules between those that pretraining and distillation share.

    Args:
        settings: Of either.
        views: Kinds of view that there are: global, local.
        error: Ends the program with a message.
    """
    check_ranges(flat(settings), error)
    model, data, training = settings.model, settings.data, settings.training
    sizes = {f"{kind}_crop_size": getattr(data, f"{kind}_crop_size") for kind in views}
    sizes["export_image_size"] = training.export_image_size or data.global_crop_size
    for name, size in sizes.items():
        if size < model.patch_size or size % model.patch_size:
            error(f"{name}={size} must be a positive multiple of patch_size={model.patch_size}.")
    for name in (f"{kind}_crops_scale" for kind in views):
        scale = getattr(data, name)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            error(f"{name}={scale} must be two shares of the image's area, 0 < low <= high <= 1.")
    if len(data.color_jitter) != 4 or min(data.color_jitter) < 0 or data.color_jitter[3] > 0.5:
        error(f"color_jitter={data.color_jitter} must be four strengths of at least 0, that of hue at most 0.5.")
    _check_mixture(data, error)
    if training.warmup_steps >= training.steps:
        error(f"warmup_steps={training.warmup_steps} must be less than steps={training.steps}; lower --warmup_steps.")


def _check(settings: Settings, error: ReportError) -> None:
    """Ranges of settings and rules between them. What concerns the network alone, RatsConfig checks."""
    model, data, training, _ = settings
    check_shared(settings, ("global", "local"), error)
    if len(data.blur_sigma) != 2 or not 0 < data.blur_sigma[0] <= data.blur_sigma[1]:
        error(f"blur_sigma={data.blur_sigma} must be two numbers of pixels, 0 < low <= high.")
    if training.koleo_weight and model.model_type == "vit":
        error(f"koleo_weight={training.koleo_weight} spreads registers, and model_type=vit has none; set koleo_weight=0.")
    if training.koleo_weight and model.num_registers < 2:
        error(f"koleo_weight={training.koleo_weight} spreads registers from each other; num_registers=1 leaves none to spread.")
    if training.register_bottleneck_weight and model.model_type == "vit":
        weight = f"register_bottleneck_weight={training.register_bottleneck_weight}"
        error(f"{weight} has registers explain patches, and model_type=vit has none; set register_bottleneck_weight=0.")
    if training.warm_start and model.model_type != "rats":
        error(f"warm_start={training.warm_start} fills a RATS; with model_type={model.model_type} leave it out.")


def _check_mixture(data: ImageSettings, error: ReportError) -> None:
    """That every data set has its weight, its split and the like."""
    number = len(data.dataset or ["rendered"])
    for name in ("dataset_config", "dataset_split", "dataset_revision", "image_column"):
        values = getattr(data, name)
        if values and len(values) not in (1, number):
            error(
                f"{name}={values} has {len(values)} values for {number} data set{'s' * (number > 1)}; give one for all or one "
                "for each, the word none where a data set has none."
            )
    weights = data.dataset_weights
    if weights and len(weights) != number:
        error(f"dataset_weights={weights} has {len(weights)} values and dataset {number}; give one each, or none at all.")
    if weights and not (min(weights) > 0 and math.isfinite(sum(weights))):
        error(f"dataset_weights={weights} must be finite and above 0; leave out a data set that is to give no images.")
