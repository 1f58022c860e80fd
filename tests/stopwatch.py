"""How long something took, on a machine that may stand still for seconds."""

import threading
from time import monotonic, sleep

_BEAT = 0.05  # seconds


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = monotonic()
        self._stood_still = _PULSE.stood_still

    @property
    def seconds(self) -> float:
        """All of them: no timer can have waited longer."""
        return monotonic() - self._began

    @property
    def seconds_running(self) -> float:
        """Without those in which this process could not run: what a promptness is measured by."""
        return self.seconds - (_PULSE.stood_still - self._stood_still)


class _Pulse(threading.Thread):
    """Beats while the process runs. A blocked event loop does not stop it: a thread of its own."""

    def __init__(self) -> None:
        super().__init__(name="pulse", daemon=True)
        self.stood_still = 0.0

    def run(self) -> None:
        while True:
            before = monotonic()
            sleep(_BEAT)
            late = monotonic() - before - _BEAT
            if late > _BEAT:
                self.stood_still += late


_PULSE = _Pulse()
_PULSE.start()
