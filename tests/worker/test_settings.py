"""The Settings class that arq reads, what a subclass may change, and the Redis URL as arq's RedisSettings."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from arq.connections import RedisSettings
from arq.worker import Worker, get_kwargs

import db
from worker import Task, task
from worker.config import Config
from worker.errors import ConfigError
from worker.registry import Registry
from worker.settings import build, redis_settings


@task
async def nothing() -> None: ...


def registry(*tasks: Task[..., Any]) -> Registry:
    named: Mapping[str, Task[Any, Any]] = {one.name: one for one in tasks}
    return Registry("tasks.registry", "tasks/registry.py", MappingProxyType(named), None)


@pytest.fixture
def config(redis_url: str, sqlite_url: str) -> Config:
    return Config.load(database_url=sqlite_url, redis_url=redis_url, queue="mail", id="one")


def read_by_arq(settings: type) -> dict[str, Any]:
    """Return what arq reads of a settings class."""
    return dict(get_kwargs(settings))


class TestBuild:
    def test_arq_gets_task_names_queue_and_hooks_and_claims_no_jobs(self, config: Config) -> None:
        """arq gets the task names, the queue and the hooks, and does not claim jobs itself."""
        settings = read_by_arq(build(config, registry(nothing)))
        assert [function.name for function in settings["functions"]] == ["nothing"]
        assert (settings["queue_name"], settings["max_jobs"]) == ("mail", 0)
        assert settings["health_check_key"] == "mail:health-check:one"
        assert inspect.iscoroutinefunction(settings["on_startup"])
        assert inspect.iscoroutinefunction(settings["on_shutdown"])
        assert settings.keys() <= inspect.signature(Worker).parameters.keys()

    def test_two_settings_classes_are_two_workers(self, config: Config) -> None:
        """A second class has another queue and its own hooks."""
        other = config.model_copy(update={"queue": "slow"})
        first, second = read_by_arq(build(config, registry(nothing))), read_by_arq(build(other, registry(nothing)))
        assert (first["queue_name"], second["queue_name"]) == ("mail", "slow")
        assert first["on_startup"] is not second["on_startup"]

    def test_missing_urls_are_reported_with_an_example(self, redis_url: str, sqlite_url: str) -> None:
        """The line names the variable and gives an example."""
        with pytest.raises(ConfigError, match=r"DATABASE_URL is not set\. Example: DATABASE_URL=postgresql"):
            build(Config.load(redis_url=redis_url), registry(nothing))
        with pytest.raises(ConfigError, match=r"REDIS_URL is not set\. Example: REDIS_URL=redis://"):
            build(Config.load(database_url=sqlite_url), registry(nothing))

    def test_a_project_with_its_own_database_needs_no_url(self, redis_url: str, sqlite_url: str) -> None:
        """`Database(url, default=True)` takes the place of DATABASE_URL."""
        db.Database(sqlite_url, default=True)
        assert read_by_arq(build(Config.load(redis_url=redis_url), registry(nothing)))["max_jobs"] == 0


async def hook(ctx: dict[Any, Any]) -> None: ...


class TestSubclass:
    def test_a_subclass_has_everything_that_arq_reads(self, config: Config) -> None:
        """arq reads a class's own `__dict__`, so a subclass of any depth has all attributes in its own."""
        settings = build(config, registry(nothing), ctx={"a": 1})

        class Mine(settings):  # type: ignore[misc, valid-type]  # made at run time
            """A subclass of a project."""

        class MineToo(Mine):
            pass

        for subclass in (Mine, MineToo):
            assert read_by_arq(subclass).keys() == read_by_arq(settings).keys()
            assert read_by_arq(subclass)["ctx"] == {"a": 1}
            assert read_by_arq(subclass)["queue_name"] == "mail"

    @pytest.mark.parametrize("name", ["on_startup", "on_shutdown", "on_job_start", "on_job_end", "after_job_end"])
    def test_hooks_of_a_subclass_do_not_replace_the_workers_own(self, config: Config, name: str) -> None:
        """A hook of a subclass or mixin, or a static one, is called besides the worker's own hooks."""
        settings = build(config, registry(nothing))
        mixin = type("Mixin", (), {name: hook})
        for subclass in (
            type("Mine", (settings,), {name: hook}),
            type("Mine", (settings,), {name: staticmethod(hook)}),
            type("Mine", (mixin, settings), {}),
        ):
            assert hook not in read_by_arq(subclass).values()
            assert inspect.iscoroutinefunction(read_by_arq(subclass)["on_startup"])

    @pytest.mark.parametrize(
        ("name", "advice"),
        [
            ("max_jobs", "max_jobs in Mine: set WORKER_CONCURRENCY"),
            ("queue_name", "queue_name in Mine: set WORKER_QUEUE"),
            ("functions", "functions in Mine: list them in the registry's TASKS"),
            ("poll_delay", "poll_delay in Mine: it has no effect here"),
            ("keep_result_forever", "keep_result_forever in Mine: set WORKER_KEEP_RESULT=3153600000"),
            ("allow_abort_jobs", "allow_abort_jobs in Mine: it has no effect here: jobs can always be aborted"),
            ("timezone", "timezone in Mine: give it to @cron"),
        ],
    )
    def test_a_setting_of_arqs_that_has_no_effect_here_is_refused(self, config: Config, name: str, advice: str) -> None:
        """The error names the attribute, and Tandem's own setting if there is one."""
        settings = build(config, registry(nothing))
        with pytest.raises(ConfigError, match=advice):
            type("Mine", (settings,), {name: 5})

    def test_every_setting_of_arqs_is_served_or_refused_with_a_reason(self, config: Config) -> None:
        """None is ignored."""
        settings = build(config, registry(nothing))
        hooks = {"on_startup", "on_shutdown", "on_job_start", "on_job_end", "after_job_end"}
        own = {"burst", "handle_signals", "retry_jobs", "log_results", "max_burst_jobs"}
        own |= {"expires_extra_ms", "health_check_key", "ctx"}
        for name in inspect.signature(Worker).parameters:
            if name in hooks | own:
                assert name in read_by_arq(type("Mine", (settings,), {name: hook if name in hooks else {}}))
            else:
                with pytest.raises(ConfigError, match=f"^{name} in Mine: "):
                    type("Mine", (settings,), {name: 5})

    def test_settings_of_a_subclass_that_arqs_worker_follows_are_passed_on(self, config: Config) -> None:
        """The engine reads them from arq's worker, so arguments of `create_worker` count as well."""
        settings = build(config, registry(nothing))
        passed: dict[str, Any] = {"burst": True, "retry_jobs": False, "log_results": False, "max_burst_jobs": 3}
        read = read_by_arq(type("Mine", (settings,), passed))
        assert {name: read[name] for name in passed} == passed
        client = read_by_arq(type("Mine", (settings,), {"expires_extra_ms": 5000}))["redis_pool"]
        assert client.expires_extra_ms == 5000

    def test_other_attributes_of_a_subclass_are_left_alone(self, config: Config) -> None:
        """An attribute that arq does not know stays as it is."""
        subclass: Any = type("Mine", (build(config, registry(nothing)),), {"colour": "red"})
        assert subclass.colour == "red"


