"""What a line of the log says of the teacher: how sure it is, how rich its features are, how its registers share an image.

G global views  B batch  L patches  N registers  D hidden  K prototypes
"""

import math

import torch
from torch import nn

from modeling_rats.part_maps import part_map, register_patch_similarities


@torch.no_grad()
def teacher_figures(
    teacher: nn.Module, global_view: torch.Tensor, targets: torch.Tensor, max_images: int = 32
) -> dict[str, float]:
    """Figures of the teacher on one batch, from one forward of a few of its images. The caller chooses the autocast.

    Args:
        teacher: A MultiCropNetwork in evaluation mode. Under FSDP all ranks must call this.
        global_view: One global view of the batch, uint8, (B, height, width, 3).
        targets: Teacher probabilities of the batch, (G, B, K).
        max_images: How many of the first images the forward sees.

    Returns:
        `teacher_entropies`, `rankme`, and `register_figures` of a network with registers.
    """
    _, pooled, registers, patches, _ = teacher([global_view[:max_images]], with_patches=True)
    figures = {**teacher_entropies(targets), "rankme": rankme(pooled[0])}
    if registers is not None and patches is not None:
        figures |= register_figures(registers, patches)
    return figures


def teacher_entropies(targets: torch.Tensor) -> dict[str, float]:
    """Entropies of the teacher's probabilities, in nats; ln K is the entropy of the uniform distribution.

    Both near ln K: collapse to the uniform output. Both near 0: collapse to one prototype. Healthy: `teacher_entropy` falls
    below ln K while `teacher_marginal_entropy`, that of the mean over the batch, stays high.

    Args:
        targets: Teacher probabilities, (G, B, K).
    """
    marginal = targets.flatten(0, 1).mean(dim=0)  # (K,)
    return {
        "teacher_entropy": torch.special.entr(targets).sum(dim=-1).mean().item(),
        "teacher_marginal_entropy": torch.special.entr(marginal).sum().item(),
    }


def rankme(features: torch.Tensor) -> float:
    """RankMe (arXiv 2210.02885, equation 1): in how many directions features spread, a rank without a threshold.

    exp of the entropy of p, where p are the singular values of the features divided by their sum: 1 if all features lie on
    one line, at most min(B, D). Compare it at equal B only.

    Args:
        features: One per image, not centred, (B, D).

    Returns:
        The rank; nan if a feature is not finite.
    """
    if not features.isfinite().all():
        return math.nan  # which the decomposition refuses
    singular_values = torch.linalg.svdvals(features.float())
    shares = singular_values / singular_values.sum().clamp_min(torch.finfo(torch.float32).tiny)  # all features may be 0
    return torch.special.entr(shares).sum().exp().item()


def register_figures(registers: torch.Tensor, patches: torch.Tensor) -> dict[str, float]:
    """How registers share the patches when each patch goes to the register of the largest cosine, as in a part map.

    Args:
        registers: Register tokens, (B, N, D).
        patches: Patch tokens, (B, L, D).

    Returns:
        `registers_used`, the share of the N registers that win a patch in any of these images; `registers_per_image`, how many
        win one in an image, on average; and, of two registers or more, `register_cosine`, the mean cosine between different
        registers of an image, 1 if all are alike.
    """
    number = registers.shape[1]
    winners = part_map(register_patch_similarities(registers, patches, grid=(1, patches.shape[1]))).flatten(1)  # (B, L)
    wins = torch.zeros(registers.shape[:2], dtype=torch.bool, device=registers.device)
    wins.scatter_(1, winners, True)  # (B, N)
    figures = {
        "registers_used": wins.any(dim=0).float().mean().item(),
        "registers_per_image": wins.sum(dim=1).float().mean().item(),
    }
    if number > 1:
        # The squared norm of a sum of N unit vectors is N plus the cosines of all ordered pairs of different ones.
        sums = nn.functional.normalize(registers.float(), dim=-1).sum(dim=1)  # (B, D)
        cosines = (sums.square().sum(dim=-1) - number) / (number * (number - 1))  # (B,)
        figures["register_cosine"] = cosines.mean().item()
    return figures
