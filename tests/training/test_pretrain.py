"""Pretraining end to end on a tiny model and 22 images: what it leaves, and that nothing can throw it off its way."""

import copy
import errno
import io
import itertools
import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from evaluation import part_segmentation
from evaluation.records import read_json_lines
from evaluation.register_attention_variants import RatsVariantForPartSegmentation
from evaluation.segmenters import load_rats
from evaluation.synthetic_parts import write_dataset
from modeling_rats import RatsForPartSegmentation, RatsImageProcessor, RatsModel
from training import checkpoint, pretrain, resume, sources
from training.preemption import EXIT_CODE, SIGNALS
from training.settings import DataSettings, TrainingSettings

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6
LOG_FIELDS = {
    "step", "loss", "gradient_norm", "learning_rate", "weight_decay", "teacher_momentum", "teacher_temperature", "ln_k",
    "teacher_entropy", "teacher_marginal_entropy", "registers_used", "registers_per_image", "register_cosine", "rankme",
    "images_per_s", "data_wait_share", "images_seen", "epoch", "broken_images", "skipped_steps",
}  # fmt: skip


def write_images(folder, broken=()):
    """22 images of noise in two shards; those of `broken` are no images."""
    random = np.random.default_rng(0)
    contents = []
    for index in range(22):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(file, "PNG")
        contents.append(b"no image" if index in broken else file.getvalue())
    features = datasets.Features({"image": datasets.Image()})
    for shard in range(2):
        rows = {"image": [{"bytes": content, "path": None} for content in contents[shard::2]]}
        path = folder / f"train-{shard:05d}-of-00002.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def recipe(tiny_sizes):
    return tiny_sizes | {
        "drop_path_rate": 0.5,
        "shuffle_buffer": 8,
        "num_workers": 0,
        "steps": STEPS,
        "warmup_steps": 1,
        "batch_size": 4,
        "learning_rate": 0.1,
        "teacher_momentum": 0.9,
        "checkpoint_steps": 3,
        "log_steps": 2,
        "mixed_precision": "no",
        "cpu_threads": 1,
    }


