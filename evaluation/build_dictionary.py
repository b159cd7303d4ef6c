"""Builds a dictionary of parts (`PartDictionary`) from a data set: without labels, or from masks, or from clicks.

    python -m evaluation.build_dictionary --model FOLDER_OR_ID --dataset NAME_OR_FOLDER --output DIR
    python -m evaluation.build_dictionary --model FOLDER_OR_ID --dataset NAME_OR_FOLDER --mask_column mask --output DIR
    python -m evaluation.build_dictionary --model FOLDER_OR_ID --clicks clicks.json --output DIR
    python -m evaluation.build_dictionary --dictionary DIR --names names.json --output DIR

Without labels, the parts that the model finds in all images are clustered; clusters that do not come back in both halves of
the images, or that lie on the images' borders as background does, are dropped. A person names what is left in a file,
{"part 3": "wheel", "part 5": null}: entries with the same name are merged, null drops one. With masks, each true part gets the
mean of the parts found where it has most of the pixels. A click, {"image": "bird.jpg", "x": 120, "y": 80, "name": "beak"}, is
in pixels of the image, whose path is seen from the file; it stands for the part found there. Under `accelerate launch` the
processes share the images; so they do under torchrun, which on a machine without a GPU is the one that starts several.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from evaluation.dictionary_entries import from_clusters, from_labels, read_clicks, read_json_of, register_heads
from evaluation.dictionary_pictures import draw_catalogue, read_examples
from evaluation.part_clusters import CANDIDATES, MAX_BORDER, MIN_RETURN
from evaluation.part_samples import part_rows, read_label_names
from evaluation.records import describe_run
from evaluation.segment_features import VECTORS, PartReader, Segments, read_segments
from evaluation.segmenters import load_rats
from modeling_rats import PartDictionary, RatsForPartSegmentation
from modeling_rats.part_dictionary import model_fingerprint

CATALOGUE = "catalogue.jpg"


def apply_names(dictionary: PartDictionary, names: Mapping[str, str | None]) -> PartDictionary:
    """Rename entries, merge those that get the same name, and drop those that get none.

    Raises:
        KeyError: If there is no such entry.
    """
    dictionary = dictionary.drop([name for name, new in names.items() if new is None])
    wanted = {name: new for name, new in names.items() if new is not None}
    named: dict[str, list[str]] = {}  # new name -> old ones
    for entry in dictionary:
        named.setdefault(wanted.get(entry.name, entry.name), []).append(entry.name)
    dictionary.rename({name: name for name in wanted})  # tells a name that is not there
    for olds in named.values():
        if len(olds) > 1:
            dictionary = dictionary.merge(olds, olds[0])
    return dictionary.rename({olds[0]: new for new, olds in named.items()})  # at once, so that names can be swapped


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can mend ends it with a message and no traceback."""
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    except KeyError as error:  # whose text is quoted
        raise SystemExit(error.args[0]) from error


