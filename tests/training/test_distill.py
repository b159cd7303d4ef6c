"""Distillation end to end on a tiny student, tiny random teachers and 22 images."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from evaluation.records import read_json_lines
from hub_cards.card import write_card
from modeling_rats import RatsForPartSegmentation, RatsImageProcessor, RatsModel
from tests.training.conftest import TEACHERS
from training import checkpoint, distill
from training.distill_arguments import parse
from training.export_checkpoints import export_checkpoints
from training.launch import start_accelerator
from training.preemption import EXIT_CODE
from training.streaming import Batch

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6
LOG_FIELDS = {
    "step", "loss", "patch_loss", "register_bottleneck_loss", "global_loss", "gradient_norm", "learning_rate", "weight_decay",
    "registers_used", "registers_per_image", "register_cosine", "rankme", "images_per_s", "data_wait_share", "images_seen",
    "epoch", "broken_images", "skipped_steps",
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index in range(22):
        small = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def teacher(make_teacher):
    return make_teacher("dinov2")


@pytest.fixture(scope="module")
def make_arguments(tmp_path_factory, student_settings, images, teacher):
    """Arguments for `main`: a recipe of the settings above, the images, and what a test wants different."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(student_settings))

    def make(output, **overrides):
        settings = {"dataset": images, "teacher": teacher, "output_dir": output} | overrides
        return [str(path), *[f"--{name}={value}" for name, value in settings.items()]]

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_arguments):
    """The output folder of an uninterrupted run with drop path, which draws from the generator."""
    output = tmp_path_factory.mktemp("finished")
    assert distill.main(make_arguments(output, drop_path_rate=0.5)) == output / "model"
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


def run_of(arguments):
    settings = parse(arguments)
    return distill.build_run(start_accelerator(settings.training), settings)


def batch_of(side_px=32, number=4, views=1, seed=3):
    generator = torch.Generator().manual_seed(seed)
    pixels = [torch.randint(0, 256, (number, side_px, side_px, 3), dtype=torch.uint8, generator=generator)] * views
    return Batch(pixels, worker=0, position=(0, 0), broken=[])


# What a run leaves


def test_the_folder_is_the_student_as_a_transformers_model(finished):
    folder, state = finished / "model", last_state(finished)
    names = {path.name for path in folder.iterdir() if path.suffix != ".py"}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json", "training.json"}
    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert type(model) is RatsForPartSegmentation and type(processor) is RatsImageProcessor
    for name, parameter in RatsModel.from_pretrained(folder).named_parameters():
        assert torch.equal(parameter, state["student"][f"backbone.{name}"]), name


