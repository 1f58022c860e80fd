"""``ArqClient``: the Redis client that arq gets. It avoids two cases in which arq would end with a traceback.

How arq's sources (0.28, ``worker.py``) use it:

1. `Worker.main` first reads Redis' INFO by one pipeline. If Redis does not answer yet, the client waits for it.
2. `Worker.close` at last deletes arq's health record. The engine has deleted its own record, so nothing is sent.
"""

from typing import Any

from redis.asyncio.client import Pipeline

from worker.arq_host.command import end_with
from worker.broker.keys import Keys
from worker.process.arq_client import CheckedArqRedis
from worker.process.errors import StartupError
from worker.process.server_wait import await_server


class ArqClient(CheckedArqRedis):
    """arq's client. Tasks get it as ``ctx["redis"]``."""

    connect_wait: float | None = None
    """Seconds that arq's first pipeline without a transaction waits for Redis. None after that pipeline."""
    health_check_key: str | None = None
    """The key of the health record that arq's worker would delete."""

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        if transaction or self.connect_wait is None:
            return super().pipeline(transaction, shard_hint)
        waiting = _WaitingPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        waiting.connect_wait, self.connect_wait = self.connect_wait, None
        return waiting

    async def delete(self, *names: Any) -> Any:
        if len(names) == 1 and (Keys.is_health(names[0]) or names[0] == self.health_check_key):
            return 0
        return await super().delete(*names)


class _WaitingPipeline(Pipeline):
    connect_wait: float

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Execute the commands, and wait for a Redis that does not answer yet.

        Raises:
            SystemExit: Redis does not answer in time, or refuses. Its reason is printed in one line on standard error.
        """
        commands, execute = self.command_stack, super().execute

        async def attempt() -> list[Any]:
            self.command_stack = commands  # an attempt that got a connection has emptied it
            return await execute(raise_on_error)

        try:
            return await await_server("REDIS_URL", attempt, self.connect_wait)
        except StartupError as end:
            end_with(str(end), code=1)
