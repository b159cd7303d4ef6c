"""A RATS small enough that every test runs in milliseconds."""

from collections.abc import Callable

import pytest

from modeling_rats import RatsConfig


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RatsConfig]:
    """Tiny configurations: 4 heads with 2 registers each, 4 x 4 patches of 8 px; any field can be overridden."""

    def make(**overrides) -> RatsConfig:
        tiny = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "num_registers": 8,
            "patch_size": 8,
            "image_size": 32,
            "num_prototypes": 16,
            "head_hidden_size": 24,
            "head_bottleneck_size": 8,
        }
        return RatsConfig(**(tiny | overrides))

    return make
