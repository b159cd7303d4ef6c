"""Run by test_sharding.py, alone or as one of two gloo processes: steps on its share of fixed views; writes what they gave.

python two_ranks.py JOBS.json FOLDER

The file holds, by name, {"sharing": "ddp" or "fsdp2", "optimizer": "sgd" or "adamw", "interrupted": bool, "settings": {}}, and
of a distillation the path of a "recipe"; the others are pretrainings.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from training import arguments, distill, distill_arguments, launch, pretrain
from training.run_state import find_state, restore, save_checkpoint
from training.sharding import whole_weights
from training.streaming import Batch

BATCH, STEPS = 8, 4


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def sharding_accelerator(**settings) -> Accelerator:
    """What a launcher with fsdp2.yaml gives on GPUs; on a CPU Accelerate leaves FSDP out."""
    accelerator = Accelerator(**settings)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
    )
    if accelerator.mixed_precision != "no":
        accelerator.state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
    return accelerator


def compute(output: Path, sharing: str, optimizer: str, interrupted: bool, settings: dict, recipe: str | None = None) -> None:
    folder = output.with_suffix("")
    flags = [*[f"--{name}={value}" for name, value in settings.items()], f"--output_dir={folder}"]
    program, sides = (distill, (32,)) if recipe else (pretrain, (32, 32, 16))
    settings = distill_arguments.parse([recipe, *flags]) if recipe else arguments.parse(flags)
    launch.Accelerator = sharding_accelerator if sharing == "fsdp2" else Accelerator  # type: ignore[misc, assignment]
    accelerator = launch.start_accelerator(settings.training)
    run = program.build_run(accelerator, settings)
    if optimizer == "sgd":
        groups = [dict(group) for group in run.optimizer.param_groups]
        run.optimizer = torch.optim.SGD([{"params": one["params"], "decays": one["decays"]} for one in groups], lr=0.0)
    student = accelerator.unwrap_model(run.student)
    gradients: list[dict[str, torch.Tensor]] = []

    def keep_gradients(*_: object) -> None:
        named = student.named_parameters()
        gradients.append({name: whole(one.grad) for name, one in named if one.grad is not None})

    run.optimizer.register_step_pre_hook(keep_gradients)
    generator = torch.Generator().manual_seed(3)
    losses, norms = [], []
    share = BATCH // accelerator.num_processes
    for step in range(STEPS):
        if step == 2 and interrupted:
            stream = SimpleNamespace(positions={}, num_workers=0)
            save_checkpoint(run, stream, folder)
            run = program.build_run(accelerator, settings)
            restore(run, stream, find_state(run, folder))
        views = [torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8, generator=generator) for side in sides]
        own = [view[accelerator.process_index * share :][:share] for view in views]
        figures = program.train_step(run, Batch(own, worker=0, position=(0, 0), broken=[]))
        run.step += 1
        losses.append(accelerator.reduce(figures.loss, "mean"))
        norms.append(figures.gradient_norm)
    networks = {"student": run.student} if recipe else {"student": run.student, "teacher": run.teacher}
    states = {name: whole_weights(network) for name, network in networks.items()}
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    sharded = any(isinstance(one, DTensor) for one in run.student.parameters())
    if accelerator.is_main_process:
        result = {"losses": torch.stack(losses), "norms": torch.stack(norms), "gradients": gradients, **states}
        result |= {"processes": accelerator.num_processes, "sharded": sharded}
        result |= {} if recipe else {"center": run.loss.center}
        result["policy"] = plugin and plugin.mixed_precision_policy
        torch.save(result, output)
    accelerator.wait_for_everyone()


def main(jobs: str, folder: str) -> None:
    for name, job in json.loads(Path(jobs).read_text()).items():
        compute(Path(folder) / f"{name}.pt", **job)
        AcceleratorState._reset_state()  # which allows one precision and one kind of sharing
    if PartialState().num_processes > 1:
        PartialState().destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
