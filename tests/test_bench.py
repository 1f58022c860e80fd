"""The bench runs, counts what it measures, and leaves nothing behind. These tests do not ask how fast anything is."""

import asyncio
import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest
import redis
from rich.console import Console

from bench.contender_api import Table
from bench.contenders import ARQ, Contender, Library, enter
from bench.context import BenchContext
from bench.environments import Environment, NotInstalledError, python_for
from bench.figures import Figures, percentile
from bench.interleaved import InterleavedProgram, count_rows
from bench.machine import Steal, stolen
from bench.process import ContenderError, Process
from bench.progress import Progress
from bench.round_trips import RoundTripCounter
from bench.servers import PostgresServer, RedisServer, Servers
from bench.targets import Target, TargetResult
from bench.workload import QUICK
from tests.conftest import StartRedis
from tests.servers import as_dsn
from tests.waiting import eventually

_BENCH = [sys.executable, "-m", "bench", "--quick", "--against", "arq"]


@pytest.mark.parametrize("root", ["unreadable", "a" * 300])
def test_an_unreadable_pyenv_folder_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    """The pyenv of another user is skipped. Another Python serves, or the peer is reported as not installed."""
    folder = tmp_path / root
    if root == "unreadable":
        folder.mkdir(mode=0)
    monkeypatch.setenv("PYENV_ROOT", str(folder))
    with pytest.raises(NotInstalledError, match=r"needs Python 3\.99 or newer, and there is none"):
        python_for((3, 99))


