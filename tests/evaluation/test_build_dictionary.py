"""Dictionaries of rendered images: without labels, from masks, from clicks, named by a person; over two processes, too."""

import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import load_dataset
from PIL import Image

from evaluation.build_dictionary import CATALOGUE, apply_names, main, run
from evaluation.dictionary_entries import entry_of
from evaluation.part_samples import part_rows, read_label_names
from evaluation.segment_features import Segments
from evaluation.synthetic_parts import write_dataset
from modeling_rats import PartDictionary, PartEntry, RatsForPartSegmentation, RatsImageProcessor
from modeling_rats.part_dictionary import model_fingerprint

IMAGES = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, IMAGES, 64, 0, "easy", "train", 1, quiet=True)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, save_part_model):
    return save_part_model(tmp_path_factory.mktemp("model"), size_px=64)


@pytest.fixture
def build(model, data, tmp_path):
    def build(*arguments, name="built"):
        return run(["--model", str(model), "--dataset", str(data), "--output", str(tmp_path / name), "--quiet", *arguments])

    return build


def test_a_dictionary_without_labels(build, model, tmp_path, capsys):
    built = build("--num_entries", "4", "--max_border", "9", "--min_return", "-1")
    again = PartDictionary.from_pretrained(tmp_path / "built")
    assert built.names == again.names == [f"part {number}" for number in range(4)]
    supports = [entry.support for entry in again]
    assert supports == sorted(supports, reverse=True) and sum(supports) == again.settings["segments"]
    assert again.settings["images_read"] == IMAGES and again.settings["clusters"] == 4
    for entry in again:
        assert sum(entry.registers.values()) == pytest.approx(1) and sum(entry.heads.values()) == pytest.approx(1)
        assert 0 < len(entry.examples) <= 8 and 0 < entry.threshold < 1 and 0 < entry.statistics["iou_at_threshold"] <= 1
        scores = [example["score"] for example in entry.examples]
        assert scores == sorted(scores, reverse=True) and all(0 <= example["image"] < IMAGES for example in entry.examples)
    loaded = RatsForPartSegmentation.from_pretrained(model)
    assert again.model_info["fingerprint"] == model_fingerprint(loaded)
    assert again.with_model(loaded, RatsImageProcessor.from_pretrained(model)).search(Image.new("RGB", (64, 64))) is not None
    assert Image.open(tmp_path / "built" / CATALOGUE).width > 96
    assert "4 entries" in capsys.readouterr().out


def test_its_entries_find_the_segments_they_were_made_of(build, model, data):
    built = build("--num_entries", "6", "--max_border", "9", "--min_return", "-1")
    ready = built.with_model(RatsForPartSegmentation.from_pretrained(model), RatsImageProcessor.from_pretrained(model))
    images = load_dataset(str(data), split="train")["image"]
    for entry in built:
        example = entry.examples[0]
        heat = ready.localize(images[example["image"]], entry.name)
        x0, y0, x1, y1 = (round(64 * side) for side in example["box"])
        assert heat.max() == heat[y0:y1, x0:x1].max()


def test_a_threshold_tells_an_entrys_segments_from_the_others():
    """Of areas 1, 1, 2 and 4 with cosines 0.9, 0.8, 0.7 and 0.1 the first and third are its own: at 0.7 IoU is 3 / 4."""
    cosines = torch.tensor([0.9, 0.8, 0.7, 0.1])
    vectors = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    zeros = torch.zeros(4, dtype=torch.int64)
    area = torch.tensor([1.0, 1.0, 2.0, 4.0])
    segments = Segments(
        vectors, vectors, zeros, torch.arange(4), torch.zeros(4, 4), area, torch.zeros(4), zeros, torch.zeros(4)
    )
    entry = entry_of("wheel", torch.tensor([1.0, 0.0]), segments, torch.tensor([True, False, True, False]), None)
    assert entry.threshold == pytest.approx(0.7) and entry.statistics["iou_at_threshold"] == pytest.approx(3 / 4)
    assert entry.support == 2 and [example["image"] for example in entry.examples] == [0, 2] and entry.heads == {}


