"""``Slots``: how many more jobs this worker may run."""

from collections.abc import Callable, Sequence

from worker.broker.records import Claim


class Slots:
    """Free slots. Of jobs whose workers have died again and again, one may run at a time.

    Args:
        total: how many jobs may run at once.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self.free_suspects = 1
        """The number of such jobs that may still start."""
        self.on_free: Callable[[], None] = lambda: None
        """Called whenever a slot becomes free."""

    def take(self, claims: Sequence[Claim]) -> None:
        """Give each of these jobs a slot."""
        self.free -= len(claims)
        self.free_suspects -= sum(claim.is_suspect for claim in claims)

    def give_back(self, claim: Claim) -> None:
        """Free the slot of a job that is over."""
        self.free += 1
        self.free_suspects += claim.is_suspect
        self.on_free()