def test_a_quick_run_writes_a_table_and_a_picture(tmp_path: Path) -> None:
    """Tandem and stock arq are measured side by side, and what came of it is written down with the targets."""
    run = subprocess.run(
        [*_BENCH, "--only", "noop,insert,bare,enqueue,backlog", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    page = (tmp_path / "results.md").read_text()
    assert (
        "| no-op jobs, one process, concurrency 32, results kept, validation on: against arq | 30.0 x | 60.0 x |"
        in page
    )
    assert page.count("\n| Tandem, @task(once=False) | ") == 2
    assert "\n| Tandem, effects once | " in page
    assert "\n| a bare loop, the ledger's statement too | " in page
    assert "\n| nothing else, by turns with 10,000 jobs queued | " in page
    assert "\n| nothing else, by turns with 20 jobs running elsewhere | " in page
    assert "| one enqueue: round trips | 1.0 |  | 1.0 | reached |" in page
    assert "Unfinished" not in page
    picture = ElementTree.parse(tmp_path / "results.svg").getroot()
    assert any((text.text or "").startswith("Tandem ") for text in picture.iter("{http://www.w3.org/2000/svg}text"))


async def test_ctrl_c_leaves_no_process_of_the_bench_behind() -> None:
    """Neither a server nor a worker nor a contender's program survives Ctrl-C."""
    command = [*_BENCH, "--only", "latency"]
    run = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        this = psutil.Process(run.pid)
        await eventually(lambda: any(map(_is_worker, this.children(recursive=True))), timeout=60)
        started = this.children(recursive=True)
        run.send_signal(signal.SIGINT)
        said, _ = await asyncio.wait_for(run.communicate(), 30)
    finally:
        if run.returncode is None:
            run.kill()
            await run.wait()
    assert run.returncode == 128 + signal.SIGINT, said
    assert b"everything that was started is stopped" in said
    await eventually(lambda: not any(map(_lives, started)))


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "worker.Settings" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_unknown_scenario_is_refused_with_the_known_ones() -> None:
    """The error lists the scenarios."""
    run = subprocess.run([*_BENCH, "--only", "nope"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "'nope' is not one of noop, insert, bare, chunks, enqueue" in run.stderr


def test_a_peer_that_is_not_installed_is_listed_as_absent(contender: Contender) -> None:
    """The results say why it is absent."""
    servers = Servers(contender.redis, contender.postgres, contender.redis, contender.postgres, None)
    missing = Library("none", "None", "none", "none", "", environment=Environment("never-made", ()))
    assert enter(missing, servers) == "it is not installed: `make bench-peers`"


def test_a_peer_that_needs_another_redis_is_listed_as_absent(contender: Contender) -> None:
    """The reason names the server that cannot serve it."""
    servers = Servers(contender.redis, contender.postgres, contender.redis, contender.postgres, None)
    demanding = Library("arq", "arq", "arq", "bench.peers.arq", "", needs_functions=True)
    reason = enter(demanding, servers)
    assert isinstance(reason, str)
    assert reason.startswith(f"it needs functions in Redis, which {contender.redis.title} has not")


@pytest.mark.parametrize(
    ("shares", "counts"),
    [([0.0], 1), ([0.3, 0.04], 2), ([0.3, 0.2, 0.25], 2), ([None], 1)],
    ids=["quiet", "quiet then", "never quiet", "not counted"],
)
def test_a_measurement_that_the_host_disturbed_is_repeated(
    shares: list[float | None], counts: int, contender: Contender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first undisturbed measurement counts, or else the least disturbed one."""
    servers = Servers(contender.redis, contender.postgres, contender.redis, contender.postgres, None)
    context = BenchContext(replace(QUICK, attempts=3), servers, contender, (), {}, Progress(Console(quiet=True)))
    taken, made = iter(shares), itertools.count(1)
    monkeypatch.setattr(Steal, "share", lambda _: next(taken))
    results = context.alternate("a scenario", {"one": lambda _: next(made)}, str, rounds=1)
    assert results.values == {"one": [counts]}
    assert next(taken, "none is left") == "none is left"


@pytest.fixture
def contender(own_redis: StartRedis, postgres: PostgresServer) -> Contender:
    """Stock arq, on an empty Redis."""
    server = RedisServer(own_redis().url.rpartition("/")[0])
    return Contender(ARQ, ARQ.version or "", server, postgres)


@pytest.fixture
def postgres(database_url: str) -> Iterator[PostgresServer]:
    """With the table that jobs add rows to."""
    server = PostgresServer(database_url)
    Table.metadata.create_all(server.engine)
    yield server
    server.engine.dispose()


def test_a_contender_that_lost_a_job_has_failed(contender: Contender) -> None:
    """The library's own list of completed jobs counts, not its empty queue."""
    contender.enqueue("noop", 2)
    with contender.worker() as worker:
        worker.wait_for("began")
        with pytest.raises(ContenderError, match="of 3 jobs have completed"):
            contender.check_completed(3)


def test_the_error_of_a_program_that_ended_has_its_stderr() -> None:
    """It has the exit code, too."""
    program = [sys.executable, "-c", "import sys; sys.exit('out of ink')"]
    with Process(program, {}) as process, pytest.raises(ContenderError, match=r"exit code 1.*out of ink"):
        process.wait_for("began")


_ADDS_ROWS = """
import os, psycopg
with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
    while True:
        connection.execute("INSERT INTO bench_rows (number) VALUES (1)")
"""


def test_an_interleaved_program_is_stopped_outside_its_slices(postgres: PostgresServer) -> None:
    """Only the rows of its slices count, and it adds none between them."""
    program = [sys.executable, "-c", _ADDS_ROWS]
    with Process(program, {"DATABASE_URL": as_dsn(postgres.engine.url)}) as process:
        runner = InterleavedProgram(process, count_rows(postgres), "the program")
        runner.warm_up(10)
        before = postgres.number("SELECT count(*) FROM bench_rows")
        for _ in range(2):
            assert psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
            runner.run_slice(0.1)
        added = postgres.number("SELECT count(*) FROM bench_rows") - before
        assert 0 < runner.speed <= added / 0.2
        assert psutil.Process(process.pid).status() == psutil.STATUS_STOPPED


def test_an_interleaved_program_that_does_nothing_has_failed(postgres: PostgresServer) -> None:
    """A speed of zero would be wrong: it did not work at all."""
    with Process([sys.executable, "-c", "import time; time.sleep(60)"], {}) as process:
        runner = InterleavedProgram(process, count_rows(postgres), "the program")
        runner.run_slice(0.1)
        with pytest.raises(ContenderError, match="the program did nothing"):
            _ = runner.speed


def test_an_interleaved_program_that_ends_has_failed(postgres: PostgresServer) -> None:
    """A dead program makes neither itself slow nor the other one fast."""
    with Process([sys.executable, "-c", "import sys; sys.exit('out of ink')"], {}) as process:
        runner = InterleavedProgram(process, count_rows(postgres), "the program")
        with pytest.raises(ContenderError, match=r"the program: it ended with exit code 1.*out of ink"):
            for _ in range(100):
                runner.run_slice(0.1)


def test_a_pipeline_of_commands_counts_as_one_round_trip(own_redis: StartRedis) -> None:
    """A pipeline of many commands is one round trip."""
    port = own_redis().port
    assert port is not None
    with RoundTripCounter(port) as relay, redis.Redis(port=relay.port) as client:
        client.ping()
        relay.take()
        for _ in range(5):
            client.ping()
        assert relay.take() == 5
        with client.pipeline() as pipe:
            for number in range(10):
                pipe.set(str(number), number)
            pipe.execute()
        assert relay.take() == 1


def test_ratios_are_taken_within_a_round() -> None:
    """A round in which the machine was slow for both sides does not change the ratio."""
    assert Figures.of([10.0, 30.0, 100.0]).over(Figures.of([1.0, 3.0, 10.0])).values == (10.0, 10.0, 10.0)


def test_percentiles_are_measured_values() -> None:
    """They are never interpolated."""
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 2.0, 3.0, 3.0]


def test_stolen_time_is_a_share_of_all_time() -> None:
    """The time of guests is counted once. Systems without the counter give None."""
    before = {"user": 100, "idle": 100, "steal": 5, "guest": 0}
    assert stolen(before, {"user": 150, "idle": 140, "steal": 15, "guest": 20}) == pytest.approx(0.1)
    assert stolen({"user": 1, "idle": 1}, {"user": 2, "idle": 2}) is None


@pytest.mark.parametrize(("value", "status"), [(2.0, "aim reached"), (1.5, "reached"), (0.9, "MISSED"), (None, "?")])
def test_the_status_says_whether_a_target_was_reached(value: float | None, status: str) -> None:
    """The aim, the required value, neither of them, or nothing was measured."""
    bar = Target("speed", required=1, aim=2)
    assert TargetResult(bar, None if value is None else Figures.of([value])).status == status


def test_a_lower_value_reaches_a_target_where_less_is_better() -> None:
    """A time that is shorter than its target has reached it."""
    bar = Target("time", required=2, aim=1, more_is_better=False)
    assert [TargetResult(bar, Figures.of([value])).status for value in (0.5, 1.5, 2.5)] == [
        "aim reached",
        "reached",
        "MISSED",
    ]
