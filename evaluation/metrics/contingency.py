"""How well a label map without names matches a true mask: the NumPy core of all part-segmentation scores.

Every score of an image is computed from one contingency table, the overlap in pixels of each predicted segment with
each true region, so large evaluations keep tables and scores but never masks. Scores are in percent.
Definitions follow the evaluation of the RATS paper (arXiv 2606.14701); what it leaves open is fixed here and said so.

Legend: P predicted segments  T true regions
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

BACKGROUND_LABEL = 0
LARGEST_DENSE_TABLE = 2**22  # entries, 32 MiB of int64: ids of ordinary masks stay far below


class ContingencyTable(NamedTuple):
    """Overlaps of the segments and regions that occur in one image, both in ascending order of their ids.

    Attributes:
        counts: (P, T) int64, pixels that predicted segment p shares with true region t.
        predicted_ids: (P,) int64, the ids of the rows.
        true_labels: (T,) int64, the labels of the columns.
    """

    counts: np.ndarray
    predicted_ids: np.ndarray
    true_labels: np.ndarray


def contingency_table(predicted: np.ndarray, true: np.ndarray, ignore_label: int | None = None) -> ContingencyTable:
    """Count the overlap of every predicted segment with every true region, in pixels of the true mask.

    Args:
        predicted: (height, width) integers from 0, the segment of each pixel; the numbers carry no meaning.
        true: (height, width) integers from 0, the region of each pixel.
        ignore_label: label of true pixels that are excluded altogether, from regions, segments and unions alike.

    Returns:
        The table over the segments and regions that have at least one pixel left.

    Raises:
        ValueError: if the masks differ in size, are not two-dimensional, not integers, or hold negative ids.
    """
    predicted, true = np.asarray(predicted), np.asarray(true)
    check_label_map(predicted, "predicted mask")
    check_label_map(true, "true mask", ignore_label)
    if predicted.shape != true.shape:
        raise ValueError(
            f"The masks of one image differ in size: predicted {predicted.shape}, true {true.shape} (height, width). "
            "Overlap is counted in pixels of the true mask; resize the prediction to it (nearest neighbour)."
        )
    predicted, true = predicted.ravel(), true.ravel()
    if ignore_label is not None:
        kept = true != ignore_label
        predicted, true = predicted[kept], true[kept]
    if true.size == 0:
        return ContingencyTable(np.zeros((0, 0), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    predicted_ids, true_labels = None, None
    if (int(predicted.max()) + 1) * (int(true.max()) + 1) > LARGEST_DENSE_TABLE:  # e.g. hashes or 16-bit ids
        predicted_ids, predicted = np.unique(predicted, return_inverse=True)
        true_labels, true = np.unique(true, return_inverse=True)
    rows, columns = int(predicted.max()) + 1, int(true.max()) + 1
    pairs = predicted.astype(np.int64) * columns + true
    counts = np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)  # (P, T) with empty rows and columns
    used_rows, used_columns = np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))
    return ContingencyTable(
        counts[np.ix_(used_rows, used_columns)],
        used_rows if predicted_ids is None else predicted_ids.astype(np.int64),
        used_columns if true_labels is None else true_labels.astype(np.int64),
    )


def check_label_map(label_map: np.ndarray, subject: str, ignore_label: int | None = None) -> None:
    """Refuse what cannot be a label map, in words that name `subject`.

    Raises:
        ValueError: if it is not (height, width), not integers, or holds a negative id other than `ignore_label`.
    """
    if label_map.ndim != 2:
        raise ValueError(
            f"The {subject} has shape {label_map.shape}; it must be (height, width), one integer a pixel. "
            "Turn a colour-coded mask into label ids first."
        )
    if label_map.dtype.kind not in "uib":
        raise ValueError(
            f"The {subject} has dtype {label_map.dtype}; it must hold integer ids (floats are refused, not rounded). "
            "Convert it with .astype(int) if its values are whole numbers, or take the argmax of scores."
        )
    if label_map.dtype.kind == "i" and label_map.size:
        lowest = label_map.min() if ignore_label is None else label_map.min(initial=0, where=label_map != ignore_label)
        if lowest < 0:
            raise ValueError(
                f"The {subject} holds the id {lowest}; ids must be 0 or more (ignore_label={ignore_label}). Pass "
                "ignore_label for true pixels that do not count; give unassigned predicted pixels an id of their own."
            )


def many_to_one_miou(table: ContingencyTable, foreground: bool = False) -> float:
    """Many-to-one mean IoU (M2O) of one image, in percent.

    Each predicted segment goes to the true region it overlaps most (ties: the lowest label). With S_t the union of the
    segments that went to region t, IoU_t = |S_t and t| / |S_t or t|, and the score is the mean of IoU_t over the
    image's true regions; a region that no segment went to scores 0. The background, label 0, is a region like any
    other. More segments raise this score by themselves, so compare at equal numbers.

    Args:
        table: the image's contingency table.
        foreground: leave label 0 out of the mean over regions. Segments still go to the background, and background
            pixels still count in unions.

    Returns:
        The score from 0 to 100, or nan if there is no region to average over.
    """
    counts, labels = table.counts, table.true_labels
    if labels.size == 0:
        return float("nan")
    chosen_region = counts.argmax(axis=1)  # (P,), argmax takes the first, that is the lowest label
    assigned = chosen_region[:, None] == np.arange(labels.size)  # (P, T)
    intersections = (counts * assigned).sum(axis=0)  # (T,)
    unions = counts.sum(axis=0) + (counts.sum(axis=1)[:, None] * assigned).sum(axis=0) - intersections  # (T,)
    return _percent_mean(intersections / unions, labels, foreground)


def one_to_one_miou(table: ContingencyTable, foreground: bool = False) -> float:
    """One-to-one mean IoU (O2O) of one image, in percent.

    Segments and true regions, the background among them, are matched in pairs such that the sum of IoU is largest
    (Hungarian method). The score is the mean over the image's true regions of the IoU with the matched segment;
    unmatched regions score 0. A high M2O beside a low O2O shows over-segmentation.

    Args:
        table: the image's contingency table.
        foreground: leave label 0 out of the mean over regions; the matching is the same.

    Returns:
        The score from 0 to 100, or nan if there is no region to average over.
    """
    counts, labels = table.counts, table.true_labels
    if labels.size == 0:
        return float("nan")
    unions = counts.sum(axis=1)[:, None] + counts.sum(axis=0) - counts  # (P, T)
    ious = counts / unions  # (P, T)
    matched_segments, matched_regions = linear_sum_assignment(ious, maximize=True)
    region_ious = np.zeros(labels.size)
    region_ious[matched_regions] = ious[matched_segments, matched_regions]
    return _percent_mean(region_ious, labels, foreground)


def adjusted_rand_index(table: ContingencyTable, foreground: bool = False) -> float:
    """Adjusted Rand index (ARI) of one image over its pixels, in percent (Hubert and Arabie, 1985).

    Of all pairs of pixels, with a the pairs together in both partitions, b only in the true one, c only in the
    predicted one and d in neither: ARI = 2 (a d - b c) / ((a + b)(b + d) + (a + c)(c + d)). 100 is a perfect match,
    0 the expectation of a random labelling, and it can be negative. Equal trivial partitions score 100.

    Args:
        table: the image's contingency table.
        foreground: count only the pixels whose true label is not 0, as FG-ARI in object-centric learning. In an image
            with one foreground region this is 100 if that region lies in one segment, else 0.

    Returns:
        The score, at most 100, or nan if there is no pixel to count.
    """
    counts = table.counts[:, table.true_labels != BACKGROUND_LABEL] if foreground else table.counts
    if counts.sum() == 0:
        return float("nan")
    # Ordered pairs, as Python integers: the products below exceed 64 bits from about 512 x 512 pixels on.
    pixels = int(counts.sum())
    together_in_both = int((counts**2).sum()) - pixels
    only_true = int((counts.sum(axis=0) ** 2).sum()) - pixels - together_in_both
    only_predicted = int((counts.sum(axis=1) ** 2).sum()) - pixels - together_in_both
    in_neither = pixels * (pixels - 1) - together_in_both - only_true - only_predicted
    if only_true == 0 and only_predicted == 0:
        return 100.0
    difference = together_in_both * in_neither - only_true * only_predicted
    total = (together_in_both + only_true) * (only_true + in_neither) + (together_in_both + only_predicted) * (
        only_predicted + in_neither
    )
    return 100.0 * 2 * difference / total


def image_scores(table: ContingencyTable) -> dict[str, float]:
    """Return all scores of one image by name, with and without the background; nan where undefined."""
    return {
        "m2o_miou": many_to_one_miou(table),
        "m2o_miou_foreground": many_to_one_miou(table, foreground=True),
        "o2o_miou": one_to_one_miou(table),
        "o2o_miou_foreground": one_to_one_miou(table, foreground=True),
        "ari": adjusted_rand_index(table),
        "ari_foreground": adjusted_rand_index(table, foreground=True),
    }


def mean_over_images(scores: Iterable[float]) -> tuple[float, int]:
    """Average the images' scores, leaving out images where the score is undefined (nan).

    An image without foreground, for example, has no foreground score.

    Returns:
        The mean (nan if no image has the score) and the number of images that have it.
    """
    defined = [score for score in scores if not math.isnan(score)]
    # The exact sum, so that the order of the images does not matter.
    return (math.fsum(defined) / len(defined) if defined else math.nan), len(defined)


def _percent_mean(region_scores: np.ndarray, labels: np.ndarray, foreground: bool) -> float:
    """Average scores of regions (T,), in percent; nan if `foreground` leaves none."""
    kept = region_scores[labels != BACKGROUND_LABEL] if foreground else region_scores
    return 100.0 * float(kept.mean()) if kept.size else float("nan")
