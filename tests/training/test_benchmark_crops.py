"""The benchmark: it runs both, says both, and its last line is the ratio."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from training import benchmark_crops
from training.crops import MultiCrop


def test_the_image_has_the_size_and_weight_of_a_photograph():
    content = benchmark_crops.photograph()
    assert Image.open(io.BytesIO(content)).size == (500, 375)
    assert 20_000 < len(content) < 100_000


def test_both_make_the_same_views():
    multi_crop, content = MultiCrop(224, 96, 8), benchmark_crops.photograph()
    ours = benchmark_crops.fast_views(multi_crop, content, np.random.default_rng(0))
    theirs = benchmark_crops.original_views(multi_crop)(content, np.random.default_rng(0))
    assert [view.shape for view in ours] == [(*view.shape[1:], 3) for view in theirs]
    assert theirs[0].shape == (3, 224, 224) and len(ours) == 10


def test_the_last_line_is_the_ratio(capsys, tmp_path):
    (tmp_path / "image.jpg").write_bytes(benchmark_crops.photograph(120, 90))
    benchmark_crops.main([str(tmp_path / "image.jpg"), "--rounds", "3", "--images_per_round", "2"])
    original, ours, ratio = capsys.readouterr().out.splitlines()
    assert original.startswith("original") and ours.startswith("ours")
    assert float(re.fullmatch(r"ratio ([\d.]+)x", ratio)[1]) > 1


def test_nothing_to_time_is_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark_crops.main(["--rounds", "0"])
    assert "must be at least 1" in capsys.readouterr().err
