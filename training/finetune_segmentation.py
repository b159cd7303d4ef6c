"""Fine-tuning for segmentation: images with true masks in, a RatsForUniversalSegmentation folder with its scores out.

    accelerate launch training/finetune_segmentation.py RECIPE [--setting value ...]

`docs/segmentation.md` tells the rest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # or a foreign `training` could win over this one

import math
from contextlib import nullcontext
from dataclasses import asdict
from typing import NamedTuple

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.errors import StrictDataclassError
from transformers import Mask2FormerImageProcessor

from evaluation import universal_segmentation
from evaluation.segmentation_data import SegmentationData
from evaluation.universal_segmentation import check_labels, score_segmentation
from hub_cards.assets import Assets
from hub_cards.card import write_card
from modeling_rats import RatsForUniversalSegmentation
from modeling_rats.configuration_rats import height_width
from training.curves import draw_curves
from training.export import training_record
from training.finetune_arguments import parse
from training.finetune_settings import (
    SegmentationSettings,
)
from training.hand_over import check_push, push
from training.json_log import JsonLog
from training.launch import choose_attention, start_accelerator
from training.layer_decay import build_layer_decay_optimizer, set_learning_rate
from training.preemption import AGREEMENT_STEPS, EXIT_CODE, StopSignals, shielded
from training.progress import Progress
from training.run_settings import flat
from training.schedules import segmentation_learning_rate
from training.segmentation_batches import SegmentBatch
from training.segmentation_export import build_segmentation_processor, evaluation_arguments, export_segmentation
from training.segmentation_sources import open_split, training_batches
from training.segmentation_state import SegmentationRun, find_state, restore, save_checkpoint, unwrapped
from training.source_rows import UnreadableImagesError
from training.trackers import check_trackers, start_trackers


class SegmentationFigures(NamedTuple):
    """What a step has measured.

    Attributes:
        loss: Of this rank's images, a scalar.
        gradient_norm: Global norm before clipping, a scalar, the same on all ranks.
        is_finite: Whether that norm is, and the step was taken.
        learning_rate: Of the head.
    """

    loss: torch.Tensor
    gradient_norm: torch.Tensor
    is_finite: bool
    learning_rate: float


def main(arguments: list[str] | None = None) -> Path:
    """Fine-tunes as the recipe and the command line say; returns the exported model folder.

    Raises:
        SystemExit: With a message, if something is wrong; with `EXIT_CODE` if a signal has stopped the run and it has saved.
    """
    settings = parse(arguments)
    try:
        check_trackers(settings.training.report_to)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    accelerator = start_accelerator(settings.training)
    if accelerator.is_fsdp2:
        raise SystemExit("the accelerate configuration asks for FSDP; this loop runs plain data parallelism: leave it out.")
    output = Path(settings.training.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    try:
        train_data = open_split(settings.data, settings.data.train_split)
        test_data = open_split(settings.data, settings.data.eval_split) if settings.data.eval_split else None
        check_push(settings.training)
        run = build_run(accelerator, settings, train_data, test_data)
        if state := find_state(run, output):
            restore(run, state)
        start_trackers(accelerator, settings, output, run.step)
        with StopSignals() as stop_signals:
            train(run, train_data, test_data, output, stop_signals)
        folder = output / "model"
        record = training_record(accelerator, flat(settings), run.step, run.seconds) | {"training_images": len(train_data)}
        export_segmentation(accelerator, unwrapped(run), settings, record, folder)
        accelerator.print(f"Model folder: {folder}")  # before it is scored: an image that cannot be read ends that
        finish(run, folder, output)
    except (OSError, ValueError, UnreadableImagesError) as error:  # what the user can mend, without a traceback
        raise SystemExit(str(error)) from error
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if settings.training.push_to_hub and accelerator.is_main_process:  # last: the others do not wait for a long upload
        message = f"RATS fine-tuned for {settings.data.task} segmentation for {settings.training.steps:,} steps"
        print(f"Pushed: {push(folder, settings.training, message, Assets(output / 'curves.png'))}")
    return folder


def build_run(
    accelerator: Accelerator, settings: SegmentationSettings, train_data: SegmentationData, test_data: SegmentationData | None
) -> SegmentationRun:
    """The model on its pretrained backbone, and its optimiser.

    Raises:
        OSError: If there is no such backbone.
        ValueError: If settings, backbone and data do not fit together.
    """
    of_model, _, training = settings
    fields = asdict(of_model)
    for name in ("backbone", "backbone_revision", "freeze_backbone"):
        del fields[name]
    try:
        model = RatsForUniversalSegmentation.from_backbone(
            of_model.backbone or "", revision=of_model.backbone_revision, id2label=train_data.id2label, **fields
        )
        check_crop(settings.data.crop_size, model.config.backbone_config.patch_size)
    except StrictDataclassError as error:  # which wraps the reason
        raise ValueError(f"model settings: {error.__cause__ or error}") from error
    if test_data is not None:
        check_labels(train_data.id2label, test_data)
    encoder = model.model.encoder
    encoder.set_attn_implementation(choose_attention(training.attn_implementation, accelerator.device))
    if of_model.freeze_backbone:
        encoder.requires_grad_(False)
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if training.torch_compile:
        encoder.compile(dynamic=False)
    processor = build_segmentation_processor(settings.data, model.config)
    model.to(accelerator.device).train()
    optimizer = build_layer_decay_optimizer(model, training)
    set_seed(training.seed, device_specific=True)  # points of the loss and drop path differ between ranks
    return SegmentationRun(accelerator, accelerator.prepare(model), optimizer, processor, settings)


def check_crop(crop_size_px: int, patch_size: int | list[int]) -> None:
    """
    Raises:
        ValueError: If a crop is no whole number of patches.
    """
    patch = math.lcm(*height_width(patch_size))
    if crop_size_px % patch:
        below = crop_size_px // patch * patch
        raise ValueError(
            f"crop_size={crop_size_px} must be a multiple of the backbone's patch, {patch} px; use {below or patch} or "
            f"{below + patch}."
        )


def train(
    run: SegmentationRun,
    train_data: SegmentationData,
    test_data: SegmentationData | None,
    output: Path,
    stop_signals: StopSignals,
) -> None:
    """Steps until the last, or until a signal, with scores on the way; those of the end are `finish`'s."""
    settings, accelerator = run.settings.training, run.accelerator
    with shielded():
        batches = training_batches(train_data, run.settings, accelerator, run.step)
    agreement_steps = 1 if accelerator.num_processes == 1 else AGREEMENT_STEPS
    progress = Progress(run, settings, output, "Fine-tuning")
    scores = JsonLog(output / "evaluation.jsonl", run.step + 1) if accelerator.is_main_process else None
    while run.step < settings.steps:
        with progress.waiting():
            batch = next(batches)
        figures = train_step(run, batch)
        run.step += 1
        run.broken_images += len(batch.broken)
        progress.step(run, figures, batch.broken)
        ends = run.step == settings.steps
        stops = not ends and run.step % agreement_steps == 0 and stop_signals.agreed(accelerator)
        if ends or run.step % settings.log_steps == 0:
            write_line(run, progress, figures, len(train_data))
        if ends or stops or (figures.is_finite and run.step % settings.checkpoint_steps == 0):
            save_checkpoint(run, output)
        is_due = settings.eval_steps and run.step % settings.eval_steps == 0 and not ends
        if test_data is not None and is_due and not stops:
            with progress.paused():
                # Images differ in size: each would be compiled for itself.
                with torch.compiler.set_stance("force_eager" if settings.torch_compile else "default"):
                    now = score_segmentation(unwrapped(run), run.processor, test_data, settings.eval_images, settings.quiet)
                tell(run, now, scores, output)
        if stops:
            again = "the same command" if settings.resume == "auto" else "the same command with --resume auto"
            accelerator.print(f"Stopped by a signal and saved at step {run.step}; {again} goes on from there.")
            accelerator.end_training()
            raise SystemExit(EXIT_CODE)
    progress.close()


