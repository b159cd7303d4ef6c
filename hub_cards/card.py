"""Writes the model card of a RATS folder from what was measured, never from typed numbers.

    python -m hub_cards.card --model FOLDER --scores scores.json --curves curves.png --pictures DIR --repo_id OWNER/NAME

The numbers come from the folder's config.json, preprocessor_config.json, training.json and safetensors headers, and from
the JSON files of evaluation.part_segmentation. A section without data is left out. Run it again whenever there is more:
what a person wrote into the card stays (see `regeneration`).
"""

import argparse
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id, yaml_dump
from jinja2 import Environment, StrictUndefined

from hub_cards.card_text import Evaluation, describe_limitations, describe_model, describe_training, input_size
from hub_cards.records import DataSetName, ModelRecord, read_model, read_scores, scored_data, training_data
from hub_cards.regeneration import END, START, merge_body

TEMPLATE = Path(__file__).with_name("model_card.md")
TAGS = ("rats", "vision", "register-attention", "part-segmentation")
TAGS_WHEN_PRETRAINED = ("self-supervised", "dino")
MEASURED_KEYS = ("metrics", "model-index")  # of the metadata: never kept from an earlier card
MAX_PICTURES = 4


@dataclass(frozen=True)
class Assets:
    """The pictures that a card shows.

    Attributes:
        curves: Training curves.
        pictures: Images with their part maps.
    """

    curves: Path | None = None
    pictures: tuple[Path, ...] = ()

    def places(self) -> dict[str, Path]:
        """Where each goes in the model folder, and where it comes from; a file's own name is its owner's business."""
        curves = {} if self.curves is None else {f"assets/curves{self.curves.suffix}": self.curves}
        return curves | {f"assets/parts_{index}{picture.suffix}": picture for index, picture in enumerate(self.pictures)}


def find_assets(curves: str | Path | None = None, pictures: str | Path | None = None) -> Assets:
    """Find the pictures to show.

    Args:
        curves: Picture of the training curves.
        pictures: Folder that evaluation.part_segmentation or evaluation.visualize drew into; its first pictures are taken.

    Raises:
        FileNotFoundError: If one of them does not exist, or the folder holds no pictures.
    """
    if curves is not None and not Path(curves).is_file():
        raise FileNotFoundError(f"Picture {curves} does not exist; --curves must be a file. Check the path, or leave it out.")
    drawn = sorted(Path(pictures).glob("*.png")) if pictures is not None else []
    if pictures is not None and not drawn:
        raise FileNotFoundError(
            f"Folder {pictures} holds no PNG pictures; --pictures must be a folder that evaluation.part_segmentation or "
            "evaluation.visualize drew into. Check the path, or leave it out."
        )
    return Assets(None if curves is None else Path(curves), tuple(drawn[:MAX_PICTURES]))


def build_card(
    model_folder: str | Path,
    scores: Sequence[str | Path] = (),
    assets: Assets = Assets(),
    repo_id: str | None = None,
    any_model: bool = False,
    existing: str | None = None,
) -> str:
    """Build the text of a card; nothing is written.

    Args:
        model_folder: Folder that save_pretrained wrote, with weights and image processor.
        scores: JSON files of evaluation.part_segmentation.
        assets: Pictures to show; the card expects them at `assets.places()`.
        repo_id: Name on the Hub, owner/name; without it the card's code loads the folder.
        any_model: Accept scores of the same architecture measured in another place.
        existing: Text of the card that this one replaces; its prose and its own metadata are kept.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not what it should be, or the scores are of another model.
    """
    if repo_id is not None:
        validate_repo_id(repo_id)
    model = read_model(model_folder)
    evaluations = _read_evaluations(scores, model, repo_id, any_model)
    name = repo_id.split("/")[-1] if repo_id else _name_of_architecture(model.config)
    previous = _parse(existing)
    data = build_metadata(model, evaluations, name, previous.data.to_dict())
    body = _render(
        name=name,
        location='"' + (repo_id or model.folder.as_posix()).replace('"', '\\"') + '"',
        details=describe_model(model),
        training=describe_training(model.training),
        recipe=_recipe(model.training),
        evaluations=[evaluation.as_table() for evaluation in evaluations],
        pictures=[place for place, source in assets.places().items() if source in assets.pictures],
        curves=next((place for place, source in assets.places().items() if source == assets.curves), ""),
        limitations=describe_limitations(model, evaluations),
        license=data.get("license_name") or data.license,
        software_version=version("modeling-rats"),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{merge_body(body, previous.text)}"


def build_metadata(
    model: ModelRecord, evaluations: Sequence[Evaluation], name: str, previous: Mapping[str, Any]
) -> ModelCardData:
    """Build the metadata on top of the card.

    Args:
        model: The model.
        evaluations: What was measured of it.
        name: Under which model-index holds it.
        previous: Metadata of the card to replace. A licence and tags are added to, not replaced; what was measured is
            replaced; keys that are not ours are kept.
    """
    results = [result for evaluation in evaluations for result in evaluation_results(evaluation)]
    tags = (*TAGS, *(TAGS_WHEN_PRETRAINED if model.training else ()), *previous.get("tags", ()))
    generated: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "license": previous.get("license", "mit"),
        "tags": list(tags),
    }
    trained_on = training_data(model.training["settings"]) if model.training else []
    if on_hub := [data.identifier for data in trained_on if data.on_hub]:
        generated["datasets"] = on_hub
    if results:
        metrics = list(dict.fromkeys(result.metric_type for result in results))
        generated |= {"metrics": metrics, "model_name": name, "eval_results": results}
    kept = {key: value for key, value in previous.items() if key not in generated and key not in MEASURED_KEYS}
    return ModelCardData(**generated, **kept)


