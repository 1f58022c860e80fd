"""What arq reads: ``arq worker.Settings``.

`build` makes a Settings class; `resolve` makes the one of this process, from the environment and the registry, and
turns every problem into one line on standard error.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

import redis
from arq.connections import RedisSettings
from arq.cron import CronJob
from arq.worker import Function, Retry, func
from pydantic_core import from_json
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url

from worker.config import Config
from worker.engine.calling import Hook
from worker.engine.executor import Delivery
from worker.engine.outcome import Kind, Outcome
from worker.errors import ConfigError, RegistryError
from worker.message import Message, deserialize, deserialize_trusting, serialize
from worker.queue import to_ms
from worker.registry import Registry, load
from worker.runtime import Runtime, StartupError
from worker.schedule import Schedule
from worker.task import Task

logger = logging.getLogger("worker")

_HEALTH_INTERVAL = 3  # seconds; the record lives one longer
_ENDLESS = 1_000_000_000  # tries, for arq: the executor counts them


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
        ConfigError, RegistryError: see there.
    """
    config = config or Config.load()
    _, redis_url = config.require_urls()
    registry = registry or load(config.registry)
    runtime = Runtime(config, registry, on_job_start=on_job_start, on_job_end=on_job_end)
    deserializer = deserialize_trusting if config.accept_pickle else deserialize

    async def startup(ctx: dict[Any, Any]) -> None:
        try:
            await runtime.open(ctx)
        except StartupError as error:
            _end(str(error), code=1)

    async def shutdown(_ctx: dict[Any, Any]) -> None:
        await runtime.close()

    settings = {
        "functions": [_hosted(task, runtime, config) for task in registry.tasks.values()],
        "cron_jobs": [_Cron.of(task, runtime, config) for task in registry.tasks.values() if task.schedule],
        "redis_settings": redis_settings(redis_url),
        "queue_name": config.queue,
        "on_startup": startup,
        "on_shutdown": shutdown,
        "after_job_end": _never_raising(after_job_end),
        "max_jobs": config.concurrency,
        "job_timeout": runtime.longest_timeout + config.grace + 60,
        "job_completion_wait": config.grace,
        "keep_result": config.keep_result,
        "max_tries": _ENDLESS,
        "poll_delay": 0.1,
        "health_check_interval": _HEALTH_INTERVAL,
        "health_check_key": f"{config.queue}:health-check:{config.id}",
        "allow_abort_jobs": True,
        "job_serializer": serialize,
        "job_deserializer": deserializer,
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
            _await_redis(redis_url, config.connect_wait)
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


def _await_redis(url: str, wait: float) -> None:
    """Wait for Redis before arq connects, which would end with a traceback."""
    client = redis.Redis.from_url(url, socket_connect_timeout=min(wait, 5.0), socket_timeout=5.0)
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


def _hosted(task: Task[..., Any], runtime: Runtime, config: Config) -> Function:
    """What arq calls for `task`: the executor does the work, arq's loop is told the outcome in its own terms."""
    return func(_runner(task, runtime, config), name=task.name, keep_result=task.options.keep_result)


def _runner(task: Task[..., Any], runtime: Runtime, config: Config) -> Any:
    async def run(ctx: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        message = Message(ctx["job_id"], task.name, args, kwargs, to_ms(ctx["enqueue_time"]))
        delivery = Delivery(message, config.queue, tries=ctx["job_try"] - 1, score=ctx["score"])
        return _answer(await runtime.executor.execute(delivery))

    return run


def _answer(outcome: Outcome) -> Any:
    match outcome.kind:
        case Kind.COMPLETED | Kind.DUPLICATE:
            return from_json(outcome.result)
        case Kind.RETRIED:
            raise Retry(defer=outcome.delay)
        case Kind.INTERRUPTED:
            raise asyncio.CancelledError
        case _:
            raise outcome.error or RuntimeError(outcome.kind.value)


class _Cron(CronJob):
    """A scheduled task, for arq's loop."""

    _schedule: Schedule

    @classmethod
    def of(cls, task: Task[..., Any], runtime: Runtime, config: Config) -> "_Cron":
        any_time: dict[str, Any] = dict.fromkeys(("month", "day", "weekday", "hour", "minute", "second"))
        job = cls(
            name=f"cron:{task.name}",
            coroutine=_runner(task, runtime, config),
            **any_time,
            microsecond=0,
            run_at_startup=task.run_at_startup,
            unique=True,
            job_id=None,
            timeout_s=None,
            keep_result_s=task.options.keep_result or 0,
            keep_result_forever=False,
            max_tries=_ENDLESS,
        )
        assert task.schedule is not None  # noqa: S101 - what this is for
        job._schedule = task.schedule
        return job

    def calculate_next(self, prev_run: datetime) -> None:
        self.next_run = self._schedule.next_after(prev_run.astimezone(UTC))


def _never_raising(hook: Hook | None) -> Hook | None:
    if hook is None:
        return None

    async def logged(ctx: dict[Any, Any]) -> None:
        try:
            await hook(ctx)
        except Exception:
            logger.exception("after_job_end failed; its job has ended all the same")

    return logged


def _end(message: str, *, code: int) -> NoReturn:
    print(message, file=sys.stderr)  # noqa: T201 - logging is not set up yet, and this is for a person
    raise SystemExit(code)
