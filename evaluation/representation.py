"""How well the features of frozen images tell classes apart: weighted k nearest neighbours, as DINO measures it.

B batch  D hidden
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import PIL.Image
import torch
from datasets import ClassLabel, Image, IterableDataset, Value
from torch import nn

from evaluation.data_sets import decode_image, open_rows

Embed = Callable[[torch.Tensor], torch.Tensor]  # pixel values, (B, 3, height, width) -> features, (B, D)
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

    def decode(self) -> PIL.Image.Image:
        """The image, RGB.

        Raises:
            ValueError: If it cannot be decoded.
        """
        try:
            return decode_image(self.image)
        except Exception as error:  # decoders raise anything
            raise ValueError(
                f"The image of row {self.row} of split {self.split} cannot be decoded ({type(error).__name__}: {error}); all "
                "images that are classified or vote must be readable. Mend the data set or leave the row out."
            ) from error


def open_labelled_images(
    dataset: str, config: str | None, split: str, image_column: str = "image", label_column: str = "label"
) -> IterableDataset:
    """A stream of rows with an undecoded image and a label.

    Args:
        dataset: Hub name, local folder or file, as in `data_sets.open_rows`.
        config: Configuration of a data set that has several.
        split: Name of the split; a single file has none.
        image_column: Column of images.
        label_column: Column of class labels, integers or strings.

    Raises:
        FileNotFoundError: If there is no such data set.
        ValueError: If the split or a column does not exist, or a column holds something else.
    """
    rows = open_rows(dataset, config, split)
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


@torch.no_grad()
def pooled_features(embed: Embed, processor: Any, images: Iterable[PIL.Image.Image], batch_size: int = 32) -> torch.Tensor:
    """One feature vector an image, float32 on the CPU, (images, D).

    Args:
        embed: What is measured of a model in evaluation mode; it also moves the pixels to the model's device.
        processor: The model's image processor.
        images: RGB; read as they are needed.
        batch_size: Images that the model gets at once.

    Raises:
        ValueError: If there are no images.
    """
    one_by_one = getattr(processor, "ensure_multiple_of", None) is not None  # inputs then differ in shape
    images, features = iter(images), []
    while batch := list(islice(images, 1 if one_by_one else batch_size)):
        pixel_values = processor(images=batch, return_tensors="pt")["pixel_values"]  # (B, 3, height, width)
        features.append(embed(pixel_values).float().cpu())  # (B, D)
    if not features:
        raise ValueError("There are no images to take features of; name a split that has some.")
    return torch.cat(features)


def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    num_neighbors: int = 20,
    temperature: float = 0.07,
    queries_at_once: int = 128,
) -> float:
    """Share of the test images, in percent, whose class wins the vote of their nearest neighbours (dino/eval_knn.py).

    With s_i the cosine similarity of a test image to its k most similar training images, and y_i their classes,

        prediction = argmax over c of the sum of exp(s_i / temperature) over the i with y_i = c.

    Args:
        train_features: Of the images that vote, (images, D).
        train_labels: Their classes, integers, (images,).
        test_features: Of the images that are classified, (queries, D).
        test_labels: Their classes, (queries,).
        num_neighbors: The number k of neighbours that vote.
        temperature: The lower, the more the nearest count.
        queries_at_once: Queries that are compared with all training images at a time, which bounds the memory.

    Raises:
        ValueError: If shapes do not fit together, there are fewer training images than neighbours, no queries, a temperature
            that is not above 0, or features that are not finite.
    """
    _check_features(train_features, train_labels, "training")
    _check_features(test_features, test_labels, "test")
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"The training features have {train_features.shape[1]} dimensions and the test features {test_features.shape[1]}; "
            "both must come from the same model."
        )
    check_neighbors(num_neighbors, len(train_features))
    if not len(test_features) or temperature <= 0:
        raise ValueError(
            f"There are {len(test_features)} test images and temperature={temperature}; both must be above 0 to classify."
        )
    train_features = nn.functional.normalize(train_features.float(), dim=1)  # (images, D)
    test_features = nn.functional.normalize(test_features.float(), dim=1)  # (queries, D)
    classes, train_classes = train_labels.unique(return_inverse=True)  # so that the votes are as wide as there are classes
    correct = 0
    for queries, labels in zip(test_features.split(queries_at_once), test_labels.split(queries_at_once), strict=True):
        similarities, neighbors = (queries @ train_features.T).topk(num_neighbors, dim=1)  # (queries, k)
        # Relative to the nearest, which changes no winner, so that a low temperature overflows nothing.
        weights = ((similarities - similarities[:, :1]) / temperature).exp()  # (queries, k)
        votes = weights.new_zeros(len(queries), len(classes)).scatter_add_(1, train_classes[neighbors], weights)
        correct += int((classes[votes.argmax(dim=1)] == labels).sum())
    return 100.0 * correct / len(test_features)


def check_neighbors(num_neighbors: int, num_images: int) -> None:
    """
    Raises:
        ValueError: If fewer images than neighbours can vote.
    """
    if not 1 <= num_neighbors <= num_images:
        raise ValueError(
            f"num_neighbors={num_neighbors} must be from 1 to the number of training images, {num_images}; use fewer "
            "neighbours or more images."
        )


def _check_features(features: torch.Tensor, labels: torch.Tensor, which: str) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"The {which} features have shape {tuple(features.shape)} and their labels {tuple(labels.shape)}; they must be "
            "(images, D) and (images,)."
        )
    broken = (~features.isfinite().all(dim=1)).nonzero().flatten()
    if len(broken):
        raise ValueError(
            f"{len(broken)} of {len(features)} {which} features are not finite (the first: {int(broken[0])}); neighbours need "
            "numbers. Check the model's weights."
        )
