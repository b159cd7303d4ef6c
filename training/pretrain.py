"""DINO pretraining of RATS: images in, a transformers folder out.

    accelerate launch training/pretrain.py [RECIPE] [--setting value ...]

Without a recipe it renders the embedded data set and runs recipes/quickstart.yaml. `training/README.md` tells the rest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # or a foreign `training` could win over this one

import math
import os
import time
from dataclasses import asdict

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed

from evaluation.data_sets import open_images
from evaluation.synthetic_parts import count_cores, recorded_splits, write_dataset
from modeling_rats import RatsConfig, RatsForPreTraining, load_vit_weights
from training import checkpoint
from training.arguments import DataSettings, ModelSettings, Settings, TrainingSettings, parse
from training.crops import MultiCrop
from training.dino_loss import DinoLoss
from training.dry_run import describe
from training.export import export
from training.monitors import Reporter, draw_curves, teacher_entropies
from training.optimizer import build_optimizer, clip_gradients, set_schedule
from training.original_crops import OriginalMultiCrop
from training.preemption import AGREEMENT_STEPS, EXIT_CODE, StopSignals, shielded
from training.run_state import Run, resume, save_checkpoint
from training.schedules import cosine, linear, warmup_cosine
from training.streaming import Batch, UnreadableImagesError, ViewStream, batches
from training.student_teacher import MultiCropNetwork, build_teacher, update_teacher


def main(arguments: list[str] | None = None) -> Path:
    """Pretrains as the recipe and the command line say; returns the exported model folder, of a dry run the output folder.

    Raises:
        SystemExit: With a message, if something is wrong; with `EXIT_CODE` if a signal has stopped the run and it has saved.
    """
    model_settings, data_settings, training_settings = settings = parse(arguments)
    accelerator = start_accelerator(training_settings)
    output = Path(training_settings.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    try:
        if training_settings.dry_run:
            stream = open_stream(accelerator, data_settings, training_settings)
            config = build_config(model_settings, data_settings)
            accelerator.print(describe(settings, config, stream, accelerator.num_processes))
            return output
        run = build_run(accelerator, model_settings, data_settings, training_settings)
        stream = open_stream(accelerator, data_settings, training_settings)
        resume(run, stream, settings, output)
    except (FileNotFoundError, ValueError, UnreadableImagesError) as error:  # what the user can mend, without a traceback
        raise SystemExit(str(error)) from error
    try:
        with StopSignals() as stop_signals:
            train(run, stream, settings, output, stop_signals)
    except UnreadableImagesError as error:
        raise SystemExit(str(error)) from error
    folder = output / "model"
    if accelerator.is_main_process:
        export(run, settings, folder)
        draw_curves(output / "log.jsonl", output / "curves.png")
        accelerator.print(f"Model folder: {folder}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return folder


def start_accelerator(settings: TrainingSettings) -> Accelerator:
    precision = settings.mixed_precision
    if precision == "auto":
        precision = "bf16" if computes_bf16() else "no"
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=precision)
    kind = accelerator.distributed_type.value
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM") or accelerator.state.dynamo_plugin.backend.value not in (None, "NO"):
        raise SystemExit(
            f"the accelerate configuration asks for {kind} with dynamo {accelerator.state.dynamo_plugin.backend.value}; this "
            "loop runs plain data parallelism: accelerate launch --multi_gpu --dynamo_backend no."
        )
    if settings.batch_size % accelerator.num_processes:
        raise SystemExit(
            f"batch_size={settings.batch_size} must be divisible by the {accelerator.num_processes} processes it is shared by."
        )
    if accelerator.device.type == "cpu":
        # `accelerate launch` gives a CPU process one thread unless told otherwise.
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(settings.cpu_threads or max(count_cores() // local_processes, 1))
    set_seed(settings.seed)
    return accelerator


def computes_bf16() -> bool:
    """Whether the device computes in bfloat16, and does not only emulate it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def build_config(model: ModelSettings, data: DataSettings) -> RatsConfig:
    try:
        return RatsConfig(**asdict(model), image_size=data.global_crop_size)
    except Exception as error:  # the strict configuration wraps the reason
        raise SystemExit(f"model settings: {error}") from error


