"""The Redis servers that the scripts must run on: the wheel's 6.2, and what else this machine has."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from worker.embedded import EmbeddedRedis
from worker.embedded import redis as embedded

PROGRAMS = ["wheel", *filter(shutil.which, ("redis-server", "valkey-server"))]
"""The wheel's, and those on the PATH: they are tested too where there are any."""


@contextmanager
def running(program: str) -> Iterator[EmbeddedRedis]:
    """A server of this program, for the length of a block."""
    with pytest.MonkeyPatch.context() as patched:
        found = shutil.which(program)
        if found is not None:
            patched.setattr(embedded, "server_program", lambda: Path(found))
        with EmbeddedRedis(tcp=True) as server:
            yield server
