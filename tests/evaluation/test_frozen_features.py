"""Which tokens of which view become features, and how a split's images are read, shared out and known again."""

import hashlib
import io

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image
from transformers import BitImageProcessor

from evaluation.backbones import Tokens, load_backbone
from evaluation.frozen_features import FrozenFeatures, pool_tokens, pooled_features, processor_size_px, read_features
from evaluation.labelled_images import LabelledImage
from modeling_rats import RatsImageProcessor, RatsModel


def some_images(count):
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)) for _ in range(count)]


def test_features_are_the_models_whatever_the_batches(make_config):
    model, processor = RatsModel(make_config()).eval(), RatsImageProcessor(size={"height": 32, "width": 32})
    sizes = []

    def embed(pixel_values):
        sizes.append(len(pixel_values))
        return model(pixel_values, pooled_only=True).pooler_output

    images = some_images(5)
    features = pooled_features(embed, processor, iter(images), batch_size=2)
    assert sizes == [2, 2, 1] and features.shape == (5, 32) and not features.requires_grad
    with torch.no_grad():
        expected = torch.cat([model(**processor(images=[image], return_tensors="pt")).pooler_output for image in images])
    torch.testing.assert_close(features, expected)


def test_images_that_keep_their_shape_go_through_one_by_one():
    processor = RatsImageProcessor(size={"height": 32, "width": 32}, ensure_multiple_of=8)
    images = [*some_images(1), *(image.resize((64, 32)) for image in some_images(1))]
    shapes = []

    def embed(pixel_values):
        shapes.append(tuple(pixel_values.shape))
        return pixel_values.mean(dim=(2, 3))

    assert pooled_features(embed, processor, images).shape == (2, 3)
    assert len(shapes) == 2 and shapes[0][2:] != shapes[1][2:]


def test_no_images_have_no_features():
    with pytest.raises(ValueError, match="no images"):
        pooled_features(lambda pixel_values: pixel_values, None, [])


# Frozen backbones


@pytest.fixture(scope="module")
def backbone(make_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        RatsModel(make_config()).save_pretrained(folder)
    RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return load_backbone(str(folder))


def test_kinds_are_means_of_tokens():
    tokens = Tokens(torch.full((2, 3), 9.0), torch.rand(2, 4, 3), torch.rand(2, 6, 3), (2, 3))
    assert torch.equal(pool_tokens(tokens, "class"), tokens.class_token)
    torch.testing.assert_close(pool_tokens(tokens, "registers"), tokens.registers.sum(dim=1) / 4)
    torch.testing.assert_close(pool_tokens(tokens, "patches"), tokens.patches.sum(dim=1) / 6)
    both = pool_tokens(tokens, "both")
    assert torch.equal(both, torch.cat([tokens.class_token, pool_tokens(tokens, "patches")], dim=1))
    without_class = tokens._replace(class_token=None)
    assert torch.equal(pool_tokens(without_class, "both")[:, :3], pool_tokens(tokens, "registers"))
    with pytest.raises(ValueError, match=r"features=class cannot .* no class token; use --features registers"):
        pool_tokens(without_class, "class")
    with pytest.raises(ValueError, match=r"features=registers cannot .* no registers; use --features class"):
        pool_tokens(tokens._replace(registers=None), "registers")


def test_the_default_is_what_the_model_was_trained_by(backbone):
    frozen = FrozenFeatures(backbone)
    assert (frozen.kind, frozen.image_size_px, frozen.num_dimensions) == ("registers", 32, 32)
    assert FrozenFeatures(backbone, "both").num_dimensions == 64
    images = [image.resize((32, 32)) for image in some_images(3)]
    pixel_values = backbone.processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(frozen.embed(images), backbone.model(pixel_values).pooler_output)


@pytest.mark.parametrize("size, image_size_px", [((512, 256), 224), ((256, 300), 224), ((100, 80), 64)])
def test_the_view_is_dinos(backbone, size, image_size_px):
    """Shorter side to 256 of 224, then the middle: a mark in the middle stays there, one in a corner is cut off."""
    image = Image.new("RGB", size)
    left, top = size[0] // 2, size[1] // 2
    image.paste((255, 0, 0), (left - 8, top - 8, left + 8, top + 8))
    image.paste((0, 255, 0), (0, 0, 4, 4))
    frozen = FrozenFeatures(backbone, image_size_px=image_size_px)
    pixels = np.asarray(frozen.view(image)).astype(int)
    assert pixels.shape == (image_size_px, image_size_px, 3)
    rows, columns = (pixels[..., 0] > 127).nonzero()
    scale = image_size_px * 256 / 224 / min(size)
    assert abs(rows.mean() + 0.5 - image_size_px / 2) < 1.5 and abs(columns.mean() + 0.5 - image_size_px / 2) < 1.5
    assert abs(len(set(rows)) - 16 * scale) <= 2 and abs(len(set(columns)) - 16 * scale) <= 2
    assert pixels[..., 1].max() < 20


def test_the_size_is_the_processors_unless_told(backbone):
    assert processor_size_px(BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})) == 224
    with pytest.raises(ValueError, match="no square; give --image_size"):
        processor_size_px(RatsImageProcessor(size={"height": 32, "width": 64}))
    assert FrozenFeatures(backbone, image_size_px=64).image_size_px == 64
    with pytest.raises(ValueError, match=r"image_size=36 must be a multiple of the patch size of .*, 8 px"):
        FrozenFeatures(backbone, image_size_px=36)


