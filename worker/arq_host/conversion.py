"""``Conversion``: what a project's settings of arq become, each with one line that says so.

Each setting works, or is refused. Nothing is connected to, and nothing of the project is called.
"""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

from arq.connections import RedisSettings

from worker.arq_host.arq_settings import DEFAULTS, ArqSettings
from worker.arq_host.functions import ResultDefaults, tasks_of
from worker.arq_host.redis_settings import connect_wait_of, url_of
from worker.broker.redis_url import RedisAddress
from worker.client.options import LONGEST
from worker.config import Config, SecretUrl
from worker.errors import ConfigError
from worker.message import deserialize, serialize
from worker.registry import Registry
from worker.task import Task

_FIELDS: Mapping[str, str] = {
    "queue_name": "queue",
    "max_jobs": "concurrency",
    "job_timeout": "job_timeout",
    "keep_result": "keep_result",
    "max_tries": "max_tries",
    "job_completion_wait": "grace",
}
"""Settings that are one of `Config`'s."""
_IN_TRANSACTION = "called inside the job's transaction, which has ctx['session']; an error of the hook fails the job"
_AS_GIVEN: Mapping[str, str] = {
    "burst": "as in arq",
    "on_startup": "called before the first job, with the database open",
    "on_shutdown": "called after the last job",
    "on_job_start": _IN_TRANSACTION,
    "on_job_end": _IN_TRANSACTION,
    "after_job_end": "called when the job's result is recorded",
    "handle_signals": "as in arq",
    "health_check_key": "the key of the record in arq's form",
    "ctx": "as in arq",
    "retry_jobs": "as in arq, but a job that a shutdown interrupts runs again",
    "max_burst_jobs": "as in arq",
    "timezone": "the zone of the cron jobs, as in arq",
    "expires_extra_ms": "as in arq, for jobs that ctx['redis'] enqueues",
    "log_results": "as in arq",
}
"""Settings that the Settings class gets as they are."""
_WITHOUT_EFFECT: Mapping[str, str] = {
    "poll_delay": "not needed: a new job wakes a worker, which looks for a stock producer's twice a second",
    "queue_read_limit": "not needed: a worker reads as many jobs as it has free slots",
    "health_check_interval": "not needed: a healthy worker writes its record every second, and it lives four seconds",
    "allow_abort_jobs": "not needed: jobs can always be aborted",
}
_REFUSED: Mapping[str, str] = {
    "redis_pool": "Tandem opens connections of its own: give redis_settings, or set REDIS_URL",
}
_PICKLE = "arq's pickles: "
_OWN_CODEC = (serialize, deserialize)
_PICKLES = ((None, None), (pickle.dumps, pickle.loads), (None, pickle.loads), (pickle.dumps, None))
"""arq's default."""


class Line(NamedTuple):
    """What one setting becomes."""

    setting: str
    value: str
    """As the project wrote it, or arq's default."""
    becomes: str


