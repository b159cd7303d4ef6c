"""No recipe change hides in our step: losses, gradients, centre and weights are those of the original DINO loop."""

import copy

import pytest
import torch

from training import pretrain
from training.arguments import parse
from training.launch import start_accelerator
from training.original_loop import OriginalLoop
from training.schedules import schedule_at
from training.streaming import Batch

SETTINGS = {
    "num_local_crops": 3,
    "batch_size": 4,
    "learning_rate": 0.1,
    "clip_gradient": 0.01,
    "freeze_last_layer_steps": 2,
}
STEPS = 4


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("model_type", ["vit", "registers", "rats"])
def test_our_step_is_that_of_the_original(tmp_path, tiny_settings, model_type, accumulation):
    overrides = {"model_type": model_type, "gradient_accumulation_steps": accumulation, "output_dir": tmp_path}
    settings = parse([f"--{name}={value}" for name, value in (tiny_settings | SETTINGS | overrides).items()])
    accelerator = start_accelerator(settings.training)
    run = pretrain.build_run(accelerator, settings)
    ours, training = accelerator.unwrap_model(run.student), settings.training
    backbone, head = copy.deepcopy((ours.backbone, ours.head))
    loop = OriginalLoop(backbone, head, 16, training.student_temperature, training.center_momentum, training.clip_gradient)
    networks = {"ours": (ours, run.optimizer), "original": (loop.student, loop.optimizer)}
    gradients = {name: [] for name in networks}
    for name, (network, optimizer) in networks.items():

        def keep(*_, name=name, network=network):
            named = network.named_parameters()
            gradients[name].append({key: one.grad.clone() for key, one in named if one.grad is not None})

        optimizer.register_step_pre_hook(keep)
    generator = torch.Generator().manual_seed(2)
    for step in range(STEPS):
        views = [
            torch.randint(0, 256, (4, side, side, 3), dtype=torch.uint8, generator=generator) for side in (32, 32, 16, 16, 16)
        ]
        figures = pretrain.train_step(run, Batch(views, worker=0, position=(0, 0), broken=[]))
        run.step += 1
        normalized = [ours.normalize(view) for view in views]
        loss = loop.step(normalized, schedule_at(step, training), freezes_last_layer=step < 2)
        close(figures.loss, loss, "loss")
        close(run.loss.center, loop.center[0], "center")
        their_step, our_step = gradients["original"][-1], gradients["ours"][-1]
        assert their_step.keys() == our_step.keys()
        assert ("head.prototypes.weight" in our_step) == (step >= 2)
        for name, gradient in their_step.items():
            if "k_proj.bias" not in name:  # zero but for rounding: softmax does not see it
                close(our_step[name], gradient, f"gradient of {name} at step {step}")
            else:  # AdamW would make steps of the rounding: both go on from the same
                dict(ours.named_parameters())[name].data.copy_(dict(loop.student.named_parameters())[name])
        for name, weight in loop.teacher.named_parameters():
            if "k_proj.bias" not in name:
                close(dict(run.teacher.named_parameters())[name], weight, f"teacher's {name} at step {step}", tolerance=1e-4)


def close(tensor, expected, what, tolerance=1e-4):
    torch.testing.assert_close(
        tensor, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()), msg=lambda text: f"{what}: {text}"
    )
