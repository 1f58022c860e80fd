"""Notices: one subscribing connection that wakes those who wait, loses itself and comes back."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.proxy import Proxy
from tests.waiting import eventually
from worker import connection, notices
from worker.connection import connect_to_subscribe
from worker.ending import end
from worker.notices import Notices


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TIMEOUT", 1.0)
    monkeypatch.setattr(notices, "_RECONNECT", 0.05)
    monkeypatch.setattr(notices, "_SILENCE", 0.2)


@contextlib.asynccontextmanager
async def listening(url: str) -> AsyncIterator[Notices]:
    one = Notices(functools.partial(connect_to_subscribe, url))
    try:
        yield one
    finally:
        await one.close()


async def subscribed(*events: asyncio.Event) -> None:
    """Those who wait have been woken once their channels were subscribed to, the last one's at last."""
    await asyncio.wait_for(events[-1].wait(), 5)
    for event in events:
        event.clear()


async def hears(event: asyncio.Event, observer: Any, channel: str = "c") -> None:
    """Whoever waits for a channel is woken by what is published there."""
    event.clear()
    await eventually(lambda: observer.publish(channel, "1") or event.is_set())
    await asyncio.wait_for(event.wait(), 2)


async def test_wakes(redis_url: str, observer: Any) -> None:
    """All who wait for a channel are woken, and nobody who waits for another one, through one connection."""
    first, second, other = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with listening(redis_url) as one, one.on("c", first), one.on("c", second), one.on("d", other):
        await subscribed(first, second, other)
        assert observer.publish("c", "1") == 1
        await asyncio.wait_for(asyncio.gather(first.wait(), second.wait()), 2)
        assert not other.is_set()
        assert len(observer.client_list(_type="pubsub")) == 1


async def test_subscribed_when_the_block_begins(redis_url: str, observer: Any) -> None:
    """What is published once the block has begun is heard: a hundred times, each with its own channel."""
    async with listening(redis_url) as one:
        for number in range(100):
            event = asyncio.Event()
            async with one.on(f"c{number}", event):
                assert observer.publish(f"c{number}", "1") == 1
                await asyncio.wait_for(event.wait(), 2)


async def test_subscribed_for_whoever_comes_second(redis_url: str, observer: Any) -> None:
    """Of several who come at once for the same channel none begins before it is subscribed to, and one may give up."""

    async def wait() -> int:
        async with one.on("c", asyncio.Event()):
            return int(observer.publish("c", "1"))

    async with listening(redis_url) as one:
        first, *others = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        first.cancel()
        assert await asyncio.gather(*others) == [1, 1]


async def test_leaves_nothing_subscribed(redis_url: str, observer: Any) -> None:
    """A channel that nobody waits for any more is given up; one that somebody has come to wait for since is not."""
    event = asyncio.Event()
    async with listening(redis_url) as one:
        async with one.on("c", event), one.on("d", event):
            assert sorted(observer.pubsub_channels()) == ["c", "d"]
        async with one.on("c", event):  # before the first is given up
            await eventually(lambda: observer.pubsub_channels() == ["c"])
            await hears(event, observer)
        await eventually(lambda: observer.pubsub_channels() == [])


async def test_silence(redis_url: str, observer: Any) -> None:
    """A connection that is only silent is kept."""
    event = asyncio.Event()
    async with listening(redis_url) as one, one.on("c", event):
        await subscribed(event)
        (before,) = observer.client_list(_type="pubsub")
        await asyncio.sleep(0.7)
        (after,) = observer.client_list(_type="pubsub")
        assert before["id"] == after["id"]
        assert not event.is_set()
        await hears(event, observer)


async def test_lost_connection(redis_url: str, observer: Any) -> None:
    """When the connection is lost, everybody is woken once to look, and it is opened again."""
    event = asyncio.Event()
    async with Proxy(redis_url) as proxy, listening(proxy.url) as one, one.on("c", event):
        await subscribed(event)
        proxy.refuse()
        await proxy.drop()
        await asyncio.wait_for(event.wait(), 2)
        await proxy.resume()
        await hears(event, observer)


