"""``Backoff``: growing pauses between tries."""

import random

_MOST_DOUBLINGS = 64  # 2.0 ** n overflows after thousands of tries, as in a long outage


class Backoff:
    """Pauses that double, from `first` up to `longest` seconds.

    Args:
        jitter: each pause is multiplied by a random number between these two, so that clients that failed together
            do not come back together.
    """

    def __init__(self, first: float, longest: float, *, jitter: tuple[float, float] = (1.0, 1.0)) -> None:
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self._pauses = 0

    def next(self) -> float:
        """The next pause in seconds. The pause after it is longer."""
        pause = self.after(self._pauses)
        self._pauses += 1
        return pause

    def after(self, pauses: int) -> float:
        """The pause in seconds after that many earlier pauses, for callers that count them themselves."""
        pause = min(self._first * 2.0 ** min(pauses, _MOST_DOUBLINGS), self._longest)
        return pause * random.uniform(*self._jitter)  # noqa: S311 - not a secret

    def reset(self) -> None:
        """Start again with `first`."""
        self._pauses = 0
