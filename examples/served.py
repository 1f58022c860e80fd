"""What ``make demo KEEP=1`` leaves running beside the worker: the web application and the dashboard."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from examples.background_process import BackgroundProcess
from worker.embedded.port import free_port

_PAUSE = 0.1  # seconds between two looks at a server that starts


@asynccontextmanager
async def web_and_dashboard(settings: Mapping[str, str]) -> AsyncIterator[dict[str, str]]:
    """Run both for the length of a block, and yield their addresses by name, once they answer.

    Args:
        settings: the worker's environment variables, which both need as well.

    Raises:
        ProcessDiedError: one of them has not started.
    """
    ports = {"web application": free_port(), "dashboard": free_port()}
    commands = {
        "web application": ("uvicorn", "examples.web:app", "--log-level", "warning", "--port"),
        "dashboard": ("worker", "dashboard", "--loopback-only", "--title", "Census", "--port"),
    }
    async with AsyncExitStack() as running:
        for name, command in commands.items():
            process = BackgroundProcess(name, (sys.executable, "-m", *command, str(ports[name])), settings)
            await running.enter_async_context(process)
            await process.while_it_runs(_answers(ports[name]))
        yield {
            "web application": f"http://127.0.0.1:{ports['web application']}/docs",
            "dashboard": f"http://127.0.0.1:{ports['dashboard']}/",
        }


async def _answers(port: int) -> None:
    """Wait until a server listens on the port."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(_PAUSE)
        else:
            writer.close()
            await writer.wait_closed()
            return
