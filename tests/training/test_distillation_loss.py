"""The losses of distillation, and their targets, against the slow, obvious loops of their docstrings, gradients included."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.distillation_loss import (
    centered,
    global_loss,
    patch_loss,
    register_balance_loss,
    register_bottleneck_loss,
    register_code_loss,
    standardized,
)

BATCH, PATCHES, REGISTERS, WIDTH, TEACHER_WIDTH = 3, 6, 4, 8, 5
ROOT = Path(__file__).resolve().parents[2]


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cosine(first, second):
    return (first * second).sum() / (first.norm() * second.norm())


def literal_patch_loss(projected, targets):
    total = 0
    for b in range(BATCH):
        for l in range(PATCHES):  # noqa: E741
            s, t = projected[b, l], targets[b, l]
            total += 1 - cosine(s, t)
            total += sum((s[c] - t[c]) ** 2 for c in range(TEACHER_WIDTH)) / TEACHER_WIDTH
    return total / (BATCH * PATCHES)


def literal_register_bottleneck_loss(registers, patches, reconstructing, targets, temperature, error="cosine"):
    total = 0
    for b in range(BATCH):
        for l in range(PATCHES):  # noqa: E741
            similarities = [cosine(registers[b, n], patches[b, l]) / temperature for n in range(REGISTERS)]
            shares = torch.stack(similarities).softmax(dim=0)
            reconstruction = sum(shares[n] * reconstructing[b, n] for n in range(REGISTERS))
            squared = sum((reconstruction[c] - targets[b, l, c]) ** 2 for c in range(TEACHER_WIDTH))
            total += squared if error == "squared" else 1 - cosine(reconstruction, targets[b, l])
    return total / (BATCH * PATCHES)


def literal_register_code_loss(registers, patches, codes, targets, temperature, error="cosine"):
    return literal_register_bottleneck_loss(registers, patches, torch.stack([codes] * BATCH), targets, temperature, error)


def literal_register_balance_loss(registers, patches, temperature):
    mean = [0.0] * REGISTERS
    for b in range(BATCH):
        for l in range(PATCHES):  # noqa: E741
            shares = torch.stack([cosine(registers[b, n], patches[b, l]) / temperature for n in range(REGISTERS)]).softmax(
                dim=0
            )
            mean = [m + share / (BATCH * PATCHES) for m, share in zip(mean, shares, strict=True)]
    return math.log(REGISTERS) - sum(-m * m.log() for m in mean)


def literal_global_loss(projected, targets):
    return sum(1 - cosine(projected[b], targets[b]) for b in range(BATCH)) / BATCH


LOSSES = {
    "patches": (patch_loss, literal_patch_loss, [(BATCH, PATCHES, TEACHER_WIDTH)]),
    "global": (global_loss, literal_global_loss, [(BATCH, TEACHER_WIDTH)]),
    "register bottleneck": (
        register_bottleneck_loss,
        literal_register_bottleneck_loss,
        [(BATCH, REGISTERS, WIDTH), (BATCH, PATCHES, WIDTH), (BATCH, REGISTERS, TEACHER_WIDTH)],
    ),
    "register codes": (
        register_code_loss,
        literal_register_code_loss,
        [(BATCH, REGISTERS, WIDTH), (BATCH, PATCHES, WIDTH), (REGISTERS, TEACHER_WIDTH)],
    ),
}


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_balance_and_its_gradients_equal_the_loop(temperature):
    gradients, losses = [], []
    for compute, dtype in ((register_balance_loss, torch.float32), (literal_register_balance_loss, torch.float64)):
        shapes = [(BATCH, REGISTERS, WIDTH), (BATCH, PATCHES, WIDTH)]
        inputs = [numbers(*shape, seed=seed, dtype=dtype).requires_grad_() for seed, shape in enumerate(shapes)]
        losses.append(compute(*inputs, temperature))
        losses[-1].backward()
        gradients.append([one.grad.float() for one in inputs])
    torch.testing.assert_close(losses[0], losses[1].float())
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(gradient.abs().max() > 1e-5 for gradient in gradients[0])


@pytest.mark.parametrize("error", ["cosine", "squared"])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_equal_the_loop(name, temperature, error):
    loss_of, literal, shapes = LOSSES[name]
    targets = numbers(*((BATCH, TEACHER_WIDTH) if name == "global" else (BATCH, PATCHES, TEACHER_WIDTH)), seed=9)
    others = (temperature, error) if name.startswith("register") else ()
    gradients, losses = [], []
    for compute, dtype in ((loss_of, torch.float32), (literal, torch.float64)):
        inputs = [numbers(*shape, seed=seed, dtype=dtype).requires_grad_() for seed, shape in enumerate(shapes)]
        losses.append(compute(*inputs, targets.to(dtype), *others))
        losses[-1].backward()
        gradients.append([one.grad.float() for one in inputs])
    torch.testing.assert_close(losses[0], losses[1].float())
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(gradient.abs().max() > 1e-4 for gradient in gradients[0])


def test_a_student_that_says_what_the_teacher_says_has_no_loss():
    patches, pooled = numbers(BATCH, PATCHES, TEACHER_WIDTH), numbers(BATCH, TEACHER_WIDTH)
    assert abs(patch_loss(patches, patches)) < 1e-6 and abs(global_loss(pooled, pooled)) < 1e-6


def test_registers_that_each_own_the_patches_of_one_value_explain_them_all():
    """Two kinds of patches, a register as similar as can be to each, and low temperature: soft k-means has converged."""
    kinds, values = torch.eye(2, WIDTH), numbers(2, TEACHER_WIDTH)
    assigned = torch.tensor([0, 1, 1, 0, 1, 0])
    patches, targets = kinds[assigned].expand(BATCH, -1, -1), values[assigned].expand(BATCH, -1, -1)
    registers, reconstructing = kinds.expand(BATCH, -1, -1), values.expand(BATCH, -1, -1)
    assert register_bottleneck_loss(registers, patches, reconstructing, targets, 0.01) < 1e-6
    assert register_bottleneck_loss(registers, patches, reconstructing.flip(1), targets, 0.01) > 0.1


def test_losses_are_computed_in_float32_inside_autocast():
    targets, projected = numbers(BATCH, PATCHES, TEACHER_WIDTH), numbers(BATCH, PATCHES, TEACHER_WIDTH, seed=1)
    registers, patches = numbers(BATCH, REGISTERS, WIDTH), numbers(BATCH, PATCHES, WIDTH)
    outside = register_bottleneck_loss(registers, patches, projected[:, :REGISTERS], targets, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = register_bottleneck_loss(registers, patches, projected[:, :REGISTERS], targets, 0.1)
        assert patch_loss(projected, targets).dtype == torch.float32
    assert torch.equal(inside, outside)


def test_standardized_channels_have_mean_zero_and_variance_one():
    patches = 3 + 2 * numbers(BATCH, PATCHES, TEACHER_WIDTH)
    result = standardized(patches).flatten(0, 1)
    torch.testing.assert_close(result.mean(dim=0), torch.zeros(TEACHER_WIDTH), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.var(dim=0, correction=0), torch.ones(TEACHER_WIDTH), atol=1e-5, rtol=0)
    assert standardized(torch.ones(BATCH, PATCHES, TEACHER_WIDTH)).eq(0).all()  # a channel that says nothing stays finite


def test_a_mean_is_that_of_the_batch_or_of_each_image():
    patches = numbers(BATCH, PATCHES, TEACHER_WIDTH)
    for mean, centred in (
        ("batch", patches - patches.mean(dim=(0, 1))),
        ("image", patches - patches.mean(dim=1, keepdim=True)),
    ):
        lengths = [centred[b, l].norm() ** 2 for b in range(len(patches)) for l in range(patches.shape[1])]  # noqa: E741
        torch.testing.assert_close(centered(patches, mean), centred / (sum(lengths) / len(lengths)) ** 0.5)


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from training.distillation_loss import centered, standardized
dist.init_process_group("gloo")
patches = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
own = patches[2 * dist.get_rank() :][:2]
results = {"standardized": standardized(own), "centered": centered(own, "batch"), "image": centered(own, "image")}
torch.save(results, f"{sys.argv[1]}/{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_targets_of_two_ranks_are_those_of_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + TWO_RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*launcher, str(script), str(tmp_path)], check=True, timeout=120, capture_output=True)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    patches = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    expected = {
        "standardized": standardized(patches),
        "centered": centered(patches, "batch"),
        "image": centered(patches, "image"),
    }
    for name, whole in expected.items():
        torch.testing.assert_close(torch.cat([rank[name] for rank in ranks]), whole)
