"""Do registers mean the same in every image? The classes of a whole data set matched to the ids of registers.

The scores of `evaluation.metrics.contingency` match segments to regions anew in each image. Here the id of a segment
is that of a register and the label of a pixel that of a class, the same in all images: one table of their overlaps is
summed over the data set, and each register is matched once. That "register 17 is the wheel everywhere" is then a number.
Only meaningful where ids mean something across images: those of registers do, those of clusters of one image do not.

Whether the same registers are used for the same part is told by the share of a part's pixels that its most frequent
registers win over all images, beside the same share with every mask laid on the register map of another image: a register
that wins many pixels of everything, or always the middle of the picture, has a large share there too.

The choices are those of the contingency tables (ignored pixels, background, ties); the foreground scores leave class 0
out of the mean over classes and its pixels out of the accuracy. Classes that occur in no image do not count.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import torch

from evaluation.metrics.contingency import (
    BACKGROUND_LABEL,
    ContingencyTable,
    contingency_table,
    many_to_one_miou,
    match_many_to_one,
    match_one_to_one,
    one_to_one_miou,
)
from modeling_rats.part_maps import patches_to_pixels

MOST_FREQUENT = (1, 3)  # registers whose share of a part is told


class RegisterMatch(NamedTuple):
    """A register and the class it shares most pixels with.

    Attributes:
        register: id of the register.
        label: label of the class.
        pixels: pixels of the register in all images.
        purity: percent of the register's pixels that lie in the class.
        coverage: percent of the class's pixels that lie in the register.
        iou: of register and class over all images, in percent.
    """

    register: int
    label: int
    pixels: int
    purity: float
    coverage: float
    iou: float


def _empty_table() -> ContingencyTable:
    return ContingencyTable(np.zeros((0, 0), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclasses.dataclass
class RegisterClasses:
    """Pixels that each register shares with each class, summed over images; those of several ranks can be joined.

    Attributes:
        table: the sums so far, over the registers and classes that occurred.
        images: how many images were added.
        of_others: the sums for the masks laid on the register map of the image that was added before them; none for the first.
        previous: that register map.
    """

    table: ContingencyTable = dataclasses.field(default_factory=_empty_table)
    images: int = 0
    of_others: ContingencyTable = dataclasses.field(default_factory=_empty_table)
    previous: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)

    def add(self, label_map: np.ndarray, mask: np.ndarray, ignore_label: int | None = None) -> None:
        """Count one more image.

        Args:
            label_map: (height, width) integers from 0, the register of each pixel.
            mask: (height, width) integers from 0, the class of each pixel.
            ignore_label: label of pixels of the mask that do not count.

        Raises:
            ValueError: if the masks are no label maps of the same size.
        """
        self.table = add_tables(self.table, contingency_table(label_map, mask, ignore_label))
        self.images += 1
        if self.previous is not None:
            other = patches_to_pixels(torch.from_numpy(self.previous), mask.shape).numpy()  # (height, width)
            self.of_others = add_tables(self.of_others, contingency_table(other, mask, ignore_label))
        self.previous = np.asarray(label_map)

    def extend(self, others: "RegisterClasses") -> None:
        """Take in the images of another share of the data set."""
        self.table = add_tables(self.table, others.table)
        self.of_others = add_tables(self.of_others, others.of_others)
        self.images += others.images

    def summary(self) -> dict[str, float | int]:
        """Return the scores of the whole data set by name, in percent; nan where undefined.

        `dataset_m2o_miou` and `dataset_o2o_miou` are the mean IoU over classes after matching each register to its
        majority class, or registers and classes in pairs. `dataset_m2o_accuracy` and `dataset_o2o_accuracy` are the
        shares of pixels whose register is matched to their class; the first is also known as purity. `part_share_top1` and
        `part_share_top3` are `most_frequent_share`, and those `_of_others` the same for masks on maps of other images.
        """
        shares = {f"part_share_top{count}": most_frequent_share(self.table, count) for count in MOST_FREQUENT}
        shares |= {f"part_share_top{count}_of_others": most_frequent_share(self.of_others, count) for count in MOST_FREQUENT}
        return shares | {
            "images": self.images,
            "registers": self.table.predicted_ids.size,
            "classes": self.table.true_labels.size,
            "dataset_m2o_miou": many_to_one_miou(self.table),
            "dataset_m2o_miou_foreground": many_to_one_miou(self.table, foreground=True),
            "dataset_m2o_accuracy": many_to_one_accuracy(self.table),
            "dataset_m2o_accuracy_foreground": many_to_one_accuracy(self.table, foreground=True),
            "dataset_o2o_miou": one_to_one_miou(self.table),
            "dataset_o2o_miou_foreground": one_to_one_miou(self.table, foreground=True),
            "dataset_o2o_accuracy": one_to_one_accuracy(self.table),
            "dataset_o2o_accuracy_foreground": one_to_one_accuracy(self.table, foreground=True),
        }

    def matches(self) -> list[RegisterMatch]:
        """Return the majority class of every register that occurred, in ascending order of the registers' ids."""
        counts, registers, labels = self.table
        if registers.size == 0:
            return []
        columns = match_many_to_one(self.table)  # (P,)
        shared = counts[np.arange(registers.size), columns]
        register_pixels, class_pixels = counts.sum(axis=1), counts.sum(axis=0)[columns]
        return [
            RegisterMatch(
                register=int(registers[row]),
                label=int(labels[columns[row]]),
                pixels=int(register_pixels[row]),
                purity=100.0 * float(shared[row] / register_pixels[row]),
                coverage=100.0 * float(shared[row] / class_pixels[row]),
                iou=100.0 * float(shared[row] / (register_pixels[row] + class_pixels[row] - shared[row])),
            )
            for row in range(registers.size)
        ]


