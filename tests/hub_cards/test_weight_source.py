"""A checkpoint that a user names is found, on the Hub or on this machine, and what hinders that is told with a way out."""

import argparse
import hashlib
import re
from types import SimpleNamespace

import pytest

from hub_cards.weight_source import WeightSource, add_reading_options, find_series, find_weights, reading_options
from tests.hub_cards.conftest import AUTHORS, SERIES
from tests.hub_server import Fault


def test_a_file_in_a_repository_comes_with_its_commit_and_licence(authors):
    source = find_weights(AUTHORS, SERIES[2])
    assert source.path.read_bytes() == authors.head.files[SERIES[2]]
    assert source.record() == {
        "repo_id": AUTHORS,
        "commit": authors.head.oid,
        "file": SERIES[2],
        "sha256": hashlib.sha256(authors.head.files[SERIES[2]]).hexdigest(),
        "epochs": 388,
        "licence": {"license": "cc-by-nc-4.0"},
    }


def test_a_revision_is_that_of_the_file_and_of_the_record(authors, hub):
    before = authors.head
    hub.commit_to(authors, {SERIES[0]: b"newer"})
    source = find_weights(AUTHORS, SERIES[0], before.oid)
    assert source.commit == before.oid and source.path.read_bytes() == before.files[SERIES[0]]
    assert find_weights(AUTHORS, SERIES[0]).path.read_bytes() == b"newer"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("", {}),
        ("# No metadata\n", {}),
        ("---\ntags:\n- dino\n---\n", {}),
        (
            "---\nlicense: other\nlicense_name: rats\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "rats", "license_link": "LICENSE"},
        ),
    ],
)
def test_the_licence_is_what_the_card_says(authors, hub, card, licence):
    hub.commit_to(authors, {"README.md": card.encode()})
    assert find_weights(AUTHORS, SERIES[0]).record()["licence"] == licence


@pytest.mark.parametrize(
    ("name", "epochs"), [("teacher_ep0020.pth", 20), ("checkpoint.pth", None), ("keep_ep12b.pth", None), ("sep7.pth", None)]
)
def test_a_file_on_this_machine(tmp_path, name, epochs):
    (tmp_path / name).write_bytes(b"weights")
    source = find_weights(str(tmp_path / name))
    assert source == WeightSource(tmp_path / name, name)
    digest = hashlib.sha256(b"weights").hexdigest()
    told = {"repo_id": None, "commit": None, "file": name, "sha256": digest, "epochs": epochs, "licence": {}}
    assert source.record() == told


def test_a_series_is_what_differs_in_the_last_number_in_its_order(authors, hub):
    """Other folders, endings and names are no part of it, and a file is fetched when its turn comes."""
    series = find_series(AUTHORS, SERIES[2])
    assert next(series).file == SERIES[0]
    assert not any(SERIES[1] in asked for asked in hub.requests)
    rest = list(series)
    assert [source.file for source in rest] == SERIES[1:]
    assert [source.path.read_bytes() for source in rest] == [authors.head.files[name] for name in SERIES[1:]]


def test_a_series_stays_with_the_commit_that_it_began_with(authors, hub):
    series, before = find_series(AUTHORS, SERIES[0]), authors.head
    next(series)
    hub.commit_to(authors, {SERIES[1]: b"newer"})
    source = next(series)
    assert source.commit == before.oid and source.path.read_bytes() == before.files[SERIES[1]]


def test_a_series_on_this_machine_is_in_the_order_of_numbers(tmp_path):
    for name in ("step_9.pth", "step_10.pth", "step_100.pth", "step_11.pth.part", "other_10.pth", "step_12.pt"):
        (tmp_path / name).write_bytes(b"weights")
    found = list(find_series(str(tmp_path / "step_10.pth")))
    assert [source.file for source in found] == ["step_9.pth", "step_10.pth", "step_100.pth"]
    assert [source.path for source in found] == [tmp_path / source.file for source in found]
    (tmp_path / "last.pth").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"last\.pth has no number in its name.*leave --all out"):
        list(find_series(str(tmp_path / "last.pth")))


