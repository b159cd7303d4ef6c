"""Scores the part maps of a RATS model against true masks, beside what colour or an untrained model finds.

    python -m evaluation.part_segmentation --model FOLDER_OR_ID --dataset NAME_OR_PATH --untrained --output scores.json

One pass over the images; memory does not grow with their number, but for six scores an image.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from evaluation.baselines import BASELINES
from evaluation.mask_samples import MaskSample, number_of_rows, open_mask_dataset, read_mask_samples
from evaluation.metrics.contingency import contingency_table, image_scores, mean_over_images
from evaluation.segmenters import ImageBatch, Segmenter, competitors, load_rats
from modeling_rats.visualization import draw_part_map, grid, side_by_side

PROTOCOL = (
    "Overlap is counted in pixels of the true mask's size. M2O: each predicted segment goes to the true region it "
    "overlaps most (ties: lowest label); IoU of a region with the union of its segments; a region without segments "
    "scores 0. O2O: segments and regions matched in pairs by the Hungarian method on IoU; unmatched regions score 0. "
    "mIoU is per image the mean over its true regions, then the mean over images; 'foreground' leaves label 0 out of "
    "the mean over regions. ARI: over all pixels; 'foreground' over pixels whose true label is not 0. Pixels of the "
    "ignore label are left out. Images without a score (no foreground) are left out of its mean. 'Same number of "
    "segments' means per image as many as the model used there. All scores in percent."
)
VERSIONS_OF = ("torch", "transformers", "datasets", "numpy", "scipy", "scikit-learn", "pillow")
SUMMARY_OF_CONFIG = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_registers",
    "patch_size",
    "image_size",
    "partition_registers",
    "communicate",
    "part_layer",
)
COLUMNS = {  # of the printed table
    "images": "images",
    "segments_used": "segments",
    "m2o_miou": "M2O",
    "m2o_miou_foreground": "M2O fg",
    "o2o_miou": "O2O",
    "o2o_miou_foreground": "O2O fg",
    "ari": "ARI",
    "ari_foreground": "ARI fg",
}

Watch = Callable[[int, MaskSample, dict[str, np.ndarray]], None]  # (index of the image, sample, label map of each row)


@dataclasses.dataclass
class Scores:
    """The scores of one competitor, image by image.

    Attributes:
        per_image: score name -> one value an image, in percent; nan where undefined.
        segments_used: number of segments in each image's label map.
    """

    per_image: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    segments_used: list[int] = dataclasses.field(default_factory=list)

    def add(self, label_map: np.ndarray, mask: np.ndarray, ignore_label: int | None = None) -> None:
        """Score one more image."""
        for name, score in image_scores(contingency_table(label_map, mask, ignore_label)).items():
            self.per_image.setdefault(name, []).append(score)
        self.segments_used.append(count_segments(label_map))

    def extend(self, others: "Scores") -> None:
        """Take in the images of another share of the data set."""
        for name, scores in others.per_image.items():
            self.per_image.setdefault(name, []).extend(scores)
        self.segments_used += others.segments_used

    def summary(self) -> dict[str, float | int]:
        """Average over images: every score (nan if undefined), `segments_used`, and how many images there were."""
        means = {name: mean_over_images(scores) for name, scores in self.per_image.items()}
        return {
            "images": len(self.segments_used),
            "images_with_foreground": means["m2o_miou_foreground"][1],
            "segments_used": float(np.mean(self.segments_used)),
            **{name: mean for name, (mean, _) in means.items()},
        }


def evaluate_parts(
    segmenters: Mapping[str, Segmenter],
    samples: Iterable[MaskSample],
    batch_size: int = 8,
    ignore_label: int | None = None,
    watch: Watch | None = None,
) -> dict[str, Scores]:
    """Score every segmenter on the same images, under the same protocol, in one pass.

    Args:
        segmenters: row name -> segmenter; the first one's number of segments is passed on to the others.
        samples: images with true masks.
        batch_size: images a segmenter gets at once.
        ignore_label: true label whose pixels are left out.
        watch: called after every image, for pictures or progress.

    Returns:
        Row name -> scores.
    """
    scores = {row: Scores() for row in segmenters}
    for index, (sample, label_maps) in enumerate(_segment(segmenters, samples, batch_size)):
        for row, label_map in label_maps.items():
            scores[row].add(label_map, sample.mask, ignore_label)
        if watch is not None:
            watch(index, sample, label_maps)
    return scores


def count_segments(label_map: np.ndarray) -> int:
    """Return how many different segments a label map holds."""
    return len(np.unique(label_map))


def draw_pictures(folder: str | Path, num_pictures: int, ignore_label: int | None = None) -> Watch:
    """Return a watcher that draws the first images as PNG: image, part map of model and untrained model, true mask.

    Besides one picture an image, `overview.png` shows them all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[Image.Image] = []

    def watch(index: int, sample: MaskSample, label_maps: dict[str, np.ndarray]) -> None:
        if index >= num_pictures:
            return
        shown = {row: label_map for row, label_map in label_maps.items() if row in ("model", "untrained")}
        mask = sample.mask.astype(np.int64)
        shown["true mask"] = np.where((mask == 0) | (mask == ignore_label), -1, mask)
        panels = [sample.image, *(draw_part_map(sample.image, label_map) for label_map in shown.values())]
        pictures.append(side_by_side(panels, captions=["image", *shown]))
        pictures[-1].save(folder / f"{index:04d}.png")
        grid(pictures, columns=2).save(folder / "overview.png")

    return watch


