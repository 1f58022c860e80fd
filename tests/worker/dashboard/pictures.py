"""Take the pictures of docs/how-to/dashboard.md: ``make pictures``. Needs Chromium, and starts its own servers."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import asyncpg
from sqlalchemy import make_url

import db
from tests.chromium import chromium, launched
from tests.servers import as_dsn, migrate
from tests.worker.dashboard.serving import serving
from tests.worker.dashboard.world import QUEUES, World
from worker import Broker, set_default_broker
from worker.admin.queues import QueueAdmin
from worker.dashboard import LoopbackOnly, Role
from worker.embedded import EmbeddedPostgres, EmbeddedRedis

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

FOLDER = Path(os.environ.get("PICTURES") or Path(__file__).parents[3] / "docs" / "pictures")


async def main() -> int:
    """Take all pictures; the exit code."""
    path = chromium()
    if path is None:
        print("no Chromium on this machine: apt-get install chromium", file=sys.stderr)  # noqa: T201
        return 1
    FOLDER.mkdir(exist_ok=True)  # noqa: ASYNC240 - nothing else runs yet
    auth = LoopbackOnly(Role.OPERATOR)
    async with (
        _world() as world,
        serving(mount="", auth=auth, title="Shop", queues=QUEUES) as url,
        launched(path) as browser,
    ):
        await _take(browser, url, world, sys.argv[1:])
    return 0


@asynccontextmanager
async def _world() -> AsyncIterator[World]:
    with EmbeddedPostgres(tcp=True) as postgres, EmbeddedRedis(tcp=True) as redis:
        os.environ.update(DATABASE_URL=postgres.url, REDIS_URL=redis.url, WORKER_REGISTRY="tests.worker.dashboard.shop")
        migrate(make_url(postgres.url))
        database, broker = db.Database(postgres.url, default=True), Broker(redis.url, default=True)
        connection = await asyncpg.connect(as_dsn(make_url(postgres.url)))
        world = World(broker, connection)
        await world.furnish(days=3)
        await QueueAdmin().pause("reports", actor="ann", until=datetime.now(UTC) + timedelta(hours=2))
        async with world.workers():
            yield world
        await connection.close()
        await broker.close()
        set_default_broker(None)
        await database.dispose()


async def _take(browser: "Browser", url: str, world: World, only: list[str]) -> None:
    failed = await world.postgres.fetchval(
        "SELECT id FROM tandem_jobs WHERE state = 'failed' AND history IS NOT NULL AND task = 'billing.charge'"
    )
    (waiting,) = await world.broker.redis.zrange("arq:queue", 40, 40)
    running = world.running[4][0]
    shots = [
        ("overview", "/", 1280, 800, "light"),
        ("overview-dark", "/", 1280, 800, "dark"),
        ("overview-narrow", "/", 375, 720, "dark"),
        ("jobs", "/jobs?state=running", 1280, 560, "light"),
        ("job", f"/job?id={quote(failed)}", 1280, 860, "light"),
        ("why", f"/job?id={quote(waiting.decode())}", 1280, 480, "light"),
        ("progress", f"/job?id={quote(running)}", 1280, 540, "dark"),
        ("failures", "/failures", 1280, 540, "light"),
        ("queues", "/queues", 1280, 420, "light"),
        ("schedules", "/schedules", 1280, 300, "light"),
        ("workers", "/workers", 1280, 560, "dark"),
    ]
    for name, path, width, height, theme in shots:
        if only and name not in only:
            continue
        context = await browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if theme == "dark" else "light"
        )
        page = await context.new_page()
        await _settled(page, url + path)
        await page.screenshot(path=FOLDER / f"{name}.png")
        await context.close()


async def _settled(page: "Page", url: str) -> None:
    """Open a page, and wait until what is read in the background is there."""
    for _ in range(3):
        await page.goto(url)
        await page.wait_for_timeout(300)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
