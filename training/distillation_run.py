"""What a step of distillation reads and changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.distill_settings import DistillDataSettings, DistillSettings, DistillTrainingSettings, StudentSettings
from training.frozen_teacher import FrozenTeacher
from training.run_state import Run
from training.settings import EvaluationSettings


@dataclass(kw_only=True)
class DistillationRun(Run):
    """A student with its projections, and a teacher that never changes, of which a checkpoint holds but name and hash."""

    kind = "distillation"
    may_change = ("teacher", "teacher_revision")  # what must not change are its weights, wherever they lie

    settings: DistillSettings
    teacher: FrozenTeacher

    def own_state(self) -> dict[str, Any]:
        return {"frozen_teacher": self.teacher.record()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """The teacher is there already, and `check` has found it to be the same."""

    def default_settings(self) -> DistillSettings:
        return DistillSettings(StudentSettings(), DistillDataSettings(), DistillTrainingSettings(), EvaluationSettings())

    def check(self, state: Mapping[str, Any]) -> None:
        self.teacher.refuse_another(state["frozen_teacher"])
