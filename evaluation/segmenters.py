"""Everything that can compete in a part segmentation, behind one call: images in, label maps out."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor

from evaluation.backbones import read_model_type, refuse_missing_weights
from evaluation.register_attention_variants import RATS_FOR_PARTS
from modeling_rats import RatsForPartSegmentation


class ImageBatch(NamedTuple):
    """What a segmenter is given.

    Attributes:
        images: RGB.
        target_sizes: (height, width) in pixels of the label map wanted for each image: its true mask's.
        reference_segments: per image, how many segments the first competitor used; empty for that one itself.
        indices: the place of each image in the data set, from 0; only saved label maps are found by it.
    """

    images: list[Image.Image]
    target_sizes: list[tuple[int, int]]
    reference_segments: list[int]
    indices: Sequence[int] = ()


Segmenter = Callable[[ImageBatch], list[np.ndarray]]  # one (height, width) integer label map an image


def load_rats(
    model: str, revision: str = "main", part_layer: int | None = None, part_similarity: str | None = None
) -> tuple[RatsForPartSegmentation, Any]:
    """Load a RATS model for part segmentation and its image processor, from a folder or the Hub.

    Any RATS checkpoint will do, one with another register attention as well (`register_attention_variants`): part maps need
    only the backbone. `part_layer` and `part_similarity` read them in another way than the model's own (`RatsConfig`).

    Raises:
        FileNotFoundError: if there is no such folder or repository.
        ValueError: if it is not a RATS model, or if its weights do not fill the backbone.
    """
    model_type = read_model_type(model, revision)
    if model_type not in RATS_FOR_PARTS:
        raise ValueError(
            f"Model {model!r} has model_type {model_type!r}; the model whose register maps are scored must be of model_type "
            "'rats' or 'rats_variant'. Choose a RATS checkpoint, and let this one compete: as patch_kmeans:MODEL or "
            "attention_heads:MODEL, or as registers:MODEL if it has registers."
        )
    loaded, info = cast(
        tuple[RatsForPartSegmentation, dict],
        RATS_FOR_PARTS[model_type].from_pretrained(model, revision=revision, output_loading_info=True),
    )
    for name, value in {"part_layer": part_layer, "part_similarity": part_similarity}.items():
        if value is not None:
            setattr(loaded.config, name, value)
    loaded.config.validate_sizes()  # setting a field checks its type alone
    refuse_missing_weights(model, {name for name in info["missing_keys"] if not name.startswith("classifier.")})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return loaded.eval().to(device), AutoImageProcessor.from_pretrained(model, revision=revision)


def untrained_like(model: RatsForPartSegmentation, seed: int) -> RatsForPartSegmentation:
    """Return the same architecture with fresh weights: what the wiring alone finds. The seed leaves torch's own be."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        untrained = type(model)(model.config)
    return untrained.eval().to(model.device)


def rats_segmenter(model: RatsForPartSegmentation, processor: Any, image_size_px: int | None = None) -> Segmenter:
    """Segment by register: each patch goes to its most similar one.

    Args:
        model: in evaluation mode.
        processor: its image processor.
        image_size_px: side of the square input; the processor's own size by default.

    Raises:
        ValueError: if that side is no whole number of patches.
    """
    size = {} if image_size_px is None else {"size": {"height": image_size_px, "width": image_size_px}}
    one_by_one = getattr(processor, "ensure_multiple_of", None) is not None  # inputs then differ in shape
    patch = model.config.patch_height_width
    if image_size_px is not None and not one_by_one and any(image_size_px % side for side in patch):
        raise ValueError(
            f"image_size={image_size_px} px is no multiple of the model's patches of {patch[0]} x {patch[1]} px (height x "
            "width); each side must hold whole patches. Give another --image_size."
        )

    @torch.inference_mode()
    def segment(batch: ImageBatch) -> list[np.ndarray]:
        step = 1 if one_by_one else len(batch.images)
        label_maps = []
        for start in range(0, len(batch.images), step):
            inputs = processor(images=batch.images[start : start + step], return_tensors="pt", **size)
            outputs = model(inputs["pixel_values"].to(model.device))
            label_maps += processor.post_process_part_segmentation(
                outputs, target_sizes=batch.target_sizes[start : start + step]
            )
        return [result["segmentation"].cpu().numpy() for result in label_maps]

    return segment


def baseline_segmenter(baseline: Callable[..., np.ndarray], seed: int, num_segments: int | None = None) -> Segmenter:
    """Segment by a function of `baselines`, into `num_segments`, or as many as the first competitor used per image."""

    def segment(batch: ImageBatch) -> list[np.ndarray]:
        wanted = batch.reference_segments if num_segments is None else [num_segments] * len(batch.images)
        return [
            baseline(image, count, seed, target_size)
            for image, count, target_size in zip(batch.images, wanted, batch.target_sizes, strict=True)
        ]

    return segment
