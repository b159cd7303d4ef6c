"""Images with a class label of any data set that `datasets` can stream, read undecoded and one after the other."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import PIL.Image
import torch
from datasets import ClassLabel, Image, IterableDataset, Value
from datasets.utils.file_utils import xopen

from evaluation.data_sets import decode_image, open_rows

Label = int | str


class LabelledImage(NamedTuple):
    """One row of a labelled data set.

    Attributes:
        split: Name of the split.
        row: Its number in the split, from 0.
        image: Undecoded (`datasets.Image(decode=False)`).
        label: The name of its class, or the number where classes have no names.
    """

    split: str
    row: int
    image: dict
    label: Label

    def with_content(self) -> "LabelledImage":
        """The same with the bytes of its file in memory, where a row of a folder of images holds its path alone.

        Raises:
            ValueError: If the file cannot be read.
        """
        try:
            if self.image["bytes"] is not None:
                return self
            with xopen(self.image["path"], "rb") as file:  # which opens what streams from the Hub as well
                return self._replace(image={"bytes": file.read(), "path": None})
        except Exception as error:  # a row without image, and whatever the file lies behind
            raise self._unusable("read", error) from error

    def decode(self) -> PIL.Image.Image:
        """The image, RGB.

        Raises:
            ValueError: If it cannot be decoded.
        """
        try:
            return decode_image(self.image)
        except Exception as error:  # decoders raise anything
            raise self._unusable("decoded", error) from error

    def _unusable(self, done: str, error: Exception) -> ValueError:
        return ValueError(
            f"The image of row {self.row} of split {self.split} cannot be {done} ({type(error).__name__}: {error}); all "
            "images that are classified or vote must be readable. Mend the data set or leave the row out."
        )


def open_labelled_images(
    dataset: str,
    config: str | None,
    split: str,
    image_column: str = "image",
    label_column: str = "label",
    revision: str | None = None,
) -> IterableDataset:
    """A stream of rows with an undecoded image and a label.

    Args:
        dataset: Hub name, local folder or file, as in `data_sets.open_rows`.
        config: Configuration of a data set that has several.
        split: Name of the split; a single file has none.
        image_column: Column of images.
        label_column: Column of class labels, integers or strings.
        revision: Branch, tag or commit of a data set on the Hub; its newest state when None.

    Raises:
        FileNotFoundError: If there is no such data set.
        ValueError: If the split or a column does not exist, a column holds something else, or a local data set is asked for a
            revision.
    """
    rows = open_rows(dataset, config, split, revision)
    rows = rows if rows.features is not None else rows._resolve_features()
    for column in (image_column, label_column):
        if column not in rows.features:
            raise ValueError(
                f"{dataset} has no column {column!r}; the columns of images and labels must be among: "
                f"{', '.join(rows.features)}. Name them."
            )
    if not isinstance(rows.features[image_column], Image):
        raise ValueError(
            f"The column {image_column!r} of {dataset} holds {rows.features[image_column]}; it must hold images. Name another."
        )
    labels = rows.features[label_column]
    is_named = isinstance(labels, ClassLabel)
    if not is_named and not (isinstance(labels, Value) and labels.dtype.startswith(("int", "uint", "string", "large_string"))):
        raise ValueError(
            f"The column {label_column!r} of {dataset} holds {labels}; labels must be integers or strings, one an image. "
            "Name another."
        )
    return rows.select_columns([image_column, label_column]).cast_column(image_column, Image(decode=False))


def read_labelled_images(
    rows: IterableDataset, image_column: str = "image", label_column: str = "label", limit: int | None = None
) -> Iterator[LabelledImage]:
    """The first `limit` rows of `open_labelled_images` (all by default), in the data set's order.

    Classes that have names are given by them, since numbers may differ between splits.

    Raises:
        ValueError: At a row without a label.
    """
    feature = rows.features[label_column]
    for number, row in enumerate(islice(rows, limit)):
        label = row[label_column]
        if label is None or (isinstance(feature, ClassLabel) and label < 0):
            raise ValueError(
                f"Row {number} of split {rows.split} has no label ({label}); all images that are classified or vote must have "
                "one. Choose another split."
            )
        name = feature.int2str(label) if isinstance(feature, ClassLabel) else label
        yield LabelledImage(str(rows.split), number, row[image_column], name)


def number_labels(*groups: Sequence[Label]) -> list[torch.Tensor]:
    """The labels of each group as numbers that are the same for all groups, int64, (images of the group,)."""
    numbers = {label: number for number, label in enumerate(sorted({label for group in groups for label in group}, key=str))}
    return [torch.tensor([numbers[label] for label in group], dtype=torch.int64) for group in groups]
