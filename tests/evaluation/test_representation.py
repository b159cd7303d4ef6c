"""The k-NN vote against a slow loop and scikit-learn, and how labelled images are read and embedded."""

import io
import math

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from evaluation.representation import (
    knn_accuracy,
    number_labels,
    open_labelled_images,
    pooled_features,
    read_labelled_images,
)
from modeling_rats import RatsImageProcessor, RatsModel

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


# Reading


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((20, 30), value, np.uint8)).save(file, "PNG")  # grey, as some images are
    return {"bytes": file.getvalue(), "path": None}


def save(folder, labels, label_feature, split="train", broken=()):
    features = datasets.Features({"image": datasets.Image(), "label": label_feature, "caption": datasets.Value("string")})
    images = [{"bytes": b"no image", "path": None} if row in broken else png(10 * row) for row in range(len(labels))]
    rows = {"image": images, "label": labels, "caption": ["words"] * len(labels)}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


NAMED = datasets.ClassLabel(names=["cat", "ant"])


@pytest.mark.parametrize(
    "labels, feature, read",
    [
        ([1, 0, 1], NAMED, ["ant", "cat", "ant"]),
        ([7, 0, 7], datasets.Value("int64"), [7, 0, 7]),
        (["b", "a", "b"], datasets.Value("string"), ["b", "a", "b"]),
    ],
    ids=["named", "integers", "strings"],
)
def test_labels_are_names_where_there_are_names(tmp_path, labels, feature, read):
    rows = open_labelled_images(save(tmp_path, labels, feature), None, "train")
    images = list(read_labelled_images(rows))
    assert [labelled.label for labelled in images] == read and [labelled.row for labelled in images] == [0, 1, 2]
    pixels = [labelled.decode() for labelled in images]
    assert [(image.mode, image.size, image.getpixel((0, 0))) for image in pixels] == [
        ("RGB", (30, 20), (level, level, level)) for level in (0, 10, 20)
    ]
    assert [labelled.label for labelled in read_labelled_images(rows, limit=2)] == read[:2]


def test_labels_of_several_splits_get_the_same_numbers():
    first, second = number_labels(["b", "a", "b"], ["c", "a"])
    assert first.tolist() == [1, 0, 1] and second.tolist() == [2, 0] and first.dtype == torch.int64


@pytest.mark.parametrize(
    "labels, feature, options, message",
    [
        ([0], NAMED, {"label_column": "fine"}, "no column 'fine'.* among: image, label, caption"),
        ([0], NAMED, {"image_column": "caption"}, "'caption' .* must hold images"),
        ([0.5], datasets.Value("float32"), {}, "'label' .* must be integers or strings"),
        ([0], NAMED, {"split": "test"}, "split=test is not in"),
    ],
    ids=["column", "images", "labels", "split"],
)
def test_a_data_set_that_is_not_labelled_images_is_refused(tmp_path, labels, feature, options, message):
    with pytest.raises(ValueError, match=message):
        open_labelled_images(**{"dataset": save(tmp_path, labels, feature), "config": None, "split": "train"} | options)


@pytest.mark.parametrize("labels", [[0, -1], [0, None]])
def test_a_row_without_a_label_is_an_error(tmp_path, labels):
    rows = open_labelled_images(save(tmp_path, labels, NAMED), None, "train")
    with pytest.raises(ValueError, match="Row 1 of split train has no label"):
        list(read_labelled_images(rows))


def test_an_image_that_cannot_be_decoded_is_an_error_with_its_row(tmp_path):
    rows = open_labelled_images(save(tmp_path, [0, 1, 0], NAMED, broken=[2]), None, "train")
    images = list(read_labelled_images(rows))
    assert images[1].decode().mode == "RGB"
    with pytest.raises(ValueError, match="image of row 2 of split train cannot be decoded"):
        images[2].decode()


# Features


def some_images(count):
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)) for _ in range(count)]


def test_features_are_the_models_whatever_the_batches(make_config):
    model, processor = RatsModel(make_config()).eval(), RatsImageProcessor(size={"height": 32, "width": 32})
    sizes = []

    def embed(pixel_values):
        sizes.append(len(pixel_values))
        return model(pixel_values, pooled_only=True).pooler_output

    images = some_images(5)
    features = pooled_features(embed, processor, iter(images), batch_size=2)
    assert sizes == [2, 2, 1] and features.shape == (5, 32) and not features.requires_grad
    with torch.no_grad():
        expected = torch.cat([model(**processor(images=[image], return_tensors="pt")).pooler_output for image in images])
    torch.testing.assert_close(features, expected)


def test_images_that_keep_their_shape_go_through_one_by_one():
    processor = RatsImageProcessor(size={"height": 32, "width": 32}, ensure_multiple_of=8)
    images = [*some_images(1), *(image.resize((64, 32)) for image in some_images(1))]
    shapes = []

    def embed(pixel_values):
        shapes.append(tuple(pixel_values.shape))
        return pixel_values.mean(dim=(2, 3))

    assert pooled_features(embed, processor, images).shape == (2, 3)
    assert len(shapes) == 2 and shapes[0][2:] != shapes[1][2:]


def test_no_images_have_no_features():
    with pytest.raises(ValueError, match="no images"):
        pooled_features(lambda pixel_values: pixel_values, None, [])
