"""The curves of a run as one picture."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.records import read_json_lines

COLUMNS = 4
PANEL_INCHES = (4.0, 3.0)
COLORS = ("#2563a8", "#d9822b", "#3a8f5c", "#8a4fa3")
MARKED_BELOW = 40  # points; more of them are clearer as a line alone


class Panel(NamedTuple):
    """What one panel shows.

    Attributes:
        title: With the unit.
        lines: Field of the log -> its name in the legend.
        reference: Field and name of a line to compare with, drawn dashed.
        from_zero: Whether the axis starts at 0: for amounts, whose ratios are read.
    """

    title: str
    lines: Mapping[str, str]
    reference: tuple[str, str] | None = None
    from_zero: bool = False


OF_LOG = (
    Panel(
        "loss and entropies, nats",
        {"loss": "loss", "teacher_entropy": "teacher entropy", "teacher_marginal_entropy": "entropy of its mean"},
        ("ln_k", "ln K"),
    ),
    Panel(
        "losses of distillation, before their weights",
        {
            "patch_loss": "patches",
            "register_bottleneck_loss": "register bottleneck",
            "register_code_loss": "register codes",
            "register_balance_loss": "register balance",
            "global_loss": "global",
        },
        from_zero=True,
    ),
    Panel("gradient norm", {"gradient_norm": "gradient norm"}),
    Panel("learning rate", {"learning_rate": "learning rate"}),
    Panel("images/s", {"images_per_s": "images/s"}, from_zero=True),
    Panel("share of time spent waiting for data", {"data_wait_share": "waiting"}, from_zero=True),
    Panel("share of the registers in use", {"registers_used": "used"}, from_zero=True),
    Panel("registers in use in one image", {"registers_per_image": "registers"}),
    Panel("cosine between an image's registers", {"register_cosine": "cosine"}),
    Panel("RankMe of the features", {"rankme": "RankMe"}),
    Panel("KoLeo regulariser", {"koleo": "KoLeo"}),
)
OF_EVALUATION = (
    Panel("part scores, %", {"m2o_miou": "M2O mIoU", "o2o_miou": "O2O mIoU", "ari": "ARI"}),
    Panel("k-NN accuracy, %", {"knn_accuracy": "k-NN accuracy"}),
    Panel("segmentation scores, %", {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "pq": "PQ"}),
    Panel("mask AP, %", {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}),
)


def draw_curves(log: Path, picture: Path) -> None:
    """Draws what a run has logged against the step, and what it has measured where evaluation.jsonl lies beside the log.

    A panel is left out where no line of the log has its fields.

    Args:
        log: The `log.jsonl` of a run.
        picture: The PNG file; it is replaced as a whole.
    """
    entries, measured = read_json_lines(log), read_json_lines(log.with_name("evaluation.jsonl"))
    panels = [(panel, entries) for panel in OF_LOG if _has(panel, entries)]
    panels += [(panel, measured) for panel in OF_EVALUATION if _has(panel, measured)]
    columns = min(max(len(panels), 1), COLUMNS)
    rows = -(-max(len(panels), 1) // columns)
    figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]  # inches
    if not panels:
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", color="grey")
    last_step = max((entry["step"] for entry in entries + measured), default=0)
    for place, (panel, lines) in enumerate(panels, 1):
        axis = figure.add_subplot(rows, columns, place)
        _draw(axis, panel, lines)
        axis.set_xlim(0, last_step * 1.02 or 1)
    temporary = picture.with_name(f".{picture.name}")
    figure.savefig(temporary, format="png", dpi=100)
    os.replace(temporary, picture)


def _has(panel: Panel, entries: Sequence[dict]) -> bool:
    return any(field in entry for field in panel.lines for entry in entries)


def _draw(axis: Axes, panel: Panel, entries: Sequence[dict]) -> None:
    for (field, name), color in zip(panel.lines.items(), COLORS, strict=False):
        steps, values = _points(entries, field)
        if steps:
            axis.plot(steps, values, label=name, color=color, marker="o" if len(steps) < MARKED_BELOW else "", markersize=3)
    if panel.reference:
        steps, values = _points(entries, panel.reference[0])
        axis.plot(steps, values, label=panel.reference[1], color="grey", linestyle="--", linewidth=1)
    axis.set_title(panel.title, fontsize="medium")
    axis.set_xlabel("step", fontsize="small")
    axis.tick_params(labelsize="small")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(y=0.08)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 5), useMathText=True)
    if panel.from_zero:
        axis.set_ylim(bottom=0)
    if len(axis.lines) > 1:
        axis.legend(fontsize="small", framealpha=0.6)


def _points(entries: Sequence[dict], field: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that have the field."""
    having = [entry for entry in entries if field in entry]
    return [entry["step"] for entry in having], [entry[field] for entry in having]
