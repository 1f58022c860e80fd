"""The job log: lines in arq's form, and as many as `WORKER_LOG_JOBS` says."""

import asyncio
import logging
import re

import pytest

from tests.waiting import eventually
from tests.worker.engine.conftest import StartWorker
from worker import Retry, task


@task
async def add(one: int, two: str = "") -> str:
    return f"{one}{two}"


@task(max_tries=2)
async def keep_retrying() -> None:
    raise Retry(defer=0.01)


@task
async def sleep_for_a_minute() -> None:
    await asyncio.sleep(60)


async def logged_lines(caplog: pytest.LogCaptureFixture, start: StartWorker, log_jobs: str) -> list[str]:
    """The lines of four jobs, without times and ids: one each that returns, fails after a retry, and is aborted."""
    with caplog.at_level(logging.INFO, "worker"):
        async with start(add, keep_retrying, sleep_for_a_minute, log_jobs=log_jobs) as worker_:
            await add.enqueue(1, two="x" * 200)
            await worker_.idle()
            await keep_retrying.enqueue()
            await worker_.idle()
            job = await sleep_for_a_minute.enqueue()
            await eventually(lambda: worker_.engine.jobs.executions.running)
            await job.abort(timeout=5)
    lines = [record.getMessage() for record in caplog.records if re.search("[→←↻!⊘]", record.getMessage())]
    return [re.sub(r"^ *\d+\.\d\ds |[0-9a-f]{32}:", "", line) for line in lines]


RETURNED = ["→ add(one=1, two='" + "x" * 67 + "…)", '← add ● "1' + "x" * 77 + "…"]
RETRIED = ["→ keep_retrying()", "↻ keep_retrying retrying job in 0.01s", "→ keep_retrying() try=2"]
FAILED = ["! keep_retrying failed, TriesExhaustedError: "]
ABORTED = ["→ sleep_for_a_minute()", "⊘ sleep_for_a_minute aborted"]


@pytest.mark.parametrize(
    ("log_jobs", "lines"),
    [("all", [*RETURNED, *RETRIED, *FAILED, *ABORTED]), ("failed", [*FAILED, ABORTED[1]]), ("off", [])],
)
async def test_log_jobs_decides_which_jobs_are_logged(
    caplog: pytest.LogCaptureFixture, start: StartWorker, log_jobs: str, lines: list[str]
) -> None:
    """All jobs, those that fail, or none. Long texts are cut."""
    found = await logged_lines(caplog, start, log_jobs)
    assert [line[: len(expected)] for line, expected in zip(found, lines, strict=True)] == lines


@task
async def fails(what: str) -> None:
    raise ValueError(what)


async def test_control_characters_from_outside_are_escaped_in_log_lines(
    caplog: pytest.LogCaptureFixture, start: StartWorker
) -> None:
    """In ids, arguments and errors. Each line stays one line."""
    with caplog.at_level(logging.INFO, "worker"):
        async with start(add, fails, log_jobs="all") as worker_:
            await add.using(job_id="x\n00:00:00: 7:transfer \x1b[2J").enqueue(1, two="\u202e\x9b")
            await fails.enqueue("no\n[SQL: \x1b[2J]\n00:00:00: 7:transfer")
            await worker_.idle()
    shown = [record.getMessage() for record in caplog.records]
    assert all(line.isprintable() for line in shown)
    assert any("→ x\\n00:00:00: 7:transfer \\x1b[2J:add(one=1, two='\\u202e\\x9b')" in line for line in shown)
    assert any('● "1\\u202e\\x9b"' in line for line in shown)
    assert any(line.endswith("fails failed, ValueError: no …") for line in shown)
    assert "\n00:00:00" not in caplog.text
    assert "\x1b[2J" not in caplog.text
