"""Panoptic segments from queries, as Mask2Former reads them (mask2former/maskformer_model.py, panoptic_inference).

transformers' `post_process_panoptic_segmentation` gives a segment all pixels at which it is the most probable of those that are
left, however improbable it is there; a lone segment would fill its image. Mask2Former leaves such pixels without a segment.

Q queries  K labels; pixels are height, width
"""

from collections.abc import Collection

import torch
from torch import nn

THRESHOLD = 0.8  # least probability of a segment's label (OBJECT_MASK_THRESHOLD), and
OVERLAP_THRESHOLD = 0.8  # least share of a segment that others leave (OVERLAP_THRESHOLD), in Mask2Former's configurations
NOTHING = 0  # id of pixels without a segment


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
    masks = nn.functional.interpolate(mask_logits[kept][None], size=size, mode="bilinear", align_corners=False)[0].sigmoid()
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
