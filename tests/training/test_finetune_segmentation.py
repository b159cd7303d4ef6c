"""Fine-tuning end to end on a tiny backbone and a few images: what it leaves, that it goes on exactly, and that it learns."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, Mask2FormerImageProcessor, ViTConfig, ViTModel

from evaluation.records import read_json_lines
from evaluation.segmentation_data import open_segmentation_data
from evaluation.universal_segmentation import score_segmentation
from modeling_rats import RatsForUniversalSegmentation, RatsModel
from training import checkpoint, finetune_segmentation
from training.preemption import EXIT_CODE

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
LABELS = ["ground", "disc", "box"]
COLORS = {1: (220, 40, 40), 2: (40, 60, 220)}


def render(seed, side_px):
    """A disc or box in each of three places on uneven ground, of a third of the image's side and more; what is not ground is
    one of COLORS. The map numbers segments: 1 is the ground, the objects follow."""
    random = np.random.default_rng(seed)
    noise = random.integers(90, 160, (side_px // 8, side_px // 8, 3), dtype=np.uint8)
    image, segments = Image.fromarray(noise).resize((side_px, side_px)), Image.new("L", (side_px, side_px), 1)
    labels = [0, 0]  # of segment 0, which is void, and of the ground
    for number, (x, y) in enumerate([(0.02, 0.04), (0.52, 0.08), (0.29, 0.56)], 2):
        label = int(random.integers(1, 3))
        width, height = random.integers(round(0.34 * side_px), round(0.42 * side_px), 2).tolist()
        left, top = round(x * side_px), round(y * side_px)
        for picture, fill in ((image, COLORS[label]), (segments, number)):
            draw = ImageDraw.Draw(picture)
            (draw.ellipse if label == 1 else draw.rectangle)([left, top, left + width, top + height], fill=fill)
        labels.append(label)
    return image, segments, labels


def write_images(folder, number, side_px, validation=None):
    """Both splits; `validation` has the training images when None."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "segment_mask": datasets.Image(),
            "segment_labels": datasets.Sequence(datasets.Value("int32")),
        }
    )
    for split, seeds in (("train", range(number)), ("validation", range(number) if validation is None else validation)):
        rows = zip(*(render(seed, side_px) for seed in seeds), strict=True)
        columns = dict(zip(features, map(list, rows), strict=True))
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    (folder / "label_names.json").write_text(json.dumps({"label_names": LABELS, "isthing": [0, 1, 1]}))
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 6, 32, validation=range(10, 13))


