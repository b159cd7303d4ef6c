"""Settings of distillation: its recipes, and what can be wrong."""

import re

import pytest
import yaml
from transformers import Dinov2WithRegistersConfig, DINOv3ViTConfig

from modeling_rats.multiply_accumulates import count_multiply_accumulates
from training.arguments import QUICKSTART
from training.distill_arguments import parse
from training.distill_dry_run import cost_of_student
from training.run_settings import flat

RECIPES = sorted(QUICKSTART.parent.glob("distill_*.yaml"))
NOT_RUN = [recipe for recipe in RECIPES if recipe.stem != "distill_tiny"]
TEACHER = ["--teacher", "owner/teacher"]
TEACHERS = {
    "distill_dinov2_small": Dinov2WithRegistersConfig(
        hidden_size=384, num_attention_heads=6, patch_size=14, num_register_tokens=4
    ),
    "distill_dinov3_base": DINOv3ViTConfig(
        hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_register_tokens=4, patch_size=16
    ),
}


def named(recipe):
    return recipe.stem


@pytest.fixture
def refusal(capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: 2000\n")

    def refusal(*arguments):
        """What `parse` prints before it exits with code 2."""
        with pytest.raises(SystemExit) as exit:
            parse([str(recipe), *arguments])
        assert exit.value.code == 2
        return capsys.readouterr().err

    return refusal


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_recipes_parse_to_their_own_values(recipe):
    settings = parse([str(recipe), *TEACHER])
    values, written = flat(settings), yaml.safe_load(recipe.read_text())
    for name, value in (written | {"teacher": "owner/teacher"}).items():
        assert values[name] in (value, [value]), name
    assert settings.training.output_dir == f"outputs/{recipe.stem}"
    assert settings.model.num_registers % settings.model.num_attention_heads == 0
    assert settings.training.warmup_steps <= settings.training.steps / 10


@pytest.mark.parametrize("recipe", NOT_RUN, ids=named)
def test_what_was_not_run_is_said_and_every_value_has_its_source(recipe):
    head = re.match(r"(?:#.*\n)+", recipe.read_text()).group()
    assert "Not run by us: no GPU" in head and "An estimate." in head
    for line in recipe.read_text().removeprefix(head).splitlines():
        assert re.match(r"\w+: .*# (paper|VECA|ours)\b", line), line


@pytest.mark.parametrize("recipe", NOT_RUN, ids=named)
def test_the_cost_that_a_recipe_states_is_counted(recipe):
    settings, text = parse([str(recipe)]), re.sub(r"\n# ", " ", recipe.read_text())
    grid = settings.data.global_crop_size // settings.model.patch_size
    config = TEACHERS[recipe.stem]
    student = cost_of_student(settings, config.hidden_size)
    teacher = count_multiply_accumulates(config, grid * config.patch_size)
    a_view, of_student, of_teacher, run, hours = re.search(
        r"takes ([\d.]+) billion multiply-accumulates \(student 3 x ([\d.]+), teacher ([\d.]+);.* the run ([\d.e]+): "
        r"([\d.]+) hours",
        text,
    ).groups()
    cost = 3 * student + teacher
    whole = cost * settings.training.steps * settings.training.batch_size
    for told, counted in ((a_view, cost / 1e9), (of_student, student / 1e9), (of_teacher, teacher / 1e9), (run, whole)):
        assert float(told) == pytest.approx(counted, rel=0.015), (told, counted)
    assert float(hours) == pytest.approx(2 * whole / (0.35 * 312e12) / 3600, rel=0.02)


def test_a_recipe_and_a_teacher_are_necessary(refusal, capsys):
    assert "teacher is missing: name a folder or a Hub name" in refusal()
    with pytest.raises(SystemExit):
        parse([])
    assert "the first argument must be a recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, told",
    [
        ("--patch_weight 0 --register_bottleneck_weight 0 --global_weight 0", "leave nothing to learn"),
        ("--patch_weight -1", "patch_weight=-1.0 must be at least 0"),
        ("--register_bottleneck_temperature 0", "register_bottleneck_temperature=0.0 must be above 0"),
        ("--register_bottleneck_mean all", "invalid choice: 'all'"),
        ("--global_crop_size 100", "global_crop_size=100 must be a positive multiple of patch_size=16"),
        ("--export_image_size 100", "export_image_size=100 must be a positive multiple of patch_size=16"),
        ("--global_crops_scale 0.5", "global_crops_scale=[0.5] must be two shares"),
        ("--num_global_crops 0", "num_global_crops=0 must be at least 1"),
        ("--model_type vit", "invalid choice: 'vit'"),
        ("--model_type register_keys --warm_start teacher", "warm_start=teacher fills a RATS; with model_type=register_keys"),
        ("--warmup_steps 2000", "warmup_steps=2000 must be less than steps=2000"),
        ("--teacher_momentum 0.9", "unknown settings or values: --teacher_momentum"),
    ],
)
def test_what_is_wrong_is_told(refusal, arguments, told):
    assert told in refusal(*TEACHER, *arguments.split())
