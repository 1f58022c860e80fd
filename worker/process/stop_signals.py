"""SIGINT and SIGTERM: what asks a worker to stop, until an event loop of its own hears them."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_code_after(stopped_by: signal.Signals | None, *, until_empty: bool) -> int:
    """0: who stops when told to has done what it should; but not who was to empty the queues: 128 and the number."""
    return 128 + stopped_by if until_empty and stopped_by is not None else 0


def leave_on_signal(*, until_empty: bool) -> None:
    """From now on they end the process, without a traceback; its ``with`` blocks are left."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(exit_code_after(signal.Signals(number), until_empty=until_empty))

    for number in STOP_SIGNALS:
        signal.signal(number, leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def held_back() -> Iterator[None]:
    """For a process that is started within the block, they wait until it calls `leave_on_signal`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
