"""The configuration of universal segmentation says what is wrong with a value, and comes back from disk as it was."""

import dataclasses
import json
import re

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    Mask2FormerConfig,
    ViTConfig,
)

from modeling_rats import RatsConfig, RatsForUniversalSegmentation, RatsUniversalSegmentationConfig
from modeling_rats.remote_code import UNIVERSAL_SEGMENTATION_AUTO_MAP

OWN = {"segmentation_head", "query_source", "num_upscale_blocks", "num_auxiliary_layers"}
OTHER_BACKBONES = [ViTConfig, Dinov2Config, Dinov2WithRegistersConfig, DINOv3ViTConfig]


@pytest.fixture
def make(make_config):
    """Configurations of a tiny backbone with 8 registers."""
    return lambda **fields: RatsUniversalSegmentationConfig(**({"backbone_config": make_config()} | fields))


def without_registers(**fields):
    return RatsUniversalSegmentationConfig(backbone_config=ViTConfig(), **fields)


# Defaults


def test_defaults_of_shared_fields_are_mask2formers(make):
    ours, theirs = make(), Mask2FormerConfig()
    shared = {field.name for field in dataclasses.fields(Mask2FormerConfig)} - {"backbone_config", "num_queries"}
    assert {"feature_size", "decoder_layers", "class_weight", "no_object_weight", "use_auxiliary_loss"} <= shared
    for name in shared:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert {field.name for field in dataclasses.fields(ours)} - shared == OWN | {"backbone_config", "num_queries"}


def test_the_default_is_mask2formers_head_with_queries_from_the_registers_of_the_largest_rats():
    config = RatsUniversalSegmentationConfig()
    assert type(config.backbone_config) is RatsConfig and config.backbone_config.to_dict() == RatsConfig().to_dict()
    assert (config.segmentation_head, config.query_source, config.num_queries) == ("mask2former", "registers", 192)
    assert (config.num_upscale_blocks, config.num_auxiliary_layers, config.num_labels) == (2, 3, 2)


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, 8),
        ({"num_queries": 20}, 20),
        ({"query_source": "learned"}, 100),
        ({"query_source": "learned", "num_queries": 3}, 3),
        ({"segmentation_head": "encoder_only"}, 8),
    ],
    ids=str,
)
def test_the_number_of_queries_follows_from_the_registers(make, fields, expected):
    assert make(**fields).num_queries == expected


@pytest.mark.parametrize(
    "config_class, fields, registers",
    [
        (ViTConfig, {}, slice(1, 1)),
        (Dinov2Config, {}, slice(1, 1)),
        (Dinov2WithRegistersConfig, {"num_register_tokens": 4}, slice(1, 5)),
        (DINOv3ViTConfig, {"num_register_tokens": 6}, slice(1, 7)),
        (RatsConfig, {"num_registers": 24}, slice(0, 24)),
    ],
)
def test_where_the_registers_stand(config_class, fields, registers):
    config = RatsUniversalSegmentationConfig(backbone_config=config_class(**fields), query_source="learned")
    assert config.register_slice == registers and config.num_registers == registers.stop - registers.start


# Errors


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"query_source": "learned", "segmentation_head": "encoder_only"}, "registers as queries, not query_source='learned'"),
        ({"num_queries": 7}, "num_queries=7 must be at least the backbone's 8 registers, .*; leave num_queries out"),
        ({"num_queries": 9, "segmentation_head": "encoder_only"}, "num_queries=9 must be the backbone's 8 registers with"),
        ({"num_queries": 0, "query_source": "learned"}, "num_queries=0 must be at least 1"),
        ({"num_upscale_blocks": -1}, "num_upscale_blocks=-1 must be at least 0"),
        ({"num_auxiliary_layers": -1}, "num_auxiliary_layers=-1 must be at least 0"),
        ({"decoder_layers": 0}, "decoder_layers=0 must be at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be at least 1"),
        ({"train_num_points": 0}, "train_num_points=0 must be at least 1"),
        ({"feature_size": 48}, "feature_size=48 must be a positive multiple of 32; use 256"),
        ({"feature_size": 0}, "feature_size=0 must be a positive multiple of 32"),
        ({"hidden_dim": 258}, "hidden_dim=258 must be a positive multiple of 4, .*; use 256"),
        ({"hidden_dim": 0}, "hidden_dim=0 must be a positive multiple of 4"),
        ({"hidden_dim": 36}, "hidden_dim=36 must be divisible by num_attention_heads=8; use 256 and 8"),
        ({"num_attention_heads": 3, "hidden_dim": 48}, "feature_size=256 must be divisible by num_attention_heads=3"),
        ({"num_labels": 0}, "at least one label; give num_labels=... or id2label="),
        ({"id2label": {}}, "at least one label"),
        ({"segmentation_head": "decoder_only"}, "'segmentation_head' expected one of .'mask2former', 'encoder_only'"),
        ({"query_source": "patches"}, "'query_source' expected one of .'registers', 'learned'"),
        ({"num_upscale_blocks": 1.5}, "'num_upscale_blocks' expected int, got float"),
        ({"feature_size": "256"}, "'feature_size' expected int, got str"),
    ],
    ids=str,
)
def test_bad_values_are_named(make, fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        make(**fields)


def test_a_backbone_without_registers_has_no_queries_to_give():
    with pytest.raises(StrictDataclassError, match="a backbone with registers, and 'vit' has none; use query_source='learned'"):
        without_registers()
    with pytest.raises(StrictDataclassError, match="reads masks from the registers of RATS, and the backbone is 'vit'"):
        without_registers(segmentation_head="encoder_only", query_source="learned")
    assert without_registers(query_source="learned").num_queries == 100


def test_assigned_fields_are_checked_when_a_model_is_made(make):
    config = make()
    config.num_queries = 3
    with pytest.raises(ValueError, match="num_queries=3 must be at least"):
        RatsForUniversalSegmentation(config)
    with pytest.raises(StrictDataclassError, match="query_source"):
        config.query_source = "patches"


@pytest.mark.parametrize("config_class", [RatsConfig, Mask2FormerConfig])
def test_the_configuration_of_another_kind_of_model_is_refused(config_class, tmp_path):
    config_class().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"model_type='{config_class.model_type}' is none of 'rats_universal.*from_backbone"):
        RatsUniversalSegmentationConfig.from_pretrained(tmp_path)


