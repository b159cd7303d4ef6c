"""Writes proxy masks by SAM 2.1 for images that have no masks, as a data set on which part maps can be scored.

    python -m evaluation.proxy_masks --dataset NAME_OR_FOLDER --output FOLDER
    python -m evaluation.part_segmentation --model FOLDER_OR_ID --dataset FOLDER

Also under `accelerate launch` or `torchrun`: every process writes shards of its own. An interrupted run goes on when the same
command is started again.

The paper (arXiv 2606.14701) scores COCO and ImageNet against proxy masks of SAM 2.1 and does not tell how they were made.
What follows is our reading: SAM 2.1 is asked for whatever there is at each point of a grid over the image, with the thresholds
of its own automatic mask generator (facebookresearch/sam2, sam2/automatic_mask_generator.py), and `paint_masks` makes one label
map of its overlapping masks.

An image that cannot be decoded is left out, and named in the record (`proxy_masks.json`).
"""

import argparse
import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby, islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets.utils.file_utils import xopen
from PIL import Image
from tqdm.auto import tqdm
from transformers.pipelines import MaskGenerationPipeline
from transformers.utils.logging import disable_progress_bar

from evaluation.data_sets import decode_image, open_images
from evaluation.mask_samples import DEFAULT_SPLIT, number_of_rows
from evaluation.mask_shards import MaskShards
from evaluation.records import describe_run, fingerprint_of_weights
from evaluation.sam_masks import METHOD, MaskSettings, load_sam, segment_image


