"""RATS, its variants and its twins: the same sizes and head, and what each gives of an image."""

import pytest
import torch

from evaluation.register_attention_variants import VARIANTS
from training.networks import RATS_TYPES, build_backbone_and_head, build_config, extract
from training.settings import ModelSettings

TYPES = [*RATS_TYPES, "vit", "registers"]


@pytest.fixture
def build(make_model_settings):
    def build(model_type, **sizes):
        torch.manual_seed(0)
        needs = VARIANTS[model_type].needs if model_type in VARIANTS else {}
        config = build_config(make_model_settings(model_type=model_type, **sizes, **needs), 32)
        backbone, head = build_backbone_and_head(model_type, config)
        return backbone.eval(), head

    return build


@pytest.mark.parametrize("model_type", TYPES)
def test_width_depth_heads_mlp_and_head_are_those_of_rats(build, model_type):
    backbone, head = build(model_type)
    names = dict(backbone.named_parameters())
    mlps = sorted(
        tuple(one.shape) for name, one in names.items() if "fc1.weight" in name or "intermediate.dense.weight" in name
    )
    assert mlps == [(64, 32)] * 2
    config = backbone.config
    assert (config.hidden_size, config.num_attention_heads, config.patch_size, config.image_size) == (32, 4, 8, 32)
    assert head.prototypes.weight.shape == (16, 8)
    assert config.layer_norm_eps == 1e-6


@pytest.mark.parametrize("size_px", [32, 16, 48])
@pytest.mark.parametrize("model_type", TYPES)
def test_features_are_tokens_of_the_last_layer_at_any_size(build, model_type, size_px):
    backbone, _ = build(model_type)
    images = torch.rand(3, 3, size_px, size_px)
    features = extract(backbone, images, with_patches=True)
    assert features.pooled.shape == (3, 32) and features.patches.shape == (3, (size_px // 8) ** 2, 32)
    if model_type == "vit":
        tokens = backbone(images, interpolate_pos_encoding=True).last_hidden_state
        assert features.registers is None and torch.equal(features.pooled, tokens[:, 0])
    else:
        tokens = backbone(images).last_hidden_state
        first = 1 if model_type == "registers" else 0
        assert torch.equal(features.registers, tokens[:, first : first + 8])
        torch.testing.assert_close(features.pooled, features.registers.mean(dim=1))
    assert torch.equal(features.patches, tokens[:, -features.patches.shape[1] :])


@pytest.mark.parametrize("model_type", TYPES)
def test_without_patches_the_rest_is_the_same_and_every_parameter_has_a_gradient(build, model_type):
    backbone, _ = build(model_type)
    images = torch.rand(2, 3, 32, 32)
    features = extract(backbone, images)
    assert features.patches is None
    torch.testing.assert_close(features.pooled, extract(backbone, images, with_patches=True).pooled, atol=1e-6, rtol=1e-5)
    features.pooled.square().sum().backward()
    assert {name for name, one in backbone.named_parameters() if one.requires_grad and one.grad is None} == set()


def test_a_ratio_that_a_twin_cannot_have_is_refused(build):
    with pytest.raises(ValueError, match="intermediate_size=40 must be a multiple of hidden_size=32"):
        build("registers", intermediate_size=40)


def test_sizes_that_do_not_fit_are_refused(make_model_settings):
    with pytest.raises(ValueError, match=r"(?s)model settings: .*num_registers=9"):
        build_config(make_model_settings(num_registers=9), 32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_has_its_attention_and_starts_from_the_weights_of_rats(build, variant):
    (backbone, head), (plain, plain_head) = build(variant), build("rats")
    assert backbone.config.attention_variant == variant
    assert all(type(layer.attention) is VARIANTS[variant] for layer in backbone.encoder.layer)
    for network, other in ((backbone, plain), (head, plain_head)):
        weights = network.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in other.state_dict().items())


def test_a_variant_without_what_it_needs_is_refused(make_model_settings):
    with pytest.raises(ValueError, match=r"(?s)model settings: .*partition_registers=True must be False with .*'perceiver'"):
        build_config(make_model_settings(model_type="perceiver"), 32)


def test_every_type_can_be_asked_for():
    choices = ModelSettings.__dataclass_fields__["model_type"].metadata["choices"]
    assert sorted(choices) == sorted(TYPES)