@pytest.fixture(scope="module")
def make_arguments(tmp_path_factory, recipe, images):
    """Arguments for `main`: the recipe above, the images and what a test wants different."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))

    def make(output, **overrides):
        settings = {"dataset": images, "output_dir": output} | overrides
        return [str(path), *[f"--{name}={value}" for name, value in settings.items()]]

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_arguments):
    """The output folder of an uninterrupted run."""
    output = tmp_path_factory.mktemp("finished")
    assert pretrain.main(make_arguments(output)) == output / "model"
    return output


class Interruption(Exception):
    pass


def interrupt_after(monkeypatch, step):
    """Makes the run stop dead right after its checkpoint of `step`."""
    save = checkpoint.save

    def save_and_stop(folder, its_step, state, *keeps):
        save(folder, its_step, state, *keeps)
        if its_step == step:
            raise Interruption

    monkeypatch.setattr(checkpoint, "save", save_and_stop)


def last_state(output):
    return checkpoint.load(checkpoint.find("auto", output / "checkpoints"))


def assert_same_end(output, finished, steps=STEPS):
    """Same steps, same weights to the last bit, same last line of the log but for the time."""
    state, expected = last_state(output), last_state(finished)
    assert state["step"] == expected["step"] == steps
    for network in ("teacher", "student"):
        for name, tensor in expected[network].items():
            assert torch.equal(state[network][name], tensor), f"{network} {name}"
    last, expected_last = (read_json_lines(folder / "log.jsonl")[-1] for folder in (output, finished))
    untimed = {"images_per_s": 0, "data_wait_share": 0}
    assert last | untimed == expected_last | untimed


def test_the_original_augmentation_may_be_asked_for(make_arguments, tmp_path, finished):
    pretrain.main(make_arguments(tmp_path, augmentation="original", steps=2))
    loss, fast = (read_json_lines(folder / "log.jsonl")[0]["loss"] for folder in (tmp_path, finished))
    assert math.isfinite(loss) and loss != fast


# Warm start


@pytest.fixture
def vit(tmp_path, recipe):
    """A ViT of the recipe's sizes, saved to disk."""
    torch.manual_seed(5)
    sizes = {name: recipe[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    model = ViTModel(ViTConfig(**sizes, patch_size=8, image_size=32))
    model.save_pretrained(tmp_path / "vit")
    return model


def test_a_warm_start_begins_at_the_weights_of_the_vit_and_can_be_resumed_without_it(make_arguments, tmp_path, vit, capsys):
    output = tmp_path / "run"
    # So small a learning rate that what is exported is what it started from.
    still = {"learning_rate": 1e-12, "min_learning_rate": 0, "weight_decay": 0, "weight_decay_end": 0}
    pretrain.main(make_arguments(output, warm_start=tmp_path / "vit", steps=3, **still))
    assert "Warm start from" in capsys.readouterr().out
    model = RatsModel.from_pretrained(output / "model")
    theirs = dict(vit.named_parameters())
    torch.testing.assert_close(
        model.embeddings.patch_embeddings.weight, theirs["embeddings.patch_embeddings.projection.weight"], atol=1e-6, rtol=0
    )
    torch.testing.assert_close(model.encoder.layer[1].mlp.fc1.weight, vit.layers[1].mlp.fc1.weight, atol=1e-6, rtol=0)
    pretrain.main(make_arguments(output, steps=4, **still))
    assert last_state(output)["step"] == 4


def test_a_warm_start_that_does_not_fit_is_refused(make_arguments, tmp_path, vit):
    with pytest.raises(SystemExit, match="num_hidden_layers=1 does not fit"):
        pretrain.main(make_arguments(tmp_path / "run", warm_start=tmp_path / "vit", num_hidden_layers=1))
    with pytest.raises(SystemExit, match="no checkpoint"):
        pretrain.main(make_arguments(tmp_path / "run", warm_start=tmp_path / "missing.pth"))


# What a run leaves


def test_the_folder_is_a_transformers_model_with_its_processor(finished):
    folder = finished / "model"
    names = {path.name for path in folder.iterdir() if path.suffix != ".py"}  # the code of the classes goes with them
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json", "training.json"}
    assert type(AutoModel.from_pretrained(folder)) is RatsModel
    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert type(model) is RatsForPartSegmentation and type(processor) is RatsImageProcessor
    assert (processor.size.height, processor.size.width) == (32, 32)
    outputs = model(**processor(Image.new("RGB", (50, 30)), return_tensors="pt"))
    (result,) = processor.post_process_part_segmentation(outputs, [(30, 50)])
    assert result["segmentation"].shape == (30, 50)


def test_the_exported_model_is_the_teacher(finished):
    model, state = RatsModel.from_pretrained(finished / "model"), last_state(finished)
    student_differs = False
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state["teacher"][f"backbone.{name}"])
        student_differs |= not torch.equal(parameter, state["student"][f"backbone.{name}"])
    assert student_differs


def test_the_recipe_says_how_the_exported_model_reads_parts(make_arguments, tmp_path):
    pretrain.main(make_arguments(tmp_path, steps=2))
    pretrain.main(make_arguments(tmp_path, steps=3, part_layer=-2, part_similarity="claimed_patches"))  # goes on all the same
    config = RatsForPartSegmentation.from_pretrained(tmp_path / "model").config
    assert (config.part_layer, config.part_similarity) == (-2, "claimed_patches")
    assert last_state(tmp_path)["step"] == 3


def test_a_collapsed_run_stops_and_names_its_checkpoint(make_arguments, tmp_path, capsys):
    # So high a temperature that all targets are uniform.
    hot = {"teacher_temperature": 1e6, "warmup_teacher_temperature": 1e6, "log_steps": 1, "checkpoint_steps": 1}
    with pytest.raises(SystemExit, match=r"^step 3: .*collapsed.*since step 1\..*earlier step in .*checkpoints"):
        pretrain.main(make_arguments(tmp_path, collapse_patience=3, **hot))
    assert "the teacher has collapsed, its targets are uniform" in capsys.readouterr().err
    assert len(read_json_lines(tmp_path / "log.jsonl")) == 3


def test_a_dry_run_describes_and_trains_nothing(make_arguments, tmp_path, capsys):
    # No repository to push to is no problem of a dry run, which asks the Hub nothing.
    assert pretrain.main(make_arguments(tmp_path, dry_run=True, steps=70, push_to_hub=True)) == tmp_path
    said = capsys.readouterr().out
    assert "num_registers: 8" in said and "steps: 70 of 4 images on 1 processes, 280 images in all" in said
    assert "parameters, in millions: rats 0.0" in said and "GiB" in said
    assert said.count("3 views of 16 x 16 and 32 x 32 px") == 8
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "model").exists()


def test_a_job_log_gets_lines_and_a_quiet_one_none(make_arguments, tmp_path, capsys):
    pretrain.main(make_arguments(tmp_path / "loud", steps=2))
    assert "step 2/2  loss " in capsys.readouterr().err
    pretrain.main(make_arguments(tmp_path / "quiet", steps=2, quiet=True))
    assert "step 2/2" not in capsys.readouterr().err


