"""Measures which register attention the weights of a checkpoint were trained with.

    python -m evaluation.check_reading --checkpoint TimingYang/RATS --file base/checkpoint_teacher_ep0388.pth --dataset IMAGES

The authors of RATS published weights and no code, and our attention is a reading of one figure. The same weights fit into other
readings. DINO trains two views of an image to agree under the head, and those of different images not to. In the reading that
the weights were trained with they do so best; the command prints which one that is, with its margin. Labels and masks, where
the data set has them, give a nearest-neighbour accuracy and part scores beside it.

The views must be as in pretraining (--image_size, --crop_scale, --color_jitter); the defaults are DINO's.

M images  K prototypes  D hidden
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from evaluation.data_sets import decode_image, open_images
from evaluation.labelled_images import open_labelled_images, read_labelled_images
from evaluation.mask_samples import open_mask_dataset, read_mask_samples
from evaluation.records import describe_run, refuse_folder, write_json
from evaluation.register_attention_variants import RatsVariantForPartSegmentation, RatsVariantForPreTraining
from evaluation.representation import knn_accuracy
from evaluation.scores import Scores
from evaluation.segmenters import ImageBatch, rats_segmenter
from evaluation.two_views import JITTER, SCALE, TwoViews
from hub_cards.weight_source import add_reading_options, find_weights, reading_options
from modeling_rats import RatsForPartSegmentation, RatsForPreTraining, RatsImageProcessor
from modeling_rats.configuration_rats import height_width
from modeling_rats.original_checkpoint_rats import OriginalCheckpoint, read_original_checkpoint

STUDENT_TEMPERATURE = 0.1  # DINO's (main_dino.py)
CONTRAST_TEMPERATURES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0)  # of cross-entropies in nats
LEAST_ERRORS = 2  # by how many standard errors a reading must be ahead
NUM_NEIGHBORS = 20
PART_SCORES = {"m2o_miou": "M2O", "ari": "ARI", "segments_used": "segments"}


class ReadingOfFigure(NamedTuple):
    """One way to compute with the weights.

    Attributes:
        meaning: In words.
        variant: Name in `VARIANTS`; None for RATS itself.
        fields: Of the configuration.
        other_order: Whether the registers belong to the heads in the other order.
    """

    meaning: str
    variant: str | None = None
    fields: Mapping[str, bool] = {}
    other_order: bool = False


_ALL_REGISTERS = {"partition_registers": False}
READINGS = {
    "rats": ReadingOfFigure("as implemented here"),
    "other_order": ReadingOfFigure("registers belong to the heads in the other order", other_order=True),
    "register_keys": ReadingOfFigure("compress also reads the registers of the head", "register_keys"),
    "no_communicate": ReadingOfFigure("no communicate step", None, {"communicate": False}),
    "all_heads": ReadingOfFigure("registers leave through all heads", "all_heads"),
    "no_partition": ReadingOfFigure("every head holds all registers", None, _ALL_REGISTERS),
    "no_partition_no_communicate": ReadingOfFigure("the last two", None, {**_ALL_REGISTERS, "communicate": False}),
    "perceiver": ReadingOfFigure("cross-attention alone", "perceiver", {**_ALL_REGISTERS, "communicate": False}),
}


class Agreement(NamedTuple):
    """How well two views each of M images agree.

    Attributes:
        contrast: Cross-entropy of finding an image's other view among those of all images, in nats, (M,).
        found: Percent of the images whose other view has the lowest cross-entropy.
        same: DINO's cross-entropy of the two views of an image, in nats.
        other: The same of views of different images, in nats.
        marginal_entropy: Entropy of the mean target, in nats; 0 if all images get one prototype.
    """

    contrast: torch.Tensor
    found: float
    same: float
    other: float
    marginal_entropy: float


def agreement(first: torch.Tensor, second: torch.Tensor, teacher_temperature: float) -> Agreement:
    """How well two views of an image agree under the DINO head, and how well views of different images are told apart.

    With the logits t of a view, their mean c over all views (the centre, which a checkpoint of the teacher does not hold),
    p = softmax((t - c) / teacher temperature), q = softmax(t / 0.1), and the cross-entropy H(p, q) = -sum p log q:

        same  = mean over i of (H(p1[i], q2[i]) + H(p2[i], q1[i])) / 2
        other = the same, over all pairs of different images

    as in dino/main_dino.py (DINOLoss), where p is the teacher's and q the student's. Their difference grows with the logits,
    and a wrong reading can make the logits larger. So readings are compared by how well the cross-entropies tell an image's own
    other view among all, at the best of some temperatures:

        contrast[i] = -log softmax over j of (-H(p1[i], q2[j]) / temperature) at j = i, and likewise with the views exchanged

    Args:
        first: Logits of one view of each image, (M, K).
        second: Those of another view, (M, K).
        teacher_temperature: Of the targets.
    """
    num_images = len(first)
    center = torch.cat([first, second]).mean(dim=0)  # (K)
    targets = [((logits - center) / teacher_temperature).softmax(dim=1) for logits in (first, second)]  # (M, K) each
    predictions = [(logits / STUDENT_TEMPERATURE).log_softmax(dim=1) for logits in (first, second)]
    crossed = torch.stack([-targets[0] @ predictions[1].T, -targets[1] @ predictions[0].T])  # (2, M, M), rows are targets
    same = crossed.diagonal(dim1=1, dim2=2).mean()
    other = (crossed.sum() - 2 * num_images * same) / (2 * num_images * (num_images - 1))
    marginal = torch.cat(targets).mean(dim=0)  # (K)
    entropy = -torch.special.xlogy(marginal, marginal).sum()

    contrasts = [-(-crossed / t).log_softmax(dim=2).diagonal(dim1=1, dim2=2).mean(dim=0) for t in CONTRAST_TEMPERATURES]
    contrast = min(contrasts, key=lambda of_images: of_images.mean())  # (M)
    hits = (crossed.argmin(dim=2) == torch.arange(num_images)).float().mean()
    return Agreement(contrast, 100 * hits.item(), same.item(), other.item(), entropy.item())


def check_readings(
    original: Mapping[bool, OriginalCheckpoint],
    draws: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]],
    teacher_temperature: float,
    more: Callable[[RatsForPreTraining, ReadingOfFigure], dict[str, float]] = lambda model, reading: {},
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> dict[str, dict[str, Any]]:
    """Score every reading that the weights fit.

    Args:
        original: The checkpoint read in the given order of registers (False) and in the other one (True).
        draws: Of each draw of views the batches of two views of the same images, (batch, channels, height, width).
        teacher_temperature: Of the targets.
        more: Further scores of a reading.
        progress: Wraps the names of the readings.

    Returns:
        Name of the reading -> its scores, means over the draws; `contrasts` are those of the images.
    """
    scored: dict[str, dict[str, Any]] = {}
    for name in progress(READINGS):
        reading = READINGS[name]
        model = build(original[reading.other_order], reading)
        measured = []
        for batches in draws:
            first, second = (torch.cat(logits) for logits in zip(*(_logits(model, *batch) for batch in batches), strict=True))
            measured.append(agreement(first, second, teacher_temperature))
        contrasts = torch.stack([one.contrast for one in measured]).mean(dim=0)  # (M)
        scored[name] = {
            "contrast": contrasts.mean().item(),
            **{key: float(np.mean([getattr(one, key) for one in measured])) for key in Agreement._fields if key != "contrast"},
            **more(model, reading),
            "contrasts": contrasts.tolist(),
        }
    return scored


@torch.inference_mode()
def _logits(model: RatsForPreTraining, *views: torch.Tensor) -> list[torch.Tensor]:
    return [model(view.to(model.device)).logits.float().cpu() for view in views]


def build(checkpoint: OriginalCheckpoint, reading: ReadingOfFigure, with_head: bool = True) -> Any:
    """The model of a reading, with the DINO head or for part maps."""
    if reading.variant is None:
        model_class: Any = RatsForPreTraining if with_head else RatsForPartSegmentation
        fields: dict[str, Any] = {**reading.fields}
    else:
        model_class = RatsVariantForPreTraining if with_head else RatsVariantForPartSegmentation
        fields = {**reading.fields, "attention_variant": reading.variant}
    model = checkpoint.build_with_head(model_class, **fields) if with_head else checkpoint.build(model_class, **fields)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def verdict(scored: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Which reading is best, and which are ruled out: by the mean difference of the contrasts over images.

    Returns:
        `best`; `behind`: name of each other reading -> nats behind the best and standard error; `possible`: the best and those
        behind by less than `LEAST_ERRORS` standard errors.
    """
    best, *others = sorted(scored, key=lambda name: scored[name]["contrast"])
    behind = {}
    for name in others:
        differences = np.subtract(scored[name]["contrasts"], scored[best]["contrasts"])
        behind[name] = (float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(differences))))
    possible = [best, *(name for name, (mean, error) in behind.items() if mean < LEAST_ERRORS * error)]
    return {"best": best, "behind": behind, "possible": possible}


