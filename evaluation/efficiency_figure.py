"""What was measured of efficiency as tables and as a picture in the form of the paper's figure."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PANEL_INCHES = (4.2, 3.4)
PANELS = {  # measure -> title of its panel
    "multiply_accumulates": "multiply-accumulates, G",
    "time": "time of a forward pass, s",
    "memory": "memory of a forward pass, MiB",
}
# Okabe and Ito's colours, which the colour-blind can tell apart: warm for RATS, cool for ViT.
COLORS = {"rats": ("#D55E00", "#E69F00", "#CC79A7", "#000000"), "vit": ("#0072B2", "#56B4E9", "#009E73", "#999999")}
MARKERS = {"rats": "o", "vit": "s"}
LINES = ("-", "--", ":")  # one a precision
IN_SYSTEM = "of these in the operating system"  # of a profile, and counted in its other rows

Point = Mapping[str, Any]


def measured(point: Point, measure: str) -> float | None:
    """A point's value in the unit of `PANELS`; None where it was not measured."""
    if measure == "multiply_accumulates":
        return point["multiply_accumulates"] / 1e9
    if measure not in point:
        return None
    return point[measure]["forward_s" if measure == "time" else "forward_mib"]


def compare(points: Sequence[Point], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """How many times as much a ViT takes as a RATS of its size, in everything that was measured of both.

    Args:
        points: Of the record.
        pairs: Names of a RATS and a ViT.
    """
    by_key = {(point["model"], point["image_size"], point["precision"]): point for point in points}
    comparisons = []
    for rats, vit in pairs:
        for (model, image_size, precision), point in by_key.items():
            other = by_key.get((vit, image_size, precision))
            if model == rats and other:
                ratios = {name: _ratio(measured(other, name), measured(point, name)) for name in PANELS}
                told = {name: ratio for name, ratio in ratios.items() if ratio is not None}
                comparisons.append({"rats": rats, "vit": vit, "image_size": image_size, "precision": precision, **told})
    return comparisons


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


def crossover(ratios: Mapping[int, float]) -> tuple[float | None, str]:
    """The image size above which RATS takes less for good.

    Args:
        ratios: Image size in pixels -> how many times as much ViT takes.

    Returns:
        The size, with the logarithm of the ratio taken as straight between two sizes, or None if it is not among them; and the
        same in words.
    """
    sizes = sorted(ratios)
    dearer = [size for size in sizes if ratios[size] < 1]
    if not dearer:
        return None, f"below {sizes[0]} px"
    if dearer[-1] == sizes[-1]:
        return None, f"above {sizes[-1]} px"
    below = dearer[-1]
    above = sizes[sizes.index(below) + 1]
    share = math.log(ratios[below]) / (math.log(ratios[below]) - math.log(ratios[above]))
    size = below + share * (above - below)
    return size, f"{size:.0f} px"


def measured_crossovers(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """From where RATS takes less time and memory than ViT, by pair and precision."""
    crossovers = []
    for rats, vit, precision in dict.fromkeys((one["rats"], one["vit"], one["precision"]) for one in comparisons):
        for measure in ("time", "memory"):
            ratios = {
                one["image_size"]: one[measure]
                for one in comparisons
                if (one["rats"], one["vit"], one["precision"]) == (rats, vit, precision) and measure in one
            }
            if ratios:
                size, said = crossover(ratios)
                found = {"rats": rats, "vit": vit, "measure": measure, "precision": precision}
                crossovers.append({**found, "image_size": size, "said": said})
    return crossovers


def tables(record: Mapping[str, Any]) -> str:
    """All that was measured, as Markdown."""
    parts = [_table_of_points(record["points"])]
    if record["comparisons"]:
        parts += ["How many times as much ViT takes as RATS:", _table_of_comparisons(record["comparisons"])]
        rows = [
            [f"{one['rats']}, {one['vit']}", one["measure"].replace("_", "-"), one["precision"] or "any", one["said"]]
            for one in record["crossovers"]
        ]
        parts += ["From where RATS takes less than ViT:", markdown(["models", "measure", "precision", "image size"], rows)]
    profiles = [point for point in record["points"] if "profile" in point]
    if profiles:
        parts += [
            "Seconds of one forward pass under the profiler, and their share; alone: the matrix products without the rest:",
            _table_of_profiles(profiles),
        ]
    return "\n\n".join(parts)


def _table_of_points(points: Sequence[Point]) -> str:
    titles = ["model", "image, px", "precision", "multiply-accumulates, G"]
    titles += ["time, s", "spread, %", "matrix products alone, s", "time / products", "memory, MiB"]
    rows = []
    for point in points:
        time, memory = point.get("time"), point.get("memory")
        row = [point["model"], str(point["image_size"]), point["precision"], f"{measured(point, 'multiply_accumulates'):.2f}"]
        row += [f"{time['forward_s']:.4f}", f"{100 * time['forward_spread']:.0f}"] if time else ["-"] * 2
        if time and "products_s" in time:
            row += [f"{time['products_s']:.4f}", f"{time['forward_to_products']:.2f}"]
        else:
            row += ["-"] * 2
        rows.append([*row, f"{memory['forward_mib']:.1f}" if memory else "-"])
    return markdown(titles, rows)


def _table_of_comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{one['vit']} / {one['rats']}",
            str(one["image_size"]),
            one["precision"],
            *(f"{one[measure]:.2f}" if measure in one else "-" for measure in PANELS),
        ]
        for one in comparisons
    ]
    return markdown(["models", "image, px", "precision", "multiply-accumulates", "time", "memory"], rows)


