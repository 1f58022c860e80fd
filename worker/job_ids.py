"""The ids of jobs that have no id of their own: UUIDs of version 7, as 32 hex digits.

1. An id begins with the time at which it was made. So new rows go to the end of the ledger's indexes. A random id would
   go to a random page: on a table of 10 million rows each job would read one and write two whole pages.
2. An id is greater than each earlier id of this process, also within a millisecond, and also if the clock is set back.
3. 73 bits are random in the first id of a millisecond, and 32 in the next ones. So ids of different processes differ.
   An id is no secret: a reader of one can guess others.

The layout is that of RFC 9562, section 5.7, with a counter (section 6.2, method 1): 48 bits of milliseconds, the
version, 12 bits of the counter, the variant, 30 bits of the counter, 32 random bits.
"""

import os
import secrets
import time
from threading import Lock

_LOW = 30  # bits of the counter after the variant
_LOW_MASK = (1 << _LOW) - 1
_VARIANT = 0b10 << _LOW
_SEED = 41  # bits of a counter's random start; it has one bit more, which the ids of one moment cannot fill
_TAIL = 8  # hex digits


class _Clock:
    """The moment and the counter of the latest id."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._moment = 0
        self._counter = 0

    def take(self, count: int) -> tuple[int, int]:
        """The moment for `count` ids, in milliseconds since the epoch, and the first of their counters."""
        moment = time.time_ns() // 1_000_000
        with self._lock:
            if moment > self._moment:
                self._moment, self._counter = moment, secrets.randbits(_SEED)
            first = self._counter + 1
            if (first & _LOW_MASK) + count > _LOW_MASK:
                first = ((first >> _LOW) + 1) << _LOW  # so that the ids of one call have the same first 16 digits
            self._counter = first + count - 1
            return self._moment, first


_clock = _Clock()


def _forget() -> None:
    global _clock  # noqa: PLW0603 - a child must not share its parent's counter, nor a lock that a thread held
    _clock = _Clock()


os.register_at_fork(after_in_child=_forget)


def new_job_ids(count: int) -> list[str]:
    """`count` new ids, in ascending order. Each is greater than all that this process has made before."""
    moment, first = _clock.take(count)
    tails = secrets.token_hex(_TAIL // 2 * count)  # in one call, as each call is a system call
    head, low = f"{moment:012x}7{first >> _LOW:03x}", _VARIANT | first & _LOW_MASK
    return [f"{head}{low + n:08x}{tails[n * _TAIL : (n + 1) * _TAIL]}" for n in range(count)]


def new_job_id() -> str:
    """A new id, greater than all that this process has made before."""
    return new_job_ids(1)[0]