@dataclass
class Conversion:
    """What a project's settings of arq become."""

    arq: ArqSettings
    lines: list[Line] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    """A line for each setting that is refused, with what takes its place."""
    notes: list[str] = field(default_factory=list)
    """A line for each value that is set and does not count."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Values for `Config`."""
    given: dict[str, Any] = field(default_factory=dict)
    """Settings for the Settings class."""
    tasks: dict[str, Task[Any, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Any, **overrides: Any) -> "Conversion":
        """Convert the settings.

        Args:
            settings: a class, a dict, or a module.
            overrides: values for `Config` that count instead of the project's.

        Raises:
            ConfigError: these are no settings of arq's.
        """
        conversion = cls(ArqSettings.read(settings))
        for name, value in conversion.arq.given.items():
            conversion._convert(name, value)
        conversion._convert_defaults()
        conversion._convert_tasks()
        conversion.fields |= overrides
        return conversion

    def config(self) -> Config:
        """The settings of Tandem's.

        Raises:
            ConfigError: a setting is refused, or a value is wrong. The message has a line for each.
        """
        if self.problems:
            raise ConfigError("\n".join(f"{self.arq.name}: {line}" for line in self.problems))
        return Config.load(**self.fields)

    @property
    def problems(self) -> list[str]:
        """A line for each setting that is refused or has a wrong value."""
        return [*self.refusals, *self._wrong_values()]

    def _wrong_values(self) -> list[str]:
        try:
            Config.load(**self.fields)
        except ConfigError as error:
            names = {Config.variable(of): name for name, of in _FIELDS.items()}
            lines = [(names.get(line.partition("=")[0]), line) for line in str(error).splitlines()]
            return [f"{name}: {line}" if name else line for name, line in lines]
        return []

    def registry(self) -> Registry:
        """The tasks, as a registry would have them."""
        return Registry(self.arq.name, self.arq.file, self.tasks, None)

    def _convert(self, name: str, value: Any) -> None:
        try:
            becomes = self._become(name, value)
        except ConfigError as error:
            self.refusals += [f"{name}: {line}" for line in str(error).splitlines()]
        else:
            if becomes is not None:
                self.lines.append(Line(name, _shown(value), becomes))

    def _become(self, name: str, value: Any) -> str | None:
        """Take over a setting, and say what it becomes. None if that is said elsewhere."""
        if name in _REFUSED and value is None:
            return None
        match name:
            case "redis_settings":
                return self._convert_redis(value)
            case "job_serializer" | "job_deserializer":
                return self._convert_codec(name)
            case "keep_result_forever":
                return "results are kept for a hundred years" if value else "as in arq"
            case "queue_name" if value is None:
                raise ConfigError("Tandem does not ask redis_pool for the queue's name: give queue_name")
            case "functions" | "cron_jobs":
                return None
            case _ if name in _REFUSED:
                raise ConfigError(_REFUSED[name])
            case _ if name in _FIELDS:
                return self._set(name, _seconds(value) if isinstance(value, timedelta) else value)
        if name in _AS_GIVEN and name != "timezone" and value is not None:
            self.given[name] = value
        return _AS_GIVEN.get(name) or _WITHOUT_EFFECT[name]

    def _set(self, name: str, value: Any) -> str:
        """Make `value` one of `Config`'s."""
        variable = Config.variable(_FIELDS[name])
        self.fields[_FIELDS[name]] = value
        in_environment = os.environ.get(variable)
        if in_environment and in_environment != str(value):
            self.notes.append(f"{variable}={in_environment} does not count: {self.arq.name} has {name}={value!r}")
        return f"{variable}={value}"

    def _convert_redis(self, value: Any) -> str:
        if value is None:
            value = RedisSettings()
        if not isinstance(value, RedisSettings):
            raise ConfigError(f"{type(value).__name__} is not arq's RedisSettings: give that, or set REDIS_URL")
        url = url_of(value)
        in_environment = Config.load().redis_url
        if in_environment is not None and _place(in_environment) != _place(url):
            raise ConfigError(
                f"it names {SecretUrl(url).masked}, and REDIS_URL names {in_environment.masked}: leave one of them out"
            )
        self.fields["redis_url"] = url if in_environment is None else in_environment
        wait = connect_wait_of(value)
        if wait is not None:
            self.fields["connect_wait"] = wait
        return f"REDIS_URL={SecretUrl(url).masked}" + ("" if wait is None else f", WORKER_CONNECT_WAIT={wait:g}")

    def _convert_codec(self, name: str) -> str:
        codec = self.arq.get("job_serializer"), self.arq.get("job_deserializer")
        if codec == _OWN_CODEC:
            return "Tandem's codec"
        if codec in _PICKLES:
            return _PICKLE + _pickles()
        if None in codec:
            raise ConfigError("job_serializer and job_deserializer belong together: give both, or none")
        if not all(map(callable, codec)):
            raise ConfigError("it is not a function: give one, or leave it out")
        self.given[name] = self.arq.get(name)
        return "a job in this format runs, and is answered in it; Tandem's own jobs are JSON"

    def _convert_defaults(self) -> None:
        """The settings whose defaults differ from Tandem's, or depend on others."""
        if self.arq.get("keep_result_forever"):
            self.fields["keep_result"] = LONGEST
        if "max_jobs" not in self.arq.given and not os.environ.get(Config.variable("concurrency")):
            self.lines.append(Line("max_jobs", "10, arq's default", self._set("max_jobs", DEFAULTS["max_jobs"])))
        if "job_completion_wait" not in self.arq.given:
            self.lines.append(
                Line(
                    "job_completion_wait",
                    "0, arq's default",
                    "a job that runs at a shutdown gets WORKER_GRACE seconds to end; arq would cancel it",
                )
            )
        if "redis_settings" not in self.arq.given and Config.load().redis_url is None:
            self.lines.append(Line("redis_settings", "arq's default", self._convert_redis(None)))
        if not {"job_serializer", "job_deserializer"} & self.arq.given.keys():
            self.lines.append(Line("job_serializer", "arq's default", _PICKLE + _pickles()))
        self.notes += [
            f"{name} does not count: a base class of {self.arq.name} has it, and arq reads only a class's own settings"
            for name in self.arq.inherited
        ]

    def _convert_tasks(self) -> None:
        arq = self.arq
        keep_result = ResultDefaults(_seconds(arq.get("keep_result")), forever=bool(arq.get("keep_result_forever")))
        self.tasks = tasks_of(
            arq.get("functions"),
            arq.get("cron_jobs") or (),
            keep_result,
            arq.get("timezone"),
            self.refusals.append,
        )
        if not self.tasks and not self.refusals:
            self.refusals.append("functions: at least one function or cron job is needed")


def _pickles() -> str:
    if Config.load().accept_pickle:
        return "they run, as WORKER_ACCEPT_PICKLE is set"
    return "they fail and are kept until WORKER_ACCEPT_PICKLE=true is set, or the producers have worker.serialize"


def _place(url: str) -> tuple[Any, ...]:
    """What tells two servers apart."""
    address = RedisAddress.parse(url)
    hosts = tuple(("127.0.0.1" if host == "localhost" else host, port) for host, port in address.hosts)
    return address.kind, hosts, address.path, address.service, address.database


def _seconds(value: float | timedelta) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _shown(value: Any) -> str:
    text: str = getattr(value, "__qualname__", None) or repr(value)
    if isinstance(value, RedisSettings):  # it may hold a password
        text = type(value).__name__
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


_LONGEST_VALUE = 40