def tell(found: Mapping[str, Any]) -> str:
    """A verdict in a sentence."""
    best, possible = found["best"], found["possible"]
    if len(possible) == 1:
        second, (mean, error) = next(iter(found["behind"].items()))
        return (
            f"Of the {len(found['behind']) + 1} readings the weights fit {best} best ({READINGS[best].meaning}): {second} is "
            f"{mean:.3f} nats behind, standard error {error:.3f}."
        )
    excluded = [name for name in found["behind"] if name not in possible]
    rest = f"; clearly worse: {', '.join(excluded)}" if excluded else ""
    return f"Too close to call: {', '.join(possible)}{rest}. Use more --images or --draws."


def format_table(scored: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a reading, the best first, and a legend."""
    titles = {"contrast": "contrast", "found": "found %", "same": "same", "other": "other", "marginal_entropy": "marginal H"}
    titles |= {key: title for key, title in {"knn": "20-NN", **PART_SCORES}.items() if key in next(iter(scored.values()))}
    lines = [" " * 29 + "".join(f"{title:>12}" for title in titles.values())]
    for name, scores in sorted(scored.items(), key=lambda item: item[1]["contrast"]):
        lines.append(f"{name:<29}" + "".join(f"{scores[key]:>12.3f}" for key in titles))
    legend = "In nats: contrast (lowest fits best), cross-entropy of views of the same and of other images, marginal entropy."
    return "\n".join([*lines, legend])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line; what the user can mend ends it with a message and no traceback."""
    try:
        return run(arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line; return the record that --output gets."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    if options.output is not None:
        refuse_folder(options.output)
    source = find_weights(options.checkpoint, options.file, options.revision)
    read = reading_options(options)
    orders = ("head_major", "register_major") if read["register_order"] == "head_major" else ("register_major", "head_major")
    original = {
        bool(other): read_original_checkpoint(source.path, **{**read, "register_order": o}) for other, o in enumerate(orders)
    }
    config = build(original[False], READINGS["rats"]).config  # refuses a checkpoint without head before images are read
    size_px = options.image_size or max(height_width(config.image_size))
    views = TwoViews(
        size_px,
        RatsImageProcessor.image_mean,
        RatsImageProcessor.image_std,
        options.seed,
        options.crop_scale,
        options.color_jitter,
    )
    rows, column = open_images(options.dataset, options.config, options.split, options.image_column, options.dataset_revision)
    images = [decode_image(row[column]) for row in islice(rows, options.images)]
    if len(images) < 2:
        raise ValueError(
            f"{options.dataset} holds {len(images)} images; views of different images need at least 2, better 200."
        )
    starts = range(0, len(images), options.batch_size)
    draws = [
        [views(images[start : start + options.batch_size], start, draw) for start in starts] for draw in range(options.draws)
    ]
    quiet = options.quiet or not sys.stderr.isatty()

    def more(model: RatsForPreTraining, reading: ReadingOfFigure) -> dict[str, float]:
        return _nearest_neighbors(options, model, views) | _parts(options, original[reading.other_order], reading, size_px)

    scored = check_readings(
        original, draws, options.teacher_temperature, more, lambda names: tqdm(names, disable=quiet, unit="reading")
    )
    found = verdict(scored)
    print(format_table(scored))
    print(tell(found))
    record = {
        "readings": scored,
        "verdict": found,
        "images": len(images),
        "source": source.record(),
        "report": vars(original[False].report),
        "settings": {name: value for name, value in vars(options).items() if name != "output"} | {"image_size": size_px},
        **describe_run("evaluation.check_reading", arguments),
    }
    if options.output is not None:
        write_json(options.output, record)
        print(f"Written to {options.output}")
    return record


def _nearest_neighbors(options: argparse.Namespace, model: RatsForPreTraining, views: TwoViews) -> dict[str, float]:
    """Accuracy of one half of the labelled images, chosen at random, by the votes of the other half, in percent."""
    if options.label_column is None:
        return {}
    named = (options.dataset, options.config, options.split, options.image_column or "image", options.label_column)
    rows = open_labelled_images(*named, options.dataset_revision)
    read = list(read_labelled_images(rows, *named[3:], options.images))
    classes = sorted({str(image.label) for image in read})
    if len(classes) < 2:
        raise ValueError(
            f"All {len(read)} images are of the class {classes[0]}; there must be two classes to tell apart. Take more "
            "--images, or data that are not sorted by class."
        )
    half, mixed = len(read) // 2, np.random.default_rng(options.seed).permutation(len(read))
    read = [read[place] for place in mixed]
    with torch.inference_mode():
        pixels = [views.whole(image.decode()) for image in read]
        features = torch.cat([model.rats(one.to(model.device)).pooler_output.float().cpu() for one in pixels])  # (M, D)
    labels = torch.tensor([classes.index(str(image.label)) for image in read])
    neighbors = min(NUM_NEIGHBORS, half)
    return {"knn": knn_accuracy(features[:half], labels[:half], features[half:], labels[half:], neighbors)}


def _parts(
    options: argparse.Namespace, checkpoint: OriginalCheckpoint, reading: ReadingOfFigure, size_px: int
) -> dict[str, float]:
    """Part scores of the paper's reading of parts, in percent."""
    if options.mask_column is None:
        return {}
    columns = (options.image_column or "image", options.mask_column)
    rows = open_mask_dataset(options.dataset, options.config, options.split, *columns, options.dataset_revision)
    model = build(checkpoint, reading, with_head=False)
    segment = rats_segmenter(model, RatsImageProcessor(size={"height": size_px, "width": size_px}))
    scores = Scores()
    for sample in read_mask_samples(rows, *columns, options.ignore_label, options.images):
        scores.add(segment(ImageBatch([sample.image], [sample.mask.shape], []))[0], sample.mask, options.ignore_label)
    summary = scores.summary()
    return {name: summary[name] for name in PART_SCORES}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.check_reading", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--checkpoint", required=True, help="repository on the Hub, or a file; it must hold the DINO head")
    parser.add_argument("--file", metavar="PATH", help="checkpoint in the repository")
    add_reading_options(parser)
    parser.add_argument("--dataset", required=True, help="images like those of pretraining: Hub name, folder or file")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--split", default="validation", help="(%(default)s)")
    parser.add_argument("--dataset_revision", metavar="NAME", help="branch, tag or commit of the data set on the Hub")
    parser.add_argument("--image_column", metavar="NAME", help="default: the only column of images")
    parser.add_argument("--label_column", metavar="NAME", help="also give the accuracy of 20 nearest neighbours")
    parser.add_argument("--mask_column", metavar="NAME", help="also give part scores")
    parser.add_argument("--ignore_label", type=int, metavar="LABEL", help="of the masks, which does not count")
    parser.add_argument("--images", type=int, default=200, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--image_size", type=int, metavar="PX", help="side of the views (default: that of pretraining)")
    parser.add_argument(
        "--crop_scale", type=float, nargs=2, default=SCALE, metavar="SHARE", help="of the image in a view (%(default)s)"
    )
    parser.add_argument(
        "--color_jitter", type=float, nargs=4, default=JITTER, metavar="STRENGTH",
        help="brightness, contrast, saturation, hue (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="pairs of views of each image (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="views at once (%(default)s)")
    parser.add_argument("--teacher_temperature", type=float, default=0.04, help="DINO's, without warm-up (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the views")
    parser.add_argument("--output", type=Path, metavar="JSON", help="the record")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    main()
