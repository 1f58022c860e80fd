"""The subscriber: one connection that wakes the waiters of a channel, and is replaced when it is lost."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.proxy import Proxy
from tests.waiting import eventually
from worker.aio.cancel_tasks import cancel_tasks
from worker.broker import connection, pubsub
from worker.broker.connection import connect_to_subscribe
from worker.broker.pubsub import Subscriber


@pytest.fixture(autouse=True)
def _short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TIMEOUT", 1.0)
    monkeypatch.setattr(pubsub, "_RECONNECT", 0.05)
    monkeypatch.setattr(pubsub, "_SILENCE", 0.2)


@contextlib.asynccontextmanager
async def listening(url: str) -> AsyncIterator[Subscriber]:
    subscriber = Subscriber(functools.partial(connect_to_subscribe, url))
    try:
        yield subscriber
    finally:
        await subscriber.close()


async def subscribed(*events: asyncio.Event) -> None:
    """Wait until the channels are subscribed to, which wakes each waiter once, and clear the events."""
    await asyncio.wait_for(events[-1].wait(), 5)
    for event in events:
        event.clear()


async def hears(event: asyncio.Event, observer: Any, channel: str = "c") -> None:
    """Assert that a message on the channel wakes the waiter."""
    event.clear()
    await eventually(lambda: observer.publish(channel, "1") or event.is_set())
    await asyncio.wait_for(event.wait(), 2)


async def test_a_message_wakes_all_waiters_of_its_channel_and_no_others(redis_url: str, observer: Any) -> None:
    """A message wakes all waiters of its channel and none of another channel, through one connection."""
    first, second, other = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with (
        listening(redis_url) as subscriber,
        subscriber.subscribe("c", first),
        subscriber.subscribe("c", second),
        subscriber.subscribe("d", other),
    ):
        await subscribed(first, second, other)
        assert observer.publish("c", "1") == 1
        await asyncio.wait_for(asyncio.gather(first.wait(), second.wait()), 2)
        assert not other.is_set()
        assert len(observer.client_list(_type="pubsub")) == 1


async def test_one_event_may_wait_twice_on_a_channel(redis_url: str, observer: Any) -> None:
    """A worker waits for the commands of each of its queues, and queues may share a channel."""
    event = asyncio.Event()
    async with listening(redis_url) as subscriber, subscriber.subscribe("c", event):
        async with subscriber.subscribe("c", event):
            await subscribed(event)
        await hears(event, observer)


async def test_a_channel_is_subscribed_to_when_the_block_begins(redis_url: str, observer: Any) -> None:
    """No message is missed once the block has begun: a hundred times, each with its own channel.

    The server may read the message before the subscription. The subscription's own confirmation then wakes the waiter.
    """
    async with listening(redis_url) as subscriber:
        for number in range(100):
            event = asyncio.Event()
            async with subscriber.subscribe(f"c{number}", event):
                observer.publish(f"c{number}", "1")
                await asyncio.wait_for(event.wait(), 2)


async def test_concurrent_waiters_of_a_channel_begin_only_once_it_is_subscribed_to(
    redis_url: str, observer: Any
) -> None:
    """None of several waiters of a channel begins before it is subscribed to; one of them may be cancelled."""

    async def wait() -> int:
        async with subscriber.subscribe("c", asyncio.Event()):
            return int(observer.publish("c", "1"))

    async with listening(redis_url) as subscriber:
        first, *others = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        first.cancel()
        assert await asyncio.gather(*others) == [1, 1]


async def test_a_channel_without_waiters_is_unsubscribed_from(redis_url: str, observer: Any) -> None:
    """A channel without waiters is unsubscribed from; one that has got a new waiter since is not."""
    event = asyncio.Event()
    async with listening(redis_url) as subscriber:
        async with subscriber.subscribe("c", event), subscriber.subscribe("d", event):
            assert sorted(observer.pubsub_channels()) == ["c", "d"]
        async with subscriber.subscribe("c", event):  # before the first is given up
            await eventually(lambda: observer.pubsub_channels() == ["c"])
            await hears(event, observer)
        await eventually(lambda: observer.pubsub_channels() == [])


async def test_a_connection_that_is_only_silent_is_kept(redis_url: str, observer: Any) -> None:
    """A connection without messages that answers a ping is kept."""
    event = asyncio.Event()
    async with listening(redis_url) as subscriber, subscriber.subscribe("c", event):
        await subscribed(event)
        (before,) = observer.client_list(_type="pubsub")
        await asyncio.sleep(0.7)
        (after,) = observer.client_list(_type="pubsub")
        assert before["id"] == after["id"]
        assert not event.is_set()
        await hears(event, observer)


async def test_a_lost_connection_wakes_all_waiters_and_is_opened_again(redis_url: str, observer: Any) -> None:
    """When the connection is lost, each waiter is woken once to look, and the connection is opened again."""
    event = asyncio.Event()
    async with Proxy(redis_url) as proxy, listening(proxy.url) as subscriber, subscriber.subscribe("c", event):
        await subscribed(event)
        proxy.refuse()
        await proxy.drop()
        await asyncio.wait_for(event.wait(), 2)
        await proxy.resume()
        await hears(event, observer)


async def test_a_message_that_was_published_before_the_subscription_wakes_its_waiters_too(
    redis_url: str, observer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message before Redis has subscribed a waiter, at first or after a loss, wakes the waiter all the same."""
    monkeypatch.setattr(pubsub, "_SILENCE", 60.0)
    monkeypatch.setattr(pubsub, "_RECONNECT", 1.0)
    other, event = asyncio.Event(), asyncio.Event()
    async with Proxy(redis_url) as proxy, listening(proxy.url) as subscriber, subscriber.subscribe("d", other):
        await subscribed(other)
        proxy.blackhole()
        async with subscriber.subscribe("unheard", event):
            assert observer.publish("unheard", "1") == 0
            await proxy.resume()
            await subscribed(event)
            await proxy.drop()
            await subscribed(event)  # woken by the loss, and only then by the new connection
            observer.publish("unheard", "1")
            await subscribed(event)


