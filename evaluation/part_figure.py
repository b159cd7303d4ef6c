"""A figure for print: images, their parts, and where the registers are that take the most of them."""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from modeling_rats.image_parts import ImageParts
from modeling_rats.register_colors import register_colors
from modeling_rats.visualization import draw_part_map, draw_similarity, similarity_range

SUFFIXES = (".pdf", ".svg", ".png")
CELL_INCHES, DPI = 1.1, 300
GAP = 0.01  # inches around a picture, and its share between pictures
DRAWN_PX = 512  # shorter side at which a small image is drawn, so that borders of parts stay thin


def draw_figure(looked: Sequence[ImageParts], path: Path, registers: Sequence[int] | None = None, most: int = 5) -> None:
    """Draw a row of images, a row of their parts, and a row for each register; a register has one scale over all images.

    Args:
        looked: What the model sees in each image.
        path: The file: .pdf and .svg with text as text, or .png of 300 dpi. Written to a temporary name and renamed.
        registers: Those to draw; by default the `most` that own the most pixels of all images.

    Raises:
        ValueError: If `path` names another format, or there is no image.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"The figure {path} must be a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file.")
    if not looked:
        raise ValueError("There is no image to draw a figure of; name some.")
    maps = [parts.segment()["segmentation"].numpy() for parts in looked]
    chosen = _most_used(maps, most) if registers is None else list(registers)
    images = [_drawn_size(parts.image) for parts in looked]
    rows: list[tuple[str, list[Image.Image]]] = [("image", images)]
    rows.append(("parts", [draw_part_map(image, one) for image, one in zip(images, maps, strict=True)]))
    colors = register_colors(len(looked[0].similarities))
    for register in chosen:
        similarities = [parts.similarities[register] for parts in looked]
        low, high = similarity_range(similarities)
        color = colors[register].tolist()
        drawn = [draw_similarity(image, one, color, low, high) for image, one in zip(images, similarities, strict=True)]
        rows.append((f"register {register}", drawn))
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "font.size": 7}):
        layout = ConstrainedLayoutEngine(w_pad=GAP, h_pad=GAP, wspace=GAP, hspace=GAP)
        figure = Figure(figsize=(CELL_INCHES * len(images) + 0.3, CELL_INCHES * len(rows)), layout=layout)
        grid = figure.subplots(len(rows), len(images), squeeze=False)
        for (name, pictures), of_row in zip(rows, grid, strict=True):
            for picture, axes in zip(pictures, of_row, strict=True):
                axes.imshow(np.asarray(picture), interpolation="none")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            of_row[0].set_ylabel(name)
        partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        figure.savefig(partial, dpi=DPI)
    os.replace(partial, path)


def _most_used(maps: Sequence[np.ndarray], most: int) -> list[int]:
    """The registers that own the most pixels, each image counted alike, the most first."""
    shares = np.zeros(max(int(one.max()) for one in maps) + 1)
    for one in maps:
        shares += np.bincount(one[one >= 0], minlength=len(shares)) / one.size
    return [int(register) for register in np.argsort(-shares, kind="stable")[:most] if shares[register] > 0]


def _drawn_size(image: Image.Image) -> Image.Image:
    scale = max(1.0, DRAWN_PX / min(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
