"""``WorkerAdmin``: list live workers, and quiet, resume and stop one from afar."""

import asyncio

from db.text.plural import plural
from worker.admin.audit import Recorder
from worker.admin.deployment import Deployment
from worker.broker.worker_commands import Command, GivenCommand, WorkerCommands
from worker.ledger.audit import AuditRow
from worker.metrics.reader import MetricsReader
from worker.metrics.records import WorkerReport


class WorkerAdmin:
    """The workers of a deployment.

    Args:
        deployment: where the workers are (default: the servers of this process).
    """

    def __init__(self, deployment: Deployment | None = None) -> None:
        self._deployment = deployment or Deployment.of_process()
        self._reader = MetricsReader(self._deployment.broker)
        self._commands = WorkerCommands(self._deployment.broker.connections)
        self._recorder = Recorder(self._deployment)

    async def list(self) -> list[WorkerReport]:
        """The workers that have a record, by id. A worker that has died or hangs is listed for a minute, as unwell."""
        return await self._reader.workers(self._deployment.queues)

    async def quiet(self, worker: str, *, actor: str) -> int:
        """Let a worker claim nothing more. Its running jobs go on, and it stays up until it is stopped or resumed.

        Args:
            worker: the id of the worker, or of its process if several workers have the same id.

        Returns:
            The number of processes that were told: 0 if no worker of this id has a record.
        """
        return await self._tell(worker, Command.QUIET, actor)

    async def resume(self, worker: str, *, actor: str) -> int:
        """Let a quiet worker claim again. Returns as `quiet`."""
        return await self._tell(worker, Command.RESUME, actor)

    async def stop(self, worker: str, *, actor: str) -> int:
        """Let a worker drain and exit, as on SIGTERM. Its process manager may start another one. Returns as `quiet`."""
        return await self._tell(worker, Command.STOP, actor)

    async def _tell(self, worker: str, command: Command, actor: str) -> int:
        row = AuditRow(actor, f"worker.{command.value}", worker, {})
        async with self._recorder.around(row) as outcome:
            found = [each for each in await self.list() if worker in (each.id, each.process)]
            given = GivenCommand(command, actor)
            await asyncio.gather(*(self._commands.send(each.queues[0], each.process, given) for each in found))
            outcome.text = "told " + plural(len(found), "process", "processes") if found else "no such worker"
        return len(found)
