"""Writes the model card of a RATS folder from what was measured, never from typed numbers.

    python -m hub_cards.card --model FOLDER --results scores.json --curves curves.png --pictures DIR --repo_id OWNER/NAME

The numbers come from the folder's config.json, preprocessor_config.json, training.json and safetensors headers, and from
the results that it holds: what is named here is added to them. A section without data is left out. Run it again whenever
there is more: what a person wrote into the card stays (see `regeneration`).
"""

import argparse
import math
import os
import re
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id, yaml_dump
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hub_cards import card_text, segmentation_text
from hub_cards.assets import CURVES, EFFICIENCY, FAILURE, MAX_PICTURES, PICTURE, Assets, find_assets, kind_of, outdated_pictures
from hub_cards.measurement_kinds import WRITERS
from hub_cards.measurements import Evaluation
from hub_cards.metadata import as_dict, build_metadata, personal_metadata, widget
from hub_cards.record_text import recipe
from hub_cards.records import ModelRecord, read_model
from hub_cards.regeneration import END, START, merge_body, prose_of
from hub_cards.results import adopt_all, as_files, check_weights, merge, read_results

SHOWN = {"pictures": PICTURE, "curves": CURVES, "efficiency": EFFICIENCY, "failures": FAILURE}  # name in the template
NO_ASSETS = Assets()
TEMPLATES = FileSystemLoader(Path(__file__).parent)


def build_card(
    model: ModelRecord,
    evaluations: Sequence[Evaluation],
    assets: Collection[str] = (),
    repo_id: str | None = None,
    existing: str | None = None,
    licence: str | None = None,
) -> str:
    """Build the text of a card; nothing is written.

    Args:
        model: What the model folder says of itself.
        evaluations: Its results.
        assets: Files that will be in the folder; those named as in `Assets.places` are shown.
        repo_id: Name on the Hub, owner/name; without it the card's code loads the folder.
        existing: Text of the card that this one replaces; its prose and its own metadata are kept.
        licence: Of the weights, as an identifier of the Hub; if None that of the existing card, or of where they come from.

    Raises:
        ValueError: If `repo_id` or the existing card is malformed.
    """
    if repo_id is not None:
        validate_repo_id(repo_id)
    text = segmentation_text if model.is_segmenter else card_text
    name = repo_id.split("/")[-1] if repo_id else text.name_of_architecture(model)
    previous = parse_card(existing)
    data = build_metadata(model, evaluations, name, previous.data, widget(assets, repo_id), licence)
    body = _render(
        text.TEMPLATE,
        name=name,
        location='"' + (repo_id or model.folder.as_posix()).replace('"', '\\"') + '"',
        **text.card_values(model, evaluations),
        recipe=recipe(model.training),
        base_model=model.base_model,
        source=card_text.describe_source(model),
        licence_is_theirs=card_text.names_licence(model, data.get("license")),
        evaluations=[evaluation.as_table() for evaluation in evaluations],
        **{name: sorted(place for place in assets if kind_of(place) == kind) for name, kind in SHOWN.items()},
        license=data.get("license_name") or data.get("license"),
        software_version=version("modeling-rats"),
    )
    return f"---\n{_as_yaml(as_dict(data))}\n---\n\n{merge_body(body, previous.text)}"


def personal_parts(text: str) -> dict[str, Any]:
    """What of a card is a person's: its prose, and metadata that this module would not write by itself.

    Raises:
        ValueError: If the card is malformed.
    """
    card = parse_card(text)
    prose = prose_of(card.text)
    return ({"prose": prose} if prose else {}) | personal_metadata(card.data.to_dict())


def with_metadata_of(text: str, other: str) -> str:
    """A card with the metadata of another where it has none of its own."""
    card = parse_card(text)
    merged = as_dict(parse_card(other).data) | as_dict(card.data)
    return f"---\n{_as_yaml(merged)}\n---\n\n{card.text}"


