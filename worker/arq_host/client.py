"""The client that arq is given: it lets pass what would end arq with a traceback.

What arq's sources (0.28, ``worker.py``) do with it:

1. Before all else `Worker.main` looks at Redis, by a pipeline, once. Where nobody answers yet, that is waited for.
2. After all else `Worker.close` deletes arq's health record. The engine has taken back its own: nothing is sent.
"""

from typing import Any

from arq.connections import ArqRedis
from redis.asyncio.client import Pipeline

from worker.arq_host.command import end_with
from worker.broker.keys import Keys
from worker.process.errors import StartupError
from worker.process.server_wait import await_server


class ArqClient(ArqRedis):
    """arq's client, which tasks find as ``ctx["redis"]``."""

    connect_wait: float | None = None
    """Seconds that arq's look, the first pipeline that is no transaction, waits for Redis. After that it is None."""

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        if transaction or self.connect_wait is None:
            return super().pipeline(transaction, shard_hint)
        look = _Look(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        look.connect_wait, self.connect_wait = self.connect_wait, None
        return look

    async def delete(self, *names: Any) -> Any:
        if len(names) == 1 and Keys.is_health(names[0]):
            return 0
        return await super().delete(*names)


class _Look(Pipeline):
    connect_wait: float

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """
        Raises:
            SystemExit: Redis does not answer, or refuses to; one line on standard error says so.
        """
        commands, execute = self.command_stack, super().execute

        async def look() -> list[Any]:
            self.command_stack = commands  # a try that had a connection has emptied it
            return await execute(raise_on_error)

        try:
            return await await_server("REDIS_URL", look, self.connect_wait)
        except StartupError as end:
            end_with(str(end), code=1)
