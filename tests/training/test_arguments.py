"""Settings: a recipe, the command line above it, and everything that can be wrong with either."""

from dataclasses import fields

import pytest

from training.arguments import QUICKSTART, parse
from training.networks import build_config
from training.settings import DataSettings, ModelSettings, Settings

RECIPES = sorted(QUICKSTART.parent.glob("[!d]*.yaml"))  # those of distillation are distill_*


@pytest.fixture
def write_recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def refusal(capsys, *arguments):
    """What `parse` prints before it exits with code 2."""
    with pytest.raises(SystemExit) as exit:
        parse(list(arguments))
    assert exit.value.code == 2
    return capsys.readouterr().err


def test_without_a_recipe_it_is_the_quickstart():
    settings = parse([])
    assert settings == parse([str(QUICKSTART)])
    assert settings.training.output_dir == "outputs/quickstart" and settings.data.dataset is None


def test_a_recipe_overrides_defaults_and_the_command_line_overrides_the_recipe(write_recipe):
    recipe = write_recipe("steps: 7\nwarmup_steps: 2\nhidden_size: 48\n")
    model, data, training, _ = parse([recipe, "--steps", "9", "--patch_size=8"])
    assert (training.steps, training.warmup_steps, model.hidden_size, model.patch_size) == (9, 2, 48, 8)
    assert data == DataSettings()


def test_a_setting_given_twice_is_the_last():
    assert parse(["--steps", "700", "--steps", "800"]).training.steps == 800


@pytest.mark.parametrize(
    "line, name, value",
    [
        ("learning_rate: 1e-3", "learning_rate", 1e-3),
        ("learning_rate: 1.5e-3", "learning_rate", 1.5e-3),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("global_crops_scale: [0.3, 1]", "global_crops_scale", [0.3, 1.0]),
        ("communicate: false", "communicate", False),
        ("partition_registers: true", "partition_registers", True),
        ("quiet: true", "quiet", True),
        ("cpu_threads: 2", "cpu_threads", 2),
        ("dataset: null", "dataset", None),
        ("dataset: 'owner/name: with spaces = signs'", "dataset", ["owner/name: with spaces = signs"]),
        ("dataset: -dash", "dataset", ["-dash"]),
        ("dataset: [one, owner/two, 3]", "dataset", ["one", "owner/two", "3"]),
        ("dataset: [one, two]\ndataset_weights: [1, 1e-3]", "dataset_weights", [1.0, 1e-3]),
        ("dataset_weights: null", "dataset_weights", None),
        ("dataset_config: default", "dataset_config", ["default"]),
        ("dataset_split: validation", "dataset_split", ["validation"]),
        ("dataset: [one, two]\ndataset_revision: [main, null]", "dataset_revision", ["main", "None"]),
        ("image_column: picture", "image_column", ["picture"]),
        ("output_dir: 2026", "output_dir", "2026"),
        ("mixed_precision: 'no'", "mixed_precision", "no"),
    ],
)
def test_values_get_the_type_of_their_setting(write_recipe, line, name, value):
    recipe = write_recipe(f"warmup_steps: 0\n{line}\n")
    (settings,) = (one for one in parse([recipe]) if hasattr(one, name))
    assert getattr(settings, name) == value and type(getattr(settings, name)) is type(value)


def test_yaml_takes_a_bare_no_for_false_and_the_refusal_names_the_setting(write_recipe, capsys):
    message = refusal(capsys, write_recipe("mixed_precision: no\n"))
    assert "--mixed_precision" in message and "invalid choice: 'False'" in message


def test_lists_on_the_command_line():
    assert parse(["--global_crops_scale", "0.3", "0.9", "--steps", "700"]).data.global_crops_scale == [0.3, 0.9]


