"""What arq reads: ``arq worker.Settings``.

`build` makes a Settings class; `resolve` makes the one of this process, from the environment and the registry, and
turns every problem into one line on standard error.
"""

import logging
import sys
import time
from typing import Any, NoReturn

import redis
from arq.connections import RedisSettings
from arq.worker import func
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url

from worker.arq_command import prepare
from worker.config import Config
from worker.connection import connect_sync
from worker.engine.calling import Hook
from worker.errors import ConfigError, RegistryError
from worker.host import Host
from worker.keys import Keys
from worker.message import deserialize, deserialize_trusting, serialize
from worker.registry import Registry, load
from worker.runtime import Runtime, StartupError

logger = logging.getLogger("worker")

_NEVER = 100 * 365 * 86400  # seconds: longer than the time since the epoch, which is what arq compares it with


def build(
    config: Config | None = None,
    registry: Registry | None = None,
    *,
    on_job_start: Hook | None = None,
    on_job_end: Hook | None = None,
    after_job_end: Hook | None = None,
    **more: Any,
) -> type:
    """A Settings class for ``arq module.Settings``.

    Args:
        config: default: the environment's.
        registry: default: the one that ``WORKER_REGISTRY`` names.
        on_job_start, on_job_end: arq's hooks; they get ``ctx`` with the job's session; one that raises fails its job.
        after_job_end: arq's; what it raises is logged.
        more: other settings of arq's `Worker`.

    Raises:
        ConfigError: a setting is missing or wrong, or this is ``arq --watch``.
        RegistryError: the registry cannot be loaded.
    """
    prepare()
    config = config or Config.load()
    _, redis_url = config.require_urls()
    registry = registry or load(config.registry)
    host = Host(
        Runtime(config, registry, on_job_start=on_job_start, on_job_end=on_job_end, after_job_end=after_job_end)
    )

    never: Any = _never_called  # arq's protocol wants *args

    async def startup(ctx: dict[Any, Any]) -> None:
        try:
            await host.startup(ctx)
        except StartupError as error:
            _end(str(error), code=1)

    async def shutdown(ctx: dict[Any, Any]) -> None:
        await host.shutdown(ctx)

    settings = {
        "functions": [func(never, name=name) for name in registry.tasks],
        "redis_settings": redis_settings(redis_url),
        "queue_name": config.queue_names[0],
        "on_startup": startup,
        "on_shutdown": shutdown,
        "max_jobs": 0,  # arq claims nothing: the engine does
        "health_check_interval": _NEVER,  # and writes no health record
        "health_check_key": Keys.of(config.queue_names[0]).health(config.id),
        "job_serializer": serialize,
        "job_deserializer": deserialize_trusting if config.accept_pickle else deserialize,
        **more,
    }
    return type("Settings", (_Settings,), settings)


class _Settings:
    """arq reads a settings class by its own ``__dict__`` alone, so a subclass gets a copy of what it inherits."""

    def __init_subclass__(cls) -> None:
        for base in cls.__mro__[1:-1]:
            for name, value in vars(base).items():
                if not name.startswith("_") and name not in vars(cls):
                    setattr(cls, name, value)


_resolved: type | None = None


def resolve() -> type:
    """The Settings of this process, for ``worker.Settings``.

    Raises:
        SystemExit: with code 2, after one line for each problem on standard error.
    """
    global _resolved  # noqa: PLW0603 - the one Settings of the process
    if _resolved is None:
        try:
            config = Config.load()
            for line in config.likely_typos():
                logger.warning(line)
            _, redis_url = config.require_urls()
            _resolved = build(config, load(config.registry))
            await_redis(redis_url, config.connect_wait)
        except (ConfigError, RegistryError, StartupError) as error:
            _end(str(error), code=2)
    return _resolved


def redis_settings(url: str) -> RedisSettings:
    """arq's settings for `url`. Its own `from_dsn` keeps passwords encoded, and drops the options behind the ``?``."""
    options: dict[str, Any] = dict(parse_url(url))
    connection = options.pop("connection_class", None)
    tls = connection is not None and issubclass(connection, SSLConnection)
    socket = options.get("path") if connection is UnixDomainSocketConnection else None
    ssl = {name: value for name, value in options.items() if name.startswith("ssl_") and name in _SSL_FIELDS}
    return RedisSettings(
        host=options.get("host", "localhost"),
        port=int(options.get("port", 6379)),
        unix_socket_path=socket,
        database=int(options.get("db", 0)),
        username=options.get("username"),
        password=options.get("password"),
        ssl=tls,
        **ssl,
    )


_SSL_FIELDS = frozenset(name for name in RedisSettings.__dataclass_fields__ if name.startswith("ssl_"))


def await_redis(url: str, wait: float) -> None:
    """Wait up to `wait` seconds for Redis, before arq or the engine connects.

    Raises:
        StartupError: it does not answer, or refuses to.
    """
    client = connect_sync(url, socket_connect_timeout=max(min(wait, 5.0), 0.1))
    deadline = time.monotonic() + wait
    try:
        while True:
            try:
                client.ping()
            except (redis.AuthenticationError, redis.ResponseError) as error:
                raise StartupError(f"REDIS_URL: the server refuses: {error}") from None
            except (redis.RedisError, OSError) as error:
                if time.monotonic() > deadline:
                    raise StartupError(f"REDIS_URL: no answer within {wait:g} s ({error}); is the server up?") from None
            else:
                return
            time.sleep(0.2)
    finally:
        client.close()


def _end(message: str, *, code: int) -> NoReturn:
    print(message, file=sys.stderr)  # noqa: T201 - logging is not set up yet, and this is for a person
    raise SystemExit(code)


async def _never_called(_ctx: dict[Any, Any]) -> None:
    raise NotImplementedError("the engine runs the tasks")
