"""What the records of a model that was fine-tuned to segment say, in words and tables: model, training, limitations."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hub_cards.measurements import Evaluation
from hub_cards.record_text import UNRECORDED, limits_of_scores, told_amount, told_data, told_machine
from hub_cards.records import ModelRecord, folder_name, pixels, training_data
from hub_cards.segmentation_measurements import SegmentationScores

if TYPE_CHECKING:
    from modeling_rats import RatsUniversalSegmentationConfig

TEMPLATE = "segmentation_card.md"
BACKBONES = {  # by model_type
    "rats": "RATS",
    "vit": "ViT",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
    "dinov3_vit": "DINOv3",
}
SHOWN_LABELS = 12
FEW_IMAGES = 10_000  # to train on; ADE20K has twice as many, COCO twelve times
FEW_SCORED = 500  # ADE20K's validation split has four times as many, COCO's ten times
PYRAMID_SCALE = 4  # of the finest map of the feature pyramid, to the patch grid


def name_of_architecture(model: ModelRecord) -> str:
    """The model's name where it has none on the Hub."""
    backbone, head = model.config["backbone_config"], model.config["segmentation_head"].replace("_", "-")
    return f"{backbone['model_type'].replace('_', '-')}-{backbone['hidden_size']}x{backbone['num_hidden_layers']}-{head}"


