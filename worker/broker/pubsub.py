"""Pushed notices: one subscribing connection, shared by all who wait for something in this loop.

1. A notice says only that it is worth looking again; it may be lost with its connection, so whoever waits also looks by
   itself now and then.
2. Whoever waits is woken, too, when Redis says that the channel is subscribed to, at first and after each loss of the
   connection: what was published before that nobody has heard.
3. One task reads, and opens the connection again when it is lost; a connection that says nothing is asked whether it
   lives.
4. Whoever opens, closes or writes to the connection has it alone; only reading goes on beside that. (redis-py's
   `PubSub` closes a connection whose reading fails, also under somebody who is writing to it just then.)
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
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
_SILENCE = 5.0  # seconds without a notice, after which the connection is asked whether it lives, and to answer


class Subscriber:
    """Wakes those who wait for a channel.

    Args:
        connect: makes the client whose connection subscribes; its argument counts the calls, from 0.
    """

    def __init__(self, connect: Callable[[int], Redis]) -> None:
        self._connect = connect
        self._turn = 0
        self._redis: Redis | None = None
        self._connection: AbstractConnection | None = None
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._subscribed: set[str] = set()  # of the connection that is open now
        self._reader: asyncio.Task[None] | None = None
        self._tidying: set[asyncio.Task[None]] = set()
        self._talking = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def on(self, channel: str, event: asyncio.Event) -> AsyncIterator[None]:
        """Set `event` at each notice on `channel`, and whenever one may have gone unheard: once it is subscribed to."""
        self._waiting.setdefault(channel, set()).add(event)
        try:
            if channel in self._subscribed:  # nobody will say so again
                event.set()
            await self._subscribe(channel)
            yield
        finally:
            waiting = self._waiting[channel]
            waiting.discard(event)
            if not waiting:
                del self._waiting[channel]
                self._later(self._unsubscribe(channel))

    async def close(self) -> None:
        """Wake nobody any more, and close the connection."""
        await cancel_tasks([*self._tidying, *([] if self._reader is None else [self._reader])])
        self._reader = None
        await self._drop_connection()

    def abandon(self) -> None:
        """`close`, where its event loop is closed."""
        for task in [*self._tidying, *([] if self._reader is None else [self._reader])]:
            drop_task(task)
        if self._connection is not None:
            drop_connection(self._connection)
        if self._redis is not None:
            abandon(self._redis)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it soon: whoever has stopped waiting must not wait for a Redis that does not answer."""
        task = asyncio.create_task(work)
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    async def _subscribe(self, channel: str) -> None:
        if channel not in self._subscribed:
            with contextlib.suppress(RedisError, OSError):  # the reader subscribes again once it is connected
                async with self._talking:
                    await self._say_subscribe(await self._open(), {channel})
        if self._reader is None or self._reader.done():  # a job's code may cancel whatever it finds
            self._reader = asyncio.create_task(self._read(), name="notices")

    async def _unsubscribe(self, channel: str) -> None:
        with contextlib.suppress(RedisError, OSError):
            async with self._talking:
                # Somebody else may have come to wait for it meanwhile.
                if self._connection is not None and channel not in self._waiting:
                    self._subscribed.discard(channel)
                    await _say(self._connection, "UNSUBSCRIBE", channel)

    async def _say_subscribe(self, connection: AbstractConnection, channels: Iterable[str]) -> None:
        missing = [channel for channel in channels if channel not in self._subscribed]
        if missing:
            await _say(connection, "SUBSCRIBE", *missing)
            self._subscribed.update(missing)

    async def _read(self) -> None:
        while True:
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001 - whatever it is: without notices all goes on, only later
                logger.debug("the connection for notices is lost: %s: %s", type(error).__name__, error)
                # Something may have been missed: let everybody look, then listen again.
                self._wake_all()
                await self._drop_connection()
                await asyncio.sleep(_RECONNECT)

    async def _listen(self) -> None:
        async with self._talking:
            connection = await self._open()
            await self._say_subscribe(connection, self._waiting)
        asked = False
        while True:
            reply = await connection.read_response(timeout=_SILENCE, disconnect_on_error=False)
            if reply is not None:
                asked = False
                self._heed(reply)
            elif asked:
                raise RedisConnectionError(f"no answer for {_SILENCE:g} s")
            else:
                async with self._talking:
                    await _say(connection, "PING")
                asked = True

    def _heed(self, reply: Any) -> None:
        """Wake whom a notice is for, or a subscription. The rest says that another command was understood."""
        if isinstance(reply, list) and reply[0] in (b"message", b"subscribe"):
            self._wake(reply[1].decode(errors="replace"))

    async def _open(self) -> AbstractConnection:
        if self._connection is None:
            if self._redis is None:
                self._redis = self._connect(self._turn)
                self._turn += 1
            connection: AbstractConnection = self._redis.connection_pool.make_connection()
            try:
                await connection.connect()
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            self._connection = connection
        return self._connection

    async def _drop_connection(self) -> None:
        async with self._talking:
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


async def _say(connection: AbstractConnection, *command: str) -> None:
    """Send a command, whose reply the reader gets.

    Raises:
        redis.exceptions.ConnectionError: the connection is lost. redis-py would open it anew, subscribed to nothing.
    """
    if not connection.is_connected:
        raise RedisConnectionError("the connection is closed")
    await connection.send_command(*command, check_health=False)  # that would read the reply itself
