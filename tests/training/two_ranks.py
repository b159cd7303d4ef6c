"""Run by test_sharding.py, alone or as one of two gloo processes: steps on its share of fixed views; writes what they gave.

python two_ranks.py OUTPUT.pt "ddp|fsdp2" "SETTING=VALUE ..." STEPS
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from training import pretrain
from training.arguments import parse
from training.launch import start_accelerator
from training.run_state import find_state, restore, save_checkpoint
from training.sharding import whole_weights
from training.streaming import Batch

BATCH = 8


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def main(output: str, sharing: str, settings_text: str, steps: str) -> None:
    settings = parse([f"--{setting}" for setting in settings_text.split()])
    accelerator = start_accelerator(settings.training)
    if sharing == "fsdp2":  # which Accelerate leaves out on a CPU
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
        )
    run = pretrain.build_run(accelerator, settings)
    if "sgd" in os.environ:
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
    for step in range(int(steps)):
        if step == 2 and "interrupt" in os.environ:
            stream = SimpleNamespace(positions={}, num_workers=0)
            save_checkpoint(run, stream, Path(output).parent)
            run = pretrain.build_run(accelerator, settings)
            restore(run, stream, find_state(run, Path(output).parent))
        views = [torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8, generator=generator) for side in (32, 32, 16)]
        own = [view[accelerator.process_index * share :][:share] for view in views]
        figures = pretrain.train_step(run, Batch(own, worker=0, position=(0, 0), broken=[]))
        run.step += 1
        losses.append(accelerator.reduce(figures.loss, "mean"))
        norms.append(figures.gradient_norm)
    states = {"student": whole_weights(run.student), "teacher": whole_weights(run.teacher)}
    sharded = any(isinstance(one, DTensor) for one in run.teacher.parameters())
    if accelerator.is_main_process:
        result = {"losses": torch.stack(losses), "norms": torch.stack(norms), "gradients": gradients, **states}
        result |= {"center": run.loss.center, "processes": accelerator.num_processes, "sharded": sharded}
        torch.save(result, output)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
