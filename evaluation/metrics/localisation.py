"""How well scores of places find a part: IoU at a threshold, average precision, the pointing game. Pure NumPy.

P places (patches of all images)  E entries (what gives scores)  C parts (what is to be found)

A place may be partly of a part: `shares` says how much of it is, so that areas are counted in pixels whatever the grid. IoU and
precision are over all places of all images together, not means over images.
"""

from typing import NamedTuple

import numpy as np


class Curves(NamedTuple):
    """Of each entry and part what its best threshold gives, (E, C) each.

    Attributes:
        iou: The highest IoU of the places whose score is the threshold or more with the part.
        threshold: The threshold that gives it.
        average_precision: Area below the precision-recall curve, sum of (recall gained) x precision.
    """

    iou: np.ndarray
    threshold: np.ndarray
    average_precision: np.ndarray


def curves(scores: np.ndarray, shares: np.ndarray) -> Curves:
    """Try all thresholds.

    Args:
        scores: (P, E), finite.
        shares: Which share of each place each part has, (P, C).

    Returns:
        Of a part that is nowhere IoU and precision are nan.

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_places(scores, shares)
    entries, parts = scores.shape[1], shares.shape[1]
    found = Curves(*(np.full((entries, parts), np.nan) for _ in range(3)))
    totals = shares.sum(axis=0, dtype=np.float64)  # (C,)
    there = totals > 0
    for entry in range(entries):
        order = np.argsort(-scores[:, entry], kind="stable")
        ranked = scores[order, entry]
        last = np.append(ranked[1:] != ranked[:-1], True)  # places of one score go together
        number = np.flatnonzero(last) + 1  # of places down to each distinct score
        hits = shares[order].cumsum(axis=0, dtype=np.float64)[last]  # (distinct, C)
        iou = hits / np.maximum(number[:, None] + totals - hits, 1e-12)
        best = iou.argmax(axis=0)  # (C,)
        gained = np.diff(hits, axis=0, prepend=0.0) / np.where(there, totals, 1.0)
        precision = (gained * hits / number[:, None]).sum(axis=0)
        found.iou[entry] = np.where(there, iou[best, np.arange(parts)], np.nan)
        found.threshold[entry] = ranked[number[best] - 1]
        found.average_precision[entry] = np.where(there, precision, np.nan)
    return found


def iou_at(scores: np.ndarray, shares: np.ndarray, threshold: float) -> np.ndarray:
    """IoU of the places whose score is the threshold or more with each part, (C,); nan for a part that is nowhere.

    Args:
        scores: Of one entry, (P,).
        shares: As in `curves`.
        threshold: Found elsewhere.
    """
    chosen = scores >= threshold
    hits = shares[chosen].sum(axis=0, dtype=np.float64)  # (C,)
    totals = shares.sum(axis=0, dtype=np.float64)
    return np.where(totals > 0, hits / np.maximum(chosen.sum() + totals - hits, 1e-12), np.nan)


def pointing(scores: np.ndarray, shares: np.ndarray, images: np.ndarray) -> np.ndarray:
    """How often the place with the highest score of an image lies on the part (Zhang et al. 2016), of images that show it.

    A place lies on a part if the part has half of it or more.

    Args:
        scores: Of one entry, (P,).
        shares: As in `curves`.
        images: Which image each place is of, ascending, (P,).

    Returns:
        Shares of images, (C,); nan for a part that no image shows.
    """
    starts = np.flatnonzero(np.append(True, images[1:] != images[:-1]))
    peaks = np.array(
        [start + scores[start:end].argmax() for start, end in zip(starts, [*starts[1:], len(images)], strict=True)]
    )
    shown = np.add.reduceat(shares, starts, axis=0) > 0  # (images, C)
    hit = shares[peaks] >= 0.5
    return np.where(shown.any(axis=0), (hit & shown).sum(axis=0) / np.maximum(shown.sum(axis=0), 1), np.nan)


def check_places(scores: np.ndarray, shares: np.ndarray) -> None:
    """
    Raises:
        ValueError: If there is not a row of each for every place.
    """
    if scores.ndim != 2 or shares.ndim != 2 or len(scores) != len(shares) or not len(scores):
        raise ValueError(f"scores {scores.shape} and shares {shares.shape} must be (places, entries) and (places, parts).")
