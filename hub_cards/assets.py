"""The pictures of a model folder: which there are, where they go, and which are outdated."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

MAX_PICTURES, MAX_INPUTS, MAX_FAILURES = 4, 2, 2
# How their names in a model folder begin.
CURVES, EFFICIENCY = "assets/curves", "assets/efficiency"
PICTURE, INPUT, FAILURE = "assets/parts_", "assets/input_", "assets/failure_"
GENERATED = re.compile(rf"({CURVES}|{EFFICIENCY})\.\w+|({PICTURE}|{INPUT}|{FAILURE})\d+\.\w+")


@dataclass(frozen=True)
class Assets:
    """The pictures that a card shows.

    Attributes:
        curves: Training curves.
        pictures: Images with their part maps.
        inputs: The first of these images alone.
        failures: Images of the lowest scores, with their part maps.
        efficiency: Time and memory against the image's size.
    """

    curves: Path | None = None
    pictures: tuple[Path, ...] = ()
    inputs: tuple[Path, ...] = ()
    failures: tuple[Path, ...] = ()
    efficiency: Path | None = None

    def places(self) -> dict[str, Path]:
        """Where each goes in the model folder, and where it comes from; a file's own name is its owner's business."""
        single = {CURVES: self.curves, EFFICIENCY: self.efficiency}
        several = {PICTURE: self.pictures, INPUT: self.inputs, FAILURE: self.failures}
        return {f"{place}{source.suffix}": source for place, source in single.items() if source is not None} | {
            f"{place}{index}{source.suffix}": source
            for place, sources in several.items()
            for index, source in enumerate(sources)
        }


def find_assets(
    curves: str | Path | None = None, pictures: str | Path | None = None, efficiency: str | Path | None = None
) -> Assets:
    """Find the pictures to show.

    Args:
        curves: Picture of the training curves.
        pictures: Folder that evaluation.part_segmentation or evaluation.visualize drew into; its first pictures are taken, and
            of the former those of the lowest scores.
        efficiency: Picture of evaluation.efficiency.

    Raises:
        FileNotFoundError: If one of them does not exist, or the folder holds no pictures.
    """
    for option, picture in (("curves", curves), ("efficiency", efficiency)):
        if picture is not None and not Path(picture).is_file():
            raise FileNotFoundError(
                f"Picture {picture} does not exist; --{option} must be a file. Check the path, or leave it out."
            )
    drawn = sorted(Path(pictures).glob("*.png")) if pictures is not None else []
    if pictures is not None and not drawn:
        raise FileNotFoundError(
            f"Folder {pictures} holds no PNG pictures; --pictures must be a folder that evaluation.part_segmentation or "
            "evaluation.visualize drew into. Check the path, or leave it out."
        )
    shown = drawn[:MAX_PICTURES]
    alone = [path.parent / "inputs" / path.name for path in shown[:MAX_INPUTS]]
    worst = sorted(Path(pictures).glob("worst/*.png")) if pictures is not None else []
    return Assets(
        curves=None if curves is None else Path(curves),
        pictures=tuple(shown),
        inputs=tuple(path for path in alone if path.is_file()),
        failures=tuple(worst[:MAX_FAILURES]),
        efficiency=None if efficiency is None else Path(efficiency),
    )


def kind_of(place: str) -> str | None:
    """How the name of a generated picture begins; None for what others have put into a model folder."""
    match = GENERATED.fullmatch(place)
    return match and (match[1] or match[2])


def outdated_pictures(there: Collection[str], new: Collection[str]) -> set[str]:
    """Of the pictures that are there those of a kind of which there are new ones; by their places."""
    kinds = {kind_of(place) for place in new} - {None}
    return {place for place in there if kind_of(place) in kinds and place not in new}
