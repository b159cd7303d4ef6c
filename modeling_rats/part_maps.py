# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Register/patch similarity -> part maps. Pure tensors: model, processor, evaluation and demo all read parts through here.

B batch  L patches  N registers  D hidden; the patch grid is rows, columns, the image height, width in pixels
"""

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

NO_PART = -1  # in a part map: the pixel belongs to no register
CLAIM_STEPS = 5  # of k-means, after which few patches move


def register_patch_similarities(registers: torch.Tensor, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Cosine similarity of every register token with every patch token (paper, "From registers to parts").

    Args:
        registers: Register tokens, (B, N, D).
        patches: Patch tokens, row by row, (B, L, D).
        grid: Rows and columns of the patch grid; rows * columns = L.

    Returns:
        Cosines in [-1, 1], float32 at least, (B, N, rows, columns).
    """
    dtype = torch.promote_types(registers.dtype, torch.float32)
    with maybe_autocast(registers.device.type, enabled=False):  # near 1 bfloat16 is coarser than what decides
        registers = nn.functional.normalize(registers.to(dtype), dim=-1)  # (B, N, D)
        patches = nn.functional.normalize(patches.to(dtype), dim=-1)  # (B, L, D)
        return (registers @ patches.transpose(1, 2)).unflatten(-1, grid)  # (B, N, rows, columns)


def register_claims(compress_logits: torch.Tensor) -> torch.Tensor:
    r"""How strongly each register claims each patch: half-way between compress's logits and their log-softmax.

    With l_rp the logit of register r and patch p:  l_rp - 1/2 log sum_q exp(l_rq)

    Compress's softmax is over the patches, so a constant that all logits of a register share is nothing to it: by the logits
    alone, a register whose constant is high can take most of the image. By the log-softmax alone, most registers claim some
    patch, be their part there or not. Half-way was chosen on rendered images (docs/evidence). Ours, not the paper's.

    Args:
        compress_logits: Q(R) K(P)^T / sqrt d, (B, N, L).

    Returns:
        The claims, (B, N, L): a patch is claimed by the register with the highest one there.
    """
    return compress_logits - 0.5 * compress_logits.logsumexp(dim=-1, keepdim=True)


