"""Fingerprints, and files that are written whole."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluation.records import (
    describe_run,
    fingerprint_of_data,
    fingerprint_of_sample,
    fingerprint_of_weights,
    hashes_of_weight_files,
    read_json_lines,
    write_json,
)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    write_json(path, {"scores": 1, "none": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"scores": object()})
    assert json.loads(path.read_text()) == {"scores": 1, "none": None} and list(tmp_path.iterdir()) == [path]


def test_lines_up_to_one_that_was_cut_off(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_json_lines(path) == []
    path.write_text('{"a": 1}\n{"a": NaN}\n{"a"')
    assert len(read_json_lines(path)) == 2


def test_weights_are_known_by_values_names_and_types():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    first = fingerprint_of_weights(model)
    again = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert fingerprint_of_weights(again) != first
    again.load_state_dict(model.state_dict())
    assert fingerprint_of_weights(again) == first and len(first) == 32
    assert fingerprint_of_weights(again.bfloat16()) != first
    with torch.no_grad():
        model[1].running_mean[1] += 1
    assert fingerprint_of_weights(model) != first


def test_weight_files_of_a_folder_are_known_by_their_bytes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert hashes_of_weight_files(str(tmp_path)) == {"model.safetensors": digest}


def test_data_are_known_by_pixels_and_masks_in_any_order():
    image, mask = Image.new("RGB", (4, 3)), np.zeros((3, 4), np.uint8)
    first = fingerprint_of_sample(image, mask)
    assert fingerprint_of_sample(image.copy(), mask.astype(np.int32)) == first
    changed = mask.copy()
    changed[0, 0] = 1
    others = [(image, changed), (Image.new("RGB", (4, 3), (0, 0, 1)), mask), (Image.new("RGB", (3, 4)), mask)]
    prints = [first, *(fingerprint_of_sample(*other) for other in others)]
    assert len(set(prints)) == 4
    assert fingerprint_of_data(prints) == fingerprint_of_data(prints[::-1]) != fingerprint_of_data(prints[1:])


def test_a_run_is_told_by_versions_date_and_command():
    told = describe_run("evaluation.part_segmentation", ["--model", "a folder"])
    assert told["command"] == "python -m evaluation.part_segmentation --model 'a folder'"
    assert {"python", "torch", "transformers", "datasets"} <= told["versions"].keys() and told["date"].endswith("+00:00")
