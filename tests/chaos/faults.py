"""The faults: each draws, from the dice alone, whom it falls upon and how, and gives that as a `Strike`."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from tests.chaos.chronicle import Chronicle
from tests.chaos.post import Post
from tests.chaos.stage import Stage
from tests.proxy import When

LEASE = 2.0
"""Seconds, of the workers."""
PATIENCE = 20.0
"""Seconds that a process has to end after a SIGTERM: more than the grace of its jobs and what it takes to unwind."""

_COMMIT = "^COMMIT"
_COMMITS_WITHIN = 3.0  # seconds; a post that commits nothing for so long is spared
_LONGEST_AWAY = 1.0  # seconds until what was killed comes back


@dataclass(frozen=True)
class Arena:
    """All that faults may fall upon."""

    stage: Stage
    workers: Sequence[Post]
    producers: Sequence[Post]
    chronicle: Chronicle


@dataclass(frozen=True)
class Strike:
    """One fault, drawn."""

    target: asyncio.Lock = field(repr=False)
    what: str
    do: Callable[[], Awaitable[bool]]
    """Whether it was done; not where what it waits for does not come by."""


Fault = Callable[[Arena, random.Random], Strike]


def kill_a_worker(arena: Arena, dice: random.Random) -> Strike:
    worker, away = dice.choice(arena.workers), dice.uniform(0, _LONGEST_AWAY)
    return Strike(worker.busy, f"{worker.name}, back after {away:.1f} s", partial(_kill, worker, away))


def kill_a_worker_after_its_commit(arena: Arena, dice: random.Random) -> Strike:
    """It has committed, and does not know so yet."""
    worker, away = dice.choice(arena.workers), dice.uniform(0, _LONGEST_AWAY)
    return Strike(worker.busy, worker.name, partial(_kill_at_commit, worker, "after", away))


def kill_a_worker_before_its_commit(arena: Arena, dice: random.Random) -> Strike:
    worker, away = dice.choice(arena.workers), dice.uniform(0, _LONGEST_AWAY)
    return Strike(worker.busy, worker.name, partial(_kill_at_commit, worker, "before", away))


def kill_a_producer(arena: Arena, dice: random.Random) -> Strike:
    producer, away = dice.choice(arena.producers), dice.uniform(0, _LONGEST_AWAY)
    return Strike(producer.busy, f"{producer.name}, back after {away:.1f} s", partial(_kill, producer, away))


def kill_a_producer_after_its_commit(arena: Arena, dice: random.Random) -> Strike:
    """What it has committed it cannot publish."""
    producer, away = dice.choice(arena.producers), dice.uniform(0, _LONGEST_AWAY)
    return Strike(producer.busy, producer.name, partial(_kill_at_commit, producer, "after", away))


def stop_a_worker(arena: Arena, dice: random.Random) -> Strike:
    worker = dice.choice(arena.workers)
    return Strike(worker.busy, worker.name, partial(_stop, worker, arena.chronicle))


def freeze_a_worker(arena: Arena, dice: random.Random) -> Strike:
    worker, seconds = dice.choice(arena.workers), 3 * LEASE
    return Strike(worker.busy, f"{worker.name} for {seconds:g} s", partial(_freeze, worker, seconds))


def kill_redis(arena: Arena, dice: random.Random) -> Strike:
    away = dice.uniform(0, 2 * _LONGEST_AWAY)

    async def do() -> bool:
        arena.chronicle.wipes.append(await arena.stage.kill_redis(away))
        return True

    return Strike(arena.stage.redis_busy, f"back, empty, after {away:.1f} s", do)


def flush_redis(arena: Arena, dice: random.Random) -> Strike:
    async def do() -> bool:
        arena.chronicle.wipes.append(await arena.stage.flush_redis())
        return True

    return Strike(arena.stage.redis_busy, "", do)


def restart_postgres(arena: Arena, dice: random.Random) -> Strike:
    away = dice.uniform(0, 2 * _LONGEST_AWAY)

    async def do() -> bool:
        await arena.stage.restart_postgres(away)
        return True

    return Strike(arena.stage.postgres_busy, f"back after {away:.1f} s", do)


def crash_postgres(arena: Arena, dice: random.Random) -> Strike:
    away = dice.uniform(0, 2 * _LONGEST_AWAY)

    async def do() -> bool:
        await arena.stage.crash_postgres(away)
        return True

    return Strike(arena.stage.postgres_busy, f"back after {away:.1f} s", do)


def terminate_backends(arena: Arena, dice: random.Random) -> Strike:
    async def do() -> bool:
        async with arena.stage.database() as database:
            await database.terminate_backends()
        return True

    return Strike(arena.stage.postgres_busy, "", do)


def cut_a_worker_before_commit(arena: Arena, dice: random.Random) -> Strike:
    return _cut(dice.choice(arena.workers), "before")


def cut_a_worker_after_commit(arena: Arena, dice: random.Random) -> Strike:
    return _cut(dice.choice(arena.workers), "after")


def cut_a_producer_before_commit(arena: Arena, dice: random.Random) -> Strike:
    return _cut(dice.choice(arena.producers), "before")


def cut_a_producer_after_commit(arena: Arena, dice: random.Random) -> Strike:
    return _cut(dice.choice(arena.producers), "after")


def drop_connections(arena: Arena, dice: random.Random) -> Strike:
    """All that one process has to PostgreSQL."""
    post = dice.choice([*arena.workers, *arena.producers])

    async def do() -> bool:
        await post.proxy.drop()
        return True

    return Strike(post.busy, post.name, do)


FAULTS: dict[Fault, int] = {
    kill_a_worker: 4,
    kill_a_worker_before_its_commit: 2,
    kill_a_worker_after_its_commit: 3,
    kill_a_producer: 2,
    kill_a_producer_after_its_commit: 2,
    stop_a_worker: 3,
    freeze_a_worker: 3,
    kill_redis: 3,
    flush_redis: 3,
    restart_postgres: 2,
    crash_postgres: 2,
    terminate_backends: 2,
    cut_a_worker_before_commit: 4,
    cut_a_worker_after_commit: 4,
    cut_a_producer_before_commit: 2,
    cut_a_producer_after_commit: 2,
    drop_connections: 2,
}
"""And how often each falls, by comparison."""


def name_of(fault: Fault) -> str:
    """In words."""
    return fault.__name__.replace("_", " ")


async def _kill(post: Post, away: float) -> bool:
    post.kill()
    await asyncio.sleep(away)
    post.start()
    return True


async def _kill_at_commit(post: Post, when: When, away: float) -> bool:
    if not await _commits(post, when):
        return False
    return await _kill(post, away)


async def _stop(worker: Post, chronicle: Chronicle) -> bool:
    wrong = await worker.told_to_stop(PATIENCE)
    if wrong is not None:
        chronicle.accuse(f"{worker.name} {wrong}")
    worker.start()
    return True


async def _freeze(post: Post, seconds: float) -> bool:
    post.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        post.send(signal.SIGCONT)
    return True


def _cut(post: Post, when: When) -> Strike:
    return Strike(post.busy, post.name, partial(_commits, post, when))


async def _commits(post: Post, when: When) -> bool:
    """Cut the connection on which the post commits next; whether one did."""
    trap = post.proxy.drop_on(_COMMIT, when=when)
    try:
        async with asyncio.timeout(_COMMITS_WITHIN):
            while not trap.sprung:  # noqa: ASYNC110 - the proxy tells nobody
                await asyncio.sleep(0.002)
    except TimeoutError:
        pass
    done, trap.sprung = trap.sprung, True  # nobody is to fall into it later
    return done
