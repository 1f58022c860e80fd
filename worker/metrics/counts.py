"""A row of counts: how many jobs of a task ended with each outcome, and how long they waited and ran.

A row is a list of numbers, the lanes. Rows are added lane by lane, in `Meter` and in ``scripts/measure.lua``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import Struct

OUTCOMES = (
    "completed",
    "duplicate",
    "retried",
    "failed",
    "aborted",
    "expired",
    "interrupted",
    "postponed",
    "abandoned",
)
"""The outcomes of attempts, in the order of their lanes: see the glossary."""
FINAL_OUTCOMES = ("completed", "duplicate", "failed", "aborted", "expired")
"""The outcomes that end a job."""
BOUNDS = tuple(digit * int(10**zeros) for zeros in range(7) for digit in (1, 2, 5))
"""The upper bounds of a histogram's buckets, in milliseconds: 1, 2, 5, ... 5,000,000. One more bucket has no bound."""

_BUCKETS = len(BOUNDS) + 1
BUSY = len(OUTCOMES)
"""The lane of the time that jobs have run: in a row of Redis in seconds."""
WAITED = BUSY + 1
"""The first lane of the histogram of waiting times."""
RAN = WAITED + _BUCKETS
"""The first lane of the histogram of running times."""
LANES = RAN + _BUCKETS

_WIDTHS = {LANES * width: Struct(f"<{LANES}{code}") for width, code in ((1, "B"), (2, "H"), (4, "I"))}
_MOST = 2**32 - 1


def encode(row: Sequence[int]) -> bytes:
    """Encode a row for Redis, in as few bytes as its largest number needs."""
    largest = max(row)
    width = 1 if largest < 2**8 else 2 if largest < 2**16 else 4
    return _WIDTHS[LANES * width].pack(*(row if largest <= _MOST else (min(count, _MOST) for count in row)))


def decode(raw: bytes) -> tuple[int, ...] | None:
    """Decode a row. None for a row of another version."""
    struct = _WIDTHS.get(len(raw))
    return None if struct is None else struct.unpack(raw)


def add(rows: Iterable[Sequence[int]]) -> list[int]:
    """Add rows, lane by lane."""
    return [sum(lane) for lane in zip([0] * LANES, *rows, strict=True)]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many durations were in each bucket of `BOUNDS`."""

    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.counts)

    def quantile(self, part: float) -> float | None:
        """The duration in seconds that this part of all durations does not exceed, estimated. None if there are none.

        The estimate is between the bounds of the duration's bucket, which are at most a factor of 2.5 apart.
        """
        rank = part * self.total
        if not rank:
            return None
        seen = 0
        for bound, count, before in zip((*BOUNDS, BOUNDS[-1]), self.counts, (0, *BOUNDS), strict=True):
            if count and seen + count >= rank:
                return (before + (bound - before) * (rank - seen) / count) / 1000
            seen += count
        return BOUNDS[-1] / 1000

    @property
    def p50(self) -> float | None:
        return self.quantile(0.5)

    @property
    def p95(self) -> float | None:
        return self.quantile(0.95)


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened in some time."""

    row: tuple[int, ...]

    @classmethod
    def of(cls, *rows: Sequence[int]) -> "Counts":
        """The sum of rows."""
        return cls(tuple(rows[0]) if len(rows) == 1 else tuple(add(rows)))

    @property
    def outcomes(self) -> dict[str, int]:
        """The number of attempts that ended with each outcome, without those that never happened."""
        return {outcome: count for outcome, count in zip(OUTCOMES, self.row, strict=False) if count}

    @property
    def finished(self) -> int:
        """The number of jobs that are over."""
        return sum(self.of_outcome(outcome) for outcome in FINAL_OUTCOMES)

    @property
    def completed(self) -> int:
        """The number of jobs that did what they were to do. A duplicate's work was done by an earlier attempt."""
        return self.of_outcome("completed") + self.of_outcome("duplicate")

    @property
    def failed(self) -> int:
        """The number of jobs that failed for good, or expired."""
        return self.of_outcome("failed") + self.of_outcome("expired")

    @property
    def retried(self) -> int:
        return self.of_outcome("retried")

    def of_outcome(self, outcome: str) -> int:
        """The number of attempts that ended with this outcome."""
        return self.row[OUTCOMES.index(outcome)]

    @property
    def busy(self) -> int:
        """Seconds that jobs have run, those of all slots together."""
        return self.row[BUSY]

    @property
    def waited(self) -> Histogram:
        """How late attempts have started."""
        return Histogram(self.row[WAITED:RAN])

    @property
    def ran(self) -> Histogram:
        """How long attempts have run."""
        return Histogram(self.row[RAN:])


NOTHING = Counts((0,) * LANES)
