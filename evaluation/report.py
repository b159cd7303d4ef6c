"""Merges records of evaluation.part_segmentation into one report: a table per data set, an overview, and curves.

    python -m evaluation.report results/*.json --output report

writes report.md, report.html and the pictures into the folder. `hub_cards.card --results` takes the same records. With
`--over_seeds` the runs of one experiment, such as `rats-seed0` and `rats-seed1`, become one row: mean and spread.
"""

import argparse
import json
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from evaluation.competitors import TOKEN_TITLES
from evaluation.records import short_name
from evaluation.scores import COLUMNS

SCORES = {name: title for name, title in COLUMNS.items() if name not in ("images", "segments_used")}
OVERVIEW = ("m2o_miou", "ari")  # the paper's
DRAWN = ("m2o_miou", "o2o_miou")
KEYS = ("scores", "competitors", "settings", "fingerprints", "protocol", "versions", "date", "command")
MARKERS = "os^DvPX*<>h"  # one more than there are colours, so that both recur together after 110 curves
SEED = re.compile(r"-seed\d+")


@dataclass(frozen=True)
class Row:
    """One competitor on one data set.

    Attributes:
        name: What it is, the same on every data set.
        curve: Rows of one curve differ in their number of segments only.
        scores: Score name -> percent, None where undefined; counts besides.
        details: Input size, weights and date of the record.
        spread: Score name -> sample standard deviation over seeds; empty for a single run.
    """

    name: str
    curve: str
    scores: Mapping[str, float | int | None]
    details: str
    spread: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """All that was scored on the same images.

    Attributes:
        title: Name, split and number of images.
        fingerprint: Of the images and masks.
        rows: As the records come.
    """

    title: str
    fingerprint: str
    rows: list[Row]

    @property
    def file(self) -> str:
        """Of its picture."""
        return "segments_" + re.sub(r"\W+", "_", self.title).strip("_") + ".png"


def read_record(path: str | Path) -> dict[str, Any]:
    """
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no record of evaluation.part_segmentation.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name records that evaluation.part_segmentation --output has written.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}); name a record of evaluation.part_segmentation.") from error
    missing = [key for key in KEYS if not isinstance(record, dict) or key not in record]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}; it must be a record that evaluation.part_segmentation has written. Leave it "
            "out, or score again."
        )
    return record


def merge(records: Sequence[Mapping[str, Any]]) -> list[DataSet]:
    """Put the rows of the same images together; a row that several records hold with the same scores is told once.

    Raises:
        ValueError: If records differ in their protocol, or hold different scores of the same thing.
    """
    data_sets: dict[str, DataSet] = {}
    protocols = {record["protocol"] for record in records}
    if len(protocols) > 1:
        raise ValueError(
            f"The records were made by {len(protocols)} protocols, so their scores cannot stand in one table; score all of "
            "them with the same version."
        )
    for record in records:
        key = record["fingerprints"]["data"]
        data_set = data_sets.setdefault(key, DataSet(_title_of(record), key, []))
        for row in _rows(record):
            same = next((other for other in data_set.rows if other.name == row.name), None)
            if same is None:
                data_set.rows.append(row)
            elif same.scores != row.scores:
                raise ValueError(
                    f'Two records hold different scores of "{row.name}" on {data_set.title} ({same.details}; {row.details}); '
                    "leave one of them out."
                )
    return list(data_sets.values())


def average_over_seeds(data_sets: Sequence[DataSet]) -> list[DataSet]:
    """Make one row of those whose names differ in the numbers of `-seed0`, `-seed1` ... alone: mean and spread."""
    averaged = []
    for data_set in data_sets:
        groups: dict[str, list[Row]] = {}
        for row in data_set.rows:
            groups.setdefault(SEED.sub("", row.name), []).append(row)
        rows = [_average(name, rows) for name, rows in groups.items()]
        averaged.append(DataSet(data_set.title, data_set.fingerprint, rows))
    return averaged


def _average(name: str, rows: Sequence[Row]) -> Row:
    values = {score: [row.scores.get(score) for row in rows] for score in rows[0].scores}
    spread = {
        score: statistics.stdev(known)
        for score, of_score in values.items()
        if len(known := [value for value in of_score if value is not None]) == len(rows) > 1
    }
    scores = {score: _mean(of_score) for score, of_score in values.items()}
    return Row(name, SEED.sub("", rows[0].curve), scores, f"{len(rows)} seeds; {rows[0].details}", spread)


def _title_of(record: Mapping[str, Any]) -> str:
    settings = record["settings"]
    name = settings.get("benchmark") or settings["dataset"]
    name = Path(name).resolve().name if os.path.exists(name) else name
    config = f" {settings['config']}" if settings.get("config") else ""
    return f"{name}{config}, {settings['split']}, {record['scores']['model']['images']} images"


def _rows(record: Mapping[str, Any]) -> list[Row]:
    settings = record["settings"]
    model = short_name(settings["model"])
    size = settings["image_size"]
    size = size if isinstance(size, int) else f"{size['width']} x {size['height']}"
    details = [f"{model} at {size} px"]
    details += [
        f"{name} {settings[name]}" for name in ("part_layer", "part_similarity", "seed") if settings.get(name) is not None
    ]
    details += [record["date"].split("T")[0]]
    names = {title: _name_of_row(record, title, model, size) for title in record["scores"]}
    followed = names[next(iter(record["scores"]))]  # whose number of segments others follow
    rows = []
    for title, scores in record["scores"].items():
        name, competitor = names[title], record["competitors"][title]
        amount = competitor["num_segments"]
        wanted = {None: "", "same": f", as many segments as {followed}"}.get(amount, f", {amount} segments")
        rows.append(Row(name + wanted, name, scores, ", ".join(details)))
    return rows


def _name_of_row(record: Mapping[str, Any], title: str, model: str, size: int | str) -> str:
    """What a row is, without its number of segments; of those that see the images at the input size with that size."""
    name = {"model": model, "untrained": f"{model}, untrained"}.get(title, title.replace("of the model", f"of {model}"))
    competitor = record["competitors"][title]
    if competitor["num_segments"] is not None:
        name, _ = name.rsplit(", ", 1)
    return f"{name} ({size} px)" if title in ("model", "untrained") or competitor["method"] in TOKEN_TITLES else name


def overview(data_sets: Sequence[DataSet]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table in the paper's form: a row a competitor, M2O and ARI per data set and their means."""
    names = dict.fromkeys(row.name for data_set in data_sets for row in data_set.rows)
    head = ["", *(f"{data_set.title}: {SCORES[score]}" for data_set in data_sets for score in OVERVIEW)]
    head += [f"mean {SCORES[score]}" for score in OVERVIEW]
    cells = []
    for name in names:
        found = [next((row.scores for row in data_set.rows if row.name == name), {}) for data_set in data_sets]
        values = [[scores.get(score) for scores in found] for score in OVERVIEW]
        means = [_mean(of_score) for of_score in values]
        flat = [of_score[place] for place in range(len(found)) for of_score in values]
        cells.append([name, *(_cell(value) for value in (*flat, *means))])
    return head, cells


