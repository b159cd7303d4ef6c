"""Measurements as tables and entries of the metadata: parts, and classifiers on frozen features."""

import json

from huggingface_hub import ModelCard

from hub_cards.card import write_card
from hub_cards.records import read_model
from hub_cards.results import adopt, as_files, parse


def test_a_row_that_beats_the_model_is_told(model_folder, write_scores):
    model = read_model(model_folder)
    (sentence,) = adopt(write_scores(), model).rivals()
    assert sentence == (
        'On synthetic_parts, split `validation`, 64 x 64 px, rendered colours 64px seed 1, "color k-means, same number of '
        "segments\" scores at least as high as this model in ARI, with 6.5 segments to the model's 6.5."
    )


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


def test_a_measurement_reads_back(model_folder, write_scores):
    for path in (write_scores(), write_probes(write_scores)):
        evaluation = adopt(path, read_model(model_folder))
        ((place, content),) = as_files([evaluation]).items()
        again = parse(content, place)
        assert again == evaluation and type(again) is type(evaluation) and again.as_table() == evaluation.as_table()
