"""A signal is noted and nothing else; how a run then ends is in test_pretrain.py."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from accelerate import Accelerator

from training.preemption import EXIT_CODE, SIGNALS, StopSignals, shielded

README = Path(__file__).resolve().parents[2] / "training" / "README.md"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_until_the_handlers_before_are_back(number):
    before = [signal.getsignal(other) for other in SIGNALS]
    with pytest.raises(KeyError), StopSignals() as stop_signals:
        assert not stop_signals.agreed(Accelerator(cpu=True))
        signal.raise_signal(number)
        assert stop_signals.agreed(Accelerator(cpu=True)) and stop_signals.noted == signal.Signals(number).name
        raise KeyError
    assert [signal.getsignal(other) for other in SIGNALS] == before


def test_it_does_nothing_outside_the_main_thread():
    failures = []

    def enter():
        try:
            with StopSignals():
                pass
        except ValueError as error:
            failures.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not failures


@pytest.mark.parametrize("number", SIGNALS)
def test_processes_started_in_the_shield_do_not_get_the_signal_and_this_one_gets_it_later(number):
    with StopSignals() as stop_signals:
        with shielded():
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
            signal.raise_signal(number)
            assert stop_signals.noted is None
        assert stop_signals.noted == signal.Signals(number).name
    child.send_signal(number)
    child.communicate("\n")
    assert child.returncode == 0


def test_the_shield_holds_for_the_first_process_that_multiprocessing_spawns():
    """It starts its resource tracker then, which unblocks SIGTERM."""
    code = (
        "import signal; from multiprocessing import resource_tracker; from training.preemption import SIGNALS, shielded\n"
        "with shielded():\n    resource_tracker.ensure_running()\n"
        "    assert set(SIGNALS) <= signal.pthread_sigmask(signal.SIG_BLOCK, [])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=README.parents[1], env=os.environ | {"OMP_NUM_THREADS": "1"})


FAILING_RUN = """
import sys
from torch.utils.data import DataLoader
from training.preemption import shielded

class Data(list):
    def __getitem__(self, index):
        if index == 3:
            raise ValueError("row 3 is wrong")
        return index

with shielded():
    batches = iter(DataLoader(Data(range(8)), num_workers=2))
try:
    list(batches)
except ValueError as error:
    {ending}
"""


@pytest.mark.parametrize("ending, told", [("raise SystemExit('stopped') from error", "stopped"), ("raise", "row 3 is wrong")])
def test_after_an_error_a_run_ends_and_so_do_its_workers(ending, told):
    """They do not get SIGTERM, by which multiprocessing would ask them to leave before it waits for them."""
    code = FAILING_RUN.replace("{ending}", ending)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=README.parents[1], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 1 and told in ran.stderr and "killed by signal" not in ran.stderr


def test_the_exit_code_is_that_of_the_documented_job():
    assert f"[ $code -eq {EXIT_CODE} ]" in README.read_text()
