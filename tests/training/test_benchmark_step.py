"""What the benchmark of a step measures and prints."""

import time

import pytest

from training import benchmark_step, pretrain
from training.benchmark_step import PARTS, Stopwatch


class Work:
    def outer(self):
        time.sleep(0.01)
        self.inner()

    def inner(self):
        time.sleep(0.03)


def test_time_inside_an_inner_function_counts_there_alone():
    work, stopwatch = Work(), Stopwatch()
    stopwatch.time(work, "inner", "inner")
    stopwatch.time(work, "outer", "outer")
    work.outer()
    work.inner()
    assert stopwatch.seconds["inner"] >= 0.06 and 0.01 <= stopwatch.seconds["outer"] < 0.03


def test_every_loop_is_timed_part_by_part_and_compared(tiny_settings, capsys):
    functions = pretrain.clip_gradients, pretrain.update_teacher
    own = {name: value for name, value in tiny_settings.items() if name not in ("quiet", "drop_path_rate", "mixed_precision")}
    flags = [f"--{name}={value}" for name, value in own.items()]
    benchmark_step.main(["--rounds", "2", "--batch_size", "2", *flags, "--num_local_crops=2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 images a step, views of [32, 32, 16, 16] px")
    assert lines[1].split() == ["images/s", "step", *PARTS]
    rows = {line[:28].strip(): [float(value) for value in line[28:].split()] for line in lines[2:7]}
    assert list(rows) == [
        "original loop, ViT, float32",
        "ours, ViT, float32",
        "ours, RATS, float32",
        "ours, ViT, bf16",
        "ours, RATS, bf16",
    ]
    for images_per_s, step_s, *parts in rows.values():
        assert len(parts) == len(PARTS) and sum(parts) == pytest.approx(step_s, abs=0.01)
        assert images_per_s == pytest.approx(2 / step_s, rel=0.2)
    ratio = float(lines[-1].rsplit("ratio ", 1)[1].split("x")[0])
    assert ratio == pytest.approx(rows["original loop, ViT, float32"][1] / rows["ours, RATS, bf16"][1], rel=0.2)
    assert (pretrain.clip_gradients, pretrain.update_teacher) == functions  # as before


@pytest.mark.parametrize("option", ["--batch_size", "--rounds", "--steps_per_round"])
def test_nothing_to_time_is_refused(option, capsys):
    with pytest.raises(SystemExit):
        benchmark_step.main([option, "0"])
    assert "must be at least 1" in capsys.readouterr().err
