"""The kinds of measurements that a card knows."""

from typing import Any

from hub_cards.measurements import Evaluation
from hub_cards.part_measurements import PartScores
from hub_cards.probe_measurements import HeadScores, ProbeScores
from hub_cards.segmentation_measurements import SegmentationScores

KINDS: tuple[type[Evaluation], ...] = (SegmentationScores, HeadScores, ProbeScores, PartScores)  # the first that fits
TASKS = tuple(task for kind in KINDS for task in kind.TASKS)
"""Type and name in model-index of our own entries."""
WRITERS = "evaluation.part_segmentation, representation, segmentation_probe or universal_segmentation"


def kind_of(record: dict[str, Any]) -> type[Evaluation]:
    """The kind of a record, adopted or not."""
    return next(kind for kind in KINDS if kind.is_kind_of(record))


def evaluation_of(record: dict[str, Any]) -> Evaluation:
    """The measurement that an adopted record tells of."""
    return kind_of(record)(record)
