"""The words: limitations follow from the records, sizes and times read well."""

import json

import pytest

from hub_cards.card_text import describe_limitations, describe_model, describe_training, pixels
from hub_cards.records import read_model
from hub_cards.results import adopt


def test_synthetic_training_is_no_evidence_for_photographs(model_folder, write_scores, edit_json):
    model = read_model(model_folder)
    told = " ".join(describe_limitations(model, [adopt(write_scores(), model)]))
    assert "no evidence for photographs" in told and "nothing about photographs" in told
    assert "No scores have been measured" in " ".join(describe_limitations(model, []))
    settings = json.loads((model_folder / "training.json").read_text())["settings"]
    edit_json(model_folder / "training.json", settings=settings | {"dataset": "someone/photographs"})
    model = read_model(model_folder)
    evaluations = [adopt(write_scores(dataset="someone/birds"), model)]
    assert "photographs" not in " ".join(describe_limitations(model, evaluations))


def test_the_grid_is_told_at_the_processors_size(model_folder, edit_json):
    assert "8 x 8 patches at the default size" in " ".join(describe_limitations(read_model(model_folder), []))
    assert "used at 64 x 64 px by default" in " ".join(describe_limitations(read_model(model_folder), []))
    edit_json(model_folder / "preprocessor_config.json", ensure_multiple_of=8)
    model = read_model(model_folder)
    assert "patches at the default size" not in " ".join(describe_limitations(model, []))
    assert describe_model(model)["Image size"].startswith("about the area of 64 x 64 px in the image's own aspect ratio by")


def test_ablations_are_told(model_folder, edit_json):
    edit_json(model_folder / "config.json", partition_registers=False, communicate=False)
    details = describe_model(read_model(model_folder))
    assert details["Registers"] == "8, all held by every head (ablation: no partition)"
    assert details["Communication between registers"] == "switched off (ablation)"


@pytest.mark.parametrize(("seconds", "told"), [(44.6, "45 s"), (60, "1 min 0 s"), (165.2, "2 min 45 s"), (11_111, "3 h 5 min")])
def test_times(model_folder, seconds, told):
    training = read_model(model_folder).training | {"seconds": seconds, "device": "NVIDIA L4", "processes": 8}
    rows = describe_training(training)
    assert rows["Training time"] == told
    assert rows["Hardware"] == "NVIDIA L4, 8 processes, mixed precision: bf16"


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (224, "224 x 224 px"),
        ([32, 48], "32 x 48 px"),
        ({"height": 64, "width": 96, "longest_edge": None}, "64 x 96 px"),
        ({"shortest_edge": 256}, "shortest edge 256 px"),
    ],
)
def test_sizes(size, told):
    assert pixels(size) == told
