"""What arrives on the Hub, in how many commits, and what is refused: the real client against a server on this machine."""

import json
import subprocess
import sys
from os import environ
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, parse_eval_result_entries
from safetensors.numpy import load_file, save_file

from hub_cards.card import find_assets, write_card
from hub_cards.contents import gather
from hub_cards.push import main, push_model, push_results
from hub_cards.repository import PushError, prepare_repository
from modeling_rats.remote_code import AUTO_MAP
from tests.hub_server import Fault, Repository

NAME = "owner/rats-tiny"
ADDED = {"README.md", "handler.py", "requirements.txt"}


@pytest.fixture
def waits(monkeypatch):
    """Nobody waits; the seconds that would have been waited, of ours and of the client's own retries."""
    ours, clients = [], []
    monkeypatch.setattr("hub_cards.repository.time", SimpleNamespace(sleep=ours.append))
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=clients.append))
    return SimpleNamespace(ours=ours, clients=clients)


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def results_in(repository):
    """Data set and split of each entry of the card's model-index, and how many tables the card has."""
    card = ModelCard(repository.head.files["README.md"].decode())
    results = card.data.eval_results or []
    entries = {(result.dataset_type, result.dataset_split) for result in results}
    values = [(result.dataset_type, result.dataset_split, result.metric_type, result.metric_config) for result in results]
    assert len(values) == len(set(values)), "an entry is there twice"
    return entries, card.text.count("| this model |")


def test_a_folder_arrives_whole_in_one_commit_and_is_left_as_it_was(model_folder, write_scores, hub):
    before = contents(model_folder)
    pushed = push_model(model_folder, NAME, [write_scores()], message="First try")
    repository = hub.repositories[NAME]
    assert [commit.message for commit in repository.commits] == ["initial commit", "First try"]
    arrived = repository.head.files
    assert {path: arrived[path] for path in before if path != "training.json"} == {
        path: content for path, content in before.items() if path != "training.json"
    }
    assert arrived.keys() - before.keys() > ADDED and contents(model_folder) == before
    assert json.loads(arrived["config.json"])["auto_map"]["AutoModel"] == "modeling_rats.RatsModel"
    assert results_in(repository) == ({("synthetic_parts", "validation")}, 1)
    assert sum(path.startswith("results/synthetic_parts-validation-64x64-px-1234-images-") for path in arrived) == 1
    assert pushed.url == f"{hub.url}/{NAME}/commit/{repository.head.oid}" and not repository.private
    assert len(hub.objects) == 1 and "POST /api/validate-yaml" in hub.requests


def test_what_is_pushed_tells_no_place_of_this_machine(model_folder, write_scores, hub, tmp_path):
    push_model(model_folder, NAME, [write_scores()])
    for path, content in hub.repositories[NAME].head.files.items():
        assert str(tmp_path).encode() not in content, path


def test_a_folder_without_code_gets_the_code_of_all_classes(model_folder, hub):
    for path in model_folder.glob("*.py"):
        path.unlink()
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name != "auto_map"}))
    push_model(model_folder, NAME)
    arrived = hub.repositories[NAME].head.files
    named = {
        str(code).split(".")[0] for code in json.loads(arrived["config.json"])["auto_map"].values() if isinstance(code, str)
    }
    assert {f"{name}.py" for name in named} | {"pipeline_rats.py"} <= arrived.keys()
    for path in (path for path in arrived if path.endswith(".py")):
        compile(arrived[path], path, "exec")


def test_ten_pushes_of_the_same_make_one_commit(model_folder, write_scores, hub):
    results = [write_scores()]
    first = push_model(model_folder, NAME, results)
    for _ in range(9):
        again = push_model(model_folder, NAME, results)
        assert again.url == first.url and not again.change
    assert len(hub.repositories[NAME].commits) == 2


