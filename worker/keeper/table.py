"""``LeaseTable``: the memory that a worker shares with its keeper.

1. The worker adds each batch of claimed jobs before it starts them, with one write to memory.
2. A job's place holds the time until which its lease is kept. A batch's page is reused once all its jobs are over.
3. The worker writes when it was last alive, and when it last renewed all leases. While these times are recent, the
   keeper reads nothing else.

The keeper copies a whole page, which may change meanwhile. The worst result is the id of one batch with the token of
another, and Redis answers that no worker holds such a pair.

All times are seconds of the monotonic clock, which all processes of a machine share.
"""

import os
import struct
import sys
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from mmap import mmap
from typing import NamedTuple

_PAGE = 4096  # bytes
_WORDS = _PAGE // 8

# The first page: single words, each written by one thread.
_THREAD_ALIVE, _LOOP_ALIVE, _LEASES_KEPT, _KEEPER, NOWHERE = range(5)
# Every other page: the number of jobs, the number of the queue, a word for each job; then bytes: token, lengths, ids.
_JOBS, _QUEUE, _FIRST = range(3)

_LENGTH = struct.calcsize("<H")
_TOKEN = 28  # bytes


class KeptJob(NamedTuple):
    """One job of the table."""

    queue: int
    """The number of its queue, among the worker's queues."""
    token: bytes
    job_id: bytes
    until: float
    """The time after which its lease is not kept any more."""
    has_begun: bool
    """Whether its payload was read. Before that, the time limit of the job is not known."""


class Batch:
    """The page of one batch, until all its jobs are over."""

    __slots__ = ("_left", "_page", "_table")

    def __init__(self, table: "LeaseTable", page: int, jobs: int) -> None:
        self._table = table
        self._page = page
        self._left = jobs

    def begin(self, place: int, until: float) -> None:
        """Record that an attempt of the job at this place begins, and that its lease is kept until `until`."""
        self._table.words[place] = until

    def end(self, place: int) -> None:
        """Record that the job at this place is over."""
        self._table.words[place] = 0.0
        self._left -= 1
        if not self._left:
            self._table.free(self._page)


Place = tuple[Batch, int]
"""The place of a job: its batch, and the index of its word."""


class LeaseTable:
    """The worker's side of the table. Only the event loop's thread may call `add`, `begin` and `end`.

    Args:
        batches: the number of batches that fit. Jobs of further batches are left out; only the heartbeat renews them.
    """

    def __init__(self, batches: int) -> None:
        self.size = _PAGE * (1 + batches)
        self.descriptor = _anonymous_file(self.size)
        """The descriptor of the memory, which the keeper inherits; -1 if this system cannot share memory so."""
        if self.descriptor >= 0:
            weakref.finalize(self, os.close, self.descriptor)
        self._memory = mmap(self.descriptor, self.size)
        self.words = memoryview(self._memory).cast("d")
        self._free = list(range(batches, 0, -1))  # the last freed page is taken first, so that few pages are touched
        self._outside = (Batch(self, 0, -1), NOWHERE)  # its count never reaches zero

    def add(self, queue: int, token: str, ids: Sequence[bytes], until: float) -> list[Place]:
        """Add a batch and return the place of each job.

        Args:
            until: the time until which a lease is kept if its job has not begun.
        """
        places: list[Place] = []
        while len(places) < len(ids):
            left = ids[len(places) :] if places else ids
            places += self._add_page(queue, token, left, until)
        return places

    def free(self, page: int) -> None:
        """Free a page whose jobs are all over."""
        self.words[page * _WORDS + _JOBS] = 0.0
        self._free.append(page)

    def thread_is_alive(self, now: float) -> None:
        """Record that the heartbeat's thread runs."""
        self.words[_THREAD_ALIVE] = now

    def loop_is_alive(self, now: float) -> None:
        """Record that the event loop runs."""
        self.words[_LOOP_ALIVE] = now

    def leases_are_kept(self, since: float) -> None:
        """Record that all jobs in the table at `since` have been renewed after it."""
        self.words[_LEASES_KEPT] = since

    def attach(self, content: bytes) -> None:
        """Write bytes for the keeper to read. Unlike in a pipe, all of them are there before the keeper starts.

        Raises:
            OSError: no memory is left.
        """
        os.ftruncate(self.descriptor, self.size)
        os.pwrite(self.descriptor, content, self.size)

    @property
    def keeper(self) -> int:
        """The process id of the last keeper that has started on this table; 0 if none has."""
        return int(self.words[_KEEPER])

    def _add_page(self, queue: int, token: str, ids: Sequence[bytes], until: float) -> list[Place]:
        """Add as many jobs as fit into one page."""
        sizes = [len(job_id) for job_id in ids]
        fitting = _fitting(sizes)
        if not fitting or not self._free:
            return [self._outside] * (fitting or 1)
        if fitting < len(ids):
            ids, sizes = ids[:fitting], sizes[:fitting]
        page = self._free.pop()
        start = page * _WORDS
        first = start + _FIRST
        self.words[first : first + fitting] = memoryview(array("d", (-until,)) * fitting)
        text = b"".join((token.encode(), struct.pack(f"<{fitting}H", *sizes), *ids))
        at = (first + fitting) * 8
        self._memory[at : at + len(text)] = text
        self.words[start + _QUEUE] = float(queue)
        self.words[start + _JOBS] = float(fitting)  # written last: from here on, the page is valid
        batch = Batch(self, page, fitting)
        return [(batch, first + number) for number in range(fitting)]


