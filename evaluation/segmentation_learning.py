"""Learns a head with the best of several learning rates, and scores any number of heads in one pass over the test images.

B batch  D hidden  K classes; the patch grid is rows, columns; pixels are height, width
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from evaluation.frozen_patches import Batch, Examples
from evaluation.segmentation_heads import Recipe, predict_classes, train_head
from evaluation.segmentation_scores import SegmentationScores, Summary

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03)  # DINOv2's for 40,000 steps, and what fewer steps need
HELD_OUT_SHARE = 0.1
Row = TypeVar("Row", bound=Hashable)


class LearntHead(NamedTuple):
    """A head that has learnt from all training images.

    Attributes:
        head: In evaluation mode.
        learning_rate: With which it was trained.
        held_out_miou: Learning rate -> mIoU on the held-out images, in percent; empty where there was no choice.
        last_train_loss: Mean of the losses over the last epoch.
    """

    head: nn.Module
    learning_rate: float
    held_out_miou: dict[float, float]
    last_train_loss: float


def learn_head(
    kind: str,
    train: Examples,
    num_classes: int,
    learning_rates: Sequence[float],
    recipe: Recipe,
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> LearntHead:
    """Train a head on all training images, with the learning rate that is best on a held-out tenth of them.

    As `linear_probe` does: where several rates are given, a tenth of the images is held out by chance (seed of the recipe), a
    head a rate learns from the others, and the rate of the highest mIoU on the held-out ones, at the size that the model sees,
    trains the head that is returned. The test images decide nothing.

    Args:
        kind: "linear" or "fcn".
        train: Features and classes.
        num_classes: K.
        learning_rates: One or several; they take the place of the recipe's.
        recipe: Epochs, batch size, seed.
        device: Where heads compute.
        quiet: No progress bars.

    Raises:
        ValueError: If there are too few images, or a learning rate is not above 0 or too high.
    """
    rate, held_out_miou = learning_rates[0], dict[float, float]()
    if len(learning_rates) > 1:
        order = torch.randperm(len(train.features), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
        num_held_out = max(round(HELD_OUT_SHARE * len(order)), 1)
        held_out, others = train.at(order[:num_held_out]), train.at(order[num_held_out:])
        for one in learning_rates:
            given = recipe._replace(learning_rate=one)
            head = train_head(kind, others.features, others.classes, num_classes, given, device, quiet).head
            held_out_miou[one] = _miou(head, held_out, num_classes, recipe.batch_size)
        rate = max(held_out_miou, key=lambda one: held_out_miou[one])
    given = recipe._replace(learning_rate=rate)
    trained = train_head(kind, train.features, train.classes, num_classes, given, device, quiet)
    return LearntHead(trained.head, rate, held_out_miou, trained.loss)


def score_heads(
    heads: Mapping[Row, nn.Module], majority: int, batches: Iterable[Batch], labels: Sequence[int]
) -> tuple[dict[Row, Summary], Summary, list[str]]:
    """Score all heads on the same images, at the size of the true masks.

    Args:
        heads: In evaluation mode.
        majority: The most frequent class of the training images.
        batches: Of the test images.
        labels: Of each class.

    Returns:
        The scores of each head; those of giving every pixel the majority's class; fingerprints of images and masks.

    Raises:
        ValueError: If no pixel counts.
    """
    scores = {row: SegmentationScores(len(labels)) for row in heads}
    of_majority, fingerprints = SegmentationScores(len(labels)), list[str]()
    for batch in batches:
        sizes = [(true.shape[0], true.shape[1]) for true in batch.classes]
        for row, head in heads.items():
            for predicted, true in zip(predict_classes(head, batch.features, sizes), batch.classes, strict=True):
                scores[row].add(predicted, true)
        for true in batch.classes:
            of_majority.add(torch.full_like(true, majority), true)
        fingerprints += batch.fingerprints
    return {row: scored.summary(labels) for row, scored in scores.items()}, of_majority.summary(labels), fingerprints


def _miou(head: nn.Module, examples: Examples, num_classes: int, batch_size: int) -> float:
    scores = SegmentationScores(num_classes)
    for first in range(0, len(examples.features), batch_size):
        features = torch.stack(examples.features[first : first + batch_size])  # (B, D, rows, columns)
        true = torch.stack(examples.classes[first : first + batch_size]).long()  # (B, height, width)
        sizes = [(true.shape[1], true.shape[2])] * len(true)
        for predicted, own in zip(predict_classes(head, features, sizes), true, strict=True):
            scores.add(predicted, own)
    return scores.summary(range(num_classes)).miou