def build_run(accelerator: Accelerator, model: ModelSettings, data: DataSettings, training: TrainingSettings) -> Run:
    config = build_config(model, data)
    network = RatsForPreTraining(config)
    resumed = checkpoint.find(training.resume, Path(training.output_dir) / "checkpoints") is not None
    if training.warm_start and not resumed:
        accelerator.print(load_vit_weights(network, training.warm_start))
    student = MultiCropNetwork(network)
    teacher = build_teacher(student).to(accelerator.device)
    student = accelerator.prepare(student.train())
    loss = DinoLoss(config.num_prototypes, training.student_temperature, training.centering, training.center_momentum)
    set_seed(training.seed, device_specific=True)  # drop path differs between ranks
    return Run(accelerator, student, teacher, loss.to(accelerator.device), build_optimizer(student), training)


def open_stream(accelerator: Accelerator, data: DataSettings, training: TrainingSettings) -> ViewStream:
    with accelerator.main_process_first():
        dataset = data.dataset or render_synthetic(data, training)
    rows, column = open_images(dataset, data.dataset_config, data.dataset_split, data.image_column, data.dataset_revision)
    crops = MultiCrop(
        data.global_crop_size,
        data.local_crop_size,
        data.num_local_crops,
        data.global_crops_scale,
        data.local_crops_scale,
        blur_sigma_px=data.blur_sigma,
        jitter=data.color_jitter,
        grayscale=data.grayscale,
    )
    make_views = crops if data.augmentation == "fast" else OriginalMultiCrop(crops.views)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    sizes = {"num_workers": data.num_workers, "shuffle_buffer": data.shuffle_buffer}
    return ViewStream(rows, column, make_views, training.seed, rank, ranks, **sizes, max_broken_share=data.max_broken_share)


def render_synthetic(data: DataSettings, training: TrainingSettings) -> str:
    """The embedded data set in the output folder; rendered again only if its settings have changed."""
    folder = Path(training.output_dir) / "data"
    wanted: dict = {
        "images": data.synthetic_images,
        "image_size_px": data.synthetic_image_size,
        "seed": data.synthetic_seed,
        "difficulty": data.synthetic_difficulty,
    }
    if recorded_splits(folder).get("train") != wanted:
        write_dataset(folder, **wanted, split="train", quiet=training.quiet, overwrite=True)
    return str(folder)


