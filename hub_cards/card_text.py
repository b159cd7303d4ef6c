"""What the records say, in words and tables: model, training, scores, limitations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hub_cards.measurements import Evaluation, told_versions
from hub_cards.records import ModelRecord, as_list, input_size, pixels, training_data

# part_similarity of the configuration -> how the model reads parts.
PARTS = {
    "registers": "each patch goes to the register token of highest cosine similarity, as in the paper",
    "claimed_patches": "each patch goes to the register that claims it in the compress step; "
    "five steps of k-means on the image's patches follow (not the paper's reading)",
}


def describe_model(model: ModelRecord) -> dict[str, str]:
    """Rows of the table of model details."""
    config = model.config
    heads, registers = config["num_attention_heads"], config["num_registers"]
    partitioned = config.get("partition_registers", True)
    share = f"{registers // heads} owned by each head" if partitioned else "all held by every head (ablation: no partition)"
    details = {
        "Blocks": str(config["num_hidden_layers"]),
        "Width": f"{config['hidden_size']}; {config['intermediate_size']} inside the MLPs",
        "Attention heads": str(heads),
        "Registers": f"{registers}, {share}",
        "Patch": pixels(config["patch_size"]),
        "Image size": f"{input_size(model.processor['size'], model.processor)} by the image processor; position embeddings "
        f"learned at {pixels(config['image_size'])} and interpolated for any multiple of the patch",
        "Parameters": f"{model.num_parameters:,}",
        "Multiply-accumulates": ", ".join(_multiply_accumulates(config)),
        "Parts": f"{PARTS[config.get('part_similarity', 'registers')]}, layer {config.get('part_layer', -1)}",
    }
    if not config.get("communicate", True):
        details["Communication between registers"] = "switched off (ablation)"
    return details


def describe_training(training: Mapping[str, Any] | None) -> dict[str, str]:
    """Rows of the table of training; none if it is not recorded."""
    if training is None:
        return {}
    settings = training["settings"]
    processes = training["processes"]
    return {
        "Data": ", ".join(data.title for data in training_data(training))
        + (f", split {', '.join(f'`{split}`' for split in as_list(settings['dataset_split']))}" if settings["dataset"] else ""),
        "Steps": f"{training['steps']:,}",
        "Batch size": f"{settings['batch_size']:,} images",
        "Images seen": f"{training['images_seen']:,}",
        "Views": f"2 of {settings['global_crop_size']} px and {settings['num_local_crops']} of "
        f"{settings['local_crop_size']} px per image",
        "Hardware": f"{training['device']}, {processes} {'process' if processes == 1 else 'processes'}, "
        f"mixed precision: {training['mixed_precision']}",
        "Training time": _duration(training["seconds"]),
        "Versions": told_versions(training["versions"]),
    }


def describe_limitations(model: ModelRecord, evaluations: Sequence[Evaluation]) -> list[str]:
    """What the records themselves say against the model, then what holds for any model of this kind."""
    rows, columns, patch = _patch_grid(model)
    trained_on = training_data(model.training) if model.training else None
    limitations = []
    if trained_on is None:
        limitations.append("How and on what these weights were trained is not recorded in the model folder.")
    elif all(data.synthetic for data in trained_on):
        limitations.append("Trained on synthetic rendered objects only: it is no evidence for photographs.")
    else:
        limitations.append("What the training data lacks or shows one-sidedly, the parts will lack or show one-sidedly.")
    if not evaluations:
        limitations.append("No scores have been measured for this card.")
    elif all(evaluation.data.synthetic for evaluation in evaluations):
        limitations.append("Measured on synthetic rendered objects only: the scores say nothing about photographs.")
    limitations += [sentence for evaluation in evaluations for sentence in evaluation.rivals()]
    if evaluations:
        limitations.append("The scores are of one training run; another seed gives others.")
    if rows and (trained_size := pixels(model.config["image_size"])) != pixels(model.processor["size"]):
        limitations.append(
            f"Trained on views of {trained_size} and less, it is used at {pixels(model.processor['size'])} by default: parts "
            "then have other sizes in pixels than in training."
        )
    limitations += [
        f"A part map has one register for each patch of {patch}"
        + (f", {rows} x {columns} patches at the default size" if rows else "")
        + ": its edges are as coarse as that.",
        "Parts have no names. A register's number means nothing in itself, and a register may win different parts in "
        "different images, or none.",
    ]
    return limitations


def _multiply_accumulates(config: Mapping[str, Any]) -> list[str]:
    """Of a forward pass of the backbone at the sizes in which models are compared, or the nearest that its patches fill."""
    from modeling_rats import RatsConfig  # takes seconds
    from modeling_rats.multiply_accumulates import multiply_accumulates

    patch = config["patch_size"]
    step = math.lcm(*((patch, patch) if isinstance(patch, int) else patch))
    told = []
    for size_px in (224, 512):
        filled_px = round(size_px / step) * step
        if filled_px:
            count = multiply_accumulates(RatsConfig.from_dict(dict(config)), filled_px)
            told.append(f"{count / 1e9:.3g} GMACs at {pixels(filled_px)}")
    return told


def _patch_grid(model: ModelRecord) -> tuple[int, int, str]:
    """Rows and columns of patches at the processor's size (0 if it is not fixed), and the size of a patch."""
    patch = model.config["patch_size"]
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    size = model.processor["size"]
    if model.processor.get("ensure_multiple_of") is not None or not {"height", "width"} <= set(size):
        return 0, 0, pixels(patch)
    return size["height"] // patch_height, size["width"] // patch_width, pixels(patch)


def _duration(seconds: float) -> str:
    """Two units at most: 45 s, 2 min 45 s, 3 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest_s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    return f"{minutes // 60} h {minutes % 60} min"
