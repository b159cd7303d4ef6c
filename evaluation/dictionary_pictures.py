"""Pictures of a dictionary: its catalogue, entries found in images, transfer between categories, a tree of its entries."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.cluster.hierarchy import dendrogram, linkage

from evaluation.part_samples import PartRow
from modeling_rats import PartDictionary
from modeling_rats.register_colors import register_colors
from modeling_rats.visualization import draw_entry, grid, side_by_side

THUMBNAIL_PX = 96
MARGIN = 0.5  # around a box, as a share of its longer side


def read_examples(rows: Iterable[PartRow], wanted: Collection[int]) -> dict[int, Image.Image]:
    """The images at these places of a data set; others are not decoded."""
    last = max(wanted, default=-1)
    images = {}
    for row in rows:
        if row.index > last:
            break
        if row.index in wanted:
            images[row.index] = row.decode().image
    return images


def draw_catalogue(dictionary: PartDictionary, images: Mapping[int, Image.Image], entries: int = 48) -> Image.Image:
    """A strip for each entry: where it is in the images that show it best, cut out around the part.

    Args:
        dictionary: With its model (`with_model`); the first entries are drawn.
        images: By the places that the entries' examples name; examples of others are left out.
        entries: The most entries.
    """
    strips = []
    for number, entry in enumerate(list(dictionary)[:entries]):
        examples = [example for example in entry.examples if example["image"] in images]
        cut = [
            _cut_out(_draw(dictionary, entry.name, entry.threshold, images[one["image"]], number), one["box"])
            for one in examples
        ]
        if cut:
            strips.append(side_by_side(cut, [f"{entry.name} ({entry.support})", *[""] * (len(cut) - 1)]))
    return grid(strips or [Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), "white")], columns=2)


def draw_found(
    dictionary: PartDictionary, entries: Mapping[str, tuple[str, float]], images: Sequence[Image.Image]
) -> Image.Image:
    """The images in a row, and below them a row for each entry.

    Args:
        dictionary: With its model.
        entries: Name of the entry, and the threshold about which its colour begins, by what is written beside its row.
        images: RGB.
    """
    small = [image.resize((max(1, image.width * THUMBNAIL_PX // image.height), THUMBNAIL_PX)) for image in images]
    rows = [side_by_side(small, ["image", *[""] * (len(small) - 1)])]
    for number, (told, (name, threshold)) in enumerate(entries.items()):
        drawn = [_draw(dictionary, name, threshold, image, number) for image in images]
        drawn = [one.resize(thumbnail.size) for one, thumbnail in zip(drawn, small, strict=True)]
        rows.append(side_by_side(drawn, [told, *[""] * (len(drawn) - 1)]))
    return grid(rows, columns=1)


def draw_transfer(part: str, categories: Sequence[str], iou: np.ndarray, path: Path) -> None:
    """A table in colours: the entry of the row's category finds the part in the column's, IoU in percent."""
    figure = Figure(figsize=(1.8 + 0.6 * len(categories), 1.5 + 0.5 * len(categories)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(100 * iou, cmap="viridis", vmin=0, vmax=max(1.0, float(100 * np.nanmax(iou))))
    for (row, column), value in np.ndenumerate(iou):
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color="white", fontsize=8)
    axes.set_xticks(range(len(categories)), categories, rotation=45, ha="right")
    axes.set_yticks(range(len(categories)), categories)
    axes.set(title=f"{part}: entry of the row, images of the column", xlabel="found in", ylabel="chosen in")
    figure.savefig(path, dpi=110)


def draw_tree(vectors: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A dendrogram of entries by the cosine of their directions, average linkage."""
    if len(names) < 2:
        return
    figure = Figure(figsize=(7, 1.2 + 0.17 * len(names)), layout="constrained")
    axes = figure.subplots()
    links = linkage(vectors, method="average", metric="cosine")
    dendrogram(links, labels=list(names), orientation="right", leaf_font_size=7, ax=axes)
    axes.set(xlabel="1 - cosine")
    figure.savefig(path, dpi=110)


def _draw(dictionary: PartDictionary, name: str, threshold: float, image: Image.Image, color: int) -> Image.Image:
    """An image with the places that are like an entry in colour: from a little below the threshold to 1."""
    return draw_entry(image, dictionary.localize(image, name), threshold, register_colors(color + 1)[color].tolist())


def _cut_out(image: Image.Image, box: Iterable[float]) -> Image.Image:
    """A square around a box (shares of width and height) as a thumbnail."""
    x0, y0, x1, y1 = (side * length for side, length in zip(box, (*image.size, *image.size), strict=True))
    half = min(max(x1 - x0, y1 - y0) * (0.5 + MARGIN), max(image.size) / 2)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    area = (x - half, y - half, x + half, y + half)
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    return image.transform(size, Image.Transform.EXTENT, area, Image.Resampling.BILINEAR, fillcolor="white")
