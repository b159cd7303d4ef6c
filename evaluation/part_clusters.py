"""Clusters of segments: how many there are, which of them come back, and which look like background. No label is read.

S segments  E entries  D hidden
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits
from torch import nn

from evaluation.segment_features import Segments

CANDIDATES = (8, 16, 32, 64, 128, 256)
LEAST_GAIN = 0.2  # of the mean distance (1 - cosine) of held-out segments
HELD_OUT_IMAGES = 5  # of which one is held out
BATCH = 2048
MAX_BORDER, MIN_RETURN = 1.5, 0.9


class Clusters(NamedTuple):
    """Groups of segments that point the same way.

    Attributes:
        vectors: Their mean directions, (E, D).
        members: Places of the segments of each, those that are most like it first.
        returned: The largest cosine of each with a cluster of the other half of the images (see `cluster_segments`), (E,).
        border: Mean of its segments' `border`, in shares of the mean over all segments: where objects fill the images all
            segments reach the border, and where they do not background does, (E,).
        held_out: Number of clusters that was tried -> mean cosine of held-out segments with their cluster.
    """

    vectors: torch.Tensor
    members: list[torch.Tensor]
    returned: torch.Tensor
    border: torch.Tensor
    held_out: dict[int, float]

    def kept(self, max_border: float = MAX_BORDER, min_return: float = MIN_RETURN) -> torch.Tensor:
        """Which are no background and come back, bool, (E,)."""
        return (self.border <= max_border) & (self.returned >= min_return)


def cluster_segments(segments: Segments, candidates: Sequence[int] = CANDIDATES, seed: int = 0) -> Clusters:
    """Spherical k-means of segments' directions, by minibatches (scikit-learn's MiniBatchKMeans on unit vectors).

    - How many: the first of the candidates from which the next takes less than a fifth off the mean distance (1 - cosine) of
      held-out segments (of every fifth image) to their cluster; the last if each does.
    - What comes back: the images are halved, and each half is clustered alone. A cluster of all images is as stable as its
      most similar cluster of the half where that is less similar.

    Args:
        segments: Of many images.
        candidates: Numbers of clusters to try, from the smallest; a single one is taken.
        seed: Of the clustering.

    Raises:
        ValueError: If there are fewer segments than clusters are asked for.
    """
    candidates = sorted(candidates)
    image = segments.image
    part, held_out = image % HELD_OUT_IMAGES != 0, image % HELD_OUT_IMAGES == 0
    halves = [(image // HELD_OUT_IMAGES) % 2 == half for half in (0, 1)]
    fewest = min(int(which.sum()) for which in (part, *halves))
    if fewest < candidates[0]:
        raise ValueError(
            f"{len(image)} segments of {len(image.unique())} images are too few for {candidates[0]} entries, since they are "
            f"split to try them ({fewest} in the smallest split); take more images, or ask for fewer entries."
        )
    candidates = [candidate for candidate in candidates if candidate <= fewest]
    tried: dict[int, float] = {}
    for candidate in candidates if len(candidates) > 1 else []:
        centres = _centres(segments.vectors[part], candidate, seed)
        tried[candidate] = (segments.vectors[held_out] @ centres.T).amax(dim=1).mean().item()
        if _is_enough(tried):
            break
    number = list(tried)[-2] if _is_enough(tried) else candidates[-1]
    centres = _centres(segments.vectors, number, seed)
    cosines = segments.vectors @ centres.T  # (S, E)
    similarity, owner = cosines.max(dim=1)
    present = owner.unique()
    members = []
    for cluster in present.tolist():
        of_cluster = (owner == cluster).nonzero().flatten()
        members.append(of_cluster[similarity[of_cluster].argsort(descending=True, stable=True)])
    of_halves = [_centres(segments.vectors[half], number, seed) for half in halves]
    vectors = centres[present]
    return Clusters(
        vectors=vectors,
        members=members,
        returned=torch.stack([(vectors @ other.T).amax(dim=1) for other in of_halves]).amin(dim=0),
        border=torch.stack([segments.border[of_cluster].mean() for of_cluster in members])
        / segments.border.mean().clamp(min=1e-6),
        held_out=tried,
    )


def _is_enough(tried: dict[int, float]) -> bool:
    """Whether the last number that was tried gained too little over the one before."""
    distances = [1 - cosine for cosine in list(tried.values())[-2:]]
    return len(distances) == 2 and distances[0] - distances[1] < LEAST_GAIN * distances[0]


def _centres(vectors: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """Directions of clusters, (number, D)."""
    kmeans = MiniBatchKMeans(number, random_state=seed, batch_size=BATCH, n_init=3)
    with threadpool_limits(limits=1):  # sums split over threads round differently from run to run
        kmeans.fit(np.asarray(vectors, dtype=np.float32))
    return nn.functional.normalize(torch.from_numpy(kmeans.cluster_centers_).float(), dim=1)
