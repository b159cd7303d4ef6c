"""Advice: none for settings that follow the rules, one sentence for each that does not."""

import pytest

from training.advice import advice, teacher_temperature_for
from training.arguments import parse

# As the recipes of the project have them for so many images.
SMALL = {"num_prototypes": 1024, "teacher_temperature": 0.02, "teacher_momentum": 0.99, "steps": 23_400, "batch_size": 256}


def settings_of(**changes):
    return parse([f"--{name}={value}" for name, value in (SMALL | changes).items()])


def test_settings_that_follow_the_rules_get_no_advice():
    assert advice(20_000, settings_of()) == []
    assert advice(None, settings_of()) == []


@pytest.mark.parametrize(
    "num_rows, changes, parts",
    [
        (
            20_000,
            {"num_prototypes": 65536},
            ("num_prototypes=65536", "20,000 images", "Try num_prototypes=1024", "LightlyTrain"),
        ),
        (90_000, {"num_prototypes": 65536}, ("Try num_prototypes=4096",)),
        (20_000, {"teacher_temperature": 0.04}, ("teacher_temperature=0.04 is high", "is 0.02", "LightlyTrain")),
        (20_000, {"teacher_momentum": 0.9995}, ("teacher_momentum=0.9995 is slow", "0.99 to 0.996")),
        (20_000, {"teacher_momentum": 0.9}, ("teacher_momentum=0.9 should be at least 0.99",)),
        (20_000, {"steps": 60, "warmup_steps": 1}, ("see 0.77 of the 20,000 images", "one epoch takes steps=79", "DINO")),
        (300, {"steps": 23_400}, ("19,968 times", "800 epochs", "--dataset")),
        (
            20_000,
            {"batch_size": 32, "centering": "centering"},
            ("batch_size=32", "at least 64", "sinkhorn_knopp", "DINO's paper"),
        ),
        (None, {"teacher_temperature": 0.1, "student_temperature": 0.1}, ("below student_temperature=0.1", "DINO's paper")),
    ],
    ids=str,
)
def test_each_rule_names_setting_value_rule_and_source(num_rows, changes, parts):
    (told,) = advice(num_rows, settings_of(**changes))
    assert told.startswith("rule of thumb: ") and all(part in told for part in parts), told


def test_large_data_may_have_what_small_data_may_not():
    of_dino = {"num_prototypes": 65536, "teacher_temperature": 0.07, "teacher_momentum": 0.9995, "batch_size": 1024}
    assert advice(1_281_167, settings_of(**of_dino)) == []
    assert len(advice(20_000, settings_of(**of_dino))) == 3


def test_small_batches_are_for_sinkhorn_knopp():
    assert advice(20_000, settings_of(batch_size=32, centering="sinkhorn_knopp")) == []


@pytest.mark.parametrize(
    "num_rows, temperature", [(1, 0.02), (20_000, 0.02), (650_000, 0.045), (1_280_000, 0.07), (10**9, 0.07)]
)
def test_the_temperature_of_the_rule_is_linear_between_its_ends(num_rows, temperature):
    assert teacher_temperature_for(num_rows) == pytest.approx(temperature)
