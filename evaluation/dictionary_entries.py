"""Entries of a dictionary by the segments that they stand for: clusters, segments of a true label, or clicked ones.

S segments  D hidden  N registers
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evaluation.part_clusters import cluster_segments
from evaluation.part_samples import PartSample
from evaluation.segment_features import NO_LABEL, PartReader, Segments, joined, segments_of
from modeling_rats import PartEntry, RatsForPartSegmentation, read_image

EXAMPLES = 8  # of an entry
LEAST_PURITY = 0.5  # of a segment that stands for a true part


def entry_of(
    name: str, vector: torch.Tensor, segments: Segments, own: torch.Tensor, heads: torch.Tensor | None, **statistics: float
) -> PartEntry:
    """An entry by the segments it stands for.

    Args:
        name: Of the entry.
        vector: Its direction, (D,).
        segments: All that were found.
        own: Which of them it stands for, bool, (S,). Its threshold is the mean cosine of a segment's patches that tells them
            from all others with the highest IoU, both counted by their areas.
        heads: The attention head of each register, (N,); None if no head owns any.
        statistics: What else is known of it.
    """
    of_patches = segments.means @ vector  # (S,)
    area = segments.area.double()
    order = of_patches.argsort(descending=True, stable=True)
    hits, taken = (own * area)[order].cumsum(0), area[order].cumsum(0)
    iou = hits / (taken + (own * area).sum() - hits)
    best = int(iou.argmax())
    members = segments.chosen(own)
    alike = members.vectors @ vector
    shown = alike.argsort(descending=True, stable=True)[:EXAMPLES].tolist()
    return PartEntry(
        name=name,
        threshold=of_patches[order[best]].item(),
        support=len(alike),
        registers=_shares(members.register),
        heads={} if heads is None else _shares(heads[members.register]),
        examples=[
            {"image": int(members.image[place]), "box": members.box[place].tolist(), "score": alike[place].item()}
            for place in shown
        ],
        statistics={
            "images": float(len(members.image.unique())),
            "mean_cosine": alike.mean().item(),
            "mean_area": members.area.mean().item(),
            "iou_at_threshold": iou[best].item(),
            **statistics,
        },
    )


def from_clusters(
    segments: Segments,
    heads: torch.Tensor | None,
    candidates: Sequence[int],
    max_border: float,
    min_return: float,
    seed: int,
) -> tuple[list[PartEntry], torch.Tensor, dict[str, Any]]:
    """Entries "part 0", "part 1" ..., those of the most segments first; their vectors; and what was dropped and tried."""
    clusters = cluster_segments(segments, candidates, seed)
    kept = clusters.kept(max_border, min_return).nonzero().flatten().tolist()
    kept.sort(key=lambda place: -len(clusters.members[place]))
    entries = [
        entry_of(
            f"part {number}",
            clusters.vectors[place],
            segments,
            _marked(clusters.members[place], len(segments.image)),
            heads,
            returned=clusters.returned[place].item(),
            border=clusters.border[place].item(),
        )
        for number, place in enumerate(kept)
    ]
    told = {
        "clusters": len(clusters.members),
        "dropped_as_background": int((clusters.border > max_border).sum()),
        "dropped_as_unstable": int((clusters.returned < min_return).sum()),
        "mean_cosine_of_held_out_segments": {str(number): value for number, value in clusters.held_out.items()},
    }
    return entries, clusters.vectors[kept], told


def from_labels(
    segments: Segments, names: Mapping[int, str], heads: torch.Tensor | None
) -> tuple[list[PartEntry], torch.Tensor, dict[str, Any]]:
    """An entry for each named label: the mean direction of the segments of which it has most pixels."""
    entries, vectors, without = [], [], []
    for label, name in names.items():
        own = (segments.label == label) & (segments.purity >= LEAST_PURITY)
        if not own.any():
            without.append(name)
            continue
        mean = segments.vectors[own].mean(dim=0)
        vectors.append(mean / mean.norm())
        entries.append(entry_of(name, vectors[-1], segments, own, heads))
    if not entries:
        raise ValueError(
            "No segment has one label in most of its pixels; take more images, or a model whose parts are smaller."
        )
    return entries, torch.stack(vectors), {"labels_without_segments": without}


def read_clicks(path: Path, reader: PartReader) -> tuple[Segments, dict[int, str]]:
    """The segments of the images that were clicked at, with the number of their name as label, and the names.

    The place of an image among those of the clicks is its number. Segments that nobody clicked at are no part's.

    Raises:
        ValueError: If the file holds no clicks, or one lies outside of its image.
    """
    what = 'a list of {"image": text, "x": number, "y": number, "name": text}'
    clicks = read_json_of(path, list, what)
    for click in clicks:
        kinds = {"image": str, "name": str, "x": int | float, "y": int | float}
        if not isinstance(click, dict) or not all(isinstance(click.get(key), kind) for key, kind in kinds.items()):
            raise ValueError(f"{path} holds {click!r}; it must be {what}.")
    images = list(dict.fromkeys(click["image"] for click in clicks))
    names = list(dict.fromkeys(click["name"] for click in clicks))
    found = []
    for index, file in enumerate(images):
        image = read_image(str(path.parent / file))
        (read,) = reader.read([PartSample(image)])
        rows, columns = read.part_map.shape
        segments = segments_of(read, PartSample(image), index)
        label = torch.full_like(segments.label, NO_LABEL)
        for click in (click for click in clicks if click["image"] == file):
            x, y = click["x"], click["y"]
            if not (0 <= x < image.width and 0 <= y < image.height):
                size = f"{image.width} x {image.height}"
                raise ValueError(f"{path} has a click at x={x}, y={y} of {file}, which is {size} pixels.")
            register = read.part_map[int(y * rows / image.height), int(x * columns / image.width)]
            label[segments.register == register] = names.index(click["name"])
        found.append(segments._replace(label=label, purity=torch.ones_like(segments.purity)))
    if not found:
        raise ValueError(f"{path} holds no clicks; add some.")
    return joined(found), dict(enumerate(names))


def read_json_of(path: Path, kind: type, what: str) -> Any:
    """A JSON file that holds a value of a kind.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else; `what` says in words what it must be.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); it must be {what}.") from error
    if not isinstance(told, kind):
        raise ValueError(f"{path} holds a {type(told).__name__}; it must be {what}.")
    return told


def register_heads(model: RatsForPartSegmentation) -> torch.Tensor | None:
    """The attention head that owns each register, int64, (N,); None if no head owns any."""
    heads = model._register_heads(torch.zeros(1))  # as its outputs have them, for a batch of one
    return None if heads is None else heads[0]


def _marked(places: torch.Tensor, number: int) -> torch.Tensor:
    """A mask of these places, bool, (number,)."""
    mask = torch.zeros(number, dtype=torch.bool)
    mask[places] = True
    return mask


def _shares(numbers: torch.Tensor) -> dict[int, float]:
    """How often each number occurs, as shares, the most frequent first."""
    counts = Counter(numbers.tolist())
    return {number: count / len(numbers) for number, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}
