"""Web applications under a real server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import httpx
import uvicorn

from tests.waiting import eventually


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """`app` under uvicorn on a free port, in the loop of the test; a client whose base URL it is."""
    # Its errors go to pytest's log, and the reason why it did not start is raised by the task.
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
        running = asyncio.create_task(server.serve(sockets=[listening]))
        await eventually(lambda: server.started or running.done())
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                yield client
        finally:
            server.should_exit = True
            await running
