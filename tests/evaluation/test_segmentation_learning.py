"""Learning rates are chosen on held-out images alone; many heads are scored in one pass as each would be alone."""

import pytest
import torch

from evaluation.frozen_patches import Batch, Examples
from evaluation.segmentation_heads import IGNORED, Recipe, build_head, predict_classes, train_head
from evaluation.segmentation_learning import learn_head, score_heads
from evaluation.segmentation_scores import SegmentationScores

DIMENSIONS, CLASSES, SIDE = 8, 3, 5
RECIPE = Recipe(epochs=8, batch_size=4, learning_rate=1.0, seed=0)  # its rate is not used


def examples(images, seed):
    weight = torch.randn(CLASSES, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    features = torch.randn(images, DIMENSIONS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    classes = torch.einsum("kd,bdrc->bkrc", weight, features).argmax(dim=1)
    return Examples(list(features.half()), list(classes.short()), classes.flatten().bincount(minlength=CLASSES))


def test_the_rate_that_learns_is_chosen_and_learns_from_all():
    train = examples(30, 1)
    learnt = learn_head("linear", train, CLASSES, [1e-7, 0.03], RECIPE)
    assert learnt.learning_rate == 0.03 and set(learnt.held_out_miou) == {1e-7, 0.03}
    assert learnt.held_out_miou[0.03] > 60 > learnt.held_out_miou[1e-7]
    alone = train_head("linear", train.features, train.classes, CLASSES, RECIPE._replace(learning_rate=0.03))
    assert all(map(torch.equal, learnt.head.state_dict().values(), alone.head.state_dict().values()))
    assert learnt.last_train_loss == alone.loss


def test_the_held_out_tenth_is_not_learnt_from():
    """A label of its own, easy to see, on the held-out images: the head that is tried on them never saw it, the last did."""
    train = examples(20, 1)
    held_out = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:2].tolist()
    for place in held_out:
        train.classes[place] = torch.full_like(train.classes[place], CLASSES)
        train.features[place] += 5
    learnt = learn_head("linear", train, CLASSES + 1, [0.02, 0.03], RECIPE._replace(epochs=20))
    assert max(learnt.held_out_miou.values()) < 5
    predicted = predict_classes(learnt.head, torch.stack([train.features[place] for place in held_out]), [(SIDE, SIDE)] * 2)
    assert (torch.stack(predicted) == CLASSES).float().mean() > 0.9


def test_one_rate_needs_no_choice():
    learnt = learn_head("linear", examples(4, 1), CLASSES, [0.01], RECIPE)
    assert learnt.held_out_miou == {} and learnt.learning_rate == 0.01


def test_heads_are_scored_side_by_side_as_each_alone():
    test = examples(5, 2)
    sizes = [(5, 5), (9, 7), (20, 31), (5, 5), (8, 8)]
    true = [
        torch.randint(-1, CLASSES, size, generator=torch.Generator().manual_seed(place)) for place, size in enumerate(sizes)
    ]
    assert any((own == IGNORED).any() for own in true)
    features = torch.stack(test.features)
    batches = [Batch(features[:3], true[:3], ["a", "b", "c"]), Batch(features[3:], true[3:], ["d", "e"])]
    heads = {name: build_head("linear", DIMENSIONS, CLASSES).eval() for name in ("one", "other")}
    labels = [10, 20, 30]
    summaries, of_majority, fingerprints = score_heads(heads, 2, iter(batches), labels)
    assert fingerprints == ["a", "b", "c", "d", "e"]
    for name, head in heads.items():
        alone = SegmentationScores(CLASSES)
        for predicted, own in zip(predict_classes(head, features, sizes), true, strict=True):
            alone.add(predicted, own)
        assert summaries[name] == alone.summary(labels)
    counted = torch.cat([own.flatten() for own in true])
    share = float((counted == 2).sum() / (counted != IGNORED).sum())
    assert of_majority.pixel_accuracy == pytest.approx(100 * share, rel=1e-5)
    assert of_majority.iou == {10: 0, 20: 0, 30: pytest.approx(100 * share, rel=1e-5)}
    assert of_majority.miou == pytest.approx(100 * share / 3, rel=1e-5)
