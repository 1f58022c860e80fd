"""`Config`: the settings of a process, from its environment.

    config = Config.load()                       # one ConfigError with a line for each wrong setting
    database_url, redis_url = config.require_urls()

The text under each field of `Config` is the setting's documentation. docs/reference/settings.md has the same texts.
"""

import difflib
import os
import re
import socket
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    ValidationError,
)
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from db.database import parse_url as parse_database_url
from worker.broker.redis_url import RedisAddress
from worker.errors import ConfigError

__all__ = ["Config", "SecretUrl"]

_PREFIX = "WORKER_"
_SECRET_OPTION = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)
_DATABASE_EXAMPLE = "postgresql+asyncpg://user:password@localhost:5432/app"
_REDIS_EXAMPLE = "redis://localhost:6379/0"


class SecretUrl(str):
    """A URL that may hold a password. `str` is the whole URL; `repr` hides the password."""

    __slots__ = ()

    @property
    def masked(self) -> str:
        """The URL to print, with `***` in place of secrets."""
        scheme, separator, rest = self.partition("://")
        user_info, at, place = rest.rpartition("@")
        user, colon, _password = user_info.partition(":")
        place = _SECRET_OPTION.sub(r"\1***", place)
        return f"{scheme}://{user}{colon and ':***'}{at}{place}" if separator else "***"

    def __repr__(self) -> str:
        return repr(self.masked)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(strip_whitespace=True))


@dataclass(frozen=True)
class _Expected:
    """The expected value of a setting and an example, as its error message prints them."""

    expected: str
    example: str


def _is_database_url(url: SecretUrl) -> SecretUrl:
    parse_database_url(url)
    return url


def _is_redis_url(url: SecretUrl) -> SecretUrl:
    RedisAddress.parse(url)
    return url


DatabaseUrl = Annotated[SecretUrl, AfterValidator(_is_database_url)]
RedisUrl = Annotated[SecretUrl, AfterValidator(_is_redis_url)]
DottedPath = Annotated[
    str,
    StringConstraints(strip_whitespace=True, pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*$"),
    _Expected("the absolute dotted path of a module", "tasks.registry"),
]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1), _Expected("a name", "mail")]
Secret = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=12),
    _Expected("a secret of 12 characters or more", "$(openssl rand -hex 24)"),
]
Count = Annotated[int, Field(ge=1), _Expected("a whole number, 1 or more", "8")]
Bytes = Annotated[ByteSize, Field(ge=1), _Expected("a number of bytes, 1 or more", "2MiB")]
# Redis accepts values of up to 512 MiB, but other clients wait while it reads one.
ResultBytes = Annotated[
    ByteSize, Field(ge=1, le=256 * 1024 * 1024), _Expected("a number of bytes, 256MiB at most", "2MiB")
]
Timeout = Annotated[float, Field(gt=0, allow_inf_nan=False), _Expected("a number of seconds, more than 0", "60")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False), _Expected("a number of seconds, 0 or more", "60")]
Switch = Annotated[bool, _Expected("true or false", "true")]
Lease = Annotated[float, Field(ge=1, le=3600), _Expected("a number of seconds from 1 to 3600", "10")]
Retention = Annotated[
    float, Field(ge=3600, allow_inf_nan=False), _Expected("a number of seconds, 3600 or more", "604800")
]
QueueName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, pattern=r"^[^,]+$"),
    _Expected("the name of one queue: WORKER_QUEUES takes several", "mail"),
]
QueueNames = Annotated[
    str,
    StringConstraints(strip_whitespace=True, pattern=r"^[^,\s]+(\s*,\s*[^,\s]+)*$"),
    _Expected("names of queues with commas between them", "high,arq:queue,low"),
]
Port = Annotated[int, Field(ge=1, le=65535), _Expected("a port from 1 to 65535", "9464")]
TableName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)?$"),
    _Expected("the name of a table", "tandem_jobs"),
]
LogFormat = Annotated[Literal["json", "text"], _Expected("json or text", "json")]
LoggedJobs = Annotated[Literal["all", "failed", "off"], _Expected("all, failed or off", "failed")]


