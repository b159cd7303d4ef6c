"""Settings: a recipe, the command line above it, and everything that can be wrong with either."""

from dataclasses import asdict, fields

import pytest

from modeling_rats import RatsConfig
from training.arguments import QUICKSTART, DataSettings, ModelSettings, TrainingSettings, parse

RECIPES = sorted(QUICKSTART.parent.glob("*.yaml"))


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
    model, data, training = parse([])
    assert (model, data, training) == parse([str(QUICKSTART)])
    assert training.output_dir == "outputs/quickstart" and data.dataset is None


def test_a_recipe_overrides_defaults_and_the_command_line_overrides_the_recipe(write_recipe):
    recipe = write_recipe("steps: 7\nwarmup_steps: 2\nhidden_size: 48\n")
    model, data, training = parse([recipe, "--steps", "9", "--patch_size=8"])
    assert (training.steps, training.warmup_steps, model.hidden_size, model.patch_size) == (9, 2, 48, 8)
    assert data == DataSettings()


def test_a_setting_given_twice_is_the_last():
    assert parse(["--steps", "700", "--steps", "800"])[2].steps == 800


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
        ("dataset: 'owner/name: with spaces = signs'", "dataset", "owner/name: with spaces = signs"),
        ("dataset: -dash", "dataset", "-dash"),
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
    assert parse(["--global_crops_scale", "0.3", "0.9", "--steps", "700"])[1].global_crops_scale == [0.3, 0.9]


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
        ("stepz: 5\nhidden: 3\n", "unknown settings stepz, hidden; the settings are: augmentation, batch_size,"),
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
    for name in (name for settings in (ModelSettings, DataSettings, TrainingSettings) for name in fields(settings)):
        assert f"--{name.name}" in text and name.metadata["help"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_parse_and_their_model_exists(recipe):
    model, data, _ = parse([str(recipe)])
    config = RatsConfig(**asdict(model), image_size=data.global_crop_size)
    assert config.num_registers == model.num_registers


def test_model_defaults_are_rats_s():
    model = ModelSettings()
    assert (model.hidden_size, model.num_hidden_layers, model.num_attention_heads) == (384, 12, 6)
    assert (model.num_registers, model.patch_size, model.intermediate_size) == (96, 16, 4 * 384)
