"""The k-NN vote against a slow loop and scikit-learn, and the command on tiny models, alone and on two ranks."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from evaluation import representation
from evaluation.representation import knn_accuracy, knn_scores
from modeling_rats import RatsImageProcessor, RatsModel

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 5


def noisy_classes(images, seed, num_dimensions=8):
    """Features around one random direction a class, of lengths that differ, with their classes."""
    centres = torch.randn(CLASSES, num_dimensions, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    features = centres[labels] + 1.2 * torch.randn(images, num_dimensions, generator=generator)
    return features * (0.1 + 10 * torch.rand(images, 1, generator=generator)), labels


TRAIN, TRAIN_LABELS = noisy_classes(300, seed=1)
TEST, TEST_LABELS = noisy_classes(101, seed=2)


def accuracy_by_loop(num_neighbors, temperature):
    correct = 0
    for query, label in zip(TEST.tolist(), TEST_LABELS.tolist(), strict=True):
        scored = []
        for features, train_label in zip(TRAIN.tolist(), TRAIN_LABELS.tolist(), strict=True):
            product = sum(a * b for a, b in zip(query, features, strict=True))
            scored.append((product / math.hypot(*query) / math.hypot(*features), train_label))
        votes = [0.0] * CLASSES
        for similarity, train_label in sorted(scored, reverse=True)[:num_neighbors]:
            votes[train_label] += math.exp(similarity / temperature)
        correct += votes.index(max(votes)) == label
    return 100 * correct / len(TEST)


@pytest.mark.parametrize("num_neighbors", [1, 20, 300])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_is_the_loop_and_scikit_learns(num_neighbors, temperature):
    accuracy = knn_accuracy(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS, num_neighbors, temperature)
    assert accuracy == accuracy_by_loop(num_neighbors, temperature)
    classifier = KNeighborsClassifier(num_neighbors, metric="cosine", weights=lambda far: np.exp((1 - far) / temperature))
    classifier.fit(TRAIN.double().numpy(), TRAIN_LABELS.numpy())
    predicted = classifier.predict(TEST.double().numpy())
    assert accuracy == 100 * float((predicted == TEST_LABELS.numpy()).mean())
    assert 25 < accuracy < 95  # neither chance nor certainty, so that a wrong vote would show


def test_neighbours_and_temperature_matter():
    accuracies = {
        knn_accuracy(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS, *way) for way in ((1, 0.07), (20, 0.07), (20, 0.3), (300, 1.0))
    }
    assert len(accuracies) == 4


@pytest.mark.parametrize("queries_at_once", [1, 7, 101, 1000])
def test_how_many_queries_are_compared_at_once_changes_nothing(queries_at_once):
    accuracy = knn_accuracy(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS, queries_at_once=queries_at_once)
    assert accuracy == accuracy_by_loop(20, 0.07)


def test_a_low_temperature_leaves_the_nearest():
    nearest = knn_accuracy(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS, num_neighbors=1)
    assert knn_accuracy(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS, temperature=1e-6) == nearest


def test_classes_may_have_any_numbers_and_unknown_ones_are_wrong():
    accuracy = knn_accuracy(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS)
    assert knn_accuracy(TRAIN, 10**9 * TRAIN_LABELS - 7, TEST, 10**9 * TEST_LABELS - 7) == accuracy
    assert knn_accuracy(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS + CLASSES) == 0


def with_one(features, value):
    return features.index_put((torch.tensor(3), torch.tensor(0)), torch.tensor(value))


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((TRAIN[:19], TRAIN_LABELS[:19], TEST, TEST_LABELS), {}, "num_neighbors=20 must be from 1 to .* images, 19"),
        ((TRAIN, TRAIN_LABELS, TEST, TEST_LABELS), {"num_neighbors": 0}, "num_neighbors=0 must be"),
        ((TRAIN, TRAIN_LABELS[1:], TEST, TEST_LABELS), {}, r"training features have shape \(300, 8\) .* \(299,\)"),
        ((TRAIN, TRAIN_LABELS, TEST[0], TEST_LABELS), {}, r"test features have shape \(8,\)"),
        ((TRAIN, TRAIN_LABELS, TEST[:, 1:], TEST_LABELS), {}, "8 dimensions and the test features 7"),
        ((with_one(TRAIN, math.nan), TRAIN_LABELS, TEST, TEST_LABELS), {}, r"1 of 300 training .* finite \(the first: 3\)"),
        ((TRAIN, TRAIN_LABELS, with_one(TEST, math.inf), TEST_LABELS), {}, "1 of 101 test features are not finite"),
        ((TRAIN, TRAIN_LABELS, TEST[:0], TEST_LABELS[:0]), {}, "0 test images"),
        ((TRAIN, TRAIN_LABELS, TEST, TEST_LABELS), {"temperature": 0.0}, "temperature=0.0"),
    ],
    ids=["few", "k of 0", "labels", "one query", "dimensions", "nan", "infinite", "no queries", "temperature"],
)
def test_what_cannot_be_compared_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        knn_accuracy(*arguments, **options)


def seven_classes(images, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(7, (images,), generator=generator)
    centres = torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
    return centres[labels] + 1.5 * torch.randn(images, 8, generator=generator), labels


def test_the_five_best_are_those_with_the_most_votes():
    (train, train_labels), (test, test_labels) = seven_classes(200, 1), seven_classes(100, 2)
    scores = knn_scores(train, train_labels, test, test_labels, [3, 20, 200])
    similarities = torch.nn.functional.cosine_similarity(test[:, None], train[None], dim=2).double()
    for k, reached in scores.items():
        right = 0
        for row, label in zip(similarities, test_labels, strict=True):
            votes = torch.zeros(7, dtype=torch.float64)
            for image in row.argsort(descending=True)[:k]:
                votes[train_labels[image]] += (row[image] / 0.07).exp()
            right += bool(label in votes.argsort(descending=True)[:5] and votes[label] > 0)
        assert reached["top5"] == right and reached["top1"] <= reached["top5"] < 100
        assert reached["top1"] == knn_accuracy(train, train_labels, test, test_labels, k)
    assert scores[3]["top5"] < scores[200]["top5"]


def test_the_order_of_the_images_changes_nothing():
    order, other_order = torch.randperm(300), torch.randperm(101)
    shuffled = (TRAIN[order], TRAIN_LABELS[order], TEST[other_order], TEST_LABELS[other_order])
    assert knn_scores(*shuffled, [1, 20, 300]) == knn_scores(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS, [1, 20, 300])


# The command


@pytest.fixture(scope="module")
def models(make_config, tmp_path_factory):
    """Folders of a tiny RATS and a tiny ViT."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("rats", "vit")}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        RatsModel(make_config()).save_pretrained(folders["rats"])
        ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(folders["vit"])
    RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folders["rats"])
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folders["vit"])
    return {name: str(folder) for name, folder in folders.items()}


NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def save_split(folder, split, classes, seed, names=NAMES, broken=()):
    """Noise in the colour of its class, saved as parquet."""
    random = np.random.default_rng(seed)
    colors = np.random.default_rng(0).integers(40, 200, (len(NAMES), 3))
    images = []
    for row, number in enumerate(classes):
        pixels = (colors[number] + random.integers(-40, 41, (40, 48, 3))).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="png")
        images.append({"bytes": b"no image" if row in broken else file.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    data = datasets.Dataset.from_dict({"image": images, "label": list(classes)}, features=features)
    data.to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(5)
    save_split(folder, "train", random.integers(0, 7, 40), seed=1)
    save_split(folder, "validation", random.integers(0, 7, 21), seed=2)
    return str(folder)


def command(model, data, *more):
    probes = ["--num_neighbors", "5", "20", "--epochs", "20", "--learning_rates", "0.1", "3", "30"]
    return ["--model", model, "--dataset", data, "--quiet", *probes, *more]


def run(*arguments):
    return representation.main(command(*arguments))


def test_the_command_scores_both_probes_and_records_how(models, data, tmp_path, capsys):
    output = tmp_path / "new" / "scores.json"
    record = run(models["rats"], data, "--probe", "knn", "linear", "--output", str(output), "--batch_size", "16")
    written = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert written == json.loads(json.dumps(record)) and list(output.parent.iterdir()) == [output]
    assert list(written["scores"]) == ["5-NN", "20-NN", "linear"]
    for scores in written["scores"].values():
        assert 40 < scores["top1"] <= scores["top5"] <= 100  # colours are easy, even for random weights; chance is 14
    assert str(written["scores"]["linear"]["learning_rate"]) in written["scores"]["linear"]["held_out_top1"]
    settings = written["settings"]
    assert settings["model"] == models["rats"] and settings["revision"] is None and settings["features"] == "registers"
    assert settings["image_size"] == 32 and settings["temperature"] == 0.07 and settings["seed"] == 0
    assert written["model_config"]["model_type"] == "rats" and written["model_config"]["num_registers"] == 8
    assert written["data"]["train"] == {"images": 40, "classes": 7}
    assert written["data"]["test"]["images"] == 21 and written["data"]["test"]["images_of_unknown_classes"] == 0
    fingerprints = written["fingerprints"]
    assert set(fingerprints.pop("weight_files")) == {"model.safetensors"}
    assert len(set(fingerprints.values())) == 3 and set(fingerprints) == {"weights", "train", "test"}
    assert written["command"].startswith("python -m evaluation.representation --model") and written["time"]["processes"] == 1
    assert {"torch", "transformers", "python"} <= set(written["versions"]) and "eval_knn.py" in written["protocol"]
    captured = capsys.readouterr()
    assert all(row in captured.out for row in ("top-1", "5-NN", "20-NN", "linear")) and "image/s" not in captured.err


def test_other_features_and_sizes_are_read_from_a_vit(models, data, tmp_path):
    reached = {}
    for kind in ("class", "patches", "both"):
        output = str(tmp_path / f"{kind}.json")
        record = run(models["vit"], data, "--features", kind, "--image_size", "48", "--limit_test", "9", "--output", output)
        assert record["settings"]["features"] == kind and record["settings"]["image_size"] == 48
        assert record["model_config"]["model_type"] == "vit" and record["data"]["test"]["images"] == 9
        reached[kind] = record["scores"]["5-NN"]["top1"]
    default = run(models["vit"], data, "--limit_test", "9", "--image_size", "48", "--output", str(tmp_path / "default.json"))
    assert default["settings"]["features"] == "class" and default["scores"]["5-NN"]["top1"] == reached["class"]


def test_two_ranks_give_what_one_gives(models, data, tmp_path, monkeypatch):
    """In batches of 7: 40 images are 6 batches, the last of 5, and 21 are 3, so the ranks have unequal shares."""
    more = ("--probe", "knn", "linear", "--batch_size", "7")
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = command(models["rats"], data, *more, "--output", str(tmp_path / "two.json"))
    together = subprocess.run(
        [*launcher, "-m", "evaluation.representation", *arguments],
        cwd=tmp_path, env=environment, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert together.returncode == 0, together.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = run(models["rats"], data, *more, "--output", str(tmp_path / "one.json"))
    finally:
        torch.set_num_threads(threads)
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["time"]["processes"] == 2 and alone["time"]["processes"] == 1
    assert two["scores"] == json.loads(json.dumps(alone["scores"])) and two["data"] == alone["data"]
    assert two["fingerprints"] == alone["fingerprints"]
    assert together.stdout.count("linear") == 1  # one rank prints


def test_classes_that_nothing_was_learnt_of_are_told(models, tmp_path, capsys):
    save_split(tmp_path, "train", [0, 1] * 12, seed=1)
    save_split(tmp_path, "validation", [2, 0, 1, 6], seed=2)
    save_split(tmp_path, "test", [4, 5], seed=3)
    output = str(tmp_path / "scores.json")
    record = run(models["rats"], str(tmp_path), "--output", output)
    assert record["data"]["test"]["images_of_unknown_classes"] == 2 and record["scores"]["5-NN"]["top1"] <= 50
    assert "top5" not in record["scores"]["5-NN"]  # two classes
    assert "2 of 4 test images have classes that none of the 24 training images has (2 classes)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"2 of 2 test images have classes .* so none can be classified"):
        run(models["rats"], str(tmp_path), "--test_split", "test", "--output", output)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--limit_train", "19"], "num_neighbors=20 must be from 1 to the number of training images, 19"),
        (["--num_neighbors", "41"], "num_neighbors=41 must be from 1 to the number of training images, 40"),
        (["--test_split", "train"], "both train"),
        (["--test_split", "test"], "split=test is not in"),
        (["--label_column", "fine"], "no column 'fine'"),
        (["--features", "class"], "no class token"),
        (["--image_size", "36"], "multiple of the patch size"),
        (["--limit_train", "1", "--num_neighbors", "1"], "All 1 images of train_split=train are of the class"),
        (["--temperature", "0"], "temperature=0.0"),
    ],
    ids=["limit", "neighbours", "same split", "no split", "no labels", "features", "patch", "one class", "temperature"],
)
def test_what_cannot_be_measured_ends_with_a_sentence(models, data, tmp_path, more, message):
    with pytest.raises(SystemExit, match=message):
        run(models["rats"], data, *more, "--output", str(tmp_path / "scores.json"))
    with pytest.raises(SystemExit, match=r"output=\S+ is a folder"):
        run(models["rats"], data, "--output", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_single_file_and_broken_images_are_refused(models, data, tmp_path):
    with pytest.raises(SystemExit, match="single file, which has no splits"):
        run(models["rats"], str(next(Path(data).glob("train*"))))
    save_split(tmp_path, "train", [0, 1] * 12, seed=1, broken=[9])
    save_split(tmp_path, "validation", [0], seed=2)
    with pytest.raises(SystemExit, match="image of row 9 of split train cannot be decoded"):
        run(models["rats"], str(tmp_path))
    save_split(tmp_path, "train", [0, -1] * 12, seed=1)
    with pytest.raises(SystemExit, match="Row 1 of split train has no label"):
        run(models["rats"], str(tmp_path))
