"""What it all ran on. No names of hosts or people."""

import os
import platform
from collections.abc import Mapping

import psutil

from bench.servers import Servers

_GIBIBYTE = 1024**3


def facts(servers: Servers) -> Mapping[str, str]:
    """Facts about the machine and its servers, by what they are about."""
    stores = [servers.redis.title, servers.postgres.title]
    other = servers.functional_redis
    if other is not None and other is not servers.redis:
        stores.insert(1, f"{other.title} (for who needs functions)")
    return {
        "Cores": str(_cores()),
        "Memory": f"{psutil.virtual_memory().total / _GIBIBYTE:.0f} GiB",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "System": f"{platform.system()} {platform.machine()}",
        "Servers": ", ".join(stores) + "; on this machine, reached by TCP; nothing waits for the disk",
    }


class Steal:
    """How much of the cores' time the host has given to others, since this was made: what tells a loud machine."""

    def __init__(self) -> None:
        self._before = psutil.cpu_times()._asdict()

    def share(self) -> float | None:
        """Of all time; None where the system does not count it."""
        return stolen(self._before, psutil.cpu_times()._asdict())


class Disturbances:
    """What the host has spoiled in a whole run."""

    def __init__(self) -> None:
        self._steal = Steal()
        self._measured = self._repeated = 0
        self._worst = 0.0

    def note(self, tries: int, share: float) -> None:
        """A measurement took so many tries, and the host `share` of the time of the one that counts."""
        self._measured += 1
        self._repeated += tries > 1
        self._worst = max(self._worst, share)

    def fact(self) -> Mapping[str, str]:
        """Nothing where the system does not count it."""
        share = self._steal.share()
        if share is None:
            return {}
        return {
            "Taken by the host meanwhile": f"{share:.1%} of the cores' time, {self._worst:.0%} at most in what counts; "
            f"{self._repeated} of {self._measured} measurements were made again for that"
        }


def stolen(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """The stolen part of the time between two of `psutil.cpu_times`; None where the system does not count it."""
    if "steal" not in before:
        return None
    passed = {name: after[name] - before[name] for name in before}
    # What guests have had is in the user's time, too.
    everything = sum(seconds for name, seconds in passed.items() if not name.startswith("guest"))
    return passed["steal"] / everything if everything > 0 else 0.0


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
