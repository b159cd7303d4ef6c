"""What a run would be, without running it: `python training/pretrain.py RECIPE --dry_run`."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice

import torch
import yaml

from modeling_rats import RatsConfig, RatsForPreTraining
from training.arguments import Settings
from training.streaming import ViewStream

GIB = 1024**3
IMAGES_TO_DECODE = 8


def describe(settings: Settings, config: RatsConfig, stream: ViewStream, num_processes: int) -> str:
    """The resolved recipe, sizes, memory, length, and what the first images look like.

    Raises:
        RuntimeError: If the stream holds no image that can be read.
    """
    model, data, training = settings
    with torch.device("meta"):
        network = RatsForPreTraining(config)
    count = lambda module: sum(parameter.numel() for parameter in module.parameters())  # noqa: E731
    views = {data.global_crop_size: 2} | ({data.local_crop_size: data.num_local_crops} if data.num_local_crops else {})
    if data.local_crop_size == data.global_crop_size:
        views = {data.global_crop_size: 2 + data.num_local_crops}
    images = training.batch_size // num_processes
    kept_gib = saved_bytes(network, views, images) / GIB
    # Weights, gradients and both moments of AdamW of the student, and the teacher's weights, in float32.
    states_gib = 4 * 5 * count(network) / GIB
    images_per_epoch = num_rows(stream)
    lines = [
        yaml.safe_dump(asdict(model) | asdict(data) | asdict(training), sort_keys=False).rstrip(),
        "",
        f"parameters, in millions: RATS {count(network.rats) / 1e6:.1f}, DINO head {count(network.head) / 1e6:.1f}",
        f"memory of a process: {states_gib:.2f} GiB of weights, gradients, AdamW and teacher, and about {kept_gib:.2f} GiB "
        f"that the student keeps for the backward pass of {images} images in float32 (about half of it in bf16)",
        f"steps: {training.steps:,} of {training.batch_size} images on {num_processes} processes, "
        f"{training.steps * training.batch_size:,} images in all",
        f"images of an epoch: {images_per_epoch:,}, so {training.steps * training.batch_size / images_per_epoch:.1f} epochs"
        if images_per_epoch
        else "images of an epoch: not told by the data set",
        *decoded(stream),
    ]
    return "\n".join(lines)


def saved_bytes(network: RatsForPreTraining, views: dict[int, int], images: int) -> int:
    """Bytes that autograd keeps of one student pass over `images` images, without computing it: side in pixels -> views."""
    kept: dict[int, int] = {}
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = []
        for side_px, number in views.items():
            pixel_values = torch.empty(number * images, network.config.num_channels, side_px, side_px, device="meta")
            outputs.append(network.train()(pixel_values).logits)
        del outputs
    return sum(kept.values())


def num_rows(stream: ViewStream) -> int | None:
    """Rows of the split, if the data set tells."""
    splits, split = stream.rows.info.splits, stream.rows.split
    name = str(split) if split is not None else None
    return splits[name].num_examples or None if splits and name in splits else None


def decoded(stream: ViewStream) -> Iterator[str]:
    for sample in islice(stream, IMAGES_TO_DECODE):
        shapes = sorted({f"{view.shape[0]} x {view.shape[1]}" for view in sample.views})
        yield from (f"broken image: {name}" for name in sample.broken)
        yield f"image {sample.position[1]}: {len(sample.views)} views of {' and '.join(shapes)} px"
