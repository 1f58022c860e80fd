"""Log lines as JSON and as text: each is one line, and has the job that it belongs to."""

import json
import logging
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.commands import REPOSITORY, bare_environment
from worker import JobContext
from worker.context import _running
from worker.telemetry.log_lines import JobFilter, JsonFormatter, TextFormatter, current_fields

PAGE = Path(REPOSITORY, "docs/how-to/logging.md").read_text()
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
JOB = JobContext("j1", "send", "mail", 2, 0, traceparent=TRACE)
FIELDS = {
    "job_id": "j1",
    "task": "send",
    "attempt": 2,
    "queue": "mail",
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
}


@pytest.fixture
def _in_a_job() -> Any:
    token = _running.set(JOB)
    yield
    _running.reset(token)


def record(message: str = "hello %s", *args: Any, error: BaseException | None = None, **extra: Any) -> Any:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.getLogger("app").makeRecord("app", logging.INFO, "f.py", 1, message, args, exc_info, extra=extra)
    assert JobFilter().filter(made)
    return made


def as_json(made: logging.LogRecord, worker: str | None = None) -> dict[str, Any]:
    text = JsonFormatter(worker).format(made)
    assert len(text.splitlines()) == 1
    assert text.isascii()
    found: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    return found


@pytest.mark.usefixtures("_in_a_job")
class TestInAJob:
    def test_a_line_of_json_has_the_jobs_fields(self) -> None:
        """And time, level, logger and message."""
        found = as_json(record("hello %s", "ann"), worker="w1")
        assert datetime.fromisoformat(found.pop("time")).tzinfo is UTC
        assert found == {"level": "info", "logger": "app", "message": "hello ann", "worker": "w1", **FIELDS}

    def test_a_line_of_text_has_the_fields_after_its_message(self) -> None:
        """Its beginning is arq's, so that what finds lines in arq's log finds them here."""
        line = TextFormatter().format(record("  0.01s → j1:send()"))
        assert line[8:] == (
            ":   0.01s → j1:send() [job=j1 task=send attempt=2 queue=mail trace=0af7651916cd43dd8448eb211c80319c]"
        )

    def test_the_projects_own_attributes_stay(self) -> None:
        """Also where they are named as ours."""
        found = as_json(record("hello", order=7, task="billing"))
        assert (found["order"], found["task"], found["job_id"]) == (7, "billing", "j1")


class TestThePage:
    def test_the_configuration_of_the_page_works(self) -> None:
        """docs/how-to/logging.md has a `dictConfig` with the filter and the formatter."""
        (block,) = re.findall(r"```python\n(LOGGING = .*?)```", PAGE, re.DOTALL)
        script = (
            f"{block}\nimport logging.config\nfrom datetime import UTC, datetime\n"
            "from worker.context import JobContext, enter_job\nlogging.config.dictConfig(LOGGING)\n"
            "enter_job(JobContext('j1', 'send', 'mail', 2, 0))\nlogging.getLogger('app').info('hello')"
        )
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=bare_environment(), capture_output=True, text=True, check=True)
        found = json.loads(done.stderr)
        assert (found["message"], found["job_id"], found["attempt"]) == ("hello", "j1", 2)


class TestAnyLine:
    def test_a_line_outside_of_jobs_has_no_fields(self) -> None:
        """Neither empty ones nor None."""
        assert set(as_json(record("hello"))) == {"time", "level", "logger", "message"}
        assert TextFormatter("w%1").format(record("hello")).endswith(": w%1: hello")
        assert current_fields() == (None,) * 5

    @pytest.mark.parametrize(
        "hostile",
        ["two\nlines", "\x1b[2J", "\u2028", "\ud800", "\U0001f600", '"}', "ü"],
    )
    def test_any_text_is_one_line_of_json(self, hostile: str) -> None:
        """And comes back as it was."""
        found = as_json(record("%s", hostile, extra_field={"deep": [hostile]}))
        assert (found["message"], found["extra_field"]) == (hostile, {"deep": [hostile]})

    def test_values_that_json_cannot_express_become_texts(self) -> None:
        """A line is never lost."""
        itself: list[Any] = []
        itself.append(itself)

        class Unprintable:
            def __str__(self) -> str:
                raise ValueError

        for value in (object(), {1: {(1, 2)}}, {(1, 2): 3}, float("nan"), itself, Unprintable(), b"\xff"):
            assert "value" in as_json(record("hello", value=value))

    def test_an_error_is_in_the_field_traceback(self) -> None:
        """With its lines."""
        with pytest.raises(ValueError, match="way") as caught:
            int("no\nway")
        found = as_json(record("failed", error=caught.value))
        assert found["traceback"].splitlines()[0] == "Traceback (most recent call last):"
        assert "test_log_lines.py" in found["traceback"]