async def test_a_connection_that_does_not_answer_any_more_is_replaced(redis_url: str, observer: Any) -> None:
    """A connection that does not answer any more is detected and replaced."""
    event = asyncio.Event()
    async with Proxy(redis_url) as proxy, listening(proxy.url) as subscriber, subscriber.subscribe("c", event):
        await subscribed(event)
        proxy.blackhole()
        await asyncio.wait_for(event.wait(), 3)
        await proxy.drop()
        await proxy.resume()
        await hears(event, observer)


async def test_a_waiter_can_begin_without_a_server_and_is_woken_once_there_is_one(
    redis_url: str, observer: Any
) -> None:
    """Without a server a waiter can begin all the same, and is woken once there is a server."""
    event = asyncio.Event()
    async with Proxy(redis_url) as proxy:
        proxy.refuse()
        async with listening(proxy.url) as subscriber, subscriber.subscribe("c", event):
            await proxy.resume()
            await hears(event, observer)


async def test_a_cancelled_reader_is_started_again_by_the_next_waiter(redis_url: str, observer: Any) -> None:
    """Code that cancels all tasks ends the reader; the next waiter starts it again."""
    event = asyncio.Event()
    async with listening(redis_url) as subscriber, subscriber.subscribe("c", asyncio.Event()):
        await cancel_tasks([task for task in asyncio.all_tasks() if task.get_name() == "subscriber"])
        async with subscriber.subscribe("c", event):
            await hears(event, observer)


async def test_waiters_get_no_error_while_the_connection_is_cut_two_hundred_times(redis_url: str) -> None:
    """Ten waiters come and go while the connection is cut two hundred times, and get no error."""
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))

    async def come_and_go(channel: str) -> None:
        event = asyncio.Event()
        while True:
            async with subscriber.subscribe(channel, event):
                await asyncio.sleep(0.001)

    async with Proxy(redis_url) as proxy, listening(proxy.url) as subscriber:
        comers = [asyncio.create_task(come_and_go(f"c{number}")) for number in range(10)]
        for number in range(200):
            await asyncio.sleep(number % 7 / 1000)
            await proxy.drop()
        failed = [comer.exception() for comer in comers if comer.done()]
        await cancel_tasks(comers)
    assert (failed, errors) == ([], [])


async def test_a_hundred_waiters_are_all_woken_although_the_connection_is_lost(redis_url: str, observer: Any) -> None:
    """A hundred waiters at once are all woken through one connection, although it is lost meanwhile."""

    async def wait(number: int) -> None:
        event = asyncio.Event()
        async with subscriber.subscribe(f"c{number}", event):
            await hears(event, observer, f"c{number}")

    async with Proxy(redis_url) as proxy, listening(proxy.url) as subscriber:
        waiting = asyncio.gather(*(wait(number) for number in range(100)))
        await asyncio.sleep(0.01)
        await proxy.drop()
        await asyncio.wait_for(waiting, 10)
        await eventually(lambda: len(observer.client_list(_type="pubsub")) <= 1)


async def test_a_closed_subscriber_leaves_no_connection_and_can_be_used_again(redis_url: str, observer: Any) -> None:
    """Closing leaves no connection; the next use opens one."""
    event = asyncio.Event()
    async with listening(redis_url) as subscriber:
        async with subscriber.subscribe("c", event):
            await subscriber.close()
            await eventually(lambda: observer.client_list(_type="pubsub") == [])
        async with subscriber.subscribe("d", event):
            await hears(event, observer, "d")
