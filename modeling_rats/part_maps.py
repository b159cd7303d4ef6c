"""Register/patch similarity -> part maps. Pure tensors: model, processor, evaluation and demo all read parts through here.

B batch  L patches  N registers  D hidden; the patch grid is rows, columns, the image height, width in pixels
"""

import torch
from torch import nn


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
    with torch.autocast(registers.device.type, enabled=False):  # near 1 bfloat16 is coarser than what decides
        registers = nn.functional.normalize(registers.to(dtype), dim=-1)  # (B, N, D)
        patches = nn.functional.normalize(patches.to(dtype), dim=-1)  # (B, L, D)
        return (registers @ patches.transpose(1, 2)).unflatten(-1, grid)  # (B, N, rows, columns)


def part_map(similarities: torch.Tensor, target_size: tuple[int, int] | None = None) -> torch.Tensor:
    """Each patch goes to its most similar register; ties go to the lower index.

    Args:
        similarities: Similarities of one image or a batch, (..., N, rows, columns).
        target_size: Height and width in pixels of the map; the patch grid when None. Patches become blocks of pixels:
            the paper assigns patches, so nothing is interpolated between them.

    Returns:
        Register indices, int64, (..., height, width).
    """
    registers = similarities.argmax(dim=-3)  # (..., rows, columns)
    if target_size is None:
        return registers
    rows, columns = registers.shape[-2:]
    height, width = target_size
    row = pixel_to_patch(height, rows, registers.device)  # (height,)
    column = pixel_to_patch(width, columns, registers.device)  # (width,)
    return registers[..., row[:, None], column]


def pixel_to_patch(pixels: int, patches: int, device: torch.device | None = None) -> torch.Tensor:
    """The patch that holds the centre of each of `pixels` pixels along a side of `patches` patches, int64, (pixels,)."""
    return ((torch.arange(pixels, device=device) * 2 + 1) * patches) // (2 * pixels)


def part_segments(segmentation: torch.Tensor, similarities: torch.Tensor) -> list[dict]:
    """What each register that won pixels covers in one image, most pixels first.

    Args:
        segmentation: Register indices, int64, (height, width).
        similarities: Similarities of the same image, (N, rows, columns).

    Returns:
        A dict per segment: `id` and `register` (its index, as in the segmentation), `score` (its mean similarity over the
        patches it won), `area` in pixels, `box` [x0, y0, x1, y1] in pixels, x1 and y1 exclusive.
    """
    owner = similarities.argmax(dim=0)  # (rows, columns)
    segments = []
    for register in segmentation.unique().tolist():
        pixels = segmentation == register
        y, x = pixels.any(dim=1).nonzero(), pixels.any(dim=0).nonzero()
        segments.append(
            {
                "id": register,
                "register": register,
                "score": similarities[register][owner == register].mean().item(),
                "area": int(pixels.sum()),
                "box": [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1],
            }
        )
    return sorted(segments, key=lambda segment: -segment["area"])


__all__ = ["part_map", "part_segments", "pixel_to_patch", "register_patch_similarities"]