def write_card(
    model_folder: str | Path,
    results: Sequence[str | Path] = (),
    assets: Assets = NO_ASSETS,
    repo_id: str | None = None,
    any_model: bool = False,
    licence: str | None = None,
) -> Path:
    """Write the card as README.md into the model folder, with the results and pictures that it shows.

    Args:
        model_folder: Folder that save_pretrained wrote, with weights and image processor.
        results: Records of evaluations to add to the folder's results, or to replace older ones with.
        assets: Pictures to show from now on; those that the folder has of the same kind go.
        repo_id: Name on the Hub, owner/name; without it the card's code loads the folder.
        any_model: Accept scores of other weights, see `hub_cards.results.adopt`.
        licence: As in `build_card`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not what it should be, a result is of other weights, or a segmenter is given pictures of parts.
    """
    folder = Path(model_folder)
    model = read_model(folder)
    if model.is_segmenter and (assets.pictures or assets.efficiency):
        raise ValueError(
            "pictures and efficiency are of backbones, whose parts and speed they show; of a model that was fine-tuned to "
            "segment, the card shows curves alone. Leave them out, or show pictures outside of the generated sections."
        )
    known, added = read_results(folder), adopt_all(results, model, any_model)
    check_weights(known, model)
    evaluations = merge(known, added)

    places = assets.places()
    shown = {file.relative_to(folder).as_posix() for file in folder.glob("assets/*")}
    outdated = outdated_pictures(shown, places)
    card = folder / "README.md"
    existing = card.read_text(encoding="utf-8-sig") if card.is_file() else None
    text = build_card(model, evaluations, (shown | places.keys()) - outdated, repo_id, existing, licence)
    contents = as_files(added) | {place: source.read_bytes() for place, source in places.items()}
    for place, content in contents.items():
        _replace(folder / place, content)
    _replace(card, text.encode("utf-8"))  # after the others, so that no card ever shows what is not there
    for place in outdated:
        (folder / place).unlink()
    return card


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `write_card`."""
    parser = argparse.ArgumentParser(prog="python -m hub_cards.card", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="model folder; the card is its README.md")
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="JSON",
        help=f"outputs of {WRITERS}; the folder keeps them",
    )
    parser.add_argument("--curves", metavar="PNG", help="picture of the training curves")
    parser.add_argument("--pictures", metavar="DIR", help=f"folder of part maps; the first {MAX_PICTURES} are shown")
    parser.add_argument("--efficiency", metavar="PNG", help="picture of evaluation.efficiency")
    parser.add_argument("--repo_id", metavar="OWNER/NAME", help="name on the Hub, for the title and the code")
    parser.add_argument("--any_model", action="store_true", help="accept scores of other weights than the folder's")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    options = parser.parse_args(arguments)
    try:
        assets = find_assets(options.curves, options.pictures, options.efficiency)
        card = write_card(options.model, options.results, assets, options.repo_id, options.any_model)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not options.quiet:
        print(f"Model card: {card}")


def parse_card(existing: str | None) -> ModelCard:
    """Split a card into metadata and body; an absent one has neither."""
    if existing is None or not REGEX_YAML_BLOCK.search(existing):
        existing = f"---\n\n---\n{existing or ''}"  # or the library warns of missing metadata
    try:
        return ModelCard(existing, ignore_metadata_errors=True)  # model-index, which may be bad, is measured anew
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(
            f"The metadata of the existing card cannot be read ({error}); between its --- lines there must be YAML of the form "
            "`key: value`. Mend it, or move the card away."
        ) from error


def _as_yaml(metadata: dict[str, Any]) -> str:
    return yaml_dump(metadata, sort_keys=False).strip()


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=TEMPLATES,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,  # or what is included would run into the line after it
        autoescape=False,
        finalize=_told,
    )
    body = environment.get_template(template).render(start=START, end=END, **values)
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
