"""Segmenters that have learned nothing: what a part map must beat before its parts mean anything."""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from skimage.segmentation import slic
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from modeling_rats.part_maps import patches_to_pixels

LONGEST_SIDE_PX = 128  # clustering more pixels costs seconds an image and does not change the segments
SLIC_LONGEST_SIDE_PX = 256  # its borders follow single pixels, so more of them; a run takes about 30 ms
SLIC_RUNS = 5  # at most, in search of the wanted number of segments


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


def slic_superpixels(
    image: Image.Image,
    num_segments: int,
    seed: int = 0,
    target_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Superpixels: SLIC of scikit-image (Achanta et al. 2012), k-means over CIELAB colour and place from a regular grid.

    Compactness 10 and connected segments, its defaults. SLIC merges fragments, so that as few as a fifth of the segments it
    is asked for are left; it is therefore run with up to five numbers, and the result nearest to `num_segments` is kept
    (ties: the first), which may have a few more or less. It runs at the target size, or reduced to at most 256 pixels on
    the longer side. Nothing is drawn, so `seed` changes nothing. Other arguments and the result are those of `color_kmeans`.
    """
    height, width = _checked_size(image, num_segments, target_size)
    small = _reduced(image, height, width, SLIC_LONGEST_SIDE_PX)  # (rows, columns, 3)
    asked, tried = num_segments, dict[int, np.ndarray]()
    while len(tried) < SLIC_RUNS and asked not in tried:
        tried[asked] = slic(small, n_segments=asked, compactness=10.0, start_label=0)  # (rows, columns)
        asked = min(max(1, round(asked * num_segments / len(np.unique(tried[asked])))), 2 * asked)
    nearest = min(tried.values(), key=lambda segments: abs(len(np.unique(segments)) - num_segments))
    return _enlarged(nearest, height, width)


def uniform_grid(
    image: Image.Image,
    num_segments: int,
    seed: int = 0,
    target_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Rectangles of one size, or nearly so: what place alone gives. The image's colours are not looked at.

    There are exactly as many as wanted: rows of equal height, as many as make the cells nearly square, each cut into equal
    cells; where the rows do not divide the wanted number, the lower ones have one cell more. Fewer come out only if
    there are fewer pixels along a side. `seed` changes nothing. Other arguments and the result are those of `color_kmeans`.
    """
    height, width = _checked_size(image, num_segments, target_size)
    rows = min(max(1, round(math.sqrt(num_segments * height / width))), num_segments)
    first_cells = np.arange(rows + 1) * num_segments // rows  # (rows + 1,): row r has the cells from its number to the next's
    row = np.arange(height) * rows // height  # (height,)
    cells_in_row = np.diff(first_cells)[row]  # (height,)
    column = np.arange(width)[None, :] * cells_in_row[:, None] // width  # (height, width)
    return first_cells[row][:, None] + column


BASELINES: dict[str, Callable[..., np.ndarray]] = {
    "color_kmeans": color_kmeans,
    "color_position_kmeans": color_position_kmeans,
    "slic": slic_superpixels,
    "grid": uniform_grid,
}
BASELINE_TITLES = {
    "color_kmeans": "color k-means",
    "color_position_kmeans": "color + position k-means",
    "slic": "SLIC superpixels",
    "grid": "uniform grid",
}


def cluster(features: np.ndarray, num_segments: int, seed: int) -> np.ndarray:
    """k-means from one k-means++ start; equal rows are clustered once, weighted by how many they are.

    Args:
        features: (items, dimensions).
        num_segments: How many clusters to make; fewer come out if there are fewer distinct rows.
        seed: Of the start, the same for each image whatever else is clustered.

    Returns:
        The cluster of each row, int64, (items,).

    Raises:
        ValueError: If no segments are wanted.
    """
    if num_segments < 1:
        raise ValueError(f"num_segments={num_segments} must be at least 1; every pixel belongs to a segment.")
    distinct, inverse, occurrences = np.unique(features, axis=0, return_inverse=True, return_counts=True)
    if len(distinct) <= num_segments:  # k-means has nothing to decide: each distinct value is a segment
        return inverse.reshape(-1).astype(np.int64)
    k_means = KMeans(n_clusters=num_segments, n_init=1, max_iter=100, random_state=seed)
    with threadpool_limits(limits=1):  # sums split over threads round differently from run to run
        labels = k_means.fit(distinct, sample_weight=occurrences).labels_
    return labels[inverse.reshape(-1)].astype(np.int64)


def _pixel_kmeans(
    image: Image.Image,
    num_segments: int,
    seed: int,
    target_size: tuple[int, int] | None,
    position_weight: float,
) -> np.ndarray:
    """Run k-means over (red, green, blue, row, column) of the reduced image; see `color_kmeans`."""
    height, width = _checked_size(image, num_segments, target_size)
    small = _reduced(image, height, width, LONGEST_SIDE_PX)  # (rows, columns, 3)
    rows, columns = small.shape[:2]
    features = small.reshape(-1, 3) / 255.0  # (rows * columns, 3)
    if position_weight:
        positions = np.indices((rows, columns)).reshape(2, -1).T / max(rows, columns)  # (rows * columns, 2)
        features = np.concatenate([features, position_weight * positions], axis=1)  # (rows * columns, 5)
    return _enlarged(cluster(features, num_segments, seed).reshape(rows, columns), height, width)


def _checked_size(image: Image.Image, num_segments: int, target_size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the label map."""
    if num_segments < 1:
        raise ValueError(f"num_segments={num_segments} must be at least 1; every pixel belongs to a segment.")
    return target_size or (image.height, image.width)


def _reduced(image: Image.Image, height: int, width: int, longest_side_px: int) -> np.ndarray:
    """The image at the size of its label map or smaller, RGB, uint8, (rows, columns, 3)."""
    reduction = min(1.0, longest_side_px / max(height, width))
    rows, columns = max(1, round(height * reduction)), max(1, round(width * reduction))
    return np.asarray(image.convert("RGB").resize((columns, rows), Image.Resampling.BOX))


def _enlarged(segments: np.ndarray, height: int, width: int) -> np.ndarray:
    """Segments of the reduced image, (rows, columns), as int64, (height, width), by the centres of the pixels."""
    return patches_to_pixels(torch.from_numpy(segments.astype(np.int64)), (height, width)).numpy()