def test_the_log_has_a_line_for_every_few_steps(finished):
    entries = read_json_lines(finished / "log.jsonl")
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    assert [entry["images_seen"] for entry in entries] == [8, 16, 24]
    for entry in entries:
        assert set(entry) == LOG_FIELDS
        assert all(math.isfinite(value) for value in entry.values())
        assert entry["ln_k"] == pytest.approx(math.log(16)) and entry["broken_images"] == 0
        assert 0 <= entry["teacher_entropy"] <= entry["teacher_marginal_entropy"] + 1e-6 <= entry["ln_k"] + 2e-6
        assert entry["loss"] > 0 and entry["gradient_norm"] > 0 and entry["images_per_s"] > 0
    assert entries[-1]["epoch"] == 1


def test_the_record_tells_how_it_was_made(finished, images, recipe):
    record = json.loads((finished / "model" / "training.json").read_text())
    wanted = recipe | {"dataset": [images], "seed": 0}
    assert {name: record["settings"][name] for name in wanted} == wanted
    assert (record["steps"], record["images_seen"], record["processes"]) == (STEPS, 24, 1)
    assert record["mixed_precision"] == "no" and set(record["versions"]) >= {"torch", "transformers"}
    assert Image.open(finished / "curves.png").format == "PNG"


def test_readme_names_the_fields_of_the_log():
    text = (ROOT / "training" / "README.md").read_text()
    schedules = {"step", "learning_rate", "weight_decay", "teacher_momentum", "teacher_temperature"}  # named as the settings
    assert not [name for name in LOG_FIELDS - schedules if f"`{name}`" not in text]


# Going on


def test_an_interrupted_run_ends_as_an_uninterrupted_one(make_arguments, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt_after(patch, 3)
        pretrain.main(make_arguments(tmp_path))
    assert not (tmp_path / "model").exists()
    pretrain.main(make_arguments(tmp_path))
    assert [entry["step"] for entry in read_json_lines(tmp_path / "log.jsonl")] == [2, 4, 6]
    assert_same_end(tmp_path, finished)


@pytest.mark.slow
def test_a_run_with_loader_workers_can_be_resumed_when_it_is_the_turn_of_any_of_them(make_arguments, tmp_path):
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    pretrain.main(make_arguments(whole, num_workers=2))
    pretrain.main(make_arguments(rest, num_workers=2, resume=whole / "checkpoints" / "step_00000003.pt"))
    assert [entry["step"] for entry in read_json_lines(rest / "log.jsonl")] == [4, 6]
    assert_same_end(rest, whole)


def test_sinkhorn_knopp_runs_can_be_resumed_too(make_arguments, tmp_path, monkeypatch):
    overrides = {"centering": "sinkhorn_knopp", "drop_path_rate": 0}
    pretrain.main(make_arguments(tmp_path / "whole", **overrides))
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt_after(patch, 3)
        pretrain.main(make_arguments(tmp_path / "parts", **overrides))
    pretrain.main(make_arguments(tmp_path / "parts", **overrides))
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


def test_a_finished_run_is_not_run_again(make_arguments, finished):
    log, state = (finished / "log.jsonl").read_text(), last_state(finished)
    pretrain.main(make_arguments(finished))
    assert (finished / "log.jsonl").read_text() == log
    assert all(torch.equal(tensor, state["teacher"][name]) for name, tensor in last_state(finished)["teacher"].items())


def test_a_run_started_anew_replaces_the_old_one(make_arguments, finished, tmp_path, monkeypatch):
    pretrain.main(make_arguments(tmp_path, steps=2, checkpoint_steps=1, keep_checkpoints=1))
    for step in (900, 1000):  # of an older, longer run
        os.link(tmp_path / "checkpoints" / "step_00000002.pt", tmp_path / "checkpoints" / f"step_{step:08d}.pt")
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt_after(patch, 3)
        pretrain.main(make_arguments(tmp_path, resume="none"))
    assert last_state(tmp_path)["step"] == 3
    pretrain.main(make_arguments(tmp_path))
    assert_same_end(tmp_path, finished)


def test_the_newest_and_the_first_after_every_multiple_stay(make_arguments, tmp_path):
    pretrain.main(make_arguments(tmp_path, checkpoint_steps=1, keep_checkpoints=1, keep_every_steps=2, steps=5))
    assert [int(path.stem[5:]) for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")] == [2, 4, 5]


def test_another_seed_is_another_run(make_arguments, finished, tmp_path):
    pretrain.main(make_arguments(tmp_path, seed=1, steps=2))
    assert read_json_lines(tmp_path / "log.jsonl")[0]["loss"] != read_json_lines(finished / "log.jsonl")[0]["loss"]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"num_registers": 12}, r"num_registers=8.* num_registers=12.*--resume none"),
        ({"num_prototypes": 32}, r"num_prototypes=16.* num_prototypes=32"),
        ({"batch_size": 8}, r"batch_size=4.* batch_size=8"),
        ({"seed": 1}, r"seed=0.* seed=1"),
        ({"num_workers": 1}, r"num_workers=0.* num_workers=1"),  # a worker reads in another order
    ],
    ids=str,
)
def test_going_on_with_other_settings_is_refused(make_arguments, finished, changed, message):
    with pytest.raises(SystemExit, match=message):
        pretrain.main(make_arguments(finished, **changed))


