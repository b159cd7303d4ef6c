"""Segments from queries, as Mask2Former reads them (mask2former/maskformer_model.py).

transformers' post-processing differs: it reads all masks on 384 x 384 pixels, enlarges those of instances from there by nearest
neighbour, and gives a panoptic segment all pixels at which it is the most probable of those that are left, however improbable,
so that a lone segment fills its image.

Departs from Mask2Former in that logits are enlarged to the true masks' size at once, and not by way of the input's.

Q queries  K labels  S segments; pixels are height, width
"""

from collections.abc import Collection

import torch
from torch import nn

THRESHOLD = 0.8  # least probability of a segment's label (OBJECT_MASK_THRESHOLD), and
OVERLAP_THRESHOLD = 0.8  # least share of a segment that others leave (OVERLAP_THRESHOLD), in Mask2Former's configurations
MAX_INSTANCES = 100  # of an image (TEST.DETECTIONS_PER_IMAGE)
NOTHING = 0  # id of pixels without a segment


def semantic_map(class_logits: torch.Tensor, mask_logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The label of each pixel, int64, (height, width): the mean of the queries' labels, weighted by their masks.

    Args:
        class_logits: (Q, K + 1), the last being no object.
        mask_logits: (Q, height, width) of any size.
        size: Height and width of the map that comes out.
    """
    masks = enlarged(mask_logits, size).sigmoid()  # (Q, height, width)
    return torch.einsum("qk,qhw->khw", class_logits.softmax(dim=-1)[:, :-1], masks).argmax(dim=0)


def instance_segments(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `MAX_INSTANCES` most probable pairs of a query and a label.

    Args:
        class_logits: (Q, K + 1), the last being no object.
        mask_logits: (Q, height, width) of any size.
        size: Height and width of the masks that come out.

    Returns:
        Masks, (S, height, width) bool; labels, (S,) int64; scores, (S,): the label's probability times the mean of the mask's
        where it is more probable than not. Empty masks are left out.
    """
    num_labels = class_logits.shape[-1] - 1
    probabilities = class_logits.softmax(dim=-1)[:, :-1].flatten()  # (Q x K,)
    scores, places = probabilities.topk(min(MAX_INSTANCES, len(probabilities)))
    logits = enlarged(mask_logits, size)[places // num_labels]  # (S, height, width)
    masks = logits > 0
    areas = masks.sum(dim=(1, 2))  # (S,)
    sure = (logits.sigmoid() * masks).sum(dim=(1, 2)) / areas.clamp(min=1)  # (S,)
    kept = areas > 0
    return masks[kept], (places % num_labels)[kept], (scores * sure)[kept]


def enlarged(mask_logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(Q, height, width) of any size to float32 of another, bilinear."""
    return nn.functional.interpolate(mask_logits[None].float(), size=size, mode="bilinear", align_corners=False)[0]


def panoptic_segments(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, size: tuple[int, int], stuff: Collection[int]
) -> tuple[torch.Tensor, dict[int, int]]:
    """The segments of one image.

    Args:
        class_logits: (Q, K + 1), the last being no object.
        mask_logits: (Q, height, width) of any size.
        size: Height and width of the map that comes out.
        stuff: Labels of which there is one segment at most.

    Returns:
        The segment of each pixel, int64, or `NOTHING`, (height, width), and the label of each segment.
    """
    scores, labels = class_logits.softmax(dim=-1).max(dim=-1)  # (Q,)
    kept = (labels != class_logits.shape[-1] - 1) & (scores > THRESHOLD)
    segments = torch.full(size, NOTHING, dtype=torch.int64, device=mask_logits.device)
    label_of: dict[int, int] = {}
    if not kept.any():
        return segments, label_of
    masks = enlarged(mask_logits[kept], size).sigmoid()
    strongest = (scores[kept, None, None] * masks).argmax(dim=0)  # (height, width)
    of_stuff: dict[int, int] = {}
    for query, label in enumerate(labels[kept].tolist()):
        won, own = strongest == query, masks[query] >= 0.5  # (height, width)
        visible = won & own
        if not visible.any() or won.sum() / own.sum() < OVERLAP_THRESHOLD:
            continue
        number = of_stuff.get(label, len(label_of) + 1)
        if label in stuff:
            of_stuff[label] = number
        segments[visible] = number
        label_of[number] = label
    return segments, label_of
