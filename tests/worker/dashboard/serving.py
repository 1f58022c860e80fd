"""The dashboard behind a real HTTP server, in the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from worker.dashboard import dashboard

MOUNT = "/ops"
"""Where the tests mount it: not at the root, so that a forgotten prefix shows."""


class _Server(uvicorn.Server):
    """A server that leaves the signals of the test's process alone."""

    def install_signal_handlers(self) -> None:
        """Install none."""


@asynccontextmanager
async def serving(mount: str = MOUNT, **options: Any) -> AsyncIterator[str]:
    """Serve a dashboard with these options; its address, without a slash at the end."""
    site = dashboard(**options)
    app = Starlette(routes=[Mount(mount, site)]) if mount else site
    config = uvicorn.Config(app, "127.0.0.1", 0, log_level="warning", timeout_graceful_shutdown=1)
    server = _Server(config)
    async with site.router.lifespan_context(site):
        serving = asyncio.create_task(server._serve())
        try:
            while not server.started:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}{mount}"
        finally:
            server.should_exit = True
            await serving