# Saving and loading


@pytest.mark.parametrize("config_class", [RatsConfig, *OTHER_BACKBONES])
def test_every_field_survives_saving(config_class, tmp_path):
    backbone = config_class(hidden_size=48, num_attention_heads=4, num_hidden_layers=3, layer_norm_eps=1e-4)
    config = RatsUniversalSegmentationConfig(
        backbone_config=backbone,
        query_source="learned",
        num_queries=17,
        num_upscale_blocks=1,
        num_auxiliary_layers=2,
        feature_size=64,
        hidden_dim=32,
        decoder_layers=4,
        class_weight=1.5,
        use_auxiliary_loss=False,
        id2label={0: "road", 1: "car", 2: "sky"},
    )
    config.save_pretrained(tmp_path)
    for loaded in (
        RatsUniversalSegmentationConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        RatsUniversalSegmentationConfig.from_dict(config.to_dict()),
    ):
        assert type(loaded) is RatsUniversalSegmentationConfig and type(loaded.backbone_config) is config_class
        assert as_json(loaded) == as_json(config)
        assert loaded.id2label == {0: "road", 1: "car", 2: "sky"} and loaded.label2id["car"] == 1
        assert loaded.backbone_config.layer_norm_eps == 1e-4 and loaded.num_labels == 3


def as_json(config):
    """All fields, the backbone's too, as they would be written; which file they were read from does not count."""
    fields = json.loads(config.to_json_string(use_diff=False))
    fields["backbone_config"].pop("_name_or_path", None)
    return {
        name: value for name, value in fields.items() if name not in ("_name_or_path", "transformers_version", "architectures")
    }


@pytest.mark.parametrize("with_type", [True, False])
def test_a_backbone_may_be_given_by_its_fields(make_config, with_type):
    fields = make_config().to_dict()
    if not with_type:
        fields.pop("model_type")
    config = RatsUniversalSegmentationConfig(backbone_config=fields)
    assert type(config.backbone_config) is RatsConfig and config.num_queries == 8
    config = RatsUniversalSegmentationConfig(backbone_config={"model_type": "vit", "hidden_size": 48}, query_source="learned")
    assert type(config.backbone_config) is ViTConfig and config.backbone_config.hidden_size == 48


def test_the_registers_of_the_backbone_are_not_the_labels(make):
    assert make().id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert make(num_labels=5).num_labels == 5


def test_labels_given_on_loading_replace_the_saved_ones(make, tmp_path):
    make(num_labels=5).save_pretrained(tmp_path)
    assert RatsUniversalSegmentationConfig.from_pretrained(tmp_path, num_labels=3).id2label[2] == "LABEL_2"
    assert RatsUniversalSegmentationConfig.from_pretrained(tmp_path, id2label={0: "road"}).num_labels == 1


def test_the_file_names_its_code_and_only_its_own(make, tmp_path):
    config = make()
    before = config.to_dict()
    config.save_pretrained(tmp_path)
    assert config.to_dict() == before
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == UNIVERSAL_SEGMENTATION_AUTO_MAP and "custom_pipelines" not in saved
    assert "auto_map" not in saved["backbone_config"]


def test_every_own_field_is_documented():
    for name in OWN | {"backbone_config", "num_queries"}:
        assert re.search(rf"^\s*{name} \(", RatsUniversalSegmentationConfig.__doc__, re.MULTILINE), name