def card_values(model: ModelRecord, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """What the template asks for beside what all templates do."""
    config, task = _configuration(model), task_of(model, evaluations)
    return {
        "labels": f"{len(_labels(config)):,} labels",
        "recorded_task": task,
        "task": task or "semantic",
        "on_rats": config.backbone_config.model_type == "rats",
        "backbone": BACKBONES[config.backbone_config.model_type],
        "reading": _reading(config),
        "details": describe_model(model),
        "training": describe_training(model.training),
        "trained": "Fine-tuned on images with true masks.",
        "program": "training/finetune_segmentation.py",
        "curves_told": "Training curves: loss, gradient norm, learning rate, images per second, scores",
        "limitations": describe_limitations(model, evaluations),
    }


def task_of(model: ModelRecord, evaluations: Sequence[Evaluation]) -> str | None:
    """What it was fine-tuned for, or else scored in; None if neither is recorded."""
    if model.training:
        return model.training["settings"]["task"]
    return next((one.task for one in evaluations if isinstance(one, SegmentationScores)), None)


def describe_model(model: ModelRecord) -> dict[str, str]:
    """Rows of the table of model details."""
    config = _configuration(model)
    backbone = config.backbone_config
    names = [name.replace("|", "\\|") for name in _labels(config)]
    further = f" and {len(names) - SHOWN_LABELS:,} more, in `config.json`" if len(names) > SHOWN_LABELS else ""
    divisor = model.processor.get("size_divisor")
    whole = f"; both sides become multiples of {divisor} px" if divisor else ""
    registers = f", {config.num_registers} registers" if config.num_registers else ""
    return {
        "Backbone": f"{BACKBONES[backbone.model_type]}: {backbone.num_hidden_layers} blocks, width {backbone.hidden_size}, "
        f"{backbone.num_attention_heads} attention heads{registers}, patches of {pixels(backbone.patch_size)}",
        "Head": _head(config),
        "Queries": f"{config.num_queries}, "
        + ("from registers" if config.query_source == "registers" else "learned, the same for all images"),
        "Labels": f"{len(names):,}: {', '.join(names[:SHOWN_LABELS])}{further}",
        "Image size": f"{pixels(model.processor['size'])} by the image processor{whole}",
        "Parameters": f"{model.num_parameters:,}",
    }


def describe_training(training: Mapping[str, Any] | None) -> dict[str, str]:
    """Rows of the table of training; none if it is not recorded."""
    if training is None:
        return {}
    settings = training["settings"]
    images = f", {training['training_images']:,} images" if "training_images" in training else ""
    rates = "" if settings["freeze_backbone"] else f", times {settings['backbone_multiplier']} in the backbone"
    if rates and settings["layer_decay"] != 1:
        rates += f", times {settings['layer_decay']} from each block to the one before"
    return {
        "Data": told_data(training, settings["train_split"]) + images,
        "Task": f"{settings['task']} segmentation",
        "Started from": _told_start(training),
        "Trained": "the head alone, the backbone is frozen" if settings["freeze_backbone"] else "head and backbone",
        **told_amount(training),
        "Crops": f"{settings['crop_size']} x {settings['crop_size']} px",
        "Learning rate": f"{settings['learning_rate']}{rates}; schedule {settings['schedule']}",
        **told_machine(training),
    }


def describe_limitations(model: ModelRecord, evaluations: Sequence[Evaluation]) -> list[str]:
    """What the records themselves say against the model, then what holds for any model of this kind."""
    config, training = _configuration(model), model.training
    limitations = [UNRECORDED] if training is None else _limits_of_data(training)
    limitations += limits_of_scores(evaluations)
    if evaluations:
        measured = ", ".join(dict.fromkeys(evaluation.data.identifier for evaluation in evaluations))
        limitations.append(f"Measured on {measured} alone: how it does on images of other kinds is not known.")
    limitations += [
        f"The scores on {evaluation.heading} are of {evaluation.conditions['images']:,} images, which are few: others give "
        "other scores."
        for evaluation in evaluations
        if evaluation.conditions["images"] < FEW_SCORED
    ]
    limitations += [
        f"On {evaluation.heading}, it was scored on images that it was trained on: that says nothing about others."
        for evaluation in evaluations
        if training is not None and _is_trained_on(evaluation, training)
    ]
    limitations.append(f"It knows its {len(_labels(config)):,} labels alone. Whatever else there is gets one of them, or none.")
    if task_of(model, evaluations) != "semantic":
        limitations.append(f"It finds at most {config.num_queries} segments in an image, one a query.")
    height, width = _mask_pixel(config)
    limitations.append(
        f"A mask has one value for {height:g} x {width:g} px of the image that the model is given: its edges are as coarse."
    )
    return limitations


def _limits_of_data(training: Mapping[str, Any]) -> list[str]:
    limits = []
    if all(data.synthetic for data in training_data(training)):
        limits.append("Fine-tuned on synthetic rendered objects only: it is no evidence for photographs.")
    images = training.get("training_images")
    if images is not None and images < FEW_IMAGES:
        seen = training["images_seen"] / images
        limits.append(
            f"Fine-tuned on {images:,} images, which are few, each seen {seen:,.0f} times or so: expect it to fail on what "
            "looks otherwise."
        )
    return [*limits, "What the images lack or show one-sidedly, it will miss or take for something else."]


def _is_trained_on(evaluation: Evaluation, training: Mapping[str, Any]) -> bool:
    settings = training["settings"]
    trained_on = {data.identifier for data in training_data(training)}
    return evaluation.data.identifier in trained_on and (
        (evaluation.setting.get("config"), evaluation.split) == (settings.get("dataset_config"), settings["train_split"])
    )


def _configuration(model: ModelRecord) -> "RatsUniversalSegmentationConfig":
    """With all defaults filled in."""
    from modeling_rats import RatsUniversalSegmentationConfig  # takes seconds

    return RatsUniversalSegmentationConfig.from_dict(dict(model.config))


def _labels(config: "RatsUniversalSegmentationConfig") -> list[str]:
    """Their names, in order."""
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


def _reading(config: "RatsUniversalSegmentationConfig") -> str:
    """How it comes to masks, in a sentence."""
    if config.segmentation_head == "encoder_only":
        return "There is no decoder: each register gives a label, and a mask over the patches, which are upscaled for it."
    from_registers = config.query_source == "registers"
    start = "start from the registers of the image" if from_registers else "are learned and the same for all images"
    mask2former = "[Mask2Former](https://arxiv.org/abs/2112.01527)'s decoders"
    return f"{mask2former} make a mask and a label of each query; the queries {start}."


def _head(config: "RatsUniversalSegmentationConfig") -> str:
    if config.segmentation_head == "encoder_only":
        return f"encoder only: registers as queries, the patch grid doubled {config.num_upscale_blocks} times"
    return (
        f"Mask2Former on a feature pyramid; pixel decoder: layers {config.encoder_layers}, width {config.feature_size}; "
        f"transformer decoder: layers {config.decoder_layers - 1}, width {config.hidden_dim}"
    )


def _told_start(training: Mapping[str, Any]) -> str:
    settings, name = training["settings"], training["base_model"]
    if name is None:
        return f"`{folder_name(settings['backbone'])}` (local folder)"
    revision = f", revision `{settings['backbone_revision']}`" if settings["backbone_revision"] != "main" else ""
    return f"[{name}](https://huggingface.co/{name}){revision}"


def _mask_pixel(config: "RatsUniversalSegmentationConfig") -> tuple[float, float]:
    """Height and width of a value of a mask, in pixels of the image that the model is given."""
    patch = config.backbone_config.patch_size
    height, width = (patch, patch) if isinstance(patch, int) else patch
    scale = 2**config.num_upscale_blocks if config.segmentation_head == "encoder_only" else PYRAMID_SCALE
    return height / scale, width / scale
