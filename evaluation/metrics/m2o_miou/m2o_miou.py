"""Many-to-one mean IoU as an `evaluate` module: `evaluate.load("evaluation/metrics/m2o_miou")`.

The checkout must be importable, see `evaluation.metrics.part_metric`.
"""

from evaluation.metrics import contingency, part_metric


class M2OMeanIoU(part_metric.PartMetric):
    """See `evaluation.metrics.contingency.many_to_one_miou` for the exact definition."""

    score_name = "m2o_miou"
    definition = contingency.many_to_one_miou.__doc__
    score = staticmethod(contingency.many_to_one_miou)
