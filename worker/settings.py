"""Settings classes for arq's command: ``arq worker.Settings``.

`build` makes a Settings class. `from_arq` makes one of a project's own settings of arq. `resolve` makes the class of
this process from the environment and the registry, and prints one line for each problem.
"""

import inspect
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from arq.connections import RedisSettings
from arq.worker import Worker, func

from worker.arq_host.client import ArqClient
from worker.arq_host.command import end_with, leave_on_signal_meanwhile, prepare, refuse, runs_here
from worker.arq_host.conversion import Conversion
from worker.arq_host.current_worker import current_worker
from worker.arq_host.host import Host
from worker.arq_host.replacements import REPLACEMENTS
from worker.arq_host.worker_arguments import refuse_arguments
from worker.broker.connection import connect_as
from worker.broker.keys import Keys
from worker.broker.redis_url import RedisAddress
from worker.config import Config
from worker.engine.task_caller import Hook
from worker.errors import ConfigError, RegistryError
from worker.foreign_codec import use_serializers
from worker.process.arq_codec import use_codec
from worker.process.errors import StartupError
from worker.process.logs import log_under_arq_from_its_first_line
from worker.process.runtime import Runtime, require_urls
from worker.process.server_wait import await_redis
from worker.registry import Registry, load

logger = logging.getLogger("worker")

_NEVER = 100 * 365 * 86400  # seconds: more than the time since the epoch, with which arq compares it


