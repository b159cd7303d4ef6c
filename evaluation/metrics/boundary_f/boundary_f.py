"""Boundary F-score as an `evaluate` module: `evaluate.load("evaluation/metrics/boundary_f")`.

The checkout must be importable, see `evaluation.metrics.part_metric`.
"""

import numpy as np

from evaluation.metrics import boundary, contingency, part_metric


class BoundaryFScore(part_metric.MaskMetric):
    """See `evaluation.metrics.boundary` for the exact definition."""

    definition = boundary.__doc__

    def score_image(self, predicted: np.ndarray, true: np.ndarray, ignore_label: int | None) -> tuple[float, ...]:
        """Return F-score, precision and recall of the boundaries."""
        return boundary.boundary_scores(predicted, true, ignore_label)

    def average(self, images: list[tuple[float, ...]]) -> dict[str, float | int]:
        """Average over images; F is the mean of the images' F, not that of mean precision and mean recall."""
        (f, num_images), (precision, _), (recall, _) = (
            contingency.mean_over_images(image[column] for image in images) for column in range(3)
        )
        return {
            "boundary_f": f,
            "boundary_precision": precision,
            "boundary_recall": recall,
            "num_images": num_images,
        }
