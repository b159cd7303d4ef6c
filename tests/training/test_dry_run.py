"""The description of a run: its numbers against counting, and that it trains nothing."""

import datasets
import pytest
import torch
from PIL import Image

from evaluation.data_sets import open_images
from modeling_rats import RatsForPreTraining
from training.arguments import parse
from training.dry_run import describe, num_rows, saved_bytes
from training.source_rows import Source
from training.streaming import ViewStream
from training.student_teacher import MultiCropNetwork


@pytest.fixture
def make_network(make_config):
    def make(device):
        with torch.device(device):
            network = RatsForPreTraining(make_config())
            return MultiCropNetwork(network.rats, network.head)

    return make


def test_kept_bytes_grow_with_the_images_and_hold_the_tokens(make_network):
    one, four = (saved_bytes(make_network("meta"), [32, 32], images) for images in (1, 4))
    assert 3.5 < four / one < 4.1
    tokens = 2 * (8 + 16) * 32 * 4  # of one activation of the two views of an image, in bytes
    assert one > 2 * 5 * tokens  # each of the two blocks keeps several


def test_kept_bytes_equal_those_of_a_real_pass(make_network):
    real = make_network("cpu").train()
    kept = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in real.parameters()}

    def keep(tensor):
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            kept[pointer] = (tensor, tensor.untyped_storage().nbytes())
        return tensor

    views = [torch.randint(0, 256, (3, side_px, side_px, 3), dtype=torch.uint8) for side_px in (32, 32, 16)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = real(views).logits
    assert logits.requires_grad
    total = sum(size for _, size in kept.values())
    assert saved_bytes(make_network("meta"), [32, 32, 16], images=3) == pytest.approx(total, rel=0.05)


CARD = """---
dataset_info:
  features:
  - {{name: image, dtype: image}}
  splits:
  - {{name: train, num_examples: {number}}}
---
"""


@pytest.fixture
def make_source(tmp_path):
    """Sources of so many images, whose card tells their number or that have none."""

    def make(name, number, tells=True, weight=1.0):
        folder = tmp_path / name
        folder.mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
        row = {"bytes": (tmp_path / "image.png").read_bytes(), "path": None}
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": [row] * number}, features=features).to_parquet(folder / "train.parquet")
        if tells:
            (folder / "README.md").write_text(CARD.format(number=number))
        return Source(name, *open_images(str(folder), None, "train", None), weight)

    return make


def one_view(image, random):
    return [torch.zeros(image.height, image.width, 3, dtype=torch.uint8).numpy()]


@pytest.mark.parametrize("model_type", ["rats", "vit", "registers", "projected_communicate"])
def test_a_run_is_described_and_its_first_images_are_decoded(make_source, model_type):
    settings = parse(["--model_type", model_type, "--steps", "100", "--warmup_steps", "0", "--batch_size", "8"])
    told = describe(settings, ViewStream([make_source("few", 40)], one_view, seed=0), num_processes=2)
    assert f"model_type: {model_type}\n" in told and f"parameters, in millions: {model_type} " in told
    assert "of 4 images in float32" in told and "100 of 8 images on 2 processes, 800 images in all" in told
    assert "images of an epoch: 40, so 20.0 epochs" in told
    assert told.endswith("image 8: 1 views of 40 x 40 px") and told.count("40 x 40 px") == 8


def test_each_data_set_of_a_mixture_tells_its_epochs(make_source):
    settings = parse(["--steps", "100", "--warmup_steps", "0", "--batch_size", "8"])
    sources = [make_source("few", 40, weight=1.0), make_source("many", 1200, weight=3.0)]
    stream = ViewStream(sources, one_view, seed=0)
    told = describe(settings, stream, num_processes=1)
    assert "images of an epoch of few, which gives 25.0 % of all: 40, so 5.0 epochs" in told
    assert "images of an epoch of many, which gives 75.0 % of all: 1,200, so 0.5 epochs" in told
    assert num_rows(stream) == 1240


def test_data_sets_need_not_tell_their_number_of_images(make_source):
    stream = ViewStream([make_source("few", 40), make_source("silent", 40, tells=False)], one_view, seed=0)
    assert num_rows(stream) is None
    told = describe(parse([]), stream, num_processes=1)
    assert "which gives 50.0 % of all: not told by the data set" in told