def wait_until(reached, *processes, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert all(process.poll() is None for process in processes), "a process has ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_as_one_that_was_not(make_arguments, tmp_path):
    """SIGKILL at random moments, many of them while a checkpoint is written."""
    settings = {"steps": 400, "checkpoint_steps": 2, "log_steps": 5, "learning_rate": 0.01, "quiet": True}
    arguments, random = make_arguments(tmp_path / "killed", **settings), np.random.default_rng(0)
    context = multiprocessing.get_context("forkserver")  # imports once, not ten times
    context.set_forkserver_preload(["training.pretrain"])
    checkpoints, killed_at = tmp_path / "killed" / "checkpoints", []
    for _ in range(10):
        before = checkpoint.find("auto", checkpoints)
        process = context.Process(target=pretrain.main, args=(arguments,))
        process.start()
        process.poll = lambda process=process: process.exitcode
        wait_until(lambda before=before: checkpoint.find("auto", checkpoints) != before, process)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed_at.append(last_state(tmp_path / "killed")["step"])
    assert sorted(set(killed_at)) == killed_at and killed_at[-1] < 400
    pretrain.main(arguments)
    pretrain.main(make_arguments(tmp_path / "whole", **settings))
    assert_same_end(tmp_path / "killed", tmp_path / "whole", steps=400)
    assert [entry["step"] for entry in read_json_lines(tmp_path / "killed" / "log.jsonl")] == list(range(5, 401, 5))
    assert not list(checkpoints.glob("*.tmp"))


def signal_after(monkeypatch, step, number):
    """The process gets a signal in the midst of the step after `step`."""
    train_step = pretrain.train_step

    def signal_and_step(run, batch):
        if run.step == step:
            signal.raise_signal(number)
        return train_step(run, batch)

    monkeypatch.setattr(pretrain, "train_step", signal_and_step)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_step_saves_and_asks_to_be_started_again(
    make_arguments, finished, tmp_path, monkeypatch, capsys, number
):
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        signal_after(patch, 3, number)
        pretrain.main(make_arguments(tmp_path))
    assert ended.value.code == EXIT_CODE == 75
    assert "saved at step 4" in capsys.readouterr().out
    assert last_state(tmp_path)["step"] == 4 and not (tmp_path / "model").exists()
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    pretrain.main(make_arguments(tmp_path))
    assert_same_end(tmp_path, finished)


def test_a_signal_in_the_last_step_does_not_keep_the_run_from_its_end(make_arguments, finished, tmp_path, monkeypatch):
    signal_after(monkeypatch, STEPS - 1, signal.SIGTERM)
    pretrain.main(make_arguments(tmp_path))
    assert_same_end(tmp_path, finished)


def test_a_full_disk_ends_the_run_with_what_to_do(make_arguments, finished, tmp_path, monkeypatch):
    save = checkpoint.save

    def find_no_room(folder, step, *rest):
        if step > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(folder, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", find_no_room)
        with pytest.raises(SystemExit, match=r"step 6: .*No space left.* Make room in .*go on from .*step_00000003\.pt"):
            pretrain.main(make_arguments(tmp_path))
    pretrain.main(make_arguments(tmp_path))
    assert_same_end(tmp_path, finished)


@pytest.mark.parametrize("writes", ["training.json_log.JsonLog.write", "training.pretrain.export"])
def test_a_disk_that_fills_up_anywhere_ends_the_run_with_what_to_do(make_arguments, finished, tmp_path, monkeypatch, writes):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(writes, full)
        with pytest.raises(SystemExit, match=r"^step \d: .*No space left.* Make room in .* start the same command again"):
            pretrain.main(make_arguments(tmp_path))
    pretrain.main(make_arguments(tmp_path))
    if writes.endswith("export"):  # the log was whole
        assert_same_end(tmp_path, finished)


def test_a_damaged_checkpoint_is_passed_over_unless_it_was_named(make_arguments, finished, tmp_path, capsys):
    pretrain.main(make_arguments(tmp_path))
    newest = checkpoint.find("auto", tmp_path / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-5000])
    with pytest.raises(SystemExit, match=r"step_00000006\.pt cannot be read"):
        pretrain.main(make_arguments(tmp_path, resume=newest))
    pretrain.main(make_arguments(tmp_path))
    said = capsys.readouterr().out
    assert "Passed over: checkpoint" in said and "at step 3." in said
    assert_same_end(tmp_path, finished)


def test_ranks_that_see_different_checkpoints_do_not_go_on(make_arguments, finished, monkeypatch):
    monkeypatch.setattr(resume, "gather_object", lambda own: [*own, None])  # a second rank on a machine without the file
    with pytest.raises(SystemExit, match=r"different checkpoints \(step_00000006\.pt, None\).* file system that all"):
        pretrain.main(make_arguments(finished))


def test_a_foreign_file_is_no_checkpoint(make_arguments, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "dino.pth")
    with pytest.raises(SystemExit, match=r"dino\.pth is no checkpoint of pretraining"):
        pretrain.main(make_arguments(tmp_path, resume=tmp_path / "dino.pth"))


def start_rank(rank, port, arguments, processes=2):
    """One of several processes, as a scheduler without a launcher starts it, with its loader worker in its process group."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    environment = {name: str(value) for name, value in (ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items()}
    return subprocess.Popen(
        [sys.executable, "training/pretrain.py", *arguments],
        cwd=ROOT,
        env=os.environ | environment | {"CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_and_its_worker_stops_both_after_the_same_step(make_arguments, tmp_path):
    settings = {"steps": 100_000, "checkpoint_steps": 100_000, "log_steps": 1, "num_workers": 1, "quiet": True}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [start_rank(rank, port, make_arguments(tmp_path, **settings)) for rank in range(2)]
    try:
        wait_until(lambda: read_json_lines(tmp_path / "log.jsonl"), *ranks)
        os.killpg(ranks[1].pid, signal.SIGTERM)
        assert [rank.wait(timeout=60) for rank in ranks] == [EXIT_CODE] * 2
    finally:
        for rank in ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, signal.SIGKILL)
    state = last_state(tmp_path)
    assert 0 < state["step"] < 100_000
    positions = [own["positions"][0] for own in state["ranks"]]
    assert len(positions) == 2 and positions[0] == positions[1]  # both have made as many steps


def test_two_processes_share_the_work(make_arguments, tmp_path):
    arguments = make_arguments(tmp_path, steps=2, log_steps=1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "training/pretrain.py"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    launcher = subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment, start_new_session=True)
    try:
        assert launcher.wait(timeout=120) == 0
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    assert json.loads((tmp_path / "model" / "training.json").read_text())["processes"] == 2
    assert type(AutoModel.from_pretrained(tmp_path / "model")) is RatsModel
    assert [entry["images_seen"] for entry in read_json_lines(tmp_path / "log.jsonl")] == [4, 8]
    ranks = last_state(tmp_path)["ranks"]
    assert [rank["positions"] for rank in ranks] == [{0: (0, 4)}] * 2  # two steps of two images each
    with pytest.raises(SystemExit, match=r"processes=2.* processes=1"):
        pretrain.main(arguments)


# What can be wrong


def test_too_many_broken_images_end_the_run(make_arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("training.streaming.BROKEN_JUDGED_FROM", 10)
    folder = tmp_path / "images"
    folder.mkdir()
    arguments = make_arguments(tmp_path / "run", dataset=write_images(folder, broken=range(11)), max_broken_share=0.2)
    with pytest.raises(SystemExit, match=r"of \d+ images broken, more than max_broken_share=0.2 allows"):
        pretrain.main(arguments)


def test_broken_images_are_counted_and_the_run_finishes(make_arguments, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    pretrain.main(make_arguments(tmp_path / "run", dataset=write_images(folder, broken={3, 8}), steps=6))
    entries = read_json_lines(tmp_path / "run" / "log.jsonl")
    assert entries[-1]["step"] == 6 and entries[-1]["broken_images"] in (2, 3, 4)  # 24 images: an epoch of 20, and four
    assert capsys.readouterr().err.count("skipped broken image") == entries[-1]["broken_images"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"num_registers": 9}, "num_registers=9 must be divisible by num_attention_heads=4"),
        ({"resume": "nowhere.pt"}, "resume=nowhere.pt is no checkpoint"),
        ({"dataset": "{}"}, "is an empty folder"),
        ({"dataset": "{}/nowhere"}, "was not found"),
        ({"dataset_split": "test"}, "split=test is not in"),
        ({"image_column": "picture"}, "no image column picture"),
        (
            {"learning_rate": 1e30, "nonfinite_patience": 2},
            r"the loss is nan .* 2 in a row.* lower learning_rate.*The newest checkpoint is",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(make_arguments, tmp_path, overrides, message):
    (tmp_path / "empty").mkdir()
    overrides = {name: str(value).format(tmp_path / "empty") for name, value in overrides.items()}
    with pytest.raises(SystemExit, match=message):
        pretrain.main(make_arguments(tmp_path / "run", **overrides))
    assert not (tmp_path / "run" / "model").exists()


def test_launch_configurations_that_the_loop_does_not_know_are_refused(make_arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(SystemExit, match=r"dynamo INDUCTOR; .* --torch_compile true"):
        pretrain.main(make_arguments(tmp_path))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"mixed_precision": "fp16"}, "mixed_precision=fp16 needs a GPU"),
        ({"gradient_accumulation_steps": 3}, r"batch_size=4 must be divisible by 3: the 1 processes times gradient_acc"),
        ({"report_to": "tensorbord"}, "tensorbord"),
    ],
    ids=str,
)
def test_what_this_machine_cannot_do_is_said_before_anything_runs(make_arguments, tmp_path, overrides, message):
    with pytest.raises(SystemExit, match=message):
        pretrain.main(make_arguments(tmp_path / "run", **overrides))
    assert not (tmp_path / "run").exists()


def test_fsdp_on_a_cpu_is_refused(make_arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(SystemExit, match=r"asks for FSDP, which Accelerate leaves out on a CPU"):
        pretrain.main(make_arguments(tmp_path))


# Steps


def test_a_step_without_a_finite_gradient_changes_nothing(make_arguments, tmp_path, monkeypatch):
    """The third of five steps, in which the teacher's logits overflow."""
    targets, calls = pretrain.DinoLoss.targets, itertools.count(1)

    def overflow_once(loss, logits, temperature):
        return targets(loss, logits * math.inf if next(calls) == 3 else logits, temperature)

    monkeypatch.setattr(pretrain.DinoLoss, "targets", overflow_once)
    states = []
    step = pretrain.train_step

    def step_and_save(run, batch):
        figures = step(run, batch)
        parts = {name: getattr(run, name).state_dict() for name in ("student", "teacher", "loss")}
        states.append(copy.deepcopy(parts) | {"skipped_steps": run.skipped_steps})
        return figures

    monkeypatch.setattr(pretrain, "train_step", step_and_save)
    pretrain.main(make_arguments(tmp_path, steps=5, checkpoint_steps=9, log_steps=1, centering="centering"))
    assert [state["skipped_steps"] for state in states] == [0, 0, 1, 1, 1]
    for part in ("student", "teacher", "loss"):
        moved = [
            any(not torch.equal(tensor, after[part][name]) for name, tensor in before[part].items())
            for before, after in itertools.pairwise(states)
        ]
        assert moved == [True, False, True, True], part
    assert states[-1]["loss"]["center"].isfinite().all()
    assert [entry["skipped_steps"] for entry in read_json_lines(tmp_path / "log.jsonl")] == [0, 0, 1, 1, 1]


def test_no_checkpoint_is_written_while_steps_are_skipped(make_arguments, tmp_path):
    with pytest.raises(SystemExit, match=r"2 in a row.* The newest checkpoint is .*step_0000000"):
        pretrain.main(make_arguments(tmp_path, learning_rate=1e30, nonfinite_patience=2, checkpoint_steps=1))
    skipped = [checkpoint.load(path)["skipped_steps"] for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
    assert skipped and set(skipped) == {0}


def test_an_export_may_be_asked_for_while_the_run_goes_on(make_arguments, tmp_path, monkeypatch):
    (tmp_path / "export_now").touch()
    with pytest.raises(Interruption):
        interrupt_after(monkeypatch, step=3)  # the request is seen with the line of the log before
        pretrain.main(make_arguments(tmp_path))
    assert not (tmp_path / "export_now").exists()
    assert json.loads((tmp_path / "model" / "training.json").read_text())["steps"] == 2
    assert type(AutoModel.from_pretrained(tmp_path / "model")) is RatsModel


@pytest.mark.parametrize("model_type, model_class", [("vit", ViTModel), ("registers", Dinov2WithRegistersModel)])
def test_a_twin_becomes_a_folder_of_its_own_class(make_arguments, tmp_path, model_type, model_class):
    pretrain.main(make_arguments(tmp_path, model_type=model_type, steps=2))
    model, state = AutoModel.from_pretrained(tmp_path / "model"), last_state(tmp_path)
    assert type(model) is model_class
    for name, parameter in model.named_parameters():
        if not name.startswith("pooler."):
            assert torch.equal(parameter, state["teacher"][f"backbone.{name}"]), name
    images = [Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 36, 3), dtype=np.uint8))]
    pixel_values = AutoImageProcessor.from_pretrained(tmp_path / "model")(images, return_tensors="pt").pixel_values
    assert torch.allclose(
        pixel_values, RatsImageProcessor(size={"height": 32, "width": 32})(images, return_tensors="pt").pixel_values
    )
    assert "rankme" in read_json_lines(tmp_path / "log.jsonl")[-1]


