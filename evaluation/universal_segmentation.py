"""Scores a model of labelled masks on a split with true ones: mIoU (semantic), mask AP (instance), PQ and mIoU (panoptic).

    python -m evaluation.universal_segmentation --model FOLDER_OR_ID --dataset NAME_OR_FOLDER --task semantic --output JSON

For a `RatsForUniversalSegmentation`, or any of transformers' models with Mask2Former's processor and outputs. Under
`accelerate launch` each process takes its share of the images.

Q queries  S segments; pixels are height, width
"""

import argparse
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torchmetrics.detection import PanopticQuality
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

import modeling_rats  # noqa: F401  # registers RATS with the Auto classes
from evaluation.mask_precision import MaskPrecision
from evaluation.panoptic_inference import OVERLAP_THRESHOLD, THRESHOLD, panoptic_segments
from evaluation.records import (
    describe_run,
    fingerprint_of_arrays,
    fingerprint_of_data,
    fingerprint_of_weights,
    hashes_of_weight_files,
    refuse_folder,
    write_json,
)
from evaluation.segmentation_data import SegmentationData, SegmentationSample, Task, open_segmentation_data
from evaluation.segmentation_heads import IGNORED
from evaluation.segmentation_scores import SegmentationScores
from evaluation.synthetic_parts import rendering_of

