"""Heads on features made here: what is linear is learnt, noise is not, ignored pixels count nowhere, seeds repeat."""

import math

import pytest
import torch

from evaluation.segmentation_heads import (
    IGNORED,
    Recipe,
    build_head,
    pixel_loss,
    predict_classes,
    resize_logits,
    share_of_learning_rate,
    train_head,
)

DIMENSIONS, CLASSES, SIDE = 8, 4, 6
RECIPE = Recipe(epochs=30, batch_size=8, learning_rate=0.03, seed=0)


def linear_examples(images, seed):
    """Features, and as the class of each patch the highest of four linear functions of them."""
    weight = torch.randn(CLASSES, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    features = 3 * torch.randn(images, DIMENSIONS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) + 1
    classes = torch.einsum("kd,bdrc->bkrc", weight, features).argmax(dim=1)
    return list(features.half()), list(classes.short())


def accuracy(head, features, classes):
    predicted = predict_classes(head, torch.stack(features), [(SIDE, SIDE)] * len(features))
    return float((torch.stack(predicted) == torch.stack(classes)).float().mean())


def test_the_linear_head_learns_what_is_linear():
    trained = train_head("linear", *linear_examples(64, 1), CLASSES, RECIPE)
    assert not trained.head.training and trained.loss < 0.2
    assert accuracy(trained.head, *linear_examples(16, 2)) > 0.95


def test_the_fcn_head_learns_what_only_neighbours_tell():
    """The class of a patch is the sign of its left neighbour's first feature: no 1x1 convolution can know it."""

    def examples(images, seed):
        features = torch.randn(images, DIMENSIONS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        return list(features.half()), list((features[:, 0].roll(1, dims=2) > 0).short())

    recipe = RECIPE._replace(epochs=6, learning_rate=0.003)
    reached = {
        kind: accuracy(train_head(kind, *examples(64, 1), 2, recipe).head, *examples(16, 2)) for kind in ("linear", "fcn")
    }
    # The first column's neighbour is outside (it was rolled in from the last): a sixth of the patches is chance.
    assert reached["fcn"] > 0.85 and 0.4 < reached["linear"] < 0.6


def test_random_labels_teach_nothing():
    features, _ = linear_examples(64, 1)
    classes = list(torch.randint(CLASSES, (64, SIDE, SIDE), generator=torch.Generator().manual_seed(3)).short())
    head = train_head("linear", features, classes, CLASSES, RECIPE).head
    others, _ = linear_examples(32, 2)
    true = list(torch.randint(CLASSES, (32, SIDE, SIDE), generator=torch.Generator().manual_seed(4)).short())
    assert abs(accuracy(head, others, true) - 1 / CLASSES) < 0.04  # three standard deviations


def test_the_linear_head_is_batch_normalisation_and_one_matrix():
    head = build_head("linear", DIMENSIONS, CLASSES).train()
    features = 5 * torch.randn(3, DIMENSIONS, SIDE, SIDE) + 2
    normed = (features - features.mean(dim=(0, 2, 3), keepdim=True)) / features.std(
        dim=(0, 2, 3), keepdim=True, correction=0
    ).clamp(min=1e-3)
    expected = torch.einsum("kd,bdrc->bkrc", head[-1].weight[:, :, 0, 0], normed) + head[-1].bias[:, None, None]
    torch.testing.assert_close(head(features), expected, rtol=1e-3, atol=1e-5)
    assert [name for name, _ in head.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_the_fcn_head_has_the_layers_of_its_source():
    head = build_head("fcn", DIMENSIONS, CLASSES)
    assert head(torch.randn(2, DIMENSIONS, 5, 7)).shape == (2, CLASSES, 5, 7)
    first, second, norms, last = 9 * DIMENSIONS * 256, 9 * 256 * 256, 4 * 256, (256 + 1) * CLASSES
    assert sum(parameter.numel() for parameter in head.parameters()) == first + second + norms + last
    with pytest.raises(ValueError, match="head=mlp is not known"):
        build_head("mlp", DIMENSIONS, CLASSES)


def test_the_loss_is_the_loop_over_pixels_that_count():
    logits = torch.randn(2, CLASSES, 3, 5, dtype=torch.float64)
    classes = torch.randint(CLASSES, (2, 9, 10))
    classes[0, 2:4] = classes[1, :, 7] = IGNORED
    upsampled = resize_logits(logits, (9, 10))
    losses = []
    for image in range(2):
        for y in range(9):
            for x in range(10):
                if classes[image, y, x] != IGNORED:
                    scores = upsampled[image, :, y, x].tolist()
                    true = scores[classes[image, y, x]]
                    losses.append(math.log(sum(math.exp(score) for score in scores)) - true)
    assert float(pixel_loss(logits, classes)) == pytest.approx(sum(losses) / len(losses))
    assert float(pixel_loss(logits, torch.full_like(classes, IGNORED))) == 0


def test_ignored_pixels_teach_nothing():
    """Wrong labels in half of each image: ignored they change nothing, else a lot."""
    features, classes = linear_examples(64, 1)
    wrong, ignored = ([own.clone() for own in classes] for _ in range(2))
    for own, without in zip(wrong, ignored, strict=True):
        own[:, :4] = 0
        without[:, :4] = IGNORED
    test = linear_examples(16, 2)
    assert accuracy(train_head("linear", features, ignored, CLASSES, RECIPE).head, *test) > 0.95
    assert accuracy(train_head("linear", features, wrong, CLASSES, RECIPE).head, *test) < 0.7


@pytest.mark.parametrize("kind", ["linear", "fcn"])
def test_a_seed_repeats_a_head_and_leaves_the_generator_alone(kind):
    features, classes = linear_examples(12, 1)
    recipe = Recipe(2, 5, 0.01, 7)
    before = torch.random.get_rng_state()
    heads = []
    for seed in (7, 7, 8):
        heads.append(train_head(kind, features, classes, CLASSES, recipe._replace(seed=seed)))
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.rand(1)
        before = torch.random.get_rng_state()
    first, again, other = (list(one.head.state_dict().values()) for one in heads)
    assert all(map(torch.equal, first, again)) and heads[0].loss == heads[1].loss
    assert not all(map(torch.equal, first, other))


@pytest.mark.parametrize("kind, dimensions", [("linear", DIMENSIONS), ("linear", 3), ("fcn", DIMENSIONS)])
def test_the_order_of_the_images_is_the_seed_s_alone(kind, dimensions):
    """Each epoch sees each image once, in an order of its own, which is the same for all heads and models."""
    read = []

    class Noted(list):
        def __getitem__(self, place):
            read.append(int(place))
            return super().__getitem__(place)

    features, classes = linear_examples(7, 1)
    features = [own[:dimensions] for own in features]
    train_head(kind, Noted(features), classes, CLASSES, Recipe(2, 3, 0.01, 5))
    expected = torch.Generator().manual_seed(5)
    assert read[1:] == [place for _ in range(2) for place in torch.randperm(7, generator=expected).tolist()]  # [0] for D


def test_the_learning_rate_warms_up_and_falls_to_zero():
    shares = [share_of_learning_rate(step, 40_000) for step in range(40_001)]
    assert shares[0] == pytest.approx(1 / 1500) and shares[40_000] == 0
    assert shares.index(max(shares)) == 1499 and shares[20_000] == pytest.approx(0.5)
    assert share_of_learning_rate(0, 5) == 1  # no warm-up where it would be shorter than a step


@pytest.mark.parametrize("size", [(30, 17), (6, 5), (3, 2), (224, 200)])
def test_logits_are_resized_as_torch_does_it(size):
    logits = torch.randn(2, CLASSES, 6, 5, requires_grad=True)
    expected = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_logits(logits, size), expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((own * weight).sum(), logits)[0] for own in (resize_logits(logits, size), expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_predictions_have_each_mask_s_size():
    head = build_head("linear", DIMENSIONS, CLASSES).eval()
    features = torch.randn(2, DIMENSIONS, 3, 3)
    first, second = predict_classes(head, features, [(7, 9), (30, 20)])
    assert first.shape == (7, 9) and second.shape == (30, 20)
    assert torch.equal(second, resize_logits(head(features)[1:], (30, 20))[0].argmax(dim=0))


def test_what_cannot_be_learnt_is_refused():
    features, classes = linear_examples(8, 1)
    with pytest.raises(ValueError, match="learning_rate=0"):
        train_head("linear", features, classes, CLASSES, RECIPE._replace(learning_rate=0.0))
    with pytest.raises(ValueError, match="from 0 images"):
        train_head("linear", [], [], CLASSES, RECIPE)
    with pytest.raises(ValueError, match="so high that the linear head's weights are not finite"):
        train_head("linear", features, classes, CLASSES, RECIPE._replace(learning_rate=1e30))