def evaluation_results(evaluation: Evaluation) -> list[EvalResult]:
    """The `model` row as entries of model-index, one a score.

    The settings that tell two measurements on the same split apart stand with the metric: model-index groups results by
    data set, configuration and split, and would lose them elsewhere.
    """
    settings = evaluation.record["settings"]
    model_scores = evaluation.record["scores"]["model"]
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Unsupervised part segmentation",
            dataset_type=evaluation.data.identifier,
            dataset_name=evaluation.data.identifier,
            dataset_config=settings.get("config"),
            dataset_split=settings.get("split"),
            metric_type=metric.type,
            metric_name=metric.title,
            metric_config="foreground" if metric.foreground else None,
            metric_args={"image_size": evaluation.input, "images": model_scores.get("images")},
            metric_value=float(model_scores[metric.score]),
        )
        for metric in evaluation.metrics
        if metric.score in model_scores
    ]


def write_card(
    model_folder: str | Path,
    scores: Sequence[str | Path] = (),
    assets: Assets = Assets(),
    repo_id: str | None = None,
    any_model: bool = False,
) -> Path:
    """Write the card as README.md into the model folder, with its pictures; arguments and errors as in `build_card`."""
    card = Path(model_folder) / "README.md"
    existing = card.read_text(encoding="utf-8-sig") if card.is_file() else None
    text = build_card(model_folder, scores, assets, repo_id, any_model, existing)
    pictures = {place: source.read_bytes() for place, source in assets.places().items()}
    for place, content in pictures.items():
        _replace(card.parent / place, content)
    _replace(card, text.encode("utf-8"))  # last, so that no card ever shows a picture that is not there
    return card


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `write_card`."""
    parser = argparse.ArgumentParser(prog="python -m hub_cards.card", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="model folder; the card is its README.md")
    parser.add_argument("--scores", nargs="+", default=[], metavar="JSON", help="outputs of evaluation.part_segmentation")
    parser.add_argument("--curves", metavar="PNG", help="picture of the training curves")
    parser.add_argument("--pictures", metavar="DIR", help=f"folder of part maps; the first {MAX_PICTURES} are shown")
    parser.add_argument("--repo_id", metavar="OWNER/NAME", help="name on the Hub, for the title and the code")
    parser.add_argument("--any_model", action="store_true", help="accept scores of this model made in another place")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    options = parser.parse_args(arguments)
    try:
        assets = find_assets(options.curves, options.pictures)
        card = write_card(options.model, options.scores, assets, options.repo_id, options.any_model)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not options.quiet:
        print(f"Model card: {card}")


def _read_evaluations(
    scores: Sequence[str | Path], model: ModelRecord, repo_id: str | None, any_model: bool
) -> list[Evaluation]:
    evaluations: dict[tuple, Evaluation] = {}
    for path in scores:
        record = read_scores(path, model, repo_id, any_model)
        data: DataSetName = scored_data(record["settings"], model.training)
        size = input_size(record["settings"]["image_size"], model.processor)
        evaluation = Evaluation(record, data, size)
        if evaluation.key in evaluations:
            raise ValueError(
                f"{path} scores {data.identifier} like a file before it (split, input and images are the same); a card can "
                "show one of them. Name only one."
            )
        evaluations[evaluation.key] = evaluation
    return list(evaluations.values())


def _name_of_architecture(config: Mapping[str, Any]) -> str:
    patch = config["patch_size"] if isinstance(config["patch_size"], int) else "x".join(map(str, config["patch_size"]))
    return f"rats-{config['hidden_size']}x{config['num_hidden_layers']}-patch{patch}"


def _recipe(training: Mapping[str, Any] | None) -> str:
    """The settings of training as YAML; without those that have no value or name a place on the training machine."""
    if training is None:
        return ""
    settings = dict(training["settings"])
    if settings["dataset"] is not None:
        names = [data.identifier for data in training_data(settings)]
        settings["dataset"] = names if len(names) > 1 else names[0]
    for name in ("output_dir", "resume", "quiet"):
        settings.pop(name, None)
    told = {
        name: value
        for name, value in settings.items()
        if value not in (None, []) and not (isinstance(value, str) and os.path.isabs(value))
    }
    return yaml_dump(told, sort_keys=False).strip()


def _parse(existing: str | None) -> ModelCard:
    """Split a card into metadata and body; an absent one has neither."""
    if existing is None or not existing.startswith("---"):
        existing = f"---\n\n---\n{existing or ''}"  # or the library warns of missing metadata
    try:
        return ModelCard(existing, ignore_metadata_errors=True)  # model-index, which may be bad, is measured anew
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(
            f"The metadata of the existing card cannot be read ({error}); between its --- lines there must be YAML of the form "
            "`key: value`. Mend it, or move the card away."
        ) from error


def _render(**values: Any) -> str:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False, finalize=_told)
    body = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(start=START, end=END, **values)
    return re.sub(r"\n{3,}", "\n\n", body)


def _told(value: Any) -> Any:
    """Refuse what would read as a gap in the card."""
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"The card's template was given {value!r}, which tells a reader nothing; leave that section out.")
    return value


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