def test_a_new_process_pushes_to_the_hub_of_its_environment(model_folder, write_scores, hub, tmp_path):
    command = [sys.executable, "-m", "hub_cards.push", str(model_folder), "--repo_id", NAME, "--private"]
    environment = environ | hub.environment(tmp_path / "other_home")
    run = subprocess.run(
        [*command, "--results", str(write_scores())], env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith(hub.repositories[NAME].head.oid) and hub.repositories[NAME].private
    run = subprocess.run([*command, "--dry_run"], env=environment, capture_output=True, text=True, timeout=60)
    assert "there is nothing to push" in run.stdout, run.stderr


def test_what_others_have_put_there_stays(model_folder, write_scores, hub):
    push_model(model_folder, NAME)
    repository = hub.repositories[NAME]
    card = repository.head.files["README.md"].decode().replace("license: mit", "license: apache-2.0") + "\nOf birds.\n"
    hub.commit_to(repository, {"notes.txt": b"mine", "assets/mine.png": b"picture", "README.md": card.encode()})
    (model_folder / "training.json").unlink()
    before = len(hub.requests)
    push_model(model_folder, NAME, [write_scores()])
    arrived = repository.head.files
    assert arrived["notes.txt"] == b"mine" and arrived["assets/mine.png"] == b"picture"
    assert arrived["README.md"].decode().endswith("Of birds.\n") and b"license: apache-2.0" in arrived["README.md"]
    assert "mine.png" not in arrived["README.md"].decode() and results_in(repository)[1] == 1
    assert not any(asked.startswith("PUT") for asked in hub.requests[before:])  # the weights are the same


def test_pictures_of_the_folder_replace_those_of_their_kind(model_folder, hub, tmp_path):
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(2):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(pictures / f"{index}.png")
    write_card(model_folder, assets=find_assets(pictures / "0.png", pictures))
    push_model(model_folder, NAME)
    (pictures / "1.png").unlink()
    write_card(model_folder, assets=find_assets(pictures=pictures))
    push_model(model_folder, NAME)
    arrived = hub.repositories[NAME].head.files
    assert {path for path in arrived if path.startswith("assets/")} == {"assets/curves.png", "assets/parts_0.png"}
    assert arrived["README.md"].decode().count("(assets/parts_") == 1 and "(assets/curves.png)" in arrived["README.md"].decode()


def test_new_weights_take_the_results_of_the_old_ones_with_them(model_folder, write_scores, hub):
    push_model(model_folder, NAME, [write_scores()])
    weights = load_file(model_folder / "model.safetensors")
    (model_folder / "model.safetensors").unlink()
    for place, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), start=1):
        save_file({name: weights[name] + 1 for name in names}, model_folder / f"model-0000{place}-of-00002.safetensors")
    with pytest.raises(ValueError, match="whose weights were not those of"):
        push_model(model_folder, NAME, [_moved(write_scores(), "0" * 64)])
    (model_folder / "training.json").unlink()
    push_model(model_folder, NAME, [write_scores(split="test")])
    arrived = hub.repositories[NAME].head.files
    assert "training.json" not in arrived and "1,357" not in arrived["README.md"].decode()
    assert "model.safetensors" not in arrived and "model-00002-of-00002.safetensors" in arrived
    assert results_in(hub.repositories[NAME]) == ({("synthetic_parts", "test")}, 1)
    assert sum(path.startswith("results/") for path in arrived) == 1


def _moved(path, digest):
    record = json.loads(path.read_text())
    record["fingerprints"]["weight_files"] = {"model.safetensors": digest}
    path.write_text(json.dumps(record))
    return path


def test_results_alone_are_added_to_a_model_on_the_hub(model_folder, write_scores, hub):
    push_model(model_folder, NAME, [write_scores()])
    repository = hub.repositories[NAME]
    before = repository.head.files
    asked = len(hub.requests)
    push_results(NAME, [write_scores(split="test"), write_scores("birds.json", dataset="someone/birds")])
    assert results_in(repository) == (
        {("synthetic_parts", "validation"), ("synthetic_parts", "test"), ("someone/birds", "validation")},
        3,
    )
    same = {path for path in before if repository.head.files[path] == before[path]}
    assert before.keys() - same == {"README.md"} and len(repository.head.files) == len(before) + 2
    assert "parameters" in repository.head.files["README.md"].decode().lower()
    fetched = [path for path in hub.requests[asked:] if path.startswith("GET") and path.endswith("/model.safetensors")]
    assert [hub.ranges[path] for path in fetched] == ["bytes=0-100000"]  # the header
    text = before["README.md"].decode()
    for section in ("## Model details", "## Training", "## Use"):
        assert text.split(section)[1].split("## ")[0] in repository.head.files["README.md"].decode(), section
    commits = len(repository.commits)
    assert not push_results(NAME, [write_scores(split="test")]).change and len(repository.commits) == commits


