"""``Subscriber``: one subscribed connection, shared by all coroutines of a loop that wait for a notification.

1. A notification says only that it is worth looking again. It may be lost with its connection, so each waiting
   coroutine also looks by itself now and then.
2. A waiting coroutine is also woken when Redis confirms the subscription: at first, and after each reconnect. Redis
   does not deliver what was published before.
3. One asyncio task reads, and reconnects when the connection is lost. It sends PING on a silent connection.
4. Opening, closing and writing exclude each other by a lock. Only reading goes on beside them. (redis-py's `PubSub`
   closes a connection whose reading fails, even while another coroutine writes to it.)
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from worker.aio.cancel_tasks import cancel_tasks
from worker.broker.closed_loop import drop_connection, drop_task
from worker.broker.connection import abandon, close

logger = logging.getLogger("worker")

_RECONNECT = 0.5  # seconds
_SILENCE = 5.0  # seconds without a message until PING is sent, and then seconds until its reply is due


class Subscriber:
    """Set events when their channel is notified.

    Args:
        connect: makes the client to subscribe with. Its argument counts the calls, from 0.
    """

    def __init__(self, connect: Callable[[int], Redis]) -> None:
        self._connect = connect
        self._connects = 0
        self._redis: Redis | None = None
        self._connection: AbstractConnection | None = None
        self._waiting: dict[str, list[asyncio.Event]] = {}  # one event may wait twice: queues may share a channel
        self._subscribed: set[str] = set()  # channels of the open connection
        self._reader: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def subscribe(self, channel: str, event: asyncio.Event) -> AsyncIterator[None]:
        """Set `event` at each message on `channel`, and whenever a message may have been missed."""
        self._waiting.setdefault(channel, []).append(event)
        try:
            if channel in self._subscribed:  # Redis will not confirm it again
                event.set()
            await self._ensure_subscribed(channel)
            yield
        finally:
            waiting = self._waiting[channel]
            waiting.remove(event)
            if not waiting:
                del self._waiting[channel]
                self._run_in_background(self._unsubscribe(channel))

    async def close(self) -> None:
        """Stop setting events, and close the connection."""
        await cancel_tasks([*self._background, *([] if self._reader is None else [self._reader])])
        self._reader = None
        await self._drop_connection()

    def abandon(self) -> None:
        """Drop the connection of an event loop that is closed."""
        for task in [*self._background, *([] if self._reader is None else [self._reader])]:
            drop_task(task)
        if self._connection is not None:
            drop_connection(self._connection)
        if self._redis is not None:
            abandon(self._redis)

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Start `work` without waiting for it, so that a Redis that does not answer delays no caller."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _ensure_subscribed(self, channel: str) -> None:
        if channel not in self._subscribed:
            with contextlib.suppress(RedisError, OSError):  # the reader subscribes once it is connected
                async with self._lock:
                    await self._send_subscribe(await self._open(), {channel})
        if self._reader is None or self._reader.done():  # a job's code may have cancelled the reader
            # In an empty context: it outlives the job or request that is the first to wait, and is part of neither.
            self._reader = asyncio.create_task(self._read(), name="subscriber", context=Context())

    async def _unsubscribe(self, channel: str) -> None:
        with contextlib.suppress(RedisError, OSError):
            async with self._lock:
                # Another coroutine may wait for the channel by now.
                if self._connection is not None and channel not in self._waiting:
                    self._subscribed.discard(channel)
                    await _send(self._connection, "UNSUBSCRIBE", channel)

    async def _send_subscribe(self, connection: AbstractConnection, channels: Iterable[str]) -> None:
        missing = [channel for channel in channels if channel not in self._subscribed]
        if missing:
            await _send(connection, "SUBSCRIBE", *missing)
            self._subscribed.update(missing)

    async def _read(self) -> None:
        while True:
            try:
                await self._read_replies()
            except Exception as error:  # noqa: BLE001 - without notifications jobs only start later
                logger.debug("the subscribed connection to Redis is lost: %s: %s", type(error).__name__, error)
                # A message may have been missed, so all waiting coroutines look again.
                self._wake_all()
                await self._drop_connection()
                await asyncio.sleep(_RECONNECT)

    async def _read_replies(self) -> None:
        async with self._lock:
            connection = await self._open()
            await self._send_subscribe(connection, self._waiting)
        has_pinged = False
        while True:
            reply = await connection.read_response(timeout=_SILENCE, disconnect_on_error=False)
            if reply is not None:
                has_pinged = False
                self._handle_reply(reply)
            elif has_pinged:
                raise RedisConnectionError(f"no answer for {_SILENCE:g} s")
            else:
                async with self._lock:
                    await _send(connection, "PING")
                has_pinged = True

    def _handle_reply(self, reply: Any) -> None:
        """Wake the waiting coroutines of a message or a confirmed subscription. Other replies need no reaction."""
        if isinstance(reply, list) and reply[0] in (b"message", b"subscribe"):
            self._wake(reply[1].decode(errors="replace"))

    async def _open(self) -> AbstractConnection:
        if self._connection is None:
            if self._redis is None:
                self._redis = self._connect(self._connects)
                self._connects += 1
            connection: AbstractConnection = self._redis.connection_pool.make_connection()
            try:
                await connection.connect()
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            self._connection = connection
        return self._connection

    async def _drop_connection(self) -> None:
        async with self._lock:
            connection, redis, self._connection, self._redis = self._connection, self._redis, None, None
            self._subscribed.clear()
            with contextlib.suppress(RedisError, OSError):
                if connection is not None:
                    await connection.disconnect()
                if redis is not None:
                    await close(redis)

    def _wake(self, channel: str) -> None:
        for event in self._waiting.get(channel, ()):
            event.set()

    def _wake_all(self) -> None:
        for channel in self._waiting:
            self._wake(channel)


async def _send(connection: AbstractConnection, *command: str) -> None:
    """Send a command. The reader receives its reply.

    Raises:
        redis.exceptions.ConnectionError: the connection is lost. redis-py would reopen it without its subscriptions.
    """
    if not connection.is_connected:
        raise RedisConnectionError("the connection is closed")
    await connection.send_command(*command, check_health=False)  # a health check would read the reply here
