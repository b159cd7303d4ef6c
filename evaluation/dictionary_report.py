"""Measures a dictionary of parts on images with true masks, beside controls, and draws what it finds.

    python -m evaluation.dictionary_report --dictionary DIR --model FOLDER_OR_ID --dataset NAME_OR_FOLDER --output DIR \
      --train_split train --test_split test --label_names names.json --category_column category --taxonomy tree.json --twin VIT

Each part's best entry is chosen, with its threshold, on images of the training split, and scored on those of the test split.
The controls choose alike from as many entries: random directions; the entries that were chosen for other parts (permuted
names); and with --twin clusters of the parts that k-means of another model's patches gives. Writes report.json, report.md and
pictures.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from transformers.utils.logging import disable_progress_bar

from evaluation.backbones import load_backbone
from evaluation.dictionary_pictures import draw_found, draw_transfer, draw_tree
from evaluation.dictionary_scores import Places, best_entries, paths_of, read_places, transfer, transfer_numbers
from evaluation.part_clusters import cluster_segments
from evaluation.part_samples import PartRow, part_rows, read_label_names
from evaluation.records import describe_run, write_json
from evaluation.segment_features import PartReader, PatchKMeansReader, Reader, decoded, read_segments
from evaluation.segmenters import load_rats
from evaluation.token_segmenters import input_size
from modeling_rats import PartDictionary

PROTOCOL = (
    "A part's entry is that of the highest IoU on the training split, at the threshold that gives it; IoU and average "
    "precision are over all patches of all test images together, each counted by the share of its pixels that the part has; "
    "pointing: share of the images that show the part in which the most similar patch is at least half of it. Transfer: entry "
    "and threshold are chosen on training images of one category and scored on test images of another."
)
FOUND_IMAGES = 8  # in the picture of what entries find
LEAST_CATEGORIES = 3  # that share a part, for its picture of transfer
COLUMNS = {"iou": "IoU", "average_precision": "AP", "pointing": "pointing", "iou_of_other_names": "IoU of other parts' entries"}

Splits = tuple[Places, Places]  # training, test


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Run the command line; return the record that report.json gets."""
    options = _parser().parse_args(arguments)
    if not sys.stderr.isatty() or options.quiet:
        disable_progress_bar()  # of transformers, which shows one for loading weights anywhere
    names = read_label_names(options.label_names)
    labels = [label for label in range(1, len(names)) if names[label] not in options.without]
    parts = [names[label] for label in labels]
    if not parts:
        raise ValueError(
            f"{options.label_names} without {', '.join(options.without) or 'its first'} names no part; leave some."
        )
    paths = None if options.taxonomy is None else paths_of(json.loads(options.taxonomy.read_text(encoding="utf-8")))
    model, processor = load_rats(options.model, options.revision or "main")
    dictionary = PartDictionary.from_pretrained(options.dictionary).with_model(model, processor)
    if not len(dictionary):
        raise ValueError(f"{options.dictionary} has no entries, so there is nothing to measure; build one of more images.")
    reader = PartReader(model, processor, options.image_size)

    def splits(reader: Reader, vectors: torch.Tensor) -> Splits:
        train, test = (
            read_places(_rows(options, split), reader, vectors, labels, options.batch_size) for split in ("train", "test")
        )
        return train, test

    number = len(dictionary)
    random = nn.functional.normalize(
        torch.randn(dictionary.vectors.shape, generator=torch.Generator().manual_seed(options.seed))
    )
    both = splits(reader, torch.cat([dictionary.vectors, random]))
    measured: dict[str, Splits] = {
        title: (both[0].with_entries(which), both[1].with_entries(which)) for title, which in _slices(number).items()
    }
    if options.twin is not None:
        twin = _twin(options, reader, number)
        measured[f"clusters of {options.twin}"] = splits(*twin)
    _check_categories(both[0], paths)
    record = {
        "best_entries": {title: best_entries(*one, parts) for title, one in measured.items()},
        "transfer": {},
        "entries": dictionary.names,
        "protocol": PROTOCOL,
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "dictionary": dictionary.settings,
        **describe_run("evaluation.dictionary_report", arguments),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    if options.category_column is not None:
        for title, one in measured.items():
            found = transfer(*one, parts)
            record["transfer"][title] = {
                "numbers": transfer_numbers(found, paths),
                "sources": found.sources,
                "entries": found.entries,
                **{name: getattr(found, name).round(4).tolist() for name in ("iou", "average_precision", "pointing")},
            }
            if title == "dictionary":
                _draw_transfers(found.sources, found.iou, options.output)
    write_json(options.output / "report.json", record)
    (options.output / "report.md").write_text(as_markdown(record), encoding="utf-8")
    print(as_markdown(record))
    _draw_entries(dictionary, record["best_entries"]["dictionary"], _rows(options, "test"), options.output)
    return record


def as_markdown(record: Mapping[str, Any]) -> str:
    """The tables of a record."""
    lines = ["# What the dictionary finds", ""]
    for title, of_parts in record["best_entries"].items():
        lines += [
            f"**{title}**",
            "",
            "| part | entry | " + " | ".join(COLUMNS.values()) + " |",
            "|---|---" + "|--:" * len(COLUMNS) + "|",
        ]
        for part, scored in of_parts.items():
            entry = record["entries"][scored["entry"]] if title == "dictionary" else scored["entry"]
            lines.append(f"| {part} | {entry} | " + " | ".join(_percent(scored[name]) for name in COLUMNS) + " |")
        means = [_percent(float(np.nanmean([scored[name] for scored in of_parts.values()]))) for name in COLUMNS]
        lines += ["| mean | | " + " | ".join(means) + " |", ""]
    if record["transfer"]:
        numbers = {title: one["numbers"] for title, one in record["transfer"].items()}
        names = list(next(iter(numbers.values())))
        lines += [
            "**Transfer between categories**",
            "",
            "| | " + " | ".join(numbers) + " |",
            "|---" + "|--:" * len(numbers) + "|",
        ]
        for name in names:
            told = "{:.2f}".format if name == "distance_correlation" else _percent
            lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(told(one[name]) for one in numbers.values()) + " |")
    return "\n".join(lines) + "\n"