def test_leaderboards_are_written_for_data_sets_of_the_hub_on_request(model_folder, write_scores, hub):
    results = [write_scores(), write_scores("birds.json", dataset="someone/birds", dataset_revision="v1")]
    arguments = [str(model_folder), "--repo_id", NAME, "--results", *map(str, results), "--quiet"]
    main(arguments)
    assert not any(path.startswith(".eval_results") for path in hub.repositories[NAME].head.files)
    main([*arguments, "--eval_results", "parts=m2o_miou_foreground"])
    (place,) = (path for path in hub.repositories[NAME].head.files if path.startswith(".eval_results"))
    (entry,) = parse_eval_result_entries(yaml.safe_load(hub.repositories[NAME].head.files[place]))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision, entry.value) == ("someone/birds", "parts", "v1", 21.5)
    record = json.loads(results[1].read_text())
    record["scores"]["model"]["m2o_miou_foreground"] = 33.25
    results[1].write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=r"\.eval_results/.*yaml of .* would tell scores of a record that is replaced"):
        main(arguments)
    main([*arguments, "--eval_results", "parts=m2o_miou_foreground"])
    assert b"33.25" in hub.repositories[NAME].head.files[place]
    with pytest.raises(SystemExit, match="No result on a data set of the Hub has accuracy"):
        main([*arguments, "--eval_results", "parts=accuracy"])
    with pytest.raises(ValueError, match="No result on a data set of the Hub has ari"):
        push_model(model_folder, "owner/other", [write_scores()], eval_results={"parts": "ari"})
    assert "owner/other" not in hub.repositories


def test_an_older_copy_of_a_folder_takes_no_newer_result_back(model_folder, write_scores, edit_json, hub):
    path = write_scores()
    write_card(model_folder, [path])
    push_model(model_folder, NAME)
    record = json.loads(path.read_text())
    record["scores"]["model"]["ari"] = 66.25
    edit_json(path, date="2026-11-24T00:00:00+00:00", scores=record["scores"])
    push_results(NAME, [path])
    assert not push_model(model_folder, NAME).change
    assert b"value: 66.25" in hub.repositories[NAME].head.files["README.md"]


def test_results_of_another_revision_of_the_weights_are_refused_unless_told_so(model_folder, write_scores, hub):
    push_model(model_folder, NAME)
    path = _moved(write_scores(), "0" * 64)
    with pytest.raises(ValueError, match=r"whose weights were not those of owner/rats-tiny.*--any_model"):
        push_results(NAME, [path])
    assert len(hub.repositories[NAME].commits) == 2
    push_results(NAME, [path], any_model=True)
    assert results_in(hub.repositories[NAME])[1] == 1


def test_two_pushes_at_once_both_arrive(model_folder, write_scores, hub, tmp_path):
    push_model(model_folder, NAME)
    splits = ["validation", "test", "train"]
    command = [sys.executable, "-m", "hub_cards.push", "--repo_id", NAME, "--results_only", "--results"]
    runs = [
        subprocess.Popen(
            [*command, str(write_scores(f"{split}.json", split=split))], env=environ | hub.environment(tmp_path / split)
        )
        for split in splits
    ]
    assert [run.wait(120) for run in runs] == [0] * len(runs)
    assert results_in(hub.repositories[NAME]) == ({("synthetic_parts", split) for split in splits}, 3)
    assert len(hub.repositories[NAME].commits) == 2 + len(splits)


def test_a_commit_that_came_between_is_built_upon(model_folder, write_scores, hub, waits):
    push_model(model_folder, NAME)
    repository = hub.repositories[NAME]
    once = Fault("/commit/main", times=2, action=lambda: hub.commit_to(repository, {f"note{len(repository.commits)}": b"x"}))
    hub.faults = [once]
    push_results(NAME, [write_scores()])
    assert results_in(repository)[1] == 1 and {"note2", "note3"} < repository.head.files.keys() and len(waits.ours) == 2