@pytest.mark.parametrize(
    ("named", "error", "message"),
    [
        ((AUTHORS,), ValueError, rf"which of its files .*\(--file\)\. Its checkpoints: .*{SERIES[0]}, .*{SERIES[2]}"),
        (
            (AUTHORS, "base/ep9.pth"),
            FileNotFoundError,
            rf"{AUTHORS} has no file base/ep9\.pth\. Its checkpoints: .*{SERIES[1]}",
        ),
        (("TimingYang/RAT", SERIES[0]), FileNotFoundError, r"no repository TimingYang/RAT .*hf auth login"),
        ((AUTHORS, SERIES[0], "v2"), FileNotFoundError, rf"{AUTHORS} has no such revision; check --revision"),
        (("--/..", SERIES[0]), FileNotFoundError, "'--/..' is no name of a repository"),
        (("no name", SERIES[0]), FileNotFoundError, "'no name' is neither a file nor a repository"),
        (("missing/teacher.pth",), FileNotFoundError, r"no file missing/teacher\.pth; check the path"),
        ((__file__, SERIES[0]), ValueError, "leave one of them out"),
    ],
)
def test_what_is_not_there_is_told(authors, named, error, message):
    with pytest.raises(error, match=message):
        find_weights(*named)


def test_a_repository_without_checkpoints_says_so(hub):
    hub.add(AUTHORS, {"README.md": b""})
    with pytest.raises(ValueError, match="It has no checkpoint files"):
        find_weights(AUTHORS)


def test_a_gated_repository_says_how_to_get_in(authors, hub):
    hub.faults = [Fault("/resolve/", 403, code="GatedRepo")]
    with pytest.raises(PermissionError, match=rf"{AUTHORS} is gated: accept its conditions .*hf auth login"):
        find_weights(AUTHORS, SERIES[0])


def test_a_hub_that_fails_and_none_at_all(authors, hub, monkeypatch):
    hub.faults = [Fault("GET /api/models", 503)]
    with pytest.raises(ConnectionError, match=rf"{AUTHORS} cannot be fetched: (?s:.*503.*)Try again later"):
        find_weights(AUTHORS, SERIES[0])
    hub.faults = [Fault("GET /api/models", drop="before")]
    with pytest.raises(ConnectionError, match=f"{AUTHORS} cannot be fetched: .*Try again later"):
        find_weights(AUTHORS, SERIES[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=f"{AUTHORS} cannot be reached.*Check the network"):
        find_weights(AUTHORS, SERIES[0])


@pytest.fixture
def large(hub, monkeypatch):
    """A file that comes in many pieces; nobody waits between tries."""
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    content = bytes(range(256)) * 400
    hub.add(AUTHORS, {SERIES[0]: content})
    return content


def test_a_download_that_is_interrupted_goes_on_where_it_ended(large, hub):
    hub.faults = [Fault("GET .*/resolve/", drop="halfway", times=1)]
    assert find_weights(AUTHORS, SERIES[0]).path.read_bytes() == large
    (asked,) = [asked for name, asked in hub.ranges.items() if re.match("GET .*/resolve/", name)]
    assert len(large) // 3 < int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) <= len(large) // 2


def test_a_download_that_failed_is_told_and_the_next_completes_it(large, hub, tmp_path):
    hub.faults = [Fault("GET .*/resolve/", drop="halfway")]
    with pytest.raises(ConnectionError, match=f"{AUTHORS} cannot be fetched: .*Try again later") as told:
        find_weights(AUTHORS, SERIES[0])
    kept = [path for path in (tmp_path / "home" / "hub").rglob("blobs/*") if path.stat().st_size]
    assert ("kept" in str(told.value)) is bool(kept)
    hub.faults = []
    assert find_weights(AUTHORS, SERIES[0]).path.read_bytes() == large


def test_options_of_reading_are_those_of_the_reader():
    parser = argparse.ArgumentParser()
    add_reading_options(parser)
    plain = reading_options(parser.parse_args([]))
    assert plain.pop("leave_out") == [] and plain.pop("register_order") == "head_major" and set(plain.values()) == {None}
    given = "--registers r --num_registers 8 --register_order register_major --num_attention_heads 4 --position_grid 3 5"
    assert reading_options(parser.parse_args([*given.split(), "--leave_out", "a", "b"])) == {
        "registers": "r",
        "num_registers": 8,
        "register_order": "register_major",
        "num_attention_heads": 4,
        "position_grid": [3, 5],
        "leave_out": ["a", "b"],
    }
