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


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