def test_a_branch_is_made_and_a_pull_request_opened(model_folder, write_scores, hub):
    push_model(model_folder, NAME)
    repository = hub.repositories[NAME]
    push_model(model_folder, NAME, [write_scores()], revision="v2")
    assert len(repository.commits) == 2 and "model.safetensors" in repository.branches["v2"][-1].files
    assert any(path.startswith("results/") for path in repository.branches["v2"][-1].files)
    with pytest.raises(ValueError, match="revision=v2 was given; leave one of them out"):
        push_results(NAME, [write_scores()], revision="v2", create_pr=True)
    pushed = push_results(NAME, [write_scores()], create_pr=True)
    assert pushed.url == f"{hub.url}/{NAME}/discussions/1" and len(repository.commits) == 2
    assert any(path.startswith("results/") for path in repository.branches["refs/pr/1"][-1].files)


def test_a_pull_request_whose_answer_is_lost_is_not_opened_twice(model_folder, write_scores, hub, waits):
    push_model(model_folder, NAME)
    hub.faults = [Fault("/commit/main", drop="after", times=1)]
    pushed = push_results(NAME, [write_scores()], create_pr=True)
    assert pushed.url == f"{hub.url}/{NAME}/discussions/1" and len(waits.ours) == 1
    assert push_results(NAME, [write_scores()], create_pr=True).url == pushed.url  # nor by the same command
    assert push_results(NAME, [write_scores(split="test")], create_pr=True).url == f"{hub.url}/{NAME}/discussions/2"
    assert sum(name.startswith("refs/pr/") for name in hub.repositories[NAME].branches) == 2


def test_who_may_not_write_may_propose(model_folder, write_scores, hub, monkeypatch):
    push_model(model_folder, NAME)
    with pytest.raises(ValueError, match="create_pr proposes a change to a repository that is there, and private makes one"):
        push_model(model_folder, NAME, create_pr=True, private=True)
    with pytest.raises(PushError, match="There is no repository owner/nowhere that the token may see"):
        push_model(model_folder, "owner/nowhere", create_pr=True)
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(PushError, match="may not write to owner/rats-tiny"):
        push_results(NAME, [write_scores()])
    assert push_results(NAME, [write_scores()], create_pr=True).url == f"{hub.url}/{NAME}/discussions/1"
    (model_folder / "notes.md").write_text("A note.")
    assert push_model(model_folder, NAME, create_pr=True).url == f"{hub.url}/{NAME}/discussions/2"
    proposed = hub.repositories[NAME].branches["refs/pr/2"][-1]
    assert (
        proposed.author == "stranger" and proposed.files["notes.md"] == b"A note." and len(hub.repositories[NAME].commits) == 2
    )
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(PushError, match=r"may not write to owner/rats-tiny \(403\)"):
        push_results(NAME, [write_scores()], create_pr=True)


def test_a_branch_is_no_commit(model_folder, write_scores, hub):
    push_model(model_folder, NAME)
    for length in (7, 40):
        with pytest.raises(ValueError, match="looks like a commit; only a branch can be pushed to"):
            push_results(NAME, [write_scores()], revision=hub.repositories[NAME].head.oid[:length])


def test_weights_that_change_meanwhile_are_not_told_to_be_the_measured_ones(model_folder, write_scores, hub):
    weights = model_folder / "model.safetensors"

    def train_on():
        tensors = load_file(weights)
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})

    with (
        patch("hub_cards.changes.gather", side_effect=lambda *given: [train_on(), gather(*given)][1]),
        pytest.raises(PushError, match=r"model\.safetensors changed while being pushed.*Push again"),
    ):
        push_model(model_folder, NAME, [write_scores()])
    assert len(hub.repositories[NAME].commits) == 1 and not hub.objects
    push_model(model_folder, NAME)
    assert hub.repositories[NAME].head.files["model.safetensors"] == weights.read_bytes()


def test_files_may_be_kept_in_git_and_not_as_large_ones(model_folder, write_scores, hub, monkeypatch):
    monkeypatch.setattr("tests.hub_server.LARGE_SUFFIXES", (".parquet",))
    (model_folder / "assets").mkdir()
    (model_folder / "assets" / "curves.png").write_bytes(b"curves")
    push_model(model_folder, NAME, [write_scores()])
    assert not hub.objects and not push_model(model_folder, NAME).change
    push_results(NAME, [write_scores(split="test")])
    assert results_in(hub.repositories[NAME])[1] == 2


