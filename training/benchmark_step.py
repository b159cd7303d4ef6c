"""Images per second of a training step, without the data, and where its time goes: python -m training.benchmark_step

Side by side in one run, in turns: the original DINO loop (`original_loop.py`) on a ViT in float32, this project's step on the
same ViT, and on RATS of the same width and depth, each in float32 and as it would be run, in bf16. The last lines are ratios of
medians. Defaults: RATS-S/16 with 96 registers, DINO's head and views, random pixels.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from training import pretrain
from training.arguments import parse
from training.launch import start_accelerator
from training.networks import build_backbone_and_head, build_config
from training.original_loop import OriginalLoop
from training.schedules import schedule_at
from training.settings import Settings
from training.streaming import Batch
from training.student_teacher import MultiCropNetwork

RECIPE = Path(__file__).parent / "recipes" / "rats_vits16_in1k.yaml"
PARTS = ("teacher", "student", "head", "loss", "backward", "clipping", "optimizer", "EMA", "rest")


class Stopwatch:
    """Sums the time inside functions by label; of a timed function inside another the time counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def time(self, owner: Any, name: str, label: str) -> None:
        """Replaces an attribute of `owner` by itself, timed."""
        function = getattr(owner, name)

        @wraps(function)
        def timed(*args, **kwargs):
            synchronize()
            start = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                synchronize()
                whole = time.perf_counter() - start
                self.seconds[label] += whole - self._inner.pop()
                self._inner[-1] += whole

        setattr(owner, name, timed)