def test_a_variant_is_measured_and_becomes_a_folder_that_can_be_scored(make_arguments, tmp_path):
    without = {"partition_registers": False, "communicate": False}
    pretrain.main(make_arguments(tmp_path, model_type="perceiver", steps=3, eval_steps=2, eval_pictures=1, **without))
    assert [path.name for path in sorted((tmp_path / "parts").iterdir())] == ["step_00000002.png", "step_00000003.png"]
    folder, teacher = tmp_path / "model", last_state(tmp_path)["teacher"]
    saved = json.loads((folder / "config.json").read_text())
    assert saved["attention_variant"] == "perceiver" and "auto_map" not in saved
    loaded, processor = load_rats(str(folder))
    assert type(loaded) is RatsVariantForPartSegmentation and type(processor) is RatsImageProcessor
    expected = RatsVariantForPartSegmentation(loaded.config).eval()
    expected.rats.load_state_dict({name: teacher[f"backbone.{name}"] for name in expected.rats.state_dict()})
    inputs = processor(Image.new("RGB", (50, 30), "red"), return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).similarities, expected(**inputs).similarities)


def test_a_variant_without_what_it_needs_is_refused(make_arguments, tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)model settings: .*set partition_registers=False"):
        pretrain.main(make_arguments(tmp_path / "run", model_type="perceiver"))


