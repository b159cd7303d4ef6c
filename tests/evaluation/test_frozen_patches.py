"""Grids of patch features: which patch is where, what becomes of labels, and what is refused before memory runs out."""

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from evaluation.backbones import Backbone
from evaluation.frozen_patches import (
    FrozenPatches,
    check_memory,
    classes_of_mask,
    keep_examples,
    labels_of_classes,
    read_batches,
)
from evaluation.mask_samples import MaskRow, MaskSample
from evaluation.segmentation_heads import IGNORED
from modeling_rats import RatsImageProcessor, RatsModel


@pytest.fixture(scope="module")
def backbones(make_config):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rats = RatsModel(make_config()).eval()
        vit = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False).eval()
    processors = (kind(size={"height": 32, "width": 32}) for kind in (RatsImageProcessor, ViTImageProcessor))
    return {name: Backbone(name, model, next(processors)) for name, model in (("rats", rats), ("vit", vit))}


def row(index, mask, image=None):
    mask = np.asarray(mask)
    image = image or Image.fromarray(np.random.default_rng(index).integers(0, 256, (*mask.shape, 3), dtype=np.uint8))
    return MaskRow(index, f"row {index}", lambda: MaskSample(image, mask))


@pytest.mark.parametrize("kind", ["rats", "vit"])
def test_the_grid_lies_as_the_image_does(backbones, kind):
    """A change in one patch changes its own feature most, at its row and column."""
    frozen = FrozenPatches(backbones[kind], image_size_px=48)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    changed = pixels.copy()
    changed[8:16, 32:40] = 255 - changed[8:16, 32:40]
    samples = [MaskSample(Image.fromarray(one), np.zeros((48, 48), int)) for one in (pixels, changed)]
    before, after = frozen.embed(samples)
    assert before.dtype == torch.float16 and before.shape[1:] == (6, 6)
    moved = (after.float() - before.float()).norm(dim=0)
    assert moved.argmax() == 1 * 6 + 4


def test_the_last_block_is_read_after_the_norm_and_others_on_request(backbones):
    sample = MaskSample(Image.new("RGB", (40, 30), (200, 30, 60)), np.zeros((30, 40), int))
    last, before = (FrozenPatches(backbones["vit"], 32, layer).embed([sample])[0] for layer in (-1, -2))
    assert not torch.equal(last, before)
    pixels = backbones["vit"].pixel_values([sample.image], (32, 32))
    expected = backbones["vit"].model(pixels).last_hidden_state[0, 1:].T.unflatten(1, (4, 4))
    torch.testing.assert_close(last.float(), expected, rtol=1e-3, atol=1e-3)


def test_the_ignored_label_leaves_no_gap():
    mask = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
    assert classes_of_mask(mask, None).tolist() == [[0, 1, 2], [3, 255, 0]]
    assert classes_of_mask(mask, 255).tolist() == [[0, 1, 2], [3, IGNORED, 0]]
    assert classes_of_mask(mask, 0).tolist() == [[IGNORED, 0, 1], [2, 254, IGNORED]]
    assert classes_of_mask(mask, 2).tolist() == [[0, 1, IGNORED], [2, 254, 0]]
    assert classes_of_mask(np.array([[-1, 1]]), -1).tolist() == [[IGNORED, 1]]
    for ignore_label in (None, 0, 2, 3, 255, -1):
        labels = labels_of_classes(4, ignore_label)
        for label, own in zip(mask.ravel().tolist(), classes_of_mask(mask, ignore_label).ravel().tolist(), strict=True):
            assert own == IGNORED if label == ignore_label else label == 255 or labels[own] == label