PROTOCOL = (
    "Each image alone, resized by the model's own processor; outputs are read at the true masks' size, by its post-processing "
    "unless said otherwise. "
    "Semantic: mIoU and pixel accuracy from one confusion matrix over all pixels of all images; labels that no true or "
    "predicted pixel has are left out of the mean; void pixels do not count. Instance: COCO's mask AP (pycocotools) over all "
    "queries, at most 100 an image; crowds neither count nor punish. Panoptic: PQ, SQ and RQ, means over the labels that "
    f"occur; segments as Mask2Former reads them, of probability above {THRESHOLD} and at least {OVERLAP_THRESHOLD} of them "
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


class Scorer(Protocol):
    """Compares outputs with true segments, image by image."""

    def add(self, outputs: Any, sample: SegmentationSample) -> None: ...

    def scores(self) -> dict[str, float]: ...


class SemanticScorer:
    """mIoU and pixel accuracy.

    Args:
        processor: With Mask2Former's post-processing.
        num_labels: How many labels there are.
        device: Where the pixels are counted.
    """

    def __init__(self, processor: Any, num_labels: int, device: torch.device):
        self.processor = processor
        # Two classes at least, as torchmetrics has it; one that never occurs is left out of the mean.
        self.num_classes = max(num_labels, 2)
        self.counts = SegmentationScores(self.num_classes, device)

    def add(self, outputs: Any, sample: SegmentationSample) -> None:
        (predicted,) = self.processor.post_process_semantic_segmentation(outputs, target_sizes=[sample.void.shape])
        self.counts.add(predicted, torch.from_numpy(label_map(sample)).to(predicted.device))

    def scores(self) -> dict[str, float]:
        summary = self.counts.summary(range(self.num_classes))
        return {"miou": summary.miou, "pixel_accuracy": summary.pixel_accuracy}


class InstanceScorer:
    """COCO's mask AP.

    Args:
        processor: With Mask2Former's post-processing.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self.precision = MaskPrecision()

    def add(self, outputs: Any, sample: SegmentationSample) -> None:
        size = sample.void.shape
        (found,) = self.processor.post_process_instance_segmentation(
            outputs, threshold=0.0, target_sizes=[size], return_binary_maps=True
        )
        segments = found["segments_info"]
        masks = found["segmentation"].bool().cpu().numpy() if segments else np.zeros((0, *size), bool)
        labels, scores = (np.array([segment[name] for segment in segments]) for name in ("label_id", "score"))
        self.precision.add(masks, labels, scores, sample.masks, sample.labels, sample.crowd)

    def scores(self) -> dict[str, float]:
        return self.precision.compute()


class StrictPanopticQuality(PanopticQuality):
    """PQ, SQ and RQ as COCO's panopticapi has them, where pixels may be predicted to be nothing.

    torchmetrics forgives a true segment that is mostly predicted to be nothing; a label of its own for nothing, left out of
    the means, makes it count as missed.

    Args:
        things: Labels whose objects are counted one by one.
        stuff: The other labels.

    Attributes:
        nothing: The label of predicted pixels without one.
    """

    def __init__(self, things: Collection[int], stuff: Collection[int]):
        self.nothing = len(things) + len(stuff)
        super().__init__(set(things), {*stuff, self.nothing})

    def compute(self) -> torch.Tensor:
        """Means over the labels that some true or predicted segment has, (3,), from 0 to 1; nan if none has."""
        right, wrong, missed = (one[:-1].double() for one in (self.true_positives, self.false_positives, self.false_negatives))
        present = right + wrong + missed > 0
        right, wrong, missed, iou = right[present], wrong[present], missed[present], self.iou_sum[:-1][present]
        segmentation = iou / right.clamp(min=1)
        recognition = right / (right + wrong / 2 + missed / 2)
        return torch.stack([segmentation * recognition, segmentation, recognition]).mean(dim=1)


class PanopticScorer:
    """PQ, and mIoU of the same model read semantically.

    Args:
        processor: With Mask2Former's post-processing.
        data: Tells which labels are things.
        device: Where pixels are counted.
    """

    def __init__(self, processor: Any, data: SegmentationData, device: torch.device):
        self.stuff = set(data.id2label) - data.thing_labels
        self.quality = StrictPanopticQuality(data.thing_labels, self.stuff)
        self.semantic = SemanticScorer(processor, len(data.id2label), device)

    def add(self, outputs: Any, sample: SegmentationSample) -> None:
        (classes,), (masks,) = outputs.class_queries_logits, outputs.masks_queries_logits
        segments, label_of = panoptic_segments(classes, masks, sample.void.shape, self.stuff)
        segments = segments.cpu()  # (height, width)
        predicted = torch.stack([torch.full_like(segments, self.quality.nothing), segments], dim=-1)  # (height, width, 2)
        for number, label in label_of.items():
            predicted[..., 0][segments == number] = label
        true = torch.full_like(predicted, self.quality.nothing + 1)  # unknown to the metric, so void
        for number, (mask, label, crowd) in enumerate(zip(sample.masks, sample.labels, sample.crowd, strict=True)):
            if not crowd:
                true[torch.from_numpy(mask)] = torch.tensor([int(label), number])
        self.quality.update(predicted[None], true[None])
        self.semantic.add(outputs, sample)

    def scores(self) -> dict[str, float]:
        quality = 100 * self.quality.compute()
        return {**dict(zip(("pq", "sq", "rq"), quality.tolist(), strict=True)), **self.semantic.scores()}


def label_map(sample: SegmentationSample) -> np.ndarray:
    """The label of each pixel, (height, width) int64; `IGNORED` for void ones, crowds and those of no segment."""
    labels = np.full(sample.void.shape, IGNORED, np.int64)
    for mask, label, crowd in zip(sample.masks, sample.labels, sample.crowd, strict=True):
        labels[mask] = IGNORED if crowd else label
    labels[sample.void] = IGNORED
    return labels


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
        processor: With Mask2Former's post-processing.
        data: The images; their labels are those of the model.
        limit: The first so many images; all by default.
        quiet: No progress bar.
        fingerprints: Gets that of each image that the rank has read, with its segments.

    Raises:
        ValueError: If the model has other labels, or an image or annotation cannot be read.
    """
    check_labels(model.config.id2label or {}, data)
    state = PartialState()
    scorer: Scorer
    if data.task == "semantic":
        scorer = SemanticScorer(processor, len(data.id2label), model.device)
    else:
        scorer = InstanceScorer(processor) if data.task == "instance" else PanopticScorer(processor, data, model.device)
    was_training = model.training
    model.eval()
    own = range(len(data) if limit is None else min(limit, len(data)))[state.process_index :: state.num_processes]
    try:
        for index in tqdm(own, "Scoring", unit="image", leave=False, disable=quiet or None):
            sample = data[index]
            if fingerprints is not None:
                fingerprints.append(fingerprint_of_arrays(*sample))
            inputs = processor(images=[sample.image], return_tensors="pt")
            scorer.add(model(inputs["pixel_values"].to(model.device)), sample)
    finally:
        model.train(was_training)
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
        print(f"Written to {options.output}")
    return record


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
    parser.add_argument("--reduce_labels", action="store_true", help="the stored 0 does not count, and 1 is the first label")
    parser.add_argument("--label_names", nargs="+", help="names of the labels, where the data set has none")
    parser.add_argument("--num_labels", type=int, help="number of the labels, where nothing names them")
    parser.add_argument("--thing_labels", nargs="+", type=int, help="labels whose objects are counted one by one")
    parser.add_argument("--limit", type=int, metavar="N", help="score the first N images only")
    parser.add_argument("--output", metavar="JSON", default="universal_segmentation.json", help="the record (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    main()
