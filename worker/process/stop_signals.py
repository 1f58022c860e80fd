"""SIGINT and SIGTERM: what asks a process to stop, from its first moment on.

1. `leave_on_signal`: while the process starts, a signal ends it.
2. `hear`: once there is an event loop, a signal is told to whoever drains the worker.
3. Nothing is claimed before the worker works, so until then the process ends within seconds, whatever keeps it.
4. A forked child is no worker: it has the default handlers.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import NoReturn

from worker.errors import Stopped

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_LEAVING = 5.0  # seconds that a process gets to leave its start in order


def exit_code_after(stopped_by: signal.Signals | None, *, until_empty: bool) -> int:
    """0: who stops when told to has done what it should; but not who was to empty the queues: 128 and the number."""
    return 128 + stopped_by if until_empty and stopped_by is not None else 0


def leave_on_signal(*, until_empty: bool) -> None:
    """From now on they end the process, without a traceback; its ``with`` blocks are left."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        code = exit_code_after(signal.Signals(number), until_empty=until_empty)
        leave_soon(code)
        raise Stopped(code)

    _reset_in_children()
    for number in STOP_SIGNALS:
        signal.signal(number, leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def hear(on_signal: Callable[[signal.Signals], None]) -> None:
    """From now on they call `on_signal`, between two steps of whatever the main thread does: see `signal.signal`.

    Not by the event loop alone. A loop that is blocked calls nobody, and uvloop's hears nothing while it is not driven.
    """

    def heard(number: int, _frame: FrameType | None) -> None:
        on_signal(signal.Signals(number))

    _reset_in_children()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, _wake_up)  # in place of arq's
        signal.signal(number, heard)


def leave_soon(code: int) -> None:
    """End the process in a few seconds, if it has not ended by then: an import or a hook may block it for long."""

    def leave() -> None:
        time.sleep(_LEAVING)
        sys.stderr.flush()
        os._exit(code)

    threading.Thread(target=leave, name="leave", daemon=True).start()


@contextmanager
def held_back() -> Iterator[None]:
    """For a process that is started within the block, they wait until it calls `leave_on_signal`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@cache
def _reset_in_children() -> None:
    """Let a forked child die of a signal: the handlers, and the descriptor that wakes the loop, are its parent's.

    Signals wait until that is done: in the child, the parent's handler would lose one that came before.
    """
    before = threading.local()

    def hold_back() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def let_go() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def reset() -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        let_go()

    os.register_at_fork(before=hold_back, after_in_parent=let_go, after_in_child=reset)


def _wake_up() -> None:
    """Let the loop look at what the handler has left there."""
