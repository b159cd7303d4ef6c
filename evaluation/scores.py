"""The scores of a part segmentation: image by image, averaged, and as a table."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from evaluation.metrics.boundary import boundary_scores
from evaluation.metrics.contingency import contingency_table, image_scores, mean_over_images

COLUMNS = {  # of the printed table
    "images": "images",
    "segments_used": "segments",
    "m2o_miou": "M2O",
    "m2o_miou_foreground": "M2O fg",
    "o2o_miou": "O2O",
    "o2o_miou_foreground": "O2O fg",
    "ari": "ARI",
    "ari_foreground": "ARI fg",
    "boundary_f": "BF",
}


@dataclasses.dataclass
class Scores:
    """The scores of one competitor, image by image.

    Attributes:
        per_image: score name -> one value an image, in percent; nan where undefined.
        segments_used: number of segments in each image's label map.
    """

    per_image: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    segments_used: list[int] = dataclasses.field(default_factory=list)

    def add(self, label_map: np.ndarray, mask: np.ndarray, ignore_label: int | None = None) -> None:
        """Score one more image."""
        scores = image_scores(contingency_table(label_map, mask, ignore_label))
        scores["boundary_f"] = boundary_scores(label_map, mask, ignore_label).f
        for name, score in scores.items():
            self.per_image.setdefault(name, []).append(score)
        self.segments_used.append(count_segments(label_map))

    def extend(self, others: "Scores") -> None:
        """Take in the images of another share of the data set."""
        for name, scores in others.per_image.items():
            self.per_image.setdefault(name, []).extend(scores)
        self.segments_used += others.segments_used

    def summary(self) -> dict[str, float | int]:
        """Average over images: every score (nan if undefined), `segments_used`, and how many images there were."""
        means = {name: mean_over_images(scores) for name, scores in self.per_image.items()}
        return {
            "images": len(self.segments_used),
            "images_with_foreground": means["m2o_miou_foreground"][1],
            "segments_used": float(np.mean(self.segments_used)),
            **{name: mean for name, (mean, _) in means.items()},
        }


def count_segments(label_map: np.ndarray) -> int:
    """Return how many different segments a label map holds."""
    return len(np.unique(label_map))


def format_table(summaries: Mapping[str, Mapping[str, float | int]]) -> str:
    """Lay the summaries out as a table, one row a competitor."""
    width = max(len(row) for row in summaries)
    lines = [" " * width + "".join(f"{title:>10}" for title in COLUMNS.values())]
    for row, summary in summaries.items():
        lines.append(f"{row:<{width}}" + "".join(f"{_cell(summary[name]):>10}" for name in COLUMNS))
    return "\n".join(lines)


def _cell(value: float | int) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
