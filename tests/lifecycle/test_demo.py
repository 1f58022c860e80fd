"""``python -m examples.demo`` as a user runs it: its output, its exit code, and the processes that it leaves."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from urllib.request import urlopen

import psutil
import pytest
import redis

import db
from tasks.models import create_tables
from tests.servers import Observer

PROJECT = Path(__file__).parent.parent.parent
_TIMEOUT = 60.0  # seconds, for a machine that is busy


class Demo:
    """One run of the demo, with the processes that it has started."""

    def __init__(self, *arguments: str, settings: Mapping[str, str], stdout: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.demo", *arguments],
            cwd=PROJECT,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started: set[psutil.Process] = set()
        self.names: set[str] = set()

    def wait(self) -> tuple[int, str, str]:
        """Wait for the end of the demo; its exit code, output and errors."""
        output, errors = self.process.communicate(timeout=_TIMEOUT)
        return self.process.returncode, output or "", errors

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the running demo has fulfilled a condition, and record the processes that it has started."""
        deadline = time.monotonic() + _TIMEOUT
        while not condition():
            assert self.process.poll() is None, self.wait()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                self.started.add(process)
                self.names.add(process.name())

    def worker(self) -> psutil.Process | None:
        """The demo's worker; None if there is none."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                if "worker.Settings" in child.cmdline():
                    return child
        return None

    def alive(self) -> list[psutil.Process]:
        """The recorded processes that still run after they had time to end."""
        _, alive = psutil.wait_procs(self.started, timeout=15)
        return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def demo(
    *arguments: str, settings: Mapping[str, str] = MappingProxyType({}), stdout: int = subprocess.PIPE
) -> Iterator[Demo]:
    """Run the demo, and kill it at the end of the block if it still runs."""
    running = Demo(*arguments, settings=settings, stdout=stdout)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.wait()
        for process in running.started:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def run(*arguments: str, settings: Mapping[str, str]) -> tuple[int, str, str]:
    """Run the demo to its end: exit code, output, errors."""
    with demo(*arguments, settings=settings) as running:
        return running.wait()


@pytest.fixture
def urls(database_url: str, redis_url: str) -> Mapping[str, str]:
    """Settings with the URLs of the test's servers."""
    return {"DATABASE_URL": database_url, "REDIS_URL": redis_url}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files that parse and two that do not."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "classes.py").write_text("class A:\n    def method(self): ...\n\nclass B: ...\n")
    (tmp_path / "functions.py").write_text("def f(): ...\nasync def g(): ...\n" + "\n" * 1000)
    (tmp_path / "broken.py").write_text("class Before: ...\ndef broken(:\n")
    (tmp_path / "[not] UTF-8.py").write_bytes(b"name = 'f\xfcr'\n")
    return tmp_path


@pytest.fixture
def large_folder(tmp_path: Path) -> Path:
    """Enough work for many seconds."""
    source = "".join(f"def f{number}(): ...\n" for number in range(60))
    for number in range(2000):
        (tmp_path / f"m{number}.py").write_text(source)
    return tmp_path


def test_the_demo_starts_servers_from_wheels_and_indexes_a_small_folder(folder: Path) -> None:
    """It prints the right numbers and leaves no process behind."""
    with demo(str(folder)) as running:
        running.until(lambda: running.worker() is not None)
        code, output, errors = running.wait()
        assert not running.alive()
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("DATABASE_URL and REDIS_URL are not set: ")
    rows = [line.strip("│ ").split("│") for line in lines if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["files", "3"],
        ["classes", "2"],
        ["functions", "3"],
        ["lines", "1,006"],
        ["largest modules", "lines"],
        ["functions.py", "1,002"],
        ["package/classes.py", "4"],
        ["package/__init__.py", "0"],
    ]
    assert "5 of 5 jobs done, 2 failed" in output
    failed = lines.index("2 files failed:")
    assert lines[failed + 1].startswith(
        "  [not] UTF-8.py  SyntaxError: (unicode error) 'utf-8' codec can't decode byte"
    )
    assert lines[failed + 2] == "  broken.py  SyntaxError: invalid syntax (broken.py, line 2)"
    assert lines[failed + 3 :] == [
        "Check: jobs that succeeded: 3, rows in the database: 3, with the ids that the jobs returned: holds",
        "Check: jobs that failed: 2, rows of these jobs: 0: holds",
        "Check: files that were indexed twice: 0: holds",
    ]


