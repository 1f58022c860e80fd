"""The example application over real HTTP, with a real worker process."""

from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

import db
from examples.background_process import WORKER, BackgroundProcess
from examples.web import app
from tests.servers import Observer
from tests.waiting import eventually
from tests.web import serving
from worker import Broker, set_default_broker


@pytest.fixture
async def client(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the application, which gets its servers from the environment."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    async with serving(app) as client:
        yield client
    db.set_default_database(None)
    set_default_broker(None)


@pytest.fixture
async def broker(redis_url: str) -> AsyncIterator[Broker]:
    """A broker of the test's own, outside of the application."""
    broker = Broker(redis_url)
    yield broker
    await broker.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files that parse and one that does not."""
    (tmp_path / "a.py").write_text("class A: ...\n")
    (tmp_path / "b.py").write_text("def b(): ...\n")
    (tmp_path / "broken.py").write_text("def broken(:\n")
    return tmp_path


async def start(client: httpx.AsyncClient, folder: Path) -> dict[str, Any]:
    response = await client.post("/scans", json={"folder": str(folder)})
    assert response.status_code == 202, response.text
    scan: dict[str, Any] = response.json()
    return scan


async def progress(client: httpx.AsyncClient, scan_id: int) -> dict[str, Any]:
    response = await client.get(f"/scans/{scan_id}")
    assert response.status_code == 200, response.text
    scan: dict[str, Any] = response.json()
    return scan


def connections(observer: redis.Redis) -> int:
    """The number of Redis' clients."""
    clients: Any = observer.client_list()
    return len(clients)


async def test_a_scan_is_done_by_the_worker(
    client: httpx.AsyncClient, folder: Path, database_url: str, redis_url: str
) -> None:
    """A worker does a scan that was requested over HTTP, and the progress is right at every moment."""
    scan = await start(client, folder)
    assert scan == {"id": 1, "folder": str(folder), "files": None, "indexed": 0, "failed": None, "done": False}
    assert await progress(client, 1) == scan
    seen = []

    async def done() -> bool:
        seen.append(await progress(client, 1))
        return bool(seen[-1]["done"])

    async with BackgroundProcess("worker", WORKER, {"DATABASE_URL": database_url, "REDIS_URL": redis_url}):
        await eventually(done, timeout=30)
    assert seen[-1] == {"id": 1, "folder": str(folder), "files": 3, "indexed": 2, "failed": 1, "done": True}
    for earlier in seen[:-1]:
        assert earlier["files"] in (None, 3)
        assert earlier["indexed"] <= 2
        assert earlier["failed"] is None


async def test_a_scan_of_an_empty_folder_has_ended_at_once(
    client: httpx.AsyncClient, tmp_path: Path, database_url: str, redis_url: str
) -> None:
    """A folder without Python files is a scan without jobs, which is done."""
    scan = await start(client, tmp_path)

    async def done() -> bool:
        return bool((await progress(client, scan["id"]))["done"])

    async with BackgroundProcess("worker", WORKER, {"DATABASE_URL": database_url, "REDIS_URL": redis_url}):
        await eventually(done, timeout=30)
    assert await progress(client, scan["id"]) == {**scan, "files": 0, "indexed": 0, "failed": 0, "done": True}


async def test_two_scans_of_one_folder_count_their_own_rows(
    client: httpx.AsyncClient, folder: Path, database_url: str, redis_url: str
) -> None:
    """Two scans of one folder each count their own rows."""
    scans = [await start(client, folder) for _ in range(2)]

    async def all_done() -> bool:
        return all([(await progress(client, scan["id"]))["done"] for scan in scans])

    async with BackgroundProcess("worker", WORKER, {"DATABASE_URL": database_url, "REDIS_URL": redis_url}):
        await eventually(all_done, timeout=30)
    assert [(await progress(client, scan["id"]))["indexed"] for scan in scans] == [2, 2]


async def test_a_scan_whose_commit_fails_enqueues_nothing(
    client: httpx.AsyncClient, folder: Path, postgres: Observer, broker: Broker
) -> None:
    """A request whose COMMIT the database refuses is a 500, and leaves neither a row nor a job."""
    await postgres.execute("CREATE TABLE permitted (folder text PRIMARY KEY)")
    await postgres.execute(
        "ALTER TABLE scans ADD FOREIGN KEY (folder) REFERENCES permitted DEFERRABLE INITIALLY DEFERRED"
    )
    response = await client.post("/scans", json={"folder": str(folder)})
    assert response.status_code == 500
    assert await broker.depth(broker.name) == 0
    assert await postgres.fetchval("SELECT count(*) FROM scans") == 0
    await postgres.execute("INSERT INTO permitted VALUES ($1)", str(folder))
    await start(client, folder)
    assert await broker.depth(broker.name) == 1


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="no folder"),
        pytest.param({"folder": "/no/such/folder"}, id="missing folder"),
        pytest.param({"folder": __file__}, id="file"),
        pytest.param({"folder": "tests"}, id="relative path"),
        pytest.param({"folder": "/tmp\0"}, id="null byte"),
    ],
)
async def test_a_path_that_is_no_folder_is_a_422(
    client: httpx.AsyncClient, body: dict[str, str], postgres: Observer, broker: Broker
) -> None:
    """A path that is not a folder is refused before anything is written."""
    response = await client.post("/scans", json=body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "folder"]
    assert await postgres.fetchval("SELECT count(*) FROM scans") == 0
    assert await broker.depth(broker.name) == 0


async def test_an_unknown_scan_is_a_404(client: httpx.AsyncClient) -> None:
    """A scan that was never requested is not found."""
    response = await client.get("/scans/1")
    assert (response.status_code, response.json()) == (404, {"detail": "There is no scan 1."})


@pytest.mark.parametrize("scan_id", ["0", "-1", str(2**31), "one"])
async def test_an_impossible_scan_id_is_a_422(client: httpx.AsyncClient, scan_id: str) -> None:
    """An impossible id is refused without a query."""
    assert (await client.get(f"/scans/{scan_id}")).status_code == 422


async def test_the_application_closes_its_connections_at_shutdown(
    database_url: str, redis_url: str, folder: Path, postgres: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its shutdown the application has no connection to either server, and can be started again."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    with closing(redis.Redis.from_url(redis_url)) as observer:
        before = connections(observer)
        for _ in range(2):
            async with serving(app) as client:
                await start(client, folder)
                assert connections(observer) > before
            await eventually(postgres.backends, equals=0)
            await eventually(lambda: connections(observer), equals=before)
    db.set_default_database(None)
    set_default_broker(None)
