"""The linear probe against a slow loop and scikit-learn, on features with and without anything to learn."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from evaluation.linear_probe import linear_probe

CLASSES, DIMENSIONS = 6, 8


def clouds(images, seed, spread):
    """Features around one direction a class, with their classes."""
    centres = torch.randn(CLASSES, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    return centres[labels] + spread * torch.randn(images, DIMENSIONS, generator=generator), labels


def test_what_can_be_separated_is():
    reached = linear_probe(*clouds(300, 1, 0.05), *clouds(100, 2, 0.05), epochs=20)
    assert reached.scores == {"top1": 100.0, "top5": 100.0}


def test_as_good_as_logistic_regression_where_classes_overlap():
    train, train_labels = clouds(1000, 1, 0.9)
    test, test_labels = clouds(1000, 2, 0.9)
    reached = linear_probe(train, train_labels, test, test_labels, epochs=20).scores
    expected = 100 * LogisticRegression(C=1e6).fit(train.numpy(), train_labels.numpy()).score(test.numpy(), test_labels.numpy())
    assert 50 < expected < 90 and abs(reached["top1"] - expected) < 2 and reached["top1"] < reached["top5"] < 100


def test_noise_teaches_nothing():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (1000,), generator=generator)
    features = torch.randn(1000, DIMENSIONS, generator=generator)
    reached = linear_probe(features[:500], labels[:500], features[500:], labels[500:], epochs=20)
    assert abs(reached.scores["top1"] - 100 / CLASSES) < 5  # three standard deviations


def test_the_weights_are_those_of_a_loop(monkeypatch):
    """SGD with momentum and a cosine over the epochs, in plain arithmetic; seven images in batches of three."""
    (train, labels), (test, test_labels) = clouds(7, 1, 1.0), clouds(5, 2, 1.0)
    labels[:6] = torch.arange(6)  # all classes are there
    trained = []
    monkeypatch.setattr("evaluation.linear_probe._score", lambda classifier, *_: trained.append(classifier) or ({}, 0.0))
    linear_probe(train, labels, test, test_labels, [0.7], epochs=3, batch_size=3, seed=4)

    generator = torch.Generator().manual_seed(4)
    weight, bias = 0.01 * torch.randn(CLASSES, DIMENSIONS, generator=generator), torch.zeros(CLASSES)
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    for epoch in range(3):
        rate = 0.7 * 3 / 256 * (1 + math.cos(math.pi * epoch / 3)) / 2
        for batch in torch.randperm(7, generator=generator).split(3):
            probabilities = (train[batch] @ weight.T + bias).softmax(dim=1)
            error = (probabilities - torch.eye(CLASSES)[labels[batch]]) / len(batch)
            weight_velocity = 0.9 * weight_velocity + error.T @ train[batch]
            bias_velocity = 0.9 * bias_velocity + error.sum(dim=0)
            weight, bias = weight - rate * weight_velocity, bias - rate * bias_velocity
    torch.testing.assert_close(trained[0].weight.detach(), weight)
    torch.testing.assert_close(trained[0].bias.detach(), bias)


def test_the_rate_is_chosen_on_held_out_training_images():
    train, test = clouds(200, 1, 0.6), clouds(100, 2, 0.6)
    rates = {"learning_rates": [1e-9, 0.3, 1e-6], "epochs": 10, "batch_size": 20}
    swept = linear_probe(*train, *test, **rates)
    assert list(swept.held_out_top1) == rates["learning_rates"] and swept.learning_rate == 0.3
    assert swept.held_out_top1[0.3] > max(swept.held_out_top1[1e-9], swept.held_out_top1[1e-6])
    alone = linear_probe(*train, *test, **rates | {"learning_rates": [0.3]})
    assert alone.scores == swept.scores and alone.held_out_top1 == {}  # trained again on all training images
    other_labels = linear_probe(*train, test[0], (test[1] + 1) % CLASSES, **rates)
    assert (
        other_labels.held_out_top1 == swept.held_out_top1 and other_labels.learning_rate == 0.3
    )  # the test images have no say


def test_of_equally_good_rates_that_of_the_lower_loss_is_taken():
    train, test = clouds(100, 1, 0.05), clouds(50, 2, 0.05)
    swept = linear_probe(*train, *test, learning_rates=[0.5, 3.0, 1.0], epochs=40, batch_size=20)
    assert set(swept.held_out_top1.values()) == {100.0} and swept.learning_rate == 3.0


def test_a_rate_that_diverges_is_not_chosen():
    (train, labels), (test, test_labels) = clouds(100, 1, 0.3), clouds(50, 2, 0.3)
    train[:, 0] *= 1e20
    test[:, 0] *= 1e20
    swept = linear_probe(train, labels, test, test_labels, learning_rates=[1e30, 1e-30], epochs=3, batch_size=20)
    assert swept.held_out_top1[1e30] == 0 and swept.learning_rate == 1e-30


def test_a_rate_is_held_out_as_if_it_were_alone():
    train, test = clouds(100, 1, 0.9), clouds(50, 2, 0.9)
    two = linear_probe(*train, *test, learning_rates=[0.01, 0.3], epochs=5).held_out_top1
    four = linear_probe(*train, *test, learning_rates=[1e30, 0.3, 0.1, 0.01], epochs=5).held_out_top1
    assert {rate: four[rate] for rate in two} == two


def test_the_seed_decides_and_torchs_own_generator_is_left_alone():
    train, test = clouds(60, 1, 1.0), clouds(500, 2, 1.0)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    reached = [linear_probe(*train, *test, learning_rates=[0.01, 0.1], epochs=2, seed=seed) for seed in (0, 0, 1)]
    assert reached[0] == reached[1] != reached[2] and torch.equal(torch.get_rng_state(), state)


def test_classes_may_have_any_numbers_and_unknown_ones_are_wrong():
    (train, labels), (test, test_labels) = clouds(200, 1, 0.6), clouds(100, 2, 0.6)
    reached = linear_probe(train, labels, test, test_labels, [0.1], epochs=5).scores
    assert linear_probe(train, 10**9 * labels - 7, test, 10**9 * test_labels - 7, [0.1], epochs=5).scores == reached
    assert linear_probe(train, labels, test, test_labels + CLASSES, [0.1], epochs=5).scores == {"top1": 0.0, "top5": 0.0}


TRAIN, LABELS = clouds(20, 1, 1.0)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((TRAIN, LABELS, TRAIN[:, 1:], LABELS), {}, "8 dimensions and the test features 7"),
        ((TRAIN, LABELS[1:], TRAIN, LABELS), {}, r"training features have shape \(20, 8\)"),
        ((TRAIN, torch.zeros_like(LABELS), TRAIN, LABELS), {}, "There are 1 classes"),
        ((TRAIN, LABELS, TRAIN[:0], LABELS[:0]), {}, "0 test images"),
        ((TRAIN / 0, LABELS, TRAIN, LABELS), {}, "20 of 20 training features are not finite"),
        ((TRAIN, LABELS, TRAIN, LABELS), {"learning_rates": []}, r"learning_rates=\[\]"),
        ((TRAIN, LABELS, TRAIN, LABELS), {"learning_rates": [0.1, -1.0]}, r"learning_rates=\[0.1, -1.0\]"),
        ((1e20 * TRAIN, LABELS, TRAIN, LABELS), {"learning_rates": [1e30]}, "learning_rate=1e.30 is so high"),
    ],
    ids=["dimensions", "labels", "one class", "no queries", "infinite", "no rates", "negative rate", "diverged"],
)
def test_what_cannot_be_learnt_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(*arguments, **options)