def train_step(run: SegmentationRun, batch: SegmentBatch) -> SegmentationFigures:
    """One optimiser step. A gradient that is not finite changes no weight.

    With gradient accumulation the masks' losses are means over the masks of each part, not of the whole batch.
    """
    settings, accelerator = run.settings.training, run.accelerator
    learning_rate = segmentation_learning_rate(run.step, settings)
    set_learning_rate(run.optimizer, learning_rate)
    images = normalised(batch.images.to(accelerator.device, non_blocking=True), run.processor)
    share = len(images) // settings.gradient_accumulation_steps
    loss = torch.zeros((), device=accelerator.device)
    for start in range(0, len(images), share):
        part = slice(start, start + share)
        with nullcontext() if start + share == len(images) else accelerator.no_sync(run.model):
            with accelerator.autocast():
                outputs = run.model(images[part], mask_labels=batch.masks[part], class_labels=batch.labels[part])
            part_loss = outputs.loss / settings.gradient_accumulation_steps
            accelerator.backward(part_loss)
        loss = loss + part_loss.detach()
    if accelerator.scaler:
        accelerator.scaler.unscale_(run.optimizer)
    gradient_norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), settings.clip_gradient or torch.inf)
    is_finite = bool(gradient_norm.isfinite())  # the same on all ranks
    if is_finite:
        run.optimizer.step()
    else:
        run.skipped_steps += 1
    if accelerator.scaler:
        accelerator.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return SegmentationFigures(loss, gradient_norm, is_finite, learning_rate)


