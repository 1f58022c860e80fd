"""Pushed notices: one subscribing connection, shared by all who wait for something in this loop.

A notice says only that it is worth looking again; it may be lost with its connection, so whoever waits also looks by
itself now and then.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

_RECONNECT = 0.5  # seconds
_SILENCE = 5.0  # seconds without a notice, after which the connection is asked whether it lives


class Notices:
    """Wakes those who wait for a channel."""

    def __init__(self, connect: Callable[[], Redis]) -> None:
        self._connect = connect
        self._redis: Redis | None = None
        self._pubsub: PubSub | None = None
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._reader: asyncio.Task[None] | None = None

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
                with contextlib.suppress(RedisError, OSError):
                    await self._unsubscribe(channel)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None
        await self._drop_connection()

    async def _subscribe(self, channel: str) -> None:
        with contextlib.suppress(RedisError, OSError):  # the reader subscribes again once it is connected
            await self._open().subscribe(channel)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read(), name="notices")

    async def _unsubscribe(self, channel: str) -> None:
        if self._pubsub is not None:
            await self._pubsub.unsubscribe(channel)

    async def _read(self) -> None:
        while True:
            try:
                await self._listen()
            except (RedisError, OSError):
                # Something may have been missed: let everybody look, then listen again.
                self._wake_all()
                await self._drop_connection()
                await asyncio.sleep(_RECONNECT)

    async def _listen(self) -> None:
        pubsub = self._open()
        if self._waiting:
            await pubsub.subscribe(*self._waiting)
        while True:
            message: dict[str, Any] | None = await pubsub.get_message(timeout=_SILENCE)
            if message is None:
                await pubsub.ping()
            elif message["type"] == "message":
                for event in self._waiting.get(message["channel"].decode(), ()):
                    event.set()

    def _open(self) -> PubSub:
        if self._pubsub is None:
            self._redis = self._connect()
            self._pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        return self._pubsub

    async def _drop_connection(self) -> None:
        pubsub, redis, self._pubsub, self._redis = self._pubsub, self._redis, None, None
        with contextlib.suppress(RedisError, OSError):
            if pubsub is not None:
                await pubsub.aclose()
            if redis is not None:
                await redis.aclose()

    def _wake_all(self) -> None:
        for events in self._waiting.values():
            for event in events:
                event.set()