async def test_unheard(redis_url: str, observer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published before Redis has heard who waits, at first or after a loss, wakes them all the same."""
    monkeypatch.setattr(notices, "_SILENCE", 60.0)
    monkeypatch.setattr(notices, "_RECONNECT", 1.0)
    other, event = asyncio.Event(), asyncio.Event()
    async with Proxy(redis_url) as proxy, listening(proxy.url) as one, one.on("d", other):
        await subscribed(other)
        proxy.blackhole()
        async with one.on("unheard", event):
            assert observer.publish("unheard", "1") == 0
            await proxy.resume()
            await subscribed(event)
            await proxy.drop()
            await subscribed(event)  # woken by the loss, and only then by the new connection
            observer.publish("unheard", "1")
            await subscribed(event)


async def test_black_hole(redis_url: str, observer: Any) -> None:
    """A connection that does not answer any more is found out, and replaced."""
    event = asyncio.Event()
    async with Proxy(redis_url) as proxy, listening(proxy.url) as one, one.on("c", event):
        await subscribed(event)
        proxy.blackhole()
        await asyncio.wait_for(event.wait(), 3)
        await proxy.drop()
        await proxy.resume()
        await hears(event, observer)


async def test_no_server(redis_url: str, observer: Any) -> None:
    """Where there is no server yet, whoever waits is not kept from it, and is woken once there is one."""
    event = asyncio.Event()
    async with Proxy(redis_url) as proxy:
        proxy.refuse()
        async with listening(proxy.url) as one, one.on("c", event):
            await proxy.resume()
            await hears(event, observer)


async def test_reader_cancelled(redis_url: str, observer: Any) -> None:
    """Code that cancels whatever it finds ends the listening until the next who waits begins it again."""
    event = asyncio.Event()
    async with listening(redis_url) as one, one.on("c", asyncio.Event()):
        await end([task for task in asyncio.all_tasks() if task.get_name() == "notices"])
        async with one.on("c", event):
            await hears(event, observer)


async def test_lost_again_and_again(redis_url: str) -> None:
    """Ten who come and go all the time while the connection is cut two hundred times never hear of it."""
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))

    async def come_and_go(channel: str) -> None:
        event = asyncio.Event()
        while True:
            async with one.on(channel, event):
                await asyncio.sleep(0.001)

    async with Proxy(redis_url) as proxy, listening(proxy.url) as one:
        comers = [asyncio.create_task(come_and_go(f"c{number}")) for number in range(10)]
        for number in range(200):
            await asyncio.sleep(number % 7 / 1000)
            await proxy.drop()
        failed = [comer.exception() for comer in comers if comer.done()]
        await end(comers)
    assert (failed, errors) == ([], [])


async def test_many_at_once(redis_url: str, observer: Any) -> None:
    """A hundred who come and go at once, while the connection is lost, are all woken, through one connection."""

    async def wait(number: int) -> None:
        event = asyncio.Event()
        async with one.on(f"c{number}", event):
            await hears(event, observer, f"c{number}")

    async with Proxy(redis_url) as proxy, listening(proxy.url) as one:
        waiting = asyncio.gather(*(wait(number) for number in range(100)))
        await asyncio.sleep(0.01)
        await proxy.drop()
        await asyncio.wait_for(waiting, 10)
        await eventually(lambda: len(observer.client_list(_type="pubsub")) <= 1)


async def test_close(redis_url: str, observer: Any) -> None:
    """Closed, it leaves no connection; used again, it opens one."""
    event = asyncio.Event()
    async with listening(redis_url) as one:
        async with one.on("c", event):
            await one.close()
            await eventually(lambda: observer.client_list(_type="pubsub") == [])
        async with one.on("d", event):
            await hears(event, observer, "d")
