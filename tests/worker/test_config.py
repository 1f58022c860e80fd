from __future__ import annotations

import os
import pickle
import socket
import traceback
from typing import Any

import pytest
from pydantic import ValidationError

from tests.settings_texts import field_texts
from worker.config import Config, SecretUrl
from worker.errors import ConfigError

DATABASE_URL = "postgresql+asyncpg://app:s3cret@db-1/app"
REDIS_URL = "redis://:s3cret@cache:6379/1"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in ("DATABASE_URL", "REDIS_URL") or name.startswith("WORKER_"):
            monkeypatch.delenv(name)


def problems(**overrides: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.load(**overrides)
    return str(caught.value).splitlines()


class TestLoad:
    def test_an_empty_environment_gives_the_defaults_and_needs_no_url(self) -> None:
        """With an empty environment every setting has its default, and neither URL is needed."""
        config = Config.load()
        assert config.database_url is None
        assert config.redis_url is None
        assert (config.registry, config.queue, config.id) == ("tasks.registry", "arq:queue", socket.gethostname())
        assert (config.concurrency, config.pool_size, config.max_payload) == (32, 35, 1024 * 1024)

    def test_settings_are_read_from_the_environment_with_their_types(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Settings come from the environment by their variable, typed."""
        monkeypatch.setenv("DATABASE_URL", DATABASE_URL)
        monkeypatch.setenv("WORKER_CONCURRENCY", "8")
        monkeypatch.setenv("WORKER_GRACE", "2.5")
        monkeypatch.setenv("WORKER_MAX_PAYLOAD", "64KiB")
        monkeypatch.setenv("WORKER_ACCEPT_PICKLE", "true")
        config = Config.load()
        assert config.database_url == DATABASE_URL
        assert (config.concurrency, config.grace, config.max_payload) == (8, 2.5, 65536)
        assert config.accept_pickle is True

    def test_pool_size_follows_concurrency(self) -> None:
        """The pool has three connections more than there are concurrent jobs, unless its size is given."""
        assert Config.load(concurrency=8).pool_size == 11
        assert Config.load(concurrency=8, pool_size=2).pool_size == 2

    def test_an_empty_variable_counts_as_unset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An empty variable counts as unset: compose files produce such variables."""
        unset = Config.load()
        monkeypatch.setenv("REDIS_URL", "")
        monkeypatch.setenv("WORKER_CONCURRENCY", "")
        assert Config.load() == unset
        assert Config.load().model_fields_set == unset.model_fields_set

    def test_the_case_of_a_variable_does_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A variable in small letters counts, unless the one in capitals is set too."""
        monkeypatch.setenv("worker_queue", "small")
        assert Config.load().queue == "small"
        monkeypatch.setenv("WORKER_QUEUE", "capital")
        assert Config.load().queue == "capital"

    def test_arguments_win_over_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An argument of the caller wins over the environment."""
        monkeypatch.setenv("WORKER_QUEUE", "mail")
        assert Config.load(queue="reports").queue == "reports"

    def test_a_dotenv_file_is_not_read(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        """A .env file in the working directory is not read."""
        (tmp_path / ".env").write_text("WORKER_QUEUE=surprise\n")
        monkeypatch.chdir(tmp_path)
        assert Config.load().queue == "arq:queue"

    def test_settings_cannot_be_changed_after_loading(self) -> None:
        """Settings cannot be changed while the process runs."""
        with pytest.raises(ValidationError, match="frozen"):
            Config.load().concurrency = 2

    @pytest.mark.parametrize("field", Config.model_fields)
    def test_every_setting_is_described_and_numbers_name_their_unit(self, field: str) -> None:
        """Every setting is described, and numbers name their unit."""
        text = field_texts()[field]
        assert text
        if Config.model_fields[field].annotation is float:
            assert text.startswith("Seconds ")

    def test_a_queue_that_is_named_twice_is_served_once(self) -> None:
        """A queue is served once, however often it is named."""
        assert Config.load(queues="high, low,high").queue_names == ("high", "low")


class TestWrongSettings:
    @pytest.mark.parametrize(
        ("variable", "value", "expected"),
        [
            ("WORKER_CONCURRENCY", "many", "a whole number, 1 or more"),
            ("WORKER_CONCURRENCY", "0", "a whole number, 1 or more"),
            ("WORKER_CONCURRENCY", "1.5", "a whole number, 1 or more"),
            ("WORKER_POOL_SIZE", "-1", "a whole number, 1 or more"),
            ("WORKER_JOB_TIMEOUT", "0", "a number of seconds, more than 0"),
            ("WORKER_JOB_TIMEOUT", "nan", "a number of seconds, more than 0"),
            ("WORKER_GRACE", "-1", "a number of seconds, 0 or more"),
            ("WORKER_GRACE", "inf", "a number of seconds, 0 or more"),
            ("WORKER_MAX_PAYLOAD", "1 potato", "a number of bytes, 1 or more"),
            ("WORKER_LOG_JOBS", "some", "all, failed or off"),
            ("WORKER_ACCEPT_PICKLE", "perhaps", "true or false"),
            ("WORKER_ID", " ", "a name"),
            ("WORKER_QUEUE", " ", "the name of one queue: WORKER_QUEUES takes several"),
            ("WORKER_QUEUE", "high,low", "the name of one queue: WORKER_QUEUES takes several"),
            ("WORKER_QUEUES", "high,,low", "names of queues with commas between them"),
            ("WORKER_REGISTRY", "tasks/registry.py", "the absolute dotted path of a module"),
            ("WORKER_REGISTRY", ".registry", "the absolute dotted path of a module"),
            ("WORKER_REGISTRY", "tasks.registry:TASKS", "the absolute dotted path of a module"),
        ],
    )
    def test_a_wrong_setting_is_one_line_with_a_valid_example(
        self, variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A wrong setting is one line: the variable, its value, what it must be, and a valid example."""
        monkeypatch.setenv(variable, value)
        (line,) = problems()
        start, example = line.split(f" Example: {variable}=")
        assert start == f"{variable}={value!r} is not {expected}."
        monkeypatch.setenv(variable, example)
        Config.load()

    def test_all_wrong_settings_are_reported_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Several wrong settings are reported together, one line each, and none that only follows from another."""
        monkeypatch.setenv("WORKER_CONCURRENCY", "many")
        monkeypatch.setenv("WORKER_GRACE", "long")
        monkeypatch.setenv("REDIS_URL", "localhost")
        assert [line.partition("=")[0].partition(":")[0] for line in problems()] == [
            "REDIS_URL",
            "WORKER_CONCURRENCY",
            "WORKER_GRACE",
        ]

    def test_the_error_has_no_cause_that_could_show_a_password(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error has no cause: a traceback would show the text of the cause."""
        monkeypatch.setenv("REDIS_URL", "http://:s3cret@cache")
        with pytest.raises(ConfigError) as caught:
            Config.load()
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize(
        ("variable", "typo"),
        [
            ("WORKER_CONCURRENCY", "WORKER_CONCURENCY"),
            ("WORKER_MAX_TRIES", "WORKER_MAX_RETRIES"),
            ("DATABASE_URL", "WORKER_DATABASE_URL"),
        ],
    )
    def test_a_misspelled_variable_is_reported_with_the_setting_that_was_meant(
        self, variable: str, typo: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A variable that looks like a setting is named together with the setting that was meant."""
        monkeypatch.setenv(typo, "8")
        assert Config.likely_typos() == (f"{typo} is not a setting: did you mean {variable}?",)

    def test_variables_of_other_software_are_not_reported_as_misspelled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Other software's variables of the same prefix, such as Kubernetes' own, are left alone."""
        for name in ("WORKER_PORT", "WORKER_SERVICE_HOST", "WORKER_QUEUE_PORT_6379_TCP", "WORKER_PID", "WORKER_QUEUE"):
            monkeypatch.setenv(name, "8")
        assert Config.likely_typos() == ()


class TestUrls:
    def test_two_missing_urls_are_reported_together_with_valid_examples(self) -> None:
        """Where both URLs are needed, both missing ones are named at once, with valid examples."""
        with pytest.raises(ConfigError) as caught:
            Config.load().require_urls()
        lines = str(caught.value).splitlines()
        assert [line.split(" ")[0] for line in lines] == ["DATABASE_URL", "REDIS_URL"]
        examples = dict(line.split("Example: ")[1].split("=", 1) for line in lines)
        Config.load(database_url=examples["DATABASE_URL"], redis_url=examples["REDIS_URL"]).require_urls()

    def test_only_the_missing_url_is_reported(self) -> None:
        """If one URL is missing, only that one is named."""
        with pytest.raises(ConfigError, match=r"^REDIS_URL is not set\..*\Z"):
            Config.load(database_url=DATABASE_URL).require_urls()
        with pytest.raises(ConfigError, match=r"^REDIS_URL is not set\."):
            Config.load().require_redis_url()

    def test_required_urls_are_strings_with_their_password(self) -> None:
        """Required URLs are strings, password included."""
        config = Config.load(database_url=DATABASE_URL, redis_url=REDIS_URL)
        assert config.require_urls() == (DATABASE_URL, REDIS_URL)
        assert config.require_redis_url() == REDIS_URL

    @pytest.mark.parametrize(
        "url",
        [
            "redis://localhost",
            "redis://localhost:6379/0",
            "rediss://:p%40ss@cache:6380/2?ssl_cert_reqs=none",
            "redis://[::1]:6379",
            "unix:///run/redis.sock?db=1",
            "unix://app:s3cret@/run/redis.sock",
        ],
    )
    def test_urls_that_redis_py_accepts_are_accepted(self, url: str) -> None:
        """A URL that redis-py accepts is accepted."""
        assert Config.load(redis_url=url).redis_url == url

    @pytest.mark.parametrize(
        "url",
        [
            "localhost:6379",
            "http://:s3cret@cache",
            "redis://:s3cret@cache:port",
            "redis://user:s3cret/with/slash@cache:6379",
            "redis://user:s3#cret@cache:6379/0",
            "redis://cache:99999",
            "redis://cache/s3cret",
            "redis://[::1",
        ],
    )
    def test_a_wrong_redis_url_is_refused_without_being_shown(self, url: str) -> None:
        """Any other URL is refused with an example; no part of the URL is shown, as it may be the password."""
        (line,) = problems(redis_url=url)
        assert line.startswith("REDIS_URL: not a Redis URL: ")
        assert "redis://localhost:6379/0" in line
        assert "s3" not in line
        assert "cache" not in line

    @pytest.mark.parametrize(
        "url",
        [
            "postgres://app@db/app",
            "postgresql://app@db/app",
            "postgresql+psycopg://app@db/app",
            "sqlite:///app.db",
            "sqlite+aiosqlite:////var/app.db",
        ],
    )
    def test_a_database_url_may_leave_its_driver_out_and_is_kept_as_written(self, url: str) -> None:
        """A database URL may leave its driver out, and is kept as written."""
        assert Config.load(database_url=url).database_url == url

    @pytest.mark.parametrize(
        "url", ["db-1/app", "s3cret", "oracel://app:s3cret@db/app", "postgresql+foo://a:s3cret@b/c"]
    )
    def test_a_wrong_database_url_is_refused_without_showing_its_password(self, url: str) -> None:
        """A URL that SQLAlchemy cannot read or has no driver for is refused; its password is not shown."""
        (line,) = problems(database_url=url)
        assert line.startswith("DATABASE_URL: ")
        assert "postgresql+asyncpg://" in line
        assert "s3cret" not in line

    def test_settings_and_urls_are_printed_without_passwords(self) -> None:
        """Neither the settings nor a single URL show a password when they are printed."""
        config = Config.load(database_url=DATABASE_URL, redis_url=REDIS_URL)
        for shown in (repr(config), str(config), repr(config.model_dump()), repr(config.redis_url), f"{config}"):
            assert "s3cret" not in shown
        assert "redis://:***@cache:6379/1" in repr(config)

    @pytest.mark.parametrize(
        ("url", "masked"),
        [
            ("redis://localhost:6379/0", "redis://localhost:6379/0"),
            ("postgresql://app@db/app", "postgresql://app@db/app"),
            ("postgresql://app:s3:cr@et@db/app", "postgresql://app:***@db/app"),
            (
                "postgresql://db/app?user=app&password=s3cret&host=/run",
                "postgresql://db/app?user=app&password=***&host=/run",
            ),
            ("s3cret", "***"),
        ],
    )
    def test_a_masked_url_hides_its_password_and_nothing_else(self, url: str, masked: str) -> None:
        """A masked URL keeps everything but its password, wherever the password is written."""
        assert SecretUrl(url).masked == masked

    def test_a_url_survives_pickling(self) -> None:
        """A URL survives being sent to another process."""
        assert pickle.loads(pickle.dumps(SecretUrl(REDIS_URL))) == REDIS_URL
