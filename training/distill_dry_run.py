"""What a distillation would be, without running it: `python training/distill.py RECIPE --teacher NAME --dry_run`."""

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from modeling_rats.multiply_accumulates import build_model, forward_options
from training.distill_settings import DistillSettings
from training.distillation_network import build_student
from training.dry_run import GIB, count, decoded, epochs, kept_bytes
from training.frozen_teacher import FrozenTeacher
from training.run_settings import flat
from training.streaming import ViewStream


def describe(settings: DistillSettings, teacher: FrozenTeacher, stream: ViewStream, num_processes: int) -> str:
    """The resolved recipe, sizes, cost, memory, length, and what the first images look like.

    Raises:
        ValueError: If the network cannot have the sizes of the recipe.
        UnreadableImagesError: If the stream holds no image that can be read.
    """
    model, data, training, _ = settings
    with torch.device("meta"):
        student = build_student(settings, teacher.hidden_size)
    side_px = data.global_crop_size
    grid = (side_px // model.patch_size, side_px // model.patch_size)
    height, width = teacher.image_size(grid)
    student_cost, teacher_cost = cost_of_student(settings, teacher.hidden_size), cost_of_teacher(teacher, grid)
    views = training.batch_size * data.num_global_crops
    step_cost = views * (3 * student_cost + teacher_cost)
    own_views = views // (num_processes * training.gradient_accumulation_steps)
    kept_gib = kept_bytes(student, torch.empty(own_views, side_px, side_px, 3, dtype=torch.uint8, device="meta")) / GIB
    states_gib = 4 * (4 * count(student) + count(teacher.model)) / GIB  # weights, gradients, both moments of AdamW; the teacher
    record = teacher.record()
    lines = [
        yaml.safe_dump(flat(settings), sort_keys=False).rstrip(),
        "",
        f"teacher: {record['name']} ({record['model_type']}, revision {record['revision'] or 'not told'}, licence "
        f"{record['licence'] or 'not told'}), which sees {grid[0]} x {grid[1]} patches in {height} x {width} px",
        f"parameters, in millions: {model.model_type} {count(student.backbone) / 1e6:.1f}, projections "
        f"{(count(student) - count(student.backbone)) / 1e6:.1f}, teacher {count(teacher.model) / 1e6:.1f}",
        f"multiply-accumulates of a step, in billions: {step_cost / 1e9:,.1f}; of a view's forward pass: student "
        f"{student_cost / 1e9:.3g}, teacher {teacher_cost / 1e9:.3g} (the student's backward pass counts as two more)",
        f"multiply-accumulates of the run: {training.steps * step_cost:.3g}",
        f"memory of a process: {states_gib:.2f} GiB of weights, gradients, AdamW and teacher, and about {kept_gib:.2f} GiB "
        f"that the student keeps for the backward pass of {own_views} views in float32",
        f"steps: {training.steps:,} of {training.batch_size} images on {num_processes} processes, "
        f"{training.steps * training.batch_size:,} images in all",
        *epochs(stream, training.steps * training.batch_size),
        *decoded(stream),
    ]
    return "\n".join(lines)


def cost_of_student(settings: DistillSettings, teacher_size: int) -> int:
    """Multiply-accumulates of a forward pass of one view, projections included."""
    side_px = settings.data.global_crop_size
    with torch.device("meta"):
        student = build_student(settings, teacher_size).eval()
        view = torch.empty(1, side_px, side_px, 3, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        student(view)
    return counter.get_total_flops() // 2  # it counts a multiply-accumulate as two operations


def cost_of_teacher(teacher: FrozenTeacher, grid: tuple[int, int]) -> int:
    """Likewise, of a view of this grid."""
    model = build_model(teacher.model.config, device="meta")
    pixel_values = torch.empty(1, 3, *teacher.image_size(grid), device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixel_values, **forward_options(teacher.model.config))
    return counter.get_total_flops() // 2
