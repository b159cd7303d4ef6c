"""What the records of a RATS say, in words and tables: model, training, limitations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hub_cards.measurements import Evaluation
from hub_cards.record_text import UNRECORDED, limits_of_scores, told_amount, told_data, told_machine, told_teacher
from hub_cards.records import ModelRecord, input_size, pixels, training_data
from hub_cards.weight_source import AUTHORS

TEMPLATE = "model_card.md"
# part_similarity of the configuration -> how the model reads parts.
PARTS = {
    "registers": "each patch goes to the register token of highest cosine similarity, as in the paper",
    "claimed_patches": "each patch goes to the register that claims it in the compress step; "
    "five steps of k-means on the image's patches follow (not the paper's reading)",
}

PRETRAINED = {
    "trained": "DINO self-distillation without labels; these weights are the teacher's.",
    "program": "training/pretrain.py",
    "curves_told": "Training curves: loss and entropies, gradient norm, learning rate, images per second",
    "distilled": False,
}
DISTILLED = {
    "trained": "Distilled from a frozen teacher without labels; these weights are the student's.",
    "program": "training/distill.py",
    "curves_told": "Training curves: losses, gradient norm, learning rate, images per second",
    "distilled": True,
}


def name_of_architecture(model: ModelRecord) -> str:
    """The model's name where it has none on the Hub."""
    patch = model.config["patch_size"]
    told = patch if isinstance(patch, int) else "x".join(map(str, patch))
    return f"rats-{model.config['hidden_size']}x{model.config['num_hidden_layers']}-patch{told}"


def card_values(model: ModelRecord, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """What the template asks for beside what all templates do."""
    return {
        "details": describe_model(model),
        "training": describe_training(model.training),
        **(DISTILLED if model.is_distilled else PRETRAINED),
        "limitations": describe_limitations(model, evaluations),
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
    side = f"{settings['global_crop_size']} px"
    views = (
        f"{settings['num_global_crops']} of {side} per image"
        if training.get("teacher")
        else f"2 of {side} and {settings['num_local_crops']} of {settings['local_crop_size']} px per image"
    )
    return {
        **told_teacher(training),
        "Data": told_data(training, settings.get("dataset_split")),
        **told_amount(training),
        "Views": views,
        **told_machine(training),
    }


def describe_source(model: ModelRecord) -> dict[str, str]:
    """Rows of the table of where converted weights come from; none of weights that were trained here."""
    if model.source is None:
        return {}
    told, repo_id = model.source["source"], model.source["source"]["repo_id"]
    rows = {"Repository": f"[{repo_id}](https://huggingface.co/{repo_id})"} if repo_id else {}
    if repo_id and told.get("repo_id_is_stated"):
        rows["Repository"] += " (stated by whoever converted a local file, not looked up)"
    elif repo_id == AUTHORS:
        rows["Trained by"] = "the authors of the paper: DINO self-distillation on ImageNet-1k without labels (their page)"
    if told["commit"]:
        rows["Commit"] = f"`{told['commit']}`"
    rows |= {"File": f"`{told['file']}`", "SHA-256": f"`{told['sha256']}`"}
    if told["epochs"] is not None:
        rows["Epochs"] = f"{told['epochs']}, by the name of the file"
    assumed = ", ".join(f"{name} {value}" for name, value in model.source["assumed"].items())
    rows["Assumed"] = f"{assumed}: the file does not say"
    for name, change in model.source["adapted"].items():
        rows[f"`{name}`"] = change
    return rows


def names_licence(model: ModelRecord, licence: str | None) -> bool:
    """Whether the repository that converted weights come from names this licence, and not only whoever converted them."""
    told = model.source["source"] if model.source else {}
    return licence is not None and told.get("licence", {}).get("license") == licence and not told.get("licence_is_stated")


def describe_limitations(model: ModelRecord, evaluations: Sequence[Evaluation]) -> list[str]:
    """What the records themselves say against the model, then what holds for any model of this kind."""
    rows, columns, patch = _patch_grid(model)
    trained_on = training_data(model.training) if model.training else None
    limitations = []
    if model.source:
        limitations += [
            "How these weights were trained is not recorded here"
            + ("; see the page of their repository." if model.base_model else ", and the file names no repository."),
            "The code that they were trained with was not published. This implementation computes what we read in the paper's "
            "method figure; `python -m evaluation.check_reading` measures whether the weights were trained so.",
        ]
    elif trained_on is None:
        limitations.append(UNRECORDED)
    elif all(data.synthetic for data in trained_on):
        limitations.append("Trained on synthetic rendered objects only: it is no evidence for photographs.")
    else:
        limitations.append("What the training data lacks or shows one-sidedly, the parts will lack or show one-sidedly.")
    limitations += limits_of_scores(evaluations)
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
