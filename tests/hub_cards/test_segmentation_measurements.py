"""Scores of fine-tuned models: from images to the card, to the Hub and back; what is measured is told apart."""

import json
import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, pipeline

from hub_cards.card import write_card
from hub_cards.push import main as push
from hub_cards.records import read_model
from hub_cards.results import adopt, as_files, parse
from tests.hub_cards.conftest import LABELS, measure

NAME = "owner/rats-shapes"
COLUMNS = {
    "semantic": {"miou": "mIoU", "pixel_accuracy": "Pixel accuracy"},
    "instance": {"ap": "Mask AP", "ap50": "AP50", "ap75": "AP75"},
    "panoptic": {"miou": "mIoU", "pixel_accuracy": "Pixel accuracy"},  # and PQ, of which fresh weights may have none
}


@pytest.fixture(scope="module")
def measured(saved_segmenter, shapes, tmp_path_factory):
    return measure(saved_segmenter, shapes, tmp_path_factory.mktemp("measured") / "scores.json")


@pytest.fixture
def scores(measured, tmp_path):
    """A real record of the model, which a test may change."""
    path = tmp_path / "scores.json"
    path.write_text(measured.read_text())
    return path


@pytest.fixture
def changed(segmenter, scores, tmp_path):
    """The name under which the record is adopted with other settings, or other entries."""

    def adopt_changed(settings=None, **entries):
        record = json.loads(scores.read_text())
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(record | {"settings": record["settings"] | (settings or {})} | entries))
        return adopt(path, read_model(segmenter))

    return adopt_changed


@pytest.mark.parametrize("task", COLUMNS)
def test_the_scores_of_each_task_are_told_to_the_digit(segmenter, shapes, tmp_path, task):
    options = ["--thing_labels", "0", "1", "2"] if task == "instance" else []  # or ground is no label
    path = measure(segmenter, shapes, tmp_path / "scores.json", task, *options)
    record = json.loads(path.read_text())
    evaluation = adopt(path, read_model(segmenter))
    shown, (row,) = evaluation.as_table()["columns"], evaluation.as_table()["rows"]
    cells = dict(zip(shown, row, strict=True))
    assert cells[" "] == "this model"
    for score, title in COLUMNS[task].items():
        assert cells[title] == f"{record['scores'][score]:.1f}"
    assert len(cells) == 1 + sum(score is not None for score in record["scores"].values())
    entries = {result.metric_name: result for result in evaluation.model_index()}
    assert {entries[title].metric_value for title in COLUMNS[task].values()} <= {*record["scores"].values()}
    assert all(result.task_name.startswith(task.capitalize()) for result in entries.values())
    assert f"task {task}" in evaluation.heading and "3 images, 3 labels" in evaluation.as_table()["data"]


def test_panoptic_quality_is_told(changed):
    evaluation = changed(task="panoptic", scores={"pq": 41.25, "sq": 75.0, "rq": 55.0, "miou": 50.125, "pixel_accuracy": None})
    assert evaluation.as_table()["columns"] == [" ", "mIoU", "PQ", "SQ", "RQ"]
    assert evaluation.as_table()["rows"] == [["this model", "50.1", "41.2", "75.0", "55.0"]]
    told = {(result.task_name, result.metric_type, result.metric_value) for result in evaluation.model_index()}
    assert ("Panoptic segmentation by a fine-tuned model", "pq", 41.25) in told and len(told) == 4