def test_data_sets_on_the_command_line_replace_those_of_the_recipe(write_recipe):
    recipe = write_recipe("warmup_steps: 0\ndataset: [one, two]\ndataset_weights: [1, 2]\ndataset_split: [a, b]\n")
    arguments = ["--dataset", "b c", "d", "e", "--dataset_weights", "1", "3", "0.5", "--dataset_split", "train"]
    data = parse([recipe, *arguments, "--dataset_config", "none", "x", "none"]).data
    assert (data.dataset, data.dataset_weights) == (["b c", "d", "e"], [1.0, 3.0, 0.5])
    assert (data.dataset_split, data.dataset_config, data.image_column) == (["train"], ["none", "x", "none"], None)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--stepz", "5"], "--stepz"),
        (["--step", "5"], "--step"),  # no abbreviations
        (["--steps", "many"], "--steps: invalid int value: 'many'"),
        (["--steps", "1.5"], "--steps: invalid int value"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--communicate", "perhaps"], "--communicate"),
        (["--centering", "none"], "--centering: invalid choice: 'none'"),
        (["--mixed_precision", "fp8"], "invalid choice: 'fp8'"),
        (["--steps"], "--steps: expected one argument"),
        (["--steps", "0", "--warmup_steps", "-1"], "steps=0 must be at least 1"),
        (["--batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--log_steps", "0"], "log_steps=0"),
        (["--model_type", "all_heads", "--warm_start", "vit"], "warm_start=vit fills a RATS; with model_type=all_heads"),
        (["--steps", "600", "--warmup_steps", "600"], "warmup_steps=600 must be less than steps=600"),
        (["--global_crop_size", "60"], "global_crop_size=60 must be a positive multiple of patch_size=8"),
        (["--local_crop_size", "4"], "local_crop_size=4"),
        (["--global_crops_scale", "0.4"], "global_crops_scale=[0.4] must be two shares"),
        (["--local_crops_scale", "0.4", "0.1"], "local_crops_scale=[0.4, 0.1] must be"),
        (["--global_crops_scale", "0", "1"], "0 < low <= high <= 1"),
        (["--cpu_threads", "0"], "cpu_threads=0 must be at least 1"),
        (["--patch_size", "0"], "patch_size=0"),
        (["--num_workers", "-1"], "num_workers=-1"),
        (["--num_local_crops", "-1"], "num_local_crops=-1"),
        (["--shuffle_buffer", "0"], "shuffle_buffer=0"),
        (["--max_broken_share", "1.5"], "max_broken_share=1.5 must lie between 0 and 1"),
        (["--dataset"], "--dataset: expected at least one argument"),
        (["--dataset", "a", "b", "--dataset_weights", "2"], "dataset_weights=[2.0] has 1 values and dataset 2; give one each"),
        (["--dataset_weights", "2", "1"], "dataset_weights=[2.0, 1.0] has 2 values and dataset 1"),
        (["--dataset", "a", "b", "--dataset_weights", "1", "0"], "dataset_weights=[1.0, 0.0] must be finite and above 0"),
        (["--dataset", "a", "b", "--dataset_weights", "1", "-1"], "dataset_weights=[1.0, -1.0] must be"),
        (["--dataset", "a", "b", "--dataset_weights", "1", "inf"], "dataset_weights=[1.0, inf] must be"),
        (["--dataset", "a", "b", "--dataset_weights", "1", "nan"], "dataset_weights=[1.0, nan] must be"),
        (["--dataset", "a", "b", "--dataset_weights", "1e308", "1e308"], "dataset_weights=[1e+308, 1e+308] must be"),
        (["--dataset", "a", "--dataset_split", "x", "y"], "dataset_split=['x', 'y'] has 2 values for 1 data set; give one for"),
        (["--dataset", "a", "b", "c", "--image_column", "x", "y"], "image_column=['x', 'y'] has 2 values for 3 data sets"),
        (["--dataset_config", "x", "y"], "dataset_config=['x', 'y'] has 2 values for 1 data set"),
        (["--dataset", "a", "b", "--dataset_revision", "x", "y", "z"], "dataset_revision=['x', 'y', 'z'] has 3 values for 2"),
        (["--student_temperature", "0"], "student_temperature=0"),
        (["--teacher_temperature", "0"], "teacher_temperature=0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_settings_are_refused_by_name(capsys, arguments, message):
    assert message in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    "text, message",
    [
        ("stepz: 5\nhidden: 3\n", "unknown settings stepz, hidden; the settings are: attn_implementation, augmentation,"),
        ("steps: many\n", "--steps: invalid int value: 'many'"),
        ("steps: {a: 1}\n", "--steps"),
        ("learning_rate: [0.1, 0.2]\n", "0.2"),
        ("steps: 5\n  hidden: 3\n", "cannot be read"),
        ("{", "cannot be read"),
        (b"\xff\xfe\x00\x01", "cannot be read"),
        ("- steps\n- 5\n", "holds a list; it must be lines `setting: value`"),
        ("", "holds a NoneType"),
        ("just words", "holds a str"),
    ],
    ids=repr,
)
def test_wrong_recipes_are_refused_by_name(write_recipe, capsys, text, message):
    recipe = write_recipe(text)
    assert message in refusal(capsys, recipe)


@pytest.mark.parametrize("name", ["no_such_recipe.yaml", "."])
def test_a_recipe_that_is_not_there_is_refused(capsys, tmp_path, name):
    message = refusal(capsys, str(tmp_path / name))
    assert "cannot be read" in message and "quickstart.yaml" in message


def test_the_help_shows_every_setting(capsys):
    with pytest.raises(SystemExit) as exit:
        parse(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for name in (name for settings in Settings.__annotations__.values() for name in fields(settings)):
        assert f"--{name.name}" in text and name.metadata["help"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_parse_and_their_model_exists(recipe):
    settings = parse([str(recipe)])
    config = build_config(settings.model, settings.data.global_crop_size)
    assert config.num_registers == settings.model.num_registers


def test_model_defaults_are_rats_s():
    model = ModelSettings()
    assert (model.hidden_size, model.num_hidden_layers, model.num_attention_heads) == (384, 12, 6)
    assert (model.num_registers, model.patch_size, model.intermediate_size) == (96, 16, 4 * 384)


def test_a_network_without_registers_has_no_register_bottleneck(capsys):
    told = refusal(capsys, "--model_type", "vit", "--register_bottleneck_weight", "1")
    assert "register_bottleneck_weight=1.0 has registers explain patches, and model_type=vit has none" in told
