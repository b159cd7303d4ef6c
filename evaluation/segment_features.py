"""The parts of many images, each as one vector: what a dictionary of parts is built of. Streams, shared out among ranks.

B batch  L patches  N registers  D hidden  S segments; the patch grid is rows, columns
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from evaluation.backbones import Backbone
from evaluation.baselines import cluster
from evaluation.part_samples import PartRow, PartSample
from evaluation.token_segmenters import InputSize, TokenReader
from modeling_rats import RatsForPartSegmentation
from modeling_rats.part_maps import part_map, patches_to_pixels, pixel_to_patch

Vectors = Literal["patches", "registers"]
VECTORS: tuple[Vectors, ...] = get_args(Vectors)
NO_LABEL = -1


class Segments(NamedTuple):
    """The parts that a model finds in images, in the order of the images; each attribute has a row for each.

    Attributes:
        vectors: Directions, of length 1, float32, (S, D).
        means: Mean of its patches' unit vectors, whose product with a direction is their mean cosine with it, (S, D).
        register: Which register won it, int64, (S,).
        image: Place of its image in the data set, from 0, int64, (S,).
        box: x0, y0, x1, y1 as shares of the image's width and height, (S, 4).
        area: Its share of the image, (S,).
        border: How many of its patches lie on the image's border, in shares of what chance would give, so 1 for the whole
            image and 0 for what does not touch it, (S,).
        label: The true label that most of its pixels have, `NO_LABEL` without masks, int64, (S,).
        purity: The share of its pixels that have it, (S,).
    """

    vectors: torch.Tensor
    means: torch.Tensor
    register: torch.Tensor
    image: torch.Tensor
    box: torch.Tensor
    area: torch.Tensor
    border: torch.Tensor
    label: torch.Tensor
    purity: torch.Tensor

    def chosen(self, which: torch.Tensor) -> "Segments":
        """Some of them, by a mask or by their places."""
        return Segments(*(column[which] for column in self))


class ImageFeatures(NamedTuple):
    """What a model gives of one image, on the CPU.

    Attributes:
        features: Patch features, float32, (D, rows, columns).
        part_map: The register of each patch, int64, (rows, columns).
        registers: Register tokens of the same block, float32, (N, D); None where nobody asked.
    """

    features: torch.Tensor
    part_map: torch.Tensor
    registers: torch.Tensor | None


class PartReader:
    """A RATS and its image processor: images in, features and part maps out.

    Args:
        model: In evaluation mode, on the device that computes.
        processor: Its image processor.
        image_size_px: Side of the square input; the processor's own size when None.
        vectors: Whether a segment's vector is the mean direction of its patches, or the register token that won it (the
            paper's dictionary collects these).
    """

    def __init__(
        self,
        model: RatsForPartSegmentation,
        processor: Any,
        image_size_px: int | None = None,
        vectors: Vectors = "patches",
    ):
        self.model = model
        self.processor = processor
        self.vectors = vectors
        self.size = {} if image_size_px is None else {"size": {"height": image_size_px, "width": image_size_px}}
        self.one_by_one = getattr(processor, "ensure_multiple_of", None) is not None  # inputs then differ in shape

    @torch.inference_mode()
    def read(self, samples: Sequence[PartSample]) -> Iterator[ImageFeatures]:
        """Features and part map of each sample."""
        step = 1 if self.one_by_one else len(samples)
        of_registers = self.vectors == "registers"
        for start in range(0, len(samples), step):
            images = [sample.image for sample in samples[start : start + step]]
            pixel_values = self.processor(images=images, return_tensors="pt", **self.size)["pixel_values"].to(self.model.device)
            outputs = self.model(pixel_values, output_patch_features=True, output_hidden_states=of_registers)
            maps = part_map(outputs.similarities).cpu()
            registers: Iterable[torch.Tensor | None] = [None] * len(images)
            if of_registers:
                tokens = self.model.rats.layernorm(outputs.hidden_states[self.model.config.part_layer])
                registers = tokens[:, : self.model.config.num_registers].float().cpu()  # (B, N, D)
            for one in zip(outputs.patch_features.float().cpu(), maps, registers, strict=True):
                yield ImageFeatures(*one)


class PatchKMeansReader:
    """Any backbone, whose parts are k-means clusters of each image's patches: what stands beside a RATS.

    Args:
        backbone: The frozen model.
        size: How large it sees the images.
        num_segments: Clusters of an image.
        seed: Of the clustering.
    """

    def __init__(self, backbone: Backbone, size: InputSize, num_segments: int, seed: int = 0):
        self.tokens = TokenReader(backbone, size)
        self.num_segments = num_segments
        self.seed = seed

    def read(self, samples: Sequence[PartSample]) -> Iterator[ImageFeatures]:
        """Features and clusters of each sample."""
        for tokens in self.tokens.tokens([sample.image for sample in samples]):
            patches = tokens.patches[0].float().cpu()  # (L, D)
            labels = cluster(nn.functional.normalize(patches, dim=1).numpy(), self.num_segments, self.seed)
            yield ImageFeatures(patches.T.unflatten(1, tokens.grid), torch.from_numpy(labels).unflatten(0, tokens.grid), None)


Reader = PartReader | PatchKMeansReader


def segments_of_images(reader: Reader, samples: Sequence[PartSample], indices: Sequence[int]) -> Segments:
    """The segments of some images, whose places in the data set are given."""
    found = zip(reader.read(samples), samples, indices, strict=True)
    return joined([segments_of(read, sample, index) for read, sample, index in found])


def segments_of(read: ImageFeatures, sample: PartSample, index: int) -> Segments:
    """The segments of one image, by register."""
    rows, columns = read.part_map.shape
    claims = nn.functional.one_hot(read.part_map, int(read.part_map.max()) + 1).movedim(-1, 0).float()  # (N, rows, columns)
    register = claims.any(dim=(1, 2)).nonzero().flatten()  # (S,)
    claims = claims[register]  # (S, rows, columns)
    patches = claims.sum(dim=(1, 2))  # (S,)
    directions = nn.functional.normalize(read.features, dim=0)  # (D, rows, columns)
    means = claims.flatten(1) @ directions.flatten(1).T / patches[:, None]  # (S, D)
    vectors = nn.functional.normalize(means if read.registers is None else read.registers[register], dim=1)
    on_border = torch.ones(rows, columns)
    on_border[1:-1, 1:-1] = 0
    labels, purity = _true_labels(claims, sample)
    return Segments(
        vectors=vectors,
        means=means,
        register=register,
        image=torch.full_like(register, index),
        box=torch.stack([_box(claim > 0) for claim in claims]),
        area=patches / (rows * columns),
        border=(claims * on_border).sum(dim=(1, 2)) / patches / on_border.mean(),
        label=labels,
        purity=purity,
    )


def label_shares(mask: torch.Tensor, num_labels: int, grid: tuple[int, int]) -> torch.Tensor:
    """Which share of each patch has each label, (num_labels, rows, columns), by a mask, integers, (height, width).

    Labels below 0 and from `num_labels` on have no share, so that those of a patch may sum to less than 1.
    """
    rows, columns = grid
    mask = patches_to_pixels(mask.long(), (max(mask.shape[0], rows), max(mask.shape[1], columns)))  # a pixel a patch at least
    row, column = pixel_to_patch(mask.shape[0], rows), pixel_to_patch(mask.shape[1], columns)
    patch = row[:, None] * columns + column  # (height, width)
    known = (mask >= 0) & (mask < num_labels)
    counts = torch.bincount((mask * (rows * columns) + patch)[known], minlength=num_labels * rows * columns)
    pixels = torch.bincount(patch.flatten(), minlength=rows * columns)
    return counts.view(num_labels, rows, columns).float() / pixels.view(rows, columns)


def joined(segments: Sequence[Segments]) -> Segments:
    """Those of several images as one."""
    return Segments(*(torch.cat(columns) for columns in zip(*segments, strict=True)))


def read_segments(rows: Iterable[PartRow], reader: Reader, batch_size: int, state: PartialState) -> Segments:
    """The segments of all images; each rank reads every R-th batch of R ranks, and all ranks get all.

    A batch holds the same images however many ranks there are, so the segments are the same. A broken image is told of and
    passed over. What is held in memory is 8 bytes x segments x D.

    Args:
        rows: All of the split, the same on all ranks.
        reader: Of a model that is on the device of the rank.
        batch_size: Images that the model gets at once.
        state: Accelerate's, of this rank.

    Raises:
        ValueError: On all ranks, if there are no images that can be read.
    """
    rows, own, number = iter(rows), {}, 0
    with ThreadPoolExecutor() as threads:
        while batch := list(islice(rows, batch_size)):
            if number % state.num_processes == state.process_index:
                usable = [one for one in threads.map(decoded, batch) if one is not None]
                if usable:
                    indices, samples = zip(*usable, strict=True)
                    own[number] = segments_of_images(reader, samples, indices)
            number += 1
    gathered = {place: segments for one in gather_object([own]) for place, segments in one.items()}
    if not gathered:
        raise ValueError("There are no images that can be read, so no parts; name a split that has some.")
    return joined([gathered[place] for place in sorted(gathered)])


def decoded(row: PartRow) -> tuple[int, PartSample] | None:
    """Place and sample of a row; None, and a line to stderr, for one that is broken."""
    try:
        return row.index, row.decode()
    except ValueError as error:
        print(f"passed over: {error}", file=sys.stderr)
        return None


def _true_labels(claims: torch.Tensor, sample: PartSample) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each segment the most frequent label of its pixels, and its share, (S,) each."""
    if sample.mask is None:
        return torch.full((len(claims),), NO_LABEL), torch.zeros(len(claims))
    mask = torch.from_numpy(sample.mask.astype("int64"))
    shares = label_shares(mask, max(1, int(mask.max()) + 1), (claims.shape[1], claims.shape[2]))  # (C, rows, columns)
    of_segments = claims.flatten(1) @ shares.flatten(1).T / claims.flatten(1).sum(dim=1, keepdim=True)  # (S, C)
    purity, label = of_segments.max(dim=1)
    return label, purity


def _box(where: torch.Tensor) -> torch.Tensor:
    """x0, y0, x1, y1 of (rows, columns), as shares."""
    rows, columns = where.shape
    y, x = where.any(dim=1).nonzero().flatten(), where.any(dim=0).nonzero().flatten()
    ends = torch.stack([x[0], y[0], x[-1] + 1, y[-1] + 1])
    return ends / torch.tensor([columns, rows, columns, rows])
