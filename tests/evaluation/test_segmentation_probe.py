"""The command end to end on tiny models: what it reaches where labels can and cannot be seen, its record, its refusals."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from evaluation import segmentation_probe
from evaluation.synthetic_parts import write_dataset
from modeling_rats import RatsImageProcessor, RatsModel

COLOURS = np.array([[200, 60, 50], [60, 190, 70], [60, 70, 210]])
IGNORED_LABEL = 255


@pytest.fixture(scope="module")
def models(make_config, tmp_path_factory):
    """Folders of a tiny RATS and a tiny ViT."""
    folders = {name: tmp_path_factory.mktemp("models") / name for name in ("rats", "vit")}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        RatsModel(make_config()).save_pretrained(folders["rats"])
        ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(folders["vit"])
    RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folders["rats"])
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folders["vit"])
    return {name: str(folder) for name, folder in folders.items()}


def coloured(rows, random):
    """Masks of 4 x 4 blocks of three labels, and images whose blocks have the label's colour."""
    labels = random.choice(3, (rows, 4, 4), p=[0.3, 0.3, 0.4])
    masks = labels.repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8)
    return masks, (COLOURS[masks] + random.integers(-20, 21, (*masks.shape, 3))).astype(np.uint8)


def save_split(folder, split, masks, images):
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = {"image": [Image.fromarray(one) for one in images], "mask": [Image.fromarray(one) for one in masks]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def save(folder, change=lambda masks, split: masks):
    """Both splits of `coloured`, with `change` made to the masks."""
    for seed, (split, rows) in enumerate({"train": 24, "validation": 8}.items()):
        random = np.random.default_rng(seed)
        masks, images = coloured(rows, random)
        save_split(folder, split, change(masks, split), images)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save(tmp_path_factory.mktemp("data"))


def run(tmp_path, *arguments):
    return segmentation_probe.main(
        ["--quiet", "--epochs", "25", "--batch_size", "8", "--learning_rates", "0.03",
         "--output", str(tmp_path / "probe.json"), *map(str, arguments)]
    )  # fmt: skip


def test_heads_find_what_features_hold_in_rats_and_vit_alike(models, data, tmp_path, capsys):
    record = run(tmp_path, "--model", models["rats"], models["vit"], "--dataset", data, "--head", "linear", "fcn",
                 "--image_size", "64", "--learning_rates", "0.01", "--epochs", "12")  # fmt: skip
    for one in (record, *record["beside"]):
        # Blocks of two patches: upsampled logits blur the borders alone, a sixth of the pixels or so.
        assert one["scores"]["linear"]["miou"] > 75 and one["scores"]["fcn"]["miou"] > 75
        assert one["scores"]["majority"]["miou"] < 20 and one["scores"]["majority"]["pixel_accuracy"] < 50
        assert one["iou"]["majority"]["0"] == one["iou"]["majority"]["1"] == 0 < one["iou"]["majority"]["2"]
    (beside,) = record["beside"]
    assert beside["model"] == models["vit"] and beside["model_config"]["model_type"] == "vit"
    assert beside["fingerprints"]["test"] == record["fingerprints"]["test"]
    assert beside["fingerprints"]["weights"] != record["fingerprints"]["weights"]
    printed = capsys.readouterr()
    assert all(title in printed.out for title in ("linear, rats", "fcn, vit", "majority", "mIoU", "IoU of each label"))
    assert "image/s" not in printed.err


def test_labels_that_images_do_not_tell_are_not_found(models, tmp_path):
    def shuffled(masks, split):
        labels = np.random.default_rng(9 + len(masks)).integers(0, 3, (len(masks), 4, 4))
        return labels.repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8)

    scores = run(tmp_path, "--model", models["vit"], "--dataset", save(tmp_path, shuffled), "--image_size", 64)["scores"]
    assert scores["linear"]["pixel_accuracy"] < 45 and scores["linear"]["miou"] < 30


