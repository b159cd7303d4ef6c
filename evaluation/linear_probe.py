"""How well a linear classifier on the features of frozen images tells classes apart, as DINO trains it.

B batch  D hidden  C classes
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from tqdm.auto import tqdm

from evaluation.frozen_features import check_features
from evaluation.top_accuracies import places_of_true_class, positions_among, top_accuracies

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # DINO's default, and what fewer images than ImageNet's need
HELD_OUT_SHARE = 0.1
QUERIES_AT_ONCE = 1024


class LinearProbe(NamedTuple):
    """What a linear classifier reached.

    Attributes:
        scores: `top1` and `top5` on the test images, in percent.
        learning_rate: The one it was trained with, for a batch of 256.
        held_out_top1: Learning rate -> top-1 accuracy on the held-out images, in percent; empty where there was no choice.
    """

    scores: dict[str, float]
    learning_rate: float
    held_out_top1: dict[float, float]


def linear_probe(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    quiet: bool = True,
) -> LinearProbe:
    """Trains a linear classifier on the features of the training images, and scores it on those of the test images.

    Cross-entropy by SGD, momentum 0.9, no weight decay, learning rate x batch / 256 with a cosine to 0 over the epochs
    (dino/eval_linear.py). Departs from dino/eval_linear.py in three ways: each image has one feature vector, that of its
    centre, without random crops and flips; DINO's is the best test accuracy of any epoch, ours that of the last; and where
    several learning rates are given, a tenth of the training images is held out by chance, a classifier a rate is trained side
    by side on the others, and the rate that is best on the held-out images (top-1; of equal ones that of the lowest loss)
    trains the classifier that is scored, on all training images. The test images decide nothing.

    Args:
        train_features: Of the images that are learnt from, (images, D).
        train_labels: Their classes, integers, (images,).
        test_features: Of the images that are classified, (queries, D).
        test_labels: Their classes, (queries,); those that no training image has count as wrong.
        learning_rates: For a batch of 256.
        epochs: Times that each image is learnt from.
        batch_size: Images a step.
        seed: Of the held-out images, the first weights and the order. Torch's own generator is left alone.
        quiet: No progress bar.

    Raises:
        ValueError: If shapes do not fit together, there is one class, too few images, no query, a learning rate that is not
            above 0 or so high that the weights are not finite, or features that are not finite.
    """
    check_features(train_features, train_labels, "training")
    check_features(test_features, test_labels, "test")
    classes, train_classes = train_labels.unique(return_inverse=True)
    _check(train_features, test_features, len(classes), learning_rates)

    def train(rows: torch.Tensor, rates: Sequence[float]) -> list[nn.Linear]:
        return _train(train_features, train_classes, rows, len(classes), rates, epochs, batch_size, seed, quiet)

    rate, held_out_top1 = learning_rates[0], {}
    if len(learning_rates) > 1:
        order = torch.randperm(len(train_features), generator=torch.Generator().manual_seed(seed))
        num_held_out = max(round(HELD_OUT_SHARE * len(order)), 1)
        held_out, others = order[:num_held_out].to(train_features.device), order[num_held_out:]
        reached = {
            one: _score(classifier, train_features[held_out], train_classes[held_out])
            for one, classifier in zip(learning_rates, train(others, learning_rates), strict=True)
        }
        rate = max(reached, key=lambda one: (reached[one][0]["top1"], -reached[one][1]))
        held_out_top1 = {one: scores["top1"] for one, (scores, _) in reached.items()}
    (classifier,) = train(torch.arange(len(train_features)), [rate])
    if not classifier.weight.isfinite().all():
        raise ValueError(f"learning_rate={rate} is so high that the linear classifier is not finite; use lower ones.")
    scores, _ = _score(classifier, test_features, positions_among(classes, test_labels))
    return LinearProbe(scores, rate, held_out_top1)


def _train(
    features: torch.Tensor,
    classes: torch.Tensor,
    rows: torch.Tensor,
    num_classes: int,
    learning_rates: Sequence[float],
    epochs: int,
    batch_size: int,
    seed: int,
    quiet: bool,
) -> list[nn.Linear]:
    """A classifier a learning rate, each as it would be if trained alone, on the features of some rows."""
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that all devices see the same batches
    batch_size = min(batch_size, len(rows))
    weight = 0.01 * torch.randn(num_classes, features.shape[1], generator=generator)  # (C, D)
    classifiers = [_classifier(weight.to(features.device)) for _ in learning_rates]
    groups = [
        {"params": list(classifier.parameters()), "lr": rate * batch_size / 256}
        for classifier, rate in zip(classifiers, learning_rates, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    with torch.enable_grad():
        for _ in tqdm(range(epochs), "Linear probe", unit="epoch", leave=False, disable=quiet or None):
            for batch in _batches(rows, batch_size, generator, features.device):
                own, true = features[batch].float(), classes[batch]  # (B, D), (B,)
                losses = [nn.functional.cross_entropy(classifier(own), true) for classifier in classifiers]
                optimizer.zero_grad()
                torch.stack(losses).sum().backward()  # each loss reaches its own weights alone
                optimizer.step()
            schedule.step()
    return classifiers


def _batches(rows: torch.Tensor, batch_size: int, generator: torch.Generator, device: torch.device) -> Iterator[torch.Tensor]:
    """The rows in a new order, a batch at a time."""
    return iter(rows[torch.randperm(len(rows), generator=generator)].to(device).split(batch_size))


def _classifier(weight: torch.Tensor) -> nn.Linear:
    classifier = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], device=weight.device)  # draws no numbers
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.zero_()
    return classifier


@torch.no_grad()
def _score(classifier: nn.Linear, features: torch.Tensor, true_classes: torch.Tensor) -> tuple[dict[str, float], float]:
    """Accuracies, and the mean cross-entropy over the images of known classes, infinite if it is not finite."""
    places, losses = [], []
    for own, true in zip(features.split(QUERIES_AT_ONCE), true_classes.split(QUERIES_AT_ONCE), strict=True):
        logits = classifier(own.float())  # (queries, C)
        places.append(places_of_true_class(logits, true))
        losses.append(nn.functional.cross_entropy(logits, true, ignore_index=-1, reduction="none"))
    loss = float(torch.cat(losses).mean())
    return top_accuracies(torch.cat(places), classifier.out_features), loss if math.isfinite(loss) else math.inf


def _check(
    train_features: torch.Tensor, test_features: torch.Tensor, num_classes: int, learning_rates: Sequence[float]
) -> None:
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"The training features have {train_features.shape[1]} dimensions and the test features {test_features.shape[1]}; "
            "both must come from the same model."
        )
    if num_classes < 2 or not len(test_features):
        raise ValueError(
            f"There are {num_classes} classes to learn from {len(train_features)} training images, and {len(test_features)} "
            "test images; a classifier needs two classes and something to classify. Use more images."
        )
    if not learning_rates or not all(0 < rate < float("inf") for rate in learning_rates):
        raise ValueError(f"learning_rates={list(learning_rates)} must be one or more numbers above 0, such as 0.001.")
