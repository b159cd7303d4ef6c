"""Models of labelled masks scored: on the command line, over processes, and what cannot be scored."""

import json
import os
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Mask2FormerImageProcessor

from evaluation import universal_segmentation
from evaluation.universal_segmentation import score_segmentation
from modeling_rats import RatsForUniversalSegmentation, RatsUniversalSegmentationConfig
from tests.evaluation.made_segments import LEFT, RIGHT, make_data, sample

PROCESSOR = Mask2FormerImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, size_divisor=8)


@pytest.fixture(scope="module")
def model(make_config):
    torch.manual_seed(0)
    sizes = {"feature_size": 32, "mask_feature_size": 16, "hidden_dim": 16, "encoder_layers": 1, "decoder_layers": 2}
    names = {"encoder_feedforward_dim": 16, "dim_feedforward": 16, "num_attention_heads": 4}
    config = RatsUniversalSegmentationConfig(
        backbone_config=make_config(), id2label={0: "ground", 1: "disc", 2: "box"}, **sizes, **names
    )
    return RatsForUniversalSegmentation(config)


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_a_model_is_scored_and_left_as_it_was(model, task):
    samples = [sample([LEFT, RIGHT], [0, 1]), sample([LEFT | RIGHT], [2]), sample([LEFT, RIGHT], [2, 0])]
    model.train()
    scores = score_segmentation(model, PROCESSOR, make_data(task, samples), limit=2)
    assert model.training and scores == score_segmentation(model, PROCESSOR, make_data(task, samples[:2]))
    assert all(0 <= score <= 100 for score in scores.values())


def test_other_labels_are_refused(model):
    data = make_data("semantic", [sample([LEFT], [0])], names=("ground", "box", "disc"))
    with pytest.raises(ValueError, match=r"label 1 is 'disc' in the model and 'box' in the data"):
        score_segmentation(model, PROCESSOR, data)
    with pytest.raises(ValueError, match=r"3 labels and made 4"):
        score_segmentation(model, PROCESSOR, make_data("semantic", [], names=("ground", "disc", "box", "more")))


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """A saved model, and three images with maps of segments."""
    folder, data = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("data")
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(3)]
    segments = [Image.fromarray(np.repeat([[0, 1], [2, 1]], 24, axis=1).repeat(20, axis=0).astype(np.uint8))] * 3
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "segment_mask": datasets.Image(),
            "segment_labels": datasets.Sequence(datasets.Value("int32")),
        }
    )
    columns = {"image": images, "segment_mask": segments, "segment_labels": [[0, 0, 1], [0, 1, 2], [0, 2, 2]]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(data / "validation-00000-of-00001.parquet")
    names = {"label_names": ["ground", "disc", "box"], "isthing": [0, 1, 1]}
    (data / "label_names.json").write_text(json.dumps(names))
    return str(folder), str(data)


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_the_command_line_writes_a_record(folders, tmp_path, task, capsys):
    folder, data = folders
    arguments = ["--model", folder, "--dataset", data, "--task", task, "--output", str(tmp_path / "out.json"), "--quiet"]
    returned = universal_segmentation.main(arguments)
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["scores"] == pytest.approx(returned["scores"]) and record["task"] == task and record["images"] == 3
    assert "torchmetrics" in record["versions"] and record["command"].startswith("python -m evaluation.universal_segmentation")
    assert "miou" in capsys.readouterr().out


def test_another_task_and_scores_of_zero_are_explained(folders, tmp_path, capsys):
    folder, data = tmp_path / "model", folders[1]
    shutil.copytree(folders[0], folder)
    (folder / "training.json").write_text(json.dumps({"settings": {"task": "semantic"}}))
    arguments = ["--model", str(folder), "--dataset", data, "--output", str(tmp_path / "out.json"), "--quiet", "--task"]
    scores = universal_segmentation.main([*arguments, "panoptic"])["scores"]
    told = capsys.readouterr()
    assert "fine-tuned for task=semantic, and is scored for task=panoptic" in told.err
    assert scores["pq"] == 0 and "after a short training a model is often sure of none" in told.out
    universal_segmentation.main([*arguments, "semantic"])
    told = capsys.readouterr()
    assert "fine-tuned for" not in told.err and "sure of" not in told.out


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_two_processes_score_as_one(folders, tmp_path, task):
    folder, data = folders
    arguments = ["--model", folder, "--dataset", data, "--task", task, "--quiet", "--output"]
    alone = universal_segmentation.main([*arguments, str(tmp_path / "one.json")])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    together = [*launcher, "-m", "evaluation.universal_segmentation", *arguments, str(tmp_path / "two.json")]
    subprocess.run(together, env=environment, check=True, capture_output=True, text=True, timeout=180)
    assert json.loads((tmp_path / "two.json").read_text())["scores"] == pytest.approx(alone["scores"], abs=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--dataset", "no/such/data"], "no/such/data"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--model", "outputs/no/model"], r"outputs/no/model' was not found .* or a folder that save_pretrained wrote"),
        (["--model", "checkpoints/rats-tiny-synthetic"], "is a backbone, which finds no labelled masks"),
        (["--task", "instance"], "labels"),  # the things alone, of which the model has one more
        (["--output", "."], "is a folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_scored_is_told(folders, tmp_path, changed, message):
    folder, data = folders
    arguments = ["--model", folder, "--dataset", data, "--task", "semantic", "--output", str(tmp_path / "out.json"), *changed]
    with pytest.raises(SystemExit, match=message):
        universal_segmentation.main([*arguments, "--quiet"])
