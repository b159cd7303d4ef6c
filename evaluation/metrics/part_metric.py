"""What the `evaluate` modules of this folder share: they take masks, score image by image, and average over images.

The modules are thin and import this package, so it must be importable where they are loaded: from the checkout, or
anywhere after `pip install -e .` in it (or with it on PYTHONPATH).
"""

from collections.abc import Callable, Iterable
from typing import Any

import datasets
import evaluate
import numpy as np

from evaluation.metrics.contingency import check_label_map, contingency_table, mean_over_images

INPUTS_DESCRIPTION = """
Args:
    predictions: list of (height, width) integer masks, the predicted segment of each pixel, numbered from 0.
    references: list of (height, width) integer masks of the same sizes, the true region of each pixel; 0: background.
    ignore_label: label of true pixels that are left out altogether (default: none).

Returns:
    The scores in percent, averaged over the images that have them (nan if none has), and the numbers of images.
"""
CITATION = "Register-Attention Transformers (RATS), arXiv 2606.14701."


class MaskMetric(evaluate.Metric):
    """A metric of label maps against true masks; a subclass says what it is and scores an image."""

    definition: str | None  # what it measures and the choices made: the docstring of its core

    def _info(self) -> evaluate.MetricInfo:
        mask = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=self.definition,
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
        images = [
            self.score_image(np.asarray(predicted), np.asarray(true), ignore_label)
            for predicted, true in zip(predictions, references, strict=True)
        ]
        return self.average(images)

    def score_image(self, predicted: np.ndarray, true: np.ndarray, ignore_label: int | None) -> tuple[float, ...]:
        """Return the scores of one image in percent, nan where undefined."""
        raise NotImplementedError(f"{type(self).__name__} must say how an image is scored.")

    def average(self, images: list[tuple[float, ...]]) -> dict[str, float | int]:
        """Average the scores over the images that have them, and count these."""
        raise NotImplementedError(f"{type(self).__name__} must say how images are averaged.")


class PartMetric(MaskMetric):
    """A metric that needs no more than the contingency table; a subclass gives the score of one."""

    score_name: str
    score: Callable[..., float]  # a static method: (table, foreground=False) -> percent or nan

    def score_image(self, predicted: np.ndarray, true: np.ndarray, ignore_label: int | None) -> tuple[float, ...]:
        """Return the score with and without the background."""
        table = contingency_table(predicted, true, ignore_label)
        return type(self).score(table), type(self).score(table, foreground=True)

    def average(self, images: list[tuple[float, ...]]) -> dict[str, float | int]:
        """Average over images; the foreground score leaves out images that have none, hence its own count."""
        mean, num_images = mean_over_images(score for score, _ in images)
        foreground_mean, num_foreground_images = mean_over_images(foreground_score for _, foreground_score in images)
        return {
            self.score_name: mean,
            f"{self.score_name}_foreground": foreground_mean,
            "num_images": num_images,
            "num_foreground_images": num_foreground_images,
        }


def _check_integers(masks: Iterable[Any] | None, subject: str) -> None:
    """Refuse float masks here: on its way through Arrow 1.5 would silently become 1."""
    for index, mask in enumerate(masks if masks is not None else []):
        try:
            label_map = np.asarray(mask)
        except ValueError as error:
            raise ValueError(
                f"The {subject} mask {index} has rows of different lengths; every row must have the width of the image."
            ) from error
        if label_map.ndim == 2 and label_map.dtype.kind == "f":
            check_label_map(label_map, f"{subject} mask {index}")
