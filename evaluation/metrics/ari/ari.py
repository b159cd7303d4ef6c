"""Adjusted Rand index as an `evaluate` module: `evaluate.load("evaluation/metrics/ari")` from the checkout."""

from evaluation.metrics import contingency, part_metric


class AdjustedRandIndex(part_metric.PartMetric):
    """See `evaluation.metrics.contingency.adjusted_rand_index` for the exact definition."""

    score_name = "ari"
    score = staticmethod(contingency.adjusted_rand_index)
