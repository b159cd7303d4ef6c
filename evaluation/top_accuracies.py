"""How often the true class is the best guess, or among the five best.

Q queries  C classes
"""

import torch

TOP = 5


def positions_among(classes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Where each label stands in the sorted classes, -1 where it does not, int64, (Q,)."""
    positions = torch.searchsorted(classes, labels).clamp_max(len(classes) - 1)  # (Q,)
    return positions.where(classes[positions] == labels, -1)


def places_of_true_class(scores: torch.Tensor, true_classes: torch.Tensor) -> torch.Tensor:
    """How many classes are guessed before the true one, int64, (Q,): 0 where it is the best guess.

    Of equal scores the class of the lower number comes first. A true class that is none of the C (-1), or whose score is not
    finite, comes behind all: C.

    Args:
        scores: Of each class, the higher the better, (Q, C).
        true_classes: int64, (Q,).
    """
    number_of = torch.arange(scores.shape[1], device=scores.device)  # (C,)
    own = scores.gather(1, true_classes.clamp_min(0)[:, None])  # (Q, 1)
    before = (scores > own) | ((scores == own) & (number_of < true_classes[:, None]))  # (Q, C)
    return before.sum(dim=1).where((true_classes >= 0) & own[:, 0].isfinite(), scores.shape[1])


def top_accuracies(places: torch.Tensor, num_classes: int) -> dict[str, float]:
    """`top1` and `top5`, in percent of the queries; no `top5` where there are no more than five classes to guess."""
    places_counted = {"top1": 1, "top5": TOP} if num_classes > TOP else {"top1": 1}
    return {name: 100.0 * int((places < count).sum()) / len(places) for name, count in places_counted.items()}
