"""DINO pretraining of RATS: images in, a transformers folder out.

    accelerate launch training/pretrain.py [RECIPE] [--setting value ...]

Without a recipe it renders the embedded data set and runs recipes/quickstart.yaml. `training/README.md` tells the rest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # or a foreign `training` could win over this one

import errno
from contextlib import nullcontext
from typing import cast

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed

from modeling_rats import RatsModel, load_vit_weights
from training import checkpoint
from training.arguments import parse
from training.curves import draw_curves
from training.dino_loss import DinoLoss
from training.dry_run import describe
from training.export import asked_for, build_processor, export, teacher_model
from training.hand_over import check_push, drawn, push
from training.koleo import koleo_loss
from training.launch import choose_attention, start_accelerator
from training.monitors import Reporter, StepFigures
from training.networks import build_backbone_and_head, build_config
from training.optimizer import build_optimizer, clip_gradients, set_schedule
from training.periodic_evaluation import PeriodicEvaluation
from training.preemption import AGREEMENT_STEPS, EXIT_CODE, StopSignals, shielded
from training.run_state import Run, find_state, restore, save_checkpoint
from training.schedules import schedule_at
from training.settings import Settings
from training.sharding import prepare
from training.sources import open_stream
from training.streaming import Batch, UnreadableImagesError, ViewStream, batches
from training.student_teacher import MultiCropNetwork, build_teacher, update_teacher
from training.trackers import check_trackers, start_trackers


def main(arguments: list[str] | None = None) -> Path:
    """Pretrains as the recipe and the command line say; returns the exported model folder, of a dry run the output folder.

    Raises:
        SystemExit: With a message, if something is wrong; with `EXIT_CODE` if a signal has stopped the run and it has saved.
    """
    settings = parse(arguments)
    try:
        check_trackers(settings.training.report_to)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    accelerator = start_accelerator(settings.training)
    output = Path(settings.training.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    try:
        if settings.training.dry_run:
            accelerator.print(describe(settings, open_stream(accelerator, settings), accelerator.num_processes))
            return output
        check_push(settings.training, unfit=twin(settings.model.model_type))
        run = build_run(accelerator, settings)
        state = find_state(run, output)
        evaluation = PeriodicEvaluation(accelerator, settings, output, start_step=state["step"] if state else 0)
        stream = open_stream(accelerator, settings)
        if state:
            restore(run, stream, state)
        start_trackers(accelerator, settings, output, run.step)
    except (FileNotFoundError, ValueError, UnreadableImagesError) as error:  # what the user can mend, without a traceback
        raise SystemExit(str(error)) from error
    try:
        with StopSignals() as stop_signals:
            train(run, stream, evaluation, output, stop_signals)
        folder = output / "model"
        export(run, folder)
        if accelerator.is_main_process:
            draw_curves(output / "log.jsonl", output / "curves.png")
            accelerator.print(f"Model folder: {folder}")
    except UnreadableImagesError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise SystemExit(
            f"step {run.step}: {error}. Make room in {output} and start the same command again to go on from "
            f"{checkpoint.find('auto', output / 'checkpoints') or 'the start'}."
        ) from error
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if settings.training.push_to_hub and accelerator.is_main_process:  # last: the others do not wait for a long upload
        message = f"RATS pretrained for {settings.training.steps:,} steps"
        print(f"Pushed: {push(folder, settings.training, message, drawn(output))}")
    return folder


def twin(model_type: str) -> str | None:
    """Why a model is not pushed: it is no RATS."""
    return None if model_type == "rats" else f"model_type={model_type} is a twin for comparisons"


def build_run(accelerator: Accelerator, settings: Settings) -> Run:
    training = settings.training
    config = build_config(settings.model, settings.data.global_crop_size)
    backbone, head = build_backbone_and_head(settings.model.model_type, config)
    resumed = checkpoint.find(training.resume, Path(training.output_dir) / "checkpoints") is not None
    if training.warm_start and not resumed:
        accelerator.print(load_vit_weights(cast(RatsModel, backbone), training.warm_start))
    backbone.set_attn_implementation(choose_attention(training.attn_implementation, accelerator.device))
    network = MultiCropNetwork(backbone, head).train()
    networks = network, build_teacher(network)
    if training.gradient_checkpointing:
        backbone.activation_checkpointing_enable()
    if training.torch_compile:
        for network in networks:
            network.backbone.compile(dynamic=False)  # one graph for each size of view
    student, teacher = prepare(accelerator, *networks)
    loss = DinoLoss(config.num_prototypes, training.student_temperature, training.centering, training.center_momentum)
    set_seed(training.seed, device_specific=True)  # drop path differs between ranks
    return Run(accelerator, student, teacher, loss.to(accelerator.device), build_optimizer(student), settings)


def train(run: Run, stream: ViewStream, evaluation: PeriodicEvaluation, output: Path, stop_signals: StopSignals) -> None:
    """Steps until the last, or until a signal."""
    settings, accelerator = run.settings.training, run.accelerator
    with shielded():
        stream_batches = batches(stream, settings.batch_size // accelerator.num_processes)
    agreement_steps = 1 if accelerator.num_processes == 1 else AGREEMENT_STEPS
    reporter = Reporter(run, output)
    if evaluation.is_owed(run.step, run.step == settings.steps):
        measure(run, evaluation, output, views=None)
    while run.step < settings.steps:
        with reporter.waiting():
            batch = next(stream_batches)
        stream.positions[batch.worker] = batch.position
        run.broken_images += len(batch.broken)
        figures = train_step(run, batch)
        run.step += 1
        reporter.step(run, figures, batch.broken)
        ends = run.step == settings.steps
        stops = not ends and run.step % agreement_steps == 0 and stop_signals.agreed(accelerator)
        if ends or run.step % settings.log_steps == 0:
            reporter.write(run, figures, batch)
            if asked_for(run, output):
                export(run, output / "model")
        if ends or stops or (figures.is_finite and run.step % settings.checkpoint_steps == 0):
            save_checkpoint(run, stream, output)
        if evaluation.is_due(run.step, ends) and not stops:
            with reporter.paused():
                measure(run, evaluation, output, batch.views[0])
        if stops:
            again = "the same command" if settings.resume == "auto" else "the same command with --resume auto"
            accelerator.print(f"Stopped by a signal and saved at step {run.step}; {again} goes on from there.")
            accelerator.end_training()
            raise SystemExit(EXIT_CODE)
    reporter.close()


def measure(run: Run, evaluation: PeriodicEvaluation, output: Path, views: torch.Tensor | None) -> None:
    """Scores and draws the teacher as it is now, and the curves so far."""
    model, processor = teacher_model(run), build_processor(run.settings)
    scores = evaluation.measure(run.step, model, processor, views)
    run.accelerator.log(scores, step=run.step)
    if run.accelerator.is_main_process:
        draw_curves(output / "log.jsonl", output / "curves.png")


def train_step(run: Run, batch: Batch) -> StepFigures:
    """One optimiser step, then the teacher's. A gradient that is not finite changes no weight."""
    settings, step, accelerator = run.settings.training, run.step, run.accelerator
    schedule = schedule_at(step, settings)
    set_schedule(run.optimizer, schedule.learning_rate, schedule.weight_decay)

    views = [view.to(accelerator.device, non_blocking=True) for view in batch.views]  # V x (B, height, width, 3)
    parts = list(zip(*(view.chunk(settings.gradient_accumulation_steps) for view in views), strict=True))
    with torch.no_grad(), accelerator.autocast():
        teacher_logits = torch.cat([run.teacher(part[:2]).logits for part in parts], dim=1)  # (G, B, K)
    targets = run.loss.targets(teacher_logits, schedule.teacher_temperature)  # (G, B, K), of the whole batch at once
    loss, koleo = torch.zeros(2, device=accelerator.device)
    for index, (part, part_targets) in enumerate(zip(parts, targets.chunk(len(parts), dim=1), strict=True), 1):
        with nullcontext() if index == len(parts) else accelerator.no_sync(run.student):
            with accelerator.autocast():
                outputs = run.student(part)
            part_loss = run.loss(outputs.logits, part_targets) / len(parts)
            part_koleo = koleo_loss(outputs.registers) / len(parts) if settings.koleo_weight else koleo.new_zeros(())
            accelerator.backward(part_loss + settings.koleo_weight * part_koleo)
        loss, koleo = loss + part_loss.detach(), koleo + part_koleo.detach()

    if accelerator.scaler:
        accelerator.scaler.unscale_(run.optimizer)
    gradient_norm = clip_gradients(run.student, settings.clip_gradient)
    student = accelerator.unwrap_model(run.student)
    if step < settings.freeze_last_layer_steps:
        student.head.prototypes.weight.grad = None  # after clipping, as DINO does
    is_finite = bool(gradient_norm.isfinite())  # the same on all ranks
    if is_finite:
        run.optimizer.step()
        run.loss.update_center()
        update_teacher(run.teacher, student, schedule.teacher_momentum)
    else:
        run.skipped_steps += 1
    if accelerator.scaler:
        accelerator.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return StepFigures(loss, koleo, gradient_norm, is_finite, targets, schedule)


if __name__ == "__main__":
    transformers.logging.disable_progress_bar()
    main()