def test_examples_hold_the_model_s_view_and_count_the_mask_s_pixels(backbones):
    small, large = np.zeros((8, 8), int), np.full((64, 48), 2)
    small[:4], large[:, :12], large[0, 0] = 1, 255, 4
    frozen = FrozenPatches(backbones["rats"], 32)
    batches = read_batches([row(0, small), row(1, large), row(2, small)], frozen, 2, "train", 255)
    examples = keep_examples(batches, 3, 32)
    assert examples.pixels.tolist() == [64, 64, 64 * 36, 0, 1]
    assert [own.shape for own in examples.features] == [(32, 4, 4)] * 3
    assert torch.equal(examples.features[0], frozen.embed([row(0, small).decode()])[0])
    assert torch.equal(examples.classes[0], torch.tensor([1, 0]).repeat_interleave(16)[:, None].expand(32, 32).short())
    assert examples.classes[1].dtype == torch.int16 and set(examples.classes[1][:, :8].ravel().tolist()) <= {IGNORED, 4}
    assert examples.num_bytes == 3 * (2 * 32 * 16 + 2 * 32 * 32)
    assert examples.at([2, 0]).features[1] is examples.features[0] and len(examples.at([1]).classes) == 1
    again = keep_examples(read_batches([row(0, small), row(1, large), row(2, small)], frozen, 3, "train", 255), None, 32)
    assert again.fingerprint == examples.fingerprint and torch.equal(again.pixels, examples.pixels)
    other = keep_examples(read_batches([row(0, small), row(1, large), row(2, large)], frozen, 3, "train", 255), None, 32)
    assert other.fingerprint != examples.fingerprint


def test_too_many_images_are_refused_before_they_fill_the_memory(backbones, monkeypatch):
    check_memory(1000, 1000, 1_000_000)
    with pytest.raises(ValueError, match=r"1,001 training images take .* \(1,000 bytes each\).*--limit_train"):
        check_memory(1000, 1001, 1_000_000)
    frozen, decoded = FrozenPatches(backbones["rats"], 32), []

    def rows():
        for index in range(10**6):
            decoded.append(index)
            yield row(index, np.zeros((8, 8), int))

    gib = 2**30
    memory = type(psutil.virtual_memory())
    free = memory(**{**psutil.virtual_memory()._asdict(), "available": gib})
    monkeypatch.setattr("evaluation.frozen_patches.psutil.virtual_memory", lambda: free)
    with pytest.raises(ValueError, match=r"1,000,000 training images take 2\.86 GiB"):
        keep_examples(read_batches(rows(), frozen, 4, "train"), 10**6, 32)
    assert len(decoded) <= 8  # it did not wait for the memory to be full


@pytest.mark.parametrize(
    "masks, options, message",
    [
        (
            [np.full((4, 4), 5)],
            {"num_labels": 5},
            r"mask of row 0 of split train holds the label 5; .* 0 to 4 .*--num_labels 6",
        ),
        ([np.full((4, 4), 40_000)], {}, "holds the label 40000; labels must be classes, 0 to 32767"),
        ([], {}, None),
    ],
    ids=["range", "colours", "none"],
)
def test_labels_outside_the_range_are_refused(backbones, masks, options, message):
    rows = [row(index, mask) for index, mask in enumerate(masks)]
    batches = read_batches(rows, FrozenPatches(backbones["rats"], 32), 4, "train", **options)
    if message is None:
        assert list(batches) == []
        return
    with pytest.raises(ValueError, match=message):
        list(batches)


def test_an_ignored_label_may_lie_outside_the_range(backbones):
    rows = [row(0, [[0, 255], [1, 255]])]
    (batch,) = read_batches(rows, FrozenPatches(backbones["rats"], 32), 4, "train", 255, 2)
    assert batch.classes[0].tolist() == [[0, IGNORED], [1, IGNORED]]


def test_errors_name_the_split_and_what_the_model_cannot(backbones):
    def broken():
        raise ValueError("The mask of row 7 is missing.")

    with pytest.raises(ValueError, match=r"Split train: The mask of row 7 is missing"):
        list(read_batches([MaskRow(7, "row 7", broken)], FrozenPatches(backbones["rats"], 32), 4, "train"))
    with pytest.raises(ValueError, match="image_size=36 must be a multiple of the patch size of vit, 8 px"):
        FrozenPatches(backbones["vit"], 36)
    with pytest.raises(ValueError, match="layer=-3 is none of vit, which has 2"):
        FrozenPatches(backbones["vit"], 32, -3)


def test_features_that_are_not_finite_are_refused(backbones):
    frozen = FrozenPatches(backbones["vit"], 32)
    norm = frozen.backbone.model.layernorm
    kept = norm.bias.detach().clone()
    try:
        norm.bias.data[3] = 1e6
        with pytest.raises(ValueError, match="Patch features of vit are not finite in 16 bits"):
            frozen.embed([MaskSample(Image.new("RGB", (32, 32)), np.zeros((32, 32), int))])
    finally:
        norm.bias.data.copy_(kept)
