"""Learning rates by depth, and what is decayed."""

import re

import pytest
import torch
from transformers import Dinov2Config, ViTConfig

from modeling_rats import RatsForUniversalSegmentation, RatsUniversalSegmentationConfig
from training.finetune_settings import FinetuneSettings
from training.layer_decay import build_layer_decay_optimizer, learning_rate_scales, set_learning_rate
from training.schedules import segmentation_learning_rate

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}


@pytest.fixture(params=["rats", "vit", "dinov2", "encoder_only"])
def model(make_config, request):
    backbones = {"vit": ViTConfig, "dinov2": Dinov2Config}
    backbone = backbones[request.param](**SIZES) if request.param in backbones else make_config(num_hidden_layers=3)
    fields = {"feature_size": 32, "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 4, "num_labels": 2}
    fields |= {"query_source": "learned"} if request.param in backbones else {}
    fields |= {"segmentation_head": "encoder_only"} if request.param == "encoder_only" else {}
    return RatsForUniversalSegmentation(RatsUniversalSegmentationConfig(backbone_config=backbone, **fields))


def test_each_block_learns_more_slowly_than_the_next(model):
    scales = learning_rate_scales(model, multiplier=0.5, decay=0.8)
    assert scales.keys() == dict(model.named_parameters()).keys()
    blocks = {name: re.match(r"model\.encoder\.(?:\w+\.)?layers?\.(\d+)\.", name) for name in scales}
    of_block = {int(found[1]): scales[name] for name, found in blocks.items() if found}
    assert of_block == pytest.approx({0: 0.5 * 0.8**2, 1: 0.5 * 0.8, 2: 0.5})
    for name, scale in scales.items():
        if name.startswith("model.encoder.embeddings"):
            assert scale == pytest.approx(0.5 * 0.8**3), name
        elif name.startswith("model.encoder.layernorm"):
            assert scale == pytest.approx(0.5), name
        elif not name.startswith("model.encoder"):
            assert scale == 1, name


def test_every_trainable_parameter_is_in_one_group_with_its_own_rate_and_decay(model):
    model.model.encoder.embeddings.requires_grad_(False)
    settings = FinetuneSettings(backbone_multiplier=0.1, layer_decay=0.9, weight_decay=0.05)
    optimizer = build_layer_decay_optimizer(model, settings)
    set_learning_rate(optimizer, 1e-3)
    scales = learning_rate_scales(model, 0.1, 0.9)
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(group_of)
    for name, parameter in model.named_parameters():
        assert (id(parameter) in group_of) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert group_of[id(parameter)]["lr"] == pytest.approx(1e-3 * scales[name]), name
            embeds = any(part in name for part in ("queries_", "transformer_module.level_embed"))
            assert (group_of[id(parameter)]["weight_decay"] == 0) == (parameter.ndim < 2 or embeds), name


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("poly", {0: 1, 50: 0.5**0.9, 90: 0.1**0.9}),
        ("multistep", {0: 1, 88: 1, 89: 0.1, 96: 0.1, 97: 0.01}),
        ("cosine", {0: 1, 50: 0.5, 100: 0}),
    ],
)
def test_schedules(schedule, expected):
    settings = FinetuneSettings(learning_rate=2.0, steps=100, schedule=schedule)
    for step, factor in expected.items():
        assert segmentation_learning_rate(step, settings) == pytest.approx(2 * factor), step


def test_warm_up_is_linear_and_ends_at_the_schedule():
    settings = FinetuneSettings(learning_rate=1.0, steps=1000, warmup_steps=4, schedule="multistep")
    assert [segmentation_learning_rate(step, settings) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert torch.tensor([segmentation_learning_rate(step, settings) for step in range(1000)]).min() == pytest.approx(0.01)
