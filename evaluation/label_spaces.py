"""What the labels of a data set are called, how many there are, and which of them are things."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from evaluation.part_samples import read_label_names
from evaluation.segments import LabelSpace, StoredLabels, Task

LABEL_FILE = "label_names.json"
DEFAULT_IGNORE_LABEL = 255


@dataclass(frozen=True)
class LabelOptions:
    """What a user says of the labels; None leaves it to the data set.

    Attributes:
        ignore_label: Stored label of pixels that do not count.
        reduce_labels: Whether the stored 0 does not count either, and the others are one too high.
        label_names: Names of the labels as they come out, from 0.
        num_labels: How many come out.
        thing_labels: Those, as they come out of a panoptic data set, whose objects are counted one by one.
    """

    ignore_label: int | None = None
    reduce_labels: bool = False
    label_names: Sequence[str] | None = None
    num_labels: int | None = None
    thing_labels: Collection[int] | None = None


@dataclass(frozen=True)
class LabelFile:
    """A label_names.json: `label_names`, and `isthing` (0 or 1 a label) and `ignore_index` where it has them."""

    path: Path
    names: list[str]
    is_thing: list[int] | None
    ignore_label: int | None


def find_label_file(dataset: str) -> LabelFile | None:
    """The label_names.json in a local folder, or beside a local file.

    Raises:
        ValueError: If it holds something else.
    """
    place = Path(dataset).expanduser()
    path = (place if place.is_dir() else place.parent) / LABEL_FILE
    if not dataset or not place.exists() or not path.is_file():
        return None
    names = read_label_names(path)
    told = json.loads(path.read_text(encoding="utf-8"))
    told = told if isinstance(told, dict) else {}
    is_thing, ignore_label = told.get("isthing"), told.get("ignore_index")
    if is_thing is not None and (len(is_thing) != len(names) or not set(is_thing) <= {0, 1}):
        raise ValueError(f"{path} has isthing={is_thing}; it must have a 0 or 1 for each of its {len(names)} names. Mend it.")
    if not isinstance(ignore_label, int | None):
        raise ValueError(f"{path} has ignore_index={ignore_label!r}; it must be an integer or null. Mend it.")
    return LabelFile(path, names, is_thing, ignore_label)


def find_label_space(
    name: str, task: Task, feature: Any, file: LabelFile | None, options: LabelOptions
) -> tuple[LabelSpace, StoredLabels]:
    """The labels of a data set, from what is told first: options, the names of its feature, its label_names.json.

    Args:
        name: What errors call the data set.
        task: The task.
        feature: The feature of the column with the labels.
        file: Its label_names.json.
        options: What the user says.

    Raises:
        ValueError: If nothing tells how many labels there are or, of a panoptic data set, which are things; or if two
            contradict each other.
    """
    names, source = _stored_names(feature, file)
    if options.reduce_labels:
        names = names[1:]  # the name of what is ignored
    if options.label_names is not None:
        names, source = list(options.label_names), "label_names"
    if not names:
        if options.num_labels is None:
            raise ValueError(
                f"Nothing tells how many labels {name} has; they cannot be counted in one split, which may lack some. Give "
                f"num_labels or label_names, or put a {LABEL_FILE} beside it."
            )
        names, source = [f"label {label}" for label in range(options.num_labels)], "num_labels"
    if options.num_labels not in (None, len(names)):
        raise ValueError(
            f"num_labels={options.num_labels} was given, and {source} of {name} names {len(names)} labels; both must agree. "
            "Give label_names for all, or leave num_labels out."
        )
    ignore_label = options.ignore_label
    if ignore_label is None and file is not None:
        ignore_label = file.ignore_label
    if ignore_label is None and len(names) + int(options.reduce_labels) <= DEFAULT_IGNORE_LABEL:
        ignore_label = DEFAULT_IGNORE_LABEL
    stored = StoredLabels(len(names), ignore_label, options.reduce_labels)
    return LabelSpace(tuple(names), _things(name, task, len(names), file, options)), stored


def _stored_names(feature: Any, file: LabelFile | None) -> tuple[list[str], str]:
    """Names of the stored labels, from 0, and who tells them; none if nobody does."""
    while hasattr(feature, "feature"):  # lists, of lists
        feature = feature.feature
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names), "the column"
    return (list(file.names), str(file.path)) if file is not None else ([], "")


def _things(name: str, task: Task, num_labels: int, file: LabelFile | None, options: LabelOptions) -> frozenset[int]:
    """Labels whose objects are counted one by one."""
    if options.thing_labels is not None:
        outside = sorted(set(options.thing_labels) - set(range(num_labels)))
        if outside:
            raise ValueError(
                f"thing_labels has {outside[0]}; they must be among the labels of {name}, 0 to {num_labels - 1}. Leave it out."
            )
        return frozenset(options.thing_labels)
    is_thing = None if file is None or file.is_thing is None else file.is_thing[int(options.reduce_labels) :]
    if is_thing is not None and len(is_thing) == num_labels:
        return frozenset(label for label, thing in enumerate(is_thing) if thing)
    if task == "panoptic":
        raise ValueError(
            f"Nothing tells which labels of {name} are things, whose objects are counted one by one, and which are stuff. Give "
            f"thing_labels, or put a {LABEL_FILE} with isthing (0 or 1 a label) beside it."
        )
    return frozenset(range(num_labels))
