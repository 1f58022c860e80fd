"""The heartbeat's line: what it says of leases, and how it gets away from a server that is of no use any more."""

import asyncio

import pytest
from redis.exceptions import ReadOnlyError, RedisError

from tests.conftest import StartRedis
from tests.proxy import Proxy
from tests.stopwatch import Stopwatch
from tests.waiting import AT_ONCE
from tests.worker.new_jobs import new_job
from worker import Queue
from worker.renewal import Grip, Held, Renewal

QUEUE, TOKEN = "arq:queue", "o" * 28


async def claimed(queue: Queue) -> Held:
    await queue.enqueue([new_job("a", b"{}", QUEUE)])
    (job,) = (await queue.claim(QUEUE, TOKEN, 60_000, 1)).jobs
    return Held(job.raw_id, TOKEN, job.score, job.payload)


async def connections(queue: Queue) -> set[str]:
    """The ids of all connections to its server."""
    return {client["id"] for client in await queue.redis.client_list()}


async def test_renews(queue: Queue, redis_url: str) -> None:
    """A lease that is held is renewed; one that nobody holds is taken again."""
    job = await claimed(queue)
    line = Renewal(redis_url, QUEUE, 60_000)
    assert line.renew([job]) == [(Grip.OURS, None)]
    await queue.redis.delete("arq:in-progress:a")
    assert line.renew([job]) == [(Grip.NOBODYS, None)]
    assert line.retake([job]) == [True]
    assert line.renew([job]) == [(Grip.OURS, None)]
    line.close()


async def test_black_hole(queue: Queue, redis_url: str) -> None:
    """It waits for an answer for a third of a lease at most, and uses a new connection after that."""
    job = await claimed(queue)
    async with Proxy(redis_url) as proxy:
        line = Renewal(proxy.url, QUEUE, 9_000)

        def renew() -> float:
            watch = Stopwatch()
            with pytest.raises(RedisError):
                line.renew([job])
            return watch.seconds

        assert await asyncio.to_thread(line.renew, [job]) == [(Grip.OURS, None)]
        proxy.blackhole()
        assert 2 < await asyncio.to_thread(renew) < 3 + AT_ONCE
        await proxy.drop()
        await proxy.resume()
        assert await asyncio.to_thread(line.renew, [job]) == [(Grip.OURS, None)]
        line.close()


async def test_demoted(own_redis: StartRedis) -> None:
    """A server that has become a replica is left: the next try opens a connection to whoever is there then."""
    server = own_redis()
    queue = Queue(server.url)
    job = await claimed(queue)
    line = Renewal(server.url, QUEUE, 60_000)
    line.renew([job])
    await queue.redis.replicaof("127.0.0.1", "1")
    before = await connections(queue)
    with pytest.raises(ReadOnlyError):
        line.renew([job])
    with pytest.raises(ReadOnlyError):
        await queue.enqueue([new_job("b", b"{}", QUEUE)])
    assert not before & await connections(queue)
    await queue.redis.replicaof("NO", "ONE")
    assert line.renew([job]) == [(Grip.OURS, None)]
    line.close()
    await queue.close()
