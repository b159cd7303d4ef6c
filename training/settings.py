"""The settings of pretraining; `--help` and the recipes are made of them, `arguments.py` fills and checks them.

Distillation shares `RatsSettings`, `ImageSettings`, `LoopSettings` and `EvaluationSettings` (`distill_settings.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, get_args

from evaluation.register_attention_variants import VARIANTS
from modeling_rats.configuration_rats import PartSimilarity
from training.run_settings import RunSettings


@dataclass
class RatsSettings:
    """A RATS; names and meanings as in RatsConfig."""

    model_type: str = field(
        default="rats",
        metadata={
            "help": f"rats, or RATS with another register attention for ablations: {', '.join(VARIANTS)} (perceiver with "
            "partition_registers and communicate false).",
            "choices": ["rats", *VARIANTS],
        },
    )
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
    part_layer: int = field(default=-1, metadata={"help": "Layer from which the exported model reads parts."})
    part_similarity: str = field(
        default="registers",
        metadata={
            "help": "What the exported model compares patches with, as in RatsConfig; it does not change the training.",
            "choices": [*get_args(PartSimilarity)],
        },
    )


@dataclass
class ModelSettings(RatsSettings):
    """The network of pretraining, or a twin, and the DINO head."""

    model_type: str = field(
        default="rats",
        metadata={
            "help": "rats; a twin of the same sizes for comparisons: vit, or registers (a ViT with num_registers plain "
            f"registers); or RATS with another register attention for ablations: {', '.join(VARIANTS)} (perceiver with "
            "partition_registers and communicate false).",
            "choices": ["rats", "vit", "registers", *VARIANTS],
        },
    )
    num_prototypes: int = field(default=65536, metadata={"help": "Number of prototypes K of the DINO head."})
    head_hidden_size: int = field(default=2048, metadata={"help": "Width of the DINO head's hidden layers."})
    head_bottleneck_size: int = field(default=256, metadata={"help": "Width of the DINO head's output."})


@dataclass
class ImageSettings:
    """The images, and their global views. Sizes in pixels."""

    dataset: list[str] | None = field(
        default=None,
        metadata={"help": "One or several Hub names, folders or files of images; when not given, rendered synthetic objects."},
    )
    dataset_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each among the images of several data sets; equal when not given."}
    )
    # Those below: one value for all data sets or one for each, the word none where one has none.
    dataset_config: list[str] | None = field(default=None, metadata={"help": "Configuration, one for all or one each."})
    dataset_split: list[str] = field(
        default_factory=lambda: ["train"], metadata={"help": "Split to train on, one for all or one each."}
    )
    dataset_revision: list[str] | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit on the Hub, one for all or one each; its newest state when not given."},
    )
    image_column: list[str] | None = field(
        default=None, metadata={"help": "Column of images, one for all or one each; found when there is one."}
    )
    synthetic_images: int = field(default=20_000, metadata={"help": "Images to render when no data set is given."})
    synthetic_image_size: int = field(default=64, metadata={"help": "Side of the rendered images."})
    synthetic_difficulty: str = field(default="easy", metadata={"help": "textures, colours, easy, medium or hard."})
    synthetic_seed: int = field(default=0, metadata={"help": "Seed of the rendered images."})
    shuffle_buffer: int = field(default=2000, metadata={"help": "Rows that each loader process mixes its order over."})
    max_broken_share: float = field(
        default=0.1,
        metadata={"help": "Share of broken images past which the run stops, judged from a loader process' 500th; 1: never."},
    )
    num_workers: int = field(default=4, metadata={"help": "Loader processes per rank."})
    global_crop_size: int = field(default=224, metadata={"help": "Side of the global views."})
    augmentation: str = field(
        default="fast",
        metadata={"help": "fast, or original: DINO's own transforms, to the last level.", "choices": ["fast", "original"]},
    )
    global_crops_scale: list[float] = field(
        default_factory=lambda: [0.4, 1.0], metadata={"help": "Range of the area share of a global view."}
    )
    color_jitter: list[float] = field(
        default_factory=lambda: [0.4, 0.4, 0.2, 0.1],
        metadata={"help": "Strength of the jitter of brightness, contrast, saturation and hue."},
    )
    grayscale: float = field(default=0.2, metadata={"help": "Probability of grayscale."})


@dataclass
class DataSettings(ImageSettings):
    """The images and their views, two global ones and some local ones."""

    local_crop_size: int = field(default=96, metadata={"help": "Side of the local views."})
    num_local_crops: int = field(default=8, metadata={"help": "Number of local views."})
    local_crops_scale: list[float] = field(
        default_factory=lambda: [0.05, 0.4], metadata={"help": "Range of the area share of a local view."}
    )
    blur_sigma: list[float] = field(
        default_factory=lambda: [0.1, 2.0],
        metadata={"help": "Range of the blur's standard deviation; DINO's suits 224 px, small images want less."},
    )


@dataclass
class LoopSettings(RunSettings):
    """Length, optimiser and end of a run that trains a RATS without labels. Schedules count optimiser steps."""

    learning_rate: float = field(
        default=5e-4, metadata={"help": "Peak learning rate at a batch of 256; scaled linearly with the batch."}
    )
    min_learning_rate: float = field(default=1e-6, metadata={"help": "Learning rate at the end; not scaled."})
    warmup_steps: int = field(default=10_000, metadata={"help": "Steps of linear warm-up of the learning rate."})
    weight_decay: float = field(default=0.04, metadata={"help": "Weight decay at the start."})
    weight_decay_end: float = field(default=0.4, metadata={"help": "Weight decay at the end."})
    register_bottleneck_temperature: float = field(
        default=0.1, metadata={"help": "Temperature of the softmax over the registers in the register bottleneck's loss."}
    )
    register_bottleneck_error: str = field(
        default="cosine",
        metadata={
            "help": "How it compares: cosine, all patches alike, or squared, as k-means.",
            "choices": ["cosine", "squared"],
        },
    )
    register_bottleneck_mean: str = field(
        default="batch",
        metadata={
            "help": "Mean that its targets are without: batch (of a step), or image (of each image by itself).",
            "choices": ["batch", "image"],
        },
    )
    export_image_size: int | None = field(
        default=None, metadata={"help": "Size that the exported processor resizes to; the global views' by default."}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Print recipe, sizes, memory and length, decode a few images, and train nothing."}
    )


@dataclass
class TrainingSettings(LoopSettings):
    """The run: steps, optimiser, DINO, bookkeeping. Schedules count optimiser steps."""

    output_dir: str = field(default="outputs/pretrain", metadata={"help": "Folder of everything the run writes."})
    warm_start: str | None = field(
        default=None,
        metadata={"help": "ViT or DINO checkpoint (folder, Hub name or file) to start from; only the registers begin anew."},
    )
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
    koleo_weight: float = field(
        default=0.0, metadata={"help": "Weight of the KoLeo regulariser that spreads the registers of an image; 0: off."}
    )
    register_bottleneck_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a loss that has the registers explain the teacher's patches, as in distillation; the paper does "
            "without; 0: off."
        },
    )
    collapse_patience: int = field(
        default=20, metadata={"help": "Lines of the log in a row with a collapsed teacher after which the run stops; 0: never."}
    )


@dataclass
class EvaluationSettings:
    """What the teacher is measured on while it trains."""

    eval_steps: int = field(default=0, metadata={"help": "Steps between measurements of the teacher; 0: none."})
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Images with true masks (Hub name, folder or file) that part maps are scored on."}
    )
    eval_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    eval_split: str | None = field(default=None, metadata={"help": "Its split; validation by default."})
    eval_image_column: str = field(default="image", metadata={"help": "Its column of images."})
    eval_mask_column: str = field(default="mask", metadata={"help": "Its column of masks."})
    eval_ignore_label: int | None = field(default=None, metadata={"help": "True label whose pixels do not count."})
    eval_images: int = field(default=100, metadata={"help": "How many of its first images are scored."})
    eval_pictures: int = field(default=8, metadata={"help": "Images whose part maps are drawn each time."})
    knn_dataset: str | None = field(
        default=None, metadata={"help": "Labelled images (Hub name, folder or file) for the k-NN accuracy of the features."}
    )
    knn_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    knn_train_split: str = field(default="train", metadata={"help": "Split of the neighbours."})
    knn_test_split: str = field(default="validation", metadata={"help": "Split that is classified."})
    knn_image_column: str = field(default="image", metadata={"help": "Its column of images."})
    knn_label_column: str = field(default="label", metadata={"help": "Its column of labels."})
    knn_train_images: int = field(default=10_000, metadata={"help": "How many of the first neighbours are used."})
    knn_test_images: int = field(default=1_000, metadata={"help": "How many of the first images are classified."})
    knn_neighbors: int = field(default=20, metadata={"help": "Number k of neighbours that vote."})


class Settings(NamedTuple):
    """All settings of a run."""

    model: ModelSettings
    data: DataSettings
    training: TrainingSettings
    evaluation: EvaluationSettings


class AnySettings(Protocol):
    """All settings of a run, of pretraining or of distillation, group by group."""

    @property
    def model(self) -> RatsSettings: ...
    @property
    def data(self) -> ImageSettings: ...
    @property
    def training(self) -> LoopSettings: ...
    @property
    def evaluation(self) -> EvaluationSettings: ...
    def __iter__(self) -> Iterator[Any]: ...
