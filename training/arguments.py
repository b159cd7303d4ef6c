"""Settings of pretraining: three dataclasses, filled from a recipe (YAML) and the command line, which wins."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NoReturn

import yaml
from transformers import HfArgumentParser

QUICKSTART = Path(__file__).parent / "recipes" / "quickstart.yaml"


@dataclass
class ModelSettings:
    """The network; names and meanings as in RatsConfig."""

    hidden_size: int = field(default=384, metadata={"help": "Width D of the tokens."})
    num_hidden_layers: int = field(default=12, metadata={"help": "Number of blocks."})
    num_attention_heads: int = field(default=6, metadata={"help": "Number of heads H."})
    intermediate_size: int = field(default=1536, metadata={"help": "Width of the MLPs."})
    num_registers: int = field(default=96, metadata={"help": "Number of registers N, divisible by the heads."})
    patch_size: int = field(default=16, metadata={"help": "Side of a patch, in pixels."})
    drop_path_rate: float = field(default=0.1, metadata={"help": "Stochastic depth of the last block; student only."})
    initializer_range: float = field(default=0.02, metadata={"help": "Standard deviation of the initial weights."})
    partition_registers: bool = field(default=True, metadata={"help": "Partition the registers over the heads."})
    communicate: bool = field(default=True, metadata={"help": "Let registers attend to registers."})
    num_prototypes: int = field(default=65536, metadata={"help": "Number of prototypes K of the DINO head."})
    head_hidden_size: int = field(default=2048, metadata={"help": "Width of the DINO head's hidden layers."})
    head_bottleneck_size: int = field(default=256, metadata={"help": "Width of the DINO head's output."})


@dataclass
class DataSettings:
    """The images and their views. Sizes in pixels."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "Hub name, folder or file of images; when not given, rendered synthetic objects."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a data set on the Hub; its newest state when not given."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of images; found when there is one."})
    synthetic_images: int = field(default=20_000, metadata={"help": "Images to render when no data set is given."})
    synthetic_image_size: int = field(default=64, metadata={"help": "Side of the rendered images."})
    synthetic_difficulty: str = field(default="easy", metadata={"help": "easy, medium or hard."})
    synthetic_seed: int = field(default=0, metadata={"help": "Seed of the rendered images."})
    shuffle_buffer: int = field(default=2000, metadata={"help": "Rows that each loader process mixes its order over."})
    max_broken_share: float = field(
        default=0.1,
        metadata={"help": "Share of broken images past which the run stops, judged from a loader process' 500th; 1: never."},
    )
    num_workers: int = field(default=4, metadata={"help": "Loader processes per rank."})
    global_crop_size: int = field(default=224, metadata={"help": "Side of the two global views."})
    local_crop_size: int = field(default=96, metadata={"help": "Side of the local views."})
    num_local_crops: int = field(default=8, metadata={"help": "Number of local views."})
    augmentation: str = field(
        default="fast",
        metadata={"help": "fast, or original: DINO's own transforms, to the last level.", "choices": ["fast", "original"]},
    )
    global_crops_scale: list[float] = field(
        default_factory=lambda: [0.4, 1.0], metadata={"help": "Range of the area share of a global view."}
    )
    local_crops_scale: list[float] = field(
        default_factory=lambda: [0.05, 0.4], metadata={"help": "Range of the area share of a local view."}
    )
    blur_sigma: list[float] = field(
        default_factory=lambda: [0.1, 2.0],
        metadata={"help": "Range of the blur's standard deviation; DINO's suits 224 px, small images want less."},
    )
    color_jitter: list[float] = field(
        default_factory=lambda: [0.4, 0.4, 0.2, 0.1],
        metadata={"help": "Strength of the jitter of brightness, contrast, saturation and hue."},
    )
    grayscale: float = field(default=0.2, metadata={"help": "Probability of grayscale."})


