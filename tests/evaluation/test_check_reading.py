import json
import math

import pytest
import torch
from PIL import Image

from evaluation import check_reading
from evaluation.check_reading import READINGS, agreement, build, check_readings, main, tell, verdict
from evaluation.synthetic_parts import write_dataset
from modeling_rats import RatsForPreTraining
from modeling_rats.original_checkpoint_rats import read_original_checkpoint
from tests.original_checkpoints import TINY, TINY_HEAD, backbone, head, published


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint_teacher_ep0002.pth"
    torch.save(published(backbone(**TINY), head(TINY["hidden_size"], **TINY_HEAD)), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_dataset(folder, 6, 48, 0, "easy", "validation", num_processes=1, quiet=True)
    return folder


def test_agreement_is_that_of_its_definition():
    """The loops of the docstring."""
    torch.manual_seed(0)
    first, second = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    measured = agreement(first, second, teacher_temperature=0.3)
    center = torch.cat([first, second]).mean(dim=0)
    same, other, contrasts = [], [], {t: torch.zeros(5) for t in check_reading.CONTRAST_TEMPERATURES}
    for targets, predictions in ((first, second), (second, first)):
        for i in range(5):
            p = ((targets[i] - center) / 0.3).softmax(-1)
            entropies = torch.stack([-(p * (predictions[j] / 0.1).log_softmax(-1)).sum() for j in range(5)])
            same.append(entropies[i].item())
            other += [entropies[j].item() for j in range(5) if j != i]
            for temperature, losses in contrasts.items():
                losses[i] += -(-entropies / temperature).log_softmax(-1)[i].item() / 2
    assert measured.same == pytest.approx(sum(same) / len(same))
    assert measured.other == pytest.approx(sum(other) / len(other))
    best = min(contrasts.values(), key=lambda losses: losses.mean())
    torch.testing.assert_close(measured.contrast.float(), best)


def test_agreement_of_equal_views_of_different_images_is_complete():
    logits = 5 * torch.eye(4)
    measured = agreement(logits, logits, teacher_temperature=0.04)
    assert measured.found == 100 and measured.contrast.max() < 0.01
    assert measured.marginal_entropy == pytest.approx(math.log(4), abs=1e-4)
    collapsed = agreement(torch.ones(4, 4), torch.ones(4, 4), teacher_temperature=0.04)
    assert collapsed.contrast.mean() == pytest.approx(math.log(4))


def test_contrast_finds_the_views_that_belong_together_where_the_larger_logits_do_not():
    """Logits of a wrong reading: three times as large, and noisier."""
    torch.manual_seed(0)
    images, noise = torch.randn(60, 8) / 10, torch.randn(2, 60, 8) / 10
    right = agreement(images + noise[0] / 2, images + noise[1] / 2, 0.04)
    wrong = agreement(3 * (images + noise[0]), 3 * (images + noise[1]), 0.04)
    assert wrong.other - wrong.same > right.other - right.same
    assert wrong.contrast.mean() > right.contrast.mean() + 0.1 and wrong.found < right.found


@pytest.mark.parametrize("name", READINGS)
def test_every_reading_computes_with_the_same_weights_and_differs_from_ours(name, checkpoint):
    reading = READINGS[name]
    order = "register_major" if reading.other_order else "head_major"
    original = read_original_checkpoint(checkpoint, num_attention_heads=4, register_order=order)
    model = build(original, reading)
    registers = model.rats.embeddings.register_tokens
    ours = build(read_original_checkpoint(checkpoint, num_attention_heads=4), READINGS["rats"])
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in ours.named_parameters()}
    for (parameter, value), mine in zip(model.named_parameters(), ours.parameters(), strict=True):
        if not reading.other_order or "register_tokens" not in parameter:
            assert torch.equal(value, mine), parameter
    assert torch.equal(registers.sort(dim=1)[0], ours.rats.embeddings.register_tokens.sort(dim=1)[0])
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        difference = (model(images).logits - ours(images).logits).abs().max()
    assert (difference == 0) if name == "rats" else (difference > 1e-4)


def test_images_are_compared_with_all_others_however_they_are_batched(checkpoint):
    torch.manual_seed(0)
    original = {
        other: read_original_checkpoint(
            checkpoint, num_attention_heads=4, register_order="register_major" if other else "head_major"
        )
        for other in (False, True)
    }
    first = torch.randn(8, 3, 32, 32)
    second = first + torch.randn(8, 3, 32, 32) / 2
    at_once = check_readings(original, [[(first, second)]], 0.04)
    draws = [[(first[:5], second[:5]), (first[5:], second[5:])]] * 2
    in_batches = check_readings(original, draws, 0.04)
    assert at_once.keys() == in_batches.keys() == READINGS.keys()
    for name, scores in at_once.items():
        assert len(scores["contrasts"]) == 8 and scores["contrast"] < math.log(8)
        assert scores["contrasts"] == pytest.approx(in_batches[name]["contrasts"], abs=1e-3), name