def run(arguments: Sequence[str]) -> PartDictionary | None:
    """Run the command line on this rank; return the dictionary, or None on other ranks than the first."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.dictionary is not None:
        if options.names is None:
            parser.error("--dictionary needs --names FILE.")
        named = apply_names(PartDictionary.from_pretrained(options.dictionary), read_json_of(options.names, dict, "an object"))
        named.save_pretrained(options.output)
        print(f"{named!r} in {options.output}")
        return named
    if options.model is None or (options.dataset is None) == (options.clicks is None):
        parser.error("name a --model, and either a --dataset or a file of --clicks; or a --dictionary to be named.")
    if options.label_names is not None and options.mask_column is None:
        parser.error("--label_names are those of a --mask_column; name it, too.")
    if not sys.stderr.isatty() or options.quiet:
        disable_progress_bar()  # of transformers, which shows one for loading weights anywhere
    state = PartialState(cpu=not torch.accelerator.is_available())
    model, processor = load_rats(options.model, options.revision or "main")
    reader = PartReader(model, processor, options.image_size, options.vectors)
    heads = register_heads(model)
    if options.clicks is not None:
        segments, names = read_clicks(options.clicks, reader)
        built = from_labels(segments, names, heads)
    else:
        rows = part_rows(**_of_data(options), mask_column=options.mask_column, ignore_label=options.ignore_label)
        show = tqdm(rows, total=options.limit, disable=not state.is_main_process or options.quiet or not sys.stderr.isatty())
        segments = read_segments(show, reader, options.batch_size, state)
        if options.mask_column is None:
            built = from_clusters(segments, heads, options.num_entries, options.max_border, options.min_return, options.seed)
        else:
            built = from_labels(segments, _names_of_labels(options, segments), heads)
    if not state.is_main_process:
        return None
    entries, vectors, told = built
    dictionary = PartDictionary(entries, vectors, _told_of(model, options), {**told, **_settings(options, segments, arguments)})
    dictionary.save_pretrained(options.output)
    if options.dataset is not None and entries:
        wanted = {example["image"] for entry in entries for example in entry.examples}
        images = read_examples(part_rows(**_of_data(options)), wanted)
        draw_catalogue(dictionary.with_model(model, processor), images).save(options.output / CATALOGUE, quality=85)
    dropped = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in told.items() if not isinstance(value, dict))
    print(f"{dictionary!r} of {len(segments.image):,} segments, in {options.output} ({dropped})")
    return dictionary


def _names_of_labels(options: argparse.Namespace, segments: Segments) -> dict[int, str]:
    """Those of all labels but 0, the background."""
    labels = [label for label in segments.label.unique().tolist() if label > 0]
    if options.label_names is None:
        return {label: f"label {label}" for label in labels}
    names = read_label_names(options.label_names)
    unnamed = [label for label in labels if label >= len(names)]
    if unnamed:
        raise ValueError(
            f"{options.label_names} has {len(names)} names, and the masks have labels {unnamed}; each needs a name."
        )
    return {label: names[label] for label in range(1, len(names))}


def _of_data(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "dataset": options.dataset,
        "config": options.config,
        "split": options.split,
        "revision": options.dataset_revision,
        "image_column": options.image_column,
        "limit": options.limit,
    }


def _told_of(model: RatsForPartSegmentation, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": options.model,
        "revision": getattr(model.config, "_commit_hash", None),
        "fingerprint": model_fingerprint(model),
        "part_layer": model.config.part_layer,
        "part_similarity": model.config.part_similarity,
        "hidden_size": model.config.hidden_size,
    }


def _settings(options: argparse.Namespace, segments: Segments, arguments: Sequence[str]) -> dict[str, Any]:
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items() if name != "output"}
    counted = {"images_read": len(segments.image.unique()), "segments": len(segments.image)}
    return {**told, **counted, **describe_run("evaluation.build_dictionary", arguments)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.build_dictionary", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--model", help="folder or Hub name of a RATS model")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--dataset", help="Hub name, folder or file")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a data set on the Hub")
    parser.add_argument("--split", default="train", help="(%(default)s)")
    parser.add_argument("--image_column", help="found when there is one")
    parser.add_argument("--limit", type=int, metavar="N", help="read the first N images only")
    parser.add_argument("--image_size", type=int, metavar="PX", help="side of the input; default: the processor's")
    parser.add_argument("--batch_size", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--vectors", choices=VECTORS, default="patches", help="mean patch of each part, or its register token")
    parser.add_argument(
        "--num_entries",
        type=int,
        nargs="+",
        default=list(CANDIDATES),
        metavar="N",
        help="clusters; of several the best is taken",
    )
    parser.add_argument(
        "--max_border",
        type=float,
        default=MAX_BORDER,
        help="drop what lies on the border so many times as often as all parts do (%(default)s)",
    )
    parser.add_argument("--min_return", type=float, default=MIN_RETURN, help="drop what comes back less (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mask_column", help="name entries by the masks of this column")
    parser.add_argument("--ignore_label", type=int, metavar="N", help="label of mask pixels that do not count, such as 255")
    parser.add_argument("--label_names", type=Path, metavar="JSON", help="names of the masks' labels, 0 (background) first")
    parser.add_argument("--clicks", type=Path, metavar="JSON", help="build entries of clicked parts")
    parser.add_argument("--dictionary", type=Path, metavar="DIR", help="a dictionary to be named")
    parser.add_argument("--names", type=Path, metavar="JSON", help="new names of its entries, by the old ones")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    main()