@dataclass
class TrainingSettings:
    """The run: steps, optimiser, DINO, bookkeeping. Schedules count optimiser steps."""

    output_dir: str = field(default="outputs/pretrain", metadata={"help": "Folder of everything the run writes."})
    warm_start: str | None = field(
        default=None,
        metadata={"help": "ViT or DINO checkpoint (folder, Hub name or file) to start from; only the registers begin anew."},
    )
    steps: int = field(default=100_000, metadata={"help": "Optimiser steps of the whole run."})
    batch_size: int = field(default=512, metadata={"help": "Images per step over all ranks."})
    learning_rate: float = field(
        default=5e-4, metadata={"help": "Peak learning rate at a batch of 256; scaled linearly with the batch."}
    )
    min_learning_rate: float = field(default=1e-6, metadata={"help": "Learning rate at the end; not scaled."})
    warmup_steps: int = field(default=10_000, metadata={"help": "Steps of linear warm-up of the learning rate."})
    weight_decay: float = field(default=0.04, metadata={"help": "Weight decay at the start."})
    weight_decay_end: float = field(default=0.4, metadata={"help": "Weight decay at the end."})
    clip_gradient: float = field(default=3.0, metadata={"help": "Largest norm of a parameter's gradient; 0: off."})
    freeze_last_layer_steps: int = field(
        default=0, metadata={"help": "Steps at the start in which the prototypes stay as they are."}
    )
    teacher_momentum: float = field(default=0.996, metadata={"help": "EMA momentum at the start; ends at 1."})
    student_temperature: float = field(default=0.1, metadata={"help": "Temperature of the student."})
    teacher_temperature: float = field(default=0.04, metadata={"help": "Temperature of the teacher after warm-up."})
    warmup_teacher_temperature: float = field(default=0.04, metadata={"help": "Its temperature at the start."})
    warmup_teacher_temperature_steps: int = field(default=0, metadata={"help": "Steps of its linear warm-up."})
    centering: str = field(
        default="centering",
        metadata={"help": "centering (DINO) or sinkhorn_knopp.", "choices": ["centering", "sinkhorn_knopp"]},
    )
    center_momentum: float = field(default=0.9, metadata={"help": "EMA momentum of the centre."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, order and views."})
    mixed_precision: str = field(
        default="auto",
        metadata={"help": "auto: bf16 where the device computes in it.", "choices": ["auto", "no", "bf16"]},
    )
    cpu_threads: int | None = field(
        default=None, metadata={"help": "Threads per CPU process; all cores over the processes when not given."}
    )
    resume: str = field(
        default="auto", metadata={"help": "auto, none (start anew and replace the run in output_dir), or a checkpoint's path."}
    )
    checkpoint_steps: int = field(default=1000, metadata={"help": "Steps between checkpoints."})
    keep_checkpoints: int = field(default=2, metadata={"help": "How many of the newest stay."})
    keep_every_steps: int = field(
        default=0, metadata={"help": "The first checkpoint at or after every multiple of it stays too; 0: none."}
    )
    collapse_patience: int = field(
        default=20, metadata={"help": "Lines of the log in a row with a collapsed teacher after which the run stops; 0: never."}
    )
    log_steps: int = field(default=50, metadata={"help": "Steps between lines of the log."})
    export_image_size: int | None = field(
        default=None, metadata={"help": "Size that the exported processor resizes to; the global views' by default."}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Print recipe, sizes, memory and length, decode a few images, and train nothing."}
    )
    quiet: bool = field(default=False, metadata={"help": "No progress bar."})


Settings = tuple[ModelSettings, DataSettings, TrainingSettings]


def parse(arguments: list[str] | None = None) -> Settings:
    """Settings from `[RECIPE] [--setting value ...]`; without a recipe, those of recipes/quickstart.yaml.

    The recipe's entries stand as flags before the command line's, so types, choices and unknown names are checked alike
    and the command line wins.

    Raises:
        SystemExit: With a message, for an unreadable recipe, an unknown setting or a value of the wrong type.
    """
    flags = list(sys.argv[1:] if arguments is None else arguments)
    recipe = Path(flags.pop(0)) if flags and not flags[0].startswith("-") else QUICKSTART
    parser = HfArgumentParser(
        [ModelSettings, DataSettings, TrainingSettings],  # type: ignore[list-item]  # any dataclass will do
        prog="pretrain.py",
        usage="pretrain.py [RECIPE] [--setting value ...]",
        description=f"DINO pretraining of RATS. RECIPE is a YAML file of settings (default: {QUICKSTART.name}); the defaults "
        "below hold for settings that it leaves out.",
        allow_abbrev=False,
    )
    arguments = recipe_flags(recipe, parser) + flags
    model, data, training, unknown = parser.parse_args_into_dataclasses(
        arguments, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        parser.error(f"unknown settings or values: {' '.join(unknown)}; --help lists the settings.")
    _check(model, data, training, parser.error)
    return model, data, training


def recipe_flags(recipe: Path, parser: HfArgumentParser) -> list[str]:
    """The entries of a recipe as command-line flags."""
    try:
        entries = yaml.safe_load(recipe.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(f"recipe {recipe} cannot be read: {error}\nA recipe is a YAML file like {QUICKSTART}.")
    if not isinstance(entries, dict):
        parser.error(f"recipe {recipe} holds a {type(entries).__name__}; it must be lines `setting: value`.")
    known = {name.name for settings in (ModelSettings, DataSettings, TrainingSettings) for name in fields(settings)}
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
_AT_LEAST_ONE |= {"cpu_threads", "synthetic_images"}
_AT_LEAST_ZERO = {"seed", "learning_rate", "clip_gradient", "warmup_steps", "weight_decay", "freeze_last_layer_steps"}
_AT_LEAST_ZERO |= {"num_workers", "num_local_crops", "collapse_patience", "keep_every_steps"}
_ABOVE_ZERO = {"student_temperature", "teacher_temperature", "warmup_teacher_temperature"}
_SHARES = {"teacher_momentum", "center_momentum", "grayscale", "max_broken_share"}


def _check(model: ModelSettings, data: DataSettings, training: TrainingSettings, error: Callable[[str], NoReturn]) -> None:
    """Ranges of settings and rules between them. What concerns the network alone, RatsConfig checks."""
    for name, value in (vars(model) | vars(data) | vars(training)).items():
        if value is None:
            continue
        if name in _AT_LEAST_ONE and value < 1:
            error(f"{name}={value} must be at least 1.")
        if name in _AT_LEAST_ZERO and value < 0:
            error(f"{name}={value} must be at least 0.")
        if name in _ABOVE_ZERO and value <= 0:
            error(f"{name}={value} must be above 0.")
        if name in _SHARES and not 0 <= value <= 1:
            error(f"{name}={value} must lie between 0 and 1.")
    sizes = {name: getattr(data, name) for name in ("global_crop_size", "local_crop_size")}
    sizes["export_image_size"] = training.export_image_size or data.global_crop_size
    for name, size in sizes.items():
        if size < model.patch_size or size % model.patch_size:
            error(f"{name}={size} must be a positive multiple of patch_size={model.patch_size}.")
    for name in ("global_crops_scale", "local_crops_scale"):
        scale = getattr(data, name)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            error(f"{name}={scale} must be two shares of the image's area, 0 < low <= high <= 1.")
    if len(data.blur_sigma) != 2 or not 0 < data.blur_sigma[0] <= data.blur_sigma[1]:
        error(f"blur_sigma={data.blur_sigma} must be two numbers of pixels, 0 < low <= high.")
    if len(data.color_jitter) != 4 or min(data.color_jitter) < 0 or data.color_jitter[3] > 0.5:
        error(f"color_jitter={data.color_jitter} must be four strengths of at least 0, that of hue at most 0.5.")
    if training.warmup_steps >= training.steps:
        error(f"warmup_steps={training.warmup_steps} must be less than steps={training.steps}; lower --warmup_steps.")