def test_koleo_is_logged_and_changes_the_training(make_arguments, tmp_path, finished):
    pretrain.main(make_arguments(tmp_path, koleo_weight=0.1))
    assert math.isfinite(read_json_lines(tmp_path / "log.jsonl")[-1]["koleo"])
    weights, others = last_state(tmp_path)["student"], last_state(finished)["student"]
    assert any(not torch.equal(tensor, others[name]) for name, tensor in weights.items())


def test_the_register_bottleneck_is_logged_changes_the_training_and_can_be_resumed(
    make_arguments, tmp_path, finished, monkeypatch
):
    settings = {"register_bottleneck_weight": 0.5}
    pretrain.main(make_arguments(tmp_path / "whole", **settings))
    entry = read_json_lines(tmp_path / "whole" / "log.jsonl")[-1]
    assert set(entry) == LOG_FIELDS | {"register_bottleneck_loss"} and 0 < entry["register_bottleneck_loss"] < 2
    weights, others = last_state(tmp_path / "whole")["student"], last_state(finished)["student"]
    assert weights.keys() - others.keys() == {"register_projection.weight", "register_projection.bias"}
    assert any(not torch.equal(weights[name], tensor) for name, tensor in others.items())
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt_after(patch, 3)
        pretrain.main(make_arguments(tmp_path / "parts", **settings))
    pretrain.main(make_arguments(tmp_path / "parts", **settings))
    assert_same_end(tmp_path / "parts", tmp_path / "whole")
    assert type(AutoModel.from_pretrained(tmp_path / "whole" / "model")) is RatsModel


