"""Images of super-categories composed of articulated parts, with exact part masks: the embedded data set.

    python -m evaluation.synthetic_parts --output DIR --images 20000 --image_size 64 --seed 0 --difficulty easy
    datasets.load_dataset(DIR, streaming=True)  # columns image, mask, category, parts

Image `index` of seed `seed` depends on those two and the difficulty alone, and shows the same scene at every size.
Part types keep their structure (a wheel's spokes, rings on legs) while colours come from a palette that all parts and
the background share, so that clustering colours finds no parts. Three presets are made for trainings of minutes: in "easy" the
ground keeps the palette's brightness alone, so colour tells a little of where the object is; "colours" is easy with nine
parts in ten in a hue that is typical of their type, as grass is green, so that an image tells its category at a glance; in
"textures" there is no colour, all parts of all images have the same two greys, and the ground is a third. The set needs no
network and has no licence trouble; it is no evidence for photographs.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain, islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from evaluation.synthetic_rendering import DIFFICULTIES, Difficulty, SyntheticSample, check_scene, render
from evaluation.synthetic_shapes import CATEGORY_NAMES, PART_NAMES

__all__ = ["CATEGORY_NAMES", "DIFFICULTIES", "PART_NAMES", "Difficulty", "SyntheticSample", "render", "write_dataset"]

SPLITS = ("train", "validation", "test")  # the names that `load_dataset(DIR)` finds without a configuration
IMAGES_PER_ROW_GROUP = 100  # a process's unit of work, and a streaming reader's unit of shuffling and skipping
IMAGES_PER_SHARD = 5_000
LABEL_FILE = "label_names.json"

Rows = dict[str, list]  # column name -> values


def write_dataset(
    output: str | os.PathLike,
    images: int,
    image_size_px: int,
    seed: int,
    difficulty: Difficulty | str = "medium",
    split: str = "train",
    num_processes: int | None = None,
    quiet: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Renders a split into parquet shards that `datasets.load_dataset(output)` reads, streaming or not.

    Columns: `image` and `mask` (PNG, the mask with 8 bits), `category` (ClassLabel) and `parts` (the part names found
    in the mask, background left out). Shards get their names only when the whole split is rendered. `label_names.json`
    beside them names the labels and records how each split was made.

    A script that calls this with several processes needs the usual `if __name__ == "__main__":`.

    Args:
        output: Folder; created if absent.
        images: Number of images in the split.
        image_size_px: Side of the square images.
        seed: Of the split. Splits of one folder need different seeds, or they would hold the same images.
        difficulty: A preset's name or settings of one's own.
        split: "train", "validation" or "test".
        num_processes: Rendering processes; None takes one for each core.
        quiet: No progress bar.
        overwrite: Replaces the split if it is there.

    Returns:
        The paths of the shards.

    Raises:
        ValueError: If an argument is out of range, or another split of the folder has the same seed.
        FileExistsError: If the split is there already.
        NotADirectoryError: If `output` is a file.
    """
    output = Path(output)
    check_request(output, images, image_size_px, seed, difficulty, split, num_processes, overwrite)
    output.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(images, split)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{split}-unfinished-", dir=output))  # readers pass over hidden names
    try:
        render_shards(unfinished, shards, partial(render_rows, seed, image_size_px, difficulty), num_processes, quiet)
        for earlier in shards_of(output, split):
            earlier.unlink()
        for name in shards:
            os.replace(unfinished / name, output / name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    preset = difficulty if isinstance(difficulty, str) else asdict(difficulty)
    record_split(output, split, {"images": images, "image_size_px": image_size_px, "seed": seed, "difficulty": preset})
    return [output / name for name in shards]


def plan_shards(images: int, split: str) -> dict[str, list[range]]:
    """File names of the shards, each with the image indices of its row groups."""
    fewest = 2 if images >= 1_000 else 1  # two, so that two workers or ranks can share them
    count = max(math.ceil(images / IMAGES_PER_SHARD), fewest)
    bounds = np.linspace(0, images, count + 1).astype(int).tolist()
    return {
        f"{split}-{shard:05d}-of-{count:05d}.parquet": [
            range(first, min(first + IMAGES_PER_ROW_GROUP, stop)) for first in range(start, stop, IMAGES_PER_ROW_GROUP)
        ]
        for shard, (start, stop) in enumerate(pairwise(bounds))
    }


def render_shards(
    folder: Path,
    shards: dict[str, list[range]],
    render_group: Callable[[range], Rows],
    num_processes: int | None,
    quiet: bool,
) -> None:
    """Renders row groups in parallel and writes them in order, shard after shard."""
    import pyarrow.parquet  # here and not above: rendering processes import this module and need neither of the two

    schema = dataset_features().arrow_schema  # carries the features, so that readers need no script
    row_groups = list(chain.from_iterable(shards.values()))
    images = sum(map(len, row_groups))
    with (
        tqdm(total=images, desc="Rendering", unit="image", disable=quiet or not sys.stderr.isatty()) as progress,
        parallel_map(num_processes or count_cores(), len(row_groups)) as run,
    ):
        rendered = iter(run(render_group, row_groups))
        for name, groups in shards.items():
            with pyarrow.parquet.ParquetWriter(folder / name, schema) as writer:
                for rows in islice(rendered, len(groups)):
                    writer.write_table(pyarrow.table(rows, schema=schema))
                    progress.update(len(rows["category"]))


@contextmanager
def parallel_map(num_processes: int, tasks: int) -> Iterator[Callable[..., Iterable]]:
    """An ordered `map` over processes, or the plain one where a single process will do."""
    if min(num_processes, tasks) == 1:
        yield map
        return
    # Spawned, not forked: a fork of a process that has run OpenCV or PyTorch threads can hang.
    with ProcessPoolExecutor(min(num_processes, tasks), get_context("spawn"), initializer=use_one_thread) as pool:
        try:
            yield pool.map
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else an interrupt would wait for every image that is still to come
            raise


def count_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_one_thread() -> None:
    """Keeps OpenCV to one thread: processes are already one a core."""
    cv2.setNumThreads(1)


def render_rows(seed: int, image_size_px: int, difficulty: Difficulty | str, indices: Iterable[int]) -> Rows:
    """Renders images and encodes them as the columns of a row group."""
    rows: Rows = {"image": [], "mask": [], "category": [], "parts": []}
    for index in indices:
        sample = render(seed, index, image_size_px, difficulty)
        rows["image"].append({"bytes": encode_png(sample.image[..., ::-1]), "path": None})  # OpenCV wants BGR
        rows["mask"].append({"bytes": encode_png(sample.mask), "path": None})
        rows["category"].append(sample.category)
        rows["parts"].append([part for part in np.flatnonzero(np.bincount(sample.mask.ravel())).tolist() if part > 0])
    return rows


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG at the lowest compression level: five times faster than the default, a tenth larger."""
    return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def dataset_features() -> Any:
    """The columns as `datasets.Features`."""
    from datasets import ClassLabel, Features, Image, List  # takes seconds, and rendering alone does not need it

    return Features(
        {
            "image": Image(),
            "mask": Image(),
            "category": ClassLabel(names=list(CATEGORY_NAMES)),
            "parts": List(ClassLabel(names=list(PART_NAMES))),
        }
    )


def record_split(output: Path, split: str, made_with: dict[str, Any]) -> None:
    """Writes the label names, and adds how this split was made."""
    record = {
        "label_names": PART_NAMES,
        "category_names": CATEGORY_NAMES,
        "ignore_index": None,
        "splits": {**recorded_splits(output), split: made_with},
    }
    unfinished = output / f".{split}-{LABEL_FILE}"
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(unfinished, output / LABEL_FILE)


def recorded_splits(output: Path) -> dict[str, dict[str, Any]]:
    """How each finished split of a folder was made; empty where there is none.

    Raises:
        ValueError: If it was not written for these labels.
    """
    path = output / LABEL_FILE
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("label_names") != list(PART_NAMES) or "splits" not in record:
        raise ValueError(f"{path} must be the label file of this data set, but holds something else; use a new --output.")
    return {split: made_with for split, made_with in record["splits"].items() if shards_of(output, split)}


def rendering_of(dataset: str, split: str) -> dict[str, Any] | None:
    """How the split of a data set was made if it is a folder that `write_dataset` wrote; else None."""
    try:
        return recorded_splits(Path(dataset)).get(split)
    except (OSError, ValueError):  # somebody else's folder
        return None


def shards_of(output: Path, split: str) -> list[Path]:
    """The finished shards of a split."""
    return sorted(output.glob(f"{split}-*-of-*.parquet"))


def check_request(
    output: Path,
    images: int,
    image_size_px: int,
    seed: int,
    difficulty: Difficulty | str,
    split: str,
    num_processes: int | None,
    overwrite: bool,
) -> None:
    """Raises what `write_dataset` documents, before anything is rendered or written."""
    check_scene(seed, 0, image_size_px, difficulty)
    if images < 1:
        raise ValueError(f"images={images} must be at least 1; ask for 20000 to train, 500 to evaluate.")
    if split not in SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}, the names that load_dataset finds.")
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"num_processes={num_processes} must be at least 1; leave it out for one process a core.")
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output={output} is a file and must be a folder; name a new or an existing folder.")
    if shards_of(output, split) and not overwrite:
        raise FileExistsError(
            f"output={output} already holds split {split!r} and is not replaced unasked; "
            f"pass --overwrite (overwrite=True), another --split or another --output."
        )
    for other, made_with in recorded_splits(output).items():
        if other != split and made_with["seed"] == seed:
            raise ValueError(
                f"seed={seed} made split {other!r} of {output}, and a seed always gives the same images; "
                f"use another, for example --seed {seed + 1}."
            )


def main(arguments: list[str] | None = None) -> None:
    """Command line of `write_dataset`."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.synthetic_parts", description="Renders a split of the synthetic data set."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--images", type=int, required=True, help="number of images")
    parser.add_argument("--image_size", type=int, default=64, help="side in pixels (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one for each split (default %(default)s)")
    parser.add_argument("--difficulty", default="medium", help=f"{', '.join(DIFFICULTIES)} (default %(default)s)")
    parser.add_argument("--split", default="train", help=f"{', '.join(SPLITS)} (default %(default)s)")
    parser.add_argument("--num_processes", type=int, help="rendering processes (default: one a core)")
    parser.add_argument("--overwrite", action="store_true", help="replace the split if it is there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    given = parser.parse_args(arguments)
    request: dict[str, Any] = {
        "output": given.output,
        "images": given.images,
        "image_size_px": given.image_size,
        "seed": given.seed,
        "difficulty": given.difficulty,
        "split": given.split,
        "num_processes": given.num_processes,
        "overwrite": given.overwrite,
    }
    try:
        check_request(**request)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    shards = write_dataset(**request, quiet=given.quiet)
    if not given.quiet:
        print(f"{given.images} images in {len(shards)} shard(s) of split {given.split!r}; read them with")
        print(f"datasets.load_dataset({str(given.output)!r})")


if __name__ == "__main__":
    main()
