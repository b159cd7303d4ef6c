"""The recipes of fine-tuning: numbers that parse, and that are those of their sources."""

import re

import pytest
import yaml
from transformers import Mask2FormerConfig

from training.arguments import QUICKSTART
from training.finetune_arguments import parse
from training.run_settings import flat

RECIPES = sorted((QUICKSTART.parent / "segmentation").glob("*.yaml"))
OF_THE_PAPER = [recipe for recipe in RECIPES if not recipe.stem.startswith("tiny")]


def named(recipe):
    return recipe.stem


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_recipes_parse_to_their_own_values(recipe):
    settings = parse([str(recipe), "--dataset", "images", "--backbone", "model"])
    values = flat(settings)
    for name, value in yaml.safe_load(recipe.read_text()).items():
        assert name == "backbone" or values[name] == value, name
    assert settings.training.output_dir == f"outputs/{recipe.stem}"
    assert settings.training.checkpoint_steps <= settings.training.steps / 4


def test_there_is_one_for_each_row_of_the_paper():
    assert [recipe.stem for recipe in OF_THE_PAPER] == ["ade20k_semantic_rats_vits16", "coco_instance_rats_vits16"]


@pytest.mark.parametrize("recipe", OF_THE_PAPER, ids=named)
def test_every_value_is_marked_with_its_source_and_what_was_not_run_is_said(recipe):
    head = re.match(r"(?:#.*\n)+", recipe.read_text()).group()
    assert "Not run by us: no GPU" in head and "the paper's numbers" in head
    for line in recipe.read_text().removeprefix(head).splitlines():
        assert re.match(r"\w+: .*# (paper|M2F|ours|the official files)", line), line


@pytest.mark.parametrize("recipe", OF_THE_PAPER, ids=named)
def test_sizes_and_weights_are_mask2formers_own_defaults(recipe):
    default, recipe = Mask2FormerConfig(), yaml.safe_load(recipe.read_text())
    shared = {name: value for name, value in recipe.items() if hasattr(default, name)}
    assert len(shared) > 10 and all(getattr(default, name) == value for name, value in shared.items())
