"""`python -m worker jobs`: list, show, retry and discard failed jobs."""

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.commands import bare_environment
from tests.servers import Observer
from tests.waiting import eventually
from tests.worker.cli.test_cli import run
from tests.worker.engine.conftest import StartWorker
from worker import Broker, Retry, task
from worker.message import Message, encode

_INSERT = """
    INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, payload, tries, error, traceback, finished_at)
    SELECT $1 || g, 1000, $2, 'mail', $3, $4, 3, $5, 'Traceback: here', 1700000000000 + g FROM generate_series(1, $6) g
"""


class JobsCommand:
    """Runs the command on this test's servers."""

    def __init__(self, folder: Path, postgres: Observer, settings: dict[str, str]) -> None:
        self._folder = folder
        self._postgres = postgres
        self._settings = settings

    async def add_failed(
        self, prefix: str, count: int = 1, *, task: str = "send", error: str = "ValueError: no"
    ) -> None:
        """Add so many failed jobs; their ids are `prefix` with a number from 1."""
        payload = encode(task, b'{"to":"ann"}', 1_000)
        await self._postgres.execute(_INSERT, prefix, task, "failed", payload, error, count)

    def __call__(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return run("jobs", *arguments, cwd=self._folder, **(self._settings | settings))

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command than `jobs`."""
        return run(*arguments, cwd=self._folder, **self._settings)

    def answering(self, answer: str, *arguments: str) -> tuple[int, str]:
        """Run it on a terminal and answer its question; return the exit code and the output."""
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "worker", "jobs", *arguments]
        environment = bare_environment(**self._settings)
        os.write(ours, answer.encode())
        done = subprocess.run(
            command, cwd=self._folder, env=environment, stdin=theirs, capture_output=True, text=True, check=False
        )
        os.close(ours)
        os.close(theirs)
        return done.returncode, done.stdout + done.stderr

    def on_terminal(self, *arguments: str) -> str:
        """Run it on a terminal and return its output."""
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "worker", "jobs", *arguments]
        environment = bare_environment(**self._settings, TERM="xterm-256color")
        with subprocess.Popen(command, cwd=self._folder, env=environment, stdout=theirs, stderr=theirs):
            os.close(theirs)
            output = b""
            with suppress(OSError):  # the end of what a terminal's other side has written
                while chunk := os.read(ours, 4096):
                    output += chunk
        os.close(ours)
        return output.decode()

    async def states(self) -> dict[str, int]:
        rows = await self._postgres.fetch("SELECT state, count(*) AS count FROM tandem_jobs GROUP BY state")
        return {row["state"]: row["count"] for row in rows}


@pytest.fixture
def jobs(tmp_path: Path, postgres: Observer, database_url: str, redis_url: str) -> JobsCommand:
    return JobsCommand(tmp_path, postgres, {"DATABASE_URL": database_url, "REDIS_URL": redis_url})


def queued(observer: redis.Redis) -> set[str]:
    members: Any = observer.zrange("mail", 0, -1)
    return set(members)


class TestList:
    async def test_list_shows_the_latest_failed_jobs_and_counts_them_by_task_and_error(self, jobs: JobsCommand) -> None:
        """One row for each of the latest jobs, then the number of jobs by task and error."""
        await jobs.add_failed("a", 30)
        await jobs.add_failed("b", 2, task="bill", error="KeyError: 'x'")
        done = jobs("list", "--limit", "3")
        lines = done.stdout.splitlines()
        assert (done.returncode, done.stderr) == (0, "")
        assert lines[0].split() == ["id", "task", "queue", "tries", "enqueued", "ended", "error"]
        assert " ".join(lines[1].split()) == (
            "a30 send mail 3 1970-01-01 00:00:01 UTC 2023-11-14 22:13:20 UTC ValueError: no"
        )
        assert lines[4:] == [
            "32 failed jobs, of which 3 are shown",
            "       30  send  ValueError: no",
            "        2  bill  KeyError: 'x'",
        ]
        assert "2 failed jobs\n" in jobs("list", "--task", "bill").stdout
        assert "2 failed jobs\n" in jobs("list", "--error", "keyerror").stdout
        assert jobs("list", "--state", "done").stdout == "0 done jobs\n"

    async def test_list_as_json_is_one_document_with_iso_times(self, jobs: JobsCommand) -> None:
        """`--json` prints one document, with times in ISO 8601."""
        await jobs.add_failed("a", 2)
        found = json.loads(jobs("list", "--json", "--limit", "1").stdout)
        assert found["jobs"] == [
            {
                "id": "a2",
                "enqueued_at": "1970-01-01T00:00:01Z",
                "task": "send",
                "queue": "mail",
                "tries": 3,
                "due": None,
                "finished_at": "2023-11-14T22:13:20.002000Z",
                "error": "ValueError: no",
            }
        ]
        assert found["counts"] == [{"jobs": 2, "task": "send", "error": "ValueError: no"}]

    async def test_list_shows_one_line_a_job_and_groups_errors_that_differ_in_numbers(self, jobs: JobsCommand) -> None:
        """An error of many lines takes one line; errors that differ only in numbers are counted together."""
        for number in (6, 7, 8):
            await jobs.add_failed(
                f"o{number}-", error=f"ValueError: card of order {number}\n[SQL: SELECT 1]\n(Background)"
            )
        lines = jobs("list").stdout.splitlines()
        assert [line.rpartition("  ")[2] for line in lines[1:4]] == [
            f"ValueError: card of order {number} …" for number in (8, 7, 6)
        ]
        assert lines[4:] == ["3 failed jobs", "        3  send  ValueError: card of order #"]
        shown = jobs("show", "o6-1").stdout
        indent = " " * 12
        assert f"  error     ValueError: card of order 6\n{indent}[SQL: SELECT 1]\n{indent}(Background)\n" in shown


class TestUntrustedText:
    """Ids, names and errors cannot forge a line or control the terminal."""

    HOSTILE = "x\n00:00:00: 7:transfer \x1b[2J\x9b\u202e[red]:bomb:"
    SHOWN = "x\\n00:00:00: 7:transfer \\x1b[2J\\x9b\\u202e[red]:bomb:"

    async def test_untrusted_text_is_escaped_in_a_pipe_and_unchanged_in_json(self, jobs: JobsCommand) -> None:
        """`list`, `show` and `retry` show control characters as escapes; `--json` has the text itself."""
        await jobs.add_failed(self.HOSTILE, task=self.HOSTILE, error=f"ValueError: {self.HOSTILE}")
        listed, shown = jobs("list").stdout, jobs("show", f"{self.HOSTILE}1").stdout
        refused = jobs("retry", self.HOSTILE).stderr + jobs("show", self.HOSTILE).stderr
        for output in (listed, shown, refused):
            assert self.SHOWN in output
            assert "\n00:00:00" not in output
            assert not {"\x1b", "\x9b", "\u202e"} & set(output)
        assert json.loads(jobs("list", "--json").stdout)["jobs"][0]["id"] == f"{self.HOSTILE}1"

    async def test_untrusted_text_is_escaped_on_a_terminal_too(self, jobs: JobsCommand) -> None:
        """Control characters are shown as escapes, also where colours are printed."""
        await jobs.add_failed("a", error=f"ValueError: {self.HOSTILE}")
        listed, shown = jobs.on_terminal("list"), jobs.on_terminal("show", "a1")
        for output in (listed, shown):
            assert "\x1b[" in output
            assert "\x1b[2J" not in output
            assert not {"\x9b", "\u202e"} & set(output)
        assert "[red]:bomb:" in shown


class TestShow:
    async def test_show_prints_arguments_times_error_and_traceback_and_the_failure_before_a_retry(
        self, jobs: JobsCommand
    ) -> None:
        """Shows arguments, times, error and traceback, and after a retry the earlier failure."""
        await jobs.add_failed("a")
        done = jobs("show", "a1")
        assert done.returncode == 0
        assert done.stdout.splitlines() == [
            "a1  failed",
            "  task      send",
            "  queue     mail",
            '  kwargs    {"to":"ann"}',
            "  enqueued  1970-01-01 00:00:01 UTC",
            "  ended     2023-11-14 22:13:20 UTC",
            "  tries     3",
            "  error     ValueError: no",
            "  Traceback: here",
        ]
        assert jobs("retry", "a1").returncode == 0
        done = jobs("show", "a1")
        assert done.stdout.startswith("a1  pending\n")
        assert "  retried after  2023-11-14 22:13:20 UTC  tries 3  ValueError: no\n" in done.stdout

    async def test_show_says_that_the_arguments_of_a_done_job_were_dropped(
        self, jobs: JobsCommand, postgres: Observer
    ) -> None:
        """And which setting keeps them. A retry of such a job is refused."""
        await postgres.execute(_INSERT, "d", "send", "done", None, None, 1)
        shown = jobs("show", "d1")
        assert "  arguments dropped when the job was done (WORKER_KEEP_ARGUMENTS)\n" in shown.stdout
        retried = jobs("retry", "d1")
        assert retried.returncode == 1
        assert "d1" in retried.stdout + retried.stderr
        assert await jobs.states() == {"done": 1}

    def test_show_of_an_unknown_id_is_one_line_and_exit_code_1(self, jobs: JobsCommand) -> None:
        """An id that the ledger does not have is one line, and the exit code is 1."""
        done = jobs("show", "nobody")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "nobody: neither the ledger nor Redis has such a job: tandem jobs why nobody\n"
        done = jobs("show", "nobody", REDIS_URL="")
        assert done.stderr == "nobody: the ledger has no such job; to look in Redis, too, set REDIS_URL\n"

    def test_show_finds_a_job_without_a_row_in_redis(self, jobs: JobsCommand, tmp_path: Path) -> None:
        """A job that was enqueued outside of a transaction: while it waits, and with its result when it has ended."""
        (tmp_path / "tasks").mkdir()
        (tmp_path / "tasks/__init__.py").touch()
        (tmp_path / "tasks/mail.py").write_text(
            "from worker import task\n\n@task\nasync def send(to: str) -> str:\n    return f'sent to {to}'\n"
        )
        (tmp_path / "tasks/registry.py").write_text('TASKS = ("tasks.mail.send",)\n')
        assert jobs.command("enqueue", "send", "--arg", "to=ann", "--id", "a1").returncode == 0
        waiting = jobs("show", "a1")
        assert (waiting.returncode, waiting.stderr) == (0, "")
        assert waiting.stdout.splitlines()[:4] == [
            "a1  waiting",
            "  task      send",
            "  queue     arq:queue",
            '  kwargs    {"to":"ann"}',
        ]
        assert jobs.command("run", "--burst").returncode == 0
        done = jobs("show", "a1").stdout.splitlines()
        assert done[:4] == ["a1  done", *waiting.stdout.splitlines()[1:4]]
        assert done[-3:-1] == ["  tries     1", '  result    "sent to ann"']
        assert re.match(r"  attempt +try 1  done  on \S+", done[-1])


class TestRetry:
    async def test_retry_by_id_queues_the_named_jobs_and_reports_the_others(
        self, jobs: JobsCommand, observer: redis.Redis
    ) -> None:
        """The named jobs are queued without a question; an unknown id, or a job that has not failed, is exit code 1."""
        await jobs.add_failed("a", 3)
        done = jobs("retry", "a1", "a2", "nobody", "a1")
        assert (done.returncode, done.stdout) == (1, "2 retried, 1 not retried\n")
        assert done.stderr == "nobody: the ledger has no such job: tandem jobs why nobody\n"
        assert queued(observer) == {"a1", "a2"}
        payload: Any = observer.get("arq:job:a1")
        assert Message.decode("a1", payload.encode()).in_ledger
        done = jobs("retry", "a1")
        assert done.returncode == 1
        assert done.stderr == "a1: the job is pending, not failed\n"
        assert await jobs.states() == {"failed": 1, "pending": 2}

    async def test_retry_in_bulk_queues_all_matching_jobs_over_several_batches(
        self, jobs: JobsCommand, observer: redis.Redis
    ) -> None:
        """All jobs of a task are retried, in more than one batch; with --yes there is no question."""
        await jobs.add_failed("a", 1_200)
        await jobs.add_failed("b", 2, task="bill")
        done = jobs("retry", "--task", "send", "--yes")
        assert (done.returncode, done.stdout, done.stderr) == (0, "1,200 retried\n", "")
        assert await jobs.states() == {"failed": 2, "pending": 1_200}
        assert len(queued(observer)) == 1_200
        assert jobs("retry", "--all", "--yes").stdout == "2 retried\n"
        assert jobs("retry", "--all").stdout == "0 retried\n"

    async def test_retry_in_bulk_asks_on_a_terminal_and_refuses_without_one(self, jobs: JobsCommand) -> None:
        """On a terminal it counts and asks; without one it refuses, unless --yes is given."""
        await jobs.add_failed("a", 2)
        done = jobs("retry", "--all")
        assert done.returncode == 2
        assert done.stderr.endswith("stdin is not a terminal: pass --yes to retry 2 jobs\n")
        assert "        2  send  ValueError: no\n" in done.stderr
        code, printed = jobs.answering("n\n", "retry", "--all")
        assert (code, await jobs.states()) == (1, {"failed": 2})
        assert "Retry 2 jobs? [y/N]" in printed
        code, printed = jobs.answering("y\n", "retry", "--all")
        assert (code, await jobs.states()) == (0, {"pending": 2})

    async def test_retry_without_redis_makes_the_jobs_pending_and_says_so(self, jobs: JobsCommand) -> None:
        """The jobs become pending all the same, and one line says that a worker will publish them."""
        await jobs.add_failed("a", 2)
        done = jobs("retry", "--all", "--yes", REDIS_URL="redis://127.0.0.1:1")
        assert (done.returncode, done.stdout) == (0, "2 retried\n")
        assert done.stderr.startswith("Redis does not accept the jobs (")
        assert done.stderr.count("\n") == 1
        assert await jobs.states() == {"pending": 2}


class TestDiscard:
    async def test_discard_by_error_discards_only_matching_jobs(self, jobs: JobsCommand, observer: redis.Redis) -> None:
        """The jobs whose error matches are discarded, and no others."""
        await jobs.add_failed("a", 2)
        await jobs.add_failed("b", 3, error="KeyError: 'x'")
        done = jobs("discard", "--error", "KeyError", "--yes")
        assert (done.returncode, done.stdout) == (0, "3 discarded\n")
        assert await jobs.states() == {"failed": 2, "discarded": 3}
        assert jobs("discard", "b1").stderr == "b1: the job is discarded, not failed\n"
        assert queued(observer) == set()


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["retry"], "give either ids or --task, --queue, --error or --all. Example: jobs retry --task send"),
            (["discard", "a1", "--all"], "give either ids or --task"),
            (["retry", "--all", "--task", "send"], "--all excludes the filters: leave out"),
            (["list", "--state", "lost"], "Invalid value for '--state'"),
        ],
    )
    def test_an_unclear_selection_is_one_line_and_exit_code_2(
        self, jobs: JobsCommand, arguments: list[str], line: str
    ) -> None:
        """A selection of jobs that is missing or contradicts itself is refused."""
        done = jobs(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(line)
        assert done.stderr.count("\n") == 1

    async def test_a_missing_ledger_table_names_the_command_that_creates_it(
        self, jobs: JobsCommand, postgres: Observer
    ) -> None:
        """Without the table, one line names the command that creates it."""
        await postgres.execute("DROP TABLE tandem_jobs")
        for arguments in (["list"], ["show", "a"], ["retry", "a"], ["discard", "--all"]):
            done = jobs(*arguments)
            assert done.returncode == 1
            assert done.stderr == "the ledger's table tandem_jobs is missing: run 'python -m worker migrate'\n"

    def test_without_a_command_the_help_is_shown_and_the_exit_code_is_2(self, jobs: JobsCommand) -> None:
        """Without a command its help is shown, and 2 is the exit code."""
        done = jobs()
        assert done.returncode == 2
        assert "discard" in done.stdout


@task(max_tries=3)
async def come_back() -> None:
    raise Retry(60)


async def test_show_names_the_worker_of_an_attempt_that_was_put_back(
    tmp_path: Path, database_url: str, redis_url: str, postgres: Observer, broker: Broker, start: StartWorker
) -> None:
    """With the number of the try and the error."""
    job = await come_back.enqueue()
    async with start(come_back, id="first"):
        await eventually(lambda: broker.redis.exists(f"arq:retry:{job.job_id}"))
    urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    shown = await asyncio.to_thread(run, "jobs", "show", job.job_id, cwd=tmp_path, **urls)
    assert shown.returncode == 0, shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if "attempt" in line]
    assert line.startswith("  attempt  try 1  put back  on first  ")
    assert " UTC  Retry" in line
