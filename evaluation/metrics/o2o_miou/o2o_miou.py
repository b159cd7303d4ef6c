"""One-to-one mean IoU as an `evaluate` module: `evaluate.load("evaluation/metrics/o2o_miou")`.

The checkout must be importable, see `evaluation.metrics.part_metric`.
"""

from evaluation.metrics import contingency, part_metric


class O2OMeanIoU(part_metric.PartMetric):
    """See `evaluation.metrics.contingency.one_to_one_miou` for the exact definition."""

    score_name = "o2o_miou"
    definition = contingency.one_to_one_miou.__doc__
    score = staticmethod(contingency.one_to_one_miou)
