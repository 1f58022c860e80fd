"""Redis and PostgreSQL from wheels: real servers, private to the process that starts them.

    with servers(database_url=None, redis_url=None) as urls:   # starts what is None, and only that
        os.environ |= {"DATABASE_URL": urls.database, "REDIS_URL": urls.redis}

They listen on Unix sockets in a folder that only their owner may enter (or, for who asks, on a free port of
127.0.0.1), and they end when their owner ends, whatever ends it: see `server.py`.

The command line, tests and the bench may import it. Nothing that a worker needs in production must be put here.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis
from worker.embedded.server import EmbeddedServer, EmbeddedServerError

__all__ = ["EmbeddedPostgres", "EmbeddedRedis", "EmbeddedServer", "EmbeddedServerError", "Urls", "servers"]


@dataclass(frozen=True)
class Urls:
    """Where the two servers are: a SQLAlchemy URL and a Redis URL."""

    database: str
    redis: str


@contextmanager
def servers(database_url: str | None = None, redis_url: str | None = None) -> Iterator[Urls]:
    """Both servers' URLs; the one that is missing is started, empty, and stopped at the end of the block.

    Raises `EmbeddedServerError` when a server cannot be started.
    """
    with ExitStack() as started:
        database_url = database_url or started.enter_context(EmbeddedPostgres()).url
        redis_url = redis_url or started.enter_context(EmbeddedRedis()).url
        yield Urls(database_url, redis_url)
