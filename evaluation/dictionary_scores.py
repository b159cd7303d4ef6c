"""What a dictionary's entries find: each true part's best entry, and how far the entries of one category serve in others.

An entry is chosen, and its threshold set, on one split, and scored on another. IoU and precision are over all patches of all
images of a category (or of all categories) together, areas counted in pixels.

P patches of all images  E entries  C parts
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from evaluation.metrics.localisation import curves, iou_at, pointing
from evaluation.part_samples import PartRow
from evaluation.segment_features import Reader, decoded, label_shares

LEAST_IMAGES = 5  # of a category that show a part, for the pair to be scored


class Places(NamedTuple):
    """All patches of a split.

    Attributes:
        scores: Cosines with the entries, (P, E).
        shares: Which share of each patch each part has, (P, C).
        images: Which image each patch is of, ascending, (P,).
        categories: What that image shows, (P,).
    """

    scores: np.ndarray
    shares: np.ndarray
    images: np.ndarray
    categories: np.ndarray

    def of(self, category: str) -> "Places":
        """Those of images of one category."""
        which = self.categories == category
        return Places(*(column[which] for column in self))

    def with_entries(self, entries: slice) -> "Places":
        """With the scores of some entries alone."""
        return self._replace(scores=self.scores[:, entries])


def read_places(
    rows: Iterable[PartRow], reader: Reader, vectors: torch.Tensor, labels: Sequence[int], batch_size: int = 32
) -> Places:
    """Cosines of all patches with all entries, and what the patches truly show.

    Args:
        rows: With masks.
        reader: Of the model that the entries are of.
        vectors: Their directions, (E, D).
        labels: Those of the masks that are parts, (C,).
        batch_size: Images that the model gets at once.
    """
    found: list[tuple[np.ndarray, ...]] = []
    rows = iter(rows)
    while batch := list(islice(rows, batch_size)):
        usable = [one for one in map(decoded, batch) if one is not None]
        samples = [sample for _, sample in usable]
        for (index, sample), read in zip(usable, reader.read(samples), strict=True):
            directions = nn.functional.normalize(read.features, dim=0).flatten(1)  # (D, L)
            assert sample.mask is not None  # of rows with masks
            mask = torch.from_numpy(sample.mask.astype(np.int64))
            shares = label_shares(mask, max(labels) + 1, (read.features.shape[1], read.features.shape[2]))[list(labels)]
            places = directions.shape[1]
            scores = (directions.T @ vectors.T).numpy()
            found.append((scores, shares.flatten(1).T.numpy(), np.full(places, index), np.full(places, sample.category or "")))
    if not found:
        raise ValueError("There are no images that can be read; name a split that has some.")
    return Places(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


def best_entries(train: Places, test: Places, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each part's best entry on the training split, by IoU, and what it gives on the test split.

    Returns:
        Part -> `entry` (its place), `threshold`, `iou`, `average_precision`, `pointing`, and `iou_of_other_names`: the mean IoU
        of the entries that were chosen for other parts, at their thresholds (the control of permuted names). Parts that one
        of the splits does not show are left out.
    """
    tried = curves(train.scores, train.shares)
    chosen = {}
    for place, part in enumerate(parts):
        if np.isnan(tried.iou[:, place]).all() or not test.shares[:, place].any():
            continue
        entry = int(tried.iou[:, place].argmax())
        chosen[part] = (place, entry, float(tried.threshold[entry, place]))
    ious = {part: iou_at(test.scores[:, entry], test.shares, threshold) for part, (_, entry, threshold) in chosen.items()}
    scored = {}
    for part, (place, entry, threshold) in chosen.items():
        one = test.scores[:, [entry]]
        others = [ious[other][place] for other in chosen if other != part]
        scored[part] = {
            "entry": entry,
            "threshold": threshold,
            "iou": float(ious[part][place]),
            "average_precision": float(curves(one, test.shares[:, [place]]).average_precision[0, 0]),
            "pointing": float(pointing(one[:, 0], test.shares, test.images)[place]),
            "iou_of_other_names": float(np.mean(others)) if others else math.nan,
        }
    return scored


class Transfer(NamedTuple):
    """How well the entry that a category's part chose finds the parts of each category.

    Attributes:
        sources: (category, part) that chose, in training images of that category.
        entries: Which entry each chose.
        targets: (category, part) that is to be found, in test images of that category.
        iou: At the threshold that was chosen with the entry, (sources, targets).
        average_precision: Whatever the threshold, (sources, targets).
        pointing: Of the images of the category that show the part, (sources, targets).
    """

    sources: list[tuple[str, str]]
    entries: list[int]
    targets: list[tuple[str, str]]
    iou: np.ndarray
    average_precision: np.ndarray
    pointing: np.ndarray


