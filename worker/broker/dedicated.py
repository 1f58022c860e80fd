"""``DedicatedConnection``: one connection to Redis, for commands that follow one another.

1. It is opened by the first command, and anew by the next one after it was lost.
2. One deadline covers a whole command, and comes later for one with many bytes. redis-py has one for each of its steps,
   at several times the cost, and checks a pooled connection before each use, which costs as much again: a worker would
   feel both. To connect may take longer: there may be Sentinels to be asked, one of which does not answer.
3. Where it has lain idle it is looked at before it is used: the server may have closed it meanwhile.
"""

import asyncio
import time
from typing import Any

import redis.asyncio
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.aio.deadline import Deadline
from worker.broker.closed_loop import drop_connection
from worker.broker.connection import TIMEOUT

_IDLE = 1.0  # seconds without a command
_SLOW_NETWORK = 1024 * 1024  # bytes a second; to send a large result takes longer than any reply


class DedicatedConnection:
    """Runs commands, one at a time.

    Args:
        client: whose servers, login and limits the connection has.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        connection: AbstractConnection = client.connection_pool.make_connection()
        self._timeout = connection.socket_timeout or TIMEOUT
        self._connection = connection
        self._alone = asyncio.Lock()
        self._used_at = 0.0

    async def execute_command(self, *command: Any) -> Any:
        """Send a command; the reply.

        Raises:
            redis.exceptions.ResponseError: the server refuses.
            redis.exceptions.RedisError, OSError: the connection could not be opened, or is lost, or took too long;
                nobody knows then whether the command was run.
        """
        async with self._alone:
            await self._connect()
            packed: list[bytes] = self._connection.pack_command(*command)
            limit = self._timeout + sum(map(len, packed)) / _SLOW_NETWORK
            try:
                with Deadline(limit):
                    return await self._run(packed)
            except TimeoutError:
                raise RedisTimeoutError(f"no answer within {limit:.3g} s") from None

    async def open(self) -> None:
        """Open it now; raises as `execute_command`, as far as no command is sent."""
        async with self._alone:
            await self._connect()

    async def close(self) -> None:
        """Close it; a command that is under way loses it. The next one opens it again."""
        await self._connection.disconnect()

    def abandon(self) -> None:
        """`close`, where its event loop is closed."""
        drop_connection(self._connection)

    async def _connect(self) -> None:
        """Open the connection unless it is open."""
        connection = self._connection
        if time.monotonic() - self._used_at > _IDLE:
            await self._refresh()
        if connection.is_connected:
            return
        connection.socket_timeout = self._timeout  # of each step
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        connection.socket_timeout = None  # from here on the deadline is ours

    async def _run(self, packed: list[bytes]) -> Any:
        connection = self._connection
        try:
            await connection.send_packed_command(packed, check_health=False)
            reply = await connection.read_response()
        except ResponseError:
            self._used_at = time.monotonic()
            raise
        except BaseException:
            # A reply that comes later would be taken for that of the next command.
            await connection.disconnect(nowait=True)
            raise
        self._used_at = time.monotonic()
        return reply

    async def _refresh(self) -> None:
        """Close a connection that the server has closed, or on which it has said what nobody asked."""
        if not self._connection.is_connected:
            return
        try:
            is_stale = await self._connection.can_read_destructive()
        except (RedisConnectionError, OSError):
            is_stale = True
        if is_stale:
            await self._connection.disconnect(nowait=True)