def _table_of_profiles(points: Sequence[Point]) -> str:
    kinds = list(points[0]["profile"]["forward"])
    alone = list(points[0]["profile"]["products_alone"])
    rows = []
    for point in points:
        profile = point["profile"]
        whole = sum(seconds for kind, seconds in profile["forward"].items() if kind != IN_SYSTEM)
        row = [point["model"], str(point["image_size"]), point["precision"]]
        row += [f"{profile['forward'][kind]:.4f} ({100 * profile['forward'][kind] / whole:.0f} %)" for kind in kinds]
        rows.append(row + [f"{profile['products_alone'][kind]:.4f}" for kind in alone])
    return markdown(["model", "image, px", "precision", *kinds, *(f"alone: {kind}" for kind in alone)], rows)


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown whose columns are as wide as their widest cell."""
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [titles, rule, *rows]
    )


def draw(record: Mapping[str, Any], picture: Path) -> None:
    """Draw multiply-accumulates, time and memory against the image size, a line a model and precision.

    Args:
        record: With `points` and `models`.
        picture: The PNG file; it is replaced as a whole.
    """
    points, models = record["points"], record["models"]
    shown = [measure for measure in PANELS if any(measured(point, measure) is not None for point in points)]
    figure = Figure(figsize=(PANEL_INCHES[0] * len(shown), PANEL_INCHES[1]), layout="constrained")
    styles = _styles(models)
    precisions = list(dict.fromkeys(point["precision"] for point in points))
    for place, measure in enumerate(shown, 1):
        axis = figure.add_subplot(1, len(shown), place)
        in_any = measure == "multiply_accumulates"
        for name, style in styles.items():
            for precision, line in zip(["any"] if in_any else precisions, LINES, strict=False):
                of_line = {
                    point["image_size"]: value
                    for point in points
                    if point["model"] == name
                    and (in_any or point["precision"] == precision)
                    and (value := measured(point, measure)) is not None
                }
                if of_line:
                    label = name if in_any or len(precisions) == 1 else f"{name}, {precision}"
                    axis.plot(*zip(*sorted(of_line.items()), strict=True), label=label, linestyle=line, **style)
        axis.set_title(PANELS[measure], fontsize="medium")
        axis.set_xlabel("image size, px", fontsize="small")
        axis.tick_params(labelsize="small")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize="x-small", framealpha=0.6, handlelength=4)  # long enough to show dashes
    picture.parent.mkdir(parents=True, exist_ok=True)
    temporary = picture.with_name(f".{picture.name}.{os.getpid()}.partial")
    figure.savefig(temporary, format="png", dpi=150)
    os.replace(temporary, picture)


def _styles(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each model: its own among those of its type."""
    styles: dict[str, dict[str, Any]] = {}
    of_type = {"rats": 0, "vit": 0}
    for name, model in models.items():
        kind = model["model_type"]
        colors = COLORS[kind]
        styles[name] = {"color": colors[of_type[kind] % len(colors)], "marker": MARKERS[kind], "markersize": 4}
        of_type[kind] += 1
    return styles
