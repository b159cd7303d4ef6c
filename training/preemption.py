"""Told to leave: a signal is noted, the run saves after a step that all ranks agree on, and ends with a code of its own."""

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children, resource_tracker
from multiprocessing.process import BaseProcess
from types import FrameType

import torch
from accelerate import Accelerator

# A scheduler sends the first when it takes the machine away, the second, if asked to, some time before that.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# EX_TEMPFAIL of sysexits.h: start the same command again. Neither an error (1, 2) nor what a signal leaves (128 + its number).
EXIT_CODE = os.EX_TEMPFAIL
# Ranks ask each other only every few steps.
AGREEMENT_STEPS = 5


class StopSignals:
    """While it is entered, SIGTERM and SIGUSR1 are noted instead of killing the process."""

    def __init__(self) -> None:
        self.noted: str | None = None
        self._previous: dict = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in no other
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = signal.Signals(number).name

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any rank has noted a signal. All ranks must ask after the same step."""
        if accelerator.num_processes == 1:
            return self.noted is not None
        noted = torch.tensor(float(self.noted is not None), device=accelerator.device)
        return accelerator.reduce(noted, "sum").item() > 0


@contextmanager
def shielded() -> Iterator[None]:
    """Processes started inside never get the signals, which schedulers send to all processes of a job: loader workers must
    outlive them until the run has saved. One that comes meanwhile reaches this process at the end.

    Workers that are still there when Python exits, as after an error, are killed: multiprocessing would ask them to leave by
    SIGTERM, and wait for ever.
    """
    resource_tracker.ensure_running()  # would start with the first process, and unblocks SIGTERM in passing
    started_before = active_children()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # What is registered later runs earlier: before multiprocessing waits for them.
        atexit.register(_kill, [child for child in active_children() if child not in started_before])


def _kill(workers: list[BaseProcess]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would tell of each as of an error
    for worker in workers:
        worker.kill()