def synchronize() -> None:
    """Waits for the device, or a GPU's time would count where somebody first asks for a result."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


class Contestant:
    """A loop to be timed.

    Args:
        name: Of its row.
        step: Runs one step.
        stopwatch: That its parts are timed by.
    """

    def __init__(self, name: str, step: Callable[[], object], stopwatch: Stopwatch):
        self.name, self.step, self.stopwatch = name, step, stopwatch
        self.stopwatch.time(self, "step", "rest")
        self.rounds: list[dict[str, float]] = []  # seconds of a step by part

    def run(self, steps: int) -> None:
        self.stopwatch.seconds.clear()
        for _ in range(steps):
            self.step()
        self.rounds.append({part: self.stopwatch.seconds[part] / steps for part in PARTS})

    def step_s(self) -> float:
        return statistics.median(sum(parts.values()) for parts in self.rounds)

    def row(self, batch_size: int) -> str:
        parts = "".join(f"{statistics.median(one[part] for one in self.rounds):10.3f}" for part in PARTS)
        return f"{self.name:28}{batch_size / self.step_s():10.2f}{self.step_s():10.3f}{parts}"


def original(settings: Settings, batch: Batch) -> Contestant:
    backbone, head = build_backbone_and_head("vit", build_config(settings.model, settings.data.global_crop_size))
    backbone.set_attn_implementation("eager")  # as DINO's ViT writes it out
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    network = MultiCropNetwork(backbone, head).to(device)
    views = [network.normalize(view.to(device)) for view in batch.views]  # its loader normalises
    training = settings.training
    loop = OriginalLoop(
        backbone,
        head,
        settings.model.num_prototypes,
        training.student_temperature,
        training.center_momentum,
        training.clip_gradient,
    )
    stopwatch = Stopwatch()
    methods = {"forward_teacher": "teacher", "forward_student": "student", "run_head": "head", "loss": "loss"}
    methods |= {"backward": "backward", "clip": "clipping", "step_optimizer": "optimizer", "follow": "EMA"}
    for name, part in methods.items():
        stopwatch.time(loop, name, part)
    schedule = schedule_at(training.warmup_steps, training)
    return Contestant("original loop, ViT, float32", lambda: loop.step(views, schedule), stopwatch)


def ours(settings: Settings, batch: Batch, model_type: str, precision: str) -> Contestant:
    settings.model.model_type, settings.training.mixed_precision = model_type, precision
    # One process may have one precision at a time; float32 ones are made first and never ask again.
    AcceleratorState._reset_state()
    accelerator = start_accelerator(settings.training)
    run = pretrain.build_run(accelerator, settings)
    run.step = settings.training.warmup_steps
    stopwatch = Stopwatch()
    for owner, name, part in (
        (run.teacher, "forward", "teacher"),
        (run.student, "forward", "student"),
        (accelerator.unwrap_model(run.student).head, "forward", "head"),
        (run.teacher.head, "forward", "head"),
        (run.loss, "forward", "loss"),
        (run.loss, "targets", "loss"),
        (accelerator, "backward", "backward"),
        (run.optimizer, "step", "optimizer"),
    ):
        stopwatch.time(owner, name, part)

    def step() -> None:
        of_step = {"clip_gradients": "clipping", "update_teacher": "EMA"}  # functions that `train_step` calls by name
        before = {name: getattr(pretrain, name) for name in of_step}
        for name, part in of_step.items():
            stopwatch.time(pretrain, name, part)
        try:
            pretrain.train_step(run, batch)
        finally:
            for name, function in before.items():
                setattr(pretrain, name, function)

    kind = {"rats": "RATS", "vit": "ViT", "registers": "ViT + registers"}[model_type]
    return Contestant(f"ours, {kind}, {'float32' if precision == 'no' else precision}", step, stopwatch)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmark_step",
        description=__doc__.splitlines()[0] + " Other settings (--num_registers 96 ...) are those of pretraining.",
    )
    parser.add_argument("--recipe", default=str(RECIPE), help="whose sizes are timed (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=4, help="images of a step")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed, in turns")
    parser.add_argument("--steps_per_round", type=int, default=1, help="whose mean is a round's time")
    given, others = parser.parse_known_args(arguments)
    if min(given.batch_size, given.rounds, given.steps_per_round) < 1:
        parser.error("--batch_size, --rounds and --steps_per_round must be at least 1.")
    flags = [given.recipe, *others, f"--batch_size={given.batch_size}", "--quiet", "--drop_path_rate=0"]
    settings = parse(flags)
    views = [settings.data.global_crop_size] * 2 + [settings.data.local_crop_size] * settings.data.num_local_crops
    generator = torch.Generator().manual_seed(0)
    pixels = [
        torch.randint(0, 256, (given.batch_size, side, side, 3), dtype=torch.uint8, generator=generator) for side in views
    ]
    batch = Batch(pixels, worker=0, position=(0, 0), broken=[])
    contestants = [original(parse(flags), batch)]
    for precision in ("no", "bf16"):
        for model_type in ("vit", "rats"):
            contestants.append(ours(parse(flags), batch, model_type, precision))
    for turn in range(given.rounds + 1):  # the first warms up
        print(f"round {turn} of {given.rounds}" if turn else "warming up", file=sys.stderr, flush=True)
        for contestant in contestants:
            contestant.run(given.steps_per_round)
            if not turn:
                contestant.rounds.clear()
    print(
        f"{given.batch_size} images a step, views of {views} px, {torch.get_num_threads()} threads; seconds of a step by part"
    )
    print(" " * 28 + f"{'images/s':>10}{'step':>10}" + "".join(f"{part:>10}" for part in PARTS))
    for contestant in contestants:
        print(contestant.row(given.batch_size))
    by_name = {contestant.name: contestant.step_s() for contestant in contestants}
    for faster, slower in (
        ("ours, RATS, float32", "ours, ViT, float32"),
        ("ours, RATS, bf16", "ours, ViT, bf16"),
        ("ours, ViT, bf16", "original loop, ViT, float32"),
        ("ours, RATS, bf16", "original loop, ViT, float32"),
    ):
        if slower in by_name:
            print(f"{faster} : {slower}  ratio {by_name[slower] / by_name[faster]:.2f}x images/s")


if __name__ == "__main__":
    main(sys.argv[1:])
