"""Tiny model folders and a score file, laid out as pretraining, fine-tuning and evaluation write them; a Hub in memory."""

import copy
import json
import shutil
from dataclasses import asdict

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Mask2FormerImageProcessor

from evaluation import universal_segmentation
from evaluation.part_segmentation import PROTOCOL, SUMMARY_OF_CONFIG
from hub_cards.records import hash_weight_files
from modeling_rats import (
    RatsConfig,
    RatsForPartSegmentation,
    RatsForUniversalSegmentation,
    RatsImageProcessor,
    RatsUniversalSegmentationConfig,
)
from tests.hub_server import HubServer
from tests.original_checkpoints import TINY, TINY_HEAD, VARIANTS, as_file, head
from training.finetune_settings import FinetuneSettings, SegmentationDataSettings, SegmentationModelSettings
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


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_registers": 8,
    "patch_size": 8,
    "image_size": 32,
    "num_prototypes": 16,
    "head_hidden_size": 16,
    "head_bottleneck_size": 8,
}
LABELS = ["ground", "disc", "box"]


AUTHORS = "TimingYang/RATS"
SERIES = [f"base/checkpoint_teacher_ep{epochs:04d}.pth" for epochs in (20, 100, 388)]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        server.take_over(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def authors(hub):
    """A repository as that of the paper's authors, whose weights differ from file to file; its card names a licence."""
    files = {}
    for seed, name in enumerate(SERIES):
        tensors, _ = VARIANTS["as on the page"].write(TINY, head(TINY["hidden_size"], **TINY_HEAD), seed)
        files[name] = as_file(tensors)
    card = "---\nlicense: cc-by-nc-4.0\ntags:\n- dino\n---\n\n# REGION-DINO\n"
    others = {"base/log.txt": b"388", "base/checkpoint_teacher_ep0020.json": b"{}", "base/checkpoint_student_ep0020.pth": b"-"}
    others |= {"small/checkpoint_teacher_ep0040.pth": b"-", "README.md": card.encode()}
    return hub.add(AUTHORS, files | others)


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    config = RatsConfig(**SIZES)
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


def save_segmenter(folder, **fields):
    """A tiny model with fresh weights and its processor, as fine-tuning saves them."""
    sizes = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32) | {"num_attention_heads": 4}
    sizes |= {"encoder_layers": 1, "decoder_layers": 3, "encoder_feedforward_dim": 16, "dim_feedforward": 16}
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: label for label, name in enumerate(LABELS)}}
    config = RatsUniversalSegmentationConfig(**{"backbone_config": RatsConfig(**SIZES), **sizes, **names, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(123)
        RatsForUniversalSegmentation(config).save_pretrained(folder)
    size = {"shortest_edge": 32, "longest_edge": 128}
    Mask2FormerImageProcessor(size=size, size_divisor=8, ignore_index=255).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved_segmenter(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("saved_segmenter") / "model")


@pytest.fixture
def segmenter(saved_segmenter, tmp_path):
    """A copy of its own for each test, fine-tuned on local images according to its record."""
    folder = tmp_path / "segmentation" / "model"
    shutil.copytree(saved_segmenter, folder)
    of_model, data = SegmentationModelSettings(backbone="facebook/dino-vits16"), SegmentationDataSettings(dataset="me/shapes")
    settings = asdict(of_model) | asdict(data) | asdict(FinetuneSettings(output_dir=str(folder.parent)))
    record = {
        "settings": settings,
        "steps": 2468,
        "images_seen": 39488,
        "seconds": 3661.0,
        "device": "CPU, 1 threads",
        "processes": 1,
        "mixed_precision": "no",
        "versions": {"torch": "2.14.1"},
    }
    (folder / "training.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A folder of images with a thing each on ground, in the form that serves every task; and `mask`, for semantic alone."""
    folder = tmp_path_factory.mktemp("images") / "shapes"
    folder.mkdir()
    image, whole = datasets.Image(), datasets.Sequence(datasets.Value("int32"))
    features = datasets.Features({"image": image, "segment_mask": image, "segment_labels": whole, "mask": image})
    for split, rows in (("train", 4), ("validation", 3)):
        random, columns = np.random.default_rng(rows), {name: [] for name in features}
        for label in [1, 2, 1, 2][:rows]:
            segments = np.ones((40, 48), np.uint8)
            segments[8:30, 10:36] = 2
            noise = random.integers(0, 90, (40, 48, 3), dtype=np.uint8)
            values = (noise + 80 * label * (segments == 2)[..., None]).astype(np.uint8)
            mask = np.where(segments == 2, label, 0).astype(np.uint8)
            row = [Image.fromarray(values), Image.fromarray(segments), [0, 0, label], Image.fromarray(mask)]
            for name, value in zip(features, row, strict=True):
                columns[name].append(value)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    (folder / "label_names.json").write_text(json.dumps({"label_names": LABELS, "isthing": [0, 1, 1]}))
    return folder


def measure(model, data, output, task="semantic", *options):
    """Scores a fine-tuned model; gives the record's file."""
    arguments = ["--model", model, "--dataset", data, "--task", task, "--output", output, "--quiet", *options]
    universal_segmentation.main([str(argument) for argument in arguments])
    return output
