"""Scores the part maps of a RATS model against true masks, beside other models and what colour or no training finds.

    python -m evaluation.part_segmentation --model FOLDER_OR_ID --dataset NAME_OR_PATH --untrained --output scores.json
    python -m evaluation.part_segmentation --model FOLDER_OR_ID --benchmark partimagenet --root DIR --output scores.json

or `accelerate launch --module evaluation.part_segmentation ...` on several GPUs, with the same result. One pass over the
images, of which a rank holds two batches at a time; an interrupted run goes on when the same command is started again.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from evaluation.benchmarks import BENCHMARKS, find_benchmark, open_benchmark
from evaluation.competitors import SAME, SPECIFICATIONS, Competitor, competitors, default_specifications
from evaluation.journal import Journal
from evaluation.mask_samples import MaskRow, MaskSample, mask_rows, number_of_rows, open_mask_dataset
from evaluation.part_scoring import Collected, Stopwatch, collect, score_rows
from evaluation.pictures import Pictures
from evaluation.records import describe_run, fingerprint_of_weights, hashes_of_weight_files, write_json
from evaluation.scores import format_table
from evaluation.segmenters import load_rats
from evaluation.synthetic_parts import rendering_of
from modeling_rats import RatsConfig
from modeling_rats.configuration_rats import PartSimilarity

PROTOCOL = (
    "Overlap is counted in pixels of the true mask's size. M2O: each predicted segment goes to the true region it "
    "overlaps most (ties: lowest label); IoU of a region with the union of its segments; a region without segments "
    "scores 0. O2O: segments and regions matched in pairs by the Hungarian method on IoU; unmatched regions score 0. "
    "mIoU is per image the mean over its true regions, then the mean over images; 'foreground' leaves label 0 out of "
    "the mean over regions. ARI: over all pixels; 'foreground' over pixels whose true label is not 0. BF: F-score of "
    "the borders, within 0.75 % of the diagonal. Pixels of the ignore label are left out. Images without a score (no "
    "foreground) are left out of its mean. 'Same number of segments' means per image as many as the first row used there. "
    "All scores in percent."
)
SUMMARY_OF_CONFIG = (
    "attention_variant",  # which RATS itself has not
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_registers",
    "patch_size",
    "image_size",
    "partition_registers",
    "communicate",
    "part_layer",
    "part_similarity",
)
# Whose segment ids mean the same in every image.
METHODS_WITH_IDENTITY = ("registers", "registers with untrained weights", "random_registers", "attention_heads")
NOT_OF_THE_SCORES = ("output", "pictures", "num_pictures", "quiet")  # options that decide no score


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line; what the user can mend ends it with a message and no traceback."""
    try:
        return run(arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line on this rank; return the record that --output gets (on every rank)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    state = PartialState(cpu=not torch.accelerator.is_available())
    data = open_data(options)
    is_quiet = options.quiet or not state.is_main_process or not sys.stderr.isatty()
    if is_quiet:
        disable_progress_bar()  # of transformers, which shows one for loading weights anywhere
    model, processor = load_rats(options.model, options.revision, options.part_layer, options.part_similarity)
    if options.baselines is None:
        options.baselines = default_specifications(options.model, options.revision)
    rows = competitors(
        model,
        processor,
        options.baselines,
        options.num_segments,
        options.seed,
        options.image_size,
        options.untrained,
        options.reference,
    )
    settings = settings_of(options, data, model.config, processor)
    weights = fingerprint_of_weights(model)
    decisive = {name: value for name, value in settings.items() if name not in NOT_OF_THE_SCORES}
    journal = Journal(options.output, {**decisive, "weights": weights, "protocol": PROTOCOL}, state.process_index)
    drawn = Pictures(options.pictures, options.num_pictures, data.ignore_label) if options.pictures else None
    with tqdm(total=data.num_images, unit="image", disable=is_quiet) as progress:

        def watch(index: int, sample: MaskSample, label_maps: dict[str, np.ndarray]) -> None:
            progress.update(state.num_processes)  # the others are about as far
            if drawn:
                drawn.draw(index, sample, label_maps)

        num_batches = score_rows(
            {title: row.segment for title, row in rows.items()},
            iter(data.rows),
            journal,
            Stopwatch(model),
            options.batch_size,
            data.ignore_label,
            watch,
            [title for title, row in rows.items() if data.has_classes and row.method in METHODS_WITH_IDENTITY],
            state.process_index,
            state.num_processes,
        )
    state.wait_for_everyone()
    collected = collect(journal.entries(num_batches))
    measured = scores_and_time(rows, collected, state.num_processes)
    state.wait_for_everyone()  # all have read the journal
    if all(math.isnan(scores["m2o_miou"]) for scores in measured["scores"].values()):
        if state.is_main_process:
            journal.remove()
        raise ValueError(
            f"No pixel of the {measured['scores']['model']['images']} images counts: all have the ignored label "
            f"{data.ignore_label}, so there is nothing to score. Give another --ignore_label, or another split."
        )
    record = {
        **measured,
        "protocol": PROTOCOL,
        "settings": settings,
        "model_config": {name: getattr(model.config, name) for name in SUMMARY_OF_CONFIG if hasattr(model.config, name)},
        "fingerprints": {
            "weights": weights,
            "weight_files": hashes_of_weight_files(options.model, options.revision),
            "data": collected.data,
        },
        **describe_run("evaluation.part_segmentation", arguments),
    }
    if state.is_main_process:
        write_json(options.output, record)
        journal.remove()
        if drawn:
            drawn.finish()
        print(format_record(record))
        print(f"Written to {options.output}")
    return record


def settings_of(options: argparse.Namespace, data: "Data", config: RatsConfig, processor: Any) -> dict[str, Any]:
    """The options as they stand in the record, with what they left to data set, model and processor."""
    return {
        **vars(options),
        "dataset": data.name,
        "dataset_is_local": Path(data.name).expanduser().exists(),
        "split": data.split,
        "rendered": rendering_of(data.name, data.split),
        "ignore_label": data.ignore_label,
        "image_size": options.image_size or dict(processor.size),
        "revision": getattr(config, "_commit_hash", None),  # null for a local folder
    }


def scores_and_time(rows: Mapping[str, Competitor], collected: Collected, processes: int) -> dict[str, Any]:
    """What was measured, as it stands in the record."""
    return {
        "scores": {title: score.summary() for title, score in collected.scores.items()},
        "competitors": {
            title: {name: value for name, value in row._asdict().items() if name != "segment"} for title, row in rows.items()
        },
        "register_classes": {
            title: {**counted.summary(), "matches": [match._asdict() for match in counted.matches()]}
            for title, counted in collected.classes.items()
        },
        "time": {
            "seconds": collected.seconds,
            "share_outside_model": 1 - collected.seconds_in_model / collected.seconds,
            "processes": processes,
        },
    }


def format_record(record: Mapping[str, Any]) -> str:
    """The table of scores, what registers mean over all images, and the speed, as they are printed."""
    lines = [format_table(record["scores"])]
    for title, over_all in record["register_classes"].items():
        lines.append(
            f"{title}, matched once for all images: M2O {over_all['dataset_m2o_miou']:.1f}, "
            f"O2O {over_all['dataset_o2o_miou']:.1f}, {over_all['dataset_m2o_accuracy']:.1f} % of the pixels; a part's "
            f"most frequent register has {over_all['part_share_top1']:.1f} % of it, on maps of other images "
            f"{over_all['part_share_top1_of_others']:.1f} %"
        )
    time, images = record["time"], record["scores"]["model"]["images"]
    lines.append(
        f"{images * time['processes'] / time['seconds']:.1f} images/s with all rows; "
        f"{100 * time['share_outside_model']:.0f} % of the time outside the model's own forward passes"
    )
    return "\n".join(lines)


class Data(NamedTuple):
    """The images that the options name.

    Attributes:
        name: Of the data set, or its folder.
        split: Of the data set.
        rows: Undecoded.
        ignore_label: True label whose pixels do not count.
        num_images: Where it is known.
        has_classes: Whether a label is the same class in every image.
    """

    name: str
    split: str
    rows: Iterable[MaskRow]
    ignore_label: int | None
    num_images: int | None
    has_classes: bool


def open_data(options: argparse.Namespace) -> Data:
    """Open the benchmark, or the data set with the columns and labels that the options tell.

    Raises:
        FileNotFoundError: If something is not there.
        ValueError: If options do not fit together.
    """
    told = ("dataset", "config", "split", "ignore_label", "image_column", "mask_column", "labels_are_classes")
    if options.benchmark:
        given = [f"--{name}" for name in told if getattr(options, name) is not None]
        if given:
            raise ValueError(
                f"--benchmark {options.benchmark} was given with {', '.join(given)}, which its record tells already; leave "
                "them out, or name the data set without --benchmark."
            )
        record = find_benchmark(options.benchmark)
        rows = open_benchmark(record, options.root, options.limit, options.dataset_revision)
        known = len(rows) if isinstance(rows, Sized) else record.num_images
        num_images = min(filter(None, (known, options.limit)), default=None)
        return Data(
            str(options.root or record.hub_id),
            record.split,
            rows,
            record.ignore_label,
            num_images,
            record.num_labels is not None,
        )
    if options.dataset is None:
        raise ValueError(
            "the images are missing: give --dataset NAME_OR_PATH, or --benchmark NAME with --root DIR (`python -m "
            "evaluation.benchmarks` lists the names)."
        )
    if options.root is not None:
        raise ValueError(
            f"--root {options.root} is the folder of a --benchmark's files, and --dataset {options.dataset} was given; leave "
            "--root out (--dataset takes a folder), or name the --benchmark instead of --dataset."
        )
    columns = (options.image_column or "image", options.mask_column or "mask")
    stream = open_mask_dataset(options.dataset, options.config, options.split, *columns, options.dataset_revision)
    rows = mask_rows(stream, *columns, options.ignore_label, options.limit)
    num_images = number_of_rows(stream, options.limit)
    return Data(options.dataset, str(stream.split), rows, options.ignore_label, num_images, bool(options.labels_are_classes))


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def _number_of_segments(text: str) -> int | str:
    return text if text == SAME else _positive(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.part_segmentation", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of a RATS model")
    parser.add_argument("--revision", default="main", help="revision of the model on the Hub")
    parser.add_argument("--benchmark", choices=list(BENCHMARKS), help="a data set known by `python -m evaluation.benchmarks`")
    parser.add_argument("--root", metavar="DIR", help="folder of the benchmark's official files; default: the Hub")
    parser.add_argument("--dataset", help="any other: Hub name, local folder or parquet file")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a data set on the Hub; default: its newest state")
    parser.add_argument("--split", help="default: validation; a single file has none")
    parser.add_argument("--image_column", help="of --dataset; default: image")
    parser.add_argument("--mask_column", help="of --dataset; default: mask")
    parser.add_argument("--ignore_label", type=int, help="true label whose pixels do not count")
    parser.add_argument(
        "--labels_are_classes",
        action="store_true",
        default=None,
        help="a label is the same class in all images: match registers to classes over the whole data set, too",
    )
    parser.add_argument("--image_size", type=_positive, metavar="PX", help="side of the input; default: the processor's")
    parser.add_argument("--part_layer", type=int, metavar="L", help="hidden state to read parts from; default: the model's")
    parser.add_argument(
        "--part_similarity",
        choices=get_args(PartSimilarity),
        help="what patches are compared with (RatsConfig); default: the model's",
    )
    parser.add_argument("--batch_size", type=_positive, default=8)
    parser.add_argument("--limit", type=_positive, metavar="N", help="score the first N images only")
    parser.add_argument("--untrained", action="store_true", help="score the same model with fresh weights as well")
    parser.add_argument(
        "--baselines",
        nargs="*",
        metavar="COMPETITOR",
        help=f"who else competes: {', '.join(SPECIFICATIONS)} (default: color_kmeans, and patch_kmeans of a distilled model's "
        "teacher)",
    )
    parser.add_argument(
        "--num_segments",
        nargs="+",
        type=_number_of_segments,
        metavar="same|N",
        help="of competitors that make a wanted number, a row each (default: same, and the number of registers)",
    )
    parser.add_argument(
        "--reference",
        metavar="COMPETITOR",
        help="whose number of segments the others follow, such as registers@centered:model (default: the model's part map)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the untrained weights and of k-means")
    parser.add_argument("--output", metavar="JSON", default="scores.json", help="scores and exact settings (%(default)s)")
    parser.add_argument("--pictures", metavar="DIR", help="draw the first images as PNG here, and those of the lowest scores")
    parser.add_argument("--num_pictures", type=_positive, default=8)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    main()
