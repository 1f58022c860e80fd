"""``Contender``: a library that takes part, and how to ask its store how far it is."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import environments
from bench.process import STALL_TIMEOUT, ContenderError, Process
from bench.servers import PostgresServer, RedisServer, Servers

_PROJECT = tomllib.loads((environments.PROJECT / "pyproject.toml").read_text())["project"]
_ASK_VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


@dataclass(frozen=True)
class Library:
    """What is known of a contender before anything runs."""

    key: str
    title: str
    distribution: str
    """Its name in the package index."""
    program: str
    """The module to run."""
    settings: str
    """How it is set up, for the results."""
    environment: environments.Environment | None = None
    """None: ours."""
    needs_functions: bool = False
    """Whether it needs Redis 7."""
    on_postgres: bool = False
    """Whether its jobs are in PostgreSQL."""
    unended: Callable[[Any, int], int] = lambda _client, _total: 0
    """How many of so many jobs have not ended, asked of Redis; cheap."""

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.environment is None else self.environment.python

    @property
    def version(self) -> str | None:
        """None: it is not installed."""
        if self.environment is None and self.distribution == _PROJECT["name"]:
            return str(_PROJECT["version"])
        ask = [str(self.python), "-c", _ASK_VERSION, self.distribution]
        try:
            asked = subprocess.run(ask, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
        except OSError:
            return None
        return asked.stdout.strip() or None if asked.returncode == 0 else None


@dataclass(frozen=True)
class Contender:
    """A library that takes part in this run."""

    library: Library
    version: str
    redis: RedisServer
    postgres: PostgresServer

    @property
    def key(self) -> str:
        return self.library.key

    @property
    def title(self) -> str:
        return self.library.title

    @property
    def on_redis(self) -> bool:
        return not self.library.on_postgres

    def process(self, *command: str, **settings: str) -> Process:
        """Its program, to be entered, with these environment variables besides."""
        urls = {"REDIS_URL": self.redis.url(), "DATABASE_URL": self.postgres.url}
        return Process([str(self.library.python), "-m", self.library.program, *command], urls | settings)

    def worker(self, **settings: str) -> Process:
        return self.process("work", **settings)

    def enqueue(self, task: str, count: int, *, one_by_one: bool = False, **settings: str) -> float:
        """Queue that many jobs of `task`; the seconds that the library took."""
        with self.process("one-by-one" if one_by_one else "enqueue", task, str(count), **settings) as program:
            return program.wait_for("enqueued", timeout=STALL_TIMEOUT + count / 100)

    def unended(self, total: int) -> int:
        """How many of the `total` jobs that were queued have not ended."""
        if self.library.on_postgres:
            return self.postgres.number(_UNENDED_IN_POSTGRES)
        return self.library.unended(self.redis.client, total)

    def check_completed(self, count: int) -> None:
        """Ask the library whether just `count` jobs have ended well.

        Raises:
            ContenderError: they have not.
        """
        with self.process("completed") as program:
            completed = int(program.wait_for("completed", timeout=STALL_TIMEOUT + count / 100))
        if completed != count:
            raise ContenderError(f"{completed} of {count} jobs have completed")


_UNENDED_IN_POSTGRES = "SELECT count(*) FROM oban_jobs WHERE state IN ('available','scheduled','executing','retryable')"


def _in_arqs_queue(client: Any, _total: int) -> int:
    return int(client.zcard("arq:queue"))


def _in_saqs_queue(client: Any, _total: int) -> int:
    return int(client.zcard("saq:default:incomplete"))


def _without_streaqs_result(client: Any, total: int) -> int:
    return total - int(client.zcard("streaq:default:index:results"))


def _without_taskiqs_result(client: Any, total: int) -> int:
    """taskiq counts nothing, but all its other keys are these."""
    return total - int(client.dbsize()) + int(client.exists("taskiq", "autoclaim:taskiq:taskiq"))


TANDEM = Library(
    "tandem",
    "Tandem",
    "tandem-jobs",
    "bench.ours",
    "`arq worker.Settings`; concurrency 32, pool 32, arguments validated when queued and when run",
    unended=_in_arqs_queue,
)
ARQ = Library(
    "arq",
    "arq",
    "arq",
    "bench.peers.arq",
    "`max_jobs=32`, as in streaQ's benchmark; uvloop, hiredis; pickle, as it comes; no validation",
    unended=_in_arqs_queue,
)
SAQ = Library(
    "saq",
    "SAQ",
    "saq",
    "bench.peers.saq",
    "`concurrency=32, dequeue_timeout=1`, as in streaQ's benchmark; two tries, as it may take jobs for lost when "
    "it starts; uvloop, hiredis; no validation",
    environments.SAQ,
    unended=_in_saqs_queue,
)
STREAQ = Library(
    "streaq",
    "streaQ",
    "streaq",
    "bench.peers.streaq",
    "`concurrency=32`, as in its own benchmark; asyncio, uvloop; queued in a batch; pickle; no validation",
    environments.STREAQ,
    needs_functions=True,
    unended=_without_streaqs_result,
)
TASKIQ = Library(
    "taskiq",
    "taskiq",
    "taskiq-redis",
    "bench.peers.taskiq",
    "streams; 32 tasks and 32 prefetched, as in streaQ's benchmark; uvloop, hiredis; parameters validated",
    environments.TASKIQ,
    unended=_without_taskiqs_result,
)
OBAN = Library(
    "oban",
    "oban-py",
    "oban",
    "bench.peers.oban",
    "PostgreSQL only; a queue of 32 (its own benchmark has 20), pool 2 to 32; uvloop, orjson; queued in a batch; no "
    "validation",
    environments.OBAN,
    on_postgres=True,
)
TANDEM_AT_LEAST_ONCE = "Tandem, @task(once=False)"
"""What Tandem is called where its jobs do not tell the ledger."""
PEERS = (ARQ, SAQ, STREAQ, TASKIQ, OBAN)


def enter(library: Library, servers: Servers) -> Contender | str:
    """The contender, or why it is absent."""
    version = library.version
    if version is None:
        return "it is not installed: `make bench-peers`"
    if not library.needs_functions:
        return Contender(library, version, servers.redis, servers.postgres)
    if servers.functional_redis is None:
        return f"it needs functions in Redis, which {servers.redis.title} has not: `make bench-peers` brings Valkey"
    return Contender(library, version, servers.functional_redis, servers.postgres)
