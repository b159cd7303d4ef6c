"""The KoLeo regulariser against the slow, obvious loop, and what its gradient does."""

import math

import pytest
import torch

from training.koleo import koleo_loss

BATCH, REGISTERS, WIDTH = 3, 6, 5


def random_registers(seed=0):
    return torch.randn(BATCH, REGISTERS, WIDTH, generator=torch.Generator().manual_seed(seed))


def literal_koleo(registers):
    """The loop of the docstring, in float64."""
    total = 0
    for image in registers.double():
        directions = [register / register.norm() for register in image]
        for i, direction in enumerate(directions):
            total -= torch.log(min((direction - other).norm() for j, other in enumerate(directions) if j != i) + 1e-8)
    return total / (registers.shape[0] * registers.shape[1])


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_equal_the_loop(seed):
    ours, literal = (random_registers(seed).requires_grad_() for _ in range(2))
    loss, expected = koleo_loss(ours), literal_koleo(literal)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected.float())
    torch.testing.assert_close(ours.grad, literal.grad)


def test_known_distances():
    on_axes = torch.eye(4)[None] * torch.tensor([1.0, 5.0, 0.1, 3.0])[:, None]  # lengths do not count
    assert koleo_loss(on_axes).item() == pytest.approx(-math.log(2) / 2, rel=1e-6)


def test_a_register_is_not_its_own_neighbour_even_if_the_other_is_opposite():
    opposite = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert koleo_loss(opposite).item() == pytest.approx(-math.log(2), rel=1e-6)


def test_images_do_not_push_each_other():
    registers = random_registers()
    alike = registers[:1].expand(2, -1, -1)
    torch.testing.assert_close(koleo_loss(alike), koleo_loss(registers[:1]))
    each = torch.stack([koleo_loss(image[None]) for image in registers])
    torch.testing.assert_close(koleo_loss(registers), each.mean())


def test_order_of_registers_and_images_does_not_matter():
    registers = random_registers()
    mixed = registers[torch.tensor([2, 0, 1])][:, torch.randperm(REGISTERS, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(koleo_loss(mixed), koleo_loss(registers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_is_finite_where_registers_coincide(dtype):
    registers = random_registers().to(dtype)
    registers[:, 1] = registers[:, 0]
    registers[2] = registers[2, 0]
    registers.requires_grad_()
    loss = koleo_loss(registers)
    loss.backward()
    assert loss.isfinite() and registers.grad.isfinite().all()
    assert not registers.grad[2].any()  # nothing says which way they should part
    assert registers.grad[0, 2:].any()


def test_loss_is_largest_where_all_registers_coincide():
    alike = torch.ones(BATCH, REGISTERS, WIDTH)
    assert koleo_loss(alike).item() == pytest.approx(-math.log(1e-8), rel=1e-6)


def test_steps_down_the_gradient_spread_nearly_equal_registers():
    generator = torch.Generator().manual_seed(2)
    registers = 1 + 0.05 * torch.randn(BATCH, REGISTERS, WIDTH, generator=generator)
    losses = []
    for _ in range(20):
        registers.requires_grad_()
        loss = koleo_loss(registers)
        (gradient,) = torch.autograd.grad(loss, registers)
        losses.append(loss.item())
        registers = (registers - 0.02 * gradient).detach()
    assert losses[1] < losses[0] and losses[-1] < losses[0] - 1


def test_is_float32_whatever_the_input_and_the_autocast():
    registers = random_registers()
    expected = koleo_loss(registers)
    rounded = registers.bfloat16()
    assert koleo_loss(rounded).dtype == torch.float32
    torch.testing.assert_close(koleo_loss(rounded), koleo_loss(rounded.float()), atol=0, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(koleo_loss(registers), expected, atol=0, rtol=0)


def test_bfloat16_registers_get_a_gradient_of_their_type():
    registers = random_registers().bfloat16().requires_grad_()
    koleo_loss(registers).backward()
    assert registers.grad.dtype == torch.bfloat16 and registers.grad.any()


def test_one_register_alone_is_refused():
    with pytest.raises(ValueError, match=r"got 1 register per image and needs 2 or more.*koleo_weight=0"):
        koleo_loss(torch.ones(2, 1, 4))