def test_a_checkpoint_holds_the_projections_and_of_the_teacher_name_and_hash_alone(finished, teacher):
    state = last_state(finished)
    assert state["kind"] == "distillation" and "teacher" not in state
    others = {name for name in state["student"] if not name.startswith("backbone.")}
    names = ("patch_projection", "register_projection", "global_projection")
    assert others == {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert state["frozen_teacher"]["name"] == str(teacher) and len(state["frozen_teacher"]["weights"]) == 32


def test_the_record_and_the_card_tell_the_teacher(finished, teacher):
    record = json.loads((finished / "model" / "training.json").read_text())
    assert record["teacher"] == last_state(finished)["frozen_teacher"] and record["steps"] == STEPS
    text = write_card(finished / "model").read_text()
    assert f"| Teacher | `{teacher.name}` (a local model) (dinov2); its licence is not recorded |" in text
    assert "1 x the teacher's patches explained by the registers" in text and "| Views | 1 of 32 px per image |" in text
    assert "Distilled from a frozen teacher" in text and "training/distill.py" in text and "self-distillation" not in text
    assert "base_model" not in text and str(teacher) not in text
    (finished / "model" / "README.md").unlink()


def test_a_teacher_of_the_hub_is_the_base_model(finished, tmp_path):
    shutil.copytree(finished / "model", tmp_path / "model")
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    record["teacher"] |= {"name": "facebook/dinov2-small", "on_hub": True, "revision": "0" * 40, "licence": "apache-2.0"}
    (tmp_path / "model" / "training.json").write_text(json.dumps(record))
    text = write_card(tmp_path / "model").read_text()
    assert "base_model: facebook/dinov2-small\n" in text and "base_model_relation: finetune\n" in text
    assert "- distillation\n" in text and "- dino\n" not in text
    assert "[facebook/dinov2-small](https://huggingface.co/facebook/dinov2-small) (dinov2, commit `000000000000`)" in text
    assert "licence `apache-2.0`" in text and "They were distilled from those of [facebook/dinov2-small]" in text


def test_the_log_has_each_loss(finished):
    entries = read_json_lines(finished / "log.jsonl")
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    for entry in entries:
        assert set(entry) == LOG_FIELDS and all(math.isfinite(value) for value in entry.values())
        parts = (entry[f"{name}_loss"] for name in ("patch", "register_bottleneck", "global"))
        assert entry["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert Image.open(finished / "curves.png").format == "PNG"


def test_all_losses_at_once(make_arguments, tmp_path):
    distill.main(make_arguments(tmp_path, register_code_weight=0.5, register_balance_weight=0.25, steps=2))
    (entry,) = read_json_lines(tmp_path / "log.jsonl")
    assert set(entry) == LOG_FIELDS | {"register_code_loss", "register_balance_loss"}
    parts = (entry[f"{name}_loss"] for name in ("patch", "register_bottleneck", "global"))
    weighted = 0.5 * entry["register_code_loss"] + 0.25 * entry["register_balance_loss"]
    assert entry["loss"] == pytest.approx(sum(parts) + weighted, rel=1e-5) and entry["register_balance_loss"] > 0


@pytest.mark.parametrize("kind", TEACHERS)
def test_every_kind_of_teacher_teaches(make_arguments, make_teacher, tmp_path, kind):
    distill.main(make_arguments(tmp_path, teacher=make_teacher(kind), steps=2, num_global_crops=2))
    (entry,) = read_json_lines(tmp_path / "log.jsonl")
    assert set(entry) == LOG_FIELDS and math.isfinite(entry["loss"])


@pytest.mark.parametrize("left", ["patch", "register_bottleneck", "register_code", "global"])
def test_losses_can_be_switched_off(make_arguments, tmp_path, left):
    weights = {f"{name}_weight": float(name == left) for name in ("patch", "register_bottleneck", "register_code", "global")}
    distill.main(make_arguments(tmp_path, **weights, steps=2))
    (entry,) = read_json_lines(tmp_path / "log.jsonl")
    assert {name for name in entry if name.endswith("_loss")} == {f"{left}_loss"}
    assert entry["loss"] == pytest.approx(entry[f"{left}_loss"]) and entry["gradient_norm"] > 0
    projections = {name.split(".")[0] for name in last_state(tmp_path)["student"] if not name.startswith("backbone.")}
    assert len(projections) == 1


def test_parts_are_measured_while_it_trains(make_arguments, tmp_path, finished):
    distill.main(make_arguments(tmp_path, drop_path_rate=0.5, eval_steps=3, eval_pictures=2))
    assert [path.name for path in sorted((tmp_path / "parts").iterdir())] == ["step_00000003.png", "step_00000006.png"]
    state, expected = last_state(tmp_path), last_state(finished)
    assert all(torch.equal(state["student"][name], tensor) for name, tensor in expected["student"].items())


def test_its_checkpoints_can_be_exported(make_arguments, tmp_path):
    distill.main(make_arguments(tmp_path, keep_checkpoints=9))
    folders = export_checkpoints(tmp_path, tmp_path / "steps")
    assert [folder.name for folder in folders] == ["step_00000003", "step_00000006"]
    last, exported = (RatsModel.from_pretrained(folder) for folder in (folders[-1], tmp_path / "model"))
    assert all(torch.equal(tensor, exported.state_dict()[name]) for name, tensor in last.state_dict().items())


# Going on


def test_an_interrupted_run_ends_as_an_uninterrupted_one(make_arguments, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt_after(patch, 3)
        distill.main(make_arguments(tmp_path, drop_path_rate=0.5))
    distill.main(make_arguments(tmp_path, drop_path_rate=0.5))
    state, expected = last_state(tmp_path), last_state(finished)
    assert state["step"] == STEPS and state["student"].keys() == expected["student"].keys()
    for name, tensor in expected["student"].items():
        assert torch.equal(state["student"][name], tensor), name
    untimed = {"images_per_s": 0, "data_wait_share": 0}
    last, expected_last = (read_json_lines(folder / "log.jsonl")[-1] for folder in (tmp_path, finished))
    assert last | untimed == expected_last | untimed


def test_a_signal_ends_it_as_it_does_pretraining(make_arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("training.preemption.StopSignals.agreed", lambda *_: True)
    with pytest.raises(SystemExit) as ended:
        distill.main(make_arguments(tmp_path))
    assert ended.value.code == EXIT_CODE and last_state(tmp_path)["step"] == 1


def test_another_teacher_is_refused_and_the_same_elsewhere_is_not(make_arguments, make_teacher, teacher, tmp_path):
    distill.main(make_arguments(tmp_path / "run", steps=3))
    with pytest.raises(SystemExit, match=r"step_00000003\.pt was distilled from .*has one teacher from start to end"):
        distill.main(make_arguments(tmp_path / "run", teacher=make_teacher("dinov2", seed=6)))
    shutil.copytree(teacher, tmp_path / "moved")
    distill.main(make_arguments(tmp_path / "run", teacher=tmp_path / "moved", steps=4))
    assert last_state(tmp_path / "run")["step"] == 4


def test_a_checkpoint_of_another_kind_of_run_is_refused(make_arguments, finished, tmp_path):
    state = last_state(finished) | {"kind": "pretraining"}
    path = checkpoint.save(tmp_path / "other", 3, state, keep=1)
    with pytest.raises(SystemExit, match="is no checkpoint of distillation"):
        distill.main(make_arguments(tmp_path / "run", resume=path))


def test_a_step_without_a_finite_gradient_changes_nothing(make_arguments, tmp_path, monkeypatch):
    run = run_of(make_arguments(tmp_path))
    run.step = 1  # its learning rate is not 0
    before = {name: tensor.clone() for name, tensor in run.student.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(distill, "patch_loss", lambda projected, _: projected.sum() * math.inf)
        figures = distill.train_step(run, batch_of())
    assert not figures.is_finite and run.skipped_steps == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.student.state_dict().items())
    assert distill.train_step(run, batch_of()).is_finite


@pytest.mark.slow
def test_two_processes_share_the_work(make_arguments, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "training/distill.py"]
    arguments = make_arguments(tmp_path, steps=2, log_steps=1)
    launcher = subprocess.Popen(
        [*command, *arguments], cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, start_new_session=True
    )
    try:
        assert launcher.wait(timeout=180) == 0
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["processes"] == 2 and record["teacher"]["model_type"] == "dinov2"
    assert [entry["images_seen"] for entry in read_json_lines(tmp_path / "log.jsonl")] == [4, 8]


# Exact


def test_a_batch_computed_in_parts_is_the_whole_batch(make_arguments, tmp_path):
    gradients, losses = [], []
    for parts in (1, 2):
        run = run_of(make_arguments(tmp_path, gradient_accumulation_steps=parts, clip_gradient=0))
        own: dict[str, torch.Tensor] = {}
        named = dict(run.student.named_parameters())
        run.optimizer.register_step_pre_hook(
            lambda *_, own=own, named=named: own.update(
                {name: one.grad.clone() for name, one in named.items() if one.requires_grad}
            )
        )
        losses.append(distill.train_step(run, batch_of(views=2)).loss)
        gradients.append(own)
    torch.testing.assert_close(losses[0], losses[1])
    assert gradients[0] and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-9)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_patches_and_the_whole(make_arguments, make_teacher, tmp_path):
    """Projections that are the identity, but for what standardises the teacher's patches."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_registers": 8, "patch_size": 8}
    folder = make_teacher("rats", **sizes)
    RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)  # the student's mean and standard deviation
    run = run_of(make_arguments(tmp_path, teacher=folder, register_bottleneck_weight=0))
    student, batch = run.student, batch_of()
    student.backbone.load_state_dict(run.teacher.model.state_dict(), strict=False)
    patches = run.teacher.features(batch.views[0], (4, 4)).patches.flatten(0, 1)  # (B * L, T)
    deviation = (patches.var(dim=0, correction=0) + 1e-6).sqrt()
    with torch.no_grad():
        student.patch_projection.weight.copy_(torch.diag(1 / deviation))
        student.patch_projection.bias.copy_(-patches.mean(dim=0) / deviation)
        student.global_projection.weight.copy_(torch.eye(32))
        student.global_projection.bias.zero_()
    losses = distill.train_step(run, batch).losses
    assert losses.keys() == {"patch_loss", "global_loss"} and all(abs(float(loss)) < 1e-5 for loss in losses.values())


def test_the_gradients_of_all_parameters_together_are_clipped(make_arguments, tmp_path):
    run = run_of(make_arguments(tmp_path, clip_gradient=0.5))
    norms = []
    parameters = [one for one in run.student.parameters() if one.requires_grad]
    run.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.stack([one.grad.norm() for one in parameters if one.grad is not None]).norm())
    )
    figures = distill.train_step(run, batch_of())
    assert figures.gradient_norm > 0.5 and float(norms[0]) == pytest.approx(0.5, rel=1e-4)


# Starting from a ViT


def test_a_student_of_its_sizes_can_start_from_the_teacher(make_arguments, make_teacher, tmp_path, capsys):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    folder = make_teacher("vit", **sizes)
    still = {"learning_rate": 1e-12, "min_learning_rate": 0, "weight_decay": 0, "weight_decay_end": 0, "steps": 2}
    distill.main(make_arguments(tmp_path, teacher=folder, warm_start="teacher", **still))
    assert "Warm start from ViTModel" in capsys.readouterr().out
    weights = checkpoint.load(checkpoint.find("auto", tmp_path / "checkpoints"))["student"]
    theirs = run_of(make_arguments(tmp_path / "again", teacher=folder)).teacher.model.state_dict()
    torch.testing.assert_close(
        weights["backbone.encoder.layer.1.mlp.fc1.weight"], theirs["layers.1.mlp.fc1.weight"], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    "kind, told",
    [("dinov2", r"warm_start=teacher \(.*\): \w+=.* does not fit .*--warm_start none"), ("dinov3_vit", "rotary as in DINOv3")],
)
def test_a_teacher_that_cannot_be_started_from_is_refused(make_arguments, make_teacher, tmp_path, kind, told):
    with pytest.raises(SystemExit, match=told):
        distill.main(make_arguments(tmp_path, teacher=make_teacher(kind), warm_start="teacher"))


# What can be wrong


def test_a_teacher_that_cannot_teach_ends_the_run_before_it_starts(make_arguments, tmp_path):
    with pytest.raises(SystemExit, match=r"teacher=.*missing.* not found.*hf auth login"):
        distill.main(make_arguments(tmp_path / "run", teacher=tmp_path / "missing"))
    assert not list((tmp_path / "run").iterdir())


def test_sizes_that_do_not_fit_are_refused(make_arguments, tmp_path):
    with pytest.raises(SystemExit, match="model settings"):
        distill.main(make_arguments(tmp_path, num_registers=7))


def test_a_dry_run_counts_student_and_teacher_and_trains_nothing(make_arguments, tmp_path, capsys):
    assert distill.main(make_arguments(tmp_path, dry_run=True)) == tmp_path
    said = capsys.readouterr().out
    assert "which sees 4 x 4 patches in 56 x 56 px" in said and "multiply-accumulates of a step, in billions" in said
    assert said.count("1 views of 32 x 32 px") == 8 and not (tmp_path / "checkpoints").exists()


# What it is for


def centred_r2(run, network, seed):
    """How much of what tells the patches of an image apart, in the teacher, the student's projected patches explain."""
    views = smooth_views(64, seed)
    with torch.no_grad():
        targets = run.teacher.features(views, (4, 4)).patches  # (B, L, T)
        deviation = targets.flatten(0, 1).std(dim=0)
        explained = network(views).projected_patches * deviation
    centred, own = (one - one.mean(dim=1, keepdim=True) for one in (targets, explained))
    return 1 - float((centred - own).square().sum() / centred.square().sum())


def smooth_views(number, seed):
    """Blobs of colour, so that there is something to be learned."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.rand(number, 3, 5, 5, generator=generator)
    pixels = nn.functional.interpolate(blobs, (32, 32), mode="bicubic").clamp(0, 1)
    return (pixels * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dinov2", "dinov3_vit"])
def test_patches_of_unseen_images_are_explained(make_arguments, make_teacher, tmp_path, monkeypatch, kind):
    """Far better than at the start, and than by a student whose targets were shuffled among the images."""
    settings = {"steps": 400, "warmup_steps": 20, "batch_size": 32, "learning_rate": 0.02, "min_learning_rate": 1e-4}
    scores = {}
    for shuffled in (False, True):
        run = run_of(make_arguments(tmp_path, teacher=make_teacher(kind), **settings))
        start = centred_r2(run, run.student, seed=10**6)
        with monkeypatch.context() as patch:
            if shuffled:
                patch.setattr(type(run.teacher), "features", shuffle(type(run.teacher).features))
            for step in range(400):
                run.step = step
                distill.train_step(run, Batch([smooth_views(32, step)], worker=0, position=(0, 0), broken=[]))
        scores[shuffled] = centred_r2(run, run.student, seed=10**6)
    assert scores[False] > 0.3 + max(start, scores[True]), (start, scores)


def shuffle(features):
    def of_another_image(teacher, views, grid):
        return features(teacher, views.flip(0), grid)

    return of_another_image