def test_code_of_ones_own_is_found(model_folder, edit_json, hub):
    for file in model_folder.glob("*.py"):
        file.unlink()
    (model_folder / "modeling_mine.py").write_text("# mine\n")
    edit_json(model_folder / "config.json", auto_map=None)
    push_model(model_folder, NAME)
    files = hub.repositories[NAME].head.files
    assert (
        "modeling_rats.py" not in files and json.loads(files["config.json"])["auto_map"]["AutoModel"] == AUTO_MAP["AutoModel"]
    )


def test_a_dry_run_shows_everything_and_changes_nothing(model_folder, write_scores, hub, capsys):
    arguments = [str(model_folder), "--repo_id", NAME, "--results", str(write_scores()), "--dry_run"]
    main(arguments)
    shown = capsys.readouterr().out
    assert "which would be made" in shown and "add model.safetensors (" in shown and "+## Results" in shown
    assert not hub.repositories and not hub.objects
    push_model(model_folder, NAME)
    main(arguments)
    shown = capsys.readouterr().out
    assert "add results/synthetic_parts-" in shown and "change README.md (" in shown and "+## Results" in shown
    assert "model.safetensors" not in shown and len(hub.repositories[NAME].commits) == 2
    main([*arguments, "--revision", "v2"])
    assert "change README.md" in capsys.readouterr().out and "v2" not in hub.repositories[NAME].branches


def test_words_of_two_people_are_not_mixed(model_folder, hub):
    card = write_card(model_folder)
    card.write_text(card.read_text() + "\nWritten here.\n")
    push_model(model_folder, NAME)
    repository = hub.repositories[NAME]
    assert repository.head.files["README.md"].decode().endswith("Written here.\n")
    hub.commit_to(repository, {"README.md": repository.head.files["README.md"].replace(b"Written here", b"Written there")})
    with pytest.raises(ValueError, match=r"differ in prose.*--prose hub or --prose folder"):
        push_model(model_folder, NAME, revision="v3")
    assert "v3" not in repository.branches
    assert not push_model(model_folder, NAME, prose="hub").change
    push_model(model_folder, NAME, prose="folder")
    assert repository.head.files["README.md"].decode().endswith("Written here.\n")


def test_hidden_files_and_bytecode_stay_behind(model_folder, hub):
    (model_folder / ".README.md.7.partial").write_text("half")
    for folder in (".cache", "__pycache__", "notes"):
        (model_folder / folder).mkdir()
        (model_folder / folder / "file").write_text("x")
    push_model(model_folder, NAME)
    names = hub.repositories[NAME].head.files.keys()
    assert "notes/file" in names and not {name for name in names if name.startswith(".") or "__pycache__" in name}


@pytest.mark.parametrize("name", ["optimizer.pt", "notes/state.PKL", "pytorch_model.bin", "state.pt.gz"])
def test_pickles_are_refused_before_anything_is_asked_of_the_hub(model_folder, hub, name):
    (model_folder / name).parent.mkdir(exist_ok=True)
    (model_folder / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"holds {name}; .* safetensors"):
        push_model(model_folder, NAME)
    assert not hub.requests


@pytest.mark.parametrize(
    "secret",
    ["hf_" + "aB3" * 12, "ghp_" + "x1" * 18, "AKIA" + "A1B2C3D4E5F6G7H8", "-----BEGIN RSA PRIVATE KEY-----", "hf_writer"],
)
def test_secrets_are_refused_and_not_repeated(model_folder, hub, secret):
    (model_folder / "notes.md").write_text(f"A note.\nlogin with {secret}\n")
    with pytest.raises(ValueError, match=r"notes\.md holds what looks like a secret key or token in line 2") as refusal:
        push_model(model_folder, NAME)
    assert secret not in str(refusal.value) and not hub.requests


def test_secrets_in_the_card_and_in_results_are_refused(model_folder, write_scores, hub):
    secret = "hf_" + "aB3" * 12
    path = write_scores()
    path.write_text(path.read_text().replace("37af77a", secret))
    with pytest.raises(ValueError, match=r"results/.*json holds what looks like a secret"):
        push_model(model_folder, NAME, [path])
    card = write_card(model_folder)
    card.write_text(f"{card.read_text()}\nMy token is {secret}.\n")
    with pytest.raises(ValueError, match=r"README\.md holds what looks like a secret"):
        push_model(model_folder, NAME)
    assert all(len(repository.commits) == 1 for repository in hub.repositories.values())


