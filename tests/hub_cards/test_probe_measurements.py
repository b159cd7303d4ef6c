"""What is learned from a frozen model, as tables and entries of the metadata: classifiers, and heads that segment."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from evaluation import segmentation_probe
from hub_cards.card import write_card
from hub_cards.records import read_model
from hub_cards.results import adopt, as_files, parse


def write_probes(write_scores, name="probes.json", **scores):
    """A record as evaluation.representation writes it."""
    path = write_scores(name, dataset="someone/birds")
    record = json.loads(path.read_text())
    told = {"probe": ["knn", "linear"], "train_split": "train", "test_split": "test", "features": "registers", "image_size": 64}
    counts = {"train": {"images": 4000, "classes": 10}, "test": {"images": 200, "classes": 10}}
    scores = scores or {
        "20-NN": {"top1": 79.0, "top5": 95.5},
        "linear": {"top1": 81.25, "learning_rate": 0.1, "held_out_top1": {"0.1": 80.0}},
    }
    settings = {key: value for key, value in record["settings"].items() if key != "split"} | told
    path.write_text(json.dumps(record | {"scores": scores, "settings": settings, "data": counts}))
    return path


def test_classifiers_stand_beside_parts(model_folder, write_scores):
    text = write_card(model_folder, [write_scores(), write_probes(write_scores)]).read_text()
    assert "### someone/birds, split `test`, 64 x 64 px, features registers\n" in text
    assert "split `test`, 200 images, 4,000 images of split `train` to learn from, 10 classes. Input" in text
    assert "| 20-NN | 79.0 | 95.5 |" in text and "| linear | 81.2 | - |" in text
    told = {
        (result.dataset_type, result.metric_name): result.metric_value
        for result in ModelCard(text).data.eval_results
        if result.task_type == "image-classification"
    }
    assert told == {
        ("someone/birds", "20-NN top-1"): 79.0,
        ("someone/birds", "20-NN top-5"): 95.5,
        ("someone/birds", "linear top-1"): 81.25,
    }
    assert ModelCard(text).data.metrics == ["accuracy", "m2o_miou", "o2o_miou", "ari"]
    assert sorted(path.stem[:-9] for path in (model_folder / "results").iterdir()) == [
        "someone-birds-test-64x64-px-200-images",
        "synthetic_parts-validation-64x64-px-1234-images",
    ]


def test_classifiers_of_other_labels_or_features_are_other_measurements(model_folder, write_scores):
    model = read_model(model_folder)
    names = set()
    for changes in ({}, {"label_column": "species"}, {"features": "patches"}, {"epochs": 7}, {"temperature": 1}):
        path = write_probes(write_scores)
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"settings": record["settings"] | changes}))
        names.add(adopt(path, model).name)
    assert len(names) == 5


def test_a_measurement_of_classifiers_reads_back(model_folder, write_scores):
    evaluation = adopt(write_probes(write_scores), read_model(model_folder))
    ((place, content),) = as_files([evaluation]).items()
    again = parse(content, place)
    assert again == evaluation and type(again) is type(evaluation) and again.as_table() == evaluation.as_table()


def run_heads(model, data, output, *options):
    arguments = ["--model", model, *options, "--dataset", data, "--head", "linear", "fcn", "--epochs", "1", "--batch_size", "4"]
    arguments += ["--learning_rates", "0.01", "--image_size", "32", "--num_labels", "3", "--seed", "0", "1", "--quiet"]
    segmentation_probe.main([str(argument) for argument in [*arguments, "--output", output]])
    return output


@pytest.fixture(scope="module")
def measured(saved_model, shapes, tmp_path_factory):
    """A real record: two heads with two seeds each, on the model and on a ViT beside it."""
    vit = tmp_path_factory.mktemp("beside") / "vit-twin" / "model"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(vit)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(vit)
    return run_heads(saved_model, shapes, tmp_path_factory.mktemp("measured") / "heads.json", vit)


@pytest.fixture
def heads(measured, tmp_path):
    """Writes the record, with other entries; `change` may also change it in place."""

    def write(settings=None, change=lambda record: None, **entries):
        record = json.loads(measured.read_text())
        record |= {"settings": record["settings"] | (settings or {})} | entries
        change(record)
        path = tmp_path / "heads.json"
        path.write_text(json.dumps(record))
        return path

    return write


def test_heads_are_told_with_their_spread_and_beside_others(model_folder, heads, tmp_path):
    path = heads()
    record = json.loads(path.read_text())
    text = write_card(model_folder, [path], repo_id="someone/rats-tiny").read_text()
    assert "### shapes, split `validation`, 32 x 32 px, num_labels 3\n" in text
    learned = "4 images of split `train` to learn from, with 3 labels; epochs 1, batch size 4, learning rates tried 0.01. Input"
    assert f"split `validation`, 3 images; {learned}" in text
    assert "Scores in percent, mean ± sample standard deviation over 2 seeds." in text and "; seed 0, 1" in text
    for head in ("linear", "fcn"):
        for row, scores in ((head, record["scores"][head]), (f"{head} on vit-twin", record["beside"][0]["scores"][head])):
            told = [f"{scores[name]:.1f} ± {scores[name + '_std']:.1f}" for name in ("miou", "pixel_accuracy")]
            assert f"| {row} | {' | '.join(told)} |\n" in text
    majority = record["scores"]["majority"]
    assert (
        f"| the most frequent training label everywhere | {majority['miou']:.1f} | {majority['pixel_accuracy']:.1f} |" in text
    )
    assert str(tmp_path) not in text and record["protocol"] in text


def test_heads_are_in_the_model_index_exactly_and_others_are_not(model_folder, heads):
    record = json.loads(heads().read_text())
    results = ModelCard(write_card(model_folder, [heads()]).read_text()).data.eval_results
    assert {(result.task_type, result.task_name) for result in results} == {
        ("image-segmentation", "Semantic segmentation by a frozen model")
    }
    found = {(result.metric_type, result.metric_config): result for result in results}
    types = {"mean_iou": "miou", "pixel_accuracy": "pixel_accuracy"}
    assert found.keys() == {(kind, head) for kind in types for head in ("linear", "fcn")}
    for (kind, head), result in found.items():
        assert result.metric_value == record["scores"][head][types[kind]]
        assert result.metric_args["standard_deviation"] == record["scores"][head][f"{types[kind]}_std"]
        assert result.metric_args["seeds"] == 2 and result.metric_args["train_images"] == 4


def test_one_seed_has_no_spread(model_folder, heads):
    def drop(record):
        for row in record["scores"].values():
            for name in [name for name in row if name.endswith("_std")]:
                del row[name]
        for head in record["by_seed"].values():
            del head["1"]

    evaluation = adopt(heads({"seed": [0]}, drop, beside=[]), read_model(model_folder))
    table = evaluation.as_table()
    assert (
        table["unit"] == "percent"
        and "seed 0" in table["run"]
        and not any("±" in cell for row in table["rows"] for cell in row)
    )
    assert [row[0] for row in table["rows"]] == ["linear", "fcn", "the most frequent training label everywhere"]
    assert all("standard_deviation" not in result.metric_args for result in evaluation.model_index())


def test_a_row_that_is_as_good_as_a_head_is_told(model_folder, heads):
    def change(record):
        record["scores"]["linear"] |= {"miou": 40.0, "pixel_accuracy": 80.0}
        record["scores"]["fcn"] |= {"miou": 60.0, "pixel_accuracy": 90.0}
        record["scores"]["majority"] |= {"miou": 20.0, "pixel_accuracy": 85.0}
        record["beside"][0]["scores"]["linear"] |= {"miou": 50.0, "pixel_accuracy": 70.0}
        record["beside"][0]["scores"]["fcn"] |= {"miou": 59.0, "pixel_accuracy": 89.0}

    first, second = adopt(heads(change=change), read_model(model_folder)).rivals()
    assert '"linear on vit-twin" scores at least as high as the head "linear" on this model in mIoU.' in first
    assert '"the most frequent training label everywhere" scores at least as high' in second and "in Pixel accuracy." in second


def test_two_models_of_one_name_keep_a_row_each(model_folder, heads):
    evaluation = adopt(heads(change=lambda record: record["beside"].append(record["beside"][0])), read_model(model_folder))
    rows = [row[0] for row in evaluation.as_table()["rows"]]
    assert {"linear on vit-twin", "linear on vit-twin (2)"} < {*rows}
    on_hub = adopt(
        heads(change=lambda record: record["beside"][0].update(model="facebook/dino-vits16", revision="0" * 40)),
        read_model(model_folder),
    )
    assert "fcn on facebook/dino-vits16" in on_hub.record["scores"]


def test_heads_that_learned_otherwise_are_other_measurements(model_folder, heads):
    model = read_model(model_folder)
    others = (
        {},
        {"layer": -2},
        {"epochs": 7},
        {"learning_rates": [1.0]},
        {"batch_size": 2},
        {"ignore_label": 2},
        {"train_split": "x"},
    )
    assert len({adopt(heads(changes), model).name for changes in others}) == len(others)
    assert adopt(heads({"seed": [5, 6]}, date="2030-01-01"), model).name == adopt(heads(), model).name


def test_a_measurement_of_heads_reads_back(model_folder, heads):
    evaluation = adopt(heads(), read_model(model_folder))
    ((place, content),) = as_files([evaluation]).items()
    again = parse(content, place)
    assert again == evaluation and type(again) is type(evaluation) and again.as_table() == evaluation.as_table()


def test_heads_on_other_weights_are_refused(model_folder, heads):
    def change(record):
        record["fingerprints"]["weight_files"] = record["beside"][0]["fingerprints"]["weight_files"]

    with pytest.raises(ValueError, match="whose weights were not those of"):
        adopt(heads(change=change), read_model(model_folder))
