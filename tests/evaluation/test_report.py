"""The report: rows of many records in the right tables, and refused where they do not belong together."""

import copy
import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from evaluation.report import average_over_seeds, main, merge, overview

NAMES = ("m2o_miou", "m2o_miou_foreground", "o2o_miou", "o2o_miou_foreground", "ari", "ari_foreground", "boundary_f")
SAME, TWELVE = "color k-means, same number of segments", "color k-means, 12 segments"


def scores(first, segments):
    return {"images": 9, "images_with_foreground": 8, "segments_used": segments} | {
        name: first + place for place, name in enumerate(NAMES)
    }


def record(model="owner/rats-tiny", data="aa", dataset="owner/parts", offset=0.0, **settings):
    competitor = {"method": "color_kmeans", "model": None}
    return {
        "scores": {"model": scores(40 + offset, 6.5), SAME: scores(30 + offset, 6.5), TWELVE: scores(50, 12)},
        "competitors": {
            "model": {"method": "registers", "model": model, "num_segments": None},
            SAME: competitor | {"num_segments": "same"},
            TWELVE: competitor | {"num_segments": 12},
        },
        "settings": {"model": model, "dataset": dataset, "config": None, "split": "validation", "image_size": 224} | settings,
        "fingerprints": {"weights": "w", "data": data},
        "protocol": "As it is counted.",
        "versions": {"python": "3.11", "torch": "2.14"},
        "date": "2026-01-02T03:04:05+00:00",
        "command": f"python -m evaluation.part_segmentation --model {model} --dataset {dataset}",
    }


def save(folder, *records):
    paths = []
    for place, one in enumerate(records):
        paths.append(str(folder / f"{place}.json"))
        (folder / f"{place}.json").write_text(json.dumps(one))
    return paths


class Tables(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tables, self.in_cell = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        self.in_cell = tag in ("td", "th")
        if self.in_cell:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.tables[-1][-1][-1] += data


def markdown_tables(text):
    tables, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif rows:
            tables.append([rows[0], *rows[2:]])
            rows = []
    return tables


def test_rows_are_named_by_whose_number_of_segments_they_follow():
    followed = record()
    first = "registers of the model (centered)"
    followed["scores"] = {first: scores(45, 9), **followed["scores"], SAME: scores(33, 9)}
    followed["competitors"][first] = {"method": "registers", "model": "owner/rats-tiny", "num_segments": None}
    (data_set,) = merge([record(), followed])
    found = {row.name: row.scores["segments_used"] for row in data_set.rows}
    assert found["color k-means, as many segments as owner/rats-tiny (224 px)"] == 6.5
    assert found["color k-means, as many segments as registers of owner/rats-tiny (centered) (224 px)"] == 9
    assert found["registers of owner/rats-tiny (centered) (224 px)"] == 9 and len(found) == 5


def test_records_of_several_data_sets_and_models_become_one_report(tmp_path, capsys):
    paths = save(
        tmp_path, record(), record("owner/rats-other", offset=5), record(data="bb", dataset="owner/<things>", offset=10)
    )
    data_sets = main([*paths, "--output", str(tmp_path / "report")])
    assert [data_set.title for data_set in data_sets] == [
        "owner/parts, validation, 9 images",
        "owner/<things>, validation, 9 images",
    ]
    markdown, html = ((tmp_path / "report" / f"report.{suffix}").read_text() for suffix in ("md", "html"))
    tables = markdown_tables(markdown)
    assert [[cell.strip() for cell in row] for table in Tables(html).tables for row in table] == [
        row for table in tables for row in table
    ]
    of_all, of_parts, of_things = tables
    assert [row[0] for row in of_parts[1:]] == [
        "owner/rats-tiny (224 px)",
        "color k-means, as many segments as owner/rats-tiny (224 px)",
        TWELVE,  # told once
        "owner/rats-other (224 px)",
        "color k-means, as many segments as owner/rats-other (224 px)",
    ]
    assert of_parts[0][1:] == ["segments", "M2O", "M2O fg", "O2O", "O2O fg", "ARI", "ARI fg", "BF"]
    assert of_parts[4][1:] == ["6.5", "45.0", "46.0", "47.0", "48.0", "49.0", "50.0", "51.0"] and len(of_things) == 4
    tiny = next(row for row in of_all if row[0] == "owner/rats-tiny (224 px)")
    assert tiny[1:] == ["40.0", "44.0", "50.0", "54.0", "45.0", "49.0"]  # M2O and ARI of either, and their means
    other = next(row for row in of_all if row[0] == "owner/rats-other (224 px)")
    assert other[1:] == ["45.0", "49.0", "-", "-", "-", "-"]  # no mean of a part of the data sets
    assert "owner/&lt;things&gt;" in html and "As it is counted." in markdown and markdown.count("--model owner/rats-tiny") == 2
    for data_set in data_sets:
        assert data_set.file in markdown and data_set.file in html
        assert Image.open(tmp_path / "report" / data_set.file).format == "PNG"
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.md", "report.html", *(data_set.file for data_set in data_sets)
    }  # fmt: skip
    assert "report.md" in capsys.readouterr().out


