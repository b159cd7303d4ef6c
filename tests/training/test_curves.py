"""The picture of a run's curves: what it shows of which fields, and that no log breaks it."""

import json

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from training.curves import draw_curves

ENTRY = {
    "loss": 2.0,
    "teacher_entropy": 1.0,
    "teacher_marginal_entropy": 2.5,
    "ln_k": 2.77,
    "gradient_norm": 0.5,
    "learning_rate": 1e-3,
    "images_per_s": 300.0,
}
FIGURES = {"data_wait_share": 0.1, "registers_used": 0.9, "registers_per_image": 7.5, "register_cosine": 0.2, "rankme": 30.0}
SCORES = {"seconds": 2.0, "m2o_miou": 30.0, "o2o_miou": 20.0, "ari": 10.0}


def write(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: title of a panel -> name of a line -> its steps and values."""
    panels = {}
    save = matplotlib.figure.Figure.savefig

    def save_and_look(figure, *arguments, **options):
        for axis in figure.axes:
            lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}
            panels[axis.get_title()] = lines
        save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", save_and_look)
    return panels


@pytest.mark.parametrize("steps", [[1], [50, 100, 150]], ids=["one line", "three lines"])
def test_every_field_of_the_log_is_drawn_against_the_step(tmp_path, drawn, steps):
    write(tmp_path / "log.jsonl", [{"step": step, **ENTRY, **FIGURES, "loss": step / 2} for step in steps])
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert drawn["loss and entropies, nats"] == {
        "loss": (steps, [step / 2 for step in steps]),
        "teacher entropy": (steps, [1.0] * len(steps)),
        "entropy of its mean": (steps, [2.5] * len(steps)),
        "ln K": (steps, [2.77] * len(steps)),
    }
    values = [values for lines in drawn.values() for _, (_, values) in lines.items()]
    for value in (*list(ENTRY.values())[1:], *FIGURES.values()):
        assert [value] * len(steps) in values
    assert len(drawn) == 9 and all(drawn.values())
    assert Image.open(tmp_path / "curves.png").size == (1600, 900)


def test_measurements_beside_the_log_are_drawn_too(tmp_path, drawn):
    write(tmp_path / "log.jsonl", [{"step": step, **ENTRY} for step in (10, 20, 30)])
    scored = [{"step": 20, **SCORES}, {"step": 30, **SCORES, "ari": 12.0, "knn_accuracy": 40.0}]
    write(tmp_path / "evaluation.jsonl", scored)
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert drawn["part scores, %"] == {
        "M2O mIoU": ([20, 30], [30.0, 30.0]),
        "O2O mIoU": ([20, 30], [20.0, 20.0]),
        "ARI": ([20, 30], [10.0, 12.0]),
    }
    assert drawn["k-NN accuracy, %"] == {"k-NN accuracy": ([30], [40.0])}
    assert "seconds" not in str(drawn)


def test_what_is_not_logged_has_no_panel_and_what_is_logged_sometimes_has_gaps(tmp_path, drawn):
    write(tmp_path / "log.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "rankme": float("nan")}, {"step": 3, "loss": 1.0}])
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert list(drawn) == ["loss and entropies, nats", "RankMe of the features"]
    assert drawn["loss and entropies, nats"]["loss"] == ([1, 3], [2.0, 1.0])
    assert Image.open(tmp_path / "curves.png").size == (800, 300)


@pytest.mark.parametrize("text", [None, "", '{"step": 1, "lo'], ids=["no log", "empty", "cut off"])
def test_an_empty_log_gives_a_picture_that_says_so(tmp_path, drawn, text):
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert drawn == {}
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L")).min() < 200  # words on white


def test_the_picture_is_replaced_as_a_whole(tmp_path, monkeypatch):
    write(tmp_path / "log.jsonl", [{"step": 1, **ENTRY}])
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    before = (tmp_path / "curves.png").read_bytes()

    def fail_halfway(figure, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail_halfway)
    with pytest.raises(OSError, match="disk full"):
        draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == before
