"""Files are opened without running code, and a state dict is found in what they hold."""

import argparse
import os

import pytest
import torch
from safetensors.torch import save_file

from modeling_rats.checkpoint_file_rats import is_checkpoint_file, read_checkpoint_file, unwrap

WEIGHTS = {"norm.weight": torch.arange(4096.0)}


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_objects_is_not_opened(tmp_path, zipped):
    path, sprung = tmp_path / "checkpoint.pth", tmp_path / "sprung"
    torch.save({"teacher": WEIGHTS, "callback": Trap(sprung)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"checkpoint\.pth is no checkpoint of torch, or holds more than tensors.*can run any code"
    ):
        read_checkpoint_file(path)
    assert not sprung.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_and_the_arguments_of_dino_are_read(tmp_path, zipped):
    path = tmp_path / "checkpoint.pth"
    torch.save({"teacher": WEIGHTS, "args": argparse.Namespace(lr=0.5)}, path, _use_new_zipfile_serialization=zipped)
    entries = read_checkpoint_file(path)
    assert torch.equal(entries["teacher"]["norm.weight"], WEIGHTS["norm.weight"]) and entries["args"].lr == 0.5


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_is_called_damaged(tmp_path, part):
    path = tmp_path / "checkpoint.pth"
    torch.save(WEIGHTS, path)
    size = int(path.stat().st_size * part)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"\({size:,} bytes\) is damaged: .*interrupted\. Download or copy it again"):
        read_checkpoint_file(path)


def test_a_safetensors_file_that_was_cut_is_called_damaged(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(WEIGHTS, path)
    assert torch.equal(read_checkpoint_file(path)["norm.weight"], WEIGHTS["norm.weight"])
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or no safetensors file"):
        read_checkpoint_file(path)


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>", b"version https://git-lfs.github.com/spec/v1\n", b"PK"])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no checkpoint of torch, or holds more than tensors"):
        read_checkpoint_file(path)


def test_a_file_without_a_dict_and_none_at_all(tmp_path):
    torch.save([WEIGHTS["norm.weight"]], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds a list, but must hold a state dict"):
        read_checkpoint_file(tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*missing\.pth"):
        read_checkpoint_file(tmp_path / "missing.pth")


def test_a_path_names_a_file_if_it_is_one_or_ends_as_one(tmp_path):
    (tmp_path / "weights").write_bytes(b"")
    (tmp_path / "folder.pth").mkdir()
    assert is_checkpoint_file(tmp_path / "weights") and is_checkpoint_file("missing/model.safetensors")
    assert not is_checkpoint_file(tmp_path / "folder.pth") and not is_checkpoint_file("TimingYang/RATS")


@pytest.mark.parametrize(
    ("entries", "beside"),
    [
        (WEIGHTS, {}),
        ({"teacher": WEIGHTS}, {}),
        ({"student": {"norm.weight": 0}, "epoch": 3, "teacher": WEIGHTS}, dict.fromkeys(["student", "epoch"], "teacher")),
        ({"epoch": 3, "student": WEIGHTS}, {"epoch": "student"}),
        ({"model": {"teacher": WEIGHTS, "step": 2}, "optimizer": {}}, {"optimizer": "model", "step": "teacher"}),
        ({"state_dict": WEIGHTS, "teacher": "a name"}, {"teacher": "state_dict"}),
    ],
)
def test_the_state_dict_in_a_checkpoint_and_what_is_left(entries, beside):
    found, left = unwrap(entries)
    assert found is WEIGHTS
    assert left == {name: f"the weights are those of {chosen!r}" for name, chosen in beside.items()}
