"""What several ranks compute together equals what one computes alone: gradients, weights, teacher, centre."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
EXACT = {"batch_size": 8, "learning_rate": 3.2, "clip_gradient": 0.02, "cpu_threads": 1}
SINKHORN_KNOPP, IN_PARTS, IN_ONE = {"centering": "sinkhorn_knopp"}, {"gradient_accumulation_steps": 2}, {}
# AdamW, bf16, prototypes that are frozen at first, and a centre.
AS_TRAINED = {"optimizer": "adamw", "settings": {"mixed_precision": "bf16", "freeze_last_layer_steps": 3}}
BOTTLENECK = {"register_bottleneck_weight": 0.5}
CODES = {"register_code_weight": 0.5, "register_balance_weight": 0.5}
# AdamW at a learning rate that suits it (that of EXACT suits SGD). In float32: with FSDP2 bf16 rounds otherwise from process
# to process.
DISTILLED_AS_TRAINED = {"optimizer": "adamw", "settings": {"learning_rate": 0.032}}
JOBS = {  # number of processes -> what they compute one after the other: a start of processes takes longer than the steps
    1: {
        "alone": {},
        "alone, Sinkhorn-Knopp": {"settings": SINKHORN_KNOPP},
        "alone, in parts": {"settings": IN_PARTS},
        "alone, bottleneck": {"settings": BOTTLENECK},
        "alone, distilled": {"distils": True},
        "alone, distilled with codes": {"distils": True, "settings": CODES},
        "alone, checkpointing": {"settings": {"gradient_checkpointing": True}},
    },
    2: {
        f"{sharing}{name}": {"sharing": sharing} | job
        for sharing in ("ddp", "fsdp2")
        for name, job in {
            "": {},
            ", Sinkhorn-Knopp": {"settings": SINKHORN_KNOPP},
            ", in parts": {"settings": IN_PARTS},
            ", as trained": AS_TRAINED,
            ", interrupted": AS_TRAINED | {"interrupted": True},
            ", bottleneck": {"settings": BOTTLENECK | IN_PARTS},
            ", distilled": {"distils": True},
            ", distilled in parts": {"distils": True, "settings": IN_PARTS},
            ", distilled with codes": {"distils": True, "settings": CODES},
            ", distilled as trained": {"distils": True} | DISTILLED_AS_TRAINED,
            ", distilled, interrupted": {"distils": True, "interrupted": True} | DISTILLED_AS_TRAINED,
        }.items()
    },
}


pytestmark = pytest.mark.slow  # trainings of several processes


@pytest.fixture(scope="module")
def start(tiny_settings, student_settings, make_teacher, tmp_path_factory):
    recipe = tmp_path_factory.mktemp("recipe") / "distillation.yaml"
    recipe.write_text("{}\n")
    distillation = student_settings | EXACT | {"steps": 20, "teacher": str(make_teacher("dinov2"))}

    def whole(sharing="ddp", optimizer="sgd", interrupted=False, settings=IN_ONE, distils=False):
        of_program = {"recipe": str(recipe), "settings": distillation | settings}
        job = of_program if distils else {"settings": tiny_settings | EXACT | settings}
        return {"sharing": sharing, "optimizer": optimizer, "interrupted": interrupted} | job

    def start(folder, processes, jobs):
        """The ended processes, which have saved what each job gave in `folder`."""
        (folder / "jobs.json").write_text(json.dumps({name: whole(**job) for name, job in jobs.items()}))
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
        script = str(Path(__file__).with_name("two_ranks.py"))
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
        command = [sys.executable, *launcher, script, str(folder / "jobs.json"), str(folder)]
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=240, capture_output=True, text=True)

    return start


@pytest.fixture(scope="module")
def results(start, tmp_path_factory):
    """Name of a job -> what its steps gave, from the main process."""
    results = {}
    for processes, jobs in JOBS.items():
        folder = tmp_path_factory.mktemp("results")
        ended = start(folder, processes, jobs)
        assert ended.returncode == 0, ended.stderr
        results |= {name: torch.load(folder / f"{name}.pt") for name in jobs}
        assert {results[name]["processes"] for name in jobs} == {processes}
    return results


@pytest.fixture(scope="module")
def alone(results):
    return results["alone"]


def assert_same(result, expected, skipped=()):
    """Gradients at each step, then weights, teacher and centre, to 1e-5 of the largest of each tensor."""
    assert len(result["gradients"]) == len(expected["gradients"]) == STEPS
    pairs = [
        (f"gradient of {name} at step {step}", own[name], tensor)
        for step, (own, other) in enumerate(zip(result["gradients"], expected["gradients"], strict=True))
        for name, tensor in other.items()
    ]
    for part in {"student", "teacher"} & expected.keys():
        assert result[part].keys() == expected[part].keys()
        pairs += [(f"{part}'s {name}", result[part][name], tensor) for name, tensor in expected[part].items()]
    pairs += [(name, result[name], expected[name]) for name in ("center", "losses", "norms") if name in expected]
    for name, tensor, other in pairs:
        if not name.split(" at ")[0].endswith("k_proj.bias"):  # zero but for rounding: softmax does not see it
            torch.testing.assert_close(
                tensor, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()), msg=lambda text, name=name: f"{name}: {text}"
            )


def test_the_steps_of_one_rank_learn_and_are_clipped(alone):
    assert not alone["sharded"]
    assert not torch.equal(alone["gradients"][0]["head.layers.0.weight"], alone["gradients"][1]["head.layers.0.weight"])
    largest = max(float(gradient.norm()) for gradient in alone["gradients"][0].values())
    assert largest == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize("centering", ["", ", Sinkhorn-Knopp"])
@pytest.mark.parametrize("sharing", ["ddp", "fsdp2"])
def test_two_ranks_with_half_the_batch_each_are_one_with_the_whole(results, sharing, centering):
    """With FSDP2 the weights are sharded, clipping and EMA included."""
    result = results[sharing + centering]
    assert result["sharded"] == (sharing == "fsdp2")
    assert_same(result, results["alone" + centering])


@pytest.mark.parametrize("sharing", ["alone", "ddp", "fsdp2"])
def test_a_batch_computed_in_parts_is_the_whole_batch(results, alone, sharing):
    assert_same(results[f"{sharing}, in parts"], alone)


@pytest.mark.parametrize("sharing", ["ddp", "fsdp2"])
def test_the_register_bottleneck_of_two_ranks_in_parts_is_that_of_one(results, sharing):
    assert "register_projection.weight" in results["alone, bottleneck"]["gradients"][0]
    assert_same(results[f"{sharing}, bottleneck"], results["alone, bottleneck"])


@pytest.mark.parametrize("how", ["", " in parts"])
@pytest.mark.parametrize("sharing", ["ddp", "fsdp2"])
def test_a_distillation_on_two_ranks_is_one_on_one(results, sharing, how):
    """The means that its targets are without are those of both ranks."""
    result, expected = results[f"{sharing}, distilled{how}"], results["alone, distilled"]
    assert result["sharded"] == (sharing == "fsdp2") and "patch_projection.weight" in expected["gradients"][0]
    assert_same(result, expected)


@pytest.mark.parametrize("sharing", ["ddp", "fsdp2"])
def test_the_registers_of_two_ranks_are_balanced_together(results, sharing):
    assert "register_codes" in results["alone, distilled with codes"]["gradients"][0]
    assert_same(results[f"{sharing}, distilled with codes"], results["alone, distilled with codes"])


@pytest.mark.parametrize("sharing", ["ddp", "fsdp2"])
def test_a_run_on_two_ranks_goes_on_from_its_checkpoint_as_if_nothing_had_been(results, sharing):
    whole, rest = results[f"{sharing}, as trained"], results[f"{sharing}, interrupted"]
    for part in ("student", "teacher"):
        assert_goes_on(rest[part], whole[part], sharing)
    torch.testing.assert_close(rest["center"], whole["center"])
    assert whole["center"].any()


@pytest.mark.parametrize("sharing", ["ddp", "fsdp2"])
def test_so_does_a_distillation(results, sharing):
    whole, rest = results[f"{sharing}, distilled as trained"], results[f"{sharing}, distilled, interrupted"]
    assert_goes_on(rest["student"], whole["student"], sharing)


def assert_goes_on(rest, whole, sharing):
    for name, tensor in whole.items():
        if sharing == "ddp":
            assert torch.equal(rest[name], tensor), name
        elif not name.endswith("k_proj.bias"):  # FSDP2 rounds otherwise from one process to the next
            torch.testing.assert_close(rest[name], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max()))


def test_only_autocast_chooses_what_is_computed_in_bf16(results):
    """Accelerate's policy for FSDP2 would compute the head in bf16 as well."""
    assert results["fsdp2, as trained"]["policy"] is None
    assert results["fsdp2, as trained"]["losses"] == pytest.approx(results["ddp, as trained"]["losses"], rel=1e-3)


def test_gradient_checkpointing_changes_nothing(results, alone):
    assert_same(results["alone, checkpointing"], alone)


def test_sharded_weights_cannot_be_compiled(start, tmp_path):
    job = {"sharing": "fsdp2", "settings": {"torch_compile": True}}
    assert "torch_compile=True has not been made to work with FSDP2" in start(tmp_path, 1, {"compiled": job}).stderr