class TestRedisSettings:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis://", {"host": "localhost", "port": 6379, "database": 0}),
            ("redis://redis.example:6380/3", {"host": "redis.example", "port": 6380, "database": 3}),
            ("redis://localhost?db=4", {"database": 4}),
            ("redis://:p%40ss%2Fw%3A%23rd@host", {"username": None, "password": "p@ss/w:#rd"}),
            ("redis://us%40er:secret@host", {"username": "us@er", "password": "secret"}),
            ("unix:///run/redis.sock?db=2", {"unix_socket_path": "/run/redis.sock", "database": 2}),
            ("unix://:pw@/run/redis.sock", {"unix_socket_path": "/run/redis.sock", "password": "pw"}),
            (
                "rediss://host:6390/1?ssl_ca_certs=/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_cert_reqs=none",
                {
                    "ssl": True,
                    "port": 6390,
                    "database": 1,
                    "ssl_ca_certs": "/ca.pem",
                    "ssl_certfile": "/c.pem",
                    "ssl_keyfile": "/k.pem",
                    "ssl_cert_reqs": "none",
                },
            ),
            ("rediss://host?ssl_check_hostname=true", {"ssl": True, "ssl_check_hostname": True}),
        ],
    )
    def test_redis_settings_have_everything_that_the_url_has(self, url: str, expected: dict[str, Any]) -> None:
        """Decoded passwords, sockets, databases and TLS files are there, also where arq's `from_dsn` drops them."""
        settings = redis_settings(url)
        assert {name: getattr(settings, name) for name in expected} == expected
        assert settings.ssl is url.startswith("rediss:")

    def test_redis_settings_are_arqs_defaults_where_the_url_has_nothing(self) -> None:
        """An empty URL gives arq's defaults."""
        assert redis_settings("redis://") == RedisSettings()
