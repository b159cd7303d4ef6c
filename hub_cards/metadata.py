"""The metadata on top of a card: what the Hub reads and searches."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, ModelCardData

from hub_cards.assets import INPUT, PICTURE, kind_of
from hub_cards.measurements import TASKS, Evaluation
from hub_cards.records import HUB_NAME, ModelRecord, training_data

TAGS = ("rats", "vision", "register-attention", "part-segmentation")
TAGS_WHEN_PRETRAINED = ("self-supervised", "dino")
DEFAULT_LICENSE = "mit"
MEASURED_KEYS = ("metrics", "model-index")  # never kept from an earlier card
GENERATED_KEYS = ("library_name", "pipeline_tag", "tags", "datasets", "widget")


def build_metadata(
    model: ModelRecord,
    evaluations: Sequence[Evaluation],
    name: str,
    previous: CardData,
    examples: Sequence[Mapping[str, Any]] = (),
) -> ModelCardData:
    """Build the metadata on top of the card.

    Args:
        model: The model.
        evaluations: What was measured of it.
        name: Under which model-index holds it.
        previous: Metadata of the card to replace. A licence and tags are added to, not replaced; of what was measured that
            of our own tasks is replaced; keys that are not ours are kept.
        examples: For the widget of the model's page; without any an earlier card's stay.
    """
    results = [result for evaluation in evaluations for result in evaluation.model_index()]
    results += [result for result in previous.get("eval_results") or [] if (result.task_type, result.task_name) not in TASKS]
    before = previous.to_dict()
    tags = (*TAGS, *(TAGS_WHEN_PRETRAINED if model.training else ()), *before.get("tags", ()))
    generated: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "license": before.get("license", DEFAULT_LICENSE),
        "tags": list(tags),
    }
    trained_on = training_data(model.training) if model.training else []
    if on_hub := [data.identifier for data in trained_on if data.on_hub]:
        generated["datasets"] = on_hub
    if started_from := base_model(model):
        generated["base_model"] = started_from
    if examples:
        generated["widget"] = list(examples)
    if results:
        metrics = list(dict.fromkeys(result.metric_type for result in results))
        generated |= {"metrics": metrics, "model_name": name, "eval_results": results}
    kept = {key: value for key, value in before.items() if key not in generated and key not in MEASURED_KEYS}
    return ModelCardData(**generated, **kept)


def base_model(model: ModelRecord) -> str | None:
    """The Hub name of the model whose weights the training started from, if it did so."""
    warm_start = model.training["settings"].get("warm_start") if model.training else None
    return warm_start if warm_start and HUB_NAME.fullmatch(warm_start) and not Path(warm_start).exists() else None


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
    tags = [tag for tag in data.get("tags", []) if tag not in (*TAGS, *TAGS_WHEN_PRETRAINED)]
    own = {key: value for key, value in data.items() if key not in (*GENERATED_KEYS, *MEASURED_KEYS)}
    if own.get("license") == DEFAULT_LICENSE:
        del own["license"]
    return ({"tags": tags} if tags else {}) | own
