"""``FailureGroups``: failed jobs, counted by task and kind of error.

Groups are counted in the background, the latest failures first. Then only what is new is read. A page never waits for a
count.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from worker.aio.background import Background
from worker.ledger import State
from worker.ledger.error_kind import kind_of
from worker.ledger.search import MOST_COUNTED, Failure, JobSearch, Place

SPAN = 3_600_000
"""Milliseconds of one bar of a group's sparkline."""
SPANS = 24
"""Bars of a sparkline."""

OTHER_ERRORS = "other errors"
"""The kind of errors past the most groups that are counted. It cannot be selected."""

_CHUNK = 1_000  # rows that are read and counted at once, in about 10 ms
_PATIENCE = 0.1  # seconds that a page waits for a count
_FRESH = 2.0  # seconds for which groups are not read again
_CHECK = 10.0  # seconds between two counts of all failed rows
_RESCAN = 15.0  # seconds between two whole counts because rows have disappeared
_WHOLE = 120.0  # seconds after which everything is counted again in any case
_OVERLAP = 10_000  # milliseconds: rows that were written so long ago may have been committed since
_MOST_GROUPS = 2_000


@dataclass(slots=True)
class FailureGroup:
    """Failed jobs of one task with one kind of error."""

    task: str
    kind: str
    """The error with # for each number."""
    jobs: int = 0
    newest: int = 0
    """Milliseconds since the epoch."""
    oldest: int = 0
    example: str = ""
    """The latest error, in full."""
    job_id: str = ""
    """The latest job."""
    enqueued_at: int = 0
    queues: Counter[str] = field(default_factory=Counter)
    by_span: Counter[int] = field(default_factory=Counter)
    """Jobs by `finished_at // SPAN`."""

    def bars(self, now: int) -> list[int]:
        """Jobs in each of the last `SPANS` spans, the oldest first."""
        last = now // SPAN
        return [self.by_span[span] for span in range(last - SPANS + 1, last + 1)]


class FailureOverview(NamedTuple):
    """All groups, as they were counted last."""

    groups: list[FailureGroup]
    """The ones with the latest failure first."""
    jobs: int
    """The jobs in all groups."""
    is_complete: bool
    """False while the first count goes on, or there are more than `MOST_COUNTED` failed jobs."""
    is_counting: bool
    as_of: int
    """Milliseconds since the epoch."""


class CountedFailures:
    """One count of failures by group."""

    def __init__(self) -> None:
        self.groups: dict[tuple[str, str], FailureGroup] = {}
        self.jobs = 0
        self.newest = 0
        self.recent: set[tuple[str, int]] = set()
        """The jobs of the last `_OVERLAP`."""
        self.is_complete = False
        self.as_of = _now()

    def add(self, failures: Sequence[Failure]) -> None:
        """Count some failures."""
        for failure in failures:
            error = failure.error or ""
            key = (failure.task, kind_of(error))
            group = self.groups.get(key)
            if group is None:
                if len(self.groups) >= _MOST_GROUPS:
                    key = (failure.task, OTHER_ERRORS)
                group = self.groups.setdefault(key, FailureGroup(*key, oldest=failure.finished_at))
            group.jobs += 1
            group.queues[failure.queue] += 1
            group.by_span[failure.finished_at // SPAN] += 1
            group.oldest = min(group.oldest, failure.finished_at)
            if failure.finished_at >= group.newest:
                group.newest = failure.finished_at
                group.example, group.job_id, group.enqueued_at = error, failure.id, failure.enqueued_at
        self.jobs += len(failures)
        self.newest = max([self.newest, *(failure.finished_at for failure in failures)])
        self.recent |= {(each.id, each.enqueued_at) for each in failures if each.finished_at >= self.newest - _OVERLAP}


class FailureGroups:
    """The groups of one ledger.

    Args:
        search: finds its rows. None: there is no ledger, and so there are no groups.
        background: where the counts run.
    """

    def __init__(self, search: JobSearch | None, background: Background) -> None:
        self._search = search
        self._background = background
        self._counted = CountedFailures()
        self._last_read = self._last_check = self._last_scan = -_WHOLE
        self._reading: asyncio.Task[None] | None = None

    async def overview(self) -> FailureOverview:
        """The groups as far as they are counted. Starts a new count if the last one is old."""
        is_old = time.monotonic() - self._last_read > _FRESH
        if self._search is not None and is_old and (self._reading is None or self._reading.done()):
            self._reading = self._background.start(self._read(self._search))
        if self._reading is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._reading), _PATIENCE)
        counted = self._counted
        groups = sorted(counted.groups.values(), key=lambda group: -group.newest)
        is_counting = self._reading is not None and not self._reading.done()
        return FailureOverview(groups, counted.jobs, counted.is_complete, is_counting, counted.as_of)

    def group(self, task: str, kind: str) -> FailureGroup | None:
        """A group, as it was counted last."""
        return self._counted.groups.get((task, kind))

    def forget(self) -> None:
        """Count everything again for the next page, as an action has changed it."""
        self._last_read = self._last_scan = -_WHOLE

    def count(self, task: str | None, kind: str | None, queue: str | None) -> tuple[int, bool]:
        """How many jobs such a selection has, by the last count, and whether there may be more."""
        groups = [
            group
            for group in self._counted.groups.values()
            if task in (None, group.task) and kind in (None, group.kind)
        ]
        number = sum(group.jobs if queue is None else group.queues[queue] for group in groups)
        return number, not self._counted.is_complete

    async def _read(self, search: JobSearch) -> None:
        now = time.monotonic()
        is_old = now - self._last_scan > _WHOLE
        if not is_old and now - self._last_check > _CHECK:
            self._last_check = now
            number = await search.count(State.FAILED)
            is_old = min(number, MOST_COUNTED) < self._counted.jobs and now - self._last_scan > _RESCAN
        if is_old or not await self._read_new(search):
            await self._read_all(search)
        self._last_read = time.monotonic()

    async def _read_new(self, search: JobSearch) -> bool:
        """Add the failures since the last count. False if there are too many."""
        failures = await search.failures(None, self._counted.newest - _OVERLAP, _CHUNK)
        if len(failures) == _CHUNK:
            return False
        self._counted.as_of = _now()
        self._counted.add([each for each in failures if (each.id, each.enqueued_at) not in self._counted.recent])
        return True

    async def _read_all(self, search: JobSearch) -> None:
        counted = CountedFailures()
        if not self._counted.is_complete:
            self._counted = counted  # the first count is shown while it goes on
        place: Place | None = None
        while counted.jobs < MOST_COUNTED:
            began = time.monotonic()
            failures = await search.failures(place, None, _CHUNK)
            counted.add(failures)
            if len(failures) < _CHUNK:
                counted.is_complete = True
                break
            place = failures[-1].place
            await asyncio.sleep(time.monotonic() - began)  # half of the time is for pages
        counted.as_of = _now()
        self._counted = counted
        self._last_scan = self._last_check = time.monotonic()


def _now() -> int:
    return time.time_ns() // 1_000_000
