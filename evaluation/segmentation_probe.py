"""How well simple heads on frozen patch features segment: a linear or FCN head, trained as DINOv2's linear one.

    python -m evaluation.segmentation_probe --model FOLDER_OR_ID --dataset NAME_OR_FOLDER --head linear fcn --output probe.json
    python -m evaluation.segmentation_probe --model A B --benchmark car_parts --root DIR --seed 0 1 2 --output probe.json

One process. Of the training split features and masks stay in memory, 2 bytes x (D x patches + pixels) an image; the test
split streams. Several models are read one after the other, with the same heads, recipe and order of images.

D hidden
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from evaluation.backbones import load_backbone
from evaluation.benchmarks import BENCHMARKS, Benchmark, find_benchmark
from evaluation.frozen_patches import Batch, Examples, FrozenPatches, keep_examples, labels_of_classes, read_batches
from evaluation.mask_samples import DEFAULT_SPLIT, mask_rows, number_of_rows, open_mask_dataset
from evaluation.records import (
    describe_run,
    fingerprint_of_data,
    fingerprint_of_weights,
    hashes_of_weight_files,
    refuse_folder,
    short_name,
    write_json,
)
from evaluation.representation import SUMMARY_OF_CONFIG
from evaluation.segmentation_heads import HEADS, Recipe
from evaluation.segmentation_learning import LEARNING_RATES, LearntHead, learn_head, score_heads
from evaluation.segmentation_scores import Summary, over_seeds
from evaluation.synthetic_parts import rendering_of

MAJORITY = "majority"  # row that gives every pixel the most frequent training label
PROTOCOL = (
    "Frozen backbone; patch tokens after the final LayerNorm; whole images resized to a square. Linear: batch normalisation "
    "and a 1x1 convolution (BNHead of DINOv2). FCN: two 3x3 convolutions of 256 channels with batch normalisation and ReLU, "
    "dropout of channels 0.1, a 1x1 convolution (FCNHead of mmsegmentation, num_convs=2, concat_input=False). Logits are "
    "upsampled bilinearly; cross-entropy over the pixels that count, of masks resized to the square by nearest neighbour; "
    "AdamW, weight decay 1e-4, linear warm-up over 3.75 % of the steps and linear decay to 0, as DINOv2's configurations for "
    "ADE20K, but on features of the whole image: no random scales, crops, flips and colours. Of several learning rates the "
    "best on a held-out tenth of the training images is trained again on all of them; scored after the last epoch, so the "
    "test images decide nothing. Scores: one confusion matrix over all pixels of all test images, at the true masks' size; "
    "mIoU is the mean over the labels that some true or predicted pixel has; pixels of the ignored label are left out. "
    "'majority' gives every pixel the most frequent training label. In percent; over several seeds mean and sample standard "
    "deviation."
)
TOLD_BY_BENCHMARKS = ("config", "image_column", "mask_column", "ignore_label", "num_labels")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line; what the user can mend ends it with a message and no traceback."""
    try:
        return run(arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line; return the record that --output gets: the first model's, with those of others in `beside`."""
    arguments, start = sys.argv[1:] if arguments is None else list(arguments), time.perf_counter()
    options = _parser().parse_args(arguments)
    refuse_folder(options.output)
    for name in ("model", "head", "seed"):
        if len(set(getattr(options, name))) < len(getattr(options, name)):
            raise ValueError(f"--{name} names {getattr(options, name)}; nothing may be there twice. Leave it out once.")
    resolve_data(options)
    if options.quiet or not sys.stderr.isatty():
        disable_progress_bar()  # of transformers, which shows one for loading weights anywhere
    own, *others = measured = [probe_model(name, options) for name in options.model]
    run_by = describe_run("evaluation.segmentation_probe", arguments)
    record = {
        **own,
        "beside": others,
        "protocol": PROTOCOL,
        "settings": {
            **vars(options),
            "model": own["model"],
            "image_size": own["image_size"],
            "revision": own["revision"],
            "dataset_is_local": Path(options.dataset).expanduser().exists(),
            "rendered": rendering_of(options.dataset, options.test_split),
        },
        "time": {"seconds": time.perf_counter() - start},
        **run_by,
        "versions": {**run_by["versions"], "torchmetrics": version("torchmetrics")},
    }
    write_json(options.output, record)
    print(format_table(measured))
    print(f"Written to {options.output}")
    return record


def probe_model(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train all heads on one model's features and score them: what the record holds of the model."""
    start = time.perf_counter()
    backbone = load_backbone(name, options.revision)
    frozen = FrozenPatches(backbone, options.image_size, options.layer)
    train = keep_examples(*_read(options, "train", frozen, options.num_labels), frozen.image_size_px)
    labels = _labels(options, train)
    print(f"{name}: features and masks of {len(train.features):,} training images, {train.num_bytes / 2**20:.1f} MiB")
    rates, recipe = options.learning_rates, Recipe(options.epochs, options.batch_size, options.learning_rates[0], 0)
    learnt = {
        (head, seed): learn_head(
            head, train, len(labels), rates, recipe._replace(seed=seed), backbone.model.device, options.quiet
        )
        for head in options.head
        for seed in options.seed
    }
    heads = {row: one.head for row, one in learnt.items()}
    batches, _ = _read(options, "test", frozen, 1 + labels[-1])
    summaries, of_majority, test = score_heads(heads, int(train.pixels.argmax()), batches, labels)
    config = backbone.model.config
    return {
        "model": name,
        "revision": backbone.revision,  # null for a local folder
        "image_size": frozen.image_size_px,
        **_scores(learnt, summaries, of_majority),
        "data": {
            "train": {"images": len(train.features), "labels": int((train.pixels > 0).sum()), "bytes": train.num_bytes},
            "test": {"images": len(test)},
            "labels": labels,
        },
        "model_config": {name: getattr(config, name) for name in SUMMARY_OF_CONFIG if hasattr(config, name)},
        "fingerprints": {
            "weights": fingerprint_of_weights(backbone.model),
            "weight_files": hashes_of_weight_files(name, options.revision),
            "train": train.fingerprint,
            "test": fingerprint_of_data(test),
        },
        "seconds": time.perf_counter() - start,
    }


def format_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """All rows of all models, then the IoU of each label, then what else one should know."""
    rows = [(f"{row}, {short_name(one['model'])}", one, row) for one in measured for row in one["by_seed"]]
    rows.append((MAJORITY, measured[0], MAJORITY))
    width = max(len(title) for title, _, _ in rows)
    lines = [" " * width + f"{'mIoU':>16}{'pixel accuracy':>18}"]
    for title, one, row in rows:
        scores = one["scores"][row]
        told = [
            f"{scores[name]:.1f}" + (f" ± {scores[f'{name}_std']:.1f}" if f"{name}_std" in scores else "")
            for name in ("miou", "pixel_accuracy")
        ]
        lines.append(f"{title:<{width}}{told[0]:>16}{told[1]:>18}")
    lines += ["", "IoU of each label"]
    for title, one, row in rows:
        told = [f"{label}: {'-' if value is None else f'{value:.1f}'}" for label, value in one["iou"][row].items()]
        lines.append(f"{title:<{width}}  {'  '.join(told)}")
    for title, one, row in rows[:-1]:
        seeds = [seed for seed, found in one["by_seed"][row].items() if found["learning_rate_is_at_edge"]]
        if seeds:
            lines.append(
                f"{title}: the best learning rate is at the edge of those tried (seed {', '.join(seeds)}); --learning_rates "
                "beyond it may be better."
            )
    return "\n".join(lines)


def resolve_data(options: argparse.Namespace) -> None:
    """Fill in what a benchmark's record tells of the data, or else the defaults.

    Raises:
        ValueError: If options do not fit together, or heads cannot learn from the benchmark.
    """
    if options.benchmark:
        given = [f"--{name}" for name in ("dataset", *TOLD_BY_BENCHMARKS) if getattr(options, name) is not None]
        if given:
            raise ValueError(
                f"--benchmark {options.benchmark} was given with {', '.join(given)}, which its record tells already; leave "
                "them out, or name the data set without --benchmark."
            )
        record = _learnable(find_benchmark(options.benchmark), options.root)
        vars(options).update({name: getattr(record, name) for name in TOLD_BY_BENCHMARKS})
        options.dataset, options.config = (options.root, None) if options.root else (record.hub_id, record.config)
        options.test_split = options.test_split or record.split
    elif options.dataset is None or options.root is not None:
        raise ValueError("The images are missing: give either --dataset NAME_OR_FOLDER, or --benchmark NAME with --root DIR.")
    options.image_column, options.mask_column = options.image_column or "image", options.mask_column or "mask"
    options.test_split = options.test_split or DEFAULT_SPLIT
    if Path(options.dataset).expanduser().is_file() or options.train_split == options.test_split:
        raise ValueError(
            f"dataset={options.dataset} must have two splits, one to learn from and one that is scored; got train_split="
            f"{options.train_split} and test_split={options.test_split}. Name a folder or data set, and two of its splits."
        )


def _learnable(record: Benchmark, root: str | None) -> Benchmark:
    """The record, if `datasets` opens its masks and a label is the same class in all images."""
    problem = None
    if record.num_labels is None:
        problem = "numbers the regions of each image, which are no classes; choose a benchmark of classes"
    elif root is None and not (record.hub_id and record.hub_has_masks):
        problem = "has no masks on the Hub; pass --root DIR, a folder of both splits that `datasets` opens"
    elif root is not None and record.layout is not None:
        problem = (
            f"has official files, which are read for the split {record.split} alone; pass a folder of both splits that "
            "`datasets` opens as --dataset, with --num_labels and --ignore_label"
        )
    if problem:
        raise ValueError(f"The benchmark {record.name} {problem}.")
    return record


def _read(
    options: argparse.Namespace, which: str, frozen: FrozenPatches, num_labels: int | None
) -> tuple[Iterator[Batch], int | None]:
    """Batches of one of the two splits, and the number of its images where it is known."""
    split, limit = getattr(options, f"{which}_split"), getattr(options, f"limit_{which}")
    columns = (options.image_column, options.mask_column)
    stream = open_mask_dataset(options.dataset, options.config, split, *columns, options.dataset_revision)
    rows, num_images = mask_rows(stream, *columns, options.ignore_label, limit), number_of_rows(stream, limit)
    shown = tqdm(rows, split, num_images, unit="image", leave=False, disable=options.quiet or None)
    return read_batches(shown, frozen, options.batch_size, split, options.ignore_label, num_labels), num_images


def _labels(options: argparse.Namespace, train: Examples) -> list[int]:
    """The label of each class: up to --num_labels, or to the highest of the training masks."""
    present = int((train.pixels > 0).sum())
    if present < 2:
        raise ValueError(
            f"The pixels that count (ignore_label={options.ignore_label}) of the {len(train.features)} training images have "
            f"{present} labels; a head needs two to tell apart. Give another --ignore_label or --mask_column, or raise "
            "--limit_train."
        )
    if options.num_labels:
        return labels_of_classes(options.num_labels, options.ignore_label)
    num_classes = len(train.pixels)  # an ignored label among the others makes one label more
    return labels_of_classes(num_classes + 1, options.ignore_label)[:num_classes]


def _scores(
    learnt: Mapping[tuple[str, int], LearntHead], summaries: Mapping[tuple[str, int], Summary], of_majority: Summary
) -> dict[str, Any]:
    """Means over seeds, and what each seed found, as they stand in the record."""
    of_heads: dict[str, list[Summary]] = {}
    by_seed: dict[str, dict[str, Any]] = {}
    for (head, seed), one in learnt.items():
        summary = summaries[head, seed]
        tried = one.held_out_miou
        of_heads.setdefault(head, []).append(summary)
        by_seed.setdefault(head, {})[str(seed)] = {
            "miou": summary.miou,
            "pixel_accuracy": summary.pixel_accuracy,
            "learning_rate": one.learning_rate,
            "learning_rate_is_at_edge": bool(tried) and one.learning_rate in (min(tried), max(tried)),
            "held_out_miou": {str(rate): miou for rate, miou in tried.items()},
            "last_train_loss": one.last_train_loss,
        }
    averaged = {row: over_seeds(of_row) for row, of_row in {**of_heads, MAJORITY: [of_majority]}.items()}
    return {
        "scores": {row: scores for row, (scores, _) in averaged.items()},
        "iou": {row: {str(label): value for label, value in iou.items()} for row, (_, iou) in averaged.items()},
        "by_seed": by_seed,
    }


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.segmentation_probe", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "--model", nargs="+", required=True, help="folders or Hub names of RATS, ViT, DINOv2, DINOv3; the record is the first's"
    )
    parser.add_argument("--revision", default="main", help="revision of the models on the Hub")
    parser.add_argument("--benchmark", choices=list(BENCHMARKS), help="a data set known by `python -m evaluation.benchmarks`")
    parser.add_argument("--root", metavar="DIR", help="the benchmark's folder, which `datasets` opens; default: the Hub")
    parser.add_argument("--dataset", help="any other: Hub name or local folder with images and masks of class ids")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a data set on the Hub; default: its newest state")
    parser.add_argument("--train_split", default="train", help="split that heads learn from (%(default)s)")
    parser.add_argument("--test_split", help=f"split that is scored (default: {DEFAULT_SPLIT}, or the benchmark's)")
    parser.add_argument("--image_column", help="of --dataset; default: image")
    parser.add_argument("--mask_column", help="of --dataset; default: mask")
    parser.add_argument("--ignore_label", type=int, help="true label whose pixels do not count, such as 255")
    parser.add_argument("--num_labels", type=_positive, help="labels are 0 to N - 1; default: to the highest in training masks")
    parser.add_argument("--limit_train", type=_positive, metavar="N", help="use the first N images only")
    parser.add_argument("--limit_test", type=_positive, metavar="N", help="use the first N images only")
    parser.add_argument("--head", nargs="+", choices=HEADS, default=["linear"], help="default: linear")
    parser.add_argument("--image_size", type=_positive, metavar="PX", help="side of the input; default: the processor's")
    parser.add_argument("--layer", type=int, default=-1, help="block whose patches are read; -1 is the last (%(default)s)")
    parser.add_argument("--epochs", type=_positive, default=100, help="of each head (%(default)s)")
    parser.add_argument("--batch_size", type=_positive, default=16, help="images a step, and that the model gets at once")
    parser.add_argument(
        "--learning_rates", nargs="+", type=float, default=list(LEARNING_RATES), metavar="RATE",
        help="of AdamW (%(default)s); of several the best on a held-out tenth of the training images counts",
    )  # fmt: skip
    parser.add_argument("--seed", nargs="+", type=int, default=[0], help="of the heads; several give mean and spread")
    parser.add_argument("--output", metavar="JSON", default="segmentation_probe.json", help="scores and settings (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


if __name__ == "__main__":
    main()
