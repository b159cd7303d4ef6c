"""Features of frozen backbones: of which tokens, of which view of an image, shared out among ranks and put together in order.

B batch  L patches  N registers  D hidden
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import Any, NamedTuple

import PIL.Image
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from evaluation.backbones import Backbone, Tokens
from evaluation.labelled_images import Label, LabelledImage

Embed = Callable[[torch.Tensor], torch.Tensor]  # pixel values, (B, 3, height, width) -> features, (B, D)

KINDS = ("registers", "patches", "both", "class")
RESIZED_PER_CROPPED = 256 / 224  # dino/eval_knn.py: the shorter side becomes 256, and the centre 224 x 224 is kept
FINGERPRINT_BYTES = 16


class FrozenFeatures:
    """Images in, one feature vector an image out, as DINO's protocols have it.

    The shorter side is resized to 256/224 of `image_size_px` (bicubic) and the central square is kept; the model's own
    processor rescales and normalises it. The tokens are those after the final LayerNorm; a model gives

    - registers: the mean register;
    - patches: the mean patch;
    - class: the class token;
    - both: what DINO pools (the class token where there is one, else the mean register) and the mean patch, concatenated.

    Args:
        backbone: In evaluation mode, on the device that computes.
        kind: One of `KINDS`; what DINO pools when None.
        image_size_px: Side of the square input; when None that of the model's processor.

    Raises:
        ValueError: If the model has no such tokens, or its patches do not divide the image size.
    """

    def __init__(self, backbone: Backbone, kind: str | None = None, image_size_px: int | None = None):
        self.backbone = backbone
        self.image_size_px = processor_size_px(backbone.processor) if image_size_px is None else image_size_px
        if self.image_size_px % backbone.patch_size:
            raise ValueError(
                f"image_size={self.image_size_px} must be a multiple of the patch size of {backbone.name}, "
                f"{backbone.patch_size} px; give another --image_size."
            )
        tokens = self._tokens(torch.zeros(1, 3, self.image_size_px, self.image_size_px))
        self.kind = kind or ("registers" if tokens.class_token is None else "class")
        self.num_dimensions = pool_tokens(tokens, self.kind).shape[1]

    def view(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """The part of an image that the model sees."""
        size = [round(self.image_size_px * RESIZED_PER_CROPPED)]
        resized = functional.resize(image, size, interpolation=InterpolationMode.BICUBIC)
        return functional.center_crop(resized, [self.image_size_px])

    def embed(self, views: Sequence[PIL.Image.Image]) -> torch.Tensor:
        """Features of a batch of views, float32 on the CPU, (B, D)."""
        inputs = self.backbone.processor(images=list(views), do_resize=False, do_center_crop=False, return_tensors="pt")
        return pool_tokens(self._tokens(inputs["pixel_values"]), self.kind).float().cpu()

    @torch.inference_mode()
    def _tokens(self, pixel_values: torch.Tensor) -> Tokens:
        return self.backbone.tokens(pixel_values.to(self.backbone.model.device))


class SplitFeatures(NamedTuple):
    """What is known of a split's images, the same on all ranks.

    Attributes:
        features: In the data set's order, float32 on the device of the rank, (images, D).
        labels: Their classes.
        fingerprint: A hash of the files of all images, their labels and their places.
    """

    features: torch.Tensor
    labels: list[Label]
    fingerprint: str


def processor_size_px(processor: Any) -> int:
    """Side of the square that a model's image processor gives the model.

    Raises:
        ValueError: If it gives no squares of one size.
    """
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    sides = {side for side in dict(size).values() if side is not None}
    if len(sides) != 1:
        raise ValueError(f"The model's image processor has the size {dict(size)}, which is no square; give --image_size.")
    return sides.pop()


def pool_tokens(tokens: Tokens, kind: str) -> torch.Tensor:
    """The features of a kind (see `FrozenFeatures`), (B, D), twice as wide for "both".

    Raises:
        ValueError: If there are no such tokens.
    """
    patches = tokens.patches.mean(dim=1)  # (B, D)
    registers = None if tokens.registers is None else tokens.registers.mean(dim=1)  # (B, D)
    if kind == "both":
        return torch.cat([_present(tokens.class_token, registers), patches], dim=1)  # (B, 2 D)
    pooled = {"registers": registers, "patches": patches, "class": tokens.class_token}[kind]
    if pooled is None:
        lacking = "class token" if kind == "class" else "registers"
        remedy = "registers" if kind == "class" else "class"
        raise ValueError(f"features={kind} cannot be read, since the model has no {lacking}; use --features {remedy}.")
    return pooled


def read_features(
    images: Iterable[LabelledImage], frozen: FrozenFeatures, batch_size: int, state: PartialState
) -> SplitFeatures:
    """Takes features of all images; each rank those of every R-th batch of R ranks, and all ranks get all.

    A batch holds the same images however many ranks there are, so the features are the same. Of the images only a batch is in
    memory; the features take 4 bytes x images x D on each rank (ImageNet-1k and D = 768: 3.9 GB).

    Args:
        images: All of the split, undecoded, the same on all ranks.
        frozen: Of the model, which is on the device of the rank.
        batch_size: Images that the model gets at once.
        state: Accelerate's, of this rank.

    Raises:
        ValueError: On all ranks, if an image of any cannot be read, or there are none.
    """
    images, labels, own, problem = iter(images), [], {}, None  # own: number of the batch -> features, (B, D)
    fingerprint = 0
    try:
        with ThreadPoolExecutor() as threads:
            for number in count():
                batch = list(islice(images, batch_size))
                if not batch:
                    break
                labels += [labelled.label for labelled in batch]
                if number % state.num_processes == state.process_index:
                    views, hashes = zip(*threads.map(lambda labelled: _prepare(labelled, frozen), batch), strict=True)
                    own[number] = frozen.embed(views)
                    fingerprint += sum(hashes)
        if not labels:
            raise ValueError("There are no images to take features of; name a split that has some.")
    except (OSError, ValueError) as error:
        problem = error
    told = [message for message in gather_object([problem and str(problem)]) if message is not None]
    if told:
        raise ValueError(told[0]) from problem
    features = torch.zeros(len(labels), frozen.num_dimensions, device=state.device)
    for number, of_batch in own.items():
        features[number * batch_size :][: len(of_batch)] = of_batch.to(state.device)
    if state.num_processes > 1:
        torch.distributed.all_reduce(features)  # in place; the rows of the others are 0 here
    # A sum does not depend on who adds what.
    fingerprint = sum(gather_object([fingerprint])) % 2 ** (8 * FINGERPRINT_BYTES)
    return SplitFeatures(features, labels, f"{fingerprint:0{2 * FINGERPRINT_BYTES}x}")


@torch.no_grad()
def pooled_features(embed: Embed, processor: Any, images: Iterable[PIL.Image.Image], batch_size: int = 32) -> torch.Tensor:
    """One feature vector an image, of what the processor makes of it, float32 on the CPU, (images, D).

    Args:
        embed: What is measured of a model in evaluation mode; it also moves the pixels to the model's device.
        processor: The model's image processor.
        images: RGB; read as they are needed.
        batch_size: Images that the model gets at once.

    Raises:
        ValueError: If there are no images.
    """
    one_by_one = getattr(processor, "ensure_multiple_of", None) is not None  # inputs then differ in shape
    images, features = iter(images), []
    while batch := list(islice(images, 1 if one_by_one else batch_size)):
        pixel_values = processor(images=batch, return_tensors="pt")["pixel_values"]  # (B, 3, height, width)
        features.append(embed(pixel_values).float().cpu())  # (B, D)
    if not features:
        raise ValueError("There are no images to take features of; name a split that has some.")
    return torch.cat(features)


def check_features(features: torch.Tensor, labels: torch.Tensor, which: str) -> None:
    """
    Raises:
        ValueError: If there is not a label for each feature vector, or a feature is not finite.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"The {which} features have shape {tuple(features.shape)} and their labels {tuple(labels.shape)}; they must be "
            "(images, D) and (images,)."
        )
    broken = (~features.isfinite().all(dim=1)).nonzero().flatten()
    if len(broken):
        raise ValueError(
            f"{len(broken)} of {len(features)} {which} features are not finite (the first: {int(broken[0])}); classes are told "
            "apart by numbers. Check the model's weights."
        )


def _present(*tokens: torch.Tensor | None) -> torch.Tensor:
    """The first of the tokens that the model has."""
    return next(one for one in tokens if one is not None)


def _prepare(labelled: LabelledImage, frozen: FrozenFeatures) -> tuple[PIL.Image.Image, int]:
    """What the model sees of an image, and a hash of its file, label and place."""
    labelled = labelled.with_content()
    digest = hashlib.blake2b(f"{labelled.row} {labelled.label!r} ".encode(), digest_size=FINGERPRINT_BYTES)
    digest.update(labelled.image["bytes"])
    return frozen.view(labelled.decode()), int.from_bytes(digest.digest(), "big")
