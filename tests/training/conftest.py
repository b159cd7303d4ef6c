"""Settings of a run small enough that its steps take milliseconds."""

from dataclasses import fields

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from modeling_rats import RatsConfig, RatsImageProcessor, RatsModel
from training.settings import ModelSettings

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]  # of the teachers' processors, unlike the student's
TEACHERS = {  # kind -> model, configuration, its own fields, image processor
    "vit": (ViTModel, ViTConfig, {"intermediate_size": 32, "patch_size": 8}, ViTImageProcessor),
    "dinov2": (Dinov2Model, Dinov2Config, {"mlp_ratio": 2, "patch_size": 14, "image_size": 28}, BitImageProcessor),
    "dinov2_with_registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig,
        {"mlp_ratio": 2, "patch_size": 14, "image_size": 28, "num_register_tokens": 3},
        BitImageProcessor,
    ),
    "dinov3_vit": (
        DINOv3ViTModel,
        DINOv3ViTConfig,
        {"intermediate_size": 32, "patch_size": 16, "num_register_tokens": 3},
        DINOv3ViTImageProcessor,
    ),
    "rats": (RatsModel, RatsConfig, {"intermediate_size": 32, "patch_size": 8, "num_registers": 4}, RatsImageProcessor),
}


@pytest.fixture(autouse=True)
def no_accelerator_left_behind():
    """A process may have one precision and one kind of launch at a time."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_sizes():
    """4 heads with 2 registers each, views of 32 and 16 px, patches of 8 px."""
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_registers": 8,
        "patch_size": 8,
        "num_prototypes": 16,
        "head_hidden_size": 16,
        "head_bottleneck_size": 8,
        "global_crop_size": 32,
        "local_crop_size": 16,
        "num_local_crops": 1,
    }


@pytest.fixture(scope="session")
def tiny_settings(tiny_sizes):
    """Of a run of few steps that can be computed again exactly: no drop path, float32."""
    return tiny_sizes | {
        "drop_path_rate": 0,
        "initializer_range": 0.1,
        "export_image_size": 32,
        "steps": 20,
        "warmup_steps": 1,
        "teacher_momentum": 0.9,
        "centering": "centering",
        "mixed_precision": "no",
        "quiet": True,
    }


@pytest.fixture(scope="session")
def make_model_settings(tiny_settings):
    names = {field.name for field in fields(ModelSettings)}
    sizes = {name: value for name, value in tiny_settings.items() if name in names}
    return lambda **overrides: ModelSettings(**sizes | overrides)


@pytest.fixture(scope="session")
def make_teacher(tmp_path_factory):
    """Folders of tiny frozen models with large random weights, so that no patch is like another."""

    def make(kind, seed=5, **overrides):
        model_class, config_class, own, processor_class = TEACHERS[kind]
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = model_class(config_class(**sizes | own | overrides))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_(std=0.4)
        folder = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder)
        processor_class(image_mean=MEAN, image_std=STD).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def student_settings():
    """Of a distillation whose steps take milliseconds: 4 heads with 2 registers each, views of 32 px, patches of 8 px."""
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_registers": 8,
        "patch_size": 8,
        "global_crop_size": 32,
        "num_workers": 0,
        "shuffle_buffer": 8,
        "steps": 6,
        "warmup_steps": 1,
        "batch_size": 4,
        "learning_rate": 0.1,
        "checkpoint_steps": 3,
        "log_steps": 2,
        "mixed_precision": "no",
        "cpu_threads": 1,
        "quiet": True,
    }
