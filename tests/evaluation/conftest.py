"""A tiny model whose registers claim patches, as the tests of dictionaries save it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling_rats import RatsForPartSegmentation, RatsImageProcessor


@pytest.fixture(scope="session")
def save_part_model(make_config) -> Callable[..., Path]:
    """Saves model and processor; weights large enough that several registers win patches, and others for other images."""

    def save(folder, size_px):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = RatsForPartSegmentation(make_config(initializer_range=0.3, part_similarity="claimed_patches"))
        model.save_pretrained(folder)
        RatsImageProcessor(size={"height": size_px, "width": size_px}).save_pretrained(folder)
        return folder

    return save