def test_a_worker_killed_in_the_middle_indexes_each_file_once_all_the_same(
    large_folder: Path, urls: Mapping[str, str]
) -> None:
    """A new worker indexes the rest."""
    for number in range(400, 2000):
        (large_folder / f"m{number}.py").unlink()
    code, output, errors = run(str(large_folder), settings=urls)
    assert (code, errors) == (0, "")
    assert re.search(r"^kill -9 \d+: the worker died after \d+ jobs, while it ran others\.", output, re.MULTILINE)
    assert "jobs that succeeded: 400, rows in the database: 400, with the ids that the jobs returned: holds" in output
    assert "files that were indexed twice: 0: holds" in output


async def test_a_second_run_on_given_servers_counts_only_its_own_rows(
    folder: Path, urls: Mapping[str, str], postgres: Observer
) -> None:
    """The rows of an earlier run do not count, and no queue of a run is left behind."""
    first, second = run(str(folder), settings=urls), run(str(folder), settings=urls)
    assert first[0] == second[0] == 0
    for _, output, _ in (first, second):
        assert output.startswith("DATABASE_URL and REDIS_URL are set: this run uses those servers.")
        assert "jobs that succeeded: 3, rows in the database: 3, with the ids" in output
    assert await postgres.fetchval("SELECT count(*) FROM modules") == 6
    assert keys_of_demos(urls) == []


def test_a_folder_without_python_files_is_no_failure(tmp_path: Path, urls: Mapping[str, str]) -> None:
    """The exit code is 0."""
    code, output, errors = run(str(tmp_path), settings=urls)
    assert (code, errors) == (0, "")
    assert "jobs that succeeded: 0, rows in the database: 0" in output


async def test_rows_that_do_not_match_the_succeeded_jobs_fail_the_demo(
    folder: Path, urls: Mapping[str, str], postgres: Observer
) -> None:
    """If a row has another id than its job returned, the exit code is 1, even if the numbers are equal."""
    database = db.Database(urls["DATABASE_URL"], default=True)
    await create_tables()
    await database.dispose()
    db.set_default_database(None)
    await postgres.execute("ALTER TABLE definitions DROP CONSTRAINT definitions_module_id_fkey")
    await postgres.execute(
        "CREATE RULE change_id AS ON INSERT TO definitions DO ALSO "
        "UPDATE modules SET id = id + 1000 WHERE id = NEW.module_id AND path LIKE '%classes.py'"
    )
    code, output, _ = run(str(folder), settings=urls)
    assert code == 1
    assert (
        "jobs that succeeded: 3, rows in the database: 3, with other ids than the jobs returned: DOES NOT HOLD"
        in output
    )


def test_ctrl_c_stops_the_worker_and_the_servers(large_folder: Path) -> None:
    """It prints one line and leaves no process behind."""
    with demo(str(large_folder)) as running:
        wait_for_first_jobs(running)
        running.process.send_signal(signal.SIGINT)
        code, _, errors = running.wait()
        assert not running.alive()
    assert (code, errors) == (130, "Interrupted. The worker and the servers that the demo started are stopped.\n")


def test_keep_leaves_the_worker_a_web_application_and_the_dashboard_running(folder: Path) -> None:
    """Their addresses are printed and answer. Ctrl-C ends all of them."""
    reading, writing = os.pipe()
    with demo("--keep", str(folder), stdout=writing) as running:
        os.close(writing)
        with os.fdopen(reading) as output:
            lines = list(iter(output.readline, "The worker goes on. Ctrl-C ends everything.\n"))
            addresses = [found[0] for line in lines if (found := re.search(r"http://\S+", line))]
            pages = [page(address) for address in addresses]
            running.until(lambda: True)
            running.process.send_signal(signal.SIGINT)
            code, _, _ = running.wait()
        assert not running.alive()
    assert code == 130
    assert ["swagger" in pages[0], "Overview · Census" in pages[1]] == [True, True]
    assert len(running.started) >= 5  # the servers, the worker, and both


def test_sigterm_stops_the_demo_and_removes_its_jobs_from_a_given_redis(
    large_folder: Path, urls: Mapping[str, str]
) -> None:
    """The jobs that have not run are removed."""
    with demo(str(large_folder), settings=urls) as running:
        wait_for_first_jobs(running)
        assert keys_of_demos(urls)
        running.process.terminate()
        code, _, errors = running.wait()
        assert not running.alive()
    assert (code, errors) == (143, "Terminated. The worker and the servers that the demo started are stopped.\n")
    assert keys_of_demos(urls) == []