# A split


def labelled(images, split="train"):
    for row, image in enumerate(images):
        file = io.BytesIO()
        image.save(file, format="png")
        yield LabelledImage(split, row, {"bytes": file.getvalue(), "path": None}, "ab"[row % 2])


def as_rank(monkeypatch, rank, ranks):
    """The share of one of several ranks, as if the others had nothing."""
    state = PartialState(cpu=True)
    monkeypatch.setattr(state, "process_index", rank)
    monkeypatch.setattr(state, "num_processes", ranks)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda features: None)
    return state


def test_the_shares_of_ranks_add_up_to_the_split(backbone, monkeypatch):
    frozen, images = FrozenFeatures(backbone), some_images(7)
    whole = read_features(labelled(images), frozen, 2, PartialState(cpu=True))
    assert whole.labels == list("abababa") and whole.features.shape == (7, 32)
    torch.testing.assert_close(whole.features[3:4], frozen.embed([frozen.view(images[3])]))
    shares = []
    for rank in range(3):
        with monkeypatch.context() as patch:
            shares.append(read_features(labelled(images), frozen, 2, as_rank(patch, rank, 3)))
    assert torch.equal(sum(share.features for share in shares), whole.features)
    assert all(share.labels == whole.labels for share in shares)
    assert sum(int(share.fingerprint, 16) for share in shares) % 2**128 == int(whole.fingerprint, 16)
    assert [int((share.features != 0).any(dim=1).sum()) for share in shares] == [3, 2, 2]


def test_the_fingerprint_knows_images_labels_and_places(backbone):
    frozen, images = FrozenFeatures(backbone), some_images(4)

    def fingerprint(rows, batch_size=2):
        return read_features(rows, frozen, batch_size, PartialState(cpu=True)).fingerprint

    first = fingerprint(labelled(images))
    assert len(first) == len(hashlib.blake2b(digest_size=16).hexdigest()) and fingerprint(labelled(images), 3) == first
    other_label = [one._replace(label="c") if one.row == 2 else one for one in labelled(images)]
    turned = labelled([*images[:3], images[3].rotate(90)])
    others = {fingerprint(rows) for rows in (labelled(images[:3]), labelled(images[::-1]), other_label, turned)}
    assert len(others | {first}) == 5


def test_images_are_read_a_batch_at_a_time(backbone):
    frozen, read, most = FrozenFeatures(backbone), [], []

    def rows():
        for one in labelled(some_images(7)):
            read.append(one.row)
            yield one

    embed = frozen.embed
    frozen.embed = lambda views: most.append((len(read), len(views))) or embed(views)
    read_features(rows(), frozen, 3, PartialState(cpu=True))
    assert most == [(3, 3), (6, 3), (7, 1)]


def test_a_broken_image_and_an_empty_split_are_told(backbone):
    frozen = FrozenFeatures(backbone)
    broken = [*labelled(some_images(3)), LabelledImage("train", 3, {"bytes": b"no image", "path": None}, "a")]
    with pytest.raises(ValueError, match="image of row 3 of split train cannot be decoded"):
        read_features(broken, frozen, 2, PartialState(cpu=True))
    with pytest.raises(ValueError, match="no images"):
        read_features([], frozen, 2, PartialState(cpu=True))
