"""Comparisons, the size from which RATS takes less, tables and picture."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from evaluation.efficiency_figure import compare, crossover, draw, markdown, measured_crossovers, tables


def point(model, image_size, precision="float32", cost=1.0, seconds=None, mib=None, **more):
    made = {"model": model, "image_size": image_size, "precision": precision, "multiply_accumulates": int(cost * 1e9), **more}
    if seconds is not None:
        made["time"] = {"forward_s": seconds, "forward_spread": 0.1, "products_s": seconds / 2, "forward_to_products": 2.0}
    return made if mib is None else {**made, "memory": {"forward_mib": mib, "weights_mib": 1.0}}


POINTS = [
    point("rats", 100, cost=2, seconds=2.0, mib=10.0),
    point("rats", 200, cost=4, seconds=4.0, mib=20.0),
    point("rats", 400, cost=8),
    point("vit", 100, cost=1, seconds=1.0, mib=20.0),
    point("vit", 200, cost=16, seconds=8.0, mib=30.0),
    point("vit", 400, "bfloat16", cost=99),
]


def test_what_was_measured_of_both_is_compared():
    assert compare(POINTS, [("rats", "vit")]) == [
        {
            "rats": "rats",
            "vit": "vit",
            "image_size": 100,
            "precision": "float32",
            "multiply_accumulates": 0.5,
            "time": 0.5,
            "memory": 2,
        },
        {
            "rats": "rats",
            "vit": "vit",
            "image_size": 200,
            "precision": "float32",
            "multiply_accumulates": 4,
            "time": 2,
            "memory": 1.5,
        },
    ]


@pytest.mark.parametrize(
    ("ratios", "size", "said"),
    [
        ({100: 0.5, 200: 2.0}, 150, "150 px"),
        ({200: 8.0, 100: 0.5}, 125, "125 px"),  # straight in the logarithm
        ({100: 0.5, 200: 2.0, 300: 0.5, 400: 2.0}, 350, "350 px"),  # the last time counts
        ({100: 0.5, 200: 1.0}, 200, "200 px"),
        ({100: 1.1, 200: 2.0}, None, "below 100 px"),
        ({100: 2.0, 200: 0.9}, None, "above 200 px"),
    ],
)
def test_the_size_from_which_rats_takes_less(ratios, size, said):
    found, told = crossover(ratios)
    assert told == said and found == (None if size is None else pytest.approx(size))


def test_crossovers_by_measure():
    found = measured_crossovers(compare(POINTS, [("rats", "vit")]))
    assert [(one["measure"], one["said"]) for one in found] == [("time", "150 px"), ("memory", "below 100 px")]


def test_markdown_is_aligned():
    assert markdown(["a", "long"], [["wide", "b"]]) == "| a    | long |\n| ---- | ---- |\n| wide | b    |"


def record():
    comparisons = compare(POINTS, [("rats", "vit")])
    models = {"rats": {"model_type": "rats"}, "vit": {"model_type": "vit"}}
    return {
        "points": POINTS,
        "comparisons": comparisons,
        "crossovers": measured_crossovers(comparisons),
        "models": models,
    }


def test_tables_show_what_is_there_and_what_is_not():
    lines = [" ".join(line.split()) for line in tables(record()).splitlines()]
    assert "| rats | 200 | float32 | 4.00 | 4.0000 | 10 | 2.0000 | 2.00 | 20.0 |" in lines
    assert "| rats | 400 | float32 | 8.00 | - | - | - | - | - |" in lines
    assert "| vit / rats | 200 | float32 | 4.00 | 2.00 | 1.50 |" in lines
    assert "| rats, vit | time | float32 | 150 px |" in lines
    assert not any("profiler" in line for line in lines)


def test_a_profile_is_told_in_seconds_and_shares():
    forward = {"GELU": 1.0, "attention": 3.0, "of these in the operating system": 2.0}
    profiled = point("rats", 100, profile={"forward": forward, "products_alone": {"attention": 2.5}})
    last = tables({"points": [profiled], "comparisons": [], "crossovers": []}).splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")][3:] == [
        "1.0000 (25 %)",
        "3.0000 (75 %)",
        "2.0000 (50 %)",
        "2.5000",
    ]


def test_the_picture_has_a_panel_a_measure_and_a_line_a_model(tmp_path, monkeypatch):
    figures, savefig = [], Figure.savefig

    def save_and_keep(figure, *arguments, **options):
        figures.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", save_and_keep)
    path = tmp_path / "new" / "efficiency.png"
    draw(record(), path)
    assert [file.name for file in path.parent.iterdir()] == ["efficiency.png"]
    width, height = Image.open(path).size
    assert width > 2 * height
    costs, times, memory = figures[0].axes
    assert [line.get_label() for line in costs.lines] == ["rats", "vit"]
    assert list(costs.lines[1].get_ydata()) == [1, 16, 99] and list(costs.lines[1].get_xdata()) == [100, 200, 400]
    assert [line.get_label() for line in times.lines] == ["rats, float32", "vit, float32"]
    assert list(memory.lines[0].get_ydata()) == [10, 20]
    assert costs.lines[0].get_color() != costs.lines[1].get_color()
