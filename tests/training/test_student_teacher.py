"""Views through the network, and the teacher that follows."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_rats import RatsForPreTraining, RatsImageProcessor
from training.student_teacher import MultiCropNetwork, build_teacher, update_teacher


@pytest.fixture
def student(make_config):
    torch.manual_seed(0)
    model = RatsForPreTraining(make_config(initializer_range=0.2, drop_path_rate=0.5))
    return MultiCropNetwork(model.rats, model.head).train()


def random_views(sizes, batch=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=generator) for size in sizes]


@pytest.mark.parametrize("sizes", [[32, 32, 16, 16, 16], [32, 32], [32], [16, 32, 16]], ids=str)
def test_logits_of_views_stand_in_the_views_order(student, sizes):
    student.eval()
    views = random_views(sizes)
    outputs = student(views)
    assert outputs.logits.shape == (len(sizes), 3, 16) and outputs.pooled.shape == (len(sizes), 3, 32)
    for view, its_logits in zip(views, outputs.logits, strict=True):
        torch.testing.assert_close(student([view]).logits[0], its_logits, atol=1e-5, rtol=1e-5)
        for image, image_logits in zip(view, its_logits, strict=True):
            alone = student.head(student.backbone(student.normalize(image[None])).pooler_output)[0]
            torch.testing.assert_close(alone, image_logits, atol=1e-5, rtol=1e-5)


def test_backbone_runs_once_per_size_and_the_head_once(student):
    runs = []
    student.backbone.embeddings.register_forward_hook(lambda module, args, output: runs.append(len(output)))
    student.head.register_forward_hook(lambda module, args, output: runs.append(len(output)))
    student(random_views([32, 32, 16, 16, 16]))
    assert runs == [6, 9, 15]


def test_registers_and_patches_are_those_of_the_global_views(student):
    student.eval()
    views = random_views([32, 32, 16])
    tokens = student.backbone(student.normalize(torch.cat(views[:2]))).last_hidden_state
    outputs = student(views, with_patches=True)
    torch.testing.assert_close(outputs.registers, tokens[:, :8])
    torch.testing.assert_close(outputs.patches, tokens[:, 8:])
    without = student(views)
    torch.testing.assert_close(without.registers, tokens[:, :8], atol=1e-5, rtol=1e-5)
    assert without.patches is None


def test_normalises_as_the_processor_does(student):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), dtype=np.uint8)
    processor = RatsImageProcessor(do_resize=False)
    expected = processor([Image.fromarray(image) for image in pixels], return_tensors="pt").pixel_values
    torch.testing.assert_close(student.normalize(torch.from_numpy(pixels)), expected, atol=1e-5, rtol=1e-5)


def test_mean_and_std_are_no_part_of_the_weights(student):
    assert all(name.startswith(("backbone.", "head.")) for name in student.state_dict())


def test_teacher_starts_as_the_student_without_gradient_or_drop_path(student):
    teacher = build_teacher(student)
    assert not teacher.training and student.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert frozen == ["backbone.embeddings.mask_token"]
    views = random_views([32, 16])
    torch.testing.assert_close(teacher(views).logits, student.eval()(views).logits, atol=0, rtol=0)
    assert not teacher(views).logits.requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.996, 1.0])
def test_teacher_is_the_moving_average_head_included(student, momentum):
    teacher = build_teacher(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {name: copy.deepcopy(parameter) for name, parameter in teacher.named_parameters()}
    student_before = copy.deepcopy(student.state_dict())
    update_teacher(teacher, student, momentum)
    followed = dict(student.named_parameters())
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter, momentum * before[name] + (1 - momentum) * followed[name])
        assert parameter.data_ptr() != followed[name].data_ptr()
    assert all(torch.equal(tensor, student_before[name]) for name, tensor in student.state_dict().items())


def test_gradients_reach_the_student_through_every_view(student):
    student.eval()
    for sizes in ([32], [16]):
        student.zero_grad()
        student(random_views(sizes)).logits.square().sum().backward()
        assert student.backbone.embeddings.patch_embeddings.weight.grad.any()