def _slices(number: int) -> dict[str, slice]:
    return {"dictionary": slice(0, number), "random directions": slice(number, 2 * number)}


def _twin(options: argparse.Namespace, reader: PartReader, number: int) -> tuple[Reader, torch.Tensor]:
    """A reader of the twin, and as many entries made of its patches' k-means with as many segments as the model has."""
    state = PartialState(cpu=not torch.accelerator.is_available())
    of_model = read_segments(_rows(options, "train"), reader, options.batch_size, state)
    backbone = load_backbone(options.twin)
    each = round(len(of_model.image) / len(of_model.image.unique()))
    twin = PatchKMeansReader(backbone, input_size(reader.processor, options.image_size), each, options.seed)
    segments = read_segments(_rows(options, "train"), twin, options.batch_size, state)
    return twin, cluster_segments(segments, [number], options.seed).vectors


def _rows(options: argparse.Namespace, split: str) -> Any:
    name, limit = getattr(options, f"{split}_split"), getattr(options, f"{split}_limit")
    given = (options.dataset, options.config, name, options.dataset_revision, options.image_column)
    return part_rows(*given, options.mask_column, options.category_column, limit, options.ignore_label)


def _check_categories(places: Places, paths: Mapping[str, Sequence[str]] | None) -> None:
    if paths is None:
        return
    unknown = sorted(set(places.categories.tolist()) - paths.keys())
    if unknown:
        raise ValueError(f"The taxonomy lacks the categories {', '.join(unknown)}; each must be in one of its lists.")


def _draw_transfers(sources: Sequence[tuple[str, str]], iou: np.ndarray, output: Path) -> None:
    for part in dict.fromkeys(part for _, part in sources):
        places = [place for place, (_, other) in enumerate(sources) if other == part]
        if len(places) >= LEAST_CATEGORIES:
            categories = [sources[place][0] for place in places]
            draw_transfer(part, categories, iou[np.ix_(places, places)], output / f"transfer_{part.replace(' ', '_')}.png")


def _draw_entries(dictionary: PartDictionary, best: Mapping[str, Mapping[str, Any]], rows: Any, output: Path) -> None:
    """What each part's best entry finds in the first images, and the tree of all entries, which tells these parts."""
    images: list = []
    row: PartRow
    for row in rows:
        if len(images) == FOUND_IMAGES:
            break
        if (usable := decoded(row)) is not None:
            images.append(usable[1].image)
    chosen = {part: dictionary.names[scored["entry"]] for part, scored in best.items()}
    found = {part: (chosen[part], scored["threshold"]) for part, scored in best.items()}
    draw_found(dictionary, found, images).save(output / "found.jpg", quality=85)
    told = {name: " / ".join(part for part, entry in chosen.items() if entry == name) for name in dictionary.names}
    draw_tree(dictionary.vectors.numpy(), [f"{told[name]}  {name}".strip() for name in dictionary.names], output / "tree.png")


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can mend ends it with a message and no traceback."""
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.dictionary_report", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--dictionary", required=True, metavar="DIR", help="folder or Hub name of a dictionary")
    parser.add_argument("--model", required=True, help="folder or Hub name of the model that it was built on")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--dataset", required=True, help="Hub name, folder or file")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a data set on the Hub")
    parser.add_argument("--train_split", default="train", help="to choose entries and thresholds on (%(default)s)")
    parser.add_argument("--test_split", default="validation", help="to score (%(default)s)")
    parser.add_argument("--train_limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--test_limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--image_column", help="found when there is one")
    parser.add_argument("--mask_column", default="mask", help="(%(default)s)")
    parser.add_argument("--ignore_label", type=int, metavar="N", help="label of mask pixels that do not count, such as 255")
    parser.add_argument("--category_column", help="what images show; for transfer between categories")
    parser.add_argument("--label_names", required=True, type=Path, metavar="JSON", help="of the masks, 0 (background) first")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="labels that are no parts to be found")
    parser.add_argument(
        "--taxonomy", type=Path, metavar="JSON", help='such as {"animal": ["bird", "fish"], "vehicle": ["car"]}'
    )
    parser.add_argument("--twin", help="another model, whose clusters compete; folder or Hub name")
    parser.add_argument("--image_size", type=int, metavar="PX", help="side of the input; default: the processor's")
    parser.add_argument("--batch_size", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    main()
