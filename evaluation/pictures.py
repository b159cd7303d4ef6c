"""Pictures of an evaluation: its first images, and those where the model does worst."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.mask_samples import MaskSample
from evaluation.metrics.contingency import contingency_table, image_scores
from modeling_rats.visualization import draw_part_map, grid, side_by_side

INPUTS, WORST, OVERVIEW = "inputs", "worst", "overview.png"
MODEL = "model"
DRAWN_ROWS = (MODEL, "untrained")


class Pictures:
    """Draws images as PNG: the image, part map of model and untrained model, true mask.

    The first go to NNNN.png, each alone to inputs/NNNN.png, and all of them to overview.png; those of the lowest score to
    worst/SCORE_NNNN.png, so that names in order begin with the worst. The folder is all that is remembered: a run that goes on
    after an interruption, and each rank, finds there what the others have drawn.

    Args:
        folder: Made if it is not there.
        num_pictures: Images that are drawn of either kind.
        ignore_label: True label that is left blank, as label 0 is.
    """

    def __init__(self, folder: str | Path, num_pictures: int, ignore_label: int | None = None):
        self.folder, self.num_pictures, self.ignore_label = Path(folder), num_pictures, ignore_label
        for made in (self.folder, self.folder / INPUTS, self.folder / WORST):
            made.mkdir(parents=True, exist_ok=True)

    def draw(self, index: int, sample: MaskSample, label_maps: Mapping[str, np.ndarray]) -> None:
        """Draw this image if it is one of the first, or among the worst so far."""
        if index < self.num_pictures:
            self._panels(sample, label_maps).save(self.folder / f"{index:04d}.png")
            sample.image.save(self.folder / INPUTS / f"{index:04d}.png")
        scores = image_scores(contingency_table(label_maps[MODEL], sample.mask, self.ignore_label))
        score = scores["m2o_miou" if math.isnan(scores["m2o_miou_foreground"]) else "m2o_miou_foreground"]
        worst = self._worst()
        name = f"{score:05.1f}_{index:04d}.png"
        if not math.isnan(score) and (len(worst) < self.num_pictures or name < worst[-1].name):
            self._panels(sample, label_maps).save(self.folder / WORST / name)
            self._drop_the_rest()

    def finish(self) -> None:
        """Put together what all ranks, and the runs before an interruption, have drawn."""
        drawn = (self.folder / f"{index:04d}.png" for index in range(self.num_pictures))
        grid([Image.open(path) for path in drawn if path.is_file()], columns=2).save(self.folder / OVERVIEW)
        self._drop_the_rest()

    def _panels(self, sample: MaskSample, label_maps: Mapping[str, np.ndarray]) -> Image.Image:
        shown = {row: label_maps[row] for row in DRAWN_ROWS if row in label_maps}
        mask = sample.mask.astype(np.int64)
        shown["true mask"] = np.where((mask == 0) | (mask == self.ignore_label), -1, mask)
        panels = [sample.image, *(draw_part_map(sample.image, label_map) for label_map in shown.values())]
        return side_by_side(panels, captions=["image", *shown])

    def _worst(self) -> list[Path]:
        return sorted((self.folder / WORST).glob("*.png"))

    def _drop_the_rest(self) -> None:
        for path in self._worst()[self.num_pictures :]:
            path.unlink(missing_ok=True)  # another rank may have been first
