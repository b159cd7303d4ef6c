"""The checkpoints that come with the project: small, loadable as their cards say, and as good as their records say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from evaluation import part_segmentation
from evaluation.synthetic_parts import PART_NAMES, render, write_dataset
from modeling_rats import RatsForPartSegmentation, RatsImageProcessor

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = sorted(path.parent for path in ROOT.glob("checkpoints/*/config.json"))
TEST_SEED = 3  # of the images that the records score (docs/evidence)
SCORES = ("segments_used", "m2o_miou", "m2o_miou_foreground", "o2o_miou", "ari")


def test_the_checkpoints_that_the_documents_name_are_looked_at():
    assert ROOT / "checkpoints" / "rats-tiny-synthetic" in CHECKPOINTS


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_a_checkpoint_is_small_and_whole(folder):
    weights = list(folder.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in weights) <= 12e6
    for file in weights:
        with safe_open(file, "pt") as tensors:
            assert all(tensors.get_tensor(name).isfinite().all() for name in tensors.keys())  # noqa: SIM118
    model, processor = AutoModelForSemanticSegmentation.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert type(model) is RatsForPartSegmentation and type(processor) is RatsImageProcessor
    training = json.loads((folder / "training.json").read_text())
    assert training["steps"] == training["settings"]["steps"]  # not stopped half-way
    card = ModelCard.load(folder / "README.md")
    assert card.data.license and f"{training['steps']:,}" in card.text


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_a_checkpoint_scores_what_its_record_says(folder, tmp_path):
    records = [json.loads(path.read_text()) for path in folder.glob("results/synthetic_parts-test-*.json")]
    (record,) = (record for record in records if "model" in record["scores"])
    recorded, settings = record["scores"]["model"], json.loads((folder / "training.json").read_text())["settings"]
    size_px, difficulty = settings["synthetic_image_size"], settings["synthetic_difficulty"]
    write_dataset(tmp_path / "data", recorded["images"], size_px, TEST_SEED, difficulty, "test", quiet=True)
    arguments = f"--model {folder} --dataset {tmp_path / 'data'} --split test --baselines color_kmeans --quiet"
    measured = part_segmentation.run([*arguments.split(), "--output", str(tmp_path / "scores.json")])
    assert measured["fingerprints"]["weights"] == record["fingerprints"]["weights"]
    for name in SCORES:  # another OpenCV may render a pixel otherwise
        assert measured["scores"]["model"][name] == pytest.approx(recorded[name], abs=0.5), name
    rival = measured["scores"]["color k-means, same number of segments"]
    assert measured["scores"]["model"]["m2o_miou_foreground"] > rival["m2o_miou_foreground"] + 5


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_the_code_in_a_checkpoints_card_runs(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    Image.fromarray(render(TEST_SEED, 0, 128, "colours").image).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    codes = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    for code in codes:
        exec(compile(code, str(folder), "exec"), {})
    assert len(codes) == 3 and capsys.readouterr().out.count("register ") > 3


@pytest.mark.parametrize(
    "folder", [one for one in CHECKPOINTS if (one / "dictionary").is_dir()], ids=lambda folder: folder.name
)
def test_a_checkpoints_dictionary_names_the_parts_of_held_out_images(folder):
    segmenter = pipeline("part-segmentation", model=str(folder), dictionary=str(folder / "dictionary"))
    right = shown = 0
    for index in range(20):
        sample = render(TEST_SEED, index, 128, "colours")
        for part in segmenter(Image.fromarray(sample.image)):
            where = np.asarray(part["mask"]) > 0
            label = np.bincount(sample.mask[where]).argmax()
            if part["name"] is not None and label > 0 and (sample.mask[where] == label).mean() > 0.5:
                right, shown = right + (part["name"] == PART_NAMES[label]), shown + 1
    assert shown > 40 and right / shown > 0.5
