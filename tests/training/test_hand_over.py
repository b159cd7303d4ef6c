"""The end of a run: what is pushed, what is refused before the first step, and that a failed push loses nothing."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from PIL import Image
from transformers import AutoModel

from modeling_rats import RatsForPartSegmentation, RatsImageProcessor, RatsModel
from tests.hub_server import Fault, HubServer, Repository
from training import hand_over, pretrain
from training.arguments import parse

ROOT = Path(__file__).resolve().parents[2]
NAME = "owner/rats-tiny"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        server.take_over(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def output(make_config, tmp_path):
    """What a run leaves, as far as it matters here."""
    output = tmp_path / "a run"
    RatsForPartSegmentation(make_config()).save_pretrained(output / "model")
    RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained(output / "model")
    Image.new("RGB", (4, 4)).save(output / "curves.png")
    (output / "parts").mkdir()
    for step, colour in ((200, "red"), (1000, "blue")):
        Image.new("RGB", (4, 4), colour).save(output / "parts" / f"step_{step:08d}.png")
    (output / "checkpoints").mkdir()
    (output / "checkpoints" / "step_00001000.pt").write_bytes(b"optimiser")
    return output


def settings_of(**training):
    return parse([f"--{name}={value}" for name, value in ({"push_to_hub": True, "hub_model_id": NAME} | training).items()])


def check(**training):
    Accelerator(cpu=True)
    settings = settings_of(**training)
    hand_over.check_push(settings.training, pretrain.twin(settings.model.model_type))


def push(output, **training):
    settings = settings_of(**training).training
    message = f"RATS pretrained for {settings.steps:,} steps"
    return hand_over.push(output / "model", settings, message, hand_over.drawn(output))


def test_the_model_folder_arrives_with_a_card_that_shows_the_run(hub, output, tmp_path):
    check(hub_private_repo=True)
    address = push(output, hub_private_repo=True)
    repository = hub.repositories[NAME]
    assert address.endswith(f"{NAME}/commit/{repository.head.oid}") and repository.private
    assert repository.head.message == "RATS pretrained for 600 steps"
    files = repository.head.files
    card = files["README.md"].decode()
    assert card.count(NAME) >= 2 and "assets/curves.png" in card and "assets/parts_0.png" in card
    assert "assets/parts_1.png" not in files
    assert files["assets/parts_0.png"] == (output / "parts" / "step_00001000.png").read_bytes()
    assert not [name for name in files if name.endswith(".pt")]
    for name, content in files.items():
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes(content)
    assert type(AutoModel.from_pretrained(tmp_path / "back")) is RatsModel


def test_a_run_without_pictures_is_pushed_all_the_same(hub, output):
    (output / "curves.png").unlink()
    shutil.rmtree(output / "parts")
    push(output)
    repository = hub.repositories[NAME]
    assert not [name for name in repository.head.files if name.startswith("assets/")] and not repository.private


def test_the_check_makes_the_repository_and_accepts_one_that_is_there(hub):
    check()
    check()
    assert len(hub.repositories[NAME].commits) == 1


def test_without_push_to_hub_the_hub_is_not_asked(hub):
    check(push_to_hub=False)
    assert not hub.requests


@pytest.mark.parametrize(
    "training, token, message",
    [
        ({}, "", f"hub_model_id={NAME}: No token of the Hub was found"),
        ({}, "hf_reader", r"may not write to owner/rats-tiny \(403\)"),
        ({"hub_model_id": "rats"}, "hf_writer", "must be named owner/name"),
        ({"hub_model_id": "owner/a b"}, "hf_writer", "Repo id must"),
        ({"hub_private_repo": True, "hub_model_id": "owner/public"}, "hf_writer", "exists and is public"),
        ({"model_type": "vit", "koleo_weight": 0}, "hf_writer", "model_type=vit is a twin"),
        ({"model_type": "all_heads"}, "hf_writer", "model_type=all_heads is a twin"),
    ],
)
def test_what_would_fail_at_the_end_fails_at_the_start(hub, monkeypatch, training, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    hub.repositories["owner/public"] = Repository()
    with pytest.raises(SystemExit, match=message):
        check(**training)


def test_a_missing_name_is_asked_for(hub):
    with pytest.raises(SystemExit, match=r"add --hub_model_id owner/name"):
        hand_over.check_push(parse(["--push_to_hub"]).training)


def test_all_ranks_end_when_the_check_fails(hub, monkeypatch):
    monkeypatch.setattr(hand_over, "PartialState", lambda: SimpleNamespace(is_main_process=False))
    monkeypatch.setattr(hand_over, "broadcast_object_list", lambda own: ["told by the main process"])
    with pytest.raises(SystemExit) as stopped:
        check()
    assert stopped.value.code == 1 and not hub.requests


def test_a_failed_push_says_where_the_model_is_and_its_command_pushes_it(hub, output, tmp_path):
    hub.faults = [Fault("/commit/", 400)]
    with pytest.raises(SystemExit) as stopped:
        push(output, hub_private_repo=True)
    told = stopped.value.code
    assert told.startswith(f"The training is done, but its model was not pushed to {NAME}: The Hub refused")
    assert f"safe at {output / 'model'}. To push it later:" in told
    hub.faults = []
    python, *arguments = shlex.split(told.splitlines()[-1])
    assert python == "python"
    environment = os.environ | hub.environment(tmp_path / "other_home")
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert json.loads(hub.repositories[NAME].head.files["config.json"])["model_type"] == "rats"
    assert {"README.md", "model.safetensors", "assets/curves.png"} <= hub.repositories[NAME].head.files.keys()


def test_whatever_goes_wrong_the_model_is_told_to_be_safe(hub, output):
    (output / "model" / "config.json").write_text("{")
    message = rf"(?s)not pushed to {NAME}: ValueError: .*safe at {re.escape(str(output))}/model\. To push"
    with pytest.raises(SystemExit, match=message):
        push(output)
    assert (output / "model" / "model.safetensors").exists() and not hub.requests


def test_a_run_of_the_command_ends_on_the_hub(hub, tmp_path, tiny_settings):
    (tmp_path / "images").mkdir()
    for index in range(4):
        Image.effect_noise((40, 40), 20 + index).convert("RGB").save(tmp_path / "images" / f"{index}.png")
    settings = tiny_settings | {
        "steps": 2, "batch_size": 2, "log_steps": 1, "num_workers": 0, "cpu_threads": 1,
        "dataset": tmp_path / "images", "output_dir": tmp_path / "run",
        "push_to_hub": True, "hub_model_id": NAME, "hub_private_repo": True,
    }  # fmt: skip
    command = [sys.executable, "training/pretrain.py", *(f"--{name}={value}" for name, value in settings.items())]
    environment = os.environ | hub.environment(tmp_path / "other_home") | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    repository = hub.repositories[NAME]
    assert repository.private and [commit.message for commit in repository.commits[1:]] == ["RATS pretrained for 2 steps"]
    model = tmp_path / "run" / "model"
    there = {file.relative_to(model).as_posix(): file.read_bytes() for file in model.rglob("*") if file.is_file()}
    arrived = repository.head.files
    assert {"README.md", "training.json", "assets/curves.png"} <= there.keys() <= arrived.keys()
    assert {path for path in arrived if arrived[path] != there.get(path)} == {"handler.py", "requirements.txt", "training.json"}
    assert not any(str(tmp_path).encode() in content for content in arrived.values())
