"""A tiny model folder and a score file, laid out as pretraining and evaluation write them."""

import copy
import json
import shutil
from dataclasses import asdict

import pytest
import torch

from evaluation.part_segmentation import PROTOCOL, SUMMARY_OF_CONFIG
from hub_cards.records import hash_weight_files
from modeling_rats import RatsConfig, RatsForPartSegmentation, RatsImageProcessor
from training.settings import DataSettings, ModelSettings, TrainingSettings

SCORES = {
    "model": {
        "images": 1234,
        "images_with_foreground": 1200,
        "segments_used": 6.5,
        "m2o_miou": 31.25781,
        "m2o_miou_foreground": 21.5,
        "o2o_miou": 25.125,
        "o2o_miou_foreground": None,
        "ari": 17.75,
        "ari_foreground": 9.5,
    },
    "untrained": {"images": 1234, "images_with_foreground": 1200, "segments_used": 7.25, "m2o_miou": 30.0, "ari": 6.375},
    "color k-means, same number of segments": {"images": 1234, "segments_used": 6.5, "m2o_miou": 20.5, "ari": 18.625},
}


RENDERED = {"images": 200, "image_size_px": 64, "seed": 1, "difficulty": "colours"}


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    config = RatsConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_registers=8,
        patch_size=8,
        image_size=32,
        num_prototypes=16,
        head_hidden_size=16,
        head_bottleneck_size=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(123)
        RatsForPartSegmentation(config).save_pretrained(folder)
    RatsImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture
def model_folder(saved_model, tmp_path):
    """A copy of its own for each test, trained on the embedded data according to its record."""
    folder = tmp_path / "run" / "model"
    shutil.copytree(saved_model, folder)
    settings = asdict(ModelSettings()) | asdict(DataSettings()) | asdict(TrainingSettings())
    record = {
        "settings": settings | {"output_dir": str(folder.parent), "synthetic_images": 4321, "num_local_crops": 3},
        "steps": 1357,
        "images_seen": 86848,
        "seconds": 165.2,
        "device": "cpu",
        "processes": 1,
        "mixed_precision": "bf16",
        "versions": {"torch": "2.14.1", "transformers": "5.23.0"},
    }
    (folder / "training.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def write_scores(model_folder, tmp_path):
    """Writes a score file of the model on rendered images; keywords replace settings, `scores` the scores."""

    def write(name="scores.json", scores=SCORES, **settings):
        config = json.loads((model_folder / "config.json").read_text())
        record = {
            "scores": copy.deepcopy(scores),
            "protocol": PROTOCOL,
            "settings": {
                "model": str(model_folder),
                "revision": None,
                "dataset": str(model_folder.parent / "data"),
                "rendered": None if "dataset" in settings else RENDERED,
                "dataset_is_local": "dataset" not in settings,
                "config": None,
                "split": "validation",
                "image_size": {"height": 64, "width": 64},
                "limit": None,
                "seed": 3,
                **settings,
            },
            "model_config": {name: config[name] for name in SUMMARY_OF_CONFIG if name in config},
            "fingerprints": {"weights": "w", "weight_files": hash_weight_files(model_folder), "data": "d"},
            "versions": {"python": "3.11.7", "torch": "2.14.1"},
            "commit": "37af77a",
            "date": "2026-11-23T06:48:02+00:00",
        }
        path = tmp_path / name
        path.write_text(json.dumps(record))
        return path

    return write


@pytest.fixture
def edit_json():
    """Changes entries of a JSON file; None removes one."""

    def edit(path, **changes):
        record = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))

    return edit
