"""Time in turns, memory of a fresh process, and where the time goes."""

import platform
import time

import pytest
import torch

from evaluation import forward_pass
from evaluation.forward_pass import (
    FEW_REPEATS,
    KINDS_OF_OPERATORS,
    Workload,
    freed_memory_kept,
    peak_memory,
    seconds_by_operator,
    time_in_turns,
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_stays_with_the_process_and_goes_afterwards():
    def kept_mib():
        before = forward_pass._of_process("VmRSS")
        torch.ones(2**26)  # 256 MiB, freed at once
        return (forward_pass._of_process("VmRSS") - before) / 2**20

    assert kept_mib() < 64
    with freed_memory_kept() as done:
        assert done == "freed memory is kept" and kept_mib() > 192
    torch.ones(2**15)  # what is freed next takes the kept memory along
    assert kept_mib() < 64


def test_functions_take_turns_and_short_ones_run_often(monkeypatch):
    monkeypatch.setattr(forward_pass, "SHORTEST_REPEAT_S", 0.02)
    calls = []

    def slow():
        calls.append("slow")
        time.sleep(0.03)

    def quick():
        calls.append("quick")
        time.sleep(0.005)

    times = time_in_turns({"slow": slow, "quick": quick}, repeats=2)
    assert [len(of_one) for of_one in times.values()] == [2, 2]
    assert all(seconds >= 0.03 for seconds in times["slow"]) and all(seconds >= 0.005 for seconds in times["quick"])
    assert calls[:4] == ["slow"] * 2 + ["quick"] * 2  # warm
    turns = calls[4:]
    of_quick = len(turns[1 : turns.index("slow", 1)])
    assert turns == (["slow"] + ["quick"] * of_quick) * 2 and 1 <= of_quick <= 4


def test_long_ones_are_repeated_fewer_times(monkeypatch):
    monkeypatch.setattr(forward_pass, "LONG_S", 0.01)
    monkeypatch.setattr(forward_pass, "SHORTEST_REPEAT_S", 0.0)
    times = time_in_turns({"long": lambda: time.sleep(0.02), "short": lambda: None}, repeats=5)
    assert [len(of_one) for of_one in times.values()] == [FEW_REPEATS, FEW_REPEATS]


def test_a_forward_pass_runs_in_the_type_that_was_asked_for(make_config):
    outputs = Workload(make_config(), 48, 3, torch.bfloat16).forward()()
    assert outputs.last_hidden_state.shape == (3, 8 + 36, 32) and outputs.last_hidden_state.dtype == torch.bfloat16
    assert outputs.last_hidden_state.is_inference()


@pytest.mark.skipif(not forward_pass.Path("/proc/self/clear_refs").exists(), reason="reads /proc, which Linux has")
def test_the_peak_is_that_of_the_pass_whatever_this_process_has_used(make_config):
    hidden_mib = 64 * 36 * 4096 * 4 / 2**20  # of the MLP, 36 MiB; GELU makes another
    ballast = torch.ones(2**26)  # 256 MiB, which a fresh process does not inherit
    found = peak_memory(Workload(make_config(intermediate_size=4096), 48, 64), threads=1)
    assert 2 * hidden_mib <= found["forward_mib"] < 4 * hidden_mib
    assert 2 * 2 * 32 * 4096 * 4 / 2**20 < found["weights_mib"] < 3
    del ballast


def test_memory_is_refused_where_nothing_tells_it(monkeypatch):
    monkeypatch.setattr(forward_pass.Path, "exists", lambda path: False)
    with pytest.raises(ValueError, match=r"/proc/self.*--measure time"):
        forward_pass.check_memory_is_measured("cpu")


def test_the_time_is_found_in_the_operators(make_config):
    # One thread runs all operators, so that seconds outside them are those of Python alone.
    found = seconds_by_operator(Workload(make_config(hidden_size=128, intermediate_size=512), 256))
    forward, alone = found["forward"], found["products_alone"]
    kinds = [*KINDS_OF_OPERATORS, "other operators", "outside operators", "of these in the operating system"]
    assert list(forward) == kinds
    assert all(forward[kind] > 0 for kind in kinds[:-1] if kind != "softmax") and forward["softmax"] == 0  # it is in sdpa
    assert forward["matrix products"] > forward["GELU"] and alone["matrix products"] > alone["attention"] > 0
