"""The KoLeo regulariser, which spreads the registers of an image (arXiv 1806.03198; dinov2/loss/koleo_loss.py).

B images  N registers  D hidden
"""

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

# DINOv2's: the largest loss of a register that coincides with another one is -log(1e-8) = 18.4.
_EPSILON = 1e-8


def koleo_loss(registers: torch.Tensor) -> torch.Tensor:
    r"""Kozachenko and Leonenko's estimate of the differential entropy of the registers' directions, its sign reversed.

    With u_bi the register i of image b divided by its norm, this is, slow and obvious:

        total = 0
        for b in range(B):
            for i in range(N):
                distance = min(norm(u[b, i] - u[b, j]) for j in range(N) if j != i)
                total += -log(distance + 1e-8)
        return total / (B * N)

    It falls as each register moves away from its nearest neighbour. Which one is nearest is chosen without a gradient; the
    distance has one, which is zero between registers that coincide, as nothing says which way they should part.

    Departs from DINOv2, which spreads the images of a batch: here the registers of each image are spread, and those of
    different images may be alike, since a register is to mean the same part everywhere.

    Args:
        registers: Register tokens, (B, N, D), of any floating type; computed in float32. The memory is that of (B, N, N).

    Returns:
        The mean over registers and images, a float32 scalar.

    Raises:
        ValueError: If there is one register alone.
    """
    if registers.shape[1] < 2:
        raise ValueError(
            f"koleo_loss got {registers.shape[1]} register per image and needs 2 or more, as it spreads them from each other; "
            "raise num_registers, or set koleo_weight=0."
        )
    with maybe_autocast(registers.device.type, enabled=False):  # nearly equal directions are the same in bfloat16
        directions = nn.functional.normalize(registers.float(), dim=-1)  # (B, N, D)
        nearest = _nearest(directions)[..., None].expand_as(directions)  # (B, N, D)
        # The norm of the difference: sqrt(2 - 2 cosine) has no gradient at 0, and cancels near it.
        distances = (directions - directions.gather(1, nearest)).norm(dim=-1)  # (B, N)
        return -(distances + _EPSILON).log().mean()


@torch.no_grad()
def _nearest(directions: torch.Tensor) -> torch.Tensor:
    """Which other register of its image has the largest cosine with each one: (B, N, D) -> int64, (B, N)."""
    cosines = directions @ directions.transpose(1, 2)  # (B, N, N)
    cosines.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # not itself, even where all others are opposite to it
    return cosines.argmax(dim=-1)