def test_the_record_says_how(models, data, tmp_path, capsys):
    output = tmp_path / "new" / "probe.json"
    record = run(tmp_path, "--model", models["rats"], "--dataset", data, "--seed", "3", "5",
                 "--learning_rates", "0.001", "0.03", "--limit_train", "20", "--epochs", "3", "--output", output)  # fmt: skip
    written = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert written == json.loads(json.dumps(record)) and list(output.parent.iterdir()) == [output]
    assert list(written["scores"]) == ["linear", "majority"] and "miou_std" in written["scores"]["linear"]
    assert all(isinstance(value, float) for row in written["scores"].values() for value in row.values())
    by_seed = written["by_seed"]["linear"]
    mean = np.mean([by_seed[seed]["miou"] for seed in ("3", "5")])
    assert written["scores"]["linear"]["miou"] == pytest.approx(mean)
    assert set(by_seed["3"]["held_out_miou"]) == {"0.001", "0.03"} and by_seed["3"]["learning_rate"] == 0.03
    assert "the best learning rate is at the edge of those tried (seed 3, 5)" in capsys.readouterr().out
    assert written["data"]["train"] == {"images": 20, "labels": 3, "bytes": 20 * 2 * (32 * 16 + 32 * 32)}
    assert written["data"]["test"] == {"images": 8} and written["data"]["labels"] == [0, 1, 2]
    assert list(written["iou"]["linear"]) == ["0", "1", "2"]
    settings = written["settings"]
    assert settings["model"] == models["rats"] and settings["image_size"] == 32 and settings["test_split"] == "validation"
    assert settings["dataset_is_local"] and settings["rendered"] is None and settings["mask_column"] == "mask"
    assert set(written["fingerprints"]["weight_files"]) == {"model.safetensors"} and written["beside"] == []
    assert "torchmetrics" in written["versions"] and "BNHead" in written["protocol"]
    assert written["command"].startswith("python -m evaluation.segmentation_probe --quiet")


def test_a_seed_repeats_the_scores(models, data, tmp_path):
    given = ("--model", models["rats"], "--dataset", data, "--head", "linear", "fcn", "--epochs", "2")
    first, again = run(tmp_path, *given, "--seed", "1"), run(tmp_path, *given, "--seed", "1")
    other = run(tmp_path, *given, "--seed", "2")
    assert first["by_seed"] == again["by_seed"] and first["iou"] == again["iou"]
    assert other["by_seed"]["linear"]["2"] != first["by_seed"]["linear"]["1"]
    assert other["scores"]["majority"] == first["scores"]["majority"]


def test_pixels_of_the_ignored_label_count_nowhere(models, data, tmp_path):
    """Label 1 made the ignored one, under two names for it: the same head, the same scores, and 1 or 255 is no row."""

    def renamed(masks, split):
        return np.where(masks == 1, IGNORED_LABEL, np.where(masks == 2, 1, masks)).astype(np.uint8)

    (tmp_path / "renamed").mkdir()
    other = save(tmp_path / "renamed", renamed)
    given = ("--model", models["vit"], "--epochs", "3")
    one = run(tmp_path, *given, "--dataset", data, "--ignore_label", 1)
    same = run(tmp_path, *given, "--dataset", other, "--ignore_label", IGNORED_LABEL)
    counted = run(tmp_path, *given, "--dataset", data)
    assert one["data"]["labels"] == [0, 2] and same["data"]["labels"] == [0, 1]
    assert list(one["iou"]["linear"].values()) == list(same["iou"]["linear"].values())
    assert one["scores"] == same["scores"] and counted["scores"]["linear"] != one["scores"]["linear"]


