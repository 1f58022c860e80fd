"""``Clock``: the time of a test's queues. It is the machine's clock, moved forward by `Jobs.advance`."""

from datetime import datetime, timedelta

from worker.broker.records import now_ms, to_ms
from worker.context import from_milliseconds


class Clock:
    """The machine's clock, which a test may have frozen, and the time that the test has let pass besides."""

    def __init__(self) -> None:
        self._ahead = 0

    @property
    def now(self) -> int:
        """Milliseconds since the epoch."""
        return now_ms() + self._ahead

    @property
    def moment(self) -> datetime:
        """The time as a datetime, in UTC."""
        return from_milliseconds(self.now)

    def move_to(self, moment: datetime) -> None:
        """Go on to a time. A time in the past changes nothing."""
        self._ahead = max(self._ahead, to_ms(moment) - now_ms())

    def after(self, time: timedelta) -> datetime:
        """The moment after some time."""
        return self.moment + time
