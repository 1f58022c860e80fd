"""Handlers of the stop signals, SIGINT and SIGTERM.

1. `leave_on_signal`: while the process starts, a signal ends the process.
2. `call_on_stop_signal`: when an event loop runs, a signal calls a function that drains the worker.
3. Nothing is claimed before the engine has started. So a process that is still starting ends within seconds, even if an
   import or a hook blocks it.
4. A forked child is no worker, so it gets the default handlers.
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

_EXIT_DELAY = 5.0  # seconds that a starting process gets to end in order


def exit_code_after(stopped_by: signal.Signals | None, *, until_empty: bool) -> int:
    """The exit code after a stop signal: 0, or 128 plus the signal's number if the worker was to empty the queues."""
    return 128 + stopped_by if until_empty and stopped_by is not None else 0


def leave_on_signal(*, until_empty: bool) -> None:
    """Let a stop signal end the process without a traceback. Its ``with`` blocks are left."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        code = exit_code_after(signal.Signals(number), until_empty=until_empty)
        exit_after_delay(code)
        raise Stopped(code)

    _reset_in_children()
    for number in STOP_SIGNALS:
        signal.signal(number, leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def call_on_stop_signal(on_signal: Callable[[signal.Signals], None]) -> None:
    """Let a stop signal call `on_signal` between two steps of the main thread: see `signal.signal`.

    The event loop's own handlers would not do: a blocked loop calls none, and neither does uvloop's while it does not
    run.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        on_signal(signal.Signals(number))

    _reset_in_children()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, _wake_up)  # replaces arq's handler
        signal.signal(number, handle)


def exit_after_delay(code: int) -> None:
    """End the process in five seconds, if it still runs: an import or a hook may block it for longer."""

    def leave() -> None:
        time.sleep(_EXIT_DELAY)
        sys.stderr.flush()
        os._exit(code)

    threading.Thread(target=leave, name="leave", daemon=True).start()


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals in a process that is started in this block, until it calls `leave_on_signal`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@cache
def _reset_in_children() -> None:
    """Give a forked child the default handlers, as it inherits its parent's handlers and its loop's wake-up descriptor.

    Signals are blocked meanwhile, as the parent's handler would lose a signal that comes first in the child.
    """
    before = threading.local()

    def block() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def reset() -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        unblock()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)


def _wake_up() -> None:
    """Wake the loop, so that it runs the callback that the handler has added."""