def test_from_scores_to_the_hub_and_back(segmenter, shapes, scores, tmp_path, hub, capsys):
    record = json.loads(scores.read_text())
    write_card(segmenter, [scores], repo_id=NAME)
    before = sorted(segmenter.rglob("*"))
    arguments = [str(segmenter), "--repo_id", NAME]
    push([*arguments, "--dry_run"])
    told = capsys.readouterr().out
    for path in (
        "model.safetensors",
        "universal_segmentation_rats.py",
        "handler.py",
        "results/shapes-validation-shortest-edge",
    ):
        assert f"add {path}" in told
    assert "+# rats-shapes" in told and not hub.repositories and sorted(segmenter.rglob("*")) == before

    push([*arguments, "--quiet"])
    arrived = hub.repositories[NAME].head.files
    card = ModelCard(arrived["README.md"].decode())
    assert card.data.pipeline_tag == "image-segmentation" and card.data.library_name == "transformers"
    assert card.data.base_model == "facebook/dino-vits16" and card.data.datasets == ["me/shapes"]
    assert {"rats", "universal-segmentation", "semantic-segmentation"} <= {*card.data.tags} and "dino" not in card.data.tags
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {"mean_iou": record["scores"]["miou"], "pixel_accuracy": record["scores"]["pixel_accuracy"]}
    for path, content in arrived.items():
        assert str(tmp_path).encode() not in content, path
    push([*arguments, "--quiet"])
    assert len(hub.repositories[NAME].commits) == 2

    inputs = AutoImageProcessor.from_pretrained(NAME)(images=[torch.zeros(3, 40, 48)], return_tensors="pt")
    with torch.no_grad():
        here, there = (
            AutoModelForUniversalSegmentation.from_pretrained(name).eval()(**inputs).masks_queries_logits
            for name in (segmenter, NAME)
        )
    assert torch.equal(here, there)
    found = pipeline("image-segmentation", model=NAME)(Image.new("RGB", (48, 40)), subtask="semantic")
    assert {segment["label"] for segment in found} <= {*LABELS}

    trained_on = measure(NAME, shapes, tmp_path / "train.json", "semantic", "--split", "train")
    push(["--repo_id", NAME, "--results_only", "--results", str(trained_on), "--quiet"])
    text = hub.repositories[NAME].head.files["README.md"].decode()
    splits = {result.dataset_split for result in ModelCard(text).data.eval_results}
    assert splits == {"train", "validation"} and len(hub.repositories[NAME].commits) == 3


def test_a_record_reads_back_as_it_was_adopted(segmenter, scores):
    evaluation = adopt(scores, read_model(segmenter))
    ((place, content),) = as_files([evaluation]).items()
    size = "shortest-edge-32-px-longest-edge-at-most-128-px"
    assert re.fullmatch(rf"results/shapes-validation-{size}-3-images-[0-9a-f]{{8}}\.json", place)
    again = parse(content, place)
    assert again == evaluation and type(again) is type(evaluation) and again.as_table() == evaluation.as_table()


def test_measurements_are_told_apart_by_all_that_decides_them(changed):
    others = [
        changed(),
        changed(task="instance"),
        changed(images=2),
        changed({"split": "test"}),
        changed({"config": "x"}),
        changed({"reduce_labels": True}),
        changed({"thing_labels": [1]}),
        changed({"mask_column": "fine"}),
        changed({"layout": "ade20k"}),
        changed({"image_size": {"shortest_edge": 64, "longest_edge": 128}}),
        changed(fingerprints=changed().record["fingerprints"] | {"data": "other images"}),
    ]
    assert len({evaluation.name for evaluation in others}) == len(others)
    assert changed({"output": "elsewhere.json", "quiet": False}, date="2030-01-01").name == others[0].name


def test_official_files_go_by_their_layout(changed):
    evaluation = changed({"layout": "ade20k", "dataset": "/data/ADEChallengeData2016"})
    assert evaluation.data.identifier == "ade20k" and "official files" in evaluation.as_table()["data"]


def test_the_first_images_of_a_split_are_told_to_be_that(changed):
    assert "the first 2 images" in changed({"limit": 2}, images=2).as_table()["data"]


def test_other_weights_and_another_head_are_refused(segmenter, scores, changed):
    with pytest.raises(ValueError, match=r"num_queries=9 \(here 8\)"):
        changed(model_config={"num_queries": 9})
    with pytest.raises(ValueError, match="whose weights were not those of"):
        changed(fingerprints={"weight_files": {"model.safetensors": "0" * 64}})
    with pytest.raises(ValueError, match=r"a score is a finite number"):
        changed(scores={"miou": "high"})


def test_scores_of_a_segmenter_are_none_of_a_backbone(model_folder, scores):
    with pytest.raises(ValueError, match=r"model_type=rats_universal_segmentation \(here rats\)"):
        adopt(scores, read_model(model_folder), any_model=True)


def test_the_card_is_made_anew_from_the_folder_alone(segmenter, scores):
    first = write_card(segmenter, [scores]).read_bytes()
    assert write_card(segmenter).read_bytes() == first
    metadata = yaml.safe_load(first.decode().split("---")[1])
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"] == {"name": "shapes", "type": "shapes", "split": "validation"}
    assert "seed" not in first.decode().split("Measured ")[1].split("\n")[0]  # nothing is drawn
