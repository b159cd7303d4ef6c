"""What is no model folder, no score file or another model's is refused with a reason and a way out."""

import json

import pytest

from hub_cards.records import read_model, read_scores, scored_data, training_data


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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("no json", "is no JSON file"),
        ("[1, 2]", "holds a list"),
        ('{"loss": 3}', "has no scores, protocol"),
        (
            '{"scores": [], "protocol": "", "settings": {}, "model_config": {}, "versions": {}, "date": ""}',
            "is no record that evaluation",
        ),
    ],
)
def test_what_is_no_score_file_is_refused(model_folder, tmp_path, content, reason):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"other.json {reason}"):
        read_scores(path, read_model(model_folder))


def test_scores_without_the_models_row_are_refused(model_folder, write_scores):
    path = write_scores(scores={"untrained": {"images": 3, "ari": 1.0}})
    with pytest.raises(ValueError, match="scores untrained; the row 'model' must be among them"):
        read_scores(path, read_model(model_folder))


def test_scores_of_a_model_in_another_place_need_leave(model_folder, write_scores):
    path, model = write_scores(model="someone/rats-tiny"), read_model(model_folder)
    with pytest.raises(ValueError, match=r"scores the model someone/rats-tiny, .*--any_model"):
        read_scores(path, model)
    assert read_scores(path, model, any_model=True) == read_scores(path, model, repo_id="someone/rats-tiny")


def test_one_folder_by_two_paths_is_one_model(model_folder, write_scores, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    assert read_scores(write_scores(model="./model/../model"), read_model(model_folder))["scores"]["model"]["ari"] == 17.75


def test_scores_of_another_architecture_are_never_accepted(model_folder, write_scores, edit_json):
    path = write_scores()
    config = json.loads(path.read_text())["model_config"]
    edit_json(path, model_config=config | {"hidden_size": 48})
    with pytest.raises(ValueError, match=r"hidden_size=48 \(here 32\)"):
        read_scores(path, read_model(model_folder), any_model=True)


def test_data_sets_are_told_by_hub_name_or_last_part_of_the_path(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "birds").mkdir(parents=True)
    training = read_model(model_folder).training
    for dataset, identifier, on_hub in (
        ("someone/birds", "someone/birds", True),
        ("data/birds", "birds", False),
        ("../elsewhere/fish", "fish", False),
        (str(tmp_path / "data"), "data", False),
    ):
        name = scored_data({"dataset": dataset}, training)
        assert (name.identifier, name.on_hub, name.synthetic) == (identifier, on_hub, False)
    rendered = scored_data({"dataset": str(model_folder.parent / "data")}, training)
    assert rendered.synthetic and training_data(training["settings"])[0].synthetic
