# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Pictures of part maps, with colours that belong to a register: the same register looks the same everywhere."""

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .part_maps import pixel_to_patch, upsample

GOLDEN_ANGLE = 0.6180339887498949  # of a full turn: successive hues never come close to one another
SATURATIONS_AND_VALUES = ((0.85, 0.95), (0.50, 0.70), (0.85, 0.55), (0.40, 1.00), (0.90, 0.40), (0.60, 0.90))
HUES_RECUR_AFTER = 144  # a Fibonacci number, where golden-angle hues nearly repeat, and a multiple of our six tones
BORDER_OPACITY = 0.6
STRONGEST_OPACITY, DIMMING = 0.85, 0.7  # of a similarity's colour, and of the grey image below it
GAP_PX = 4
CAPTION_HEIGHT_PX = 16


def register_colors(num_registers: int) -> np.ndarray:
    """Return one RGB colour a register, (num_registers, 3) uint8.

    Colour i depends on i alone, never on the number of registers: hues advance by the golden angle and lightness
    alternates, so registers with near indices look different.
    """
    colors = np.empty((num_registers, 3), dtype=np.uint8)
    for register in range(num_registers):
        tone = (register + 3 * (register // HUES_RECUR_AFTER)) % len(SATURATIONS_AND_VALUES)
        saturation, value = SATURATIONS_AND_VALUES[tone]
        rgb = colorsys.hsv_to_rgb(register * GOLDEN_ANGLE % 1.0, saturation, value)
        colors[register] = [round(255 * channel) for channel in rgb]
    return colors


def draw_part_map(image: Image.Image, segmentation: np.ndarray | torch.Tensor, alpha: float = 0.6) -> Image.Image:
    """Lay a part map over its image, with thin white borders between segments.

    Args:
        image: any PIL image; the picture has its size.
        segmentation: (height, width) integers, the register of each pixel; negative ids are unassigned and stay
            as they are. Another size than the image's is brought to it (nearest neighbour).
        alpha: opacity of the colours, from 0 (the image alone) to 1 (the colours alone).

    Returns:
        The RGB picture.

    Raises:
        ValueError: if the segmentation is not (height, width) or not integers, or alpha is out of range.
    """
    segments = segmentation.detach().cpu().numpy() if isinstance(segmentation, torch.Tensor) else segmentation
    segments = np.asarray(segments)
    if segments.ndim != 2 or segments.dtype.kind not in "uib":
        raise ValueError(
            f"The segmentation is {segments.dtype} of shape {segments.shape}; it must be integers (height, width), "
            'such as "segmentation" of one result of post_process_part_segmentation.'
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha={alpha} must lie between 0 (image alone) and 1 (colours alone); 0.6 shows both.")
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)  # (height, width, 3)
    segments = _resize_nearest(segments.astype(np.int64), pixels.shape[:2])
    assigned = segments >= 0
    if assigned.any():
        colors = register_colors(int(segments.max()) + 1)
        pixels[assigned] = (1.0 - alpha) * pixels[assigned] + alpha * colors[segments[assigned]]
    borders = _borders(segments) & assigned
    pixels[borders] = (1.0 - BORDER_OPACITY) * pixels[borders] + BORDER_OPACITY * 255
    return Image.fromarray(pixels.round().astype(np.uint8))


def draw_similarity(
    image: Image.Image, similarity: np.ndarray | torch.Tensor, color: Sequence[int], low: float, high: float
) -> Image.Image:
    """Lay one register's similarities over its image, in shades from the dimmed grey image to the register's colour.

    Args:
        image: any PIL image; the picture has its size.
        similarity: (rows, columns), of the patches; interpolated bilinearly.
        color: RGB of the register, 0 to 255, such as a row of `register_colors`.
        low: similarity at and below which the image alone is seen.
        high: similarity at and above which the colour is strongest.

    Returns:
        The RGB picture.

    Raises:
        ValueError: if the similarity is not (rows, columns), or `high` is not above `low`.
    """
    values = torch.as_tensor(similarity).detach().float().cpu()
    if values.ndim != 2:
        raise ValueError(f"The similarity has shape {tuple(values.shape)}; it must be (rows, columns), one register's.")
    if not low < high:
        raise ValueError(f"low={low} must be less than high={high}.")
    grey = np.asarray(image.convert("L")).astype(np.float32)[..., None]  # (height, width, 1)
    shade = upsample(values[None], grey.shape[:2])[0].numpy()[..., None]
    opacity = STRONGEST_OPACITY * ((shade - low) / (high - low)).clip(0, 1)
    pixels = (1 - opacity) * DIMMING * grey + opacity * np.asarray(color, dtype=np.float32)
    return Image.fromarray(pixels.round().astype(np.uint8))


def side_by_side(images: Sequence[Image.Image], captions: Sequence[str] | None = None) -> Image.Image:
    """Put pictures in one row on white, scaled to the height of the first, each below its caption if there are any.

    Raises:
        ValueError: if there is no picture, or not as many captions as pictures.
    """
    if not images:
        raise ValueError("side_by_side got no images; it needs at least one.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"side_by_side got {len(captions)} captions for {len(images)} images; give one to each.")
    height = images[0].height
    panels = [image.convert("RGB") for image in images]
    panels = [
        panel if panel.height == height else panel.resize((max(1, round(panel.width * height / panel.height)), height))
        for panel in panels
    ]
    top = 0 if captions is None else CAPTION_HEIGHT_PX
    width = sum(panel.width for panel in panels) + GAP_PX * (len(panels) - 1)
    picture = Image.new("RGB", (width, top + height), "white")
    draw, left = ImageDraw.Draw(picture), 0
    for index, panel in enumerate(panels):
        if captions is not None:
            text, font = _fit_caption(captions[index], panel.width)
            draw.text((left + 1, 1), text, fill="black", font=font)
        picture.paste(panel, (left, top))
        left += panel.width + GAP_PX
    return picture


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Put pictures in rows of `columns`, on white, from left to right and top to bottom.

    Raises:
        ValueError: if there is no picture.
    """
    if not images:
        raise ValueError("grid got no images; it needs at least one.")
    rows = [side_by_side(images[start : start + columns]) for start in range(0, len(images), columns)]
    picture = Image.new("RGB", (max(row.width for row in rows), sum(row.height + GAP_PX for row in rows) - GAP_PX), "white")
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height + GAP_PX
    return picture


def _resize_nearest(segments: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize (height, width) ids to `size` by taking the nearest, so that no new ids arise."""
    if segments.shape == tuple(size):
        return segments
    rows = pixel_to_patch(size[0], segments.shape[0]).numpy()
    columns = pixel_to_patch(size[1], segments.shape[1]).numpy()
    return segments[rows[:, None], columns]


def _borders(segments: np.ndarray) -> np.ndarray:
    """Mark, one pixel wide, where a pixel's segment differs from that of its right or lower neighbour."""
    borders = np.zeros(segments.shape, dtype=bool)
    borders[:, :-1] |= segments[:, :-1] != segments[:, 1:]
    borders[:-1] |= segments[:-1] != segments[1:]
    return borders


def _fit_caption(text: str, width_px: int) -> tuple[str, ImageFont.ImageFont | ImageFont.FreeTypeFont]:
    """Shorten a caption until it fits above its panel, so that captions never run into one another."""
    font = ImageFont.load_default(size=CAPTION_HEIGHT_PX - 5)
    while len(text) > 1 and font.getlength(text) > width_px - 2:
        text = text[:-2].rstrip() + "…"
    return text, font
