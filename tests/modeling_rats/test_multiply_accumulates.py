"""Costs by formula are those that torch counts, and those that the paper's figure shows."""

import re

import pytest
from transformers import Dinov2Config

from modeling_rats.multiply_accumulates import (
    ARCHITECTURES,
    agreed_multiply_accumulates,
    build_model,
    check_image_sizes,
    count_multiply_accumulates,
    find_architecture,
    forward_options,
    multiply_accumulates,
)


@pytest.mark.parametrize("image_size", [224, 512])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_formula_is_what_torch_counts(name, image_size):
    config = ARCHITECTURES[name]
    counted = count_multiply_accumulates(config, image_size, batch_size=2)
    assert multiply_accumulates(config, image_size, batch_size=2) == counted > 0
    assert counted == 2 * agreed_multiply_accumulates(config, name, image_size)


@pytest.mark.parametrize("communicate", [True, False])
@pytest.mark.parametrize("partition_registers", [True, False])
def test_the_formula_holds_of_the_ablations(make_config, partition_registers, communicate):
    config = make_config(partition_registers=partition_registers, communicate=communicate)
    assert multiply_accumulates(config, 48, 3) == count_multiply_accumulates(config, 48, 3)


def test_each_ablation_changes_the_cost(make_config):
    costs = {
        multiply_accumulates(make_config(partition_registers=partition, communicate=communicate), 48)
        for partition in (True, False)
        for communicate in (True, False)
    }
    assert len(costs) == 4


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),  # G; read off the paper's figure, RATS narrower: what the formula says
    [("rats-s", 355, 363), ("rats-b", 1406, 1434), ("vit-s", 2750, 2900), ("vit-b", 6200, 6450)],
)
def test_at_2048_px_the_counts_lie_on_the_curves_of_the_paper(name, lowest, highest):
    assert lowest < count_multiply_accumulates(ARCHITECTURES[name], 2048) / 1e9 < highest


def test_a_formula_that_does_not_describe_the_model_is_told(monkeypatch):
    monkeypatch.setattr("modeling_rats.multiply_accumulates.multiply_accumulates", lambda *arguments: 7)
    with pytest.raises(ValueError, match=r"vit-s at 32 px takes 7 .* by formula and \d+ as torch"):
        agreed_multiply_accumulates(ARCHITECTURES["vit-s"], "vit-s", 32)


def test_models_are_without_pooling_and_take_any_size(make_config):
    vit = build_model(ARCHITECTURES["vit-s"], device="meta")
    assert vit.pooler is None and not vit.training and vit.config._attn_implementation == "sdpa"
    assert forward_options(ARCHITECTURES["vit-s"]) == {"interpolate_pos_encoding": True}
    assert forward_options(make_config()) == {}


def test_a_saved_model_gives_its_sizes(make_config, tmp_path):
    make_config(num_registers=12).save_pretrained(tmp_path)
    assert find_architecture(str(tmp_path)).num_registers == 12


def test_a_model_of_another_type_is_refused(tmp_path):
    Dinov2Config(hidden_size=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"of type dinov2.*must be of type rats or vit.*rats-s, rats-b"):
        find_architecture(str(tmp_path))


def test_a_name_that_is_none_is_answered_with_those_that_are_known(tmp_path):
    with pytest.raises(OSError, match=r"rats-x is no architecture that is known \(rats-s, rats-b, .*Name one of these"):
        find_architecture(str(tmp_path / "rats-x"))


@pytest.mark.parametrize(("image_size", "remedy"), [(100, "96 or 112"), (8, "16")])
def test_a_size_that_patches_do_not_fill_is_refused(image_size, remedy):
    with pytest.raises(ValueError, match=rf"{image_size} px is no positive multiple .* vit-b, 16 px.*{re.escape(remedy)}\."):
        check_image_sizes(ARCHITECTURES["vit-b"], "vit-b", [224, image_size])
