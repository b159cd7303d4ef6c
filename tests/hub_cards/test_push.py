"""What arrives on the Hub, in how many commits, and what is refused: the real client against a server on this machine."""

import os
import subprocess
import sys

import pytest

from hub_cards.card import write_card
from hub_cards.push import PushError, files_to_push, prepare_repository, push_folder
from tests.hub_server import Commit, HubServer, Repository

NAME = "owner/rats-tiny"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        server.take_over(monkeypatch, tmp_path / "home")
        yield server


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_arrives_whole_in_one_commit(model_folder, hub):
    write_card(model_folder, repo_id=NAME)
    address = push_folder(model_folder, NAME, commit_message="First try")
    repository = hub.repositories[NAME]
    assert [commit.message for commit in repository.commits] == ["initial commit", "First try"]
    assert repository.head.files == contents(model_folder)
    assert {"README.md", "config.json", "model.safetensors", "training.json"} <= repository.head.files.keys()
    assert address == f"{hub.url}/{NAME}/commit/{repository.head.oid}" and not repository.private
    assert len(hub.objects) == 1 and "POST /api/validate-yaml" in hub.requests


def test_a_new_process_pushes_to_the_hub_of_its_environment(model_folder, hub, tmp_path):
    script = (
        "import sys; from pathlib import Path; from hub_cards.push import push_folder; print(push_folder(Path(sys.argv[1]), "
        f"'{NAME}', private=True))"
    )
    command = [sys.executable, "-c", script, str(model_folder)]
    environment = os.environ | hub.environment(tmp_path / "other_home")
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith(hub.repositories[NAME].head.oid) and hub.repositories[NAME].private
    assert hub.repositories[NAME].head.files == contents(model_folder)


def test_a_second_push_sends_what_changed_and_leaves_what_is_not_its_own(model_folder, hub):
    push_folder(model_folder, NAME)
    repository = hub.repositories[NAME]
    repository.commits.append(Commit("1" * 40, "by hand", repository.head.files | {"notes.txt": b"mine"}))
    (model_folder / "training.json").write_text("{}")
    before = len(hub.requests)
    push_folder(model_folder, NAME)
    assert repository.head.files == contents(model_folder) | {"notes.txt": b"mine"} and len(repository.commits) == 4
    assert not any(asked.startswith("PUT") for asked in hub.requests[before:])  # the weights are the same
    push_folder(model_folder, NAME)
    assert len(repository.commits) == 4  # nothing had changed


def test_hidden_files_and_bytecode_stay_behind(model_folder, hub):
    (model_folder / ".README.md.7.partial").write_text("half")
    for folder in (".cache", "__pycache__", "assets"):
        (model_folder / folder).mkdir()
        (model_folder / folder / "file").write_text("x")
    names = {file.relative_to(model_folder).as_posix() for file in files_to_push(model_folder)}
    assert "assets/file" in names and not {name for name in names if name.startswith(".") or "__pycache__" in name}


@pytest.mark.parametrize("name", ["optimizer.pt", "assets/state.pkl", "pytorch_model.bin"])
def test_pickles_are_refused_before_anything_is_asked_of_the_hub(model_folder, hub, name):
    (model_folder / name).parent.mkdir(exist_ok=True)
    (model_folder / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"holds {name}; .* safetensors"):
        push_folder(model_folder, NAME)
    assert not hub.requests


def test_what_is_no_model_folder_is_refused(tmp_path, hub):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        push_folder(tmp_path, NAME)


def test_a_card_that_the_hub_does_not_take_is_refused_before_the_weights_are_sent(model_folder, hub):
    (model_folder / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(ValueError, match='"library_name" is missing'):
        push_folder(model_folder, NAME)
    assert not hub.objects and len(hub.repositories[NAME].commits) == 1


@pytest.mark.parametrize("name", ["rats-tiny", "owner/rats/tiny", "owner/..", "owner/a b"])
def test_malformed_names_are_refused(hub, name):
    with pytest.raises(ValueError, match=r"owner/name|Repo id"):
        prepare_repository(name)
    assert not hub.requests


@pytest.mark.parametrize(
    "token, name, message",
    [
        ("", NAME, "No token of the Hub was found.*hf auth login"),
        ("hf_wrong", NAME, r"does not know the token \(401\)"),
        ("hf_reader", NAME, r"may not write to owner/rats-tiny \(403\).*settings/tokens"),
        ("hf_reader", "owner/there", r"may not write to owner/there \(403\)"),
        ("hf_writer", "stranger/rats", r"may not write to stranger/rats \(403\)"),
        ("hf_stranger", "owner/secret", r"may not write to owner/secret \(403\)"),
    ],
)
def test_tokens_that_may_not_write_are_refused(model_folder, hub, monkeypatch, token, name, message):
    monkeypatch.setenv("HF_TOKEN", token)
    hub.repositories = {"owner/there": Repository(), "owner/secret": Repository(private=True)}
    with pytest.raises(PushError, match=message):
        push_folder(model_folder, name)
    assert not hub.objects and all(len(repository.commits) == 1 for repository in hub.repositories.values())


def test_a_private_push_to_a_public_repository_is_refused(model_folder, hub):
    hub.repositories[NAME] = Repository(private=False)
    with pytest.raises(PushError, match=f"{NAME} exists and is public"):
        push_folder(model_folder, NAME, private=True)
    assert not hub.objects
    hub.repositories[NAME].private = True
    push_folder(model_folder, NAME, private=True)
    assert hub.repositories[NAME].head.files == contents(model_folder)


def test_a_hub_that_fails_or_is_away_is_told(model_folder, hub, monkeypatch):
    hub.failing["PUT /lfs"] = 400
    with pytest.raises(PushError, match=r"Error while uploading 'model\.safetensors'(?s:.*)as the test wants it"):
        push_folder(model_folder, NAME)
    hub.failing = {"/commit/": 412}
    with pytest.raises(PushError, match=r"refused owner/rats-tiny \(412\): as the test wants it\. Push again later"):
        push_folder(model_folder, NAME)
    assert len(hub.repositories[NAME].commits) == 1
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PushError, match=r"127\.0\.0\.1:9\) cannot be reached"):
        push_folder(model_folder, NAME)


def test_offline_is_told(model_folder, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="HF_HUB_OFFLINE is set"):
        push_folder(model_folder, NAME)
    assert not hub.requests
