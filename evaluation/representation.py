"""How well the features of frozen images tell classes apart: weighted k nearest neighbours and a linear probe, as DINO does.

    python -m evaluation.representation --model FOLDER_OR_ID --dataset NAME_OR_FOLDER --probe knn linear --output scores.json

Alone, or under `accelerate launch` or torchrun, whose processes share the images. Images stream; what is held in memory is
their features, 4 bytes x images x D on each process, twice that while neighbours are sought.

D hidden
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from evaluation.backbones import load_backbone
from evaluation.frozen_features import KINDS, FrozenFeatures, SplitFeatures, check_features, read_features
from evaluation.labelled_images import Label, number_labels, open_labelled_images, read_labelled_images
from evaluation.linear_probe import LEARNING_RATES, linear_probe
from evaluation.mask_samples import number_of_rows
from evaluation.records import describe_run, fingerprint_of_weights, hashes_of_weight_files, refuse_folder, write_json
from evaluation.synthetic_parts import rendering_of
from evaluation.top_accuracies import places_of_true_class, positions_among, top_accuracies

PROTOCOL = (
    "Frozen backbone; tokens after the final LayerNorm of its last block; of each image the shorter side is resized to "
    "256/224 of the image size (bicubic) and the central square kept. 'registers' is the mean register, 'patches' the mean "
    "patch, 'class' the class token, 'both' the class token (or else the mean register) and the mean patch. k-NN: the k most "
    "similar training images (cosine) vote for their class with exp(similarity / temperature), as dino/eval_knn.py. Linear: "
    "softmax classifier by SGD, momentum 0.9, no weight decay, cosine to 0, learning rate x batch / 256, as "
    "dino/eval_linear.py, but on features of the centre crop (no random crops and flips), of the last block alone, scored "
    "after the last epoch; of several learning rates the best on a held-out tenth of the training images is trained again on "
    "all of them, so the test images decide nothing. Test images of classes that no training image has count as wrong. "
    "top1, top5: percent of the test images whose class is the best guess, or among the five best (left out for five classes "
    "or fewer; a class without votes is no guess)."
)
SUMMARY_OF_CONFIG = (
    "model_type",
    "attention_variant",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_registers",
    "num_register_tokens",
    "patch_size",
    "image_size",
)


def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    num_neighbors: int = 20,
    temperature: float = 0.07,
    queries_at_once: int = 128,
) -> float:
    """Share of the test images, in percent, whose class wins the vote of their nearest neighbours: see `knn_scores`."""
    given = (train_features, train_labels, test_features, test_labels)
    return knn_scores(*given, [num_neighbors], temperature, queries_at_once)[num_neighbors]["top1"]


def knn_scores(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    nums_neighbors: Sequence[int] = (20,),
    temperature: float = 0.07,
    queries_at_once: int = 128,
) -> dict[int, dict[str, float]]:
    """How often the vote of a test image's nearest neighbours finds its class (dino/eval_knn.py).

    With s_i the cosine similarity of a test image to its k most similar training images, and y_i their classes,

        prediction = argmax over c of the sum of exp(s_i / temperature) over the i with y_i = c.

    Args:
        train_features: Of the images that vote, (images, D).
        train_labels: Their classes, integers, (images,).
        test_features: Of the images that are classified, (queries, D).
        test_labels: Their classes, (queries,).
        nums_neighbors: The numbers k of neighbours that vote.
        temperature: The lower, the more the nearest count.
        queries_at_once: Queries that are compared with all training images at a time, which bounds the memory.

    Returns:
        k -> `top1` and `top5` (see `top_accuracies`); a class without a vote is no guess.

    Raises:
        ValueError: If shapes do not fit together, there are fewer training images than neighbours, no queries, a temperature
            that is not above 0, or features that are not finite.
    """
    check_features(train_features, train_labels, "training")
    check_features(test_features, test_labels, "test")
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"The training features have {train_features.shape[1]} dimensions and the test features {test_features.shape[1]}; "
            "both must come from the same model."
        )
    for num_neighbors in nums_neighbors:
        check_neighbors(num_neighbors, len(train_features))
    if not len(test_features) or temperature <= 0:
        raise ValueError(
            f"There are {len(test_features)} test images and temperature={temperature}; both must be above 0 to classify."
        )
    train_features = nn.functional.normalize(train_features.float(), dim=1)  # (images, D)
    test_features = nn.functional.normalize(test_features.float(), dim=1)  # (queries, D)
    classes, train_classes = train_labels.unique(return_inverse=True)  # so that the votes are as wide as there are classes
    test_classes = positions_among(classes, test_labels)
    places: dict[int, list[torch.Tensor]] = {num_neighbors: [] for num_neighbors in nums_neighbors}
    for queries, true in zip(test_features.split(queries_at_once), test_classes.split(queries_at_once), strict=True):
        similarities, neighbors = (queries @ train_features.T).topk(max(nums_neighbors), dim=1)  # (queries, k)
        # Relative to the nearest, which changes no winner, so that a low temperature overflows nothing.
        weights = ((similarities - similarities[:, :1]) / temperature).exp()  # (queries, k)
        for k, of_k in places.items():
            votes = weights.new_zeros(len(queries), len(classes))
            votes.scatter_add_(1, train_classes[neighbors[:, :k]], weights[:, :k])  # (queries, classes)
            of_k.append(places_of_true_class(votes.masked_fill(votes == 0, -math.inf), true))
    return {k: top_accuracies(torch.cat(of_k), len(classes)) for k, of_k in places.items()}


def check_neighbors(num_neighbors: int, num_images: int) -> None:
    """
    Raises:
        ValueError: If fewer images than neighbours can vote.
    """
    if not 1 <= num_neighbors <= num_images:
        raise ValueError(
            f"num_neighbors={num_neighbors} must be from 1 to the number of training images, {num_images}; use fewer "
            "neighbours or more images."
        )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Run the command line; what the user can mend ends it with a message and no traceback."""
    try:
        return run(arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error) if PartialState().is_main_process else 1) from error


