"""The DINO loss between views (arXiv 2104.14294; dino/main_dino.py, DINOLoss).

B batch  V views  G global views  K prototypes
"""

import torch
import torch.distributed as dist
from torch import nn


class DinoLoss(nn.Module):
    r"""Cross-entropy of the student's views with the teacher's global views, over all pairs of different views.

    With p_g = softmax((t_g - c) / teacher temperature) for the teacher's logits t_g and the centre c, and
    q_v = softmax(s_v / student temperature) for the student's logits s_v, this is, slow and obvious:

        total, pairs = 0, 0
        for g in range(G):
            for v in range(V):
                if v != g:
                    total += -(p[g] * log(q[v])).sum(-1).mean()
                    pairs += 1
        return total / pairs

    Here each view needs one logsumexp: as p_g sums to 1, -(p_g log q_v) = logsumexp(s_v) - p_g s_v.

    The targets are centred by an exponential moving average of the teacher's logits over all ranks (DINO), updated after
    the loss, or balanced by three iterations of Sinkhorn-Knopp (SwAV; DINOv2 calls the setting `centering`), which has no
    state.

    Args:
        num_prototypes: K.
        student_temperature: DINO: 0.1.
        centering: "centering" or "sinkhorn_knopp".
        center_momentum: DINO: 0.9.
    """

    center: torch.Tensor

    def __init__(
        self,
        num_prototypes: int,
        student_temperature: float = 0.1,
        centering: str = "centering",
        center_momentum: float = 0.9,
    ):
        super().__init__()
        self.student_temperature = student_temperature
        self.centering = centering
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(num_prototypes))
        self.batch_center: torch.Tensor | None = None  # (K,), of the newest targets

    def forward(self, student_logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """
        Args:
            student_logits: Logits of all views, the global ones first, (V, B, K).
            targets: Teacher probabilities of the global views, (G, B, K).

        Returns:
            The mean loss over the pairs and the batch, a scalar.
        """
        views, global_views = student_logits.shape[0], targets.shape[0]
        logits = student_logits.float() / self.student_temperature  # (V, B, K)
        target_sum = targets.sum(dim=0, keepdim=True).repeat(views, 1, 1)  # (V, B, K)
        target_sum[:global_views] -= targets  # no view is its own target
        pairs_of_view = torch.full((views, 1), float(global_views), device=logits.device)  # (V, 1)
        pairs_of_view[:global_views] -= 1
        losses = pairs_of_view * logits.logsumexp(dim=-1) - (target_sum * logits).sum(dim=-1)  # (V, B)
        return losses.sum() / (pairs_of_view.sum() * logits.shape[1])

    @torch.no_grad()
    def targets(self, teacher_logits: torch.Tensor, teacher_temperature: float) -> torch.Tensor:
        """Probabilities that the student is to match: (G, B, K) -> (G, B, K). The centre moves with `update_center`."""
        logits = teacher_logits.float()
        if self.centering == "sinkhorn_knopp":
            return torch.stack([sinkhorn_knopp(view, teacher_temperature) for view in logits])
        targets = torch.softmax((logits - self.center) / teacher_temperature, dim=-1)
        self.batch_center = _mean_over_ranks(logits.mean(dim=(0, 1)))  # (K,)
        return targets

    @torch.no_grad()
    def update_center(self) -> None:
        """Moves the centre towards the logits of the newest targets; apart, so that a step that is skipped leaves it."""
        if self.batch_center is not None:
            self.center.lerp_(self.batch_center, 1 - self.center_momentum)


@torch.no_grad()
def sinkhorn_knopp(logits: torch.Tensor, temperature: float, iterations: int = 3) -> torch.Tensor:
    """Balanced assignment of the images of all ranks to the prototypes (dinov2/loss, sinkhorn_knopp_teacher).

    Departs from DINOv2, which balances both global views together: here each view is balanced by itself.

    Args:
        logits: Teacher logits of one view on this rank, (B, K).
        temperature: Teacher temperature.
        iterations: Alternations of making the prototypes' and the images' sums equal.

    Returns:
        Probabilities, (B, K), each row summing to 1.
    """
    # In logarithms: exp(cosine / temperature) spans more than float32 holds for cosines in [-1, 1] at 0.02.
    log_assignment = logits / temperature  # (B, K)
    for _ in range(iterations):
        log_assignment = log_assignment - _logsumexp_over_ranks(log_assignment)
        log_assignment = log_assignment.log_softmax(dim=1)
    return log_assignment.exp()


def _logsumexp_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Over the images of all ranks, (B, K) -> (1, K)."""
    own = tensor.logsumexp(dim=0, keepdim=True)
    largest = _max_over_ranks(own.clone())
    return largest + _sum_over_ranks((own - largest).exp()).log()


def _many_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    if _many_ranks():
        dist.all_reduce(tensor)
    return tensor


def _max_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    if _many_ranks():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def _mean_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    return _sum_over_ranks(tensor) / (dist.get_world_size() if _many_ranks() else 1)
