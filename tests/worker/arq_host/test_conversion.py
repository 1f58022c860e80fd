"""`Conversion` and `from_arq`: what each setting of arq's becomes, and what is refused."""

import functools
import inspect
import logging
import pickle
import sys
import types
from collections.abc import Callable
from datetime import UTC, timedelta, timezone
from typing import Any

import pytest
from arq import cron, func
from arq.connections import RedisSettings
from arq.worker import Worker, get_kwargs

import worker
from worker import task
from worker.arq_host.conversion import Conversion
from worker.client.options import LONGEST
from worker.engine.limits import Limits
from worker.errors import ConfigError
from worker.settings import convert, from_arq


async def add(ctx: dict[Any, Any], x: int, y: int) -> int:
    return x + y


async def sweep(ctx: dict[Any, Any]) -> None: ...


async def rest(ctx: dict[Any, Any]) -> None: ...


async def hook(ctx: dict[Any, Any]) -> None: ...


def plain(ctx: dict[Any, Any]) -> None: ...


class Callee:
    async def __call__(self, ctx: dict[Any, Any], x: int) -> int:  # noqa: ARG002 - as arq calls it
        return x


@task
async def own(x: int) -> int:
    return x


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, redis_url: str, sqlite_url: str) -> None:
    """The URLs alone."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATABASE_URL", sqlite_url)


def converted(**settings: Any) -> Conversion:
    """What these settings become, beside a function."""
    return convert({"functions": [add], **settings})


def becomes(**settings: Any) -> str:
    """What the one setting becomes, as ``check --arq`` prints it."""
    name = next(iter(settings))
    return {line.setting: line.becomes for line in converted(**settings).lines}[name]


def read_by_arq(settings: type) -> dict[str, Any]:
    """What arq reads of a class."""
    return dict(get_kwargs(settings))


class TestSources:
    def test_a_class_a_dict_and_a_module_are_read_as_arq_reads_them(self) -> None:
        """Of a class only its own attributes."""

        class Base:
            max_jobs = 3

        class WorkerSettings(Base):
            functions = (add,)
            colour = "red"

        module = types.ModuleType("settings_of_mine")
        module.functions = [add]  # type: ignore[attr-defined]
        for source, name in (
            (WorkerSettings, f"{__name__}.TestSources."),
            ({"functions": [add]}, "WorkerSettings"),
            (module, "settings_of_mine"),
        ):
            conversion = convert(source)
            assert conversion.arq.name.startswith(name)
            assert list(conversion.tasks) == ["add"]
            assert conversion.config().concurrency == 10
        without_cron_jobs = {**vars(WorkerSettings), "cron_jobs": ()}  # for the time when two fleets run
        assert list(convert(without_cron_jobs).tasks) == ["add"]
        (note,) = convert(WorkerSettings).notes
        assert note.startswith("max_jobs does not count: a base class of ")

    @pytest.mark.parametrize("source", [None, {}, {"colour": "red"}, object(), add])
    def test_what_is_no_class_of_settings_is_refused(self, source: Any) -> None:
        """In one line that says what to give."""
        with pytest.raises(ConfigError, match="has no settings of arq's: give the class that 'arq' is started with"):
            from_arq(source)

    def test_a_settings_class_of_tandems_is_refused(self) -> None:
        """It needs no conversion."""
        with pytest.raises(ConfigError, match="Settings is a Settings class of Tandem's already"):
            from_arq(from_arq({"functions": [add]}))


class TestFunctions:
    def test_what_arqs_func_takes_becomes_tasks_of_the_same_names(self) -> None:
        """Functions, partials, names to import, `func()`; and Tandem's own tasks, for a move step by step."""
        plus: Any = functools.partial(add, y=1)
        entries = [
            add,
            func(plus, name="plus"),
            f"{__name__}.hook",
            func(rest, max_tries=2),
            own,
        ]
        tasks = converted(functions=entries).tasks
        assert list(tasks) == ["add", "plus", f"{__name__}.hook", "rest", "own"]
        assert [each.signature_text for each in tasks.values()][:2] == ["(x: int, y: int)", "(x: int, y: int = 1)"]
        assert tasks["rest"].options.max_tries == 2
        assert tasks["own"] is own

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect.markcoroutinefunction is new in Python 3.12")
    def test_an_object_that_is_marked_as_a_coroutine_function_is_taken(self) -> None:
        """As arq takes it."""
        callee = inspect.markcoroutinefunction(Callee())  # type: ignore[attr-defined, unused-ignore]
        assert list(converted(functions=[func(callee, name="callee")]).tasks) == ["callee"]

    def test_the_last_function_of_a_name_counts(self) -> None:
        """As in arq."""
        assert converted(functions=[add, func(rest, name="add")]).tasks["add"].fn is rest

    def test_a_cron_job_has_arqs_name_options_and_the_zone_that_is_given(self) -> None:
        """`cron:` and the function's name."""
        tasks = converted(cron_jobs=[cron(sweep, hour=3, timeout=5)], timezone=timezone(timedelta(hours=9))).tasks
        assert list(tasks) == ["add", "cron:sweep"]
        sweeping = tasks["cron:sweep"]
        assert sweeping.schedule is not None
        assert (sweeping.schedule.timezone, sweeping.options.timeout) == ("UTC+09:00", 5)
        assert (sweeping.options.max_tries, sweeping.options.keep_result) == (1, 0)

    def test_a_function_on_two_schedules_is_one_task(self) -> None:
        """As in arq, where it has one name."""
        tasks = converted(cron_jobs=[cron(sweep, hour=3), cron(sweep, hour=15)]).tasks
        assert len(tasks["cron:sweep"].schedules) == 2

    @pytest.mark.parametrize(
        ("settings", "line"),
        [
            ({"functions": [plain]}, "functions[0]: plain is not a coroutine function: write async def, or @task"),
            ({"functions": [add, functools.partial(add, y=1)]}, "has no name: write func(..., name='name')"),
            ({"functions": [Callee()]}, "functions[0]: "),
            ({"functions": ["no.such.name"]}, "functions[0]: 'no.such.name' cannot be imported: No module named 'no'"),
            ({"functions": [add], "cron_jobs": [add]}, "cron_jobs[0]: add is not what arq's cron() returns"),
            ({"cron_jobs": [cron(add, hour=1)]}, "scheduled tasks are called without arguments: give x, y a default"),
            (
                {"cron_jobs": [cron(sweep, name="x", hour=1), cron(rest, name="x", hour=2)]},
                "cron_jobs[1]: another function is called 'x', too: write cron(..., name='other')",
            ),
            ({"functions": []}, "functions: at least one function or cron job is needed"),
        ],
    )
    def test_what_cannot_be_a_task_is_refused_with_its_place(self, settings: Any, line: str) -> None:
        """In one line each."""
        (problem,) = convert(settings).problems
        assert line in problem
        with pytest.raises(ConfigError, match="WorkerSettings: "):
            from_arq(settings)