def format_table(summaries: Mapping[str, Mapping[str, float | int]]) -> str:
    """Lay the summaries out as a table, one row a competitor."""
    width = max(len(row) for row in summaries)
    lines = [" " * width + "".join(f"{title:>10}" for title in COLUMNS.values())]
    for row, summary in summaries.items():
        lines.append(f"{row:<{width}}" + "".join(f"{_cell(summary[name]):>10}" for name in COLUMNS))
    return "\n".join(lines)


def write_json(path: str | Path, record: Any) -> None:
    """Write a record whole or not at all; nan becomes null, since JSON has none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(_without_nan(record), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


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
    rows = open_mask_dataset(options.dataset, options.config, options.split, options.image_column, options.mask_column)
    if options.quiet or not sys.stderr.isatty():
        disable_progress_bar()  # of transformers, which shows one for loading weights anywhere
    model, processor = load_rats(options.model, options.revision, options.part_layer)
    segmenters = competitors(model, processor, options.untrained, options.baselines, options.seed, options.image_size)
    samples = read_mask_samples(rows, options.image_column, options.mask_column, options.ignore_label, options.limit)
    shown_samples = tqdm(
        samples,
        total=number_of_rows(rows, options.limit),
        unit="image",
        disable=options.quiet or None,  # None: shown on a terminal only
    )
    watch = draw_pictures(options.pictures, options.num_pictures, options.ignore_label) if options.pictures else None
    scores = evaluate_parts(segmenters, shown_samples, options.batch_size, options.ignore_label, watch)
    summaries = {row: score.summary() for row, score in scores.items()}
    print(format_table(summaries))
    record = {
        "scores": summaries,
        "protocol": PROTOCOL,
        "settings": {
            **vars(options),
            "split": str(rows.split),
            "image_size": options.image_size or dict(processor.size),
            "revision": getattr(model.config, "_commit_hash", None),  # null for a local folder
        },
        "model_config": {name: getattr(model.config, name) for name in SUMMARY_OF_CONFIG},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS_OF}},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "evaluation.part_segmentation", *arguments]),
    }
    write_json(options.output, record)
    print(f"Written to {options.output}")
    return record


def _segment(
    segmenters: Mapping[str, Segmenter], samples: Iterable[MaskSample], batch_size: int
) -> Iterator[tuple[MaskSample, dict[str, np.ndarray]]]:
    """Yield each sample with the label map of every segmenter."""
    samples = iter(samples)
    while batch := list(islice(samples, batch_size)):
        images, target_sizes = [sample.image for sample in batch], [sample.mask.shape for sample in batch]
        reference_segments: list[int] = []
        label_maps = {}
        for row, segmenter in segmenters.items():
            label_maps[row] = segmenter(ImageBatch(images, target_sizes, reference_segments))
            reference_segments = reference_segments or [count_segments(label_map) for label_map in label_maps[row]]
        for index, sample in enumerate(batch):
            yield sample, {row: maps[index] for row, maps in label_maps.items()}


def _cell(value: float | int) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.part_segmentation", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of a RATS model")
    parser.add_argument("--revision", default="main", help="revision of the model on the Hub")
    parser.add_argument("--dataset", required=True, help="Hub name, local folder or parquet file")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--split", help="default: validation; a single file has none")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--mask_column", default="mask")
    parser.add_argument("--ignore_label", type=int, help="true label whose pixels do not count")
    parser.add_argument("--image_size", type=_positive, metavar="PX", help="side of the input; default: the processor's")
    parser.add_argument("--part_layer", type=int, metavar="L", help="hidden state to read parts from; default: the model's")
    parser.add_argument("--batch_size", type=_positive, default=8)
    parser.add_argument("--limit", type=_positive, metavar="N", help="score the first N images only")
    parser.add_argument("--untrained", action="store_true", help="score the same model with fresh weights as well")
    parser.add_argument("--baselines", nargs="*", choices=list(BASELINES), default=["color_kmeans"])
    parser.add_argument("--seed", type=int, default=0, help="of the untrained weights and of k-means")
    parser.add_argument("--output", metavar="JSON", default="scores.json", help="scores and exact settings (%(default)s)")
    parser.add_argument("--pictures", metavar="DIR", help="draw the first images as PNG here")
    parser.add_argument("--num_pictures", type=_positive, default=8)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    main()
