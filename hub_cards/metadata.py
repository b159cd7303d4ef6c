"""The metadata on top of a card: what the Hub reads and searches."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from hub_cards.assets import INPUT, PICTURE, kind_of
from hub_cards.measurement_kinds import TASKS
from hub_cards.measurements import Evaluation
from hub_cards.records import LICENCE_KEYS, ModelRecord, training_data

TAGS = ("rats", "vision", "register-attention", "part-segmentation")
TAGS_WHEN_PRETRAINED = ("self-supervised", "dino")
TAGS_WHEN_DISTILLED = ("distillation",)
TAGS_OF_SEGMENTERS = ("vision", "universal-segmentation")
TAGS_ON_RATS = ("rats", "register-attention")
TAGS_OF_TASKS = tuple(f"{task}-segmentation" for task in ("semantic", "instance", "panoptic"))
GENERATED_TAGS = {*TAGS, *TAGS_WHEN_PRETRAINED, *TAGS_WHEN_DISTILLED, *TAGS_OF_SEGMENTERS, *TAGS_OF_TASKS}
DEFAULT_LICENSE = "mit"
MEASURED_KEYS = ("metrics", "model-index")  # never kept from an earlier card
GENERATED_KEYS = ("library_name", "pipeline_tag", "tags", "datasets", "widget", "base_model")


def build_metadata(
    model: ModelRecord,
    evaluations: Sequence[Evaluation],
    name: str,
    previous: CardData,
    examples: Sequence[Mapping[str, Any]] = (),
    licence: str | None = None,
) -> ModelCardData:
    """Build the metadata on top of the card.

    Args:
        model: The model.
        evaluations: What was measured of it.
        name: Under which model-index holds it.
        previous: Metadata of the card to replace. A licence and tags are added to, not replaced; of what was measured that
            of our own tasks is replaced; keys that are not ours are kept.
        examples: For the widget of the model's page; without any an earlier card's stay.
        licence: Identifier of the Hub, in place of the earlier card's or, of converted weights, the source's.
    """
    results = [result for evaluation in evaluations for result in evaluation.model_index()]
    results += [result for result in previous.get("eval_results") or [] if (result.task_type, result.task_name) not in TASKS]
    before = previous.to_dict()
    tags = (*_tags(model), *before.get("tags", ()))
    generated: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "tags": list(tags),
    }
    if licence is not None:
        generated["license"] = licence
    elif "license" not in before:
        generated |= model.source["source"]["licence"] if model.source else {"license": DEFAULT_LICENSE}
    trained_on = training_data(model.training) if model.training else []
    if on_hub := [data.identifier for data in trained_on if data.on_hub]:
        generated["datasets"] = on_hub
    if model.base_model:
        generated["base_model"] = model.base_model
        if model.is_distilled:
            generated["base_model_relation"] = "finetune"  # the nearest of those that the Hub knows
    if examples:
        generated["widget"] = list(examples)
    if results:
        metrics = list(dict.fromkeys(result.metric_type for result in results))
        generated |= {"metrics": metrics, "model_name": name, "eval_results": results}
    replaced = {*generated, *MEASURED_KEYS, *(LICENCE_KEYS if licence is not None else ())}
    kept = {key: value for key, value in before.items() if key not in replaced}
    return ModelCardData(**generated, **kept)


def as_dict(data: CardData) -> dict[str, Any]:
    """Metadata as a card has it.

    Results of one type and split whose task has another name, or that have another source, stay apart: the library would join
    them under the name of the first.
    """
    told = data.to_dict()
    groups: dict[tuple, list[EvalResult]] = {}
    for result in data.get("eval_results") or []:
        groups.setdefault((*result.unique_identifier, result.task_name, result.source_url), []).append(result)
    if groups:
        name = data.get("model_name")
        apart = [eval_results_to_model_index(name, group)[0]["results"] for group in groups.values()]
        told["model-index"] = [{"name": name, "results": [result for results in apart for result in results]}]
    return told


def _tags(model: ModelRecord) -> tuple[str, ...]:
    if not model.is_segmenter:
        learned = TAGS_WHEN_DISTILLED if model.is_distilled else TAGS_WHEN_PRETRAINED
        return (*TAGS, *(learned if model.training or model.source else ()))
    on_rats = TAGS_ON_RATS if model.config["backbone_config"]["model_type"] == "rats" else ()
    task = (f"{model.training['settings']['task']}-segmentation",) if model.training else ()
    return (*on_rats, *TAGS_OF_SEGMENTERS, *task)


def widget(assets: Collection[str], repo_id: str | None) -> list[dict[str, Any]]:
    """Examples for the model's page: the Hub's widgets do not run a repository's own code, but show what it gave."""
    if repo_id is None:
        return []
    outputs = {Path(place).stem.removeprefix(Path(PICTURE).name): place for place in assets if kind_of(place) == PICTURE}
    examples = []
    for place in sorted(place for place in assets if kind_of(place) == INPUT):
        number = Path(place).stem.removeprefix(Path(INPUT).name)
        source = f"https://huggingface.co/{repo_id}/resolve/main/{place}"
        output = {"output": {"url": outputs[number]}} if number in outputs else {}
        examples.append({"src": source, "example_title": f"Example {int(number) + 1}", **output})
    return examples


def personal_metadata(data: Mapping[str, Any]) -> dict[str, Any]:
    """What of a card's metadata is a person's: what would not be written by itself."""
    tags = [tag for tag in data.get("tags", []) if tag not in GENERATED_TAGS]
    own = {key: value for key, value in data.items() if key not in (*GENERATED_KEYS, *MEASURED_KEYS)}
    if own.get("license") == DEFAULT_LICENSE:
        del own["license"]
    return ({"tags": tags} if tags else {}) | own