def run(arguments: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Run the command line; return the record that --output gets, None on ranks other than the first."""
    arguments, start = sys.argv[1:] if arguments is None else list(arguments), time.perf_counter()
    options = _parser().parse_args(arguments)
    state = PartialState(cpu=not torch.accelerator.is_available())
    refuse_folder(options.output)
    _check_splits(options)
    if options.quiet or not sys.stderr.isatty():
        disable_progress_bar()  # of transformers, which shows one for loading weights anywhere
    backbone = load_backbone(options.model, options.revision)
    backbone.model.to(state.device)
    frozen = FrozenFeatures(backbone, options.features, options.image_size)
    train = _read_split(options, "train", frozen, state)
    _check_train(options, train)
    test = _read_split(options, "test", frozen, state)
    strangers = _count_strangers(train.labels, test.labels, state.is_main_process)
    processes = state.num_processes
    state.destroy_process_group()  # the first rank does the rest, and nobody needs to wait for it
    if not state.is_main_process:
        return None
    scores = _probe(options, train, test)
    print(format_table(scores))
    config = backbone.model.config
    record = {
        "scores": scores,
        "protocol": PROTOCOL,
        "settings": {
            **vars(options),
            "features": frozen.kind,
            "image_size": frozen.image_size_px,
            "dataset_is_local": Path(options.dataset).expanduser().exists(),
            "rendered": rendering_of(options.dataset, options.test_split),
            "revision": backbone.revision,  # null for a local folder
        },
        "model_config": {name: getattr(config, name) for name in SUMMARY_OF_CONFIG if hasattr(config, name)},
        "data": {"train": _count(train), "test": {**_count(test), "images_of_unknown_classes": strangers}},
        "fingerprints": {
            "weights": fingerprint_of_weights(backbone.model),
            "weight_files": hashes_of_weight_files(options.model, options.revision),
            "train": train.fingerprint,
            "test": test.fingerprint,
        },
        "time": {"seconds": time.perf_counter() - start, "processes": processes},
        **describe_run("evaluation.representation", arguments),
    }
    write_json(options.output, record)
    print(f"Written to {options.output}")
    return record


def format_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay the scores out as a table, one row a classifier."""
    lines = [f"{'':<10}{'top-1':>8}{'top-5':>8}"]
    for name, reached in scores.items():
        top5 = f"{reached['top5']:.1f}" if "top5" in reached else "-"
        lines.append(f"{name:<10}{reached['top1']:>8.1f}{top5:>8}")
    return "\n".join(lines)


def _read_split(options: argparse.Namespace, which: str, frozen: FrozenFeatures, state: PartialState) -> SplitFeatures:
    """Features of the images of one of the two splits, on all ranks."""
    split, limit = getattr(options, f"{which}_split"), getattr(options, f"limit_{which}")
    columns = (options.image_column, options.label_column)
    rows = open_labelled_images(options.dataset, options.config, split, *columns, options.dataset_revision)
    hidden = options.quiet or not state.is_main_process or None  # None: shown on a terminal only
    shown = tqdm(
        read_labelled_images(rows, *columns, limit),
        split,
        number_of_rows(rows, limit),
        unit="image",
        leave=False,
        disable=hidden,
    )
    return read_features(shown, frozen, options.batch_size, state)


def _probe(options: argparse.Namespace, train: SplitFeatures, test: SplitFeatures) -> dict[str, dict[str, Any]]:
    """The scores of every classifier that was asked for, under the name of its row."""
    train_labels, test_labels = (labels.to(train.features.device) for labels in number_labels(train.labels, test.labels))
    given = (train.features, train_labels, test.features, test_labels)
    scores: dict[str, dict[str, Any]] = {}
    if "knn" in options.probe:
        scores |= {f"{k}-NN": of_k for k, of_k in knn_scores(*given, options.num_neighbors, options.temperature).items()}
    if "linear" in options.probe:
        settings = (options.learning_rates, options.epochs, options.linear_batch_size, options.seed, options.quiet)
        reached, rate, held_out_top1 = linear_probe(*given, *settings)
        if len(held_out_top1) > 1 and rate in (min(held_out_top1), max(held_out_top1)):
            print(f"The best learning rate, {rate}, is at the edge of those tried; --learning_rates beyond it may be better.")
        by_rate = {str(one): top1 for one, top1 in held_out_top1.items()}
        scores["linear"] = {**reached, "learning_rate": rate, "held_out_top1": by_rate}
    return scores


def _check_splits(options: argparse.Namespace) -> None:
    """What can be seen from the options alone."""
    if Path(options.dataset).expanduser().is_file():
        raise ValueError(
            f"dataset={options.dataset} is a single file, which has no splits, so every image would be its own nearest "
            "neighbour; name a folder or data set with a split to learn from and one that is classified."
        )
    if options.train_split == options.test_split:
        raise ValueError(
            f"train_split and test_split are both {options.test_split}, so every image would be its own nearest neighbour; "
            "name two splits."
        )
    if "knn" in options.probe and options.limit_train:
        check_neighbors(max(options.num_neighbors), options.limit_train)


def _check_train(options: argparse.Namespace, train: SplitFeatures) -> None:
    """What can be seen before the images are read that are classified."""
    if "knn" in options.probe:
        check_neighbors(max(options.num_neighbors), len(train.labels))
    if len(set(train.labels)) < 2:
        raise ValueError(
            f"All {len(train.labels)} images of train_split={options.train_split} are of the class {train.labels[0]!r}; there "
            "must be two classes to tell apart. Raise --limit_train, or use a data set that is not sorted by class."
        )


def _count_strangers(train_labels: Sequence[Label], test_labels: Sequence[Label], tells: bool) -> int:
    """How many test images have a class that no training image has: the first rows of sorted data hold few classes."""
    known = set(train_labels)
    strangers = sum(label not in known for label in test_labels)
    told = (
        f"{strangers} of {len(test_labels)} test images have classes that none of the {len(train_labels)} training images has "
        f"({len(known)} classes)"
    )
    remedy = "raise --limit_train, or use a data set that is not sorted by class."
    if strangers == len(test_labels):
        raise ValueError(f"{told}, so none can be classified; {remedy}")
    if strangers and tells:
        print(f"{told}, so they count as wrong; {remedy}")
    return strangers


def _count(split: SplitFeatures) -> dict[str, int]:
    return {"images": len(split.labels), "classes": len(set(split.labels))}


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.representation", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of RATS, ViT, DINOv2 or DINOv3")
    parser.add_argument("--revision", default="main", help="revision of the model on the Hub")
    parser.add_argument("--dataset", required=True, help="Hub name or local folder")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a data set on the Hub; default: its newest state")
    parser.add_argument("--train_split", default="train", help="split that votes and is learnt from (%(default)s)")
    parser.add_argument("--test_split", default="validation", help="split that is classified (%(default)s)")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--limit_train", type=_positive, metavar="N", help="use the first N images only")
    parser.add_argument("--limit_test", type=_positive, metavar="N", help="use the first N images only")
    parser.add_argument("--features", choices=KINDS, help="default: class token where there is one, else mean register")
    parser.add_argument("--probe", nargs="+", choices=("knn", "linear"), default=["knn"], help="default: knn")
    parser.add_argument("--num_neighbors", nargs="+", type=_positive, default=[20], metavar="K", help="such as 10 20 100 200")
    parser.add_argument("--temperature", type=float, default=0.07, help="of the vote of the neighbours (%(default)s)")
    parser.add_argument("--epochs", type=_positive, default=100, help="of the linear probe (%(default)s)")
    parser.add_argument(
        "--learning_rates", nargs="+", type=float, default=list(LEARNING_RATES), metavar="RATE",
        help="of the linear probe, for a batch of 256; the best on a held-out tenth of the training images counts",
    )  # fmt: skip
    parser.add_argument("--linear_batch_size", type=_positive, default=256, help="images a step of the linear probe")
    parser.add_argument("--image_size", type=_positive, metavar="PX", help="side of the input; default: the processor's")
    parser.add_argument("--batch_size", type=_positive, default=64, help="images that the model gets at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the linear probe")
    parser.add_argument("--output", metavar="JSON", default="representation.json", help="scores and settings (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


if __name__ == "__main__":
    main()
