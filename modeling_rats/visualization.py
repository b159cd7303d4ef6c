# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Pictures of part maps, with colours that belong to a register: the same register looks the same everywhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .part_maps import pixel_to_patch, upsample
from .register_colors import register_colors

BORDER_OPACITY = 0.6
STRONGEST_OPACITY, DIMMING = 0.85, 0.7  # of a similarity's colour, and of the grey image below it
ENTRY_MARGIN = 0.3  # below an entry's threshold, of what is above it
LEAST_NAME_PX, MOST_NAME_PX = 6, 16  # of the names beside a table
GAP_PX = 4
THUMBNAIL_HEIGHT_PX = 96
CLAIMS_NONE = -1.0  # of a register that claims no patch, as `similarities_to_claimed_patches` gives it
CAPTION_HEIGHT_PX = 16
LABEL_SHARE, LEAST_LABEL_PX = 0.045, 11  # height of what is written on a segment, of the picture's shorter side
LABEL_STROKE_PX = 2


def draw_part_map(
    image: Image.Image,
    segmentation: np.ndarray | torch.Tensor,
    alpha: float = 0.6,
    labels: Mapping[int, str] | None = None,
) -> Image.Image:
    """Lay a part map over its image, with thin white borders between segments.

    Args:
        image: any PIL image; the picture has its size.
        segmentation: (height, width) integers, the register of each pixel; negative ids are unassigned and stay
            as they are. Another size than the image's is brought to it (nearest neighbour).
        alpha: opacity of the colours, from 0 (the image alone) to 1 (the colours alone).
        labels: what to write on a register's segment, so that it can be told without its colour.

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
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    for register, text in (labels or {}).items():
        _write_on(picture, segments == register, text)
    return picture


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


def draw_entry(image: Image.Image, heat: np.ndarray | torch.Tensor, threshold: float, color: Sequence[int]) -> Image.Image:
    """Lay the similarities to a dictionary's entry over their image: its colour begins a little below the entry's threshold.

    Args:
        image: any PIL image; the picture has its size.
        heat: (rows, columns) or (height, width), as `PartDictionary.localize` gives it.
        threshold: of the entry.
        color: RGB, 0 to 255.

    Returns:
        The RGB picture.
    """
    low = threshold - ENTRY_MARGIN * (1 - threshold)
    return draw_similarity(image, heat, color, low, max(1.0, low + 1e-6))


def draw_matrix(values: np.ndarray | torch.Tensor, names: Sequence[str], side_px: int = 320) -> Image.Image:
    """Draw a square table of shares from 0 (white) to 1 (black), such as the map of communicate: rows ask, columns are read.

    Args:
        values: (n, n), in [0, 1].
        names: Of rows and columns.
        side_px: Of the table without its names.

    Returns:
        The RGB picture.

    Raises:
        ValueError: if the table is not square, or has not as many names as rows.
    """
    table = torch.as_tensor(values).detach().float().cpu()
    if table.shape != (len(names), len(names)):
        raise ValueError(f"The table has shape {tuple(table.shape)}; it must be square, with a name a row: {len(names)}.")
    grey = Image.fromarray((255 * (1 - table.clamp(0, 1))).round().to(torch.uint8).numpy())
    font = ImageFont.load_default(size=min(MOST_NAME_PX, max(LEAST_NAME_PX, side_px // len(names) - 2)))
    margin = round(max(font.getlength(name) for name in names)) + 2 * GAP_PX
    picture = Image.new("RGB", (margin + side_px, margin + side_px), "white")
    picture.paste(grey.resize((side_px, side_px), Image.Resampling.NEAREST), (margin, margin))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((margin - 1, margin - 1, margin + side_px - 1, margin + side_px - 1), outline="grey")
    for place, name in enumerate(names):
        centre = margin + (place + 0.5) * side_px / len(names)
        draw.text((margin - GAP_PX, centre), name, fill="black", font=font, anchor="rm")
        draw.text((centre, margin - GAP_PX), name, fill="black", font=font, anchor="mb")
    return picture


def draw_registers(
    images: Sequence[Image.Image], similarities: Sequence[torch.Tensor], registers: Sequence[int]
) -> Image.Image:
    """Draw where each register is similar to each image's patches: does it mean the same part everywhere?

    Args:
        images: RGB; they make the first row.
        similarities: Of each image, (N, rows, columns).
        registers: Those to draw, a row each; in one row what is bright in one image is as similar as what is bright in another
            (see `similarity_range`).

    Returns:
        The RGB picture.
    """
    thumbnails = [thumbnail(image) for image in images]
    colors = register_colors(len(similarities[0]))
    rows = [side_by_side(thumbnails, captions=["image", *[""] * (len(images) - 1)])]
    for register in registers:
        maps = [of_image[register] for of_image in similarities]  # (rows, columns) each
        low, high = similarity_range(maps)
        drawn = [
            draw_similarity(image, one, colors[register].tolist(), low, high)
            for image, one in zip(thumbnails, maps, strict=True)
        ]
        rows.append(side_by_side(drawn, captions=[f"register {register}", *[""] * (len(images) - 1)]))
    return grid(rows, columns=1)


def similarity_range(maps: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Where the colour of one register begins and where it is strongest: its mean and its maximum over all images.

    Images in which it claims no patch do not count, and stay dark.

    Args:
        maps: The register's similarities in each image, (rows, columns) each.
    """
    counted = torch.cat([one.flatten() for one in maps if (one > CLAIMS_NONE).any()] or [torch.zeros(1)])
    low = counted.mean().item()
    return low, max(counted.max().item(), low + 1e-6)


def thumbnail(image: Image.Image) -> Image.Image:
    """The image at the height of `THUMBNAIL_HEIGHT_PX`."""
    return image.resize((max(1, image.width * THUMBNAIL_HEIGHT_PX // image.height), THUMBNAIL_HEIGHT_PX))


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


def _write_on(picture: Image.Image, segment: np.ndarray, text: str) -> None:
    """Write into a segment, (height, width) bool, around that pixel of it that is nearest to its centre."""
    y, x = segment.nonzero()
    if not len(y):
        return
    inside = np.hypot(y - y.mean(), x - x.mean()).argmin()
    place = np.array([x[inside], y[inside]])
    draw = ImageDraw.Draw(picture)
    style: dict[str, Any] = {"anchor": "mm", "stroke_width": LABEL_STROKE_PX}
    style["font"] = ImageFont.load_default(size=max(LEAST_LABEL_PX, round(LABEL_SHARE * min(picture.size))))
    box = np.array(draw.textbbox(tuple(place), text, **style))
    place += np.maximum(0, np.ceil(-box[:2])).astype(int)  # whole on the picture, however near its edge the segment lies
    place -= np.maximum(0, np.ceil(box[2:] - picture.size)).astype(int)
    draw.text(tuple(place), text, fill="white", stroke_fill="black", **style)


def _fit_caption(text: str, width_px: int) -> tuple[str, ImageFont.ImageFont | ImageFont.FreeTypeFont]:
    """Shorten a caption until it fits above its panel, so that captions never run into one another."""
    font = ImageFont.load_default(size=CAPTION_HEIGHT_PX - 5)
    while len(text) > 1 and font.getlength(text) > width_px - 2:
        text = text[:-2].rstrip() + "…"
    return text, font
