"""Adjusted Rand index as an `evaluate` module: `evaluate.load("evaluation/metrics/ari")`.

The checkout must be importable, see `evaluation.metrics.part_metric`.
"""

from evaluation.metrics import contingency, part_metric


class AdjustedRandIndex(part_metric.PartMetric):
    """See `evaluation.metrics.contingency.adjusted_rand_index` for the exact definition."""

    score_name = "ari"
    definition = contingency.adjusted_rand_index.__doc__
    score = staticmethod(contingency.adjusted_rand_index)
