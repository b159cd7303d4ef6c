"""Figures of the teacher against slow, obvious computations, on networks of all three types."""

import math

import numpy as np
import pytest
import torch

from training.networks import build_backbone_and_head, build_config
from training.student_teacher import MultiCropNetwork, build_teacher
from training.teacher_figures import rankme, register_figures, teacher_entropies, teacher_figures

UNIFORM = torch.full((2, 6, 8), 1 / 8)
ONE_PROTOTYPE = torch.eye(8)[0].expand(2, 6, 8)
ONE_EACH = torch.eye(8).reshape(2, 4, 8)

TYPES = ["rats", "vit", "registers"]
OF_EVERY_NETWORK = {"teacher_entropy", "teacher_marginal_entropy", "rankme"}
OF_REGISTERS = {"registers_used", "registers_per_image", "register_cosine"}


@pytest.fixture
def make_teacher(make_model_settings):
    def make(model_type, **sizes):
        torch.manual_seed(0)
        settings = make_model_settings(**{"model_type": model_type, "drop_path_rate": 0.5, "initializer_range": 0.5} | sizes)
        backbone, head = build_backbone_and_head(model_type, build_config(settings, 32))
        return build_teacher(MultiCropNetwork(backbone, head).train())

    return make


def random_images(batch=6):
    return torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def random_targets(batch=6):
    return torch.randn(2, batch, 16, generator=torch.Generator().manual_seed(2)).softmax(dim=-1)


def random_tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def literal_rankme(features):
    singular_values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = singular_values / singular_values.sum()
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def literal_register_figures(registers, patches):
    used, of_images, cosines = set(), [], []
    for image_registers, image_patches in zip(registers.double(), patches.double(), strict=True):
        winners = set()
        for patch in image_patches:
            likeness = [torch.cosine_similarity(register, patch, dim=0).item() for register in image_registers]
            winners.add(likeness.index(max(likeness)))
        used |= winners
        of_images.append(len(winners))
        for i, one in enumerate(image_registers):
            for j, other in enumerate(image_registers):
                if i != j:
                    cosines.append(torch.cosine_similarity(one, other, dim=0).item())
    return {
        "registers_used": len(used) / registers.shape[1],
        "registers_per_image": sum(of_images) / len(of_images),
        "register_cosine": sum(cosines) / len(cosines),
    }


@pytest.mark.parametrize("model_type", TYPES)
def test_figures_of_a_network_are_those_of_its_tokens(make_teacher, model_type):
    teacher = make_teacher(model_type)
    targets = random_targets()
    figures = teacher_figures(teacher, random_images(), targets, max_images=4)
    outputs = teacher([random_images()[:4]], with_patches=True)
    expected = {**teacher_entropies(targets), "rankme": literal_rankme(outputs.pooled[0])}
    if model_type != "vit":
        expected |= literal_register_figures(outputs.registers, outputs.patches)
    assert figures == pytest.approx(expected, rel=1e-4)
    assert set(figures) == (OF_EVERY_NETWORK if model_type == "vit" else OF_EVERY_NETWORK | OF_REGISTERS)
    assert all(type(value) is float for value in figures.values())


@pytest.mark.parametrize("model_type", TYPES)
def test_one_image_gives_figures_that_are_numbers(make_teacher, model_type):
    figures = teacher_figures(make_teacher(model_type), random_images(1), random_targets(1))
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["rankme"] == pytest.approx(1)


@pytest.mark.parametrize("model_type", TYPES)
def test_is_one_forward_of_the_module_that_changes_nothing(make_teacher, model_type):
    teacher = make_teacher(model_type)
    calls = []
    teacher.register_forward_hook(lambda module, args, output: calls.append(len(args[0][0])))
    modes = [module.training for module in teacher.modules()]
    weights = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    torch.manual_seed(3)
    random_state = torch.get_rng_state()
    targets = random_targets(50).requires_grad_()
    first = teacher_figures(teacher, random_images(50), targets)
    assert calls == [32]  # of 50
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in teacher.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())
    assert teacher_figures(teacher, random_images(50), targets) == first


