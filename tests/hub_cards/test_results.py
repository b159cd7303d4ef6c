"""What is no score file, or another model's, is refused; results know each other again and go with the folder."""

import json
import re

import pytest
from safetensors.numpy import load_file, save_file

from hub_cards.records import read_model
from hub_cards.results import adopt, adopt_all, as_files, check_weights, is_of, parse, read_results
from tests.hub_cards.conftest import RENDERED


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("no json", "is no JSON file"),
        ("[1, 2]", "holds a list"),
        ('{"loss": 3}', "has no scores, protocol"),
        (
            '{"scores": [], "protocol": "", "settings": {}, "model_config": {}, "fingerprints": 0, "versions": 0, "date": 0}',
            "scores nothing; the row 'model' must be among them",
        ),
    ],
)
def test_what_is_no_score_file_is_refused(model_folder, tmp_path, content, reason):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"other.json {reason}"):
        adopt(path, read_model(model_folder))


def test_scores_without_the_models_row_are_refused(model_folder, write_scores):
    path = write_scores(scores={"untrained": {"images": 3, "ari": 1.0}})
    with pytest.raises(ValueError, match="scores untrained; the row 'model' must be among them"):
        adopt(path, read_model(model_folder))


def test_scores_of_other_weights_need_leave(model_folder, write_scores):
    path = write_scores()
    weights = load_file(model_folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, model_folder / "model.safetensors")
    model = read_model(model_folder)
    with pytest.raises(ValueError, match=r"scores .*model, whose weights were not those of .*--any_model"):
        adopt(path, model)
    assert is_of(adopt(path, model, any_model=True), model)


def test_the_same_weights_are_one_model_wherever_they_lie(model_folder, write_scores, tmp_path):
    path = write_scores(model="someone/rats-tiny")
    moved = model_folder.rename(tmp_path / "elsewhere")
    assert adopt(path, read_model(moved)).record["scores"]["model"]["ari"] == 17.75


def test_scores_of_another_architecture_are_never_accepted(model_folder, write_scores, edit_json):
    path = write_scores()
    config = json.loads(path.read_text())["model_config"]
    edit_json(path, model_config=config | {"hidden_size": 48})
    with pytest.raises(ValueError, match=r"hidden_size=48 \(here 32\)"):
        adopt(path, read_model(model_folder), any_model=True)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_of_json_is_refused(model_folder, write_scores, value):
    path = write_scores()
    path.write_text(path.read_text().replace("31.25781", value))
    with pytest.raises(ValueError, match=f"{value} is no number"):
        adopt(path, read_model(model_folder))


@pytest.mark.parametrize("value", ["'np.float64(3.5)'", "true", '"3.5"', "[3.5]", "1e999"])
def test_a_score_that_is_no_number_is_refused(model_folder, write_scores, value):
    path = write_scores()
    path.write_text(path.read_text().replace("31.25781", value.replace("'", '"')))
    with pytest.raises(ValueError, match=r"has m2o_miou=.* in row 'model'; a score is a finite number"):
        adopt(path, read_model(model_folder))


def test_a_result_reads_back_as_it_was_adopted(model_folder, write_scores):
    model = read_model(model_folder)
    (evaluation,) = adopt_all([write_scores()], model)
    ((place, content),) = as_files([evaluation]).items()
    assert re.fullmatch(r"results/synthetic_parts-validation-64x64-px-1234-images-[0-9a-f]{8}\.json", place)
    assert parse(content, place) == evaluation and b"o2o_miou_foreground" not in content
    (model_folder / "results").mkdir()
    (model_folder / place).write_bytes(content)
    assert read_results(model_folder) == [evaluation]
    check_weights([evaluation], model)


def test_measurements_are_told_apart_by_all_that_decides_them(model_folder, write_scores):
    others = [
        {},
        {"image_size": 128},
        {"split": "test"},
        {"config": "birds"},
        {"part_layer": -2},
        {"part_similarity": "registers"},
        {"rendered": RENDERED | {"seed": 2}},
        {"rendered": RENDERED | {"difficulty": "easy"}},
        {"dataset": "a/b"},
        {"dataset": "a/b", "dataset_revision": "v1"},
        {"dataset": "a/b", "mask_column": "fine"},
        {"dataset": "a/b", "image_column": "photo"},
        {"dataset": "a/b", "ignore_label": 0},
    ]
    model = read_model(model_folder)
    evaluations = adopt_all([write_scores(f"{index}.json", **settings) for index, settings in enumerate(others)], model)
    told = {
        (result.dataset_type, result.dataset_config, result.dataset_split, *map(str, result.metric_args.items()))
        for evaluation in evaluations
        for result in evaluation.model_index()
    }
    assert len(told) == len(others)


def test_the_same_measured_again_has_the_same_name(model_folder, write_scores):
    model = read_model(model_folder)
    first = adopt(write_scores(), model)
    assert adopt(write_scores(seed=4, batch_size=2, baselines=["slic"], output="elsewhere.json"), model).name == first.name
    with pytest.raises(ValueError, match="scores synthetic_parts like a file before it"):
        adopt_all([write_scores("a.json"), write_scores("b.json", seed=4)], model)


def test_a_reading_that_the_command_asked_for_is_no_other_model(model_folder, write_scores, edit_json):
    path = write_scores(part_similarity="claimed_patches")
    config = json.loads(path.read_text())["model_config"]
    edit_json(path, model_config=config | {"part_similarity": "claimed_patches"})
    assert adopt(path, read_model(model_folder)).conditions["part_similarity"] == "claimed_patches"


def test_results_of_weights_that_are_gone_are_told(model_folder, write_scores):
    model = read_model(model_folder)
    (evaluation,) = adopt_all([write_scores()], model)
    evaluation.record["weight_files"] = {"model.safetensors": "0" * 64}
    with pytest.raises(ValueError, match=r"results/synthetic_parts-.*\.json of .*model are of other weights.*Delete"):
        check_weights([evaluation], model)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_config": []},
        {"fingerprints": None},
        {"date": None},
        {"versions": None},
        {"scores": {"model": 3}},
        {"scores": {"model": {"ari": 3.0}}},
        {"settings": {"model": "a"}},
    ],
)
def test_a_record_of_another_form_is_told_with_its_name(model_folder, write_scores, changes):
    path = write_scores()
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=r"scores\.json is not a record .*, or an entry was changed \(.*name one that is"):
        adopt(path, read_model(model_folder))


def test_an_adopted_result_that_was_changed_is_told_with_its_name(model_folder, write_scores):
    ((place, content),) = as_files([adopt(write_scores(), read_model(model_folder))]).items()
    record = json.loads(content)
    del record["scores"]["model"]["images"]
    with pytest.raises(ValueError, match=r"results/synthetic_parts.*\.json is not a result that hub_cards has adopted, or"):
        parse(json.dumps(record), place)


def test_local_data_sets_of_one_name_are_told_apart_by_what_was_read(model_folder, write_scores, tmp_path):
    names = set()
    for folder, read in (("birds", "x"), ("cars", "y"), ("cars", "y")):
        path = write_scores(dataset=str(tmp_path / folder / "parts"), dataset_is_local=True)
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"fingerprints": record["fingerprints"] | {"data": read}}))
        evaluation = adopt(path, read_model(model_folder))
        assert evaluation.data.identifier == "parts"
        names.add(evaluation.name)
    assert len(names) == 2
