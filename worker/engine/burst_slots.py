"""``BurstSlots``: slots for a limited number of attempts (arq's ``max_burst_jobs``)."""

from collections.abc import Sequence

from worker.broker.records import Claim
from worker.engine.slots import Slots


class BurstSlots(Slots):
    """Slots that are not free again once `limit` attempts have started.

    Args:
        total: the number of jobs that may run at once.
        limit: the number of attempts that may start in all.
    """

    def __init__(self, total: int, limit: int) -> None:
        super().__init__(total)
        self._left = limit
        self.free = min(total, limit)

    @property
    def are_used_up(self) -> bool:
        return self._left <= 0

    def take(self, claims: Sequence[Claim]) -> None:
        self._left -= len(claims)
        super().take(claims)

    def give_back(self, claim: Claim) -> None:
        super().give_back(claim)
        self.free = min(self.free, self._left)


def slots_for(total: int, limit: int | None) -> Slots:
    """Make slots for `total` jobs at once, and `limit` attempts in all (None: any number)."""
    return Slots(total) if limit is None else BurstSlots(total, limit)
