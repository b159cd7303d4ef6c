"""That pretraining teaches something: the quickstart's recipe, cut short."""

import pytest

from evaluation import part_segmentation
from evaluation.synthetic_parts import write_dataset
from training import pretrain


@pytest.mark.slow
def test_a_short_pretraining_finds_objects(tmp_path):
    """200 steps beat the untrained weights by 5 points of ARI on images that were not trained on."""
    output = tmp_path / "run"
    shorter = {"steps": 200, "warmup_steps": 20, "synthetic_images": 6000, "num_workers": 0}
    arguments = [f"--{name}={value}" for name, value in shorter.items()]
    folder = pretrain.main([*arguments, "--output_dir", str(output), "--quiet"])
    write_dataset(output / "data", 60, 128, seed=1, difficulty="easy", split="validation", quiet=True)
    scored = part_segmentation.main(
        ["--model", str(folder), "--dataset", str(output / "data"), "--untrained", "--seed=1", "--quiet"]
    )
    trained, untrained = scored["scores"]["model"], scored["scores"]["untrained"]
    assert trained["ari"] > untrained["ari"] + 5
