"""Settings of a run small enough that its steps take milliseconds."""

from dataclasses import fields

import pytest
from accelerate.state import AcceleratorState

from training.settings import ModelSettings


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
