"""Segments of images as vectors: what they are, whatever the batches and ranks, and what is passed over."""

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image
from torch import nn

from evaluation.backbones import load_backbone
from evaluation.part_samples import PartSample
from evaluation.segment_features import (
    NO_LABEL,
    ImageFeatures,
    PartReader,
    PatchKMeansReader,
    label_shares,
    read_segments,
    segments_of,
    segments_of_images,
)
from evaluation.token_segmenters import InputSize
from modeling_rats import RatsForPartSegmentation, RatsImageProcessor
from modeling_rats.part_maps import pixel_to_patch


class Row:
    """A row of a data set that decodes to a sample, or does not."""

    def __init__(self, index, sample):
        self.index, self.sample = index, sample

    def decode(self):
        if self.sample is None:
            raise ValueError(f"row {self.index} is broken")
        return self.sample


def sample(seed, mask=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return PartSample(Image.fromarray(pixels).resize((40, 40)), mask)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_part_model):
    return save_part_model(tmp_path_factory.mktemp("model"), size_px=32)


@pytest.fixture(scope="module")
def reader(folder):
    return PartReader(RatsForPartSegmentation.from_pretrained(folder).eval(), RatsImageProcessor.from_pretrained(folder))


def test_segments_are_told_by_their_patches():
    features = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    part_map = torch.tensor([[7, 7, 2, 2], [7, 7, 2, 2], [2, 2, 2, 2]])
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[:4, :4] = 3  # the pixels of register 7
    mask[0, 0] = 1
    found = segments_of(ImageFeatures(features, part_map, None), PartSample(Image.new("RGB", (8, 6)), mask), index=11)
    assert found.register.tolist() == [2, 7] and found.image.tolist() == [11, 11]
    directions = nn.functional.normalize(features, dim=0)
    for row, register in enumerate((2, 7)):
        mean = directions[:, part_map == register].mean(dim=1)
        torch.testing.assert_close(found.vectors[row], mean / mean.norm())
        cosines = directions[:, part_map == register].T @ found.vectors[row]
        assert (found.means[row] @ found.vectors[row]).item() == pytest.approx(cosines.mean().item(), abs=1e-6)
    assert found.box.tolist() == [[0, 0, 1, 1], [0, 0, 0.5, pytest.approx(2 / 3)]]
    assert found.area.tolist() == pytest.approx([8 / 12, 4 / 12])
    assert found.border.tolist() == pytest.approx([(7 / 8) / (10 / 12), (3 / 4) / (10 / 12)])
    assert found.label.tolist() == [0, 3] and found.purity.tolist() == pytest.approx([1, 15 / 16])


def test_shares_of_labels_count_pixels():
    mask = torch.tensor([[0, 1, 2, 2], [1, 1, 2, 9]])
    assert label_shares(mask, 3, (1, 2))[:, 0].tolist() == [[0.25, 0], [0.75, 0], [0, 0.75]]  # 9 is none of the three
    assert label_shares(torch.where(mask == 1, -1, mask), 3, (1, 2))[:, 0].tolist() == [[0.25, 0], [0, 0], [0, 0.75]]
    uneven = torch.randint(0, 4, (13, 17), generator=torch.Generator().manual_seed(0))
    shares = label_shares(uneven, 4, (3, 5))
    row, column = pixel_to_patch(13, 3), pixel_to_patch(17, 5)
    for label in range(4):
        for y in range(3):
            for x in range(5):
                inside = uneven[row == y][:, column == x]
                assert shares[label, y, x].item() == pytest.approx((inside == label).float().mean().item())
    assert label_shares(torch.tensor([[0, 1]]), 2, (2, 4)).tolist() == [[[1, 1, 0, 0]] * 2, [[0, 0, 1, 1]] * 2]


@pytest.mark.parametrize("vectors", ["patches", "registers"])
def test_vectors_are_mean_patches_or_register_tokens(reader, vectors):
    reader = PartReader(reader.model, reader.processor, vectors=vectors)
    samples = [sample(0), sample(1)]
    found = segments_of_images(reader, samples, [0, 1])
    pixel_values = reader.processor([one.image for one in samples], return_tensors="pt")["pixel_values"]
    outputs = reader.model(pixel_values, output_hidden_states=True)
    tokens = reader.model.rats.layernorm(outputs.hidden_states[-1])
    for vector, register, image in zip(found.vectors, found.register, found.image, strict=True):
        won = outputs.similarities[image].flatten(1).argmax(dim=0) == register
        mean = nn.functional.normalize(tokens[image, 8:][won], dim=1).mean(dim=0)
        expected = mean if vectors == "patches" else tokens[image, register]
        torch.testing.assert_close(vector, nn.functional.normalize(expected, dim=0))
    assert (found.label == NO_LABEL).all()


def test_batches_do_not_matter_and_broken_images_are_passed_over(reader, capsys):
    rows = [Row(0, sample(0)), Row(1, None), Row(2, sample(2)), Row(3, sample(3))]
    found = [read_segments(rows, reader, batch_size, PartialState()) for batch_size in (1, 3, 8)]
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two)
    assert found[0].image.unique().tolist() == [0, 2, 3]
    assert capsys.readouterr().err.count("passed over: row 1 is broken") == 3
    with pytest.raises(ValueError, match="no images that can be read"):
        read_segments([Row(0, None)], reader, 2, PartialState())


def test_any_backbone_has_segments_by_kmeans(folder):
    reader = PatchKMeansReader(load_backbone(str(folder)), InputSize(32, 32), num_segments=3)
    found = segments_of_images(reader, [sample(0), sample(1)], [4, 5])
    assert found.register.tolist() == [0, 1, 2] * 2 and found.image.tolist() == [4, 4, 4, 5, 5, 5]
    assert found.area[:3].sum().item() == pytest.approx(1)
