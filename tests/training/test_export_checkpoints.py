"""Each checkpoint of a run as a model folder: the teacher of that step, read as the run's model is."""

import json

import pytest
import torch

from modeling_rats import RatsForPartSegmentation, RatsImageProcessor, RatsModel
from training import checkpoint, pretrain
from training.export_checkpoints import main


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_settings):
    output = tmp_path_factory.mktemp("run")
    recipe = output / "recipe.yaml"
    more = {"synthetic_images": 8, "synthetic_image_size": 32, "num_workers": 0, "batch_size": 4, "cpu_threads": 1}
    more |= {"checkpoint_steps": 1, "keep_every_steps": 1, "steps": 3, "part_similarity": "claimed_patches"}
    recipe.write_text(json.dumps(tiny_settings | more | {"output_dir": str(output / "out")}))  # JSON is YAML, too
    pretrain.main([str(recipe)])
    return output / "out"


def test_a_folder_for_each_checkpoint(run, capsys):
    folders = main([str(run)])
    assert [folder.name for folder in folders] == ["step_00000001", "step_00000002", "step_00000003"]
    assert {folder.parent for folder in folders} == {run / "steps"} and "3 model folders" in capsys.readouterr().out
    for step, folder in enumerate(folders, 1):
        state = checkpoint.load(run / "checkpoints" / f"{folder.name}.pt")
        for name, parameter in RatsModel.from_pretrained(folder).named_parameters():
            assert torch.equal(parameter, state["teacher"][f"backbone.{name}"])
        assert json.loads((folder / "training.json").read_text())["steps"] == step
        assert RatsForPartSegmentation.from_pretrained(folder).config.part_similarity == "claimed_patches"
        assert RatsImageProcessor.from_pretrained(folder).size["height"] == 32


def test_the_last_one_is_the_exported_model(run, tmp_path):
    last = main([str(run), "--output", str(tmp_path / "folders")])[-1]
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        ours, exported = (RatsForPartSegmentation.from_pretrained(folder)(images) for folder in (last, run / "model"))
    assert torch.equal(ours.similarities, exported.similarities)


def test_a_folder_without_checkpoints_is_told(tmp_path):
    with pytest.raises(SystemExit, match=r"has no checkpoints/step_\*\.pt; it must be the output_dir"):
        main([str(tmp_path)])
