"""The teacher measured in between: scores that are those of all images on however many ranks, and nothing disturbed.

The test of two ranks runs this file twice, as two gloo processes.
"""

import io
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import ViTImageProcessor

from evaluation.data_sets import open_rows
from evaluation.mask_samples import open_mask_dataset, read_mask_samples
from evaluation.part_scoring import evaluate_parts
from evaluation.records import read_json_lines
from evaluation.representation import knn_accuracy
from evaluation.segmenters import rats_segmenter
from modeling_rats import RatsConfig, RatsForPartSegmentation, RatsImageProcessor
from modeling_rats.visualization import register_colors
from training import checkpoint, pretrain
from training.arguments import QUICKSTART
from training.networks import build_backbone_and_head
from training.periodic_evaluation import PANEL_PX, PeriodicEvaluation, draw_parts
from training.settings import DataSettings, EvaluationSettings, ModelSettings, Settings, TrainingSettings

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"height": 32, "width": 32}
CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_registers": 8,
    "patch_size": 8,
    "image_size": 32,
    "num_prototypes": 16,
    "head_hidden_size": 16,
    "head_bottleneck_size": 8,
    "initializer_range": 0.3,  # so that untrained features differ
}
SCORES = {
    "m2o_miou",
    "m2o_miou_foreground",
    "o2o_miou",
    "o2o_miou_foreground",
    "ari",
    "ari_foreground",
    "boundary_f",
    "segments_used",
}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only wait for each other on so small a model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def save_split(folder, split, images, seed, classes=3, label_offset=0, foreground=True, broken=()):
    """Noise whose mean colour tells the class more or less, with two regions before the background but in every third image."""
    generator = np.random.default_rng(seed)
    rows = {"image": [], "mask": [], "label": []}
    for index in range(images):
        label = int(generator.integers(classes)) + label_offset
        tint = generator.integers(0, 60, 3, dtype=np.uint8)
        tint[label % 3] += 20
        pixels = generator.integers(0, 120, (40, 48, 3), dtype=np.uint8) + tint
        mask = np.zeros((40, 48), np.uint8)
        if foreground and index % 3 != 2:
            mask[5:25, 5:20], mask[10:35, 22:40] = 1, 2
        rows["image"].append({"bytes": b"no image", "path": None} if index in broken else encoded(pixels))
        rows["mask"].append(encoded(mask))
        rows["label"].append(f"class {label}")
    features = {"image": datasets.Image(), "mask": datasets.Image(), "label": datasets.Value("string")}
    file = Path(folder) / f"{split}-00000-of-00001.parquet"
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(file)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """31 images that vote and 13 that are classified; these also have masks."""
    folder = tmp_path_factory.mktemp("data")
    save_split(folder, "train", 31, seed=0)
    return save_split(folder, "validation", 13, seed=1)


def settings_of(model_type="rats", **evaluation):
    model = ModelSettings(model_type=model_type)
    few = {"eval_steps": 2, "eval_images": 7, "eval_pictures": 3, "knn_neighbors": 5}
    return Settings(model, DataSettings(), TrainingSettings(quiet=True), EvaluationSettings(**few | evaluation))


