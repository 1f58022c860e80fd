"""Redis and PostgreSQL from wheels: real servers that belong to the process that starts them.

    with servers(database_url=None, redis_url=None) as urls:   # starts only the servers without a URL
        os.environ |= {"DATABASE_URL": urls.database, "REDIS_URL": urls.redis}

The servers listen on Unix sockets in a folder that only their owner may enter, or with `tcp` on a free port of
127.0.0.1. They end with the process that started them, even if it is killed: see `server.py`.

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
    """The URLs of the two servers: a SQLAlchemy URL and a Redis URL."""

    database: str
    redis: str


@contextmanager
def servers(database_url: str | None = None, redis_url: str | None = None) -> Iterator[Urls]:
    """The URLs of both servers. A server without a URL is started, empty, and stopped at the end of the block.

    Raises:
        EmbeddedServerError: a server cannot be started.
    """
    with ExitStack() as started:
        database_url = database_url or started.enter_context(EmbeddedPostgres()).url
        redis_url = redis_url or started.enter_context(EmbeddedRedis()).url
        yield Urls(database_url, redis_url)
