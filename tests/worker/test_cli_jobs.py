"""`python -m worker jobs`, as somebody looks after failed jobs with it."""

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.commands import bare_environment
from tests.servers import Observer
from tests.worker.test_cli import run
from worker.message import Message, encode

_INSERT = """
    INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, payload, tries, error, traceback, finished_at)
    SELECT $1 || g, 1000, $2, 'mail', $3, $4, 3, $5, 'Traceback: here', 1700000000000 + g FROM generate_series(1, $6) g
"""


class Desk:
    """The command, on this test's servers."""

    def __init__(self, folder: Path, postgres: Observer, settings: dict[str, str]) -> None:
        self._folder = folder
        self._postgres = postgres
        self._settings = settings

    async def failed(self, prefix: str, count: int = 1, *, task: str = "send", error: str = "ValueError: no") -> None:
        """There are that many failed jobs, `prefix` with a number from 1."""
        payload = encode(task, b'{"to":"ann"}', 1_000)
        await self._postgres.execute(_INSERT, prefix, task, "failed", payload, error, count)

    def __call__(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return run("jobs", *arguments, cwd=self._folder, **(self._settings | settings))

    def answering(self, answer: str, *arguments: str) -> tuple[int, str]:
        """Run it on a terminal, and answer its question; the exit code, and what it printed."""
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
        """Run it on a terminal; what it printed there."""
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
def desk(tmp_path: Path, postgres: Observer, database_url: str, redis_url: str) -> Desk:
    return Desk(tmp_path, postgres, {"DATABASE_URL": database_url, "REDIS_URL": redis_url})


def queued(observer: redis.Redis) -> set[str]:
    members: Any = observer.zrange("mail", 0, -1)
    return set(members)


class TestList:
    async def test_failed_jobs_and_their_counts(self, desk: Desk) -> None:
        """A row for each of the latest, then how many there are, by task and error."""
        await desk.failed("a", 30)
        await desk.failed("b", 2, task="bill", error="KeyError: 'x'")
        done = desk("list", "--limit", "3")
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
        assert "2 failed jobs\n" in desk("list", "--task", "bill").stdout
        assert "2 failed jobs\n" in desk("list", "--error", "keyerror").stdout
        assert desk("list", "--state", "done").stdout == "0 done jobs\n"

    async def test_as_json(self, desk: Desk) -> None:
        """`--json` is one document, with times as in ISO 8601."""
        await desk.failed("a", 2)
        found = json.loads(desk("list", "--json", "--limit", "1").stdout)
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

    async def test_one_line_for_each(self, desk: Desk) -> None:
        """An error of many lines takes one in the list; what differs in numbers only is counted together."""
        for number in (6, 7, 8):
            await desk.failed(f"o{number}-", error=f"ValueError: card of order {number}\n[SQL: SELECT 1]\n(Background)")
        lines = desk("list").stdout.splitlines()
        assert [line.rpartition("  ")[2] for line in lines[1:4]] == [
            f"ValueError: card of order {number} …" for number in (8, 7, 6)
        ]
        assert lines[4:] == ["3 failed jobs", "        3  send  ValueError: card of order #"]
        shown = desk("show", "o6-1").stdout
        indent = " " * 12
        assert f"  error     ValueError: card of order 6\n{indent}[SQL: SELECT 1]\n{indent}(Background)\n" in shown


class TestTextFromOutside:
    """Ids, names and errors are shown as what they are, on a terminal and in a pipe."""

    HOSTILE = "x\n00:00:00: 7:transfer \x1b[2J\x9b\u202e[red]:bomb:"
    SHOWN = "x\\n00:00:00: 7:transfer \\x1b[2J\\x9b\\u202e[red]:bomb:"

    async def test_in_a_pipe(self, desk: Desk) -> None:
        """Neither a list nor a single job forges a line or speaks to the terminal; `--json` has the text itself."""
        await desk.failed(self.HOSTILE, task=self.HOSTILE, error=f"ValueError: {self.HOSTILE}")
        listed, shown = desk("list").stdout, desk("show", f"{self.HOSTILE}1").stdout
        refused = desk("retry", self.HOSTILE).stderr + desk("show", self.HOSTILE).stderr
        for output in (listed, shown, refused):
            assert self.SHOWN in output
            assert "\n00:00:00" not in output
            assert not {"\x1b", "\x9b", "\u202e"} & set(output)
        assert json.loads(desk("list", "--json").stdout)["jobs"][0]["id"] == f"{self.HOSTILE}1"

    async def test_on_a_terminal(self, desk: Desk) -> None:
        """So it is where colours are printed."""
        await desk.failed("a", error=f"ValueError: {self.HOSTILE}")
        listed, shown = desk.on_terminal("list"), desk.on_terminal("show", "a1")
        for output in (listed, shown):
            assert "\x1b[" in output
            assert "\x1b[2J" not in output
            assert not {"\x9b", "\u202e"} & set(output)
        assert "[red]:bomb:" in shown


class TestShow:
    async def test_all_that_is_known(self, desk: Desk) -> None:
        """Arguments, times, error and traceback; and how it ended before it was retried."""
        await desk.failed("a")
        done = desk("show", "a1")
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
        assert desk("retry", "a1").returncode == 0
        done = desk("show", "a1")
        assert done.stdout.startswith("a1  pending\n")
        assert "  retried after  2023-11-14 22:13:20 UTC  tries 3  ValueError: no\n" in done.stdout

    def test_an_unknown_id(self, desk: Desk) -> None:
        """A line, and 1."""
        done = desk("show", "nobody")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "nobody: the ledger has no such job\n"


class TestRetry:
    async def test_by_id(self, desk: Desk, observer: redis.Redis) -> None:
        """Those that are named are queued at once, without a question; what cannot be is told, and makes the exit 1."""
        await desk.failed("a", 3)
        done = desk("retry", "a1", "a2", "nobody", "a1")
        assert (done.returncode, done.stdout) == (1, "2 retried, 1 not\n")
        assert done.stderr == "nobody: the ledger has no such job\n"
        assert queued(observer) == {"a1", "a2"}
        payload: Any = observer.get("arq:job:a1")
        assert Message.decode("a1", payload.encode()).in_ledger
        done = desk("retry", "a1")
        assert done.returncode == 1
        assert done.stderr == "a1: it has not failed: it is pending\n"
        assert await desk.states() == {"failed": 1, "pending": 2}

    async def test_in_bulk(self, desk: Desk, observer: redis.Redis) -> None:
        """All of a kind, more than one batch; with --yes nobody is asked."""
        await desk.failed("a", 1_200)
        await desk.failed("b", 2, task="bill")
        done = desk("retry", "--task", "send", "--yes")
        assert (done.returncode, done.stdout, done.stderr) == (0, "1,200 retried\n", "")
        assert await desk.states() == {"failed": 2, "pending": 1_200}
        assert len(queued(observer)) == 1_200
        assert desk("retry", "--all", "--yes").stdout == "2 retried\n"
        assert desk("retry", "--all").stdout == "0 retried\n"

    async def test_somebody_has_to_agree(self, desk: Desk) -> None:
        """On a terminal it counts and asks; without one it refuses, unless it was told --yes."""
        await desk.failed("a", 2)
        done = desk("retry", "--all")
        assert done.returncode == 2
        assert done.stderr.endswith("nobody is here to be asked: say --yes to retry 2 jobs\n")
        assert "        2  send  ValueError: no\n" in done.stderr
        code, printed = desk.answering("n\n", "retry", "--all")
        assert (code, await desk.states()) == (1, {"failed": 2})
        assert "Retry 2 jobs? [y/N]" in printed
        code, printed = desk.answering("y\n", "retry", "--all")
        assert (code, await desk.states()) == (0, {"pending": 2})

    async def test_redis_is_away(self, desk: Desk) -> None:
        """The jobs are pending all the same, and it is said who will see to them."""
        await desk.failed("a", 2)
        done = desk("retry", "--all", "--yes", REDIS_URL="redis://127.0.0.1:1")
        assert (done.returncode, done.stdout) == (0, "2 retried\n")
        assert done.stderr.startswith("Redis does not take them (")
        assert done.stderr.count("\n") == 1
        assert await desk.states() == {"pending": 2}


class TestDiscard:
    async def test_by_error(self, desk: Desk, observer: redis.Redis) -> None:
        """What matches is put aside, and nothing else."""
        await desk.failed("a", 2)
        await desk.failed("b", 3, error="KeyError: 'x'")
        done = desk("discard", "--error", "KeyError", "--yes")
        assert (done.returncode, done.stdout) == (0, "3 discarded\n")
        assert await desk.states() == {"failed": 2, "discarded": 3}
        assert desk("discard", "b1").stderr == "b1: it has not failed: it is discarded\n"
        assert queued(observer) == set()


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["retry"], "say which: ids, or --task, --queue, --error or --all. Example: jobs retry --task send"),
            (["discard", "a1", "--all"], "say which: ids, or --task"),
            (["retry", "--all", "--task", "send"], "--all means all: leave out"),
            (["list", "--state", "lost"], "Invalid value for '--state'"),
        ],
    )
    def test_a_line_and_exit_2(self, desk: Desk, arguments: list[str], line: str) -> None:
        """What is meant has to be clear."""
        done = desk(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(line)
        assert done.stderr.count("\n") == 1

    async def test_no_ledger(self, desk: Desk, postgres: Observer) -> None:
        """Without the table the command that makes it is named."""
        await postgres.execute("DROP TABLE tandem_jobs")
        for arguments in (["list"], ["show", "a"], ["retry", "a"], ["discard", "--all"]):
            done = desk(*arguments)
            assert done.returncode == 1
            assert done.stderr == "the ledger's table tandem_jobs is missing: run 'python -m worker migrate'\n"

    def test_help(self, desk: Desk) -> None:
        """Without a command its help is shown, and 2 is the exit code."""
        done = desk()
        assert done.returncode == 2
        assert "discard" in done.stdout
