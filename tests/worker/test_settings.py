"""What arq is told: the Settings class, what may be changed in a subclass, and the Redis URL as arq has it."""

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


def told(settings: type) -> dict[str, Any]:
    """What arq reads of a settings class."""
    return dict(get_kwargs(settings))


class TestBuild:
    def test_tells_arq_what_it_needs(self, config: Config) -> None:
        """arq gets the task names, the queue and the hooks, and is kept from claiming jobs itself."""
        settings = told(build(config, registry(nothing)))
        assert [function.name for function in settings["functions"]] == ["nothing"]
        assert (settings["queue_name"], settings["max_jobs"]) == ("mail", 0)
        assert settings["health_check_key"] == "mail:health-check:one"
        assert inspect.iscoroutinefunction(settings["on_startup"])
        assert inspect.iscoroutinefunction(settings["on_shutdown"])
        assert settings.keys() <= inspect.signature(Worker).parameters.keys()

    def test_two_classes_are_two_workers(self, config: Config) -> None:
        """A second one for another queue, with its own hooks."""
        other = config.model_copy(update={"queue": "slow"})
        first, second = told(build(config, registry(nothing))), told(build(other, registry(nothing)))
        assert (first["queue_name"], second["queue_name"]) == ("mail", "slow")
        assert first["on_startup"] is not second["on_startup"]

    def test_missing_urls_are_told(self, redis_url: str, sqlite_url: str) -> None:
        """One line for each, with the variable and an example."""
        with pytest.raises(ConfigError, match=r"DATABASE_URL is not set\. Example: DATABASE_URL=postgresql"):
            build(Config.load(redis_url=redis_url), registry(nothing))
        with pytest.raises(ConfigError, match=r"REDIS_URL is not set\. Example: REDIS_URL=redis://"):
            build(Config.load(database_url=sqlite_url), registry(nothing))

    def test_a_project_with_its_own_database_needs_no_url(self, redis_url: str, sqlite_url: str) -> None:
        """`Database(url, default=True)` takes the place of DATABASE_URL."""
        db.Database(sqlite_url, default=True)
        assert told(build(Config.load(redis_url=redis_url), registry(nothing)))["max_jobs"] == 0


async def hook(ctx: dict[Any, Any]) -> None: ...


class TestSubclass:
    def test_has_everything_that_arq_reads(self, config: Config) -> None:
        """arq reads a class's own `__dict__`: a subclass, and one of that, is as good as the class."""
        settings = build(config, registry(nothing), ctx={"a": 1})

        class Mine(settings):  # type: ignore[misc, valid-type]  # made at run time
            """As people write it."""

        class MineToo(Mine):
            pass

        for subclass in (Mine, MineToo):
            assert told(subclass).keys() == told(settings).keys()
            assert told(subclass)["ctx"] == {"a": 1}
            assert told(subclass)["queue_name"] == "mail"

    @pytest.mark.parametrize("name", ["on_startup", "on_shutdown", "on_job_start", "on_job_end", "after_job_end"])
    def test_hooks_do_not_take_the_place_of_the_workers_own(self, config: Config, name: str) -> None:
        """A hook of a subclass, a static method or a mixin's, is called besides what starts and stops the worker."""
        settings = build(config, registry(nothing))
        mixin = type("Mixin", (), {name: hook})
        for subclass in (
            type("Mine", (settings,), {name: hook}),
            type("Mine", (settings,), {name: staticmethod(hook)}),
            type("Mine", (mixin, settings), {}),
        ):
            assert hook not in told(subclass).values()
            assert inspect.iscoroutinefunction(told(subclass)["on_startup"])

    @pytest.mark.parametrize(
        ("name", "advice"),
        [
            ("max_jobs", "max_jobs in Mine: set WORKER_CONCURRENCY"),
            ("queue_name", "queue_name in Mine: set WORKER_QUEUE"),
            ("functions", "functions in Mine: list them in the registry's TASKS"),
            ("poll_delay", "poll_delay in Mine: it has no effect here"),
        ],
    )
    def test_what_would_make_arq_claim_jobs_is_refused(self, config: Config, name: str, advice: str) -> None:
        """A setting of arq's that is another one here is an error that names it, and not a worker that does nothing."""
        settings = build(config, registry(nothing))
        with pytest.raises(ConfigError, match=advice):
            type("Mine", (settings,), {name: 5})

    def test_its_own_attributes_are_its_own(self, config: Config) -> None:
        """What arq does not know is left alone."""
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
    def test_say_what_the_url_says(self, url: str, expected: dict[str, Any]) -> None:
        """Passwords decoded, sockets, databases and TLS files: what `from_dsn` of arq drops too."""
        settings = redis_settings(url)
        assert {name: getattr(settings, name) for name in expected} == expected
        assert settings.ssl is url.startswith("rediss:")

    def test_is_arqs_default_where_the_url_says_nothing(self) -> None:
        """No option is made up."""
        assert redis_settings("redis://") == RedisSettings()
