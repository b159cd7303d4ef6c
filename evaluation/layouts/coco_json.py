"""The index of a COCO-style JSON file: images, annotations and categories, each with ids that must fit together."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

Entry = dict[str, Any]


class CocoIndex(NamedTuple):
    """What a COCO-style JSON file holds.

    Attributes:
        path: The file, for messages.
        images: Image id -> entry, in order of the ids.
        categories: Category id -> entry, in order of the ids.
        annotations: The annotations in the file's order; their image ids are known ones.
    """

    path: Path
    images: dict[int, Entry]
    categories: dict[int, Entry]
    annotations: list[Entry]


def read_coco_json(path: Path, image_keys: Iterable[str], annotation_keys: Iterable[str]) -> CocoIndex:
    """Read and check the index.

    Args:
        path: The JSON file.
        image_keys: What each image must have, besides `id` and `file_name`.
        annotation_keys: What each annotation must have, besides `image_id`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such JSON, an id occurs twice, or an annotation is of an image that is not listed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); unpack the archive again.") from error
    for kind in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(kind), list):
            raise ValueError(
                f"{path} has no list {kind!r}; a COCO-style file holds the lists images, annotations and categories. Name "
                "the published annotation file."
            )
    images = _by_id(path, content["images"], "images", ("file_name", *image_keys))
    categories = _by_id(path, content["categories"], "categories", ("name",))
    check_keys(path, content["annotations"], "annotations", ("image_id", *annotation_keys))
    dangling = [entry["image_id"] for entry in content["annotations"] if entry["image_id"] not in images]
    if dangling:
        raise ValueError(
            f"{path} has {len(dangling)} annotations of images that it does not list, the first of image_id={dangling[0]}; "
            "each must belong to an entry of images. Use images and annotations of the same split."
        )
    return CocoIndex(path, images, categories, content["annotations"])


def check_categories(index: CocoIndex, entries: Iterable[Entry], subject: str) -> None:
    """Refuse entries whose category is not listed.

    Raises:
        ValueError: If there is one.
    """
    for entry in entries:
        if entry.get("category_id") not in index.categories:
            raise ValueError(
                f"{index.path}: {subject} has category_id={entry.get('category_id')}, which its categories do not list; they "
                f"have {len(index.categories)} ids. Use the published annotation file."
            )


def check_unique(path: Path, ids: Iterable[int], kind: str) -> None:
    """Refuse ids that occur twice.

    Raises:
        ValueError: If one does.
    """
    seen: set[int] = set()
    for number in ids:
        if number in seen:
            raise ValueError(f"{path}: the id {number} occurs twice in {kind}; ids must differ. Use the published file.")
        seen.add(number)


def check_keys(path: Path, entries: list[Entry], kind: str, keys: tuple[str, ...]) -> None:
    """Refuse entries that lack one of the keys.

    Raises:
        ValueError: If there is one.
    """
    for place, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise ValueError(
                f"{path}: entry {place} of {kind} has no {', '.join(missing)}; a COCO-style file gives "
                f"{', '.join(keys)} for each. Use the published annotation file."
            )


def _by_id(path: Path, entries: list[Entry], kind: str, keys: tuple[str, ...]) -> dict[int, Entry]:
    check_keys(path, entries, kind, ("id", *keys))
    check_unique(path, (entry["id"] for entry in entries), kind)
    return {entry["id"]: entry for entry in sorted(entries, key=lambda entry: entry["id"])}