class TableReader:
    """The keeper's side of the table."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._memory = mmap(descriptor, size)
        self._words = memoryview(self._memory).cast("d")
        self._pages = size // _PAGE
        self._descriptor = descriptor

    def attached(self) -> bytes:
        """The bytes that the worker has attached."""
        size = len(self._memory)
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size - size, size)

    @property
    def alive_at(self) -> float:
        """The last time at which the worker was alive."""
        return max(self._words[_THREAD_ALIVE], self._words[_LOOP_ALIVE])

    @property
    def kept_since(self) -> float:
        """All jobs that were in the table by this time have been renewed after it."""
        return self._words[_LEASES_KEPT]

    def set_keeper(self, keeper: int) -> None:
        """Record the process id of the keeper that reads this table."""
        self._words[_KEEPER] = float(keeper)

    def jobs(self) -> list[KeptJob]:
        """All jobs that are not over."""
        return [job for page in range(1, self._pages) for job in self._page(page)]

    def _page(self, number: int) -> Iterator[KeptJob]:
        if not self._words[number * _WORDS + _JOBS]:
            return
        page = self._memory[number * _PAGE : (number + 1) * _PAGE]
        jobs, queue = map(int, struct.unpack_from("2d", page))
        token_at = (_FIRST + jobs) * 8
        at = token_at + _TOKEN + jobs * _LENGTH
        if not 0 < jobs < at <= _PAGE:
            return
        limits = struct.unpack_from(f"{jobs}d", page, _FIRST * 8)
        token = page[token_at : token_at + _TOKEN]
        lengths = struct.unpack_from(f"<{jobs}H", page, token_at + _TOKEN)
        for limit, length in zip(limits, lengths, strict=True):
            if limit:
                yield KeptJob(queue, token, page[at : at + length], abs(limit), has_begun=limit > 0)
            at += length


def _fitting(sizes: Sequence[int]) -> int:
    """The number of ids of these sizes that fit into one page."""
    left = _PAGE - _FIRST * 8 - _TOKEN
    each = 8 + _LENGTH
    if len(sizes) * each + sum(sizes) <= left:
        return len(sizes)
    for number, size in enumerate(sizes):
        left -= each + size
        if left < 0:
            return number
    return len(sizes)


def _anonymous_file(size: int) -> int:
    """Open a file without a name and return its descriptor; -1 if the system has none."""
    if os.name != "posix":
        return -1
    try:
        if sys.platform == "linux":
            descriptor = os.memfd_create("tandem-leases")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
    except OSError:
        return -1
    os.ftruncate(descriptor, size)
    return descriptor
