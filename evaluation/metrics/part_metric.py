"""What the `evaluate` modules of this folder share: they take masks, score image by image, and average over images."""

from collections.abc import Callable

import datasets
import evaluate
import numpy as np

from evaluation.metrics.contingency import ContingencyTable, check_label_map, contingency_table, mean_over_images

INPUTS_DESCRIPTION = """
Args:
    predictions: list of (height, width) integer masks, the predicted segment of each pixel, numbered from 0.
    references: list of (height, width) integer masks of the same sizes, the true region of each pixel; 0: background.
    ignore_label: label of true pixels that are left out altogether (default: none).
"""
CITATION = "Register-Attention Transformers (RATS), arXiv 2606.14701."


class PartMetric(evaluate.Metric):
    """A metric of label maps against true masks; a subclass gives the score of one table."""

    score_name: str
    score: Callable[..., float]  # a static method: (table, foreground=False) -> percent or nan

    def _info(self) -> evaluate.MetricInfo:
        mask = datasets.Sequence(datasets.Sequence(datasets.Value("int32")))
        return evaluate.MetricInfo(
            description=type(self).score.__doc__,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": mask, "references": mask}),
        )

    def add(self, *, prediction=None, reference=None, **kwargs) -> None:
        """Add one image's masks."""
        _check_integers([prediction], "prediction")
        _check_integers([reference], "reference")
        super().add(prediction=prediction, reference=reference, **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs) -> None:
        """Add the masks of several images."""
        _check_integers(predictions, "prediction")
        _check_integers(references, "reference")
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions, references, ignore_label: int | None = None) -> dict[str, float | int]:
        tables = [
            contingency_table(np.asarray(predicted), np.asarray(true), ignore_label)
            for predicted, true in zip(predictions, references, strict=True)
        ]
        return self.compute_from_tables(tables)

    def compute_from_tables(self, tables: list[ContingencyTable]) -> dict[str, float | int]:
        """Average over images; the foreground score leaves out images that have none, hence its own count."""
        mean, num_images = mean_over_images(type(self).score(table) for table in tables)
        foreground_mean, num_foreground_images = mean_over_images(type(self).score(table, foreground=True) for table in tables)
        return {
            self.score_name: mean,
            f"{self.score_name}_foreground": foreground_mean,
            "num_images": num_images,
            "num_foreground_images": num_foreground_images,
        }


def _check_integers(masks, subject: str) -> None:
    """Refuse float masks here: on its way through Arrow 1.5 would silently become 1."""
    for index, mask in enumerate(masks if masks is not None else []):
        label_map = np.asarray(mask)
        if label_map.ndim == 2 and label_map.dtype.kind == "f":
            check_label_map(label_map, f"{subject} mask {index}")
