"""One step of the original DINO loop, written as it is there: what `benchmark_step.py` compares with, and the tests' oracle.

Source: facebookresearch/dino, main_dino.py (train_one_epoch, DINOLoss), utils.py (MultiCropWrapper, clip_gradients,
cancel_gradients_last_layer, get_params_groups). Without its half precision and its ranks: one process in float32.
B batch  V views  K prototypes
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_rats.modeling_rats import RatsProjectionHead
from training.networks import extract
from training.schedules import Schedule


class Network(nn.Module):
    def __init__(self, backbone: PreTrainedModel, head: RatsProjectionHead):
        super().__init__()
        self.backbone = backbone
        self.head = head


class OriginalLoop:
    """Student, teacher, centre and optimiser.

    Args:
        backbone: A ViT, or any backbone that `networks.extract` knows.
        head: DINO head.
        num_prototypes: K.
        student_temperature: Temperature of the student.
        center_momentum: EMA momentum of the centre.
        clip_gradient: Largest norm of a parameter's gradient; 0: off.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        head: RatsProjectionHead,
        num_prototypes: int,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
        clip_gradient: float = 3.0,
    ):
        self.student = Network(backbone, head).train()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.center = torch.zeros(1, num_prototypes, device=head.prototypes.weight.device)
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.clip_gradient = clip_gradient
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        regularized = [parameter for parameter in trained if parameter.ndim > 1]
        not_regularized = [parameter for parameter in trained if parameter.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": regularized}, {"params": not_regularized, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups)

    def step(self, views: list[torch.Tensor], schedule: Schedule, freezes_last_layer: bool = False) -> torch.Tensor:
        """One step on V views of B images, float32, (B, 3, height, width); returns the loss."""
        for index, group in enumerate(self.optimizer.param_groups):
            group["lr"] = schedule.learning_rate
            if index == 0:
                group["weight_decay"] = schedule.weight_decay
        teacher_output = self.forward_teacher(views[:2])
        student_output = self.forward_student(views)
        loss = self.loss(student_output, teacher_output, schedule.teacher_temperature, len(views))
        self.optimizer.zero_grad()
        self.backward(loss)
        self.clip()
        if freezes_last_layer:
            self.student.head.prototypes.weight.grad = None
        self.step_optimizer()
        self.follow(schedule.teacher_momentum)
        return loss.detach()

    def forward_teacher(self, views: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return self.forward(self.teacher, views)

    def forward_student(self, views: list[torch.Tensor]) -> torch.Tensor:
        return self.forward(self.student, views)

    def forward(self, network: Network, views: list[torch.Tensor]) -> torch.Tensor:
        """Logits of all views, (V * B, K)."""
        sizes = torch.tensor([view.shape[-1] for view in views])
        ends = torch.cumsum(torch.unique_consecutive(sizes, return_counts=True)[1], 0).tolist()
        start, output = 0, torch.empty(0, device=views[0].device)
        for end in ends:
            output = torch.cat((output, extract(network.backbone, torch.cat(views[start:end])).pooled))
            start = end
        return self.run_head(network, output)

    def run_head(self, network: Network, pooled: torch.Tensor) -> torch.Tensor:
        return network.head(pooled)

    def loss(self, student_output: torch.Tensor, teacher_output: torch.Tensor, temperature: float, views: int) -> torch.Tensor:
        student_out = (student_output / self.student_temperature).chunk(views)
        teacher_out = torch.softmax((teacher_output - self.center) / temperature, dim=-1).detach().chunk(2)
        total_loss, terms = student_output.new_zeros(()), 0
        for teacher_index, target in enumerate(teacher_out):
            for view in range(len(student_out)):
                if view == teacher_index:
                    continue
                loss = torch.sum(-target * torch.log_softmax(student_out[view], dim=-1), dim=-1)
                total_loss = total_loss + loss.mean()
                terms += 1
        batch_center = teacher_output.mean(dim=0, keepdim=True)
        self.center = self.center * self.center_momentum + batch_center * (1 - self.center_momentum)
        return total_loss / terms

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def clip(self) -> None:
        if not self.clip_gradient:
            return
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                norm = parameter.grad.norm(2)
                coefficient = self.clip_gradient / (norm + 1e-6)
                if coefficient < 1:
                    parameter.grad.mul_(coefficient)

    def step_optimizer(self) -> None:
        self.optimizer.step()

    def follow(self, momentum: float) -> None:
        with torch.no_grad():
            for student, teacher in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                teacher.mul_(momentum).add_((1 - momentum) * student.detach())