def similarities_to_claimed_patches(maps: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of every patch with the mean direction of the patches that each map claims.

    A patch is claimed by the map that is highest there, of registers or of attention; then, `CLAIM_STEPS` times, by the map
    whose mean it is most similar to. So what `part_map` makes of the outcome is that many steps of spherical k-means, started
    from the part map of `maps`. Departs from the paper, which compares patches with register tokens; register i stays part i.

    Args:
        maps: Of any range, (B, N, rows, columns).
        patches: Patch tokens, row by row, (B, rows * columns, D).

    Returns:
        Cosines in [-1, 1], -1 everywhere for a map that claims no patch, float32 at least, (B, N, rows, columns).
    """
    dtype = torch.promote_types(patches.dtype, torch.float32)
    with maybe_autocast(patches.device.type, enabled=False):
        directions = nn.functional.normalize(patches.to(dtype), dim=-1)  # (B, L, D)
    similarities = maps
    for _ in range(CLAIM_STEPS):
        claims = nn.functional.one_hot(part_map(similarities).flatten(1), maps.shape[1]).transpose(1, 2)  # (B, N, L)
        with maybe_autocast(patches.device.type, enabled=False):
            means = claims.to(dtype) @ directions  # (B, N, D), but for their lengths
        similarities = register_patch_similarities(means, directions, (maps.shape[-2], maps.shape[-1]))
        similarities = similarities.masked_fill(~claims.any(dim=-1)[..., None, None], -1.0)
    return similarities


def part_map(similarities: torch.Tensor, target_size: tuple[int, int] | None = None) -> torch.Tensor:
    """Each patch goes to its most similar register; ties go to the lower index.

    Args:
        similarities: Similarities of one image or a batch, (..., N, rows, columns).
        target_size: Height and width in pixels of the map; the patch grid when None. Patches become blocks of pixels:
            the paper assigns patches, so nothing is interpolated between them.

    Returns:
        Register indices, int64, (..., height, width).
    """
    return patches_to_pixels(similarities.argmax(dim=-3), target_size)


def segment_parts(
    similarities: torch.Tensor,
    target_size: tuple[int, int] | None = None,
    *,
    threshold: float | None = None,
    mask_threshold: float | None = None,
    merge_threshold: float | None = None,
    max_parts: int | None = None,
    min_area: int = 0,
    upsample_similarities: bool = False,
    register_heads: torch.Tensor | None = None,
) -> tuple[torch.Tensor, list[dict]]:
    """The parts of one image: `part_map` and what each part covers, with options that merge, shrink and drop parts.

    The steps, in this order: merge (`merge_threshold`); each patch to its most similar register; unlike patches to no part
    (`mask_threshold`); small parts to others (`max_parts`, `min_area`); weak parts to none (`threshold`). So what remains
    keeps every promise at once: there are `max_parts` or fewer, each has `min_area` pixels and a score of `threshold`, each
    pixel's best similarity is `mask_threshold` or more. The meaning of each option is told by `post_process_part_segmentation`
    of the processors.

    Args:
        similarities: Similarities of one image, (N, rows, columns).
        target_size: Height and width in pixels of the map; the patch grid when None.
        threshold: Least score of a part.
        mask_threshold: Least similarity of a pixel to its most similar register.
        merge_threshold: Least Pearson correlation of two registers' similarities for them to be one part.
        max_parts: Most parts that stay, the largest (ties: the lower index).
        min_area: Least area of a part in pixels.
        upsample_similarities: Decide on bilinearly upsampled similarities pixel by pixel, not patch by patch.
        register_heads: The attention head of each register, int64, (N,).

    Returns:
        Register indices, `NO_PART` where there is no part, int64, (height, width); and a dict per part, most pixels first
        (see `part_segments`).
    """
    size = target_size if upsample_similarities else None  # of the places to decide on: the pixels, or else the patches
    parts = merged_registers(similarities, merge_threshold)  # (N,)
    best, register = strongest_map(similarities, size)  # (rows, columns) each, or (height, width)
    owner = parts[register]
    if mask_threshold is not None:
        owner = owner.masked_fill(best < mask_threshold, NO_PART)
    if max_parts is not None or min_area > 0:
        areas = _areas(patches_to_pixels(owner, target_size), len(parts))
        small = areas < max(min_area, 1)
        if max_parts is not None:
            small[areas.argsort(descending=True, stable=True)[max_parts:]] = True
        if small[owner[owner != NO_PART]].any():
            owner = _hand_over(owner, small, similarities, parts, size)
    scores = {}
    for part in _present(owner):
        similarity, _ = strongest_map(similarities[parts == part], size)
        scores[part] = similarity[owner == part].mean().item()
        if threshold is not None and scores[part] < threshold:
            owner = owner.masked_fill(owner == part, NO_PART)
    segmentation = patches_to_pixels(owner, target_size)
    return segmentation, part_segments(segmentation, scores, parts, register_heads)


def merged_registers(similarities: torch.Tensor, merge_threshold: float | None) -> torch.Tensor:
    """Which register's part each register belongs to, once registers with near-identical similarities are merged.

    Registers that won patches are gone through from the most patches won to the fewest (ties: the lower index first). Each
    joins the first kept register with which the Pearson correlation of their similarities over the patches is
    `merge_threshold` or more, else it is kept. Only kept registers are joined, so nothing chains. Similarities that are the
    same for all patches correlate with none (0).

    Args:
        similarities: Similarities of one image, (N, rows, columns).
        merge_threshold: Least correlation; None merges nothing.

    Returns:
        Register indices, int64, (N,): its own for a register that is kept or won no patch.
    """
    parts = torch.arange(len(similarities), device=similarities.device)
    if merge_threshold is None:
        return parts
    patches_won = _areas(similarities.argmax(dim=0), len(similarities))  # (N,)
    by_patches_won = patches_won.argsort(descending=True, stable=True)
    winners = by_patches_won[: int((patches_won > 0).sum())].tolist()
    maps = similarities[winners].flatten(1).cpu().double()  # float32 noise would give equal similarities a correlation
    maps = nn.functional.normalize(maps - maps.mean(dim=1, keepdim=True), dim=1)  # (winners, L)
    correlations = (maps @ maps.T).clamp(-1, 1).tolist()
    kept: list[int] = []  # places in `winners`
    for place, register in enumerate(winners):
        joined = next((first for first in kept if correlations[place][first] >= merge_threshold), None)
        if joined is None:
            kept.append(place)
        else:
            parts[register] = winners[joined]
    return parts


def strongest_map(maps: torch.Tensor, size: tuple[int, int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest value over the maps at each place, and the index of its map; ties go to the lower index.

    Args:
        maps: Similarities or logits of one image, (N, rows, columns).
        size: Height and width to which the maps are upsampled first (see `upsample`); as they are when None.

    Returns:
        The values, and the indices, int64, both (rows, columns) or (height, width).
    """
    if size is None:
        return maps.amax(dim=0), maps.argmax(dim=0)
    best = upsample(maps[:1], size)[0]  # one map at a time: all of them at the size of a photograph fill gigabytes
    index = torch.zeros_like(best, dtype=torch.int64)
    for number in range(1, len(maps)):
        values = upsample(maps[number : number + 1], size)[0]  # (height, width)
        index.masked_fill_(values > best, number)
        best = torch.maximum(best, values)
    return best, index


def upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear interpolation (corners not aligned) of (N, rows, columns) to (N, height, width), float32."""
    # As a batch of one map each, so that a map comes out the same to the last bit whether alone or among others.
    return nn.functional.interpolate(maps[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]


def patches_to_pixels(values: torch.Tensor, target_size: tuple[int, int] | None) -> torch.Tensor:
    """Blocks of pixels, (..., height, width), from one value per patch, (..., rows, columns); as they are for None."""
    if target_size is None:
        return values
    rows, columns = values.shape[-2:]
    height, width = target_size
    row = pixel_to_patch(height, rows, values.device)  # (height,)
    column = pixel_to_patch(width, columns, values.device)  # (width,)
    return values[..., row[:, None], column]


def pixel_to_patch(pixels: int, patches: int, device: torch.device | None = None) -> torch.Tensor:
    """The patch that holds the centre of each of `pixels` pixels along a side of `patches` patches, int64, (pixels,)."""
    return ((torch.arange(pixels, device=device) * 2 + 1) * patches) // (2 * pixels)


def part_segments(
    segmentation: torch.Tensor,
    scores: dict[int, float],
    parts: torch.Tensor,
    register_heads: torch.Tensor | None = None,
) -> list[dict]:
    """What each part of a map covers, most pixels first.

    Args:
        segmentation: Register indices or `NO_PART`, int64, (height, width).
        scores: The score of each part in the map.
        parts: Which part each register belongs to, int64, (N,) (see `merged_registers`).
        register_heads: The attention head of each register, int64, (N,).

    Returns:
        A dict per part: `id` and `register` (its index, as in the segmentation), `registers` (all that were merged into it,
        itself first), `head` (the attention head that owns the register, or None), `score`, `area` in pixels, `box`
        [x0, y0, x1, y1] in pixels, x1 and y1 exclusive.
    """
    segments = []
    for part in _present(segmentation):
        pixels = segmentation == part
        y, x = pixels.any(dim=1).nonzero(), pixels.any(dim=0).nonzero()
        merged = (parts == part).nonzero().flatten().tolist()
        segments.append(
            {
                "id": part,
                "register": part,
                "registers": [part, *(register for register in merged if register != part)],
                "head": None if register_heads is None else int(register_heads[part]),
                "score": scores[part],
                "area": int(pixels.sum()),
                "box": [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1],
            }
        )
    return sorted(segments, key=lambda segment: -segment["area"])


def _hand_over(
    owner: torch.Tensor, small: torch.Tensor, similarities: torch.Tensor, parts: torch.Tensor, size: tuple[int, int] | None
) -> torch.Tensor:
    """Give the places of small parts, (N,) bool, to the most similar of the others; to no part if there is no other."""
    given = (owner != NO_PART) & small[owner]
    others = (~small[parts]).nonzero().flatten()  # registers of the parts that remain
    if not len(others):
        return owner.masked_fill(given, NO_PART)
    _, nearest = strongest_map(similarities[others], size)
    return torch.where(given, parts[others[nearest]], owner)


def _areas(segmentation: torch.Tensor, num_registers: int) -> torch.Tensor:
    """How many places each register owns, int64, (N,)."""
    return torch.bincount(segmentation[segmentation != NO_PART], minlength=num_registers)


def _present(segmentation: torch.Tensor) -> list[int]:
    counts = torch.bincount(segmentation[segmentation != NO_PART])  # on millions of pixels far faster than unique()
    return counts.nonzero().flatten().tolist()


__all__ = [
    "NO_PART",
    "merged_registers",
    "part_map",
    "part_segments",
    "patches_to_pixels",
    "pixel_to_patch",
    "register_claims",
    "register_patch_similarities",
    "segment_parts",
    "similarities_to_claimed_patches",
    "strongest_map",
    "upsample",
]