def test_background_and_unstable_clusters_are_dropped(build):
    built = build("--num_entries", "6", "--max_border", "0", "--min_return", "-1")
    told = built.settings
    assert len(built) == 6 - told["dropped_as_background"] and all(entry.statistics["border"] == 0 for entry in built)
    nothing = build("--num_entries", "6", "--min_return", "1.1")
    assert len(nothing) == 0 and nothing.settings["dropped_as_unstable"] == 6


@pytest.mark.parametrize("vectors", ["patches", "registers"])
def test_entries_named_from_masks(build, data, vectors):
    names = data / "label_names.json"
    built = build("--mask_column", "mask", "--label_names", str(names), "--vectors", vectors)
    parts = set(read_label_names(names)[1:])
    assert len(built) > 0 and set(built.names) <= parts
    assert set(built.settings["labels_without_segments"]) == parts - set(built.names)
    unnamed = build("--mask_column", "mask", "--vectors", vectors)
    assert len(unnamed) == len(built) and all(name.startswith("label ") for name in unnamed.names)
    torch.testing.assert_close(unnamed.vectors, built.vectors)


def test_entries_of_clicks(model, data, tmp_path):
    row = next(row for row in load_dataset(str(data), split="train") if row["parts"])
    row["image"].save(tmp_path / "bird.png")
    clicks = [
        {"image": "bird.png", "x": 3, "y": 3, "name": "corner"},
        {"image": "bird.png", "x": 32, "y": 40, "name": "middle"},
    ]
    (tmp_path / "clicks.json").write_text(json.dumps(clicks))
    arguments = ["--model", str(model), "--clicks", str(tmp_path / "clicks.json"), "--output", str(tmp_path / "built")]
    built = run(arguments)
    assert built.names == ["corner", "middle"] and [entry.support for entry in built] == [1, 1]
    ready = built.with_model(RatsForPartSegmentation.from_pretrained(model), RatsImageProcessor.from_pretrained(model))
    (part,) = ready.name_parts(row["image"], clicked(ready, row["image"], 3, 3)).values()
    assert part == ("corner", pytest.approx(1, abs=1e-5))
    (tmp_path / "clicks.json").write_text(json.dumps([{**clicks[0], "x": 64}]))
    with pytest.raises(SystemExit, match=r"click at x=64, y=3 of bird\.png, which is 64 x 64 pixels"):
        main(arguments)
    for bad in ({**clicks[0], "y": "3"}, {"image": "bird.png", "x": 3, "name": "corner"}, "corner"):
        (tmp_path / "clicks.json").write_text(json.dumps([bad]))
        with pytest.raises(SystemExit, match=r"clicks.json holds .*; it must be a list of"):
            main(arguments)
    (tmp_path / "clicks.json").write_text(json.dumps([clicks[0], {**clicks[0], "x": 2}]))
    assert [entry.support for entry in run(arguments)] == [1]  # two clicks on one part
    (tmp_path / "clicks.json").write_text("[]")
    with pytest.raises(SystemExit, match="holds no clicks"):
        main(arguments)


def clicked(ready, image, x, y):
    """The part map of an image with the part at a pixel alone, and no part elsewhere."""
    inputs = ready._image_processor(image, return_tensors="pt")
    outputs = ready._model(inputs["pixel_values"])
    (result,) = ready._image_processor.post_process_part_segmentation(outputs, target_sizes=[(image.height, image.width)])
    segmentation = result["segmentation"]
    return torch.where(segmentation == segmentation[y, x], segmentation, -1)


