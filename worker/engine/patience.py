"""How long one attempt puts up with a database that wants it to run again."""

import asyncio
import random
import time

from db.transient import Transient

_CONFLICT_RERUNS = 5
_LONGEST_PAUSE = 2.0  # seconds between two looks at a database that is away
_READ_ONLY_PATIENCE = 60.0  # seconds that a failover may take; after that, writing to a replica was the task's mistake


class Patience:
    """Counts the reruns of one attempt.

    A job that waits for its database keeps its slot, so a worker whose database is away claims nothing more.
    """

    def __init__(self) -> None:
        self._conflicts = 0
        self._pauses = 0
        self._read_only_until: float | None = None

    def allows(self, why: Transient) -> bool:
        """Whether the attempt may run once more, at no cost."""
        match why:
            case Transient.CONFLICT | Transient.STALE_PLAN:
                self._conflicts += 1
                return self._conflicts <= _CONFLICT_RERUNS
            case Transient.READ_ONLY:
                if self._read_only_until is None:
                    self._read_only_until = time.monotonic() + _READ_ONLY_PATIENCE
                return time.monotonic() < self._read_only_until
            case Transient.LOST:
                return True

    async def pause(self, why: Transient) -> None:
        """Wait before the next rerun, longer each time, with jitter."""
        if why in (Transient.CONFLICT, Transient.STALE_PLAN):
            longest = 0.01 * 2**self._conflicts
        else:
            longest = min(0.05 * 2**self._pauses, _LONGEST_PAUSE)
            self._pauses += 1
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
