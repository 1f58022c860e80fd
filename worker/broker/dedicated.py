"""``DedicatedConnection``: one connection to Redis, for commands that follow one another.

1. The first command opens the connection. After a loss the next command opens it again.
2. One deadline covers a whole command, and is longer for a command with many bytes. redis-py has one deadline for each
   step, at several times the cost, and checks a pooled connection before each use, which costs as much again.
   Connecting may take longer than a command: there may be Sentinels to ask, one of which does not answer.
3. An idle connection is checked before it is used, as the server may have closed it meanwhile.
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
_SLOW_NETWORK = 1024 * 1024  # bytes a second; adds to the deadline, as a large result takes long to send


class DedicatedConnection:
    """Run commands on one connection, one at a time.

    Args:
        client: the connection has the servers, login and limits of this client.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        connection: AbstractConnection = client.connection_pool.make_connection()
        self._timeout = connection.socket_timeout or TIMEOUT
        self._connection = connection
        self._lock = asyncio.Lock()
        self._used_at = 0.0

    async def execute_command(self, *command: Any) -> Any:
        """Send a command, and return its reply.

        Raises:
            redis.exceptions.ResponseError: the server refuses the command.
            redis.exceptions.RedisError, OSError: the connection could not be opened, or was lost, or took too long. The
                command may or may not have been run.
        """
        async with self._lock:
            await self._connect()
            packed: list[bytes] = self._connection.pack_command(*command)
            limit = self._timeout + sum(map(len, packed)) / _SLOW_NETWORK
            try:
                with Deadline(limit):
                    return await self._run(packed)
            except TimeoutError:
                raise RedisTimeoutError(f"no answer within {limit:.3g} s") from None

    async def open(self) -> None:
        """Open the connection now.

        Raises:
            redis.exceptions.RedisError, OSError: the connection could not be opened.
        """
        async with self._lock:
            await self._connect()

    async def close(self) -> None:
        """Close the connection. A command that is in flight fails; the next one opens the connection again."""
        await self._connection.disconnect()

    def abandon(self) -> None:
        """Drop the connection of an event loop that is closed."""
        drop_connection(self._connection)

    async def _connect(self) -> None:
        """Open the connection unless it is open."""
        connection = self._connection
        if time.monotonic() - self._used_at > _IDLE:
            await self._refresh()
        if connection.is_connected:
            return
        connection.socket_timeout = self._timeout  # for each step of connecting
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        connection.socket_timeout = None  # commands have `Deadline` instead

    async def _run(self, packed: list[bytes]) -> Any:
        connection = self._connection
        try:
            await connection.send_packed_command(packed, check_health=False)
            reply = await connection.read_response()
        except ResponseError:
            self._used_at = time.monotonic()
            raise
        except BaseException:
            # A late reply would be taken for the reply to the next command.
            await connection.disconnect(nowait=True)
            raise
        self._used_at = time.monotonic()
        return reply

    async def _refresh(self) -> None:
        """Close the connection if the server has closed it, or has sent data that no command asked for."""
        if not self._connection.is_connected:
            return
        try:
            is_stale = await self._connection.can_read_destructive()
        except (RedisConnectionError, OSError):
            is_stale = True
        if is_stale:
            await self._connection.disconnect(nowait=True)
