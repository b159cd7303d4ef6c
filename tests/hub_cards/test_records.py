"""What is no model folder is refused with a reason and a way out; data sets are told by names that say something."""

import json
from dataclasses import asdict

import pytest

from hub_cards.records import read_model, scored_data, training_data, without_places


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json.*save_pretrained"):
        read_model(tmp_path)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_is_refused(model_folder, name):
    (model_folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no .*{name[-8:]}"):
        read_model(model_folder)


def test_another_kind_of_model_is_refused(model_folder, edit_json):
    edit_json(model_folder / "config.json", model_type="vit")
    with pytest.raises(ValueError, match="model_type 'vit'"):
        read_model(model_folder)


def test_training_is_optional_but_must_be_whole(model_folder, edit_json):
    edit_json(model_folder / "training.json", images_seen=None)
    with pytest.raises(ValueError, match=r"training\.json has no images_seen"):
        read_model(model_folder)
    (model_folder / "training.json").unlink()
    assert read_model(model_folder).training is None


def test_sharded_weights_are_counted_once(model_folder):
    from safetensors.numpy import load_file, save_file

    whole = read_model(model_folder).num_parameters
    tensors = load_file(model_folder / "model.safetensors")
    (model_folder / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[::2]}, model_folder / "model-00001-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[1::2]}, model_folder / "model-00002-of-00002.safetensors")
    assert read_model(model_folder).num_parameters == whole == sum(tensor.size for tensor in tensors.values())


def test_data_sets_are_told_by_hub_name_or_last_part_of_the_path(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "birds").mkdir(parents=True)
    for dataset, identifier, on_hub in (
        ("someone/birds", "someone/birds", True),
        ("data/birds", "birds", False),
        ("../elsewhere/fish", "fish", False),
        (str(tmp_path / "data"), "data", False),
    ):
        name = scored_data({"dataset": dataset})
        assert (name.identifier, name.on_hub, name.synthetic) == (identifier, on_hub, False)
    rendered = scored_data({"dataset": "data", "rendered": {"images": 9, "image_size_px": 64, "seed": 3, "difficulty": "easy"}})
    assert rendered.synthetic and "(9 images, 64 px, difficulty easy, seed 3)" in rendered.title
    assert training_data(read_model(model_folder).training)[0].synthetic
    assert scored_data({"dataset": "data/fish"}).on_hub  # so it reads where no such folder is
    assert not scored_data({"dataset": "data/fish", "dataset_is_local": True}).on_hub
    benchmark = scored_data({"dataset": "/data/parts", "benchmark": "car_parts", "root": "/data/parts"})
    assert benchmark.identifier == "car_parts"


def test_a_folder_from_the_hub_keeps_the_names_of_its_training_data(model_folder, edit_json):
    settings = json.loads((model_folder / "training.json").read_text())["settings"] | {"dataset": "data/birds"}
    told = {"identifier": "birds", "title": "`birds` (local data)", "on_hub": False, "synthetic": False, "content": None}
    edit_json(model_folder / "training.json", settings=settings)
    assert training_data(read_model(model_folder).training)[0].on_hub  # so it reads where no such folder is
    edit_json(model_folder / "training.json", data_sets=[told])
    assert asdict(training_data(read_model(model_folder).training)[0]) == told


def test_places_of_a_machine_are_left_behind():
    record = {
        "model": "/home/somebody/runs/a b/model",
        "baselines": ["patch_kmeans:/home/somebody/a b/model", "slic"],
        "dataset": "file:///data/of mine/birds",
        "command": "python -m x --model /a/model --baselines 'k:/b c/d' --root './of mine' --output '/d/my x.json'",
        "told": "M2O / O2O, see https://example.org/a/b; outputs/model 1/2",
        "number": 1.5,
    }
    assert without_places(record) == {
        "model": "model",
        "baselines": ["patch_kmeans:model", "slic"],
        "dataset": "birds",
        "command": "python -m x --model model --baselines k:d --root './of mine' --output 'my x.json'",
        "told": "M2O / O2O, see https://example.org/a/b; outputs/model 1/2",
        "number": 1.5,
    }