class TestSettings:
    def test_every_setting_of_arqs_works_or_is_refused(self) -> None:
        """Nothing is ignored without a word."""
        values: dict[str, Any] = dict.fromkeys(inspect.signature(Worker).parameters, 7)
        values |= {
            "functions": [add],
            "cron_jobs": [cron(sweep, hour=1)],
            "queue_name": "mail",
            "timezone": UTC,
        }
        values |= {name: hook for name in values if name.startswith(("on_", "after_"))}
        conversion = convert(values)
        refused = {line.partition(":")[0] for line in conversion.refusals}
        assert refused == {"redis_settings", "redis_pool", "job_serializer", "job_deserializer"}
        described = {line.setting for line in conversion.lines}
        assert described | refused == values.keys() - {"functions", "cron_jobs"}

    @pytest.mark.parametrize(
        ("settings", "field", "value"),
        [
            ({"queue_name": "mail"}, "queue", "mail"),
            ({"max_jobs": 3}, "concurrency", 3),
            ({"job_timeout": timedelta(minutes=2)}, "job_timeout", 120),
            ({"keep_result": 5}, "keep_result", 5),
            ({"keep_result": 5, "keep_result_forever": True}, "keep_result", LONGEST),
            ({"keep_result_forever": False}, "keep_result", 3600),
            ({"max_tries": 2}, "max_tries", 2),
            ({"job_completion_wait": 0}, "grace", 0),
            ({"job_completion_wait": 9}, "grace", 9),
            ({}, "concurrency", 10),
            ({}, "grace", 30),
            ({}, "job_timeout", 300),
            ({}, "max_tries", 5),
        ],
    )
    def test_settings_that_are_some_of_tandems(self, settings: dict[str, Any], field: str, value: object) -> None:
        """With arq's defaults, except that a shutdown lets jobs end."""
        assert getattr(converted(**settings).config(), field) == value

    def test_the_environment_counts_where_the_class_says_nothing(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where the class says something, the worker says that the environment does not count."""
        monkeypatch.setenv("WORKER_CONCURRENCY", "7")
        assert converted().config().concurrency == 7
        assert converted(max_jobs=7).notes == []
        with caplog.at_level(logging.WARNING, "worker"):
            settings: Any = from_arq({"functions": [add], "max_jobs": 3})
        assert settings._config.concurrency == 3
        assert "WORKER_CONCURRENCY=7 does not count: WorkerSettings has max_jobs=3" in caplog.text

    def test_what_from_arq_is_given_besides_counts_instead_of_the_class(self) -> None:
        """By the names of Tandem's own settings."""
        settings: Any = from_arq({"functions": [add], "max_jobs": 3}, concurrency=4, id="mine")
        assert (settings._config.concurrency, settings._config.id) == (4, "mine")

    @pytest.mark.parametrize(
        ("own", "forever_by_default", "kept"),
        [
            ({}, False, 100),
            ({}, True, LONGEST),
            ({"keep_result": 5}, False, 5),
            ({"keep_result": 5}, True, LONGEST),
            ({"keep_result_forever": True}, False, LONGEST),
            ({"keep_result_forever": False}, True, 100),
            ({"keep_result_forever": False, "keep_result": 5}, True, 5),
        ],
    )
    def test_a_result_is_kept_as_long_as_in_arq(self, own: Any, forever_by_default: bool, kept: float) -> None:
        """`keep_result_forever` counts before `keep_result`, and a function's own before the worker's."""
        conversion = converted(functions=[func(add, **own)], keep_result=100, keep_result_forever=forever_by_default)
        assert Limits.of(conversion.tasks["add"], conversion.config()).keep_result == kept * 1000

    @pytest.mark.parametrize(
        ("setting", "value"),
        [
            ("burst", True),
            ("handle_signals", False),
            ("retry_jobs", False),
            ("log_results", False),
            ("max_burst_jobs", 3),
            ("health_check_key", "mine"),
            ("expires_extra_ms", 5000),
        ],
    )
    def test_settings_that_arqs_worker_gets_for_the_engine(self, setting: str, value: object) -> None:
        """As they are."""
        given = read_by_arq(from_arq({"functions": [add], setting: value}))
        assert given[setting] == value
        assert "as in arq" in becomes(**{setting: value}) or setting == "health_check_key"

    def test_expires_extra_ms_is_the_clients(self) -> None:
        """For the jobs that `ctx["redis"]` enqueues."""
        client: Any = read_by_arq(from_arq({"functions": [add], "expires_extra_ms": 5000}))["redis_pool"]
        assert client.expires_extra_ms == 5000

    @pytest.mark.parametrize("name", ["on_startup", "on_shutdown", "on_job_start", "on_job_end", "after_job_end"])
    @pytest.mark.parametrize("wrap", [staticmethod, lambda one: one])
    def test_hooks_and_ctx_are_the_engines(self, name: str, wrap: Callable[[Any], Any]) -> None:
        """A static method, too."""
        settings: Any = from_arq({"functions": [add], name: wrap(hook), "ctx": {"a": 1}})
        assert settings._given[name] is not None
        assert read_by_arq(settings)["ctx"] == {"a": 1}
        assert read_by_arq(settings)[name] is not hook

    def test_hooks_that_are_none_are_none(self) -> None:
        """As some projects write them."""
        from_arq({"functions": [add], "on_startup": None, "cron_jobs": None, "redis_pool": None, "timezone": None})

    @pytest.mark.parametrize("name", ["poll_delay", "queue_read_limit", "health_check_interval", "allow_abort_jobs"])
    def test_settings_that_are_not_needed_are_taken(self, name: str) -> None:
        """With the reason."""
        assert becomes(**{name: 1}).startswith("not needed: ")
        from_arq({"functions": [add], name: 1})

    def test_wrong_values_are_refused_by_the_name_that_the_project_knows(self) -> None:
        """All of them, in one line each."""
        with pytest.raises(ConfigError) as refused:
            from_arq({"functions": [add], "max_jobs": 0, "job_timeout": None})
        assert str(refused.value).splitlines() == [
            "WorkerSettings: max_jobs: WORKER_CONCURRENCY=0 is not a whole number, 1 or more. Example: "
            "WORKER_CONCURRENCY=8",
            "WorkerSettings: job_timeout: WORKER_JOB_TIMEOUT=None is not a number of seconds, more than 0. Example: "
            "WORKER_JOB_TIMEOUT=60",
        ]

    @pytest.mark.parametrize(
        ("settings", "line"),
        [
            ({"redis_pool": object()}, "redis_pool: Tandem opens connections of its own: give redis_settings"),
            ({"queue_name": None}, "queue_name: Tandem does not ask redis_pool for the queue's name: give queue_name"),
            ({"job_serializer": repr}, "job_serializer: job_serializer and job_deserializer belong together"),
            ({"job_deserializer": repr}, "job_deserializer: job_serializer and job_deserializer belong together"),
            ({"redis_settings": "redis://"}, "redis_settings: str is not arq's RedisSettings"),
        ],
    )
    def test_refused_settings(self, settings: Any, line: str) -> None:
        """With what takes their place."""
        (refusal,) = converted(**settings).refusals
        assert refusal.startswith(line)

    def test_tandems_codec_and_arqs_default_are_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is said what becomes of pickles."""
        codec = {"job_serializer": worker.serialize, "job_deserializer": worker.deserialize}
        assert becomes(**codec) == "Tandem's codec"
        assert "until WORKER_ACCEPT_PICKLE=true is set" in becomes(job_serializer=pickle.dumps)
        monkeypatch.setenv("WORKER_ACCEPT_PICKLE", "true")
        assert "they run, as WORKER_ACCEPT_PICKLE is set" in becomes(job_deserializer=None)


class TestRedis:
    def test_redis_settings_take_the_place_of_redis_url(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without both it is arq's default."""
        monkeypatch.delenv("REDIS_URL")
        server = RedisSettings("redis.example", 6380, database=2, password="s/ecret")
        assert converted(redis_settings=server).config().redis_url == "redis://:s%2Fecret@redis.example:6380/2"
        assert "s%2Fecret" not in becomes(redis_settings=server)
        assert "secret" not in str(converted(redis_settings=server).lines)
        assert converted().config().redis_url == "redis://localhost:6379/0"

    def test_redis_settings_for_another_server_than_redis_url_are_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The jobs would go to one, and the worker to the other."""
        monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:6379/1?socket_timeout=5")
        same, other = RedisSettings(database=1), RedisSettings(password="secret")
        assert converted(redis_settings=same).config().redis_url == "redis://127.0.0.1:6379/1?socket_timeout=5"
        (refusal,) = converted(redis_settings=other).refusals
        assert refusal == (
            "redis_settings: it names redis://:***@localhost:6379/0, and REDIS_URL names "
            "redis://127.0.0.1:6379/1?socket_timeout=5: leave one of them out"
        )

    def test_retries_of_the_connection_become_connect_wait(self) -> None:
        """If the project says how many."""
        server = RedisSettings.from_dsn(str(converted().config().redis_url))
        assert converted(redis_settings=server).config().connect_wait == 10
        server.conn_retries, server.conn_retry_delay = 3, 4
        assert converted(redis_settings=server).config().connect_wait == 15


def test_a_subclass_may_add_hooks_and_settings() -> None:
    """As to any Settings class of Tandem's."""
    settings: Any = from_arq({"functions": [add]})
    subclass = type("Mine", (settings,), {"on_startup": hook, "log_results": False})
    assert read_by_arq(subclass)["log_results"] is False
