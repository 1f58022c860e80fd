"""Pushed notices: one subscribing connection, shared by all who wait for something in this loop.

1. A notice says only that it is worth looking again; it may be lost with its connection, so whoever waits also looks by
   itself now and then.
2. One task reads, and opens the connection again when it is lost; a connection that says nothing is asked whether it
   lives.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from worker.connection import close
from worker.ending import end

logger = logging.getLogger("worker")

_LOST = (RedisError, OSError, AttributeError)
"""What a command says whose connection is lost; the last where the reader has just found it so (redis-py 5.3.1)."""
_RECONNECT = 0.5  # seconds
_SILENCE = 5.0  # seconds without a notice, after which the connection is asked whether it lives, and to answer


class Notices:
    """Wakes those who wait for a channel.

    Args:
        connect: makes the client whose connection subscribes; its argument counts the calls, from 0.
    """

    def __init__(self, connect: Callable[[int], Redis]) -> None:
        self._connect = connect
        self._turn = 0
        self._redis: Redis | None = None
        self._pubsub: PubSub | None = None
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._tidying: set[asyncio.Task[None]] = set()
        self._talking = asyncio.Lock()  # one command at a time: two that both find it closed would open it twice

    @contextlib.asynccontextmanager
    async def on(self, channel: str, event: asyncio.Event) -> AsyncIterator[None]:
        """Set `event` at each notice on `channel`, which is subscribed to when the block begins."""
        first = channel not in self._waiting
        self._waiting.setdefault(channel, set()).add(event)
        try:
            if first:
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
        await end([*self._tidying, *([] if self._reader is None else [self._reader])])
        self._reader = None
        await self._drop_connection()

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it soon: whoever has stopped waiting must not wait for a Redis that does not answer."""
        task = asyncio.create_task(work)
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    async def _subscribe(self, channel: str) -> None:
        with contextlib.suppress(*_LOST):  # the reader subscribes again once it is connected
            async with self._talking:
                await self._open().subscribe(channel)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read(), name="notices")

    async def _unsubscribe(self, channel: str) -> None:
        with contextlib.suppress(*_LOST):
            async with self._talking:
                # Somebody else may have come to wait for it meanwhile.
                if self._pubsub is not None and channel not in self._waiting:
                    await self._pubsub.unsubscribe(channel)

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
            pubsub = self._open()
            # Nobody may wait right now, but a connection that subscribes to nothing cannot be read from.
            await pubsub.subscribe(*(self._waiting or ["nobody"]))
        asked = False
        while True:
            message: dict[str, Any] | None = await pubsub.get_message(timeout=_SILENCE)
            if message is not None:
                asked = False
                if message["type"] == "message":
                    self._wake(message["channel"].decode(errors="replace"))
            elif asked:
                raise RedisConnectionError(f"no answer for {_SILENCE:g} s")
            else:
                async with self._talking:
                    await pubsub.ping()
                asked = True

    def _open(self) -> PubSub:
        if self._pubsub is None:
            self._redis = self._connect(self._turn)
            self._turn += 1
            self._pubsub = self._redis.pubsub()
        return self._pubsub

    async def _drop_connection(self) -> None:
        async with self._talking:
            pubsub, redis, self._pubsub, self._redis = self._pubsub, self._redis, None, None
            with contextlib.suppress(*_LOST):
                if pubsub is not None:
                    await pubsub.aclose()
                if redis is not None:
                    await close(redis)

    def _wake(self, channel: str) -> None:
        for event in self._waiting.get(channel, ()):
            event.set()

    def _wake_all(self) -> None:
        for channel in self._waiting:
            self._wake(channel)