def test_measuring_the_teacher_leaves_the_run_as_it_is(make_arguments, tmp_path, finished):
    pretrain.main(make_arguments(tmp_path, eval_steps=2, eval_pictures=2))
    assert_same_end(tmp_path, finished)
    assert [path.name for path in sorted((tmp_path / "parts").iterdir())] == [f"step_0000000{step}.png" for step in (2, 4, 6)]
    assert [line["step"] for line in read_json_lines(tmp_path / "evaluation.jsonl")] == [2, 4, 6]


def test_an_interrupted_measurement_is_made_up_for(make_arguments, tmp_path, monkeypatch):
    arguments = make_arguments(tmp_path, eval_steps=3, eval_pictures=0)

    def killed(*_, **__):
        raise Interruption

    for _ in range(2):  # at step 3, and again in the last measurement
        with monkeypatch.context() as interrupted, pytest.raises(Interruption):
            interrupted.setattr("training.periodic_evaluation.PeriodicEvaluation.measure", killed)
            pretrain.main(arguments)
        assert read_json_lines(tmp_path / "evaluation.jsonl") == []
    pretrain.main(arguments)
    assert [line["step"] for line in read_json_lines(tmp_path / "evaluation.jsonl")] == [3, 6]


def test_fewer_steps_than_were_made_are_refused(make_arguments, tmp_path, finished):
    resume = finished / "checkpoints" / "step_00000006.pt"
    with pytest.raises(SystemExit, match=r"has done 6 steps already, and steps=4 is less; raise --steps"):
        pretrain.main(make_arguments(tmp_path, steps=4, resume=resume))


