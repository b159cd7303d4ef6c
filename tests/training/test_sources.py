"""The stream that the settings ask for: rendered images, or one or several data sets with their own splits and columns."""

import datasets
import numpy as np
import pytest
from accelerate import Accelerator

from training.arguments import parse
from training.crops import MultiCrop
from training.original_crops import OriginalMultiCrop
from training.sources import one_each, open_stream
from training.streaming import UnreadableImagesError


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def write_data(tmp_path):
    """Folders of a parquet a split, whose images are of one grey level; columns and splits can be named."""

    def write(name, level, columns=("image",), splits=("train",)):
        features = datasets.Features({column: datasets.Image() for column in columns})
        image = np.full((40, 40, 3), level, np.uint8)
        for split in splits:
            rows = {column: [image] * 20 for column in columns}
            path = tmp_path / name / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(exist_ok=True)
            datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
        return str(tmp_path / name)

    return write


def settings_of(tmp_path, *arguments):
    """No worker processes, and no change of colours, so that a view tells the level of its image."""
    plain = ["--num_workers", "0", "--color_jitter", "0", "0", "0", "0", "--output_dir", str(tmp_path / "run"), "--quiet"]
    return parse([*plain, *arguments])


def levels_of(stream, images):
    stream = iter(stream)
    return [int(next(stream).views[0].mean().round()) for _ in range(images)]


def test_data_sets_are_mixed_with_their_weights(accelerator, tmp_path, write_data):
    folders = [write_data("dark", 10), write_data("bright", 200)]
    stream = open_stream(accelerator, settings_of(tmp_path, "--dataset", *folders, "--dataset_weights", "1", "3"))
    assert stream.probabilities.tolist() == [0.25, 0.75]
    levels = np.array(levels_of(stream, 200))
    assert set(levels) <= {10, 200, 255 - 10, 255 - 200}  # the others of them are solarised
    assert 25 < np.isin(levels, (10, 245)).sum() < 75
    assert [source.name for source in stream.sources] == [f"{folder} (train)" for folder in folders]


def test_weights_are_equal_when_not_given(accelerator, tmp_path, write_data):
    folders = [write_data(name, level) for name, level in (("a", 10), ("b", 100), ("c", 200))]
    stream = open_stream(accelerator, settings_of(tmp_path, "--dataset", *folders))
    assert stream.probabilities.tolist() == pytest.approx([1 / 3] * 3)


def test_each_data_set_may_have_its_own_split_and_column(accelerator, tmp_path, write_data):
    first = write_data("first", 10, splits=("train", "validation"))
    second = write_data("second", 200, columns=("left", "right"))
    arguments = ["--dataset", first, second, "--dataset_split", "validation", "train", "--image_column", "none", "right"]
    stream = open_stream(accelerator, settings_of(tmp_path, *arguments, "--dataset_config", "default", "none"))
    opened = [(str(source.rows.split), source.image_column) for source in stream.sources]
    assert opened == [("validation", "image"), ("train", "right")]
    assert stream.sources[0].name == f"{first} (default, validation)"


def test_a_missing_split_or_data_set_is_refused_by_name(accelerator, tmp_path, write_data):
    folder, other = write_data("folder", 10), write_data("other", 10)
    with pytest.raises(ValueError, match=r"split=extra is not in .*other; it has: train"):
        open_stream(accelerator, settings_of(tmp_path, "--dataset", folder, other, "--dataset_split", "train", "extra"))
    with pytest.raises(FileNotFoundError, match=r"dataset=\./nowhere was not found"):
        open_stream(accelerator, settings_of(tmp_path, "--dataset", folder, "./nowhere"))


def test_a_file_that_is_torn_from_the_start_is_told_of_with_its_data_set(accelerator, tmp_path, write_data):
    folder = write_data("folder", 10)
    other = write_data("other", 10, splits=("train", "validation"))
    torn = tmp_path / "other" / "train-00001-of-00002.parquet"
    torn.write_bytes((tmp_path / "other" / "train-00000-of-00001.parquet").read_bytes()[:-300])
    with pytest.raises(UnreadableImagesError, match=r"other \(train\) cannot be read: ArrowInvalid: "):
        open_stream(accelerator, settings_of(tmp_path, "--dataset", folder, other))


def test_settings_reach_the_stream(accelerator, tmp_path, write_data):
    arguments = ["--dataset", write_data("data", 10), "--seed", "3", "--shuffle_buffer", "7", "--max_broken_share", "0.5"]
    stream = open_stream(accelerator, settings_of(tmp_path, *arguments))
    assert (stream.seed, stream.shuffle_buffer, stream.max_broken_share) == (3, 7, 0.5)
    assert (stream.rank, stream.num_readers, stream.num_workers) == (0, 1, 0)
    assert isinstance(stream.make_views, MultiCrop)
    original = open_stream(accelerator, settings_of(tmp_path, *arguments, "--augmentation", "original"))
    assert isinstance(original.make_views, OriginalMultiCrop)


def test_without_a_data_set_images_are_rendered_once(accelerator, tmp_path):
    arguments = ["--synthetic_images", "4", "--synthetic_image_size", "32"]
    stream = open_stream(accelerator, settings_of(tmp_path, *arguments))
    assert next(iter(stream)).views[0].shape == (64, 64, 3)
    (shard,) = (tmp_path / "run" / "data").glob("train-*.parquet")
    rendered = shard.stat().st_mtime_ns
    open_stream(accelerator, settings_of(tmp_path, *arguments))
    assert shard.stat().st_mtime_ns == rendered
    open_stream(accelerator, settings_of(tmp_path, *arguments, "--synthetic_seed", "1"))
    assert shard.stat().st_mtime_ns != rendered


@pytest.mark.parametrize(
    "values, each",
    [
        (None, [None, None, None]),
        (["a"], ["a", "a", "a"]),
        (["none"], [None, None, None]),
        (["a", "none", "None"], ["a", None, None]),
    ],
)
def test_a_value_is_for_all_data_sets_or_for_each(values, each):
    assert one_each(values, 3) == each
