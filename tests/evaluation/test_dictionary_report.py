"""The report: entries chosen on one split and scored on another, transfer and its numbers, controls, and what is refused."""

import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evaluation.build_dictionary import run as build
from evaluation.dictionary_report import main, run
from evaluation.dictionary_scores import (
    LEAST_IMAGES,
    Places,
    Transfer,
    best_entries,
    paths_of,
    transfer,
    transfer_numbers,
    tree_distance,
)
from evaluation.synthetic_parts import write_dataset
from modeling_rats import PartDictionary, RatsForPartSegmentation, RatsImageProcessor

TREE = {"animal": {"walker": ["cat", "dog"], "flier": ["owl"]}, "vehicle": ["car"]}


def places(categories, images_each=LEAST_IMAGES):
    """Two patches an image; entry 0 finds part 0 in the first, entry 1 part 1 in the second; in cars it is the other way."""
    scores, shares, images, shown = [], [], [], []
    for category in categories:
        for _ in range(images_each):
            entries = np.eye(2)[::-1] if category == "car" else np.eye(2)
            scores.append(0.1 + 0.8 * entries)
            shares.append(np.eye(2))
            images += [len(images) // 2] * 2
            shown += [category] * 2
    return Places(np.concatenate(scores), np.concatenate(shares), np.array(images), np.array(shown))


def test_each_parts_best_entry_is_chosen_and_scored():
    train, test = places(["cat"]), places(["cat", "owl", "car"])
    scored = best_entries(train, test, ["head", "tail"])
    assert {part: one["entry"] for part, one in scored.items()} == {"head": 0, "tail": 1}
    # Right in two categories of three: of 10 patches that it finds 5 wrong of 15, and 5 that it does not find.
    assert scored["head"]["iou"] == pytest.approx(10 / 20) and scored["head"]["pointing"] == pytest.approx(2 / 3)
    assert scored["head"]["iou_of_other_names"] == pytest.approx(5 / 25) and scored["head"]["threshold"] == pytest.approx(0.9)
    nowhere = train._replace(shares=train.shares * [1, 0])
    assert best_entries(nowhere, test, ["head", "tail"]).keys() == {"head"}


def test_transfer_is_between_all_categories_and_parts():
    data = places(["cat", "dog", "car"])
    found = transfer(data, data, ["head", "tail"])
    assert found.sources == [(c, p) for c in ("car", "cat", "dog") for p in ("head", "tail")] == found.targets
    assert found.entries == [1, 0, 0, 1, 0, 1]
    at = {pair: place for place, pair in enumerate(found.sources)}
    assert found.iou[at["cat", "head"], at["dog", "head"]] == 1 and found.iou[at["cat", "head"], at["dog", "tail"]] == 0
    assert found.iou[at["car", "head"], at["dog", "head"]] == 0 and found.iou[at["car", "head"], at["dog", "tail"]] == 1
    assert (np.diag(found.iou) == 1).all()
    for one in (found.average_precision, found.pointing):
        assert one[at["cat", "head"], at["dog", "head"]] == 1 > one[at["car", "head"], at["dog", "head"]]
    rare = places(["cat"], LEAST_IMAGES - 1)
    assert transfer(rare, rare, ["head", "tail"]).sources == []


def test_numbers_of_transfer():
    data = places(["cat", "dog", "owl", "car"])
    numbers = transfer_numbers(transfer(data, data, ["head", "tail"]), paths_of(TREE))
    assert numbers["own"] == 1 and numbers["same_part_same_super_category"] == 1
    assert numbers["same_part_other_super_category"] == 0
    assert numbers["same_part_elsewhere"] == pytest.approx(0.5) and numbers["other_parts_elsewhere"] == pytest.approx(0.5)
    assert numbers["distance_correlation"] < -0.5
    assert "distance_correlation" not in transfer_numbers(transfer(data, data, ["head", "tail"]), None)
    alone = transfer_numbers(Transfer([("cat", "head")], [0], [("cat", "head")], *[np.ones((1, 1))] * 3), paths_of(TREE))
    assert math.isnan(alone["same_part_elsewhere"]) and math.isnan(alone["distance_correlation"])


def test_distances_in_the_tree():
    paths = paths_of(TREE)
    assert paths == {"cat": ("animal", "walker"), "dog": ("animal", "walker"), "owl": ("animal", "flier"), "car": ("vehicle",)}
    distances = [tree_distance(paths, "cat", other) for other in ("cat", "dog", "owl", "car")]
    assert distances == [0, 2, 4, 5]


@pytest.fixture(scope="module")
def made(tmp_path_factory, save_part_model):
    """A tiny model, 60 rendered images a split, and a dictionary of their parts."""
    folder = tmp_path_factory.mktemp("made")
    save_part_model(folder / "model", size_px=64)
    for split, seed in (("train", 0), ("test", 1)):
        write_dataset(folder / "data", 60, 64, seed, "easy", split, 1, quiet=True)
    given = ["--model", str(folder / "model"), "--dataset", str(folder / "data"), "--quiet"]
    build([*given, "--num_entries", "8", "--max_border", "9", "--min_return", "-1", "--output", str(folder / "dictionary")])
    animals, vehicles = ["bird", "fish", "quadruped", "snake", "lizard", "biped"], ["car", "bus", "bicycle", "aeroplane"]
    (folder / "tree.json").write_text(json.dumps({"animal": animals, "vehicle": vehicles}))
    return folder


@pytest.fixture
def arguments(made, tmp_path):
    return [
        *("--dictionary", str(made / "dictionary"), "--model", str(made / "model"), "--dataset", str(made / "data")),
        *("--test_split", "test", "--label_names", str(made / "data" / "label_names.json"), "--quiet"),
        *("--output", str(tmp_path / "report")),
    ]


def test_the_report_of_a_dictionary_and_its_controls(made, arguments, tmp_path):
    more = ["--category_column", "category", "--taxonomy", str(made / "tree.json"), "--twin", str(made / "model")]
    record = run([*arguments, *more])
    titles = ["dictionary", "random directions", f"clusters of {made / 'model'}"]
    assert list(record["best_entries"]) == list(record["transfer"]) == titles
    for of_parts in record["best_entries"].values():
        assert {"head", "wheel"} < of_parts.keys() and all(0 <= one["entry"] < 8 for one in of_parts.values())
        assert all(0 <= one["iou"] <= 1 and 0 <= one["average_precision"] <= 1 for one in of_parts.values())
    folder = tmp_path / "report"
    written = json.loads((folder / "report.json").read_text())
    assert written["best_entries"] == json.loads(json.dumps(record["best_entries"]).replace("NaN", "null"))
    text = (folder / "report.md").read_text()
    assert "| wheel | part " in text and "| same part elsewhere | " in text and "| distance correlation | " in text
    for name in ("found.jpg", "tree.png"):
        assert min(Image.open(folder / name).size) > 90
    assert run(arguments)["best_entries"]["dictionary"] == record["best_entries"]["dictionary"]  # and without categories


def test_labels_that_are_no_parts_are_left_out(arguments):
    record = run([*arguments, "--without", "wheel", "--train_limit", "30", "--test_limit", "30"])
    assert "wheel" not in record["best_entries"]["dictionary"] and not record["transfer"]
    last = run([*arguments, "--without", "handlebar", "--train_limit", "30", "--test_limit", "30"])["best_entries"][
        "dictionary"
    ]
    all_of_them = run([*arguments, "--train_limit", "30", "--test_limit", "30"])["best_entries"]["dictionary"]
    strip = {"iou_of_other_names"}  # which has one part less
    for part in last:
        assert {name: last[part][name] for name in last[part].keys() - strip} == {
            name: all_of_them[part][name] for name in last[part].keys() - strip
        }


def test_a_broken_image_costs_no_report(made, arguments, tmp_path, capsys):
    table = pq.read_table(next((made / "data").glob("test-*.parquet")))
    rows = table.to_pylist()
    rows[0]["image"]["bytes"] = b"no image"
    (tmp_path / "data").mkdir()
    shutil.copy(made / "data" / "label_names.json", tmp_path / "data")
    shutil.copy(next((made / "data").glob("train-*.parquet")), tmp_path / "data" / "train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(rows, table.schema), tmp_path / "data" / "test-00000-of-00001.parquet")
    run([argument.replace(str(made / "data"), str(tmp_path / "data")) for argument in arguments])
    assert (tmp_path / "report" / "found.jpg").is_file() and (tmp_path / "report" / "report.json").is_file()
    assert "passed over" in capsys.readouterr().err


def test_what_does_not_fit_is_told(made, arguments, tmp_path, make_config):
    other = tmp_path / "other"
    RatsForPartSegmentation(make_config()).save_pretrained(other)
    RatsImageProcessor(size={"height": 64, "width": 64}).save_pretrained(other)
    with pytest.raises(SystemExit, match="directions mean nothing there"):
        main([argument.replace(str(made / "model"), str(other)) for argument in arguments])
    dictionary = PartDictionary.from_pretrained(made / "dictionary")
    dictionary.drop(dictionary.names).save_pretrained(tmp_path / "empty")
    with pytest.raises(SystemExit, match="has no entries, so there is nothing to measure"):
        main([argument.replace(str(made / "dictionary"), str(tmp_path / "empty")) for argument in arguments])
    (tmp_path / "tree.json").write_text('{"animal": ["bird"]}')
    with pytest.raises(SystemExit, match="The taxonomy lacks the categories aeroplane"):
        main([*arguments, "--category_column", "category", "--taxonomy", str(tmp_path / "tree.json")])
