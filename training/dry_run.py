"""What a run would be, without running it: `python training/pretrain.py RECIPE --dry_run`."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
import yaml

from training.advice import advice
from training.networks import build_backbone_and_head, build_config
from training.run_settings import flat
from training.settings import Settings
from training.source_rows import Source
from training.streaming import ViewStream
from training.student_teacher import MultiCropNetwork

GIB = 1024**3
IMAGES_TO_DECODE = 8


def describe(settings: Settings, stream: ViewStream, num_processes: int) -> str:
    """The resolved recipe, sizes, memory, length, and what the first images look like.

    Raises:
        ValueError: If the network cannot have the sizes of the recipe.
        UnreadableImagesError: If the stream holds no image that can be read.
    """
    model, data, training, _ = settings
    with torch.device("meta"):
        backbone, head = build_backbone_and_head(model.model_type, build_config(model, data.global_crop_size))
        network = MultiCropNetwork(backbone, head, training.register_bottleneck_weight > 0)
    images = training.batch_size // (num_processes * training.gradient_accumulation_steps)
    views_px = [data.global_crop_size] * 2 + [data.local_crop_size] * data.num_local_crops
    kept_gib = saved_bytes(network, views_px, images) / GIB
    # Weights, gradients and both moments of AdamW of the student, and the teacher's weights, in float32.
    states_gib = 4 * 5 * count(network) / GIB
    lines = [
        yaml.safe_dump(flat(settings), sort_keys=False).rstrip(),
        "",
        f"parameters, in millions: {model.model_type} {count(network.backbone) / 1e6:.1f}, DINO head "
        f"{count(network.head) / 1e6:.1f}",
        f"memory of a process: {states_gib:.2f} GiB of weights, gradients, AdamW and teacher, and about {kept_gib:.2f} GiB "
        f"that the student keeps for the backward pass of {images} images in float32 (about half of it in bf16; much less with "
        "gradient_checkpointing, which is not estimated)",
        f"steps: {training.steps:,} of {training.batch_size} images on {num_processes} processes, "
        f"{training.steps * training.batch_size:,} images in all",
        *epochs(stream, training.steps * training.batch_size),
        *advice(num_rows(stream), settings),
        *decoded(stream),
    ]
    return "\n".join(lines)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def saved_bytes(network: MultiCropNetwork, views_px: list[int], images: int) -> int:
    """Bytes that autograd keeps of one student pass over `images` images, without computing it; sides of their views."""
    views = [torch.empty(images, side_px, side_px, 3, dtype=torch.uint8, device="meta") for side_px in views_px]
    return kept_bytes(network, views)


def kept_bytes(network: torch.nn.Module, inputs: Any) -> int:
    """Bytes that autograd keeps of one pass of a network, all on the meta device, so that nothing is computed."""
    kept: dict[int, int] = {}
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network.train()(inputs)
        del outputs
    return sum(kept.values())


def epochs(stream: ViewStream, images: int) -> Iterator[str]:
    """How often a run of so many images goes through each data set."""
    for source, share in zip(stream.sources, stream.probabilities.tolist(), strict=True):
        which = f" of {source.name}, which gives {100 * share:.1f} % of all" if len(stream.sources) > 1 else ""
        rows = rows_of(source)
        yield (
            f"images of an epoch{which}: {rows:,}, so {images * share / rows:.1f} epochs"
            if rows
            else f"images of an epoch{which}: not told by the data set"
        )


def num_rows(stream: ViewStream) -> int | None:
    """Images of all data sets together, if each tells."""
    rows = [rows_of(source) for source in stream.sources]
    return sum(filter(None, rows)) if all(rows) else None


def rows_of(source: Source) -> int | None:
    """Images of a data set, if it tells."""
    splits, split = source.rows.info.splits, source.rows.split
    name = str(split) if split is not None else None
    return splits[name].num_examples or None if splits and name in splits else None


def decoded(stream: ViewStream) -> Iterator[str]:
    for number, sample in enumerate(islice(stream, IMAGES_TO_DECODE), 1):
        shapes = sorted({f"{view.shape[0]} x {view.shape[1]}" for view in sample.views})
        yield from (f"broken image: {name}" for name in sample.broken)
        yield f"image {number}: {len(sample.views)} views of {' and '.join(shapes)} px"