def test_the_worker_and_the_servers_end_when_the_demo_is_killed(large_folder: Path) -> None:
    """No process outlives a kill -9 of the demo."""
    with demo(str(large_folder)) as running:
        wait_for_first_jobs(running)
        assert running.worker() in running.started
        assert {"redis-server", "postgres"} <= running.names
        running.process.kill()
        running.wait()
        assert not running.alive()


def test_a_worker_that_dies_ends_the_demo_with_exit_code_1(large_folder: Path, urls: Mapping[str, str]) -> None:
    """The demo prints one line instead of waiting forever."""
    with demo(str(large_folder), settings=urls) as running:
        wait_for_first_jobs(running)
        worker = running.worker()
        assert worker is not None
        worker.kill()
        code, _, errors = running.wait()
        assert not running.alive()
    assert code == 1
    assert errors.startswith("The worker ended with exit code -9. The end of its log: ")
    assert errors.count("\n") == 1


def test_a_terminal_gets_a_progress_bar(folder: Path, urls: Mapping[str, str]) -> None:
    """The bar takes the place of the lines of progress."""
    ours, theirs = pty.openpty()
    with demo(str(folder), stdout=theirs, settings={**urls, "TERM": "xterm", "COLUMNS": "100"}) as running:
        os.close(theirs)
        output = b""
        with suppress(OSError):  # Linux' way to say that the other end is closed
            while some := os.read(ours, 10_000):
                output += some
        code, _, errors = running.wait()
    os.close(ours)
    assert (code, errors) == (0, "")
    assert "━".encode() in output
    assert b"5/5" in output
    assert b"jobs done" not in output


def test_settings_of_other_workers_do_not_change_the_demo(folder: Path, urls: Mapping[str, str]) -> None:
    """Variables for terminals do not change it either."""
    others = {"WORKER_QUEUES": "high,low", "WORKER_REGISTRY": "shop.registry", "WORKER_KEEP_RESULT": "0"}
    code, output, _ = run(str(folder), settings={**urls, **others, "FORCE_COLOR": "1"})
    assert code == 0
    assert "5 of 5 jobs done, 2 failed" in output
    assert "\x1b" not in output


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["/no/such/folder"], {}, "/no/such/folder is not a folder that can be read. Example: make demo SOURCE=~/code"),
        ([__file__], {}, f"{__file__} is not a folder that can be read. Example: make demo SOURCE=~/code"),
        (["."], {"REDIS_URL": "nonsense"}, "REDIS_URL: "),
        (["."], {"DATABASE_URL": "nonsense"}, "DATABASE_URL: "),
        (["."], {"DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/d"}, "DATABASE_URL: "),
        (["."], {"REDIS_URL": "redis://:secret@127.0.0.1:1"}, "REDIS_URL: "),
    ],
    ids=["no folder", "file", "wrong Redis URL", "wrong database URL", "no database there", "no Redis there"],
)
def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(
    urls: Mapping[str, str], arguments: list[str], settings: Mapping[str, str], message: str
) -> None:
    """The line names the mistake."""
    code, _, errors = run(*arguments, settings={**urls, **settings})
    assert code == 2
    assert errors.startswith(message)
    assert errors.count("\n") == 1
    assert "secret" not in errors


def test_help_lists_what_the_demo_accepts() -> None:
    """`--help` exits with 0."""
    code, output, _ = run("--help", settings={})
    assert code == 0
    for word in ("folder", "REDIS_URL", "DATABASE_URL"):
        assert word in output


def page(address: str) -> str:
    with urlopen(address, timeout=_TIMEOUT) as response:
        text: bytes = response.read()
    return text.decode()


def keys_of_demos(urls: Mapping[str, str]) -> list[bytes]:
    """The queues of demos, and what else is named after them."""
    with closing(redis.Redis.from_url(urls["REDIS_URL"])) as client:
        return list(client.scan_iter("tandem:demo:*"))


def wait_for_first_jobs(running: Demo) -> None:
    """Wait until the demo has shown that jobs were done."""
    assert running.process.stdout is not None
    for line in running.process.stdout:
        if "jobs done" in line and not line.startswith("0 of"):
            break
    running.until(lambda: running.worker() is not None)
