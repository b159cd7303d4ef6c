"""A model folder is replaced file by file, and nothing half written is left beside it."""

import json

import pytest
import torch

from hub_cards.model_folder import write_folder
from modeling_rats import RatsForPartSegmentation, RatsImageProcessor


@pytest.fixture
def processor():
    return RatsImageProcessor(size={"height": 32, "width": 48})


def test_a_folder_loads_with_its_record_and_leaves_nothing_beside_it(make_config, processor, tmp_path):
    model, folder = RatsForPartSegmentation(make_config()), tmp_path / "of" / "somebody" / "model"
    write_folder(folder, model, processor, {"source": {"file": "a.pth"}})
    loaded = RatsForPartSegmentation.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    assert dict(RatsImageProcessor.from_pretrained(folder).size) == {"height": 32, "width": 48}
    assert json.loads((folder / "training.json").read_text()) == {"source": {"file": "a.pth"}}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_its_own_files_are_replaced_and_others_stay(make_config, processor, tmp_path):
    folder = tmp_path / "model"
    write_folder(folder, RatsForPartSegmentation(make_config()), processor, {"steps": 1})
    (folder / "notes.txt").write_text("mine")
    model = RatsForPartSegmentation(make_config(num_hidden_layers=1))
    write_folder(folder, model, processor, {"steps": 2})
    assert (folder / "notes.txt").read_text() == "mine" and json.loads((folder / "training.json").read_text()) == {"steps": 2}
    assert RatsForPartSegmentation.from_pretrained(folder).config.num_hidden_layers == 1


def test_what_fails_before_the_end_leaves_the_folder_as_it_was(make_config, processor, tmp_path):
    """Also what an earlier failure left is no part of the next."""
    folder = tmp_path / "model"
    model = RatsForPartSegmentation(make_config())
    write_folder(folder, model, processor, {"steps": 1})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TypeError):
        write_folder(folder, RatsForPartSegmentation(make_config(num_hidden_layers=1)), processor, {"steps": object()})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / ".model").mkdir(exist_ok=True)
    (tmp_path / ".model" / "leftover.bin").write_bytes(b"old")
    write_folder(folder, model, processor, {"steps": 3})
    assert not (folder / "leftover.bin").exists()
