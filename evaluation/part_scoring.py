"""Images with true masks -> label maps of every competitor -> scores: in memory, or batch by batch over ranks."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from evaluation.journal import Journal
from evaluation.mask_samples import MaskRow, MaskSample
from evaluation.metrics.contingency import ContingencyTable
from evaluation.metrics.register_classes import RegisterClasses
from evaluation.records import fingerprint_of_data, fingerprint_of_sample
from evaluation.scores import Scores
from evaluation.segmenters import ImageBatch, Segmenter

T = TypeVar("T")
Watch = Callable[[int, MaskSample, dict[str, np.ndarray]], None]  # (index of the image, sample, label map of each row)


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
    for batch, of_batch in enumerate(_groups(iter(samples), batch_size)):
        indices = range(batch * batch_size, batch * batch_size + len(of_batch))
        for row, scored in score_batch(segmenters, indices, of_batch, ignore_label, watch).items():
            scores[row].extend(scored)
    return scores


def score_batch(
    segmenters: Mapping[str, Segmenter],
    indices: Sequence[int],
    samples: Sequence[MaskSample],
    ignore_label: int | None = None,
    watch: Watch | None = None,
) -> dict[str, Scores]:
    """As `evaluate_parts`, for the images of one batch and their places in the data set."""
    images, target_sizes = [sample.image for sample in samples], [sample.mask.shape for sample in samples]
    label_maps: dict[str, list[np.ndarray]] = {}
    scores = {row: Scores() for row in segmenters}
    reference_segments: list[int] = []
    for row, segmenter in segmenters.items():
        label_maps[row] = segmenter(ImageBatch(images, target_sizes, reference_segments, list(indices)))
        for label_map, sample in zip(label_maps[row], samples, strict=True):
            scores[row].add(label_map, sample.mask, ignore_label)
        reference_segments = reference_segments or scores[row].segments_used
    if watch is not None:
        for place, (index, sample) in enumerate(zip(indices, samples, strict=True)):
            watch(index, sample, {row: maps[place] for row, maps in label_maps.items()})
    return scores


class Stopwatch:
    """Adds up the seconds that a model spends in its forward passes, on a GPU until they have ended there."""

    def __init__(self, model: nn.Module):
        self.seconds = 0.0
        model.register_forward_pre_hook(self._start)
        model.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self.started = _now()

    def _stop(self, *_: object) -> None:
        self.seconds += _now() - self.started


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def score_rows(
    segmenters: Mapping[str, Segmenter],
    rows: Iterator[MaskRow],
    journal: Journal,
    stopwatch: Stopwatch,
    batch_size: int = 8,
    ignore_label: int | None = None,
    watch: Watch | None = None,
    rows_of_classes: Collection[str] = (),
    rank: int = 0,
    ranks: int = 1,
) -> int:
    """Score this rank's batches that the journal does not hold yet; the next one is decoded while one is scored.

    Batches are the same whatever the number of ranks, and so, to the bit, are their scores.

    Args:
        segmenters: As in `evaluate_parts`.
        rows: The images of all ranks; only this rank's are decoded.
        journal: What is finished; gets a line a batch.
        stopwatch: Of the model whose share of the time is reported.
        batch_size: Images a segmenter gets at once.
        ignore_label: As in `evaluate_parts`.
        watch: As in `evaluate_parts`, for this rank's images.
        rows_of_classes: Segmenters whose ids mean the same in every image, as the labels do: they are matched over all.
        rank: This process among them.
        ranks: Processes that share the rows.

    Returns:
        The number of batches of all ranks.
    """
    num_batches = 0

    def own_batches() -> Iterator[tuple[int, list[int], list[MaskSample]]]:
        nonlocal num_batches
        for number, batch in enumerate(_groups(rows, batch_size)):
            num_batches += 1
            if number % ranks == rank and number not in journal.finished:
                yield number, [row.index for row in batch], [row.decode() for row in batch]

    def count_and_watch(
        classes: dict[str, RegisterClasses], index: int, sample: MaskSample, label_maps: dict[str, np.ndarray]
    ) -> None:
        for row, counted in classes.items():
            counted.add(label_maps[row], sample.mask, ignore_label)
        if watch is not None:
            watch(index, sample, label_maps)

    start, forward = time.perf_counter(), stopwatch.seconds
    for number, indices, samples in _one_ahead(own_batches()):
        classes = {row: RegisterClasses() for row in rows_of_classes}

        scores = score_batch(segmenters, indices, samples, ignore_label, partial(count_and_watch, classes))
        now = time.perf_counter()
        journal.write(
            number,
            {
                "samples": [fingerprint_of_sample(*sample) for sample in samples],
                "scores": {row: asdict(scored) for row, scored in scores.items()},
                "classes": {
                    row: {
                        "table": [part.tolist() for part in counted.table],
                        "of_others": [part.tolist() for part in counted.of_others],
                        "images": counted.images,
                    }
                    for row, counted in classes.items()
                },
                "seconds": now - start,
                "seconds_in_model": stopwatch.seconds - forward,
            },
        )
        start, forward = now, stopwatch.seconds
    return num_batches


class Collected(NamedTuple):
    """What all ranks have found.

    Attributes:
        scores: Row name -> scores of all images, in the data set's order.
        classes: Row name -> its ids and the classes over all images, of rows that were asked for.
        data: Fingerprint of the images and masks.
        seconds: Of all batches, added over ranks.
        seconds_in_model: Of these, in the forward passes of the model.
    """

    scores: dict[str, Scores]
    classes: dict[str, RegisterClasses]
    data: str
    seconds: float
    seconds_in_model: float


def collect(entries: Sequence[dict[str, Any]]) -> Collected:
    """Put the lines of a journal together."""
    scores: dict[str, Scores] = {}
    for entry in entries:
        for row, scored in entry["scores"].items():
            scores.setdefault(row, Scores()).extend(Scores(**scored))
    classes: dict[str, RegisterClasses] = {}
    for entry in entries:
        for row, counted in entry["classes"].items():
            tables = (
                ContingencyTable(*(np.array(part, np.int64) for part in counted[name])) for name in ("table", "of_others")
            )
            table, of_others = tables
            classes.setdefault(row, RegisterClasses()).extend(RegisterClasses(table, counted["images"], of_others))
    data = fingerprint_of_data(sample for entry in entries for sample in entry["samples"])
    seconds, in_model = (sum(entry[name] for entry in entries) for name in ("seconds", "seconds_in_model"))
    return Collected(scores, classes, data, seconds, in_model)


def _groups(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while group := list(islice(items, size)):
        yield group


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item