def test_one_data_set_needs_no_overview_and_undefined_scores_are_dashes(tmp_path):
    one = record()
    one["scores"][SAME]["ari_foreground"] = None
    main([*save(tmp_path, one), "--output", str(tmp_path / "report")])
    (table,) = markdown_tables((tmp_path / "report" / "report.md").read_text())
    assert table[2][-2] == "-" and len(table) == 4


def test_rows_of_one_method_are_a_curve():
    (data_set,) = merge([record()])
    assert [row.curve for row in data_set.rows] == ["owner/rats-tiny (224 px)", "color k-means", "color k-means"]
    assert overview([data_set])[0] == [
        "", f"{data_set.title}: M2O", f"{data_set.title}: ARI", "mean M2O", "mean ARI"
    ]  # fmt: skip


def test_models_are_told_by_the_name_of_their_run_and_never_by_a_path(tmp_path):
    (tmp_path / "quickstart" / "model").mkdir(parents=True)
    one = record(str(tmp_path / "quickstart" / "model"))
    title = "patch k-means of the model, 8 segments"
    one["scores"] |= {title: scores(20, 8), "attention heads of the model": scores(20, 9)}
    of_model = {"method": "patch_kmeans", "model": one["settings"]["model"]}
    one["competitors"] |= {
        title: of_model | {"num_segments": 8},
        "attention heads of the model": of_model | {"num_segments": None, "method": "attention_heads"},
    }  # fmt: skip
    (data_set,) = merge([one])
    assert [(row.name, row.curve) for row in data_set.rows] == [
        ("quickstart (224 px)", "quickstart (224 px)"),
        ("color k-means, as many segments as quickstart (224 px)", "color k-means"),
        (TWELVE, "color k-means"),
        ("patch k-means of quickstart (224 px), 8 segments", "patch k-means of quickstart (224 px)"),
        ("attention heads of quickstart (224 px)", "attention heads of quickstart (224 px)"),
    ]


def test_one_model_at_two_sizes_stands_in_one_table_and_two_seeds_are_told_apart():
    large = record(offset=5, image_size=448)
    (data_set,) = merge([record(), large])
    assert [row.name for row in data_set.rows] == [
        "owner/rats-tiny (224 px)",
        "color k-means, as many segments as owner/rats-tiny (224 px)",
        TWELVE,
        "owner/rats-tiny (448 px)",
        "color k-means, as many segments as owner/rats-tiny (448 px)",
    ]
    with pytest.raises(ValueError, match=r"at 224 px, seed 0, 2026-01-02; owner/rats-tiny at 224 px, part_layer -2, seed 1, "):
        merge([record(seed=0), record(offset=1, seed=1, part_layer=-2)])


def changed(**entries):
    other = copy.deepcopy(record())
    return other | entries


@pytest.mark.parametrize(
    "other, message",
    [
        (changed(protocol="Otherwise."), "made by 2 protocols"),
        (changed(scores=record()["scores"] | {TWELVE: scores(51, 12)}), 'different scores of "color k-means, 12 segments"'),
        ({"scores": {}}, "has no competitors, settings, "),
        ([1], "has no scores, "),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, other, message):
    with pytest.raises(SystemExit, match=message):
        main([*save(tmp_path, record(), other), "--output", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_files_that_are_no_records_are_named(tmp_path):
    with pytest.raises(SystemExit, match=r"nowhere\.json does not exist"):
        main([str(tmp_path / "nowhere.json")])
    (tmp_path / "text.json").write_text("no JSON")
    with pytest.raises(SystemExit, match=r"text\.json is no JSON file"):
        main([str(tmp_path / "text.json")])


def test_runs_that_differ_in_their_seed_are_one_row_with_its_spread(tmp_path):
    runs = [record(model=f"owner/rats-seed{seed}", offset=2.0 * seed) for seed in range(3)]
    runs[1]["scores"]["model"]["ari_foreground"] = None
    (data_set,) = average_over_seeds(merge([*runs, record(model="owner/other")]))
    assert [row.name for row in data_set.rows] == [
        "owner/rats (224 px)",
        "color k-means, as many segments as owner/rats (224 px)",
        TWELVE,
        "owner/other (224 px)",
        "color k-means, as many segments as owner/other (224 px)",
    ]
    model, following, twelve, other, _ = data_set.rows
    assert (model.scores["m2o_miou"], model.spread["m2o_miou"]) == (42.0, 2.0)  # of 40, 42 and 44
    assert model.scores["ari_foreground"] is None and "ari_foreground" not in model.spread
    assert (following.scores["ari"], following.spread["ari"], following.curve) == (36.0, 2.0, "color k-means")
    assert twelve.spread == other.spread == {} and "3 seeds" in model.details
    main([*save(tmp_path, *runs), "--output", str(tmp_path / "report"), "--over_seeds"])
    (table,) = markdown_tables((tmp_path / "report" / "report.md").read_text())
    assert table[1][:3] == ["owner/rats (224 px)", "6.5 ± 0.0", "42.0 ± 2.0"]
