"""``Commander``: obey the commands that people send to this worker: be quiet, resume, stop.

1. A command is a key and a notice. The commander sleeps until the notice arrives.
2. A notice may be lost with its connection. So the announcer's script also returns the command, every few seconds.
3. Each command may be obeyed several times: it says what the worker is to be, not what it is to change.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from worker.broker.broker import Broker
from worker.broker.worker_commands import Command, GivenCommand, WorkerCommands
from worker.engine.claimer import Claimer

logger = logging.getLogger("worker")


class Commander:
    """Obeys commands.

    Args:
        queues: the names of the queues. A command may come through any of them.
        process: the id of this process.
    """

    def __init__(self, broker: Broker, queues: Sequence[str], process: str, claimer: Claimer) -> None:
        self._commands = WorkerCommands(broker.connections)
        self._queues = tuple(queues)
        self._process = process
        self._claimer = claimer
        self._notified = asyncio.Event()
        self._obeyed: dict[str, GivenCommand] = {}
        self.told_to_stop = asyncio.Event()
        """Set when a person has told the worker to stop."""

    async def run(self) -> None:
        """Obey commands as they come, for ever."""
        async with contextlib.AsyncExitStack() as subscriptions:
            for queue in self._queues:
                await subscriptions.enter_async_context(self._commands.listen(queue, self._process, self._notified))
            while True:
                self._notified.clear()
                for queue in self._queues:
                    self.obey(queue, await self._commands.read(queue, self._process))
                await self._notified.wait()

    def obey(self, queue: str, given: GivenCommand | None) -> None:
        """Do as the last command of a queue says, unless that was done before."""
        if given is None:
            self._obeyed.pop(queue, None)
            return
        if self._obeyed.get(queue) == given:
            return
        self._obeyed[queue] = given
        logger.info("%s tells this worker: %s", given.actor, given.command.value)
        match given.command:
            case Command.QUIET:
                self._claimer.be_quiet()
            case Command.RESUME:
                self._claimer.resume()
            case Command.STOP:
                self.told_to_stop.set()
