"""Boundary F-score: how well the borders between the segments of a label map lie on those of a true mask.

The choices, since the literature has several:

- Borders have no labels: a boundary pixel is one with a neighbour above, below, left or right of another label, in
  whatever segments. Both sides of a border count, so that neither the numbers nor flips of the masks matter. All
  borders of a true mask touch a region other than the background: there is no foreground score beside this one.
- Tolerance: a boundary pixel is found if a boundary pixel of the other mask lies within a Euclidean distance of 0.75 %
  of the image's diagonal (the share of the Berkeley segmentation benchmark; DAVIS has 0.8 %), at least 1 px. Several
  may be found by one and the same, as in DAVIS; Berkeley's code matches them one to one.
- Ignored pixels count nowhere: they are no boundary pixels, and two neighbours of which one is ignored are no border.
- Without a boundary in both masks (one segment, one region) the F-score is 100, with one in only one of them 0; the
  precision without predicted and the recall without true boundary pixels are undefined (nan). All three are nan in an
  image whose pixels are all ignored.
- Per image, then averaged over the images that have the score, like all others.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from evaluation.metrics.contingency import check_mask_pair

TOLERANCE_SHARE = 0.0075  # of the image's diagonal


class BoundaryScores(NamedTuple):
    """Agreement of the boundaries of one image, in percent; nan where undefined.

    Attributes:
        f: harmonic mean of precision and recall.
        precision: share of predicted boundary pixels near a true one.
        recall: share of true boundary pixels near a predicted one.
    """

    f: float
    precision: float
    recall: float


def boundary_scores(
    predicted: np.ndarray, true: np.ndarray, ignore_label: int | None = None, tolerance_share: float = TOLERANCE_SHARE
) -> BoundaryScores:
    """Score the boundaries of one image; the choices are listed at the head of this file.

    Args:
        predicted: (height, width) integers from 0, the segment of each pixel; the numbers carry no meaning.
        true: (height, width) integers from 0, the region of each pixel.
        ignore_label: label of true pixels that are excluded altogether.
        tolerance_share: largest distance of matching boundary pixels as a share of the image's diagonal.

    Raises:
        ValueError: if the masks are no label maps of the same size, or the tolerance is not from 0 to 1.
    """
    predicted, true = check_mask_pair(predicted, true, ignore_label)
    tolerance_px = boundary_tolerance_px(true.shape, tolerance_share)
    counted = np.ones(true.shape, bool) if ignore_label is None else true != ignore_label
    if not counted.any():
        return BoundaryScores(math.nan, math.nan, math.nan)
    predicted_boundary, true_boundary = boundary_pixels(predicted, counted), boundary_pixels(true, counted)
    precision = _share_near(predicted_boundary, true_boundary, tolerance_px)
    recall = _share_near(true_boundary, predicted_boundary, tolerance_px)
    if math.isnan(precision) and math.isnan(recall):
        return BoundaryScores(100.0, precision, recall)
    if math.isnan(precision) or math.isnan(recall) or precision + recall == 0:
        return BoundaryScores(0.0, precision, recall)
    return BoundaryScores(2 * precision * recall / (precision + recall), precision, recall)


def boundary_tolerance_px(shape: tuple[int, ...], tolerance_share: float = TOLERANCE_SHARE) -> float:
    """Return the tolerance in an image of `shape` (height, width), in pixels: 5.4 at 512 x 512.

    Raises:
        ValueError: if the share is not from 0 to 1.
    """
    if not 0 <= tolerance_share <= 1:
        raise ValueError(
            f"tolerance_share={tolerance_share} is a share of the image's diagonal and must be from 0 to 1; "
            f"{TOLERANCE_SHARE} is the usual one."
        )
    return max(1.0, tolerance_share * math.hypot(*shape))


def boundary_pixels(label_map: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the (height, width) mask of pixels with a 4-neighbour of another label, of those that are `counted`."""
    boundary = np.zeros(label_map.shape, bool)
    between_rows = (label_map[1:] != label_map[:-1]) & counted[1:] & counted[:-1]
    between_columns = (label_map[:, 1:] != label_map[:, :-1]) & counted[:, 1:] & counted[:, :-1]
    boundary[1:] |= between_rows
    boundary[:-1] |= between_rows
    boundary[:, 1:] |= between_columns
    boundary[:, :-1] |= between_columns
    return boundary


def _share_near(pixels: np.ndarray, others: np.ndarray, tolerance_px: float) -> float:
    """Percent of `pixels` that lie within the tolerance of one of the `others`; nan if there are none."""
    if not pixels.any():
        return math.nan
    reach_px = int(tolerance_px)
    rows, columns = np.mgrid[-reach_px : reach_px + 1, -reach_px : reach_px + 1]
    disc = rows**2 + columns**2 <= tolerance_px**2
    # OpenCV dilates 40 times as fast as SciPy computes a distance transform, and as exactly.
    near_others = cv2.dilate(others.view(np.uint8), disc.astype(np.uint8)).view(bool)
    return 100.0 * np.count_nonzero(near_others & pixels) / np.count_nonzero(pixels)