def test_a_person_names_entries_in_a_file(tmp_path, capsys):
    entries = [PartEntry(name, 0.5, support=support) for name, support in (("a", 3), ("b", 1), ("c", 1), ("d", 1))]
    dictionary = PartDictionary(entries, torch.eye(4), {"fingerprint": "f"})
    named = apply_names(dictionary, {"a": "wheel", "b": None, "d": "wheel"})
    assert named.names == ["wheel", "c"] and named["wheel"].support == 4
    torch.testing.assert_close(named.vectors[0], torch.tensor([3.0, 0.0, 0.0, 1.0]) / 10**0.5)
    assert apply_names(dictionary, {"a": "b", "b": "a"}).names == ["b", "a", "c", "d"]
    assert apply_names(dictionary, {"a": "c"}).names == ["c", "b", "d"]  # joins what has that name already
    dictionary.save_pretrained(tmp_path / "made")
    (tmp_path / "names.json").write_text('{"a": "wheel", "x": "window"}')
    arguments = [
        "--dictionary",
        str(tmp_path / "made"),
        "--names",
        str(tmp_path / "names.json"),
        "--output",
        str(tmp_path / "new"),
    ]
    with pytest.raises(SystemExit, match="There is no entry 'x'; the dictionary has 4"):
        main(arguments)
    (tmp_path / "names.json").write_text('{"a": 5}')
    with pytest.raises(SystemExit, match=r"Names \[5\] are no text or empty"):
        main(arguments)
    assert not (tmp_path / "new").exists()
    (tmp_path / "names.json").write_text('{"a": "wheel"}')
    main(arguments)
    assert PartDictionary.from_pretrained(tmp_path / "new").names == ["wheel", "b", "c", "d"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_entries", "5000"], r"segments of 40 images are too few for 5000 entries"),
        (["--split", "nowhere"], "split=nowhere is not in"),
        (["--mask_column", "masks"], "has no column 'masks'"),
        (["--limit", "0"], "limit=0 must be at least 1"),
        (["--mask_column", "mask", "--label_names", "DATA/short.json"], "has 1 names, and the masks have labels"),
        (["--mask_column", "mask", "--label_names", "DATA/bad.json"], "must hold a list of names"),
    ],
)
def test_what_does_not_fit_is_told(model, data, tmp_path, arguments, message):
    (data / "short.json").write_text('["background"]')
    (data / "bad.json").write_text('{"names": 3}')
    given = [argument.replace("DATA", str(data)) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        main(["--model", str(model), "--dataset", str(data), "--output", str(tmp_path), *given])
    for file in ("short.json", "bad.json"):
        (data / file).unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m"], "name a --model, and either a --dataset or a file of --clicks"),
        (["--dictionary", "d"], "--dictionary needs --names"),
        (["--model", "m", "--dataset", "d", "--label_names", "x"], "--label_names are those of a --mask_column"),
    ],
)
def test_options_that_do_not_go_together_are_told(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit):
        main([*arguments, "--output", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_rows_know_mask_and_category(data):
    names = read_label_names(data / "label_names.json")
    rows = list(part_rows(str(data), split="train", mask_column="mask", category_column="category", limit=5))
    table = load_dataset(str(data), split="train")
    for row, told in zip(rows, table.select(range(5)), strict=True):
        decoded = row.decode()
        assert decoded.category == table.features["category"].int2str(told["category"])
        assert set(decoded.mask.flatten().tolist()) - {0} == set(told["parts"]) and max(told["parts"]) < len(names)
        assert decoded.image.tobytes() == told["image"].tobytes()
    label = table[0]["parts"][0]
    (row,) = part_rows(str(data), split="train", mask_column="mask", limit=1, ignore_label=label)
    known = next(iter(part_rows(str(data), split="train", mask_column="mask"))).decode().mask
    assert ((row.decode().mask == -1) == (known == label)).all()
    plain = next(iter(part_rows(str(data), split="train"))).decode()
    assert plain.mask is None and plain.category is None


def test_two_processes_build_what_one_builds(build, model, data, tmp_path):
    arguments = ["--num_entries", "4", "--max_border", "9", "--min_return", "-1", "--batch_size", "7"]
    alone = build(*arguments)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    given = ["--model", str(model), "--dataset", str(data), "--output", str(tmp_path / "two"), "--quiet", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    together = [*launcher, "-m", "evaluation.build_dictionary", *given]
    done = subprocess.run(together, env=environment, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("4 entries") == 1  # they share the images, and one of them tells
    two = PartDictionary.from_pretrained(tmp_path / "two")
    torch.testing.assert_close(two.vectors, alone.vectors)
    assert [entry.support for entry in two] == [entry.support for entry in alone]
