"""What a student is told by a frozen teacher: losses on patches, through the registers, and on the whole image.

B images  L patches  N registers  D hidden of the student  T hidden of the teacher
"""

import math

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce as differentiable_all_reduce
from transformers.utils.generic import maybe_autocast

from modeling_rats.part_maps import register_patch_similarities

_EPSILON = 1e-6  # of a variance


def patch_loss(projected: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    r"""How far projected patches are from the teacher's, in direction and in value.

    With s_bl a projected patch of the student and t_bl the target, this is, slow and obvious:

        total = 0
        for b in range(B):
            for l in range(L):
                total += 1 - cosine(s[b, l], t[b, l])
                total += sum((s[b, l, c] - t[b, l, c]) ** 2 for c in range(T)) / T
        return total / (B * L)

    where
        s = W p + v, p the student's patches after its final LayerNorm, W and v learned;
        t = the teacher's patches, standardised (`standardized`).

    Source: VECA (arXiv 2605.12491) adds these two; Proteus (arXiv 2407.10366) has the squared error. Ours: that the targets are
    standardised, or a direction that all patches of a teacher share would hide what tells them apart.

    Args:
        projected: (B, L, T).
        targets: (B, L, T).

    Returns:
        The mean over images and patches, a float32 scalar; 0 if both are equal.
    """
    return _cosine_loss(projected, targets) + nn.functional.mse_loss(projected.float(), targets.float())


def register_bottleneck_loss(
    registers: torch.Tensor,
    patches: torch.Tensor,
    reconstructing: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    error: str = "cosine",
) -> torch.Tensor:
    r"""How badly an image's registers alone explain the teacher's patches, through the similarities that part maps have.

    With r_bn a register and p_bl a patch of the student, and g_bn what that register stands for, this is, slow and obvious:

        total = 0
        for b in range(B):
            for l in range(L):
                similarities = [cosine(r[b, n], p[b, l]) / temperature for n in range(N)]
                shares = softmax(similarities)
                reconstruction = sum(shares[n] * g[b, n] for n in range(N))
                total += 1 - cosine(reconstruction, t[b, l])    # with error="cosine"
                total += sum((reconstruction - t[b, l]) ** 2)   # with error="squared"
        return total / (B * L)

    where
        r, p = the student's registers and patches after its final LayerNorm;
        g = W r + v, W and v learned;
        t = the teacher's patches without their mean, of mean square length 1 (`centered`), so that the squared error is the
            share of their variance that is not explained.

    So it is a soft k-means of the teacher's patches with N centres an image, which one forward pass finds. Ours: neither the
    paper nor DINO has it.

    Args:
        registers: (B, N, D).
        patches: (B, L, D).
        reconstructing: g, (B, N, T).
        targets: (B, L, T).
        temperature: Of the softmax over the registers; the lower, the nearer to the one register that a part map would choose.
        error: "cosine" counts all patches alike; "squared" those little that differ little from the mean, as k-means does.

    Returns:
        The mean over images and patches, a float32 scalar.
    """
    with maybe_autocast(registers.device.type, enabled=False):
        shares = _shares(registers, patches, temperature)  # (B, N, L)
        reconstruction = shares.transpose(1, 2) @ reconstructing.float()  # (B, L, T)
    if error == "squared":
        return (reconstruction - targets.float()).square().sum(dim=-1).mean()
    return _cosine_loss(reconstruction, targets)


def register_code_loss(
    registers: torch.Tensor,
    patches: torch.Tensor,
    codes: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    error: str = "cosine",
) -> torch.Tensor:
    r"""How badly one constant vector for each register explains the teacher's patches, through the same similarities.

    As `register_bottleneck_loss` with g_bn = c_n, learned and the same in all images. There a register may stand for one thing
    in one image and for another in the next; here it has to stand for the same. So it is a soft k-means with N centres for all
    images together. Ours.

    Args:
        registers: (B, N, D).
        patches: (B, L, D).
        codes: c, (N, T).
        targets: (B, L, T).
        temperature: As in `register_bottleneck_loss`.
        error: Likewise.

    Returns:
        The mean over images and patches, a float32 scalar.
    """
    return register_bottleneck_loss(registers, patches, codes.expand(len(registers), -1, -1), targets, temperature, error)


def register_balance_loss(registers: torch.Tensor, patches: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""How unevenly the registers share out the patches of a step, in nats.

    With the shares of `register_bottleneck_loss`, this is, slow and obvious:

        mean = [sum(shares[b, l, n] for b in range(B) for l in range(L)) / (B * L) for n in range(N)]
        return log(N) - sum(-m * log(m) for m in mean)

    over the images of all ranks, so that an image may use few registers as long as all are used. Ours for registers; it is
    the mean entropy maximisation of MSN (arXiv 2204.07141). With gradient accumulation each part is balanced by itself.

    Args:
        registers: (B, N, D).
        patches: (B, L, D).
        temperature: As in `register_bottleneck_loss`.

    Returns:
        A float32 scalar from 0, all alike, to log(N), one register for all.
    """
    with maybe_autocast(registers.device.type, enabled=False):
        shares = _shares(registers, patches, temperature).mean(dim=(0, 2))  # (N)
        if dist.is_initialized():
            shares = differentiable_all_reduce(shares) / dist.get_world_size()
        return math.log(len(shares)) + torch.special.xlogy(shares, shares).sum()


def global_loss(projected: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    r"""How far the projected mean register is from what the teacher says of the whole image, in direction.

    With s_b the projected mean register and t_b the target, this is, slow and obvious:

        total = 0
        for b in range(B):
            total += 1 - cosine(s[b], t[b])
        return total / B

    where
        s = W m + v, m the mean of the student's registers after its final LayerNorm, W and v learned;
        t = the teacher's class token, or the mean register of a RATS, which has no class token.

    Source: VECA (arXiv 2605.12491).

    Args:
        projected: (B, T).
        targets: (B, T).

    Returns:
        The mean over images, a float32 scalar; 0 if both are equal.
    """
    return _cosine_loss(projected, targets)


def standardized(patches: torch.Tensor) -> torch.Tensor:
    """Patches whose channels each have mean 0 and variance 1 over all images and patches of a step, those of all ranks.

    All ranks must call it.

    Args:
        patches: Of this rank, as many as of any other, (B, L, T).
    """
    centred = patches.float() - _mean(patches.float())  # (B, L, T)
    return centred * (_mean(centred.square()) + _EPSILON).rsqrt()


def centered(patches: torch.Tensor, mean: str) -> torch.Tensor:
    """Patches without their mean, so that what they all share explains nothing, and of mean square length 1.

    All ranks must call it.

    Args:
        patches: Of this rank, as many as of any other, (B, L, T).
        mean: "batch": over all images and patches of a step, those of all ranks; "image": over the patches of each image, which
            leaves only what tells its patches apart.
    """
    patches = patches.float()
    centred = patches - (patches.mean(dim=1, keepdim=True) if mean == "image" else _mean(patches))  # (B, L, T)
    return centred * (_mean(centred.square()).sum() + _EPSILON).rsqrt()


def _shares(registers: torch.Tensor, patches: torch.Tensor, temperature: float) -> torch.Tensor:
    """How the registers share out each patch, (B, N, L)."""
    similarities = register_patch_similarities(registers, patches, grid=(1, patches.shape[1])).squeeze(2)  # (B, N, L)
    return (similarities / temperature).softmax(dim=1)


def _mean(patches: torch.Tensor) -> torch.Tensor:
    """Over the images and patches of all ranks, (B, L, T) -> (T)."""
    mean = patches.mean(dim=(0, 1))
    if dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean


def _cosine_loss(vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    with maybe_autocast(vectors.device.type, enabled=False):  # near 1 bfloat16 is coarser than what is left to learn
        return 1 - nn.functional.cosine_similarity(vectors.float(), targets.float(), dim=-1).mean()
