"""What several ranks compute together equals what one computes alone: gradients, weights, teacher, centre."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"batch_size": 8, "learning_rate": 3.2, "clip_gradient": 0.02, "cpu_threads": 1}
STEPS = 4


@pytest.fixture(scope="module")
def run(tiny_settings):
    def run(output, processes, sharing="ddp", sgd=True, interrupt=False, **settings):
        """What the steps gave, from the main process of a job of its own."""
        text = " ".join(f"{name}={value}" for name, value in (tiny_settings | SETTINGS | settings).items())
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
        script = str(Path(__file__).with_name("two_ranks.py"))
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = (
            os.environ
            | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
            | {name: "1" for name, on in (("sgd", sgd), ("interrupt", interrupt)) if on}
        )
        command = [sys.executable, *launcher, script, str(output), sharing, f"{text} output_dir={output.parent}", str(STEPS)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120)
        return torch.load(output)

    return run


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone") / "alone.pt", processes=1)


def assert_same(result, expected, skipped=()):
    """Gradients at each step, then weights, teacher and centre, to 1e-5 of the largest of each tensor."""
    assert len(result["gradients"]) == len(expected["gradients"]) == STEPS
    pairs = [
        (f"gradient of {name} at step {step}", own[name], tensor)
        for step, (own, other) in enumerate(zip(result["gradients"], expected["gradients"], strict=True))
        for name, tensor in other.items()
    ]
    for part in ("student", "teacher"):
        assert result[part].keys() == expected[part].keys()
        pairs += [(f"{part}'s {name}", result[part][name], tensor) for name, tensor in expected[part].items()]
    pairs += [(name, result[name], expected[name]) for name in ("center", "losses", "norms")]
    for name, tensor, other in pairs:
        if not name.split(" at ")[0].endswith("k_proj.bias"):  # zero but for rounding: softmax does not see it
            torch.testing.assert_close(
                tensor, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()), msg=lambda text, name=name: f"{name}: {text}"
            )


def test_the_steps_of_one_rank_learn_and_are_clipped(alone):
    assert alone["processes"] == 1 and not alone["sharded"]
    assert not torch.equal(alone["gradients"][0]["head.layers.0.weight"], alone["gradients"][1]["head.layers.0.weight"])
    largest = max(float(gradient.norm()) for gradient in alone["gradients"][0].values())
    assert largest == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
def test_two_ranks_with_half_the_batch_each_are_one_with_the_whole(run, tmp_path, alone, centering):
    expected = alone if centering == "centering" else run(tmp_path / "alone.pt", 1, centering=centering)
    result = run(tmp_path / "ddp.pt", 2, centering=centering)
    assert result["processes"] == 2
    assert_same(result, expected)


def test_sharded_weights_give_the_same(run, tmp_path, alone):
    result = run(tmp_path / "fsdp.pt", 2, sharing="fsdp2")
    assert result["processes"] == 2 and result["sharded"]
    assert_same(result, alone)


@pytest.mark.parametrize("sharing, processes", [("ddp", 1), ("ddp", 2), ("fsdp2", 2)])
def test_a_batch_computed_in_parts_is_the_whole_batch(run, tmp_path, alone, sharing, processes):
    assert_same(run(tmp_path / "parts.pt", processes, sharing=sharing, gradient_accumulation_steps=2), alone)


@pytest.mark.parametrize("sharing", ["ddp", "fsdp2"])
def test_a_run_on_two_ranks_goes_on_from_its_checkpoint_as_if_nothing_had_been(run, tmp_path, sharing):
    """With AdamW, bf16, frozen prototypes and a centre."""
    settings = {"sharing": sharing, "sgd": False, "mixed_precision": "bf16", "freeze_last_layer_steps": 3}
    for name in ("whole", "rest"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "whole" / "result.pt", 2, **settings)
    rest = run(tmp_path / "rest" / "result.pt", 2, interrupt=True, **settings)
    for part in ("student", "teacher"):
        for name, tensor in whole[part].items():
            if sharing == "ddp":
                assert torch.equal(rest[part][name], tensor), f"{part}'s {name}"
            elif not name.endswith("k_proj.bias"):  # FSDP2 rounds otherwise from one process to the next
                torch.testing.assert_close(rest[part][name], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max()))
    torch.testing.assert_close(rest["center"], whole["center"])
    assert whole["center"].any()


def test_gradient_checkpointing_changes_nothing(run, tmp_path, alone):
    assert_same(run(tmp_path / "checkpointing.pt", 1, gradient_checkpointing=True), alone)
