"""``WorkerCommands``: commands from people to one worker, by the id of its process.

No later process has this id, so a worker that was started meanwhile does not obey an old command.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import NamedTuple

from pydantic_core import from_json, to_json

from worker.broker.connections import Connections
from worker.broker.keys import Keys

_LIFETIME = 60_000  # milliseconds


class Command(StrEnum):
    """What a worker is told to do."""

    QUIET = "quiet"
    RESUME = "resume"
    STOP = "stop"


class GivenCommand(NamedTuple):
    """A command, and who has given it."""

    command: Command
    actor: str

    @classmethod
    def decode(cls, raw: bytes) -> "GivenCommand | None":
        """Decode a command. None if a later version has written it in another form."""
        try:
            command, actor = from_json(raw)
            return cls(Command(command), str(actor))
        except (ValueError, TypeError):
            return None


class WorkerCommands:
    """The commands in one Redis."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def send(self, queue: str, process: str, command: GivenCommand) -> None:
        """Send a command to the worker of this process, in place of an earlier one."""
        keys = Keys.of(queue)
        arguments = [keys.command(process), keys.commands(process), to_json(command), _LIFETIME]
        await self._connections.run("command", queue, arguments)

    async def read(self, queue: str, process: str) -> GivenCommand | None:
        """The last command to the worker of this process."""
        raw: bytes | None = await self._connections.client.get(Keys.of(queue).command(process))
        return None if raw is None else GivenCommand.decode(raw)

    def listen(self, queue: str, process: str, event: asyncio.Event) -> AbstractAsyncContextManager[None]:
        """Set `event` whenever a command is sent to the worker of this process."""
        return self._connections.subscriber.subscribe(Keys.of(queue).commands(process), event)
