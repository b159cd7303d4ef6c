"""Distillation of a frozen ViT into RATS: images and a pretrained teacher in, a transformers folder out.

    accelerate launch training/distill.py RECIPE --teacher NAME_OR_FOLDER [--setting value ...]

`training/README.md` tells the rest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # or a foreign `training` could win over this one

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedModel

from modeling_rats import RatsModel, WarmStartReport, load_vit_weights
from training import checkpoint
from training.crops import Crops, ViewSettings
from training.distill_arguments import parse
from training.distill_dry_run import describe
from training.distill_monitors import SHOWN_IMAGES, DistillationReporter, DistillFigures
from training.distill_settings import DistillDataSettings, DistillSettings, DistillTrainingSettings
from training.distillation_loss import (
    centered,
    global_loss,
    patch_loss,
    register_balance_loss,
    register_bottleneck_loss,
    register_code_loss,
    standardized,
)
from training.distillation_network import DistillationOutputs, build_student
from training.distillation_run import DistillationRun
from training.export import export, model_of
from training.frozen_teacher import FrozenTeacher, check_features, has_random_weights, load_teacher
from training.launch import choose_attention
from training.loop import Program, run_program
from training.optimizer import build_optimizer, clip_gradients_together, set_schedule
from training.ranks import on_all_ranks
from training.run_state import take_step
from training.schedules import optimizer_schedule_at
from training.sharding import prepare_student
from training.sources import open_views
from training.streaming import Batch, ViewStream


class Distillation(Program[DistillationRun, DistillFigures]):
    """What distillation supplies beside the loop. The student is what it makes."""

    trained = "distilled"

    def __init__(self, settings: DistillSettings):
        super().__init__(settings)
        self.settings: DistillSettings = settings

    def open_stream(self, accelerator: Accelerator) -> ViewStream:
        return open_views(accelerator, self.settings, crops_of(self.settings.data))

    def describe(self, accelerator: Accelerator, stream: ViewStream) -> str:
        return describe(self.settings, open_teacher(accelerator, self.settings), stream, accelerator.num_processes)

    def unfit(self) -> str | None:
        model_type = self.settings.model.model_type
        return None if model_type == "rats" else f"model_type={model_type} is a variant for comparisons"

    def build_run(self, accelerator: Accelerator) -> DistillationRun:
        return build_run(accelerator, self.settings)

    def train_step(self, run: DistillationRun, batch: Batch) -> DistillFigures:
        return train_step(run, batch)

    def report(self, run: DistillationRun, output: Path) -> DistillationReporter:
        return DistillationReporter(run, output)

    def model(self, run: DistillationRun) -> PreTrainedModel:
        return model_of(run, run.student)

    def export(self, run: DistillationRun, folder: Path) -> None:
        export(run, run.student, folder, origin={"teacher": run.teacher.record()})


def main(arguments: list[str] | None = None) -> Path:
    """Distils as the recipe and the command line say; returns the exported model folder, of a dry run the output folder.

    Raises:
        SystemExit: With a message, if something is wrong; with `EXIT_CODE` if a signal has stopped the run and it has saved.
    """
    return run_program(Distillation(parse(arguments)))


def crops_of(data: DistillDataSettings) -> Crops:
    """The views that student and teacher both see: a resized crop, a flip, light changes of colour, and no blur."""
    view = ViewSettings(
        data.global_crop_size,
        data.global_crops_scale,
        blur=0.0,
        solarize=0.0,
        jitter=data.color_jitter,
        jitter_probability=0.8 if any(data.color_jitter) else 0.0,
        grayscale=data.grayscale,
    )
    return Crops([view] * data.num_global_crops)


def open_teacher(accelerator: Accelerator, settings: DistillSettings) -> FrozenTeacher:
    """The teacher on this rank's device, tried on one view. All ranks must call it.

    Raises:
        ValueError: If it cannot teach.
    """

    def load() -> FrozenTeacher:
        training = settings.training
        bf16 = accelerator.mixed_precision == "bf16"
        with torch.random.fork_rng(devices=[]):  # the student's weights do not depend on what loading draws
            teacher = load_teacher(str(training.teacher), training.teacher_revision, accelerator.device, bf16)
        check_features(teacher, settings.data.global_crop_size, settings.model.patch_size)
        if has_random_weights(teacher) and accelerator.is_main_process:
            print(
                f"Warning: teacher={training.teacher} seems to have random weights (its LayerNorms are untouched); a student "
                "learns nothing of parts from it. Check that the folder holds trained weights.",
                file=sys.stderr,
            )
        return teacher

    return on_all_ranks(load)


def build_run(accelerator: Accelerator, settings: DistillSettings) -> DistillationRun:
    """
    Raises:
        ValueError: If settings and teacher do not fit together.
    """
    training, teacher = settings.training, open_teacher(accelerator, settings)
    network = build_student(settings, teacher.hidden_size).train()
    backbone = network.backbone
    resumed = checkpoint.find(training.resume, Path(training.output_dir) / "checkpoints") is not None
    if training.warm_start != "none" and not resumed:
        accelerator.print(start_warm(cast(RatsModel, backbone), training, teacher))
    backbone.set_attn_implementation(choose_attention(training.attn_implementation, accelerator.device))
    if training.gradient_checkpointing:
        backbone.activation_checkpointing_enable()
    if training.torch_compile:
        for model in (backbone, teacher.model):
            model.compile(dynamic=False)
    student = prepare_student(accelerator, network)
    set_seed(training.seed, device_specific=True)  # drop path differs between ranks
    return DistillationRun(
        accelerator=accelerator, student=student, optimizer=build_optimizer(student), settings=settings, teacher=teacher
    )


def start_warm(backbone: RatsModel, training: DistillTrainingSettings, teacher: FrozenTeacher) -> WarmStartReport:
    """Fills the student with the weights that `warm_start` names.

    Raises:
        ValueError: If they do not fit.
    """
    try:
        return load_vit_weights(backbone, teacher.model if training.warm_start == "teacher" else training.warm_start)
    except (OSError, ValueError) as error:
        which = f"warm_start={training.warm_start}" + (f" ({training.teacher})" * (training.warm_start == "teacher"))
        raise ValueError(f"{which}: {error} Or start with --warm_start none.") from error


class Targets(NamedTuple):
    """What the student is to say of B views; None where the loss is off.

    Attributes:
        patches: Of the teacher, standardised, (B, L, T).
        centered: Without their mean, (B, L, T).
        pooled: (B, T).
    """

    patches: torch.Tensor | None
    centered: torch.Tensor | None
    pooled: torch.Tensor | None


@torch.no_grad()
def targets_of(teacher: FrozenTeacher, parts: Sequence[torch.Tensor], settings: DistillSettings) -> list[Targets]:
    """The targets of each part of this rank's views, uint8, (B, height, width, 3); means are those of the whole step."""
    training, patch_size = settings.training, settings.model.patch_size
    through_registers = training.register_bottleneck_weight or training.register_code_weight
    features = [teacher.features(part, (part.shape[1] // patch_size, part.shape[2] // patch_size)) for part in parts]
    patches = torch.cat([one.patches for one in features])  # (all views, L, T)
    whole = (
        standardized(patches) if training.patch_weight else None,
        centered(patches, training.register_bottleneck_mean) if through_registers else None,
        torch.cat([one.pooled for one in features]) if training.global_weight else None,
    )
    none = [None] * len(parts)
    return [Targets(*one) for one in zip(*(none if own is None else own.chunk(len(parts)) for own in whole), strict=True)]


def losses_of(outputs: DistillationOutputs, targets: Targets, settings: DistillTrainingSettings) -> dict[str, torch.Tensor]:
    """The losses that are on, before their weights, by the names that the log has for them; scalars."""
    temperature, balanced = settings.register_bottleneck_temperature, settings.register_balance_weight > 0
    registers, patches, projected_patches, projected_registers, projected_pooled, codes = outputs
    losses = {}
    if projected_patches is not None and targets.patches is not None:
        losses["patch_loss"] = patch_loss(projected_patches, targets.patches)
    if projected_registers is not None and patches is not None and targets.centered is not None:
        losses["register_bottleneck_loss"] = register_bottleneck_loss(
            registers, patches, projected_registers, targets.centered, temperature, settings.register_bottleneck_error
        )
    if codes is not None and patches is not None and targets.centered is not None:
        losses["register_code_loss"] = register_code_loss(
            registers, patches, codes, targets.centered, temperature, settings.register_bottleneck_error
        )
    if balanced and patches is not None:
        losses["register_balance_loss"] = register_balance_loss(registers, patches, temperature)
    if projected_pooled is not None and targets.pooled is not None:
        losses["global_loss"] = global_loss(projected_pooled, targets.pooled)
    return losses


def train_step(run: DistillationRun, batch: Batch) -> DistillFigures:
    """One optimiser step. A gradient that is not finite changes no weight."""
    settings, accelerator = run.settings.training, run.accelerator
    schedule = optimizer_schedule_at(run.step, settings)
    set_schedule(run.optimizer, schedule.learning_rate, schedule.weight_decay)

    views = torch.cat([view.to(accelerator.device, non_blocking=True) for view in batch.views])  # (V * B, height, width, 3)
    parts = views.chunk(settings.gradient_accumulation_steps)
    losses: dict[str, torch.Tensor] = {}
    for index, (part, targets) in enumerate(zip(parts, targets_of(run.teacher, parts, run.settings), strict=True), 1):
        with nullcontext() if index == len(parts) else accelerator.no_sync(run.student):
            with accelerator.autocast():
                outputs = run.student(part)
            own = losses_of(outputs, targets, settings)
            accelerator.backward(weighted(own, settings) / len(parts))
        losses = {name: losses.get(name, 0) + loss.detach() / len(parts) for name, loss in own.items()}

    if accelerator.scaler:
        accelerator.scaler.unscale_(run.optimizer)
    gradient_norm = clip_gradients_together(run.student, settings.clip_gradient)
    is_finite = take_step(run, gradient_norm)
    registers = outputs.registers[:SHOWN_IMAGES].detach()
    patches = None if outputs.patches is None else outputs.patches[:SHOWN_IMAGES].detach()
    return DistillFigures(weighted(losses, settings), losses, gradient_norm, is_finite, schedule, registers, patches)


def weighted(losses: dict[str, torch.Tensor], settings: DistillTrainingSettings) -> torch.Tensor:
    """The sum of the losses, each with its weight, a scalar."""
    return torch.stack([getattr(settings, name.replace("_loss", "_weight")) * loss for name, loss in losses.items()]).sum()


if __name__ == "__main__":
    transformers.logging.disable_progress_bar()
    main()