def normalised(images: torch.Tensor, processor: Mask2FormerImageProcessor) -> torch.Tensor:
    """(B, 3, height, width) uint8 as the model takes them."""
    mean, std = (torch.tensor(one, device=images.device).view(3, 1, 1) for one in (processor.image_mean, processor.image_std))
    return (images / 255 - mean) / std


def finish(run: SegmentationRun, folder: Path, output: Path) -> None:
    """Scores the exported model and writes the record, `scores.json`, the curves and the card; all ranks must call it."""
    accelerator, results = run.accelerator, []
    if run.settings.data.eval_split:
        record = universal_segmentation.run(evaluation_arguments(run.settings, folder, output / "scores.json"))
        results = [output / "scores.json"]
        log = JsonLog(output / "evaluation.jsonl", run.step) if accelerator.is_main_process else None
        tell(run, record["scores"], log, output)
    if accelerator.is_main_process:
        draw_curves(output / "log.jsonl", output / "curves.png")
        write_card(folder, results, Assets(output / "curves.png"))


def tell(run: SegmentationRun, scores: dict[str, float], log: JsonLog | None, output: Path) -> None:
    """Scores go to the trackers, and from the main process to the log, the curves and the console."""
    run.accelerator.log(scores, step=run.step)
    if log:
        log.write({"step": run.step, **scores})
        draw_curves(output / "log.jsonl", output / "curves.png")
        run.accelerator.print(f"step {run.step}: " + "  ".join(f"{name} {score:.1f}" for name, score in scores.items()))


def write_line(run: SegmentationRun, progress: Progress, figures: SegmentationFigures, num_images: int) -> None:
    """A line of the log; all ranks must call it, for its figures are means over them."""
    means = progress.averaged(run, {"loss": float(figures.loss)})
    entry = {
        "step": run.step,
        **means,
        "gradient_norm": float(figures.gradient_norm),
        "learning_rate": figures.learning_rate,
        **progress.counted(run),
        "epoch": run.step * run.settings.training.batch_size / num_images,
        "broken_images": int(means["broken_images"]),
        "skipped_steps": run.skipped_steps,
    }
    steps, rate = run.settings.training.steps, entry["images_per_s"]
    progress.show(run, entry, f"step {run.step}/{steps}  loss {entry['loss']:.3f}  {rate:.1f} images/s")


if __name__ == "__main__":
    transformers.logging.disable_progress_bar()
    main()
