"""The first images, and the worst ones, whoever draws them and in whatever order."""

import numpy as np
import pytest
from PIL import Image

from evaluation.mask_samples import MaskSample
from evaluation.pictures import Pictures

MASK = np.repeat([[1, 2]], 8, axis=0).repeat(4, axis=1)  # (8, 8): two parts


def sample(index):
    return MaskSample(Image.new("RGB", (8, 8), (index, 0, 0)), MASK)


def guess(share):
    """A label map that has this share of the first part's columns right."""
    label_map = np.full((8, 8), 7)
    label_map[:, : round(4 * share)] = 3
    return {"model": label_map, "slic": MASK}


SHARES = [1.0, 0.25, 0.5, 0.0, 0.75]  # of the images; image 3 is worst, then 1, 2, 4


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 3, 4, 1]])
def test_the_worst_are_kept_and_the_first_drawn(tmp_path, order):
    for index in order:
        Pictures(tmp_path, num_pictures=2).draw(index, sample(index), guess(SHARES[index]))  # as after an interruption
    Pictures(tmp_path, num_pictures=2).finish()
    names = sorted(path.name for path in (tmp_path / "worst").iterdir())
    assert [name[-8:] for name in names] == ["0003.png", "0001.png"] and names[0][:5] == "025.0"
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["0000.png", "0001.png", "overview.png"]
    assert np.array(Image.open(tmp_path / "inputs" / "0001.png"))[0, 0].tolist() == [1, 0, 0]
    assert Image.open(tmp_path / "worst" / names[0]).width == 3 * 8 + 2 * 4  # image, model, true mask


def test_an_image_without_a_pixel_that_counts_is_no_failure(tmp_path):
    pictures = Pictures(tmp_path, num_pictures=1, ignore_label=5)
    pictures.draw(0, MaskSample(Image.new("RGB", (8, 8)), np.full((8, 8), 5)), guess(1.0))
    assert not list((tmp_path / "worst").iterdir())