def transfer(train: Places, test: Places, parts: Sequence[str]) -> Transfer:
    """Choose an entry for each part of each category, and let it find every part of every category."""
    categories = sorted(set(train.categories.tolist()) & set(test.categories.tolist()))
    sources: list[tuple[str, str]] = []
    chosen: list[tuple[int, float]] = []
    for category in categories:
        own, seen = train.of(category), test.of(category)
        tried = curves(own.scores, own.shares)
        for place, part in enumerate(parts):
            if min(_images_with(own, place), _images_with(seen, place)) < LEAST_IMAGES:
                continue
            entry = int(tried.iou[:, place].argmax())
            sources.append((category, part))
            chosen.append((entry, float(tried.threshold[entry, place])))
    iou, precision, pointed = (np.full((len(sources), len(sources)), np.nan) for _ in range(3))
    for category in categories:
        seen = test.of(category)
        columns = [column for column, (other, _) in enumerate(sources) if other == category]
        shares = seen.shares[:, [parts.index(sources[column][1]) for column in columns]]
        for row, (entry, threshold) in enumerate(chosen):
            scores = seen.scores[:, entry]
            iou[row, columns] = iou_at(scores, shares, threshold)
            precision[row, columns] = curves(scores[:, None], shares).average_precision[0]
            pointed[row, columns] = pointing(scores, shares, seen.images)
    return Transfer(sources, [entry for entry, _ in chosen], list(sources), iou, precision, pointed)


def transfer_numbers(found: Transfer, paths: Mapping[str, Sequence[str]] | None) -> dict[str, float]:
    """Consistency, proximity and analogy, each as a number.

    Args:
        found: Of all entries.
        paths: Category -> the super-categories above it, the widest first; None for no taxonomy.

    Returns:
        `own`: mean IoU of an entry with the part that chose it. `same_part_elsewhere` and `other_parts_elsewhere`: mean IoU
        with the parts of the same name, and with all other parts, of other categories (functional analogy, and its control of
        permuted names). With a taxonomy also `same_part_same_super_category` and `same_part_other_super_category`
        (consistency), and `distance_correlation`: Spearman's of the distance of two categories in the tree with the share of
        the target's own IoU that comes over (taxonomic proximity: below 0 if near ones share more). nan where there is no such
        pair.
    """
    own = np.diag(found.iou)
    groups: dict[str, list[float]] = {"own": own.tolist(), "same_part_elsewhere": [], "other_parts_elsewhere": []}
    if paths is not None:
        groups |= {"same_part_same_super_category": [], "same_part_other_super_category": []}
    distances, kept = [], []
    for row, (source, part) in enumerate(found.sources):
        for column, (target, other) in enumerate(found.targets):
            if source == target:
                continue
            value = float(found.iou[row, column])
            groups["same_part_elsewhere" if part == other else "other_parts_elsewhere"].append(value)
            if paths is None or part != other:
                continue
            distance = tree_distance(paths, source, target)
            is_near = paths[source][:1] == paths[target][:1]
            groups["same_part_same_super_category" if is_near else "same_part_other_super_category"].append(value)
            if own[column] > 0:
                distances.append(distance)
                kept.append(value / own[column])
    numbers = {name: float(np.mean(values)) if values else math.nan for name, values in groups.items()}
    if paths is not None:
        varies = len(set(distances)) > 1 and len(set(kept)) > 1
        numbers["distance_correlation"] = float(spearmanr(distances, kept).statistic) if varies else math.nan
    return numbers


def tree_distance(paths: Mapping[str, Sequence[str]], first: str, second: str) -> int:
    """Steps from one category up the tree and down to the other."""
    one, other = [*paths[first], first], [*paths[second], second]
    shared = next((depth for depth, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return len(one) + len(other) - 2 * shared


def paths_of(taxonomy: Mapping[str, Any] | Sequence[str], above: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Category -> what is above it, of nested objects whose innermost are lists of categories."""
    if isinstance(taxonomy, Mapping):
        return {name: path for key, below in taxonomy.items() for name, path in paths_of(below, (*above, key)).items()}
    return dict.fromkeys(taxonomy, above)


def _images_with(places: Places, part: int) -> int:
    return len(set(places.images[places.shares[:, part] > 0].tolist()))