def build_teacher(model_type="rats"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = RatsConfig(**CONFIG)
        if model_type == "rats":
            return RatsForPartSegmentation(config).eval(), RatsImageProcessor(size=SIZE)
        return build_backbone_and_head(model_type, config)[0].eval(), ViTImageProcessor(size=SIZE)


def some_views(batch=4):
    return torch.randint(256, (batch, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def part_scores(model, processor, data, images):
    """The expected ones, by the evaluation's own way."""
    samples = read_mask_samples(open_mask_dataset(data), limit=images)
    return evaluate_parts({"model": rats_segmenter(model, processor)}, samples)["model"].summary()


def pooled(model, processor, data, split, images, take):
    """Features and labels one image at a time."""
    rows = list(open_rows(data, None, split).take(images))
    with torch.no_grad():
        features = [
            take(model.base_model(processor(images=[row["image"]], return_tensors="pt")["pixel_values"])) for row in rows
        ]
    return torch.cat(features), torch.tensor([int(row["label"][-1]) for row in rows])


def measure(settings, output, model, processor, step=2):
    evaluation = PeriodicEvaluation(Accelerator(cpu=True), settings, output)
    return evaluation.measure(step, model, processor, some_views())


def test_scores_are_those_of_the_first_images(tmp_path, data):
    model, processor = build_teacher()
    few = {"knn_train_images": 29, "knn_test_images": 11, "knn_neighbors": 10}
    settings = settings_of(eval_dataset=data, knn_dataset=data, **few)
    scores = measure(settings, tmp_path, model, processor)
    assert set(scores) == {*SCORES, "knn_accuracy"}
    expected = part_scores(model, processor, data, images=7)
    assert expected["images_with_foreground"] == 5
    assert {name: scores[name] for name in SCORES} == pytest.approx({name: expected[name] for name in SCORES})
    splits = (("train", 29), ("validation", 11))
    train, test = (pooled(model, processor, data, *split, take=lambda outputs: outputs.pooler_output) for split in splits)
    assert scores["knn_accuracy"] == knn_accuracy(*train, *test, num_neighbors=10)
    assert scores["knn_accuracy"] not in (0, 100, knn_accuracy(*train, *test, num_neighbors=20))


def test_each_measurement_is_a_line_and_a_picture(tmp_path, data):
    model, processor = build_teacher()
    evaluation = PeriodicEvaluation(Accelerator(cpu=True), settings_of(eval_dataset=data), tmp_path)
    scores = [evaluation.measure(step, model, processor, some_views()) for step in (2, 400)]
    assert scores[0] == scores[1]
    lines = read_json_lines(tmp_path / "evaluation.jsonl")
    assert [line.pop("step") for line in lines] == [2, 400] and all(line.pop("seconds") > 0 for line in lines)
    assert lines == scores
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["step_00000002.png", "step_00000400.png"]
    first_images = [sample.image for sample in read_mask_samples(open_mask_dataset(data), limit=3)]
    expected = draw_parts(first_images, rats_segmenter(model, processor))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "parts" / "step_00000002.png")), np.asarray(expected))


def test_scores_that_no_image_has_are_left_out(tmp_path):
    model, processor = build_teacher()
    data = save_split(tmp_path, "validation", 3, seed=0, foreground=False)
    scores = measure(settings_of(eval_dataset=data), tmp_path, model, processor)
    assert set(scores) == {"m2o_miou", "o2o_miou", "ari", "boundary_f", "segments_used"}
    json.loads((tmp_path / "evaluation.jsonl").read_text(), parse_constant=pytest.fail)


def test_without_masks_the_views_are_drawn(tmp_path):
    model, processor = build_teacher()
    assert measure(settings_of(), tmp_path, model, processor) == {}
    views = [Image.fromarray(view) for view in some_views().numpy()[:3]]
    expected = draw_parts(views, rats_segmenter(model, processor))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "parts" / "step_00000002.png")), np.asarray(expected))
    assert [set(line) for line in read_json_lines(tmp_path / "evaluation.jsonl")] == [{"step", "seconds"}]


def test_no_pictures_may_be_wanted(tmp_path, data):
    measure(settings_of(eval_dataset=data, eval_pictures=0), tmp_path, *build_teacher())
    assert not (tmp_path / "parts").exists()


def test_a_picture_shows_image_and_parts_in_pairs_and_a_register_in_its_colour():
    images = [Image.new("RGB", size, "black") for size in ((32, 32), (64, 32), (300, 300))]

    def segment(batch):
        return [np.full(size, 5) for size in batch.target_sizes]

    picture = np.asarray(draw_parts(images, segment))
    assert picture.shape == (2 * PANEL_PX + 4, 6 * PANEL_PX + 3 * 4, 3)  # two pairs a row, the second twice as wide
    assert not picture[:PANEL_PX, :PANEL_PX].any()
    colour = np.round(0.6 * register_colors(6)[5])
    for row, column in ((0, PANEL_PX + 4), (0, 4 * PANEL_PX + 3 * 4), (PANEL_PX + 4, PANEL_PX + 4)):
        part_map = picture[row : row + PANEL_PX, column : column + PANEL_PX]
        assert np.abs(part_map - colour).max() <= 1


@pytest.mark.parametrize("model_type", ["vit", "registers"])
def test_a_twin_has_no_parts_but_neighbours(tmp_path, data, capsys, model_type):
    model, processor = build_teacher(model_type)
    settings = settings_of(model_type, eval_dataset=data, knn_dataset=data)
    evaluation = PeriodicEvaluation(Accelerator(cpu=True), settings, tmp_path)
    scores = [evaluation.measure(step, model, processor, some_views()) for step in (2, 4)]
    assert capsys.readouterr().out.count("has no part maps") == 1
    tokens = slice(0, 1) if model_type == "vit" else slice(1, 9)  # the class token; the registers behind it

    def take(outputs):
        return outputs.last_hidden_state[:, tokens].mean(dim=1)

    splits = (("train", 31), ("validation", 13))
    train, test = (pooled(model, processor, data, *split, take=take) for split in splits)
    assert scores == [{"knn_accuracy": knn_accuracy(*train, *test, num_neighbors=5)}] * 2
    assert not (tmp_path / "parts").exists()