def test_files_of_others_are_neither_ours_nor_in_the_way(model_folder, write_scores, hub):
    push_model(model_folder, NAME, [write_scores()])
    repository = hub.repositories[NAME]
    others = {
        "adapter/adapter_model.safetensors": b"theirs",
        "adapter_model.safetensors": b"theirs",
        "assets/input_photo.png": b"picture",
        "assets/curves_ablation.png": b"picture",
        "results/lm_eval.json": b'{"acc": 1}',
        "results/notes.json": b"no json",
    }
    hub.commit_to(repository, others)
    assert not push_model(model_folder, NAME).change
    push_results(NAME, [write_scores(split="test")])
    (model_folder / "assets").mkdir()
    (model_folder / "assets" / "curves.png").write_bytes(b"curves")
    push_model(model_folder, NAME)
    assert others.items() <= repository.head.files.items()
    assert results_in(repository) == ({("synthetic_parts", "validation"), ("synthetic_parts", "test")}, 2)


def test_results_of_another_configuration_do_not_stay(model_folder, write_scores, edit_json, hub):
    push_model(model_folder, NAME, [write_scores()])
    edit_json(model_folder / "config.json", part_similarity="claimed_patches")
    push_model(model_folder, NAME)
    assert results_in(hub.repositories[NAME]) == (set(), 0)
    assert not any(path.startswith("results/") for path in hub.repositories[NAME].head.files)


def test_what_is_no_model_folder_is_refused(tmp_path, hub):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        push_model(tmp_path, NAME)
    assert not hub.requests


def test_results_for_what_is_no_model_are_refused(write_scores, hub):
    hub.add(NAME, {"README.md": b"hello"})
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        push_results(NAME, [write_scores()])
    with pytest.raises(PushError, match="There is no repository owner/nowhere that the token may see"):
        push_results("owner/nowhere", [write_scores()])
    with pytest.raises(ValueError, match="--results_only needs --results"):
        push_results(NAME, [])


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
        push_model(model_folder, name)
    assert not hub.objects and all(len(repository.commits) == 1 for repository in hub.repositories.values())


def test_a_private_push_to_a_public_repository_is_refused(model_folder, hub):
    hub.repositories[NAME] = Repository(private=False)
    with pytest.raises(PushError, match=f"{NAME} exists and is public"):
        push_model(model_folder, NAME, private=True)
    assert not hub.objects
    hub.repositories[NAME].private = True
    push_model(model_folder, NAME, private=True)
    assert "model.safetensors" in hub.repositories[NAME].head.files


def test_a_hub_that_refuses_or_is_away_is_told(model_folder, hub, waits, monkeypatch):
    hub.faults = [Fault("PUT /lfs", 400)]
    with pytest.raises(PushError, match=r"Error while uploading 'model\.safetensors'(?s:.*)as the test wants it"):
        push_model(model_folder, NAME)
    hub.faults = [Fault("/commit/", 412)]
    with pytest.raises(PushError, match=r"refused owner/rats-tiny \(412\): as the test wants it\. Push again later"):
        push_model(model_folder, NAME)
    hub.faults = [Fault("/commit/", 503)]
    with pytest.raises(PushError, match=r"refused owner/rats-tiny \(503\)"):
        push_model(model_folder, NAME)
    assert len(hub.repositories[NAME].commits) == 1
    hub.faults = []
    push_model(model_folder, NAME)  # the same command goes on
    assert len(hub.repositories[NAME].commits) == 2
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PushError, match=r"127\.0\.0\.1:9\) cannot be reached"):
        push_model(model_folder, NAME)


def test_the_wait_is_the_one_that_the_hub_asks_for(model_folder, hub, waits):
    hub.faults = [Fault("/commit/main", 429, retry_after_s=17, times=1), Fault("/commit/main", 503, times=2)]
    push_model(model_folder, NAME)
    assert waits.ours == [17.0, 2.0, 4.0] and len(hub.repositories[NAME].commits) == 2


def test_offline_is_told(model_folder, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="HF_HUB_OFFLINE is set"):
        push_model(model_folder, NAME)
    assert not hub.requests


