"""The settings of fine-tuning for segmentation; `--help` and the recipes are made of them."""

from dataclasses import dataclass, field
from typing import NamedTuple, get_args

from evaluation.segments import Task
from modeling_rats.configuration_universal_segmentation_rats import QuerySource, SegmentationHead
from training.run_settings import RunSettings
from training.segmentation_transforms import Resize


@dataclass
class SegmentationModelSettings:
    """The network; names and meanings as in RatsUniversalSegmentationConfig."""

    backbone: str | None = field(
        default=None,
        metadata={"help": "Pretrained backbone: folder or Hub name of a RATS, ViT (DINO v1), DINOv2 or DINOv3. Necessary."},
    )
    backbone_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the backbone on the Hub."})
    freeze_backbone: bool = field(default=False, metadata={"help": "Train the head alone."})
    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth of the backbone's last block."})
    segmentation_head: str = field(
        default="mask2former",
        metadata={
            "help": "mask2former, or encoder_only: registers as queries, no decoder.",
            "choices": [*get_args(SegmentationHead)],
        },
    )
    query_source: str = field(
        default="registers",
        metadata={
            "help": "registers: learned queries plus projected registers; learned: without.",
            "choices": [*get_args(QuerySource)],
        },
    )
    num_queries: int | None = field(
        default=None, metadata={"help": "Number of queries; as many as registers, or 100 if these do not become queries."}
    )
    feature_size: int = field(default=256, metadata={"help": "Channels of feature pyramid and pixel decoder."})
    mask_feature_size: int = field(default=256, metadata={"help": "Channels of the pixel embeddings."})
    hidden_dim: int = field(default=256, metadata={"help": "Width of the queries in the transformer decoder."})
    encoder_layers: int = field(default=6, metadata={"help": "Layers of the pixel decoder."})
    encoder_feedforward_dim: int = field(default=1024, metadata={"help": "Width of its MLPs."})
    decoder_layers: int = field(
        default=10, metadata={"help": "Predictions of the transformer decoder: one of the queries as they start, one a layer."}
    )
    dim_feedforward: int = field(default=2048, metadata={"help": "Width of its MLPs."})
    num_attention_heads: int = field(default=8, metadata={"help": "Heads of both decoders."})
    num_upscale_blocks: int = field(default=2, metadata={"help": "encoder_only: how often the patch grid is doubled."})
    num_auxiliary_layers: int = field(default=3, metadata={"help": "encoder_only: blocks before the last that segment, too."})
    class_weight: float = field(default=2.0, metadata={"help": "Weight of the labels' cross-entropy."})
    mask_weight: float = field(default=5.0, metadata={"help": "Weight of the masks' cross-entropy."})
    dice_weight: float = field(default=5.0, metadata={"help": "Weight of the masks' dice loss."})
    no_object_weight: float = field(default=0.1, metadata={"help": "Weight of queries without an object."})
    train_num_points: int = field(default=12544, metadata={"help": "Points of a mask at which its loss is computed."})


@dataclass
class SegmentationDataSettings:
    """The images and their true masks; meanings as in evaluation.segmentation_data. Sizes in pixels."""

    task: str = field(default="semantic", metadata={"help": "What the masks are.", "choices": [*get_args(Task)]})
    dataset: str | None = field(
        default=None, metadata={"help": "Hub name, folder or file; with layout, the folder of the official files. Necessary."}
    )
    layout: str | None = field(default=None, metadata={"help": "Official files: coco_instances, coco_panoptic or ade20k."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set that has several."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub; its newest state."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default="validation", metadata={"help": "Split that is scored; the word none: no scores."})
    image_column: str = field(default="image", metadata={"help": "Column of images."})
    mask_column: str | None = field(default=None, metadata={"help": "Column of maps; mask or segment_mask."})
    segment_labels_column: str | None = field(default=None, metadata={"help": "Column of the labels of a map's segments."})
    objects_column: str | None = field(default=None, metadata={"help": "Column of COCO-like objects; objects."})
    ignore_label: int | None = field(default=None, metadata={"help": "Stored label whose pixels do not count."})
    reduce_labels: bool = field(default=False, metadata={"help": "Whether the stored 0 does not count, and 1 is the first."})
    label_names: list[str] | None = field(default=None, metadata={"help": "Names of the labels, where the data has none."})
    num_labels: int | None = field(default=None, metadata={"help": "Number of the labels, where nothing names them."})
    thing_labels: list[int] | None = field(default=None, metadata={"help": "Labels whose objects are counted one by one."})
    crop_size: int = field(default=512, metadata={"help": "Side of the training crops."})
    resize: str = field(
        default="shortest_edge",
        metadata={"help": "scale_jitter (Mask2Former's COCO) or shortest_edge (its ADE20K).", "choices": [*get_args(Resize)]},
    )
    scale_range: list[float] | None = field(
        default=None, metadata={"help": "Smallest and largest scale; 0.1 2.0 for scale_jitter, 0.5 2.0 for shortest_edge."}
    )
    color_distortion: bool = field(default=False, metadata={"help": "Distort colours (Mask2Former's ADE20K)."})
    flip_probability: float = field(default=0.5, metadata={"help": "Of a horizontal flip."})
    test_shortest_edge: int | None = field(
        default=None, metadata={"help": "Shortest side of images when scored and in use; the crop size when not given."}
    )
    test_longest_edge: int | None = field(
        default=None, metadata={"help": "Their longest side at most; 4 times the shortest when not given."}
    )
    num_workers: int = field(default=4, metadata={"help": "Loader processes per rank."})


@dataclass
class FinetuneSettings(RunSettings):
    """The run: steps, optimiser, bookkeeping. Schedules count optimiser steps."""

    output_dir: str = field(default="outputs/segmentation", metadata={"help": "Folder of everything the run writes."})
    steps: int = field(default=160_000, metadata={"help": "Optimiser steps of the whole run."})
    batch_size: int = field(default=16, metadata={"help": "Images per step over all ranks."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of the head; not scaled by the batch."})
    backbone_multiplier: float = field(default=0.1, metadata={"help": "Learning rate of the backbone's last block over it."})
    layer_decay: float = field(default=1.0, metadata={"help": "And of each block over that of the next (BEiT, ViTDet)."})
    schedule: str = field(
        default="poly",
        metadata={
            "help": "poly (power 0.9), multistep (a tenth after 8/9 and after 26/27 of the steps), or cosine.",
            "choices": ["poly", "multistep", "cosine"],
        },
    )
    warmup_steps: int = field(default=0, metadata={"help": "Steps of linear warm-up of the learning rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of all but norms, biases and embeddings."})
    clip_gradient: float = field(default=0.01, metadata={"help": "Largest norm of all gradients together; 0: off."})
    eval_steps: int = field(default=0, metadata={"help": "Steps between scores; 0: at the end alone."})
    eval_images: int | None = field(default=None, metadata={"help": "Score the first so many images; all when not given."})


class SegmentationSettings(NamedTuple):
    """All settings of a run."""

    model: SegmentationModelSettings
    data: SegmentationDataSettings
    training: FinetuneSettings
