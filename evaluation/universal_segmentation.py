"""Scores a model of labelled masks on a split with true ones: mIoU (semantic), mask AP (instance), PQ and mIoU (panoptic).

    python -m evaluation.universal_segmentation --model FOLDER_OR_ID --dataset NAME_OR_FOLDER --task semantic --output JSON

For a `RatsForUniversalSegmentation`, or any of transformers' models with Mask2Former's outputs. Under
`accelerate launch` each process takes its share of the images.

Q queries  S segments; pixels are height, width
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, PreTrainedModel
from transformers.hf_argparser import string_to_bool
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

import modeling_rats  # noqa: F401  # registers RATS with the Auto classes
from evaluation.backbones import read_model_type
from evaluation.mask_inference import OVERLAP_THRESHOLD, THRESHOLD
from evaluation.mask_scorers import scorer_for
from evaluation.records import (
    describe_run,
    fingerprint_of_arrays,
    fingerprint_of_data,
    fingerprint_of_weights,
    hashes_of_weight_files,
    refuse_folder,
    write_json,
)
from evaluation.segmentation_data import SegmentationData, Task, open_segmentation_data
from evaluation.synthetic_parts import rendering_of

PROTOCOL = (
    "Each image alone, resized by the model's own processor; outputs are read at the true masks' size, as Mask2Former does. "
    "Semantic: mIoU and pixel accuracy from one confusion matrix over all pixels of all images; labels that no true or "
    "predicted pixel has are left out of the mean; void pixels do not count. Instance: COCO's mask AP (pycocotools), at "
    "most 100 masks an image; crowds neither count nor punish; sizes are counted in pixels. Panoptic: PQ, SQ and RQ, means "
    "over the labels that "
    f"occur; segments of probability above {THRESHOLD} and at least {OVERLAP_THRESHOLD} of them "
    "visible; crowds count as void. In percent."
)
# Of the configuration of a RATS; another model has those that it has.
SUMMARY_OF_CONFIG = (
    "model_type",
    "segmentation_head",
    "query_source",
    "num_queries",
    "feature_size",
    "hidden_dim",
    "encoder_layers",
    "decoder_layers",
    "num_upscale_blocks",
)
NOTHING_FOUND = (
    f"No segment was found: those of probability above {THRESHOLD} count, and after a short training a model is often sure "
    "of none."
)
OPTIONS_OF_DATA = (
    "config",
    "layout",
    "image_column",
    "mask_column",
    "segment_labels_column",
    "objects_column",
    "ignore_label",
    "reduce_labels",
    "num_labels",
)


@torch.no_grad()
def score_segmentation(
    model: PreTrainedModel,
    processor: Any,
    data: SegmentationData,
    limit: int | None = None,
    quiet: bool = True,
    fingerprints: list[str] | None = None,
) -> dict[str, float]:
    """The scores of a task, in percent. All ranks must call it; each takes every R-th image of R ranks, and all get the scores.

    Args:
        model: On the device of the rank; it is put into evaluation mode, and back.
        processor: Prepares the images.
        data: The images; their labels are those of the model.
        limit: The first so many images; all by default.
        quiet: No progress bar.
        fingerprints: Gets that of each image that the rank has read, with its segments.

    Raises:
        ValueError: If the model has other labels, or an image or annotation cannot be read.
    """
    check_labels(model.config.id2label or {}, data)
    state = PartialState()
    scorer, problem = scorer_for(data, model.device), None
    was_training = model.training
    model.eval()
    own = range(len(data) if limit is None else min(limit, len(data)))[state.process_index :: state.num_processes]
    try:
        hidden = quiet or not state.is_main_process or None
        for index in tqdm(own, "Scoring", unit="image", leave=False, disable=hidden):
            sample = data[index]
            if fingerprints is not None:
                fingerprints.append(fingerprint_of_arrays(*sample))
            inputs = processor(images=[sample.image], return_tensors="pt")
            scorer.add(model(inputs["pixel_values"].to(model.device)), sample)
    except (OSError, ValueError) as error:
        problem = error
    finally:
        model.train(was_training)
    told = [message for message in gather_object([problem and str(problem)]) if message is not None]
    if told:  # on all ranks, or the others would wait for this one's pixels
        raise ValueError(told[0]) from problem
    return scorer.scores()


def check_labels(id2label: Mapping[Any, str], data: SegmentationData) -> None:
    """
    Raises:
        ValueError: If a model's labels are not those of the data.
    """
    if dict(id2label) != data.id2label:
        differing = [label for label in {**id2label, **data.id2label} if id2label.get(label) != data.id2label.get(label)]
        label = min(differing)
        raise ValueError(
            f"The model has {len(id2label)} labels and {data.name} {len(data.id2label)}; they must be the same, and label "
            f"{label} is {id2label.get(label)!r} in the model and {data.id2label.get(label)!r} in the data. Check task, "
            "columns and label options."
        )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line; what the user can mend ends it with a message and no traceback."""
    try:
        return run(arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line; return the record that --output gets."""
    arguments, start = sys.argv[1:] if arguments is None else list(arguments), time.perf_counter()
    options = _parser().parse_args(arguments)
    refuse_folder(options.output)
    if options.quiet or not sys.stderr.isatty():
        disable_progress_bar()  # of transformers, which shows one for loading weights anywhere
    state = PartialState()
    _check_model(options.model, options.revision, options.task)
    model = AutoModelForUniversalSegmentation.from_pretrained(options.model, revision=options.revision).to(state.device)
    processor = AutoImageProcessor.from_pretrained(options.model, revision=options.revision)
    of_data = {name: getattr(options, name) for name in OPTIONS_OF_DATA}
    data = open_segmentation_data(
        options.dataset,
        options.split,
        options.task,
        revision=options.dataset_revision,
        label_names=options.label_names,
        thing_labels=options.thing_labels,
        **of_data,
    )
    read: list[str] = []
    scores = score_segmentation(model, processor, data, options.limit, options.quiet, read)
    record = build_record(options, model, processor, data, scores, gather_object(read), arguments)
    record["time"] = {"seconds": time.perf_counter() - start}
    if state.is_main_process:
        write_json(options.output, record)
        print("  ".join(f"{name} {score:.1f}" for name, score in scores.items()))
        if scores.get("pq") == 0.0:
            print(NOTHING_FOUND)
        print(f"Written to {options.output}")
    return record


def _check_model(name: str, revision: str, task: str) -> None:
    """Tell before anything is read that a model cannot be scored, or was fine-tuned for something else.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If it is a backbone.
    """
    if read_model_type(name, revision) == "rats":
        raise ValueError(
            f"Model {name!r} is a backbone, which finds no labelled masks. Fine-tune it first "
            "(training/finetune_segmentation.py), or score heads on it by evaluation.segmentation_probe."
        )
    record = cached_file(name, "training.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    trained = record and json.loads(Path(record).read_text(encoding="utf-8")).get("settings", {}).get("task")
    if trained not in (None, task) and PartialState().is_main_process:
        print(f"The model was fine-tuned for task={trained}, and is scored for task={task}.", file=sys.stderr)


def build_record(
    options: argparse.Namespace,
    model: PreTrainedModel,
    processor: Any,
    data: SegmentationData,
    scores: dict[str, float],
    fingerprints: Sequence[str],
    arguments: Sequence[str],
) -> dict[str, Any]:
    """What --output gets, but for the time: the scores with all that is needed to repeat them."""
    run_by = describe_run("evaluation.universal_segmentation", arguments)
    return {
        "model": options.model,
        "task": data.task,
        "scores": scores,
        "images": len(data) if options.limit is None else min(options.limit, len(data)),
        "labels": len(data.id2label),
        "protocol": PROTOCOL,
        "settings": {
            **vars(options),
            "image_size": dict(processor.size),
            "size_divisor": getattr(processor, "size_divisor", None),
            "dataset_is_local": Path(options.dataset).expanduser().exists(),
            "rendered": rendering_of(options.dataset, options.split),
        },
        "model_config": {name: getattr(model.config, name) for name in SUMMARY_OF_CONFIG if hasattr(model.config, name)},
        "fingerprints": {
            "weights": fingerprint_of_weights(model),
            "weight_files": hashes_of_weight_files(options.model, options.revision),
            "data": fingerprint_of_data(fingerprints),
        },
        **run_by,
        "versions": {**run_by["versions"], "torchmetrics": version("torchmetrics"), "pycocotools": version("pycocotools")},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.universal_segmentation", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of a model for universal segmentation")
    parser.add_argument("--revision", default="main", help="revision of the model on the Hub")
    parser.add_argument("--dataset", required=True, help="Hub name, local folder or file; with --layout the official folder")
    parser.add_argument("--split", default="validation", help="split that is scored (%(default)s)")
    parser.add_argument("--task", required=True, choices=get_args(Task), help="what the masks are")
    parser.add_argument("--layout", help="official files instead: coco_instances, coco_panoptic or ade20k")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a data set on the Hub; default: its newest state")
    parser.add_argument("--image_column", default="image", help="column of images (%(default)s)")
    parser.add_argument("--mask_column", help="column of maps; default: mask or segment_mask")
    parser.add_argument("--segment_labels_column", help="column of the labels of a map's segments")
    parser.add_argument("--objects_column", help="column of COCO-like objects; default: objects")
    parser.add_argument("--ignore_label", type=int, help="stored label whose pixels do not count")
    parser.add_argument(
        "--reduce_labels",
        type=string_to_bool,
        nargs="?",
        const=True,
        default=False,
        help="the stored 0 does not count, and 1 is the first label",
    )
    parser.add_argument("--label_names", nargs="+", help="names of the labels, where the data set has none")
    parser.add_argument("--num_labels", type=int, help="number of the labels, where nothing names them")
    parser.add_argument("--thing_labels", nargs="+", type=int, help="labels whose objects are counted one by one")
    parser.add_argument("--limit", type=int, metavar="N", help="score the first N images only")
    parser.add_argument("--output", metavar="JSON", default="universal_segmentation.json", help="the record (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    main()
