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
        self._last_beat = 0.0, monotonic()

    @property
    def stood_still(self) -> float:
        """Seconds, with those that end right now, before the next beat."""
        return self._look()[0]

    def run(self) -> None:
        while True:
            sleep(_BEAT)
            self._last_beat = self._look()

    def _look(self) -> tuple[float, float]:
        """How long it has stood still by now, and when that is."""
        counted, then = self._last_beat
        now = monotonic()
        late = now - then - _BEAT
        return counted + (late if late > _BEAT else 0.0), now


_PULSE = _Pulse()
_PULSE.start()
