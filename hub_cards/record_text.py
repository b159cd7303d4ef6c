"""What the records of any model say in words: rows of the table of training, its recipe, and what scores leave open."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.utils import yaml_dump

from hub_cards.measurements import Evaluation, told_versions
from hub_cards.records import as_list, folder_name, training_data

UNRECORDED = "How and on what these weights were trained is not recorded in the model folder."


def told_data(training: Mapping[str, Any], splits: Any) -> str:
    """The data sets of a training, and the splits if they have some."""
    titles = ", ".join(data.title for data in training_data(training))
    named = training["settings"]["dataset"] is not None
    return titles + (f", split {', '.join(f'`{split}`' for split in as_list(splits))}" if named else "")


def told_amount(training: Mapping[str, Any]) -> dict[str, str]:
    """How much was trained."""
    return {
        "Steps": f"{training['steps']:,}",
        "Batch size": f"{training['settings']['batch_size']:,} images",
        "Images seen": f"{training['images_seen']:,}",
    }


def told_teacher(training: Mapping[str, Any]) -> dict[str, str]:
    """Of a distillation from what and how it learned; nothing of other trainings."""
    teacher, settings = training.get("teacher"), training["settings"]
    if not teacher:
        return {}
    name = teacher["name"]
    known = f"[{name}](https://huggingface.co/{name})" if teacher["on_hub"] else f"`{folder_name(name)}` (a local model)"
    revision = f", commit `{teacher['revision'][:12]}`" if teacher["revision"] else ""
    licence = f"licence `{teacher['licence']}`" if teacher["licence"] else "its licence is not recorded"
    of_registers = (
        f"the teacher's patches explained by the registers (1 - cosine; temperature "
        f"{settings['register_bottleneck_temperature']:g}, without the mean of each {settings['register_bottleneck_mean']})"
    )
    losses = {
        "patch_weight": "patches (1 - cosine and squared error)",
        "register_bottleneck_weight": of_registers,
        "global_weight": "the mean register (1 - cosine)",
    }
    return {
        "Teacher": f"{known} ({teacher['model_type']}{revision}); {licence}",
        "Loss": "; ".join(f"{settings[weight]:g} x {loss}" for weight, loss in losses.items() if settings[weight]),
    }


def told_machine(training: Mapping[str, Any]) -> dict[str, str]:
    """On what it was trained, and how long that took."""
    processes = training["processes"]
    return {
        "Hardware": f"{training['device']}, {processes} {'process' if processes == 1 else 'processes'}, "
        f"mixed precision: {training['mixed_precision']}",
        "Training time": _duration(training["seconds"]),
        "Versions": told_versions(training["versions"]),
    }


def recipe(training: Mapping[str, Any] | None) -> str:
    """The settings of training as YAML; without those that have no value or name a place on the training machine."""
    if training is None:
        return ""
    settings = dict(training["settings"])
    if settings.get("layout"):
        settings["dataset"] = Path(settings["dataset"]).name
    elif settings["dataset"] is not None:
        names = [data.identifier for data in training_data(training)]
        settings["dataset"] = names if len(names) > 1 else names[0]
    for name in ("output_dir", "resume", "quiet"):
        settings.pop(name, None)
    told = {
        name: value
        for name, value in settings.items()
        if value not in (None, []) and not (isinstance(value, str) and os.path.isabs(value))
    }
    return yaml_dump(told, sort_keys=False).strip()


def limits_of_scores(evaluations: Sequence[Evaluation]) -> list[str]:
    """What scores do not say, and which rows are as good as the model."""
    if not evaluations:
        return ["No scores have been measured for this card."]
    limits = []
    if all(evaluation.data.synthetic for evaluation in evaluations):
        limits.append("Measured on synthetic rendered objects only: the scores say nothing about photographs.")
    limits += [sentence for evaluation in evaluations for sentence in evaluation.rivals()]
    return [*limits, "The scores are of one training run; another seed gives others."]


def _duration(seconds: float) -> str:
    """Two units at most: 45 s, 2 min 45 s, 3 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest_s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    return f"{minutes // 60} h {minutes % 60} min"
