"""An animation of part maps over a training: a frame a model, each register in its colour."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.part_video import draw_video
from modeling_rats import RatsForPartSegmentation, RatsImageProcessor


@pytest.fixture(scope="module")
def folders(make_config, tmp_path_factory):
    made = []
    for step in (100, 2000):
        torch.manual_seed(step)
        folder = tmp_path_factory.mktemp("steps") / f"step_{step:08d}"
        RatsForPartSegmentation(make_config(initializer_range=0.5)).save_pretrained(folder)
        RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        (folder / "training.json").write_text(json.dumps({"steps": step}))
        made.append(str(folder))
    return made


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_frame_a_model_and_the_last_one_longer(folders, tmp_path, suffix):
    images = [Image.effect_noise((60, 40), 90).convert("RGB") for _ in range(3)]
    draw_video(images, folders, tmp_path / f"parts{suffix}")
    video = Image.open(tmp_path / f"parts{suffix}")
    assert video.n_frames == 2 and video.width == 3 * 240 + 2 * 4 and video.height == 16 + 160
    frames = []
    for number in range(2):
        video.seek(number)
        frames.append(np.asarray(video.convert("RGB")).astype(int))
    assert np.abs(frames[0][16:] - frames[1][16:]).mean() > 5  # other parts
    assert (frames[0][:16] != frames[1][:16]).any()  # and another number of steps
    if suffix == ".gif":
        assert [video.seek(number) or video.info["duration"] for number in range(2)] == [500, 2500]
    assert [path.name for path in tmp_path.iterdir()] == [f"parts{suffix}"]


def test_what_makes_no_video_is_told(folders, tmp_path):
    image = Image.new("RGB", (32, 32))
    with pytest.raises(ValueError, match=r"must be a \.gif or \.webp"):
        draw_video([image], folders, tmp_path / "parts.mp4")
    with pytest.raises(ValueError, match="no image"):
        draw_video([], folders, tmp_path / "parts.gif")
    with pytest.raises(ValueError, match="no model"):
        draw_video([image], [], tmp_path / "parts.gif")
