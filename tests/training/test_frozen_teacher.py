"""A teacher of any kind on the student's views: its own grid, size and normalisation; and everything that is wrong with one."""

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, ConvNextConfig, ConvNextImageProcessor, ConvNextModel

from tests.training.conftest import TEACHERS
from training import frozen_teacher
from training.frozen_teacher import check_features, has_random_weights, licence_of, load_teacher

CPU = torch.device("cpu")


def views_of(side_px, number=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, side_px, side_px, 3), dtype=torch.uint8, generator=generator)


def load(folder, bf16=False):
    return load_teacher(str(folder), None, CPU, bf16)


@pytest.mark.parametrize("kind", TEACHERS)
def test_every_kind_has_the_students_grid_of_patches(make_teacher, kind):
    teacher = load(make_teacher(kind))
    patch_size = TEACHERS[kind][2]["patch_size"]
    assert teacher.image_size((4, 4)) == (4 * patch_size, 4 * patch_size)
    patches, pooled = teacher.features(views_of(32), grid=(4, 4))
    assert patches.shape == (2, 16, 16) and pooled.shape == (2, 16)
    assert patches.isfinite().all() and not patches.requires_grad
    outputs = teacher.backbone.tokens(teacher.normalize(views_of(32), teacher.image_size((4, 4))))
    assert torch.equal(patches, outputs.patches)
    expected = outputs.registers.mean(dim=1) if kind == "rats" else outputs.class_token
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize("kind", TEACHERS)
def test_views_are_normalised_as_its_own_processor_does_it(make_teacher, kind):
    teacher = load(make_teacher(kind))
    views = views_of(32)
    processor = AutoImageProcessor.from_pretrained(teacher.backbone.name)
    images = [Image.fromarray(view.numpy()) for view in views]
    expected = processor(images, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(teacher.normalize(views, (32, 32)), expected, atol=1e-5, rtol=1e-5)


def test_a_view_is_resized_to_the_teachers_patches(make_teacher):
    teacher = load(make_teacher("dinov2"))
    flat = torch.full((1, 32, 32, 3), 128, dtype=torch.uint8)
    resized = teacher.normalize(flat, teacher.image_size((4, 4)))
    assert resized.shape == (1, 3, 56, 56)
    assert resized.amin(dim=(2, 3)).allclose(resized.amax(dim=(2, 3)), atol=1e-5)


def test_it_is_frozen_and_in_evaluation_mode(make_teacher):
    teacher = load(make_teacher("dinov2"))
    assert not teacher.model.training and not any(one.requires_grad for one in teacher.model.parameters())


def test_bf16_is_near_float32(make_teacher):
    folder = make_teacher("vit")
    exact, rough = (load(folder, bf16).features(views_of(32), (4, 4)).patches for bf16 in (False, True))
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=-1).mean() > 0.98


def test_the_hash_is_of_the_weights_wherever_they_lie(make_teacher, tmp_path):
    folder, other = make_teacher("vit"), make_teacher("vit", seed=6)
    shutil.copytree(folder, tmp_path / "moved")
    first = load(folder)
    first.refuse_another(load(tmp_path / "moved").record())
    with pytest.raises(ValueError, match=r"was distilled from .*hash of its weights .*has one teacher.*--resume none"):
        first.refuse_another(load(other).record())


def test_the_licence_is_that_of_the_card_or_not_known(make_teacher, monkeypatch):
    folder = make_teacher("vit")
    assert load(folder).licence is None
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A ViT\n")
    assert load(folder).record()["licence"] == "apache-2.0" and not load(folder).record()["on_hub"]
    monkeypatch.setattr(frozen_teacher, "model_info", lambda *_, **__: 1 / 0)  # no network
    assert licence_of("owner/name", None) is None


# What can be wrong with a teacher


def test_a_model_without_a_grid_of_patches_is_refused(tmp_path):
    ConvNextModel(ConvNextConfig(hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1])).save_pretrained(tmp_path)
    ConvNextImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"teacher=.*model_type 'convnext'; it must be one of: rats .*dinov3_vit"):
        load(tmp_path)


def test_images_of_other_channels_are_refused(make_teacher):
    with pytest.raises(ValueError, match=r"takes images of 1 channels, and the views are RGB, of 3; choose"):
        load(make_teacher("vit", num_channels=1))


def test_a_missing_folder_is_told_with_how_to_log_in(tmp_path):
    with pytest.raises(ValueError, match=r"teacher=.*missing: .*not found.*hf auth login"):
        load(tmp_path / "missing")


def test_a_gated_repository_is_told_with_how_to_log_in(monkeypatch):
    def gated(name, revision):
        response = type("Response", (), {"headers": {}, "request": None, "status_code": 403})()
        raise FileNotFoundError(f"Model {name!r} was not found (gated)") from GatedRepoError("gated", response=response)

    monkeypatch.setattr(frozen_teacher, "load_backbone", gated)
    with pytest.raises(ValueError, match=r"teacher=facebook/dinov3-vitb16: .*accept its terms on its page.*hf auth login"):
        load("facebook/dinov3-vitb16")


def test_a_folder_without_an_image_processor_is_refused(make_teacher, tmp_path):
    shutil.copytree(make_teacher("vit"), tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"teacher=.*preprocessor_config\.json"):
        load(tmp_path / "bare")


def test_features_that_are_not_finite_are_refused(make_teacher, tmp_path):
    shutil.copytree(make_teacher("vit"), tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["layernorm.bias"][3] = np.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"gives patches that are not finite .*choose another teacher"):
        check_features(load(tmp_path / "broken"), 32, 8)


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_teacher_that_was_never_trained_is_noticed(make_teacher, kind):
    teacher = load(make_teacher(kind))
    with torch.no_grad():
        for module in teacher.model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1), module.bias.fill_(0)
        assert has_random_weights(teacher)
        next(module for module in teacher.model.modules() if isinstance(module, torch.nn.LayerNorm)).bias[0] = 0.01
    assert not has_random_weights(teacher)


def test_the_record_is_plain(make_teacher):
    record = load(make_teacher("dinov3_vit")).record()
    assert json.loads(json.dumps(record)) == record and record["model_type"] == "dinov3_vit" and record["revision"] is None