def train(run: Run, stream: ViewStream, all_settings: Settings, output: Path, stop_signals: StopSignals) -> None:
    """Steps until the last, or until a signal."""
    settings, accelerator = run.settings, run.accelerator
    with shielded():
        stream_batches = batches(stream, settings.batch_size // accelerator.num_processes)
    # The workers make batches in turn: positions can be resumed from where every worker has made equally many.
    workers = max(stream.num_workers, 1)
    checkpoint_steps = math.ceil(settings.checkpoint_steps / workers) * workers
    agreement_steps = workers if accelerator.num_processes == 1 else math.ceil(AGREEMENT_STEPS / workers) * workers
    reporter = Reporter(output, settings, run.step, is_main=accelerator.is_main_process)
    last_time, last_step, last_seconds = time.perf_counter(), run.step, run.seconds
    while run.step < settings.steps:
        batch = next(stream_batches)
        stream.positions[batch.worker] = batch.position
        run.broken_images += len(batch.broken)
        figures = train_step(run, batch)
        run.step += 1
        now = time.perf_counter()
        run.seconds, last_time = run.seconds + now - last_time, now
        reporter.step(batch.broken)
        ends = run.step == settings.steps
        stops = not ends and run.step % agreement_steps == 0 and stop_signals.agreed(accelerator)
        logs, saves = ends or run.step % settings.log_steps == 0, ends or stops or run.step % checkpoint_steps == 0
        if logs or saves:
            check_finite(run, figures, output)
        if logs:
            images_per_s = settings.batch_size * (run.step - last_step) / (run.seconds - last_seconds)
            last_step, last_seconds = run.step, run.seconds
            reporter.write(log_entry(run, figures, images_per_s, batch.position[0]))
        if saves:
            save_checkpoint(run, stream, all_settings, output)
        if stops:
            accelerator.print(f"Stopped by a signal and saved at step {run.step}; the same command goes on from there.")
            accelerator.end_training()
            raise SystemExit(EXIT_CODE)
    reporter.close()


def train_step(run: Run, batch: Batch) -> dict[str, torch.Tensor | float]:
    """One optimiser step, then the teacher's. Returns what it measured."""
    settings, step, accelerator = run.settings, run.step, run.accelerator
    learning_rate = warmup_cosine(
        step,
        settings.steps,
        settings.warmup_steps,
        peak=settings.learning_rate * settings.batch_size / 256,
        end=settings.min_learning_rate,
    )
    weight_decay = cosine(step, settings.steps, settings.weight_decay, settings.weight_decay_end)
    momentum = cosine(step, settings.steps, settings.teacher_momentum, 1.0)
    temperature = linear(
        step,
        settings.warmup_teacher_temperature_steps,
        settings.warmup_teacher_temperature,
        settings.teacher_temperature,
    )
    set_schedule(run.optimizer, learning_rate, weight_decay)

    views = [view.to(accelerator.device, non_blocking=True) for view in batch.views]
    with torch.no_grad(), accelerator.autocast():
        targets = run.loss.targets(run.teacher(views[:2]), temperature)  # (G, B, K)
    with accelerator.autocast():
        student_logits = run.student(views)  # (V, B, K)
    loss = run.loss(student_logits, targets)
    accelerator.backward(loss)
    gradient_norm = clip_gradients(run.student, settings.clip_gradient)
    student = accelerator.unwrap_model(run.student)
    if step < settings.freeze_last_layer_steps:
        student.model.head.prototypes.weight.grad = None  # after clipping, as DINO does
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    update_teacher(run.teacher, student, momentum)
    return {
        "loss": loss.detach(),
        "targets": targets,
        "gradient_norm": gradient_norm,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "teacher_momentum": momentum,
        "teacher_temperature": temperature,
    }


def log_entry(run: Run, figures: dict, images_per_s: float, epoch: int) -> dict:
    """A line of the log, from the figures of the last step; loss, entropies and broken images over all ranks."""
    targets = figures.pop("targets")
    entropies = teacher_entropies(targets)
    own = [float(run.broken_images), float(figures["loss"]), *entropies.values()]
    sums = run.accelerator.reduce(torch.tensor(own, device=run.accelerator.device), "sum").tolist()
    broken, (loss, *means) = sums[0], (value / run.accelerator.num_processes for value in sums[1:])
    return {
        "step": run.step,
        **{name: float(value) for name, value in figures.items()},
        "loss": loss,
        "ln_k": math.log(targets.shape[-1]),
        **dict(zip(entropies, means, strict=True)),
        "images_per_s": images_per_s,
        "images_seen": run.step * run.settings.batch_size,
        "epoch": epoch,
        "broken_images": int(broken),
    }


def check_finite(run: Run, figures: dict, output: Path) -> None:
    """Ends a run whose weights are no longer of use, before they are saved."""
    loss, gradient_norm = float(figures["loss"]), float(figures["gradient_norm"])  # the norm is the same on all ranks
    if not math.isfinite(loss + gradient_norm):
        raise SystemExit(
            f"step {run.step}: the loss is {loss} and the gradient norm {gradient_norm}; both must be finite. Lower "
            "learning_rate or set mixed_precision=no, and go on from "
            f"{checkpoint.find('auto', output / 'checkpoints') or 'the start'}."
        )


if __name__ == "__main__":
    transformers.logging.disable_progress_bar()
    main()