@pytest.mark.parametrize("model_type", TYPES)
def test_figures_under_autocast_are_near_those_without(make_teacher, model_type):
    teacher, images, targets = make_teacher(model_type), random_images(), random_targets()
    expected = teacher_figures(teacher, images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        figures = teacher_figures(teacher, images, targets)
    for name, tolerance in {"rankme": 0.05, "register_cosine": 0.02, "registers_used": 0.13, "registers_per_image": 1}.items():
        assert figures.get(name) == pytest.approx(expected.get(name), abs=tolerance), name


def test_a_network_of_one_register_has_no_cosine_between_registers(make_teacher):
    teacher = make_teacher("rats", num_registers=1, num_attention_heads=1)
    figures = teacher_figures(teacher, random_images(), random_targets())
    assert figures["registers_used"] == figures["registers_per_image"] == 1
    assert set(figures) == OF_EVERY_NETWORK | {"registers_used", "registers_per_image"}


@pytest.mark.parametrize(
    "targets, entropy, marginal",
    [(UNIFORM, math.log(8), math.log(8)), (ONE_PROTOTYPE, 0.0, 0.0), (ONE_EACH, 0.0, math.log(8))],
    ids=["uniform collapse", "collapse to one", "healthy"],
)
def test_entropies_tell_both_collapses_from_health(targets, entropy, marginal):
    assert teacher_entropies(targets) == {
        "teacher_entropy": pytest.approx(entropy, abs=1e-6),
        "teacher_marginal_entropy": pytest.approx(marginal, abs=1e-6),
    }


def test_entropies_equal_the_loop():
    targets = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    rows = targets.reshape(6, 8).tolist()
    mean_row = [sum(column) / 6 for column in zip(*rows, strict=True)]
    entropies = teacher_entropies(targets)
    assert entropies["teacher_entropy"] == pytest.approx(sum(-p * math.log(p) for row in rows for p in row) / 6, rel=1e-5)
    assert entropies["teacher_marginal_entropy"] == pytest.approx(sum(-p * math.log(p) for p in mean_row), rel=1e-5)


def test_rankme_counts_the_directions():
    assert rankme(torch.eye(7, 12)) == pytest.approx(7, rel=1e-5)
    assert rankme(torch.eye(7, 12) * 1e-6) == pytest.approx(7, rel=1e-5)
    assert rankme(torch.ones(9, 12)) == pytest.approx(1, rel=1e-3)
    assert rankme(random_tokens(20, 3)) <= 3


@pytest.mark.parametrize("images", [1, 5, 40])
def test_rankme_equals_the_formula(images):
    features = random_tokens(images, 12) @ torch.diag(0.5 ** torch.arange(12.0))
    assert rankme(features) == pytest.approx(literal_rankme(features), rel=1e-4)


def test_rankme_of_nothing_is_one_and_of_what_is_not_finite_nan():
    assert rankme(torch.zeros(4, 3)) == 1
    features = torch.ones(4, 3)
    features[0, 0] = torch.inf
    assert math.isnan(rankme(features))


@pytest.mark.parametrize("shape", [(1, 4, 9), (5, 12, 4), (3, 2, 16)], ids=str)
def test_register_figures_equal_the_loop(shape):
    images, registers, patches = shape
    tokens = random_tokens(images, registers, 6), random_tokens(images, patches, 6, seed=1)
    assert register_figures(*tokens) == pytest.approx(literal_register_figures(*tokens), rel=1e-4, abs=1e-6)


def test_registers_that_win_nothing_count_as_unused():
    registers = torch.eye(4).expand(2, -1, -1)
    patches = torch.stack([torch.eye(4)[[0, 0, 1]], torch.eye(4)[[1, 1, 1]]])
    assert register_figures(registers, patches) == pytest.approx(
        {"registers_used": 2 / 4, "registers_per_image": 1.5, "register_cosine": 0}, abs=1e-6
    )


@pytest.mark.parametrize("sign, cosine", [(1.0, 1.0), (-1.0, -1.0)], ids=["alike", "opposite"])
def test_register_cosine_of_two_registers(sign, cosine):
    registers = torch.tensor([[[1.0, 2.0], [sign * 3.0, sign * 6.0]]])
    assert register_figures(registers, torch.ones(1, 4, 2))["register_cosine"] == pytest.approx(cosine, rel=1e-5)