class Config(BaseModel):
    """The settings of a process. `load` reads `DATABASE_URL`, `REDIS_URL` and `WORKER_*`.

    Not pydantic-settings' class, whose import takes as long as that of pydantic: at the start of each worker, and at
    the first `enqueue` of a web process.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
        validate_default=True,
    )

    database_url: DatabaseUrl | None = Field(default=None, validation_alias="DATABASE_URL")
    """The default database, as a SQLAlchemy URL. `postgresql://` means asyncpg, `sqlite://` means aiosqlite."""

    redis_url: RedisUrl | None = Field(default=None, validation_alias="REDIS_URL")
    """The Redis that holds the queue: `redis://`, `rediss://` (TLS), `unix://`, `redis+sentinel://` or `redis+cluster://`."""

    registry: DottedPath = "tasks.registry"
    """The module whose `TASKS` lists the tasks."""

    queue: QueueName = "arq:queue"
    """The queue to serve, and the default queue for new jobs: the Redis key of its sorted set, as in arq."""

    queues: QueueNames | None = None
    """The queues to serve, the most urgent first, e.g. `high,arq:queue,low`. Default: `WORKER_QUEUE` alone."""

    id: Name = Field(default_factory=socket.gethostname)
    """This worker's name in Redis and in logs. Default: the host's name."""

    concurrency: Count = 32
    """Jobs that run at once."""

    job_timeout: Timeout = 300.0
    """Seconds that one attempt may take, unless the task sets `timeout`."""

    max_tries: Count = 5
    """Tries before a job fails for good, unless the task sets `max_tries`."""

    keep_result: Seconds = 3600.0
    """Seconds that a result is kept, unless the task sets `keep_result`. 0 keeps none."""

    max_crashes: Count = 10
    """After this many worker crashes during one job, the job is considered poison and fails."""

    lease: Lease = 10.0
    """Seconds after which the jobs of a dead machine run elsewhere. Jobs of a dead worker run elsewhere at once."""

    unknown_for: Seconds = 600.0
    """Seconds that a job with an unknown task or argument is put back before it fails. Covers rolling deploys."""

    grace: Seconds = 30.0
    """Seconds that running jobs get to finish when the worker is told to stop. Then they are rolled back."""

    connect_wait: Seconds = 10.0
    """Seconds that a starting worker waits for the database and Redis to answer."""

    max_payload: Bytes = ByteSize(1024 * 1024)
    """Largest size of one job's arguments on the wire, in bytes. A worker reads up to eight times as many."""

    max_result: ResultBytes = ByteSize(32 * 1024 * 1024)
    """Largest size of one job's result as JSON, in bytes. A job that returns more fails and is rolled back."""

    pool_size: Count = Field(default_factory=lambda settings: int(settings["concurrency"]) + 3)
    """Connections in the worker's pool for the default database. Default: concurrency + 3."""

    ledger: TableName = "tandem_jobs"
    """The table of job rows in the default database, with its schema if that is not the default schema."""

    keep_jobs: Retention = 604800.0
    """Seconds that the row of a job that is over is kept. Failed jobs stay until you retry or discard them."""

    keep_arguments: Switch = False
    """Keep the arguments of done jobs in their rows. Failed jobs always keep theirs, so that they can be retried."""

    log_jobs: LoggedJobs = "all"
    """Jobs that get lines in the log: `all`, `failed` or `off`."""

    log: LogFormat | None = None
    """Log lines as `json` or `text`, with the job, task, attempt, queue and trace of each. Default: arq's format."""

    metrics_port: Port | None = None
    """Port of the worker's metrics for Prometheus. With `--processes` each process has the next port. Default: none."""

    accept_pickle: Switch = False
    """Read jobs that an arq producer has pickled. A person who can write to Redis can then run code in the worker."""

    require_scope: Switch = False
    """Refuse to enqueue outside of a scope or session, unless the call or the task says `transactional=False`."""

    dashboard_token: Secret | None = Field(default=None, repr=False)
    """The secret with which an operator signs in to `tandem dashboard`: 12 characters or more."""

    dashboard_viewer_token: Secret | None = Field(default=None, repr=False)
    """A second secret, for people who may look at `tandem dashboard` and not act."""

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Load the settings: from `overrides` by field name, else from the environment, else the defaults.

        An empty variable counts as unset. The case of a variable's name does not matter.

        Raises:
            ConfigError: settings are wrong. The message has a line for each.
        """
        try:
            return cls(**(cls._from_environment() | overrides))
        except ValidationError as error:
            lines = [_describe(problem) for problem in error.errors() if problem["type"] != _FOLLOWS_FROM_ANOTHER]
        raise ConfigError("\n".join(lines))

    @classmethod
    def _from_environment(cls) -> dict[str, str]:
        """The settings that the environment has, by field name."""
        values = {name.upper(): value for name, value in os.environ.items() if value}
        values.update((name, value) for name, value in os.environ.items() if value and name.isupper())
        variables = {field: cls.variable(field) for field in cls.model_fields}
        return {field: values[variable] for field, variable in variables.items() if variable in values}

    def require_urls(self) -> tuple[SecretUrl, SecretUrl]:
        """The URLs of the database and of Redis.

        Raises:
            ConfigError: one or both are not set.
        """
        if self.database_url is None or self.redis_url is None:
            urls = {"database_url": self.database_url, "redis_url": self.redis_url}
            raise URLMissingError("\n".join(_missing(field) for field, url in urls.items() if url is None))
        return self.database_url, self.redis_url

    def require_database_url(self) -> SecretUrl:
        """The URL of the database.

        Raises:
            ConfigError: ``DATABASE_URL`` is not set.
        """
        if self.database_url is None:
            raise URLMissingError(_missing("database_url"))
        return self.database_url

    def require_redis_url(self) -> SecretUrl:
        """The URL of Redis. Enqueueing needs no other URL.

        Raises:
            ConfigError: ``REDIS_URL`` is not set.
        """
        if self.redis_url is None:
            raise URLMissingError(_missing("redis_url"))
        return self.redis_url

    @property
    def queue_names(self) -> tuple[str, ...]:
        """The queues to serve, the most urgent first, without duplicates."""
        names = [self.queue] if self.queues is None else [name.strip() for name in self.queues.split(",")]
        return tuple(dict.fromkeys(names))

    @classmethod
    def variable(cls, field: str) -> str:
        """The environment variable of a field: `WORKER_QUEUE` for `queue`."""
        return str(cls.model_fields[field].validation_alias or f"{_PREFIX}{field.upper()}")

    @classmethod
    def likely_typos(cls) -> tuple[str, ...]:
        """A line for each environment variable that is not a setting but looks like one.

        The lines are warnings, as other software may have variables of the same prefix.
        """
        variables = {field.upper(): cls.variable(field) for field in cls.model_fields}
        unknown = sorted(name for name in os.environ if name.startswith(_PREFIX) and name not in variables.values())
        lines = []
        for name in unknown:
            near = difflib.get_close_matches(name.removeprefix(_PREFIX), variables, n=1, cutoff=0.82)
            lines += [f"{name} is not a setting: did you mean {variables[field]}?" for field in near]
        return tuple(lines)


class URLMissingError(ConfigError):
    """``DATABASE_URL`` or ``REDIS_URL`` is not set."""


_SECRETS = ("dashboard_token", "dashboard_viewer_token")
_FOLLOWS_FROM_ANOTHER = "default_factory_not_called"
_EXAMPLES = {"database_url": _DATABASE_EXAMPLE, "redis_url": _REDIS_EXAMPLE}


def _missing(field: str) -> str:
    variable = Config.variable(field)
    return f"{variable} is not set. Example: {variable}={_EXAMPLES[field]}"


def _describe(problem: ErrorDetails) -> str:
    """A line for a problem that pydantic found. The value of a URL is left out, as it may hold a password."""
    fields = {Config.variable(field): field for field in Config.model_fields}
    field = fields.get(str(problem["loc"][0]), str(problem["loc"][0]))
    variable = Config.variable(field)
    if field in _EXAMPLES:
        return f"{variable}: {problem['msg'].removeprefix('Value error, ')}"
    value = _expected_of(field)
    given = "***" if field in _SECRETS else repr(problem["input"])
    return f"{variable}={given} is not {value.expected}. Example: {variable}={value.example}"


def _expected_of(field: str) -> _Expected:
    """The expected value of a field. For an optional field it is inside the annotation."""
    info = Config.model_fields[field]
    optional = (rule for kind in get_args(info.annotation) for rule in getattr(kind, "__metadata__", ()))
    return next(rule for rule in (*info.metadata, *optional) if isinstance(rule, _Expected))
