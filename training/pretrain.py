"""DINO pretraining of RATS: images in, a transformers folder out.

    accelerate launch training/pretrain.py [RECIPE] [--setting value ...]

Without a recipe it renders the embedded data set and runs recipes/quickstart.yaml. `training/README.md` tells the rest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # or a foreign `training` could win over this one

from collections.abc import Sequence
from contextlib import nullcontext
from typing import cast

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedModel

from modeling_rats import RatsModel, load_vit_weights
from training import checkpoint
from training.arguments import parse
from training.dino_loss import DinoLoss
from training.distillation_loss import centered, register_bottleneck_loss
from training.dry_run import describe
from training.export import export, model_of
from training.koleo import koleo_loss
from training.launch import choose_attention
from training.loop import Program, run_program
from training.monitors import PretrainingReporter, StepFigures
from training.networks import build_backbone_and_head, build_config
from training.optimizer import build_optimizer, clip_gradients, set_schedule
from training.pretraining_run import PretrainingRun
from training.run_state import take_step
from training.schedules import schedule_at
from training.settings import Settings, TrainingSettings
from training.sharding import prepare
from training.sources import open_stream
from training.streaming import Batch, ViewStream
from training.student_teacher import MultiCropNetwork, ViewOutputs, build_teacher, update_teacher


class Pretraining(Program[PretrainingRun, StepFigures]):
    """What DINO supplies beside the loop. The teacher is what it makes."""

    trained = "pretrained"

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.settings: Settings = settings

    def open_stream(self, accelerator: Accelerator) -> ViewStream:
        return open_stream(accelerator, self.settings)

    def describe(self, accelerator: Accelerator, stream: ViewStream) -> str:
        return describe(self.settings, stream, accelerator.num_processes)

    def unfit(self) -> str | None:
        return twin(self.settings.model.model_type)

    def build_run(self, accelerator: Accelerator) -> PretrainingRun:
        return build_run(accelerator, self.settings)

    def train_step(self, run: PretrainingRun, batch: Batch) -> StepFigures:
        return train_step(run, batch)

    def report(self, run: PretrainingRun, output: Path) -> PretrainingReporter:
        return PretrainingReporter(run, output)

    def model(self, run: PretrainingRun) -> PreTrainedModel:
        return model_of(run, run.teacher)

    def export(self, run: PretrainingRun, folder: Path) -> None:
        export(run, run.teacher, folder)


def main(arguments: list[str] | None = None) -> Path:
    """Pretrains as the recipe and the command line say; returns the exported model folder, of a dry run the output folder.

    Raises:
        SystemExit: With a message, if something is wrong; with `EXIT_CODE` if a signal has stopped the run and it has saved.
    """
    return run_program(Pretraining(parse(arguments)))


def twin(model_type: str) -> str | None:
    """Why a model is not pushed: it is no RATS."""
    return None if model_type == "rats" else f"model_type={model_type} is a twin for comparisons"


def build_run(accelerator: Accelerator, settings: Settings) -> PretrainingRun:
    training = settings.training
    config = build_config(settings.model, settings.data.global_crop_size)
    backbone, head = build_backbone_and_head(settings.model.model_type, config)
    resumed = checkpoint.find(training.resume, Path(training.output_dir) / "checkpoints") is not None
    if training.warm_start and not resumed:
        accelerator.print(load_vit_weights(cast(RatsModel, backbone), training.warm_start))
    backbone.set_attn_implementation(choose_attention(training.attn_implementation, accelerator.device))
    network = MultiCropNetwork(backbone, head, training.register_bottleneck_weight > 0).train()
    networks = network, build_teacher(network)
    if training.gradient_checkpointing:
        backbone.activation_checkpointing_enable()
    if training.torch_compile:
        for network in networks:
            network.backbone.compile(dynamic=False)  # one graph for each size of view
    student, teacher = prepare(accelerator, *networks)
    loss = DinoLoss(config.num_prototypes, training.student_temperature, training.centering, training.center_momentum)
    set_seed(training.seed, device_specific=True)  # drop path differs between ranks
    return PretrainingRun(
        accelerator=accelerator,
        student=student,
        optimizer=build_optimizer(student),
        settings=settings,
        teacher=teacher,
        loss=loss.to(accelerator.device),
    )


def train_step(run: PretrainingRun, batch: Batch) -> StepFigures:
    """One optimiser step, then the teacher's. A gradient that is not finite changes no weight."""
    settings, step, accelerator = run.settings.training, run.step, run.accelerator
    schedule = schedule_at(step, settings)
    set_schedule(run.optimizer, schedule.learning_rate, schedule.weight_decay)

    views = [view.to(accelerator.device, non_blocking=True) for view in batch.views]  # V x (B, height, width, 3)
    parts = list(zip(*(view.chunk(settings.gradient_accumulation_steps) for view in views), strict=True))
    with torch.no_grad(), accelerator.autocast():
        of_teacher = [(said.logits, said.patches) for said in (run.teacher(part[:2]) for part in parts)]
    # Targets are those of the whole batch at once.
    targets = run.loss.targets(
        torch.cat([logits for logits, _ in of_teacher], dim=1), schedule.teacher_temperature
    )  # (G, B, K)
    patch_targets = patch_targets_of([patches for _, patches in of_teacher], settings)
    loss, koleo, bottleneck = torch.zeros(3, device=accelerator.device)
    of_parts = zip(parts, targets.chunk(len(parts), dim=1), patch_targets, strict=True)
    for index, (part, part_targets, part_patches) in enumerate(of_parts, 1):
        with nullcontext() if index == len(parts) else accelerator.no_sync(run.student):
            with accelerator.autocast():
                outputs = run.student(part)
            part_loss = run.loss(outputs.logits, part_targets) / len(parts)
            part_koleo = koleo_loss(outputs.registers) / len(parts) if settings.koleo_weight else koleo.new_zeros(())
            part_bottleneck = bottleneck_loss(outputs, part_patches, settings) / len(parts)
            accelerator.backward(
                part_loss + settings.koleo_weight * part_koleo + settings.register_bottleneck_weight * part_bottleneck
            )
        loss, koleo = loss + part_loss.detach(), koleo + part_koleo.detach()
        bottleneck = bottleneck + part_bottleneck.detach()

    if accelerator.scaler:
        accelerator.scaler.unscale_(run.optimizer)
    gradient_norm = clip_gradients(run.student, settings.clip_gradient)
    student = accelerator.unwrap_model(run.student)
    if step < settings.freeze_last_layer_steps:
        student.head.prototypes.weight.grad = None  # after clipping, as DINO does
    is_finite = take_step(run, gradient_norm)
    if is_finite:
        run.loss.update_center()
        update_teacher(run.teacher, student, schedule.teacher_momentum)
    return StepFigures(loss, koleo, bottleneck, gradient_norm, is_finite, targets, schedule)


def patch_targets_of(of_parts: list[torch.Tensor | None], settings: TrainingSettings) -> Sequence[torch.Tensor | None]:
    """The teacher's patches without their mean, which the registers are to explain, of each part of a batch, (G * B, L, D)."""
    patches = [one for one in of_parts if one is not None]
    return centered(torch.cat(patches), settings.register_bottleneck_mean).chunk(len(of_parts)) if patches else of_parts


def bottleneck_loss(outputs: ViewOutputs, targets: torch.Tensor | None, settings: TrainingSettings) -> torch.Tensor:
    """How badly the student's registers explain the teacher's patches of the same views, a scalar; 0 where that is off.

    Departs from the paper and from DINO, which have no such loss.
    """
    _, _, registers, patches, projected = outputs
    if targets is None or registers is None or patches is None or projected is None:
        return outputs.logits.new_zeros(())
    return register_bottleneck_loss(
        registers, patches, projected, targets, settings.register_bottleneck_temperature, settings.register_bottleneck_error
    )


if __name__ == "__main__":
    transformers.logging.disable_progress_bar()
    main()
