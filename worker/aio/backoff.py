"""``Backoff``: how long to wait before the next try, longer each time."""

import random

_MOST_DOUBLINGS = 64  # an outage may last for thousands of tries, and a float does not double for ever


class Backoff:
    """Pauses that double, from `first` up to `longest` seconds.

    Args:
        jitter: each pause is multiplied by a random number between these two. It keeps those who failed together from
            coming back together.
    """

    def __init__(self, first: float, longest: float, *, jitter: tuple[float, float] = (1.0, 1.0)) -> None:
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self._pauses = 0

    def next(self) -> float:
        """Seconds to wait now; the next pause is longer."""
        pause = self.after(self._pauses)
        self._pauses += 1
        return pause

    def after(self, pauses: int) -> float:
        """Seconds to wait where that many pauses were made before, for those who count them elsewhere."""
        pause = min(self._first * 2.0 ** min(pauses, _MOST_DOUBLINGS), self._longest)
        return pause * random.uniform(*self._jitter)  # noqa: S311 - not a secret

    def reset(self) -> None:
        """Begin with `first` again."""
        self._pauses = 0
