"""A checkpoint is whole, or it is refused."""

import errno
import io
import re
import struct
from contextlib import contextmanager

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


@pytest.fixture
def full_disk(monkeypatch):
    """While it is entered, new files take no byte: they are written to a device that is always full."""

    def open_full(path, mode, **options):
        path.touch()
        return open("/dev/full", mode, **options)

    @contextmanager
    def fill(buffer_bytes=1 << 24):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "open", open_full, raising=False)
            patch.setattr(checkpoint, "_CHUNK_BYTES", buffer_bytes)
            yield

    return fill


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


@pytest.mark.parametrize(
    "newest, keep, keep_every_steps, expected",
    [
        (9, 2, 0, {8, 9}),
        (9, 1, 4, {4, 8, 9}),
        (9, 1, 100, {9}),
        (7, 1, 4, {4, 7}),  # later ones are of a run that was started anew
    ],
)
def test_the_last_and_the_first_after_every_multiple_stay(newest, keep, keep_every_steps, expected):
    assert checkpoint.kept([1, 4, 5, 7, 8, 9], newest, keep, keep_every_steps) == expected


def test_the_rhythm_of_what_stays_need_not_be_that_of_the_checkpoints(folder):
    for step in range(3, 40, 3):
        checkpoint.save(folder, step, state_of(step), keep=2, keep_every_steps=10)
    assert [int(path.stem[5:]) for path in checkpoint.list_checkpoints(folder)] == [12, 21, 30, 36, 39]


@pytest.mark.parametrize("buffer_bytes", [512, 1 << 24], ids=["at once", "at the end"])
def test_a_full_disk_leaves_the_old_checkpoints_and_no_scraps(folder, full_disk, buffer_bytes):
    checkpoint.save(folder, 1, state_of(1), keep=1)
    before = (folder / "step_00000001.pt").read_bytes()
    with full_disk(buffer_bytes), pytest.raises(OSError, match="No space left") as caught:
        checkpoint.save(folder, 2, state_of(2), keep=1)
    assert caught.value.errno == errno.ENOSPC
    assert names(folder) == ["step_00000001.pt"] and (folder / "step_00000001.pt").read_bytes() == before
    checkpoint.save(folder, 2, state_of(2), keep=1)
    assert names(folder) == ["step_00000002.pt"]


def test_the_error_of_the_disk_is_not_lost_behind_that_of_torch(folder, monkeypatch):
    class FullOnce(io.BytesIO):
        def write(self, data):
            if len(data) == 400_000:  # the tensor; torch.save then finds less written than it has sent
                raise OSError(errno.ENOSPC, "No space left")
            return super().write(data)

    monkeypatch.setattr(checkpoint, "open", lambda path, mode, **options: FullOnce(), raising=False)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(folder, 2, {"large": torch.zeros(100_000)}, keep=1)


def test_what_a_killed_run_had_begun_to_write_is_removed(folder):
    folder.mkdir()
    (folder / "step_00000007.tmp").write_bytes(b"half")
    checkpoint.save(folder, 8, state_of(8), keep=1)
    assert names(folder) == ["step_00000008.pt"]


def tear(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    """In the first weight."""
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<f", 3.0) * 3) + 2] ^= 1
    path.write_bytes(content)


def drop_the_middle(path):
    content = path.read_bytes()
    path.write_bytes(content[:300] + content[400:])


DAMAGES = [
    tear,
    flip_a_bit,
    drop_the_middle,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"no checkpoint"),
]
DAMAGE_NAMES = ["torn", "bit", "gap", "empty", "text"]


@pytest.mark.parametrize("damage", DAMAGES, ids=DAMAGE_NAMES)
def test_a_damaged_file_is_refused_with_the_way_out(folder, damage):
    path = checkpoint.save(folder, 3, state_of(3), keep=1)
    damage(path)
    with pytest.raises(ValueError, match=r"step_00000003\.pt cannot be read \(.*--resume PATH.*--resume none"):
        checkpoint.load(path)


@pytest.mark.parametrize("place", range(0, 1500, 97))
def test_no_damaged_byte_goes_unnoticed(folder, place):
    path = checkpoint.save(folder, 3, state_of(3), keep=1)
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged: .* with checksum .* were written"):
        checkpoint.load(path)


@pytest.mark.parametrize("damage", DAMAGES, ids=DAMAGE_NAMES)
def test_auto_falls_back_to_the_newest_sound_one_and_says_so(folder, damage):
    for step in (1, 2, 3):
        checkpoint.save(folder, step, state_of(3), keep=3)
    for step in (2, 3):
        damage(folder / f"step_{step:08d}.pt")
    said: list[str] = []
    path, state = checkpoint.load_wanted("auto", folder, said.append)
    assert path.name == "step_00000001.pt" and torch.equal(state["weights"]["a"], torch.full((3,), 3.0))
    assert [number for line in said for number in re.findall(r"step_0+(\d)\.pt", line)] == ["3", "2"]
    for wanted in (folder, folder / "step_00000003.pt"):
        with pytest.raises(ValueError, match=r"step_00000003\.pt cannot be read"):
            checkpoint.load_wanted(str(wanted), folder)
    assert checkpoint.load_wanted("none", folder) is None


def test_auto_does_not_start_anew_when_all_are_damaged(folder):
    tear(checkpoint.save(folder, 3, state_of(3), keep=1))
    with pytest.raises(ValueError, match=r"(?s)step_00000003\.pt cannot be read.*is sound; start anew with --resume none"):
        checkpoint.load_wanted("auto", folder)


def test_checkpoints_from_before_there_were_checksums_still_load(folder):
    folder.mkdir()
    torch.save(state_of(3), folder / "step_00000003.pt")
    assert checkpoint.load(folder / "step_00000003.pt")["step"] == 3


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