def test_metadata_and_measurements_of_others_stay(model_folder, write_scores, hub):
    push_model(model_folder, NAME, [write_scores()])
    repository = hub.repositories[NAME]
    card = ModelCard(repository.head.files["README.md"].decode())
    theirs = EvalResult("image-classification", "imagenet-1k", "ImageNet", "accuracy", 71.25, task_name="Fine-tuned")
    card.data.eval_results.append(theirs)
    card.data.datasets = ["owner/my-birds"]
    card.data.thanks = "to the cat"
    hub.commit_to(repository, {"README.md": str(card).encode()})
    commits = len(repository.commits)
    push_results(NAME, [write_scores(split="test")])
    push_model(model_folder, NAME)
    push_model(model_folder, NAME, prose="folder")
    write_card(model_folder)
    (model_folder / "README.md").write_text((model_folder / "README.md").read_text() + "\nWritten here.\n")
    push_model(model_folder, NAME, prose="folder")
    assert len(repository.commits) == commits + 2
    card = ModelCard(repository.head.files["README.md"].decode())
    assert card.text.endswith("Written here.\n")
    assert card.data.datasets == ["owner/my-birds"] and card.data.thanks == "to the cat"
    assert [result.metric_value for result in card.data.eval_results if result.task_name == "Fine-tuned"] == [71.25]
    assert results_in(repository)[0] == {("synthetic_parts", "validation"), ("synthetic_parts", "test"), ("imagenet-1k", None)}


def test_pictures_and_the_record_of_training_of_earlier_weights_are_refused(model_folder, edit_json, hub):
    (model_folder / "assets").mkdir()
    (model_folder / "assets" / "curves.png").write_bytes(b"curves")
    push_model(model_folder, NAME)
    weights = model_folder / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"assets/curves\.png, training\.json of .* are those of the weights on the Hub"):
        push_model(model_folder, NAME)
    assert len(hub.repositories[NAME].commits) == 2
    edit_json(model_folder / "training.json", steps=2000)
    with pytest.raises(ValueError, match=r"^assets/curves\.png of .* are those"):
        push_model(model_folder, NAME)
    push_model(model_folder, NAME, any_model=True)
    assert "assets/curves.png" in hub.repositories[NAME].head.files


def test_a_leaderboard_gets_one_score_of_a_data_set_and_is_told_how_it_was_measured(model_folder, write_scores, hub):
    birds = write_scores("birds.json", dataset="someone/birds", mask_column="whole")
    push_model(model_folder, NAME, [birds], eval_results={"parts": "ari"})
    (place,) = (path for path in hub.repositories[NAME].head.files if path.startswith(".eval_results"))
    (entry,) = parse_eval_result_entries(yaml.safe_load(hub.repositories[NAME].head.files[place]))
    assert entry.notes == "someone/birds, split `validation`, 64 x 64 px, mask_column whole"
    other = write_scores("other.json", dataset="someone/birds", mask_column="fine")
    with pytest.raises(ValueError, match=r"two results on someone/birds .*mask_column fine.*a leaderboard ranks one"):
        push_model(model_folder, NAME, [other], eval_results={"parts": "ari"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--private"], "exists and is public"),
        (["--create_pr", "--revision", "x"], "leave one of them out"),
        (["--revision", "0123abcd"], "looks like a commit"),
    ],
)
def test_a_dry_run_refuses_what_a_push_refuses(model_folder, hub, options, message):
    push_model(model_folder, NAME)
    with pytest.raises(SystemExit, match=message):
        main([str(model_folder), "--repo_id", NAME, "--dry_run", *options])
    with pytest.raises(SystemExit, match="There is no repository owner/nowhere"):
        main([str(model_folder), "--repo_id", "owner/nowhere", "--dry_run", "--create_pr"])


def test_options_of_a_folder_are_refused_for_results(write_scores, hub, capsys):
    with pytest.raises(SystemExit):
        main(["--repo_id", NAME, "--results_only", "--results", str(write_scores()), "--private"])
    assert "--private, --prose and --licence are for a MODEL_FOLDER" in capsys.readouterr().err and not hub.requests


def test_a_message_of_ones_own(model_folder, hub):
    main([str(model_folder), "--repo_id", NAME, "--commit_message", "Trained on birds", "--quiet"])
    assert hub.repositories[NAME].head.message == "Trained on birds"
