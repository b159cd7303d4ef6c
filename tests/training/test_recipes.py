"""The recipes: numbers that agree with each other and with what their comments say."""

import re

import pytest
import yaml

from training.advice import advice
from training.arguments import QUICKSTART, parse
from training.networks import build_config
from training.run_settings import flat

RECIPES = sorted(QUICKSTART.parent.glob("[!d]*.yaml"))  # those of distillation are distill_*
IMAGES = {
    "quickstart": 20_000,
    "tiny_real": 86_000,
    "rats_vits16_20k": 20_000,
    "rats_vits16_100k": 100_000,
    "rats_vits16_in1k": 1_281_167,
    "rats_vitb16_in1k": 1_281_167,
}
MARKED = [recipe for recipe in RECIPES if recipe.stem.startswith("rats_")]  # each value has its source beside it
EPOCHS = re.compile(r"^steps: (\d+) .*?(\d+) epochs, of ([\d,]+) // (\d+) = ([\d,]+) steps$", re.MULTILINE)


def named(recipe):
    return recipe.stem


def number(text):
    return int(text.replace(",", ""))


def test_every_recipe_is_looked_at():
    assert {recipe.stem for recipe in RECIPES} == set(IMAGES) and len(MARKED) == 4


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_recipes_parse_to_their_own_values(recipe):
    settings = parse([str(recipe)])
    values = flat(settings)
    for name, value in yaml.safe_load(recipe.read_text()).items():
        assert values[name] in (value, [value]), name  # one data set may stand for a list of one
    config = build_config(settings.model, settings.data.global_crop_size)
    assert config.num_registers % config.num_attention_heads == 0
    assert settings.training.output_dir == f"outputs/{recipe.stem}"


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_schedules_fit_into_the_run(recipe):
    _, _, training, _ = parse([str(recipe)])
    assert 0 < training.warmup_steps <= training.steps / 10
    assert training.freeze_last_layer_steps <= training.steps / 100
    assert training.warmup_teacher_temperature <= training.teacher_temperature < training.student_temperature
    assert training.checkpoint_steps <= training.steps / 5


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_recipes_follow_the_rules_of_thumb_for_their_data(recipe):
    assert advice(IMAGES[recipe.stem], parse([str(recipe)])) == []


@pytest.mark.parametrize("recipe", MARKED, ids=named)
def test_the_epochs_that_a_recipe_states_are_those_of_its_steps(recipe):
    text, (_, _, training, _) = recipe.read_text(), parse([str(recipe)])
    ((steps, epochs, images, batch, epoch_steps),) = (map(number, found) for found in EPOCHS.findall(text))
    assert images == IMAGES[recipe.stem] and (steps, batch) == (training.steps, training.batch_size)
    assert epoch_steps == images // batch and steps == epochs * epoch_steps
    assert f", {epochs} epochs" in text.splitlines()[0]
    assert training.warmup_steps * 10 == steps and training.freeze_last_layer_steps * 100 == steps


@pytest.mark.parametrize("recipe", MARKED, ids=named)
def test_every_value_is_marked_with_its_source_and_what_was_not_run_is_said(recipe):
    head = re.match(r"(?:#.*\n)+", recipe.read_text()).group()
    sources = {source for source in ("paper", "DINO", "thumb", "ours") if re.search(rf"\b{source}\b", head)}
    assert {"paper", "DINO", "ours"} <= sources and re.search(r"not trained|Not run by us", head) and "no GPU" in head
    for line in recipe.read_text().removeprefix(head).splitlines():
        marked = re.match(r"\w+: .*# (\w+)", line)
        assert marked and marked.group(1) in sources, line


def test_the_two_sizes_differ_only_where_the_size_matters():
    small, large = (flat(parse([str(QUICKSTART.with_name(f"rats_vits16_{size}.yaml"))])) for size in ("20k", "100k"))
    differing = {name for name in small if small[name] != large[name]}
    assert differing == {
        "num_prototypes", "shuffle_buffer", "batch_size", "steps", "warmup_steps", "freeze_last_layer_steps", "output_dir",
    }  # fmt: skip
