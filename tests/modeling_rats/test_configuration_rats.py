"""The configuration says what is wrong with a value, and comes back from disk as it was."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_rats import RatsConfig
from modeling_rats.remote_code import AUTO_MAP


def test_default_is_the_largest_model_of_the_paper():
    config = RatsConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.num_registers, config.patch_size, config.intermediate_size) == (192, 16, 4 * 768)
    assert config.partition_registers and config.communicate
    assert (config.part_layer, config.part_similarity) == (-1, "registers")
    assert config.layer_norm_eps == 1e-6  # DINO's, not the 1e-12 of transformers' ViT


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"num_registers": 9}, "num_registers=9 must be divisible by num_attention_heads=4 .*; use 8 or 12"),
        ({"num_registers": 3}, "num_registers=3 must be divisible by num_attention_heads=4 .*; use 4"),
        ({"hidden_size": 30}, "hidden_size=30 must be divisible by num_attention_heads=4 .*; use 28 or 32"),
        ({"image_size": 33}, "image_size height 33 px must be a positive multiple of the patch height 8 px; use 32 or 40"),
        ({"image_size": (32, 33)}, "image_size width 33 px .* use 32 or 40"),
        ({"image_size": 4}, "image_size height 4 px .* use 8"),
        ({"patch_size": (8, 5)}, "image_size width 32 px .* patch width 5 px; use 30 or 35"),
        ({"patch_size": 0}, "patch_size=0 must be at least 1 px"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be at least 1"),
        ({"num_registers": 0}, "num_registers=0 must be at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be at least 1"),
        ({"hidden_size": -4}, "hidden_size=-4 must be at least 1"),
        ({"num_channels": 0}, "num_channels=0 must be at least 1"),
        ({"part_layer": 3}, "part_layer=3 must index the 3 hidden states"),
        ({"part_layer": -4}, "part_layer=-4 must index the 3 hidden states"),
        ({"part_similarity": "cosine"}, "'part_similarity' expected one of .'registers', 'claimed_patches'.*, got cosine"),
        ({"part_similarity": "claimed_patches", "part_layer": 0}, "part_layer=0 are the embeddings, .* use another layer"),
        ({"part_similarity": "claimed_patches", "part_layer": -3}, "part_layer=-3 are the embeddings"),
        ({"num_registers": "8"}, "'num_registers' expected int, got str"),
        ({"hidden_size": 32.0}, "'hidden_size' expected int, got float"),
        ({"communicate": "yes"}, "'communicate' expected bool, got str"),
        ({"patch_size": "8"}, "patch_size"),
        ({"num_prototypes": 0}, "num_prototypes=0 must be at least 1"),
        ({"intermediate_size": 0}, "intermediate_size=0 must be at least 1"),
        ({"head_hidden_size": 0}, "head_hidden_size=0 must be at least 1"),
        ({"head_bottleneck_size": 0}, "head_bottleneck_size=0 must be at least 1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 must"),
        ({"drop_path_rate": -0.1}, "drop_path_rate=-0.1 must"),
        ({"patch_size": [8]}, "patch_size"),
    ],
    ids=str,
)
def test_bad_values_are_named(make_config, overrides, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        make_config(**overrides)


def test_without_partition_any_number_of_registers_will_do(make_config):
    assert make_config(num_registers=7, partition_registers=False).num_registers == 7


@pytest.mark.parametrize("part_layer", [-3, -1, 0, 2])
def test_part_layer_may_be_any_hidden_state(make_config, part_layer):
    assert make_config(part_layer=part_layer).part_layer == part_layer


def test_an_assigned_value_of_the_wrong_type_is_refused(make_config):
    with pytest.raises(StrictDataclassError, match="num_registers"):
        make_config().num_registers = "8"


@pytest.mark.parametrize(
    "labels, expected",
    [
        ({}, {register: f"register {register}" for register in range(8)}),
        ({"num_labels": 2}, {0: "LABEL_0", 1: "LABEL_1"}),  # the library's default number, and yet not the default here
        ({"num_labels": 3}, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}),
        ({"id2label": {0: "head", 1: "wheel"}, "label2id": {"head": 0, "wheel": 1}}, {0: "head", 1: "wheel"}),
    ],
    ids=str,
)
def test_labels_survive_saving(make_config, tmp_path, labels, expected):
    config = make_config(**labels)
    config.save_pretrained(tmp_path)
    for loaded in (RatsConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert loaded.id2label == config.id2label == expected
        assert loaded.label2id == {label: index for index, label in expected.items()}
        assert loaded.num_labels == len(expected)


def test_every_field_survives_saving(make_config, tmp_path):
    config = make_config(
        patch_size=(8, 4), image_size=[32, 48], part_layer=1, communicate=False, partition_registers=False, qkv_bias=False,
        drop_path_rate=0.25, use_mask_token=False, hidden_act="relu", layer_norm_eps=1e-5, initializer_range=0.1,
        out_indices=[0, 2], return_registers=True, apply_layernorm=False, reshape_hidden_states=False,
        semantic_loss_ignore_index=0, part_similarity="claimed_patches",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    loaded, saved = RatsConfig.from_pretrained(tmp_path).to_dict(), config.to_dict()
    for name in RatsConfig.__annotations__:
        name = name.lstrip("_")
        assert _as_list(loaded[name]) == _as_list(saved[name]), name
    assert loaded.keys() == saved.keys()


def test_the_last_stage_is_the_default_and_stages_can_be_chosen_by_name_or_index(make_config):
    assert make_config().out_features == ["stage2"] and make_config().out_indices == [2]
    assert make_config().stage_names == ["stem", "stage1", "stage2"]
    assert make_config(out_features=["stem", "stage2"]).out_indices == [0, 2]
    assert make_config(out_indices=[-2, -1]).out_features == ["stage1", "stage2"]
    with pytest.raises(ValueError, match="out_features must be a subset of stage_names"):
        make_config(out_features=["stage3"])


def test_saving_leaves_the_configuration_as_it_was(make_config, tmp_path):
    config = make_config()
    before = config.to_dict()
    config.save_pretrained(tmp_path)
    assert config.to_dict() == before


def test_sizes_in_patches(make_config):
    config = make_config(patch_size=(8, 4), image_size=(32, 48))
    assert config.patch_height_width == (8, 4) and config.grid_size == (4, 12)
    assert make_config().grid_size == (4, 4)


def test_every_own_field_is_documented():
    inherited = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"}
    for name in set(RatsConfig.__annotations__) - {"model_type"} - inherited:
        documented = rf"`{name[1:]}=" if name.startswith("_") else rf"^\s*{name} \("  # the stages are in the introduction
        assert re.search(documented, RatsConfig.__doc__, re.MULTILINE), name


def _as_list(value):
    return list(value) if isinstance(value, tuple) else value


# Fields given on loading


@pytest.fixture
def folder(make_config, tmp_path):
    make_config().save_pretrained(tmp_path)
    return tmp_path


def test_the_labels_of_the_registers_are_not_saved_and_follow_their_number(folder):
    assert "id2label" not in json.loads((folder / "config.json").read_text())
    loaded = RatsConfig.from_pretrained(folder, num_registers=16)
    assert loaded.registers_are_labels and loaded.num_labels == 16 and loaded.label2id["register 15"] == 15


@pytest.mark.parametrize("given", [{"num_registers": 7}, {"patch_size": 5}, {"part_layer": 9}], ids=str)
def test_fields_given_on_loading_are_checked_together(folder, given):
    with pytest.raises(StrictDataclassError, match="must"):
        RatsConfig.from_pretrained(folder, **given)


@pytest.mark.parametrize("layers", [1, 4])
def test_stages_follow_the_number_of_layers(folder, layers):
    loaded = RatsConfig.from_pretrained(folder, num_hidden_layers=layers)
    assert loaded.stage_names[-1] == f"stage{layers}" and loaded.out_indices == [layers]
    assert len(loaded.stage_names) == layers + 1


def test_stages_given_on_loading_replace_the_saved_ones(folder):
    assert RatsConfig.from_pretrained(folder, out_indices=[0, 1]).out_features == ["stem", "stage1"]
    assert RatsConfig.from_pretrained(folder, out_features=["stage1"]).out_indices == [1]


def test_labels_given_on_loading_are_the_users_own(folder):
    as_many_as_registers = RatsConfig.from_pretrained(folder, num_labels=8)
    assert as_many_as_registers.id2label == {index: f"LABEL_{index}" for index in range(8)}
    assert not as_many_as_registers.registers_are_labels
    named = RatsConfig.from_pretrained(folder, id2label={0: "head", 1: "wheel"})
    assert named.label2id == {"head": 0, "wheel": 1} and named.num_labels == 2


def test_no_labels_at_all_survive_saving(make_config, tmp_path):
    make_config(num_labels=0).save_pretrained(tmp_path)
    assert RatsConfig.from_pretrained(tmp_path).num_labels == 0


def test_unused_arguments_are_handed_back(folder):
    config, unused = RatsConfig.from_pretrained(folder, num_registers=16, something=3, return_unused_kwargs=True)
    assert config.num_registers == 16 and unused == {"something": 3}


def test_threads_may_save_one_configuration(make_config, tmp_path):
    config = make_config()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: config.save_pretrained(tmp_path / str(number)), range(40)))
    for number in range(40):
        assert json.loads((tmp_path / str(number) / "config.json").read_text())["auto_map"] == AUTO_MAP