def draw_segments(data_set: DataSet, picture: str | Path) -> None:
    """Draws M2O and O2O against the number of segments used, since M2O rises with it by itself."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(DRAWN)))
    curves: dict[str, list[Row]] = {}
    for row in data_set.rows:
        curves.setdefault(row.curve, []).append(row)
    for panel, score in zip(panels, DRAWN, strict=True):
        for place, (curve, rows) in enumerate(curves.items()):
            points = sorted((row.scores["segments_used"], row.scores[score]) for row in rows if row.scores[score] is not None)
            if points:
                marker = MARKERS[place % len(MARKERS)]
                panel.plot(*zip(*points, strict=True), label=curve, marker=marker, color=f"C{place % 10}")
        panel.set(xlabel="segments used, mean over images", ylabel=f"{SCORES[score]} mIoU, %")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.grid(alpha=0.3)
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize="small")
    figure.suptitle(data_set.title)
    _write_whole(Path(picture), partial(figure.savefig, format="png", dpi=150))


def write_report(records: Sequence[Mapping[str, Any]], folder: str | Path, over_seeds: bool = False) -> list[DataSet]:
    """Write report.md, report.html and a picture per data set; see `merge` for what is refused."""
    folder = Path(folder)
    data_sets = merge(records)
    if over_seeds:
        data_sets = average_over_seeds(data_sets)
    folder.mkdir(parents=True, exist_ok=True)
    for data_set in data_sets:
        draw_segments(data_set, folder / data_set.file)
    head, cells = overview(data_sets)
    content = {
        "data_sets": [
            {
                "title": data_set.title,
                "picture": data_set.file,
                "fingerprint": data_set.fingerprint,
                "head": ["", *(title for name, title in COLUMNS.items() if name != "images")],
                "cells": [
                    [row.name, *(_cell(row.scores[name], row.spread.get(name)) for name in COLUMNS if name != "images")]
                    for row in data_set.rows
                ],
            }
            for data_set in data_sets
        ],
        "overview": {"head": head, "cells": cells} if len(data_sets) > 1 else None,
        "protocol": records[0]["protocol"],
        "commands": list(dict.fromkeys(record["command"] for record in records)),
        "versions": list(dict.fromkeys(_versions(record["versions"]) for record in records)),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("report_templates")),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("report.md", "report.html"):
        _write_whole(folder / name, environment.get_template(name).stream(content).dump)
    return data_sets


def main(arguments: Sequence[str] | None = None) -> list[DataSet]:
    """Run the command line; what the user can mend ends it with a message and no traceback."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.report", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("records", nargs="+", metavar="JSON", help="records of evaluation.part_segmentation")
    parser.add_argument("--output", default="report", metavar="DIR", help="folder of the report (%(default)s)")
    parser.add_argument(
        "--over_seeds",
        action="store_true",
        help="one row, mean ± sample standard deviation, for rows whose names differ in -seed0, -seed1 ... alone",
    )
    options = parser.parse_args(arguments)
    try:
        data_sets = write_report([read_record(path) for path in options.records], options.output, options.over_seeds)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(f"Written to {Path(options.output) / 'report.md'} and report.html")
    return data_sets


def _mean(values: Sequence[float | int | None]) -> float | None:
    """None if one is missing: a mean over fewer data sets is another score."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _cell(value: float | int | None, spread: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if spread is None else f"{value:.1f} ± {spread:.1f}"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _write_whole(path: Path, write: Callable[[str], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    write(str(temporary))
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