def test_the_verdict_rules_out_what_is_clearly_behind():
    best = {"contrasts": [1.0, 2.0, 3.0], "contrast": 2.0}
    close = {"contrasts": [1.1, 1.8, 3.1], "contrast": 2.001}
    far = {"contrasts": [2.0, 3.1, 3.9], "contrast": 3.0}
    found = verdict({"rats": far, "all_heads": best, "perceiver": close})
    assert found["best"] == "all_heads" and found["possible"] == ["all_heads", "perceiver"]
    assert found["behind"]["rats"] == pytest.approx((1.0, 0.1 / 3**0.5))
    assert tell(found).startswith("Too close to call: all_heads, perceiver; clearly worse: rats. Use more")
    assert tell(verdict({"all_heads": best, "perceiver": close})).startswith("Too close to call: all_heads, perceiver. Use")
    alone = tell(verdict({"rats": far, "all_heads": best}))
    assert alone.startswith(
        "Of the 2 readings the weights fit all_heads best (registers leave through all heads): rats is 1.000"
    )


def test_the_command_prints_a_table_and_writes_a_record(checkpoint, images, tmp_path, capsys):
    output = tmp_path / "readings.json"
    command = [
        "--checkpoint",
        str(checkpoint),
        "--num_attention_heads",
        "4",
        "--dataset",
        str(images),
        "--image_column",
        "image",
    ]
    main([*command, "--mask_column", "mask", "--draws", "2", "--batch_size", "4", "--output", str(output), "--quiet"])
    record = json.loads(output.read_text())
    printed = capsys.readouterr().out
    assert record["readings"].keys() == READINGS.keys() and record["images"] == 6
    assert record["source"]["epochs"] == 2 and len(record["source"]["sha256"]) == 64
    assert record["settings"]["image_size"] == 32
    for name, scores in record["readings"].items():
        assert f"{scores['contrast']:.3f}" in next(line for line in printed.splitlines() if line.startswith(f"{name} "))
        assert 0 <= scores["m2o_miou"] <= 100
    assert tell(record["verdict"]) in printed
    again = tmp_path / "again.json"
    main([*command, "--draws", "2", "--batch_size", "3", "--output", str(again), "--quiet"])
    repeated = json.loads(again.read_text())["readings"]
    assert repeated["rats"]["contrast"] == pytest.approx(record["readings"]["rats"]["contrast"], abs=1e-5)


def test_labels_give_the_accuracy_of_neighbours(checkpoint, tmp_path, capsys):
    """Classes of one colour each: any features tell them apart, if images of both vote though the data are sorted."""
    for label, color in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / "validation" / label).mkdir(parents=True)
        for number in range(6):
            shade = tuple(channel // (1 + number) for channel in color)
            Image.new("RGB", (40, 40), shade).save(tmp_path / "validation" / label / f"{number}.png")
    command = ["--checkpoint", str(checkpoint), "--num_attention_heads", "4", "--dataset", str(tmp_path), "--quiet"]
    record = main([*command, "--label_column", "label", "--draws", "1"])
    assert "20-NN" in capsys.readouterr().out
    assert {scores["knn"] for scores in record["readings"].values()} == {100.0}
    with pytest.raises(SystemExit, match="All 4 images are of the class blue"):
        main([*command, "--label_column", "label", "--images", "4", "--draws", "1"])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--images", "1"], "at least 2"),
        (["--num_registers", "9"], "num_registers=9"),
        (["--file", "a.pth"], "leave one of them out"),
    ],
)
def test_what_cannot_be_checked_is_refused(more, told, checkpoint, images):
    with pytest.raises(SystemExit, match=told):
        given = ["--checkpoint", str(checkpoint), "--num_attention_heads", "4", "--dataset", str(images)]
        main([*given, "--image_column", "image", "--quiet", *more])


def test_a_checkpoint_without_head_is_refused(images, tmp_path):
    path = tmp_path / "no_head.pth"
    torch.save(published(backbone(**TINY)), path)
    with pytest.raises(SystemExit, match="no DINO head"):
        main(["--checkpoint", str(path), "--num_attention_heads", "4", "--dataset", str(images), "--image_column", "image"])


def test_models_share_the_weights_of_the_checkpoint(checkpoint):
    original = read_original_checkpoint(checkpoint, num_attention_heads=4)
    model = build(original, READINGS["rats"])
    assert isinstance(model, RatsForPreTraining)
    assert model.rats.layernorm.weight.data_ptr() == original.tensors["layernorm.weight"].data_ptr()
