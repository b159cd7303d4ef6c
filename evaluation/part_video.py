"""Registers becoming parts: the part maps of the same images by one model after the other, as an animation."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.segmenters import ImageBatch, load_rats, rats_segmenter
from modeling_rats.visualization import draw_part_map, grid, side_by_side

FRAME_MS, LAST_FRAME_MS = 500, 2500
COLUMNS = 4
LEAST_HEIGHT_PX = 160  # of an image in a frame


def draw_video(
    images: Sequence[Image.Image], models: Iterable[str], path: Path, image_size_px: int | None = None, **reading: Any
) -> None:
    """Draw a frame for each model, with the number of its training steps.

    Args:
        images: RGB.
        models: Folders or Hub names of models of one training, in order; a register has the same colour in all of them.
        path: The file, .gif or .webp; it is written to a temporary name and renamed.
        image_size_px: Side of the square input; each processor's own by default.
        reading: `part_layer` and `part_similarity`, if not each model's own.

    Raises:
        ValueError: If `path` names another format, or there is no model or no image.
    """
    if path.suffix.lower() not in (".gif", ".webp"):
        raise ValueError(f"The video {path} must be a .gif or .webp file, which browsers and Hub pages play.")
    if not images:
        raise ValueError("There is no image to draw a video of; name some.")
    larger = [_at_least(image) for image in images]
    frames = []
    for name in models:
        model, processor = load_rats(name, **reading)
        segment = rats_segmenter(model, processor, image_size_px)
        maps = [segment(ImageBatch([image], [(image.height, image.width)], []))[0] for image in images]
        drawn = [draw_part_map(shown, label_map) for shown, label_map in zip(larger, maps, strict=True)]
        frames.append(side_by_side([grid(drawn, min(COLUMNS, len(drawn)))], captions=[_caption(name)]))
    if not frames:
        raise ValueError("There is no model to draw a video of; name some, in the order of their training.")
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    frames[0].save(partial, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    os.replace(partial, path)


def _at_least(image: Image.Image) -> Image.Image:
    scale = max(1.0, LEAST_HEIGHT_PX / image.height)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _caption(model: str) -> str:
    record = Path(model) / "training.json"
    if record.is_file():
        told = json.loads(record.read_text(encoding="utf-8"))
        if "steps" in told:
            return f"{told['steps']:,} steps"
        if told.get("source", {}).get("epochs") is not None:  # converted from weights of others
            return f"{told['source']['epochs']:,} epochs"
    return Path(model).name