def test_measuring_disturbs_nothing(tmp_path, data):
    model, processor = build_teacher()
    views, weights = some_views(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    evaluation = PeriodicEvaluation(Accelerator(cpu=True), settings_of(eval_dataset=data, knn_dataset=data), tmp_path)
    evaluation.measure(2, model, processor, views)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(views, some_views()) and torch.is_grad_enabled()


@pytest.mark.slow
def test_a_run_ends_with_the_same_weights_whether_it_is_measured_or_not(tmp_path, data):
    small = {name: value for name, value in CONFIG.items() if name != "image_size"}
    small |= {"drop_path_rate": 0.5, "global_crop_size": 32, "local_crop_size": 16, "num_local_crops": 1, "num_workers": 0}
    small |= {"dataset": data, "steps": 4, "warmup_steps": 1, "batch_size": 4, "learning_rate": 1.0, "log_steps": 2}
    small |= {"teacher_momentum": 0.5, "mixed_precision": "no", "cpu_threads": 1, "quiet": True}
    measured = {"eval_steps": 1, "eval_dataset": data, "eval_images": 7, "knn_dataset": data, "knn_neighbors": 5}
    for output, evaluation in (("without", {}), ("with", measured)):
        settings = {"output_dir": tmp_path / output, **small, **evaluation}
        pretrain.main([str(QUICKSTART), *[f"--{name}={value}" for name, value in settings.items()]])
    expected, state = (
        checkpoint.load(checkpoint.find("auto", tmp_path / name / "checkpoints")) for name in ("without", "with")
    )
    for network in ("student", "teacher"):
        assert state[network].keys() == expected[network].keys()
        assert all(torch.equal(tensor, expected[network][name]) for name, tensor in state[network].items())
    lines = read_json_lines(tmp_path / "with" / "evaluation.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(set(line) >= {*SCORES, "knn_accuracy"} for line in lines)
    assert lines[0]["m2o_miou"] != lines[-1]["m2o_miou"]
    assert len(list((tmp_path / "with" / "parts").iterdir())) == 4 and not (tmp_path / "without" / "parts").exists()


def test_it_is_due_every_so_many_steps_and_at_the_end(tmp_path, data):
    accelerator = Accelerator(cpu=True)

    def due(**settings):
        evaluation = PeriodicEvaluation(accelerator, settings_of(**settings), tmp_path)
        return [step for step in range(1, 8) if evaluation.is_due(step, ends=step == 7)]

    assert due(eval_steps=3) == [3, 6, 7]
    assert due(eval_steps=100) == [7]
    assert due(eval_steps=0) == []
    assert due(eval_steps=3, model_type="vit") == []  # nothing to measure
    assert due(eval_steps=3, model_type="vit", knn_dataset=data) == [3, 6, 7]


def test_a_resumed_run_measures_again_what_came_later(tmp_path):
    model, processor = build_teacher()
    accelerator, settings = Accelerator(cpu=True), settings_of()
    first = PeriodicEvaluation(accelerator, settings, tmp_path)
    for step in (2, 4, 6):
        first.measure(step, model, processor, some_views())
    PeriodicEvaluation(accelerator, settings, tmp_path, start_step=4)
    assert [line["step"] for line in read_json_lines(tmp_path / "evaluation.jsonl")] == [2, 4]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["step_00000002.png", "step_00000004.png"]
    PeriodicEvaluation(accelerator, settings_of(eval_steps=0), tmp_path)  # a new run in the same folder
    assert read_json_lines(tmp_path / "evaluation.jsonl") == [] and not list((tmp_path / "parts").iterdir())


def test_a_run_that_is_not_measured_leaves_no_file(tmp_path):
    PeriodicEvaluation(Accelerator(cpu=True), settings_of(eval_steps=0), tmp_path)
    assert not list(tmp_path.iterdir())


# What can be wrong is told when a run starts


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"eval_dataset": "DATA", "eval_steps": 0}, ValueError, "eval_steps=0 measures nothing; set --eval_steps"),
        ({"knn_dataset": "DATA", "eval_steps": 0}, ValueError, "knn_dataset=.* eval_steps=0"),
        ({"eval_dataset": "no/where/at-all"}, FileNotFoundError, "no/where/at-all"),
        ({"eval_dataset": "DATA", "eval_mask_column": "parts"}, ValueError, "no column 'parts'"),
        ({"eval_dataset": "DATA", "eval_mask_column": "label"}, ValueError, "mask of row 0"),
        ({"eval_dataset": "DATA", "eval_split": "test"}, ValueError, "split=test is not in"),
        ({"knn_dataset": "DATA", "knn_label_column": "class"}, ValueError, "no column 'class'"),
        ({"knn_dataset": "DATA", "knn_test_split": "test"}, ValueError, "split=test is not in"),
        ({"knn_dataset": "DATA", "knn_test_split": "train"}, ValueError, "both train, .* own nearest neighbour"),
        ({"knn_dataset": "DATA/train-00000-of-00001.parquet"}, ValueError, "single file"),
        ({"knn_dataset": "DATA", "knn_neighbors": 32}, ValueError, "num_neighbors=32 .* 31"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_the_start(tmp_path, data, changes, error, message):
    changes = {name: value.replace("DATA", data) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(error, match=message):
        PeriodicEvaluation(Accelerator(cpu=True), settings_of(**changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_broken_image_is_found_at_the_start(tmp_path):
    save_split(tmp_path, "train", 9, seed=0, broken=[6])
    data = save_split(tmp_path, "validation", 3, seed=1)
    with pytest.raises(ValueError, match="image of row 6 of split train cannot be decoded"):
        PeriodicEvaluation(Accelerator(cpu=True), settings_of(knn_dataset=data), tmp_path)
    PeriodicEvaluation(Accelerator(cpu=True), settings_of(knn_dataset=data, knn_train_images=6), tmp_path)


def test_classes_that_no_neighbour_has_are_told(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    save_split(tmp_path, "train", 9, seed=0, classes=1)
    save_split(tmp_path, "validation", 20, seed=1, classes=3)
    data = save_split(tmp_path, "test", 4, seed=0, classes=1, label_offset=1)
    of_others = sum(row["label"] != "class 0" for row in open_rows(data, None, "validation"))
    PeriodicEvaluation(Accelerator(cpu=True), settings_of(knn_dataset=data), tmp_path / "run")
    assert f"{of_others} of 20 images" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"4 of 4 images .* none can be classified"):
        PeriodicEvaluation(Accelerator(cpu=True), settings_of(knn_dataset=data, knn_test_split="test"), tmp_path / "run")


# Two ranks


def run_rank(data, broken, output):
    """One of two gloo processes: what it measures, and what it says of a data set whose broken image is the other's."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    output = Path(output)
    model, processor = build_teacher()
    settings = settings_of(eval_dataset=data, knn_dataset=data, knn_train_images=29, knn_test_images=1, knn_neighbors=5)
    evaluation = PeriodicEvaluation(accelerator, settings, output)
    held = [len(evaluation.mask_samples), *(len(share.images) for share in evaluation.labelled)]
    scores = evaluation.measure(2, model, processor, some_views())
    try:
        PeriodicEvaluation(accelerator, settings_of(knn_dataset=broken), output)
    except ValueError as error:
        result = {"held": held, "scores": scores, "error": str(error)}
        (output / f"rank_{accelerator.process_index}.json").write_text(json.dumps(result))


def test_two_ranks_share_the_images_and_agree_with_one(tmp_path, data):
    broken, output, alone = (tmp_path / name for name in ("broken", "output", "alone"))
    for folder in (broken, output, alone):
        folder.mkdir()
    save_split(broken, "train", 9, seed=0, broken=[3])
    save_split(broken, "validation", 3, seed=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    common |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, data, str(broken), str(output)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    results = [json.loads((output / f"rank_{rank}.json").read_text()) for rank in range(2)]
    assert [result["held"] for result in results] == [[4, 15, 1], [3, 14, 0]]  # of 7, 29 and 1
    model, processor = build_teacher()
    settings = settings_of(eval_dataset=data, knn_dataset=data, knn_train_images=29, knn_test_images=1, knn_neighbors=5)
    expected = measure(settings, alone, model, processor)
    assert results[0]["scores"] == results[1]["scores"] == pytest.approx(expected)
    assert all("image of row 3 of split train cannot be decoded" in result["error"] for result in results)
    (line,) = read_json_lines(output / "evaluation.jsonl")
    assert line == {"step": 2, "seconds": line["seconds"], **results[0]["scores"]}
    picture, picture_alone = ((folder / "parts" / "step_00000002.png").read_bytes() for folder in (output, alone))
    assert picture == picture_alone  # of the first images, not of the main process' share


if __name__ == "__main__":
    run_rank(*sys.argv[1:])
