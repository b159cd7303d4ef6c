"""What a step of pretraining reads and changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from training.dino_loss import DinoLoss
from training.run_state import Run
from training.settings import DataSettings, EvaluationSettings, ModelSettings, Settings, TrainingSettings
from training.sharding import load_weights, weights_on_main


@dataclass(kw_only=True)
class PretrainingRun(Run):
    """A student, the teacher that follows it, and the loss with its centre."""

    kind = "pretraining"
    may_change = ("collapse_patience",)

    settings: Settings
    teacher: torch.nn.Module
    loss: DinoLoss

    def own_state(self) -> dict[str, Any]:
        return {"teacher": weights_on_main(self.teacher), "loss": self.loss.state_dict()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        load_weights(self.teacher, state["teacher"])
        self.loss.load_state_dict(state["loss"])

    def default_settings(self) -> Settings:
        return Settings(ModelSettings(), DataSettings(), TrainingSettings(), EvaluationSettings())