def build(
    config: Config | None = None,
    registry: Registry | None = None,
    *,
    on_startup: Hook | None = None,
    on_shutdown: Hook | None = None,
    on_job_start: Hook | None = None,
    on_job_end: Hook | None = None,
    after_job_end: Hook | None = None,
    ctx: dict[Any, Any] | None = None,
) -> "type[BaseSettings]":
    """A Settings class for ``arq module.Settings``.

    Args:
        config: the settings (default: from the environment).
        registry: the registry (default: the module of ``WORKER_REGISTRY``).
        on_startup: called with ``ctx`` before the first job, with the database and the resources open.
        on_shutdown: called after the last job, before the resources and the database close.
        on_job_start, on_job_end: called with ``ctx``, which has the job's session, in the job's transaction. A hook
            that raises fails the job.
        after_job_end: called after the job has ended. If it raises, the error is logged.
        ctx: further members of the ``ctx`` of tasks.

    Raises:
        ConfigError: a setting is missing or wrong, or this is ``arq --watch``.
        RegistryError: the registry cannot be loaded.
    """
    leave_on_signal_meanwhile()
    prepare()
    config = config or Config.load()
    if config.log is not None and runs_here():
        log_under_arq_from_its_first_line(config.log)
    given = {
        "on_startup": on_startup,
        "on_shutdown": on_shutdown,
        "on_job_start": on_job_start,
        "on_job_end": on_job_end,
        "after_job_end": after_job_end,
        "ctx": ctx,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return _new_class(config, registry or load(config.registry), given)


def from_arq(settings: Any, **overrides: Any) -> "type[BaseSettings]":
    """A Settings class for ``arq module.Settings``, made of a project's settings of arq.

    No registry is needed: the tasks are the project's ``functions`` and ``cron_jobs``. ``tandem check --arq`` prints
    what each setting becomes.

    Args:
        settings: the class that arq is started with, or a dict or a module with the same names.
        overrides: settings of Tandem's own by the fields of `Config`. They count instead of the project's.

    Raises:
        ConfigError: a setting is refused, missing or wrong, or this is ``arq --watch``. The message has a line for
            each. Under arq's command the process ends instead, with these lines and code 2.
    """
    leave_on_signal_meanwhile()
    try:
        prepare()
        conversion = convert(settings, **overrides)
        config = conversion.config()
        for note in conversion.notes:
            logger.warning("%s", note)
        return _new_class(config, conversion.registry(), conversion.given)
    except ConfigError as error:
        refuse(error)


def convert(settings: Any, **overrides: Any) -> Conversion:
    """What a project's settings of arq become. Nothing connects.

    Raises:
        ConfigError: these are no settings of arq's.
    """
    if isinstance(settings, type) and issubclass(settings, BaseSettings):
        raise ConfigError(f"{settings.__qualname__} is a Settings class of Tandem's already: give arq's own class")
    return Conversion.of(settings, **overrides)


def _new_class(config: Config, registry: Registry, given: Mapping[str, Any]) -> "type[BaseSettings]":
    return type("Settings", (BaseSettings,), {"_config": config, "_registry": registry, "_given": given})


class BaseSettings:
    """The base of Settings classes.

    A subclass may define arq's hooks, ``ctx`` and settings that are passed on to arq's worker. It inherits the rest.
    arq reads only the ``__dict__`` of the class itself, so `__init_subclass__` sets every setting on each subclass.
    """

    _config: ClassVar[Config]
    _registry: ClassVar[Registry]
    _given: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        """Set every setting of arq's on the new class.

        Raises:
            ConfigError: the class sets arq's settings that Tandem's own settings replace. Under arq's command the
                process ends instead, with a line for each.
        """
        own: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            if base is cls or not issubclass(base, BaseSettings):  # the settings of other bases are in `_given`
                own |= {name: value for name, value in vars(base).items() if name in _ARQ_SETTINGS}
        if replaced := sorted(own.keys() & REPLACEMENTS.keys()):
            refuse(ConfigError("\n".join(f"{name} in {cls.__qualname__}: {REPLACEMENTS[name]}" for name in replaced)))
        cls._given = {**cls._given, **own}
        for name, value in _settings(cls._config, cls._registry, cls._given).items():
            setattr(cls, name, value)


_ARQ_SETTINGS = frozenset(inspect.signature(Worker).parameters)
_HOOKS = frozenset({"on_startup", "on_shutdown", "on_job_start", "on_job_end", "after_job_end"})
_PASSED_ON = frozenset(
    {
        "burst",
        "expires_extra_ms",
        "handle_signals",
        "health_check_key",
        "log_results",
        "max_burst_jobs",
        "retry_jobs",
    }
)
"""Settings that arq's worker gets as they are. The host reads them from there."""


def _settings(config: Config, registry: Registry, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for arq."""
    hooks = {name: _function(hook) for name, hook in given.items() if name in _HOOKS}
    if "job_serializer" in given:
        use_serializers(given["job_serializer"], given["job_deserializer"])
    host = Host(Runtime(config, registry, **hooks))
    redis_url = require_urls(config)
    never: Any = _never_called  # arq's protocol wants *args
    settings: dict[str, Any] = {}

    async def startup(ctx: dict[Any, Any]) -> None:
        try:
            if (worker := current_worker()) is not None:
                refuse_arguments(worker, settings)
            await host.startup(ctx)
        except ConfigError as error:
            end_with(str(error), code=2)
        except StartupError as error:
            end_with(str(error), code=1)

    async def shutdown(ctx: dict[Any, Any]) -> None:
        await host.shutdown(ctx)

    settings |= {
        "functions": [func(never, name=name) for name in registry.tasks],
        "redis_settings": redis_settings(redis_url),  # for --check; the worker uses `redis_pool`
        "redis_pool": _arq_client(config, redis_url, registry, given),
        "queue_name": config.queue_names[0],
        "on_startup": startup,
        "on_shutdown": shutdown,
        "on_job_start": None,
        "on_job_end": None,
        "after_job_end": None,
        "ctx": given.get("ctx"),
        "max_jobs": 0,  # the engine claims the jobs, not arq
        "health_check_interval": _NEVER,  # the engine writes the health record, not arq
        "health_check_key": Keys.of(config.queue_names[0]).health(config.id),
    }
    settings |= {name: value for name, value in given.items() if name in _PASSED_ON}
    return settings


def _function(hook: Any) -> Hook:
    """The hook as a function, even if it is a static method of a Settings class."""
    function: Hook = getattr(hook, "__func__", hook)
    return function


_resolved: type | None = None


def resolve() -> type:
    """The Settings class of this process, for ``worker.Settings``.

    Raises:
        SystemExit: after one line for each problem on standard error. The code is 2 for a wrong setting or registry,
            and 1 if Redis does not answer.
    """
    global _resolved  # noqa: PLW0603 - the one Settings of the process
    if _resolved is None:
        try:
            config = Config.load()
            for line in config.likely_typos():
                logger.warning(line)
            resolved = build(config, load(config.registry))
            await_redis(require_urls(config), config.connect_wait)
        except (ConfigError, RegistryError) as error:
            end_with(str(error), code=2)
        except StartupError as error:
            end_with(str(error), code=1)
        _resolved = resolved
    return _resolved


def redis_settings(url: str) -> RedisSettings:
    """arq's settings for `url`. arq's own `from_dsn` keeps passwords encoded and drops the options after the ``?``.

    Raises:
        ConfigError: `url` names a Redis Cluster, where arq's keys would be on several nodes.
    """
    address = RedisAddress.parse(url)
    if address.kind == "cluster":
        raise ConfigError("REDIS_URL: arq's command cannot serve a Redis Cluster: use 'python -m worker run' instead")
    if address.kind == "sentinel":
        return RedisSettings(
            host=list(address.hosts),
            sentinel=True,
            sentinel_master=address.service,
            database=address.database,
            **address.login,
        )
    ((host, port),) = address.hosts or (("localhost", 6379),)
    return RedisSettings(
        host=host,
        port=port,
        unix_socket_path=address.path,
        database=address.database,
        ssl=address.kind == "tls",
        **address.login,
        **{name: value for name, value in address.options.items() if name in _SSL_FIELDS},
    )


_SSL_FIELDS = frozenset(name for name in RedisSettings.__dataclass_fields__ if name.startswith("ssl_"))


def _arq_client(config: Config, url: str, registry: Registry, given: Mapping[str, Any]) -> ArqClient:
    """The client for arq's setting `redis_pool`, which tasks get as ``ctx["redis"]``."""
    client = connect_as(ArqClient, url)
    client.connect_wait = config.connect_wait
    use_codec(client, config)
    client.default_queue_name = config.queue_names[0]
    client.tasks = registry.tasks
    client.expires_extra_ms = given.get("expires_extra_ms", client.expires_extra_ms)
    return client


async def _never_called(_ctx: dict[Any, Any]) -> None:
    raise NotImplementedError("the engine runs the tasks")
