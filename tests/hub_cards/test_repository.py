"""Every failure of the Hub at every request of a push: it arrives whole after retrying, in one commit."""

from types import SimpleNamespace

import pytest

from hub_cards.push import push_model, push_results
from hub_cards.repository import Change, Snapshot, commit, look
from tests.hub_server import Fault, HubServer

NAME = "owner/rats-tiny"
FAULTS = {
    "503": {"status": 503},
    "503, wait": {"status": 503, "retry_after_s": 3},
    "502, a page": {"status": 502, "html": True},
    "429, wait": {"status": 429, "retry_after_s": 3},
    "500": {"status": 500},
    "412": {"status": 412},
    "dropped during": {"drop": "during"},
    "dropped before": {"drop": "before"},
    "dropped after": {"drop": "after"},
    "slow": {"seconds": 0.05},
}
SAMPLE = {
    ("503, wait", "commit"),
    ("412", "commit"),
    ("dropped after", "commit"),
    ("dropped during", "PUT"),
    ("500", "resolve"),
    ("502, a page", "validate-yaml"),
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Nobody waits between two tries."""
    waits = []
    monkeypatch.setattr("hub_cards.repository.time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=waits.append))
    with HubServer() as server:
        server.take_over(monkeypatch, tmp_path / "home")
        server.waits = waits
        yield server


def push_folder(model_folder, write_scores):
    push_model(model_folder, NAME, [write_scores("test.json", split="test")])


def push_more_results(model_folder, write_scores):
    push_results(NAME, [write_scores("train.json", split="train")])


def start(hub, push, model_folder, write_scores):
    """The state that a push of results finds: a model with a result. A folder finds nothing."""
    hub.repositories.clear()
    hub.objects.clear()
    hub.faults, hub.requests = [], []
    if push is push_more_results:
        push_model(model_folder, NAME, [write_scores()])
        hub.requests = []


def state(hub):
    return hub.repositories[NAME].head.files if NAME in hub.repositories else None


def check(hub, push, model_folder, write_scores, kind, wanted):
    """One fault at each request, one after the other."""
    start(hub, push, model_folder, write_scores)
    push(model_folder, write_scores)
    complete = state(hub)
    asked = list(hub.requests)
    assert any("/commit/" in request for request in asked)
    count = 0
    for place, request in enumerate(asked):
        if not wanted(request):
            continue
        start(hub, push, model_folder, write_scores)
        commits = len(hub.repositories[NAME].commits) if NAME in hub.repositories else 1
        pattern = f"^{request.replace('.', '[.]')}$"
        hub.faults = [Fault(pattern, times=1, skip=asked[:place].count(request), **FAULTS[kind])]
        push(model_folder, write_scores)  # of none of these is there only one try
        assert state(hub) == complete and len(hub.repositories[NAME].commits) == commits + 1, request
        count += 1
    return count


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("push", [push_folder, push_more_results])
def test_any_failure_at_any_request(hub, model_folder, write_scores, push, kind):
    assert check(hub, push, model_folder, write_scores, kind, lambda request: True) >= 10


@pytest.mark.parametrize(("kind", "request_part"), sorted(SAMPLE))
def test_some_failures_at_some_requests(hub, model_folder, write_scores, kind, request_part):
    push = push_more_results if request_part == "resolve" else push_folder
    assert check(hub, push, model_folder, write_scores, kind, lambda request: request_part in request) >= 1


def test_a_snapshot_knows_its_files(hub, tmp_path):
    repository = hub.add(NAME, {"notes.txt": b"mine", "model.safetensors": b"weights"})
    snapshot = look(NAME)
    assert snapshot.commit == repository.head.oid and snapshot.read("notes.txt") == b"mine"
    (tmp_path / "large").write_bytes(b"weights")
    assert snapshot.holds("notes.txt", b"mine") and snapshot.holds("model.safetensors", tmp_path / "large")
    assert not snapshot.holds("notes.txt", b"other") and not snapshot.holds("model.safetensors", b"x")
    assert not snapshot.holds("elsewhere.txt", b"mine")
    hub.commit_to(repository, {"notes.txt": b"newer"})
    assert snapshot.read("notes.txt") == b"mine"  # as it was


def test_no_change_makes_no_commit_and_no_branch(hub):
    repository = hub.add(NAME, {"notes.txt": b"mine"})
    url, change = commit(NAME, lambda snapshot: Change({}), "nothing")
    assert url.endswith(repository.head.oid) and not change and len(repository.commits) == 2
    assert Snapshot(NAME).hashes == {}
