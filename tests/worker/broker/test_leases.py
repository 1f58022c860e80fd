"""The heartbeat's client for leases: what it reports, and how it leaves a server that cannot renew them."""

import asyncio

import pytest
from redis.exceptions import ReadOnlyError, RedisError

from tests.conftest import StartRedis
from tests.proxy import Proxy
from tests.stopwatch import Stopwatch
from tests.waiting import AT_ONCE
from tests.worker.new_jobs import new_job
from worker import Broker
from worker.broker.leases import HeldLease, LeaseClient, LeaseOwner

QUEUE, TOKEN = "arq:queue", "o" * 28


async def claimed(broker: Broker) -> HeldLease:
    await broker.enqueue([new_job("a", b"{}", QUEUE)])
    (job,) = (await broker.claim(QUEUE, TOKEN, 60_000, 1)).jobs
    return HeldLease(job.raw_id, TOKEN, job.score, job.payload)


async def connections(broker: Broker) -> set[str]:
    """Return the ids of all connections to the server."""
    return {client["id"] for client in await broker.redis.client_list()}


async def test_a_held_lease_is_renewed_and_a_lost_one_can_be_reacquired(broker: Broker, redis_url: str) -> None:
    """A held lease is renewed; a lease without a holder is reacquired."""
    job = await claimed(broker)
    client = LeaseClient(redis_url, QUEUE, 60_000)
    assert client.renew([job]) == [(LeaseOwner.OURS, None)]
    await broker.redis.delete("arq:in-progress:a")
    assert client.renew([job]) == [(LeaseOwner.NOBODYS, None)]
    assert client.reacquire([job]) == [True]
    assert client.renew([job]) == [(LeaseOwner.OURS, None)]
    client.close()


async def test_a_renewal_waits_for_a_third_of_a_lease_at_most_and_then_reconnects(
    broker: Broker, redis_url: str
) -> None:
    """A renewal without an answer ends after a third of a lease; the next one uses a new connection."""
    job = await claimed(broker)
    async with Proxy(redis_url) as proxy:
        client = LeaseClient(proxy.url, QUEUE, 9_000)

        def renew() -> float:
            watch = Stopwatch()
            with pytest.raises(RedisError):
                client.renew([job])
            return watch.seconds

        assert await asyncio.to_thread(client.renew, [job]) == [(LeaseOwner.OURS, None)]
        proxy.blackhole()
        assert 2 < await asyncio.to_thread(renew) < 3 + AT_ONCE
        await proxy.drop()
        await proxy.resume()
        assert await asyncio.to_thread(client.renew, [job]) == [(LeaseOwner.OURS, None)]
        client.close()


async def test_a_renewal_leaves_a_server_that_has_become_a_replica(own_redis: StartRedis) -> None:
    """A connection to a server that has become a replica is closed; the next try opens another one."""
    server = own_redis()
    broker = Broker(server.url)
    job = await claimed(broker)
    client = LeaseClient(server.url, QUEUE, 60_000)
    client.renew([job])
    await broker.redis.replicaof("127.0.0.1", "1")
    before = await connections(broker)
    with pytest.raises(ReadOnlyError):
        client.renew([job])
    with pytest.raises(ReadOnlyError):
        await broker.enqueue([new_job("b", b"{}", QUEUE)])
    assert not before & await connections(broker)
    await broker.redis.replicaof("NO", "ONE")
    assert client.renew([job]) == [(LeaseOwner.OURS, None)]
    client.close()
    await broker.close()
