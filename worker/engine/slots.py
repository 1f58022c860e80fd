"""``Slots``: the free places for jobs in this worker."""

from collections.abc import Callable, Sequence

from worker.broker.records import Claim


class Slots:
    """Counts free slots. Only one suspect runs at a time: a job whose workers have died repeatedly.

    Args:
        total: the number of jobs that may run at once.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self.free_suspects = 1
        """The number of suspects that may still start."""
        self.on_free: Callable[[], None] = lambda: None
        """Called whenever a slot becomes free."""

    @property
    def are_used_up(self) -> bool:
        """Whether no slot will ever be free again: see `BurstSlots`."""
        return False

    def take(self, claims: Sequence[Claim]) -> None:
        """Take a slot for each of these jobs."""
        self.free -= len(claims)
        self.free_suspects -= sum(claim.is_suspect for claim in claims)

    def give_back(self, claim: Claim) -> None:
        """Free the slot of a job that is over."""
        self.free += 1
        if claim.crashes:
            self.free_suspects += claim.is_suspect
        self.on_free()