def write_proxy_masks(
    rows: Iterable[dict],
    image_column: str,
    sam: MaskGenerationPipeline,
    settings: MaskSettings,
    shards: MaskShards,
    shard_size: int = 500,
    points_per_batch: int = 64,
    rank: int = 0,
    ranks: int = 1,
) -> dict[str, Any] | None:
    """Write the shards of this rank that are not there yet. Shard b holds the rows from b * shard_size.

    Args:
        rows: Those of all ranks, with undecoded images (`data_sets.open_images`).
        image_column: Name of the column.
        sam: From `load_sam`.
        settings: Of the masks.
        shards: Where they go.
        shard_size: Rows a shard.
        points_per_batch: Points of the grid that SAM answers at once, which bounds the memory.
        rank: This process.
        ranks: Processes that share the rows.

    Returns:
        The record, or None while other ranks are at work.

    Raises:
        ValueError: If there are no rows.
    """
    num_shards = 0
    for shard, numbered in groupby(enumerate(rows), key=lambda numbered_row: numbered_row[0] // shard_size):
        num_shards = shard + 1
        if shard % ranks != rank or shards.has(shard):
            continue
        finished: list[dict] = []
        broken: list[dict] = []
        for image_id, row in numbered:
            name = _file_name(row[image_column])
            image, content, error = _read(row[image_column])
            if image is None:
                broken.append({"image_id": image_id, "file_name": name, "error": error})
                continue
            label_map = segment_image(sam, image, settings, points_per_batch)
            finished.append(
                {
                    "image": {"bytes": content, "path": name},
                    "mask": {"bytes": _png(label_map), "path": None},
                    "image_id": image_id,
                    "file_name": name,
                    "num_masks": int(label_map.max()),
                }
            )
        shards.write(shard, finished, broken)
    if not num_shards:
        raise ValueError("The split holds no rows, so there is nothing to segment; choose another split or data set.")
    return shards.finish(num_shards)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Run the command line; what the user can mend ends it with a message and no traceback."""
    try:
        return run(arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def run(arguments: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Run the command line on this rank; return the record, or None while other ranks are at work."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    settings = MaskSettings(**{name: getattr(options, name) for name in asdict(MaskSettings())})
    state = PartialState(cpu=not torch.accelerator.is_available())
    named = (options.dataset, options.config, options.split, options.image_column, options.dataset_revision)
    rows, image_column = open_images(*named)
    is_quiet = options.quiet or not state.is_main_process or not sys.stderr.isatty()
    if is_quiet:
        disable_progress_bar()  # of transformers, which shows one for loading weights anywhere
    sam = load_sam(options.model, options.revision, state.device)
    split = str(rows.split)
    decisive = {
        "dataset": options.dataset,
        "config": options.config,
        "dataset_revision": options.dataset_revision,
        "split": split,
        "image_column": image_column,
        "limit": options.limit,
        "shard_size": options.shard_size,
        "model": options.model,
        "revision": getattr(sam.model.config, "_commit_hash", None),  # null for a local folder
        "weights": fingerprint_of_weights(sam.model),
        **asdict(settings),
        "method": METHOD,
    }
    shards = MaskShards(options.output, split, decisive, describe_run("evaluation.proxy_masks", arguments))
    state.wait_for_everyone()  # all have opened the folder before one may finish it
    record = shards.record
    if not record["finished"]:
        shown = tqdm(islice(rows, options.limit), total=number_of_rows(rows, options.limit), unit="image", disable=is_quiet)
        written = write_proxy_masks(
            shown,
            image_column,
            sam,
            settings,
            shards,
            options.shard_size,
            options.points_per_batch,
            state.process_index,
            state.num_processes,
        )
        if written is None:
            return None
        record = written
    counts = record["counts"]
    print(f"{counts['images']} images, {counts['masks']} masks, {counts['broken_images']} broken images left out")
    print(f"Written to {options.output}, split {split}")
    return record


def _read(image: dict | None) -> tuple[Image.Image | None, bytes, str]:
    """An undecoded image as RGB and its file, or else why it is broken.

    A file that cannot be fetched, but for one that does not exist, ends the run instead: an hour without a network must not
    leave an hour's images out.
    """
    try:
        content = _file_content(image)
    except FileNotFoundError as error:
        return None, b"", f"FileNotFoundError: {error}"
    try:
        return decode_image({"bytes": content, "path": None}), content, ""
    except Exception as error:  # decoders raise anything
        return None, b"", f"{type(error).__name__}: {error}"


def _file_content(image: dict | None) -> bytes:
    if image is None or (image["bytes"] is None and image["path"] is None):
        raise FileNotFoundError("the row holds no image")
    if image["bytes"] is not None:
        return image["bytes"]
    with xopen(image["path"], "rb") as file:
        return file.read()


def _file_name(image: dict | None) -> str | None:
    """The name of the file alone, without folders and archives around it."""
    return PurePosixPath(image["path"].split("::")[0]).name if image and image["path"] else None


def _png(label_map: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(label_map).save(file, "PNG")
    return file.getvalue()


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    default = MaskSettings()
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.proxy_masks", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--dataset", required=True, help="Hub name, local folder or file of images")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a data set on the Hub; default: its newest state")
    parser.add_argument("--split", default=DEFAULT_SPLIT, help="a single file has none (%(default)s)")
    parser.add_argument("--image_column", help="default: the only column of images, or `image`")
    parser.add_argument("--limit", type=_positive, metavar="N", help="the first N images only")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="of the new data set; one split a folder")
    parser.add_argument("--model", default="facebook/sam2.1-hiera-large", help="folder or Hub name of SAM 2 (%(default)s)")
    parser.add_argument("--revision", default="main", help="revision of the model on the Hub")
    parser.add_argument("--points_per_side", type=_positive, default=default.points_per_side, help="of the grid (%(default)s)")
    parser.add_argument("--pred_iou_threshold", type=float, default=default.pred_iou_threshold, help="(%(default)s)")
    parser.add_argument(
        "--stability_score_threshold", type=float, default=default.stability_score_threshold, help="(%(default)s)"
    )
    parser.add_argument("--min_area_share", type=float, default=default.min_area_share, help="of the image (%(default)s)")
    parser.add_argument("--max_image_side", type=_positive, default=default.max_image_side, metavar="PX", help="(%(default)s)")
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default=default.mixed_precision)
    parser.add_argument("--shard_size", type=_positive, default=500, help="images a file (%(default)s)")
    parser.add_argument("--points_per_batch", type=_positive, default=64, help="fewer need less memory (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    main()
