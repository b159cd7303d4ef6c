"""A checkpoint is whole or not there."""

import pytest
import torch

from training import checkpoint


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def state_of(step):
    return {"step": step, "weights": {"a": torch.full((3,), float(step))}, "ranks": [{"positions": {0: (1, 7)}}]}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_loaded(folder):
    path = checkpoint.save(folder, 12, state_of(12), keep=1)
    assert path == folder / "step_00000012.pt" and names(folder) == ["step_00000012.pt"]
    loaded = checkpoint.load(path)
    assert loaded["step"] == 12 and torch.equal(loaded["weights"]["a"], torch.full((3,), 12.0))
    assert loaded["ranks"] == [{"positions": {0: (1, 7)}}]


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_only_the_newest_stay(folder, keep):
    for step in (5, 20, 100):
        checkpoint.save(folder, step, state_of(step), keep)
    assert [int(path.stem[5:]) for path in checkpoint.list_checkpoints(folder)] == [5, 20, 100][-keep:]


def test_a_failure_while_writing_leaves_the_old_checkpoint(folder, monkeypatch):
    checkpoint.save(folder, 1, state_of(1), keep=1)
    write = torch.save

    def fail_halfway(state, file):
        write(state, file)
        file.truncate(20)
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail_halfway)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(folder, 2, state_of(2), keep=1)
    newest = checkpoint.find("auto", folder)
    assert newest.name == "step_00000001.pt" and checkpoint.load(newest)["step"] == 1
    monkeypatch.undo()
    checkpoint.save(folder, 2, state_of(2), keep=1)
    assert names(folder) == ["step_00000002.pt"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "torn"], ids=["empty", "text", "torn"])
def test_a_torn_file_is_refused_with_the_way_out(folder, content):
    path = checkpoint.save(folder, 3, state_of(3), keep=1)
    path.write_bytes(path.read_bytes()[:-100] if content == "torn" else content)
    with pytest.raises(ValueError, match=r"(?s)step_00000003\.pt cannot be read .*delete it .*--resume none"):
        checkpoint.load(path)


def test_objects_are_not_unpickled(folder):
    folder.mkdir()
    torch.save({"step": folder}, folder / "step_00000001.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load(folder / "step_00000001.pt")


def test_find_means_what_it_says(folder, tmp_path):
    assert checkpoint.find("auto", folder) is None and checkpoint.find("none", folder) is None
    for step in (9, 10):
        checkpoint.save(folder, step, state_of(step), keep=5)
    (folder / "step_00000011.tmp").write_bytes(b"")
    (folder / "step_best.pt").write_bytes(b"")
    assert checkpoint.find("auto", folder).name == "step_00000010.pt"
    assert checkpoint.find("none", folder) is None
    assert checkpoint.find(str(folder / "step_00000009.pt"), tmp_path / "other") == folder / "step_00000009.pt"
    assert checkpoint.find(str(folder), tmp_path / "other").name == "step_00000010.pt"


@pytest.mark.parametrize("missing", ["step_00000099.pt", "empty_folder"])
def test_a_missing_checkpoint_is_named_with_those_there_are(folder, tmp_path, missing):
    checkpoint.save(folder, 9, state_of(9), keep=5)
    (tmp_path / "empty_folder").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{missing} is no checkpoint.*step_00000009\.pt"):
        checkpoint.find(str(tmp_path / missing), folder)