@pytest.fixture(scope="module")
def backbone(make_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    RatsModel(make_config()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def recipe(images, backbone):
    return {
        "backbone": backbone,
        "dataset": images,
        "task": "semantic",
        "crop_size": 32,
        "feature_size": 32,
        "mask_feature_size": 16,
        "hidden_dim": 16,
        "encoder_layers": 1,
        "encoder_feedforward_dim": 16,
        "decoder_layers": 2,
        "dim_feedforward": 16,
        "num_attention_heads": 4,
        "train_num_points": 16,
        "num_workers": 0,
        "steps": STEPS,
        "batch_size": 2,
        "clip_gradient": 1.0,
        "log_steps": 1,
        "checkpoint_steps": 2,
        "keep_checkpoints": 5,
        "mixed_precision": "no",
        "cpu_threads": 1,
        "quiet": True,
    }


@pytest.fixture(scope="module")
def make_arguments(recipe):
    def make(output, **overrides):
        settings = recipe | {"output_dir": str(output)} | overrides
        path = Path(output).with_suffix(".yaml")
        path.write_text(yaml.safe_dump(settings))
        return [str(path)]

    return make


@pytest.fixture(scope="module")
def finished(make_arguments, tmp_path_factory):
    """A run from start to end."""
    output = tmp_path_factory.mktemp("finished") / "run"
    finetune_segmentation.main(make_arguments(output, eval_steps=2))
    return output


def last_state(output):
    return checkpoint.load(checkpoint.list_checkpoints(Path(output) / "checkpoints")[-1])


def assert_same_end(output, other):
    one, two = last_state(output), last_state(other)
    assert one["step"] == two["step"]
    for name, tensor in one["model"].items():
        torch.testing.assert_close(tensor, two["model"][name], rtol=0, atol=0, msg=name)


def test_a_run_leaves_a_model_its_scores_and_its_log(finished, images):
    model = AutoModelForUniversalSegmentation.from_pretrained(finished / "model")
    assert type(model) is RatsForUniversalSegmentation and model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {name: label for label, name in enumerate(LABELS)} and model.config.num_queries == 8
    processor = AutoImageProcessor.from_pretrained(finished / "model")
    assert isinstance(processor, Mask2FormerImageProcessor)
    assert processor(Image.new("RGB", (60, 33)), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 64)  # whole patches
    log = read_json_lines(finished / "log.jsonl")
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    assert all(0 < entry["loss"] < 1000 and entry["images_per_s"] > 0 and not entry["skipped_steps"] for entry in log)
    measured = read_json_lines(finished / "evaluation.jsonl")
    assert [entry["step"] for entry in measured] == [2, 4]
    data = open_segmentation_data(images, "validation", "semantic")
    assert score_segmentation(model, processor, data) == {name: measured[-1][name] for name in ("miou", "pixel_accuracy")}
    record = json.loads((finished / "model" / "training.json").read_text())
    assert (record["steps"], record["images_seen"], record["training_images"]) == (STEPS, 2 * STEPS, 6)
    assert (finished / "curves.png").stat().st_size > 10_000
    scores = json.loads((finished / "scores.json").read_text())
    assert scores["scores"] == {name: measured[-1][name] for name in scores["scores"]} and scores["images"] == 3
    card = (finished / "model" / "README.md").read_text()
    assert f"{measured[-1]['miou']:.1f}" in card and "curves.png" in card and "image-segmentation" in card


def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_been(make_arguments, finished, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    (output / "checkpoints" / "step_00000004.pt").unlink()
    shutil.rmtree(output / "model")
    finetune_segmentation.main(make_arguments(output))
    assert_same_end(output, finished)
    untimed = [
        [{name: entry[name] for name in ("step", "loss", "gradient_norm")} for entry in read_json_lines(path / "log.jsonl")]
        for path in (output, finished)
    ]
    assert untimed[0] == untimed[1]


def test_another_run_may_take_its_place(make_arguments, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    finetune_segmentation.main(make_arguments(tmp_path / "run", resume="none", seed=1, steps=2))
    (result,) = (tmp_path / "run" / "model" / "results").glob("*.json")
    (measured,) = read_json_lines(tmp_path / "run" / "evaluation.jsonl")
    assert json.loads(result.read_text())["scores"]["model"]["miou"] == measured["miou"] and measured["step"] == 2
    assert len(checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")) == 1


def test_loader_processes_change_nothing(make_arguments, finished, tmp_path):
    finetune_segmentation.main(make_arguments(tmp_path / "run", num_workers=1))
    assert_same_end(tmp_path / "run", finished)


def test_a_signal_stops_after_a_step_that_is_saved(make_arguments, finished, tmp_path, monkeypatch):
    train_step = finetune_segmentation.train_step

    def signal_and_step(run, batch):
        if run.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return train_step(run, batch)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(finetune_segmentation, "train_step", signal_and_step)
        finetune_segmentation.main(make_arguments(tmp_path / "run"))
    assert ended.value.code == EXIT_CODE and last_state(tmp_path / "run")["step"] == 3
    finetune_segmentation.main(make_arguments(tmp_path / "run"))
    assert_same_end(tmp_path / "run", finished)


def test_a_gradient_that_is_not_finite_changes_nothing(make_arguments, tmp_path, monkeypatch):
    train_step = finetune_segmentation.train_step

    def overflow(run, batch):
        before = {name: parameter.clone() for name, parameter in run.model.named_parameters()}
        with monkeypatch.context() as patch:
            if run.step == 1:
                patch.setattr(RatsForUniversalSegmentation, "get_loss", lambda self, losses: sum(losses.values()) * torch.inf)
            figures = train_step(run, batch)
        changed = any(not parameter.equal(before[name]) for name, parameter in run.model.named_parameters())
        assert changed == figures.is_finite == (run.step != 1)
        return figures

    monkeypatch.setattr(finetune_segmentation, "train_step", overflow)
    finetune_segmentation.main(make_arguments(tmp_path / "run"))
    assert read_json_lines(tmp_path / "run" / "log.jsonl")[-1]["skipped_steps"] == 1


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_other_tasks_have_their_own_scores(make_arguments, tmp_path, task):
    finetune_segmentation.main(make_arguments(tmp_path / "run", task=task, steps=2))
    (measured,) = read_json_lines(tmp_path / "run" / "evaluation.jsonl")
    assert set(measured) >= ({"ap", "ap50", "ap75"} if task == "instance" else {"pq", "sq", "rq", "miou"})
    model = RatsForUniversalSegmentation.from_pretrained(tmp_path / "run" / "model")
    assert list(model.config.id2label.values()) == (LABELS[1:] if task == "instance" else LABELS)


def test_a_frozen_backbone_stays_and_its_head_learns(make_arguments, backbone, tmp_path):
    finetune_segmentation.main(make_arguments(tmp_path / "run", freeze_backbone=True, steps=2))
    model = RatsForUniversalSegmentation.from_pretrained(tmp_path / "run" / "model")
    own = RatsModel.from_pretrained(backbone).state_dict()
    assert all(tensor.equal(own[name]) for name, tensor in model.model.encoder.state_dict().items())
    assert not model.class_predictor.bias.eq(0).all()


@pytest.mark.parametrize(
    "overrides",
    [
        {"segmentation_head": "encoder_only"},
        {"query_source": "learned", "num_queries": 5},
        {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        {"mixed_precision": "bf16"},
        {"resize": "scale_jitter", "scale_range": [0.1, 2.0], "color_distortion": True},
        {"schedule": "multistep", "layer_decay": 0.5, "warmup_steps": 1, "drop_path_rate": 0.5},
    ],
    ids=lambda overrides: "-".join(overrides),
)
def test_settings_that_a_run_may_have(make_arguments, tmp_path, overrides):
    finetune_segmentation.main(make_arguments(tmp_path / "run", eval_split="none", steps=2, **overrides))
    assert [entry["skipped_steps"] for entry in read_json_lines(tmp_path / "run" / "log.jsonl")] == [0, 0]
    config = RatsForUniversalSegmentation.from_pretrained(tmp_path / "run" / "model").config
    assert all(getattr(config, name) == value for name, value in overrides.items() if hasattr(config, name))
    assert not (tmp_path / "run" / "evaluation.jsonl").read_text() and not (tmp_path / "run" / "scores.json").exists()


def test_a_vit_is_fine_tuned_alike(make_arguments, tmp_path):
    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32)
    config.patch_size = 8
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    settings = {"backbone": str(tmp_path / "vit"), "query_source": "learned", "num_queries": 8, "steps": 2}
    finetune_segmentation.main(make_arguments(tmp_path / "run", **settings))
    model = RatsForUniversalSegmentation.from_pretrained(tmp_path / "run" / "model")
    assert model.config.backbone_config.model_type == "vit" and model.model.query_projection is None


def test_a_step_is_the_same_on_two_processes_but_for_its_random_points(make_arguments, tmp_path):
    arguments = make_arguments(tmp_path / "run", steps=2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        [*command, "training/finetune_segmentation.py", *arguments], cwd=ROOT, env=environment, start_new_session=True
    )
    try:
        assert launcher.wait(timeout=180) == 0
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    finetune_segmentation.main(make_arguments(tmp_path / "alone", steps=2))
    two, one = (read_json_lines(tmp_path / name / "log.jsonl")[0]["loss"] for name in ("run", "alone"))
    # Both are means over the same images, of losses that are means over as many masks: the points alone differ. If either were
    # a sum over the processes, it would be twice the other.
    assert two == pytest.approx(one, rel=0.25)
    (measured,) = read_json_lines(tmp_path / "run" / "evaluation.jsonl")
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "run" / "model")
    data = open_segmentation_data(yaml.safe_load(Path(arguments[0]).read_text())["dataset"], "validation", "semantic")
    alone = score_segmentation(model, AutoImageProcessor.from_pretrained(tmp_path / "run" / "model"), data)
    assert {name: measured[name] for name in alone} == pytest.approx(alone, abs=1e-4)  # all images, each once


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone": None}, "backbone is missing"),
        ({"dataset": None}, "dataset is missing"),
        ({"eval_split": "train"}, "eval_split=train is the split to train on"),
        ({"layer_decay": 0}, "layer_decay=0.0 must be above 0"),
        ({"scale_range": [2.0, 0.5]}, "must be two rising scales"),
        ({"flip_probability": 2}, "must lie between 0 and 1"),
        ({"drop_path_rate": 1}, "drop_path_rate=1.0 must be 0 <= rate < 1"),
        ({"freeze_backbone": True, "drop_path_rate": 0.1}, "and 0 with a frozen backbone"),
        ({"class_weight": -1}, "class_weight=-1.0 must be at least 0"),
        ({"warmup_steps": STEPS}, "must be less than steps"),
        ({"tasks": "semantic"}, "unknown settings tasks"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_settings_that_cannot_be_are_told(make_arguments, tmp_path, capsys, overrides, message):
    with pytest.raises(SystemExit) as ended:
        finetune_segmentation.main(make_arguments(tmp_path / "run", **overrides))
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_recipe_is_needed(capsys):
    with pytest.raises(SystemExit):
        finetune_segmentation.main([])
    assert "the first argument must be a recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone": "no/such/folder"}, "no/such/folder"),
        ({"dataset": "no/such/data"}, "no/such/data"),
        ({"train_split": "training"}, "training"),
        ({"num_queries": 3}, "num_queries=3 must be at least the backbone's 8 registers"),
        ({"crop_size": 36}, "crop_size=36 must be a multiple of the backbone's patch, 8 px; use 32 or 40"),
        ({"feature_size": 20}, "feature_size=20 must be a positive multiple of 32"),
        ({"label_names": ["ground", "disc"]}, "2"),
        ({"batch_size": 3, "gradient_accumulation_steps": 2}, "batch_size=3 must be divisible by 2"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_does_not_fit_together_ends_without_a_traceback(make_arguments, tmp_path, overrides, message):
    with pytest.raises(SystemExit, match=message):
        finetune_segmentation.main(make_arguments(tmp_path / "run", **overrides))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_annotation_ends_the_run_with_its_message_alone(make_arguments, images, tmp_path, num_workers):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    rows = datasets.load_dataset("parquet", data_files=str(folder / "train-00000-of-00001.parquet"), split="train")
    rows = rows.cast_column("image", datasets.Image(decode=False)).map(lambda row: row | {"segment_labels": [0, 0, 9, 9, 9]})
    rows.cast_column("image", datasets.Image()).to_parquet(folder / "train-00000-of-00001.parquet")
    with pytest.raises(SystemExit, match=r"^The annotation of .* holds the labels 9; they must be 0 to 2") as ended:
        finetune_segmentation.main(make_arguments(tmp_path / "run", dataset=str(folder), num_workers=num_workers))
    assert "Traceback" not in str(ended.value)


def test_another_backbone_does_not_go_on(make_arguments, finished, backbone, tmp_path):
    shutil.copytree(backbone, tmp_path / "other")
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(SystemExit, match="to go on these must stay the same"):
        finetune_segmentation.main(make_arguments(tmp_path / "run", backbone=str(tmp_path / "other")))


def test_a_checkpoint_of_another_run_is_refused(make_arguments, finished, tmp_path):
    with pytest.raises(SystemExit, match=r"written with crop_size=32, and this run has crop_size=40"):
        finetune_segmentation.main(make_arguments(tmp_path / "run", resume=str(finished / "checkpoints"), crop_size=40))
    torch.save({"step": 1, "teacher": {}, "lasting_settings": {}}, tmp_path / "dino.pt")
    with pytest.raises(SystemExit, match=r"dino\.pt is no checkpoint of fine-tuning for segmentation"):
        finetune_segmentation.main(make_arguments(tmp_path / "run", resume=str(tmp_path / "dino.pt")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "head"),
    [("semantic", "mask2former"), ("instance", "mask2former"), ("panoptic", "mask2former"), ("panoptic", "encoder_only")],
)
def test_four_images_are_learnt_by_heart(make_config, recipe, tmp_path, task, head):
    """Objects of 32 px and more."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128, "num_registers": 16, "image_size": 96}
    torch.manual_seed(0)
    RatsModel(make_config(**sizes)).save_pretrained(tmp_path / "backbone")
    (tmp_path / "images").mkdir()
    settings = recipe | {
        "backbone": str(tmp_path / "backbone"),
        "dataset": write_images(tmp_path / "images", 4, 96),
        "task": task,
        "segmentation_head": head,
        "crop_size": 96,
        "resize": "scale_jitter",
        "scale_range": [1.0, 1.0],
        "flip_probability": 0.0,
        "feature_size": 64,
        "mask_feature_size": 64,
        "hidden_dim": 64,
        "encoder_feedforward_dim": 128,
        "decoder_layers": 3,
        "dim_feedforward": 128,
        "train_num_points": 576,
        "steps": 150 if head == "mask2former" else 400,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "backbone_multiplier": 1.0,
        "weight_decay": 0.0,
        "warmup_steps": 10,
        "log_steps": 50,
        "checkpoint_steps": 400,
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    finetune_segmentation.main([str(tmp_path / "recipe.yaml")])
    (scores,) = read_json_lines(tmp_path / "run" / "evaluation.jsonl")
    assert (
        min(scores[name] for name in {"semantic": ["miou"], "instance": ["ap50", "ap"], "panoptic": ["pq", "miou"]}[task]) > 90
    )
