"""How well a label map without names matches a true mask: the NumPy core of all part-segmentation scores.

Every score of an image is computed from one contingency table, the overlap in pixels of each predicted segment with
each true region, so large evaluations keep tables and scores but never masks. Scores are in percent.
Definitions follow the evaluation of the RATS paper (arXiv 2606.14701); what it leaves open is fixed here:

- Per image: a score is computed in each image over its own regions, then averaged over the images that have it.
- Ignored pixels (true label `ignore_label`) count nowhere: not in regions, segments or unions.
- Background, label 0, is a region like any other; the foreground scores only leave it out of their mean (mean IoU) or
  leave out its pixels (ARI).
- Empty regions and segments, with no counted pixel in the image, do not exist there. A region that no segment went to
  scores 0. Without any region to average over, the score is nan and the image has no part in the mean.
- Ties go to the lowest label (many-to-one) or to the background (one-to-one), so that the order of segments is of no
  consequence.

Legend: P predicted segments  T true regions
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

BACKGROUND_LABEL = 0
LARGEST_DENSE_TABLE = 2**20  # entries, 8 MiB of int64: filling it takes no longer than counting a mask of 512 x 512 px
TIE_BREAK = 1e-9  # share of an IoU: above the rounding of sums of IoU, far below any difference that a score would show


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
    predicted, true = check_mask_pair(predicted, true, ignore_label)
    predicted, true = predicted.ravel(), true.ravel()
    if ignore_label is not None:
        kept = true != ignore_label
        predicted, true = predicted[kept], true[kept]
    if true.size == 0:
        return ContingencyTable(np.zeros((0, 0), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    rows, columns = int(predicted.max()) + 1, int(true.max()) + 1
    if rows * columns > LARGEST_DENSE_TABLE:  # e.g. hashes, or colours read as one number
        return _table_of_runs(predicted, true)
    pairs = predicted.astype(np.int64) * columns + true
    counts = np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)  # (P, T) with empty rows and columns
    predicted_ids, true_labels = np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))
    return ContingencyTable(counts[np.ix_(predicted_ids, true_labels)], predicted_ids, true_labels)


def _table_of_runs(predicted: np.ndarray, true: np.ndarray) -> ContingencyTable:
    """The same for ids of any size: segments and regions are contiguous, so few runs of equal pixels need sorting."""
    changes = (predicted[1:] != predicted[:-1]) | (true[1:] != true[:-1])
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    lengths_px = np.diff(starts, append=true.size)
    predicted_ids, rows = np.unique(predicted[starts], return_inverse=True)
    true_labels, columns = np.unique(true[starts], return_inverse=True)
    counts = np.zeros((predicted_ids.size, true_labels.size), np.int64)  # (P, T)
    np.add.at(counts, (rows, columns), lengths_px)
    return ContingencyTable(counts, predicted_ids.astype(np.int64), true_labels.astype(np.int64))


def check_mask_pair(predicted: np.ndarray, true: np.ndarray, ignore_label: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return both masks of an image as arrays, or refuse what cannot be compared.

    Raises:
        ValueError: if they are no label maps (see `check_label_map`) or differ in size.
    """
    predicted, true = np.asarray(predicted), np.asarray(true)
    check_label_map(predicted, "predicted mask")
    check_label_map(true, "true mask", ignore_label)
    if predicted.shape != true.shape:
        raise ValueError(
            f"The masks of one image differ in size: predicted {predicted.shape}, true {true.shape} (height, width). "
            "Overlap is counted in pixels of the true mask; resize the prediction to it (nearest neighbour)."
        )
    return predicted, true


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


def match_many_to_one(table: ContingencyTable) -> np.ndarray:
    """Return the column (P,) of the true region that each segment overlaps most; ties: the lowest label."""
    return table.counts.argmax(axis=1)  # argmax takes the first, that is the lowest label


def match_one_to_one(table: ContingencyTable) -> tuple[np.ndarray, np.ndarray]:
    """Match segments and true regions in pairs such that the sum of IoU is largest (Hungarian method).

    Of several such matchings, one in which the background has the highest IoU is taken.

    Returns:
        The rows and the columns of the matched pairs, min(P, T) of each. A pair may have no pixel in common.
    """
    tie_break = np.where(table.true_labels == BACKGROUND_LABEL, 1 + TIE_BREAK, 1.0)  # (T,)
    return linear_sum_assignment(_ious(table) * tie_break, maximize=True)


def many_to_one_miou(table: ContingencyTable, foreground: bool = False) -> float:
    """Many-to-one mean IoU (M2O) of one image, in percent.

    Each predicted segment goes to the true region it overlaps most (ties: the lowest label). With S_t the union of the
    segments that went to region t, IoU_t = |S_t and t| / |S_t or t|, and the score is the mean of IoU_t over the
    image's true regions; a region that no segment went to scores 0. The background, label 0, is a region like any
    other. Splitting every segment into its intersections with the true regions gives 100 (cutting off a part of one
    can lower the score): more segments raise it by themselves, so compare at equal numbers.

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
    assigned = match_many_to_one(table)[:, None] == np.arange(labels.size)  # (P, T)
    intersections = (counts * assigned).sum(axis=0)  # (T,)
    unions = counts.sum(axis=0) + (counts.sum(axis=1)[:, None] * assigned).sum(axis=0) - intersections  # (T,)
    return _percent_mean(intersections / unions, labels, foreground)


def one_to_one_miou(table: ContingencyTable, foreground: bool = False) -> float:
    """One-to-one mean IoU (O2O) of one image, in percent.

    Segments and true regions, the background among them, are matched in pairs such that the sum of IoU is largest
    (Hungarian method; ties: the matching with the highest IoU of the background). The score is the mean over the
    image's true regions of the IoU with the matched segment; unmatched regions score 0. A high M2O beside a low O2O
    shows over-segmentation.

    Args:
        table: the image's contingency table.
        foreground: leave label 0 out of the mean over regions; the matching is the same.

    Returns:
        The score from 0 to 100, or nan if there is no region to average over.
    """
    if table.true_labels.size == 0:
        return float("nan")
    segments, regions = match_one_to_one(table)
    region_ious = np.zeros(table.true_labels.size)  # (T,)
    region_ious[regions] = _ious(table)[segments, regions]
    return _percent_mean(region_ious, table.true_labels, foreground)


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


def _ious(table: ContingencyTable) -> np.ndarray:
    """IoU of every segment with every region (P, T), from 0 to 1."""
    counts = table.counts
    return counts / (counts.sum(axis=1)[:, None] + counts.sum(axis=0) - counts)


def _percent_mean(region_scores: np.ndarray, labels: np.ndarray, foreground: bool) -> float:
    """Average scores of regions (T,), in percent; nan if `foreground` leaves none."""
    kept = region_scores[labels != BACKGROUND_LABEL] if foreground else region_scores
    return 100.0 * float(kept.mean()) if kept.size else float("nan")