def test_a_refused_run_leaves_the_data_of_the_other(make_arguments, tmp_path):
    rendered = {"synthetic_images": 8, "synthetic_image_size": 40, "steps": 2}
    arguments = [argument for argument in make_arguments(tmp_path, **rendered) if not argument.startswith("--dataset=")]
    pretrain.main(arguments)
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    with pytest.raises(SystemExit, match=r"synthetic_images=8.* synthetic_images=6"):
        pretrain.main([*arguments, "--synthetic_images=6"])
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before


def test_a_tracker_gets_the_log(make_arguments, tmp_path):
    pretrain.main(make_arguments(tmp_path, report_to="tensorboard", steps=4))
    accumulator = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "rats"))
    accumulator.Reload()
    logged = {event.step: event.value for event in accumulator.Scalars("loss")}
    assert logged == {entry["step"]: pytest.approx(entry["loss"]) for entry in read_json_lines(tmp_path / "log.jsonl")}


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(make_arguments, tmp_path):
    same = {"drop_path_rate": 0, "learning_rate": 0.01}
    pretrain.main(make_arguments(tmp_path / "plain", **same))
    pretrain.main(make_arguments(tmp_path / "compiled", **same, torch_compile=True))
    losses = [[entry["loss"] for entry in read_json_lines(tmp_path / name / "log.jsonl")] for name in ("plain", "compiled")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert type(AutoModel.from_pretrained(tmp_path / "compiled" / "model")) is RatsModel


def test_the_frozen_last_layer_stays(make_arguments, tmp_path):
    pretrain.main(make_arguments(tmp_path, steps=3, checkpoint_steps=1, keep_checkpoints=9, freeze_last_layer_steps=2))
    before, frozen, free = (checkpoint.load(path)["student"] for path in checkpoint.list_checkpoints(tmp_path / "checkpoints"))
    prototypes = "head.prototypes.weight"
    assert torch.equal(before[prototypes], frozen[prototypes]) and not torch.equal(frozen[prototypes], free[prototypes])
    assert not torch.equal(before["head.layers.0.weight"], frozen["head.layers.0.weight"])


def test_a_run_can_be_resumed_while_the_last_layer_is_frozen(make_arguments, tmp_path, monkeypatch):
    settings = {"freeze_last_layer_steps": 4}
    pretrain.main(make_arguments(tmp_path / "whole", **settings))
    with monkeypatch.context() as interrupted, pytest.raises(Interruption):
        interrupt_after(interrupted, step=3)
        pretrain.main(make_arguments(tmp_path / "rest", **settings))
    pretrain.main(make_arguments(tmp_path / "rest", **settings))
    assert_same_end(tmp_path / "rest", tmp_path / "whole")


def test_the_embedded_data_is_rendered_once(tmp_path):
    data = DataSettings(synthetic_images=3, synthetic_image_size=16)
    training = TrainingSettings(output_dir=str(tmp_path), quiet=True)
    folder = Path(sources.render_synthetic(data, training))
    (first,) = folder.glob("*.parquet")
    made_at = first.stat().st_mtime_ns
    assert len(datasets.load_dataset(str(folder), split="train", streaming=True).take(9)._head(9)["image"]) == 3
    sources.render_synthetic(data, training)
    assert first.stat().st_mtime_ns == made_at
    data.synthetic_images = 4
    sources.render_synthetic(data, training)
    assert len(list(datasets.load_dataset(str(folder), split="train", streaming=True))) == 4


# What it is for


@pytest.mark.slow
def test_a_short_pretraining_finds_parts(tmp_path):
    """The quickstart, shortened: on unseen images it is better than the weights it starts from, and than colours."""
    output = tmp_path / "run"
    shorter = {"steps": 400, "warmup_steps": 20, "synthetic_images": 6000, "num_workers": 0}
    arguments = [f"--{name}={value}" for name, value in shorter.items()]
    folder = pretrain.main([*arguments, "--output_dir", str(output), "--quiet"])
    write_dataset(output / "data", 60, 128, seed=1, difficulty="colours", split="validation", quiet=True)
    arguments = f"--model {folder} --dataset {output / 'data'} --output {output / 'scores.json'} --untrained --quiet"
    scores = part_segmentation.main(arguments.split())["scores"]
    model, untrained, colors = (scores[row] for row in ("model", "untrained", "color k-means, same number of segments"))
    assert model["m2o_miou_foreground"] > untrained["m2o_miou_foreground"] + 10
    assert model["ari"] > max(untrained["ari"], colors["ari"]) + 5
    assert model["o2o_miou"] > max(untrained["o2o_miou"], colors["o2o_miou"]) + 3