def test_rendered_parts_and_a_benchmark_s_record_are_read(models, tmp_path, capsys):
    for seed, (split, images) in enumerate({"train": 12, "validation": 6}.items()):
        write_dataset(tmp_path / "parts", images, 64, seed, "easy", split, num_processes=1, quiet=True)
    capsys.readouterr()
    record = run(tmp_path, "--model", models["rats"], "--benchmark", "synthetic_parts", "--root", tmp_path / "parts",
                 "--epochs", "4")  # fmt: skip
    assert record["data"]["train"]["images"] == 12 and record["settings"]["rendered"]["difficulty"] == "easy"
    assert record["settings"]["num_labels"] == len(record["data"]["labels"]) == len(record["iou"]["linear"])
    assert record["scores"]["majority"]["pixel_accuracy"] > 40  # the ground
    assert None in record["iou"]["majority"].values()  # a part that no test image shows


@pytest.mark.parametrize(
    "more, message",
    [
        (["--image_size", "36"], r"image_size=36 must be a multiple of the patch size of .*, 8 px"),
        (["--layer", "-9"], "layer=-9 is none of"),
        (["--num_labels", "2"], r"mask of row 0 of split train holds the label 2; .* 0 to 1"),
        (["--train_split", "validation"], "must have two splits"),
        (["--test_split", "test"], "split=test is not in"),
        (["--mask_column", "parts"], "no column 'parts'"),
        (["--learning_rates", "-1"], "learning_rate=-1.0; both must be above 0"),
        (["--seed", "1", "1"], "--seed names"),
        (["--root", "somewhere"], "either --dataset NAME_OR_FOLDER, or --benchmark"),
        (["--benchmark", "car_parts"], "was given with --dataset, which its record tells already"),
    ],
    ids=["patch", "layer", "range", "one split", "no split", "column", "rate", "twice", "root", "benchmark"],
)
def test_what_cannot_be_measured_ends_with_a_sentence(models, data, tmp_path, more, message):
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, "--model", models["rats"], "--dataset", data, "--epochs", "1", *more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, more, message",
    [
        (lambda masks, split: masks[:, :40], [], "Split train: The image of row 0 is 64 x 64 and its mask 64 x 40"),
        (lambda masks, split: 0 * masks, [], "have 1 labels; a head needs two"),
        (lambda masks, split: 0 * masks + 255, ["--ignore_label", "255"], "have 0 labels; a head needs two"),
        (lambda masks, split: masks + 5 * (split != "train"), [], "split validation holds the label 7; .* 0 to 2"),
        (
            lambda masks, split: masks if split == "train" else 0 * masks + 255,
            ["--ignore_label", "255"],
            "All pixels are ignored",
        ),
    ],
    ids=["frames", "one label", "all ignored", "unknown label", "test ignored"],
)
def test_masks_that_cannot_be_used_are_refused(models, tmp_path, change, more, message):
    folder = save(tmp_path, lambda masks, split: change(masks, split).astype(np.uint8))
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, "--model", models["rats"], "--dataset", folder, "--epochs", "1", *more)
    assert not (tmp_path / "probe.json").exists()


def test_an_empty_split_and_other_benchmarks_are_refused(models, data, tmp_path):
    save_split(tmp_path, "train", *coloured(2, np.random.default_rng(0)))
    save_split(tmp_path, "validation", [], [])
    with pytest.raises(SystemExit, match="Split validation: The split holds no rows"):
        run(tmp_path, "--model", models["rats"], "--dataset", tmp_path, "--epochs", "1")
    for benchmark, root, message in (
        ("coco", None, "numbers the regions of each image"),
        ("car_parts", None, "has no masks on the Hub; pass --root DIR"),
        ("ade20k", tmp_path, "has official files, which are read for the split validation alone"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(tmp_path, "--model", models["rats"], "--benchmark", benchmark, *(["--root", root] if root else []))
    with pytest.raises(SystemExit, match="must have two splits"):
        run(tmp_path, "--model", models["rats"], "--dataset", next(Path(data).glob("train*")))
    with pytest.raises(SystemExit, match="The images are missing"):
        run(tmp_path, "--model", models["rats"])
    with pytest.raises(SystemExit, match=r"output=\S+ is a folder"):
        run(tmp_path, "--model", models["rats"], "--dataset", data, "--output", tmp_path)
