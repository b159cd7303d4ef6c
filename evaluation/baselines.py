"""Segmenters that have learned nothing: what a part map must beat before its parts mean anything."""

from collections.abc import Callable

import numpy as np
from PIL import Image
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

LONGEST_SIDE_PX = 128  # clustering more pixels costs seconds an image and does not change the segments


def color_kmeans(
    image: Image.Image,
    num_segments: int,
    seed: int = 0,
    target_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Cluster the pixels of one image by their RGB colour.

    Args:
        image: any PIL image.
        num_segments: how many segments to make; fewer come out if the image has fewer distinct colours.
        seed: of the k-means start; the same seed gives the same segments.
        target_size: (height, width) of the label map; the image's own by default. Clustering happens at this size, or
            reduced to at most 128 pixels on the longer side and enlarged again (nearest neighbour).

    Returns:
        (height, width) int64 segment of each pixel, from 0.
    """
    return _pixel_kmeans(image, num_segments, seed, target_size, position_weight=0.0)


def color_position_kmeans(
    image: Image.Image,
    num_segments: int,
    seed: int = 0,
    target_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Cluster the pixels of one image by colour and place, which gives compact segments much like superpixels.

    Colours run from 0 to 1 and positions from 0 to 1 along the longer side, so both weigh about the same. Arguments
    and result are those of `color_kmeans`.
    """
    return _pixel_kmeans(image, num_segments, seed, target_size, position_weight=1.0)


BASELINES: dict[str, Callable[..., np.ndarray]] = {
    "color_kmeans": color_kmeans,
    "color_position_kmeans": color_position_kmeans,
}


def _pixel_kmeans(
    image: Image.Image,
    num_segments: int,
    seed: int,
    target_size: tuple[int, int] | None,
    position_weight: float,
) -> np.ndarray:
    """Run k-means over (red, green, blue, row, column) of the reduced image; see `color_kmeans`."""
    if num_segments < 1:
        raise ValueError(f"num_segments={num_segments} must be at least 1; every pixel belongs to a segment.")
    height, width = target_size or (image.height, image.width)
    reduction = min(1.0, LONGEST_SIDE_PX / max(height, width))
    rows, columns = max(1, round(height * reduction)), max(1, round(width * reduction))
    small = np.asarray(image.convert("RGB").resize((columns, rows), Image.Resampling.BOX))  # (rows, columns, 3)
    features = small.reshape(-1, 3) / 255.0  # (rows * columns, 3)
    if position_weight:
        positions = np.indices((rows, columns)).reshape(2, -1).T / max(rows, columns)  # (rows * columns, 2)
        features = np.concatenate([features, position_weight * positions], axis=1)  # (rows * columns, 5)
    segments = _kmeans(features, num_segments, seed).reshape(rows, columns)
    nearest_rows = (2 * np.arange(height) + 1) * rows // (2 * height)  # by the centres of the pixels
    nearest_columns = (2 * np.arange(width) + 1) * columns // (2 * width)
    return segments[nearest_rows[:, None], nearest_columns]  # (height, width)


def _kmeans(features: np.ndarray, num_segments: int, seed: int) -> np.ndarray:
    """Return the cluster (int64) of each row; equal rows are clustered once, weighted by how many they are."""
    distinct, inverse, occurrences = np.unique(features, axis=0, return_inverse=True, return_counts=True)
    if len(distinct) <= num_segments:  # k-means has nothing to decide: each distinct value is a segment
        return inverse.reshape(-1).astype(np.int64)
    k_means = KMeans(n_clusters=num_segments, n_init=1, max_iter=100, random_state=seed)
    with threadpool_limits(limits=1):  # sums split over threads round differently from run to run
        labels = k_means.fit(distinct, sample_weight=occurrences).labels_
    return labels[inverse.reshape(-1)].astype(np.int64)
