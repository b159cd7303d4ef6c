"""Opens the data sets that part segmentation is scored on, from their official files or the Hub.

    python -m evaluation.benchmarks                    # the table
    python -m evaluation.benchmarks ade20k             # one record and its layout on disk
    python -m evaluation.benchmarks ade20k --root DIR  # is this folder what it should be?

What each of them is stands in `benchmark_records`.
"""

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from evaluation.benchmark_records import BENCHMARKS, Benchmark
from evaluation.layouts.annotated_images import decode_sample
from evaluation.mask_samples import MaskRow, MaskSample, mask_rows, open_mask_dataset

__all__ = ["BENCHMARKS", "Benchmark", "find_benchmark", "open_benchmark"]


def find_benchmark(name: str) -> Benchmark:
    """The record of this name.

    Raises:
        ValueError: If there is none.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark={name} is not known; it must be one of: {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def open_benchmark(
    benchmark: str | Benchmark, root: str | Path | None = None, limit: int | None = None, revision: str | None = None
) -> Iterable[MaskRow]:
    """The images and masks of a benchmark, undecoded, in the same order each time.

    The order is that of image ids (COCO-style JSON) or file names (ADE20K, ImageNet-S); what `datasets` opens keeps its own.

    Args:
        benchmark: Name in `BENCHMARKS`, or a record of one's own.
        root: Folder of the official layout, or one that `datasets` opens where the record has no layout; None for the Hub.
        limit: The first so many images; all by default.
        revision: Branch, tag or commit of the Hub's data set; its newest state when None.

    Returns:
        The rows: a list where a layout is read, else a stream. Their `decode` raises ValueError at a mask that cannot be
        used, has labels that the record does not, or does not show its image's frame.

    Raises:
        FileNotFoundError: If something is missing below `root`, or the Hub's data set is not found.
        ValueError: If there is no such benchmark, it needs a root or is given one with a revision, its annotations contradict
            themselves, or it is empty.
    """
    if isinstance(benchmark, str):
        benchmark = find_benchmark(benchmark)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1 image; leave it out to read all.")
    if root is not None and revision is not None:
        raise ValueError(
            f"revision={revision} was given with root={root}; only data sets on the Hub have revisions. Leave one out."
        )
    if root is not None and benchmark.layout is not None:
        images = benchmark.layout.annotated_images(root, limit)
        decoders = [partial(decode_sample, image, benchmark.ignore_label) for image in images]
        return [
            _row(index, image.subject, decode, benchmark)
            for index, (image, decode) in enumerate(zip(images, decoders, strict=True))
        ]
    dataset, config = (benchmark.hub_id, benchmark.config) if root is None else (str(Path(root).expanduser()), None)
    if dataset is None or (root is None and not benchmark.hub_has_masks):
        raise ValueError(_needs_root(benchmark))
    if root is not None and not Path(dataset).exists():  # else it could be taken for a name on the Hub
        raise FileNotFoundError(
            f"root={root} does not exist; it must be the data set's folder. Check the spelling and the working folder."
        )
    columns = benchmark.image_column, benchmark.mask_column
    rows = open_mask_dataset(dataset, config, benchmark.split, *columns, revision)
    stream = mask_rows(rows, *columns, benchmark.ignore_label, limit)
    return (_row(row.index, row.subject, row.decode, benchmark) for row in stream)


def format_table() -> str:
    """One line a record: its Hub data set with its mark, split, layout, what a region is, the labels and the licence."""
    lines = [("name", "title", "Hub data set", "split", "layout", "regions", "labels", "ignored", "licence")]
    for record in BENCHMARKS.values():
        hub = f"{record.hub_id} ({'verified' if record.hub_verified else 'unverified'})" if record.hub_id else "-"
        layout = record.layout.name if record.layout else "datasets"
        labels = "by image" if record.num_labels is None else f"0-{record.num_labels - 1}"
        ignored = "-" if record.ignore_label is None else str(record.ignore_label)
        lines.append((record.name, record.title, hub, record.split, layout, record.mask_kind, labels, ignored, record.licence))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def format_record(benchmark: Benchmark) -> str:
    """All fields of a record, and its layout on disk."""
    fields = {field.name: getattr(benchmark, field.name) for field in dataclasses.fields(benchmark)}
    layout = fields.pop("layout")
    lines = [f"{name:<13} {'-' if value in (None, '') else value}" for name, value in fields.items()]
    return "\n".join(
        [*lines, f"layout        {layout.name}\n{layout.tree}" if layout else "layout        what `datasets` opens"]
    )


def check_folder(benchmark: Benchmark, root: str | Path, num_decoded: int = 8) -> str:
    """Count the images below a folder and decode the first few.

    Returns:
        The number of images, their sizes, and what labels the decoded masks hold, in words.

    Raises:
        FileNotFoundError: As `open_benchmark`.
        ValueError: As `open_benchmark`, or at a mask that cannot be used.
    """
    num_images, pixels, images_with = 0, Counter[int](), Counter[int]()
    sides: list[int] = []
    regions: list[int] = []
    for row in open_benchmark(benchmark, root):
        num_images += 1
        if row.index >= num_decoded:
            continue
        image, mask = row.decode()
        labels, counts = (found.tolist() for found in np.unique(mask, return_counts=True))
        pixels.update(dict(zip(labels, counts, strict=True)))
        images_with.update(labels)
        sides += image.size
        regions.append(len(set(labels) - {benchmark.ignore_label}))
    expected = "" if benchmark.num_images is None else f" of {benchmark.num_images:,} that the split has"
    ignored = pixels[benchmark.ignore_label] if benchmark.ignore_label is not None else 0
    shown = ", ".join(f"{label} in {count}" for label, count in sorted(images_with.items())[:20])
    return "\n".join(
        [
            f"{benchmark.title}: {num_images:,} images{expected}.",
            f"The first {len(regions)} were decoded: sides of {min(sides)} to {max(sides)} pixels, {min(regions)} to "
            f"{max(regions)} regions an image, {100 * ignored / pixels.total():.1f} % of the pixels ignored.",
            f"Labels and the number of images they are in: {shown}{', ...' if len(images_with) > 20 else ''}.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can mend ends it with a message and no traceback."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.benchmarks",
        description="Shows the benchmarks, or checks a folder of one.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(BENCHMARKS)}; all are listed without it")
    parser.add_argument("--root", metavar="DIR", help="folder to check")
    parser.add_argument("--decode", type=int, default=8, metavar="N", help="images to decode (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.decode < 1:
        parser.error(f"--decode={options.decode} must be at least 1 image")
    if options.root is not None and options.name is None:
        parser.error("--root needs the name of the benchmark that should be in it")
    try:
        if options.name is None:
            print(format_table())
        elif options.root is None:
            print(format_record(find_benchmark(options.name)))
        else:
            print(check_folder(find_benchmark(options.name), options.root, options.decode))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def _row(index: int, subject: str, decode: Callable[[], MaskSample], benchmark: Benchmark) -> MaskRow:
    return MaskRow(index, subject, partial(_decode, decode, benchmark, subject))


def _decode(decode: Callable[[], MaskSample], benchmark: Benchmark, subject: str) -> MaskSample:
    """The sample, if the record knows all its labels."""
    sample = decode()
    if benchmark.num_labels is not None:
        unknown = np.setdiff1d(sample.mask, range(benchmark.num_labels))
        unknown = unknown[unknown != benchmark.ignore_label]
        if unknown.size:
            also_ignored = "" if benchmark.ignore_label is None else f", and {benchmark.ignore_label} for what is ignored"
            raise ValueError(
                f"The mask of {subject} holds the labels {', '.join(map(str, unknown[:5]))}, which {benchmark.title} does not "
                f"have; its labels are 0 to {benchmark.num_labels - 1}{also_ignored}. Use the published masks."
            )
    return sample


def _needs_root(benchmark: Benchmark) -> str:
    where = "no Hub data set" if benchmark.hub_id is None else f"{benchmark.hub_id} on the Hub, without label maps,"
    below = f" Expected layout:\n{benchmark.layout.tree}" if benchmark.layout else f" {benchmark.notes}"
    return f"{benchmark.name} has {where} that could be read instead of files; pass root (--root DIR).{below}"


if __name__ == "__main__":
    main()