def add_tables(first: ContingencyTable, second: ContingencyTable) -> ContingencyTable:
    """Add the overlaps of the same ids and labels; the sum has those of both, and is exact (integers)."""
    predicted_ids = np.union1d(first.predicted_ids, second.predicted_ids)
    true_labels = np.union1d(first.true_labels, second.true_labels)
    counts = np.zeros((predicted_ids.size, true_labels.size), np.int64)  # (P, T)
    for table in (first, second):
        rows, columns = np.searchsorted(predicted_ids, table.predicted_ids), np.searchsorted(true_labels, table.true_labels)
        counts[np.ix_(rows, columns)] += table.counts
    return ContingencyTable(counts, predicted_ids, true_labels)


def many_to_one_accuracy(table: ContingencyTable, foreground: bool = False) -> float:
    """Percent of pixels whose register has their class as its majority class; nan without pixels.

    Args:
        table: registers x classes.
        foreground: count only the pixels whose class is not 0; registers still go to the background.
    """
    if table.true_labels.size == 0:
        return float("nan")
    return _accuracy(table, np.arange(table.predicted_ids.size), match_many_to_one(table), foreground)


def one_to_one_accuracy(table: ContingencyTable, foreground: bool = False) -> float:
    """Percent of pixels whose register is paired with their class, by the matching of the one-to-one mean IoU.

    Args:
        table: registers x classes.
        foreground: count only the pixels whose class is not 0; the matching is the same.
    """
    if table.true_labels.size == 0:
        return float("nan")
    return _accuracy(table, *match_one_to_one(table), foreground)


def most_frequent_share(table: ContingencyTable, registers: int) -> float:
    """Percent of a part's pixels in the registers that win most of it, mean over parts (classes but 0); nan without parts.

    Args:
        table: registers x classes.
        registers: how many, for each part its own.
    """
    counts = table.counts[:, table.true_labels != BACKGROUND_LABEL]  # (P, parts)
    if counts.size == 0:
        return float("nan")
    most = np.sort(counts, axis=0)[-registers:].sum(axis=0)  # (parts,)
    return 100.0 * float((most / counts.sum(axis=0)).mean())


def _accuracy(table: ContingencyTable, rows: np.ndarray, columns: np.ndarray, foreground: bool) -> float:
    """Percent of pixels in the matched cells (rows, columns) of the table; nan if `foreground` leaves no pixels."""
    counted = table.true_labels != BACKGROUND_LABEL if foreground else np.ones(table.true_labels.size, bool)  # (T,)
    pixels = int(table.counts[:, counted].sum())
    kept = counted[columns]
    return 100.0 * int(table.counts[rows[kept], columns[kept]].sum()) / pixels if pixels else float("nan")
