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


def test_the_exit_code_is_that_of_the_documented_job():
    assert f"[ $code -eq {EXIT_CODE} ]" in README.read_text()
