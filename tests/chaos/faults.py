"""The faults. Each draws its target and its details from the random generator alone, and returns an `Injection`."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from tests.chaos.logs import FaultLog
from tests.chaos.processes import ManagedProcess
from tests.chaos.servers import Servers
from tests.proxy import When

LEASE = 2.0
"""The workers' lease, in seconds."""

_COMMIT = "(^|;)COMMIT"
_COMMIT_TIMEOUT = 3.0  # seconds; a process that commits nothing for so long is skipped
_MAX_DOWNTIME = 1.0  # seconds until a killed process or server is started again


@dataclass(frozen=True)
class Targets:
    """All that can have faults, and the log of the faults."""

    servers: Servers
    workers: Sequence[ManagedProcess]
    producers: Sequence[ManagedProcess]
    log: FaultLog


@dataclass(frozen=True)
class Injection:
    """One drawn fault."""

    lock: asyncio.Lock = field(repr=False)
    """Its target's, held during the fault."""
    description: str
    inject: Callable[[], Awaitable[bool]]
    """Whether the fault was injected. It is not if the COMMIT that it waits for does not come."""


Fault = Callable[[Targets, random.Random], Injection]


def kill_worker(targets: Targets, rng: random.Random) -> Injection:
    worker, downtime = rng.choice(targets.workers), rng.uniform(0, _MAX_DOWNTIME)
    return Injection(
        worker.fault_lock, f"{worker.name}, restarted after {downtime:.1f} s", partial(_kill, worker, downtime)
    )


def kill_worker_after_commit(targets: Targets, rng: random.Random) -> Injection:
    """The server has the COMMIT, the worker has no answer yet."""
    worker, downtime = rng.choice(targets.workers), rng.uniform(0, _MAX_DOWNTIME)
    return Injection(worker.fault_lock, worker.name, partial(_kill_at_commit, worker, "after", downtime))


def kill_worker_before_commit(targets: Targets, rng: random.Random) -> Injection:
    worker, downtime = rng.choice(targets.workers), rng.uniform(0, _MAX_DOWNTIME)
    return Injection(worker.fault_lock, worker.name, partial(_kill_at_commit, worker, "before", downtime))


def kill_producer(targets: Targets, rng: random.Random) -> Injection:
    producer, downtime = rng.choice(targets.producers), rng.uniform(0, _MAX_DOWNTIME)
    return Injection(
        producer.fault_lock, f"{producer.name}, restarted after {downtime:.1f} s", partial(_kill, producer, downtime)
    )


def kill_producer_after_commit(targets: Targets, rng: random.Random) -> Injection:
    """The producer has committed jobs and cannot publish them."""
    producer, downtime = rng.choice(targets.producers), rng.uniform(0, _MAX_DOWNTIME)
    return Injection(producer.fault_lock, producer.name, partial(_kill_at_commit, producer, "after", downtime))


def stop_worker(targets: Targets, rng: random.Random) -> Injection:
    worker = rng.choice(targets.workers)
    return Injection(worker.fault_lock, worker.name, partial(_stop, worker, targets.log))


def freeze_worker(targets: Targets, rng: random.Random) -> Injection:
    worker, seconds = rng.choice(targets.workers), 3 * LEASE
    return Injection(worker.fault_lock, f"{worker.name} for {seconds:g} s", partial(_freeze, worker, seconds))


def kill_redis(targets: Targets, rng: random.Random) -> Injection:
    downtime = rng.uniform(0, 2 * _MAX_DOWNTIME)

    async def inject() -> bool:
        targets.log.wipes.append(await targets.servers.kill_redis(downtime))
        return True

    return Injection(targets.servers.redis_fault_lock, f"restarted empty after {downtime:.1f} s", inject)


def flush_redis(targets: Targets, rng: random.Random) -> Injection:
    async def inject() -> bool:
        targets.log.wipes.append(await targets.servers.flush_redis())
        return True

    return Injection(targets.servers.redis_fault_lock, "", inject)


def restart_postgres(targets: Targets, rng: random.Random) -> Injection:
    downtime = rng.uniform(0, 2 * _MAX_DOWNTIME)

    async def inject() -> bool:
        await targets.servers.restart_postgres(downtime)
        return True

    return Injection(targets.servers.postgres_fault_lock, f"restarted after {downtime:.1f} s", inject)


def crash_postgres(targets: Targets, rng: random.Random) -> Injection:
    downtime = rng.uniform(0, 2 * _MAX_DOWNTIME)

    async def inject() -> bool:
        await targets.servers.crash_postgres(downtime)
        return True

    return Injection(targets.servers.postgres_fault_lock, f"restarted after {downtime:.1f} s", inject)


def terminate_backends(targets: Targets, rng: random.Random) -> Injection:
    async def inject() -> bool:
        async with targets.servers.database() as database:
            await database.terminate_backends()
        return True

    return Injection(targets.servers.postgres_fault_lock, "", inject)


def disconnect_worker_before_commit(targets: Targets, rng: random.Random) -> Injection:
    return _disconnect(rng.choice(targets.workers), "before")


def disconnect_worker_after_commit(targets: Targets, rng: random.Random) -> Injection:
    return _disconnect(rng.choice(targets.workers), "after")


def disconnect_producer_before_commit(targets: Targets, rng: random.Random) -> Injection:
    return _disconnect(rng.choice(targets.producers), "before")


def disconnect_producer_after_commit(targets: Targets, rng: random.Random) -> Injection:
    return _disconnect(rng.choice(targets.producers), "after")


def drop_all_connections(targets: Targets, rng: random.Random) -> Injection:
    """Drop all connections of one process to PostgreSQL."""
    process = rng.choice([*targets.workers, *targets.producers])

    async def inject() -> bool:
        await process.proxy.drop()
        return True

    return Injection(process.fault_lock, process.name, inject)


FAULTS: dict[Fault, int] = {
    kill_worker: 4,
    kill_worker_before_commit: 2,
    kill_worker_after_commit: 3,
    kill_producer: 2,
    kill_producer_after_commit: 2,
    stop_worker: 3,
    freeze_worker: 3,
    kill_redis: 3,
    flush_redis: 3,
    restart_postgres: 2,
    crash_postgres: 2,
    terminate_backends: 2,
    disconnect_worker_before_commit: 4,
    disconnect_worker_after_commit: 4,
    disconnect_producer_before_commit: 2,
    disconnect_producer_after_commit: 2,
    drop_all_connections: 2,
}
"""All faults, with their weights: how often each is drawn in relation to the others."""


def name_of(fault: Fault) -> str:
    """The fault's name in words."""
    return fault.__name__.replace("_", " ")


async def _kill(process: ManagedProcess, downtime: float) -> bool:
    process.kill()
    await asyncio.sleep(downtime)
    process.start()
    return True


async def _kill_at_commit(process: ManagedProcess, when: When, downtime: float) -> bool:
    if not await _drop_on_commit(process, when):
        return False
    return await _kill(process, downtime)


async def _stop(worker: ManagedProcess, log: FaultLog) -> bool:
    await worker.stop_and_log(log)
    worker.start()
    return True


async def _freeze(process: ManagedProcess, seconds: float) -> bool:
    process.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        process.send(signal.SIGCONT)
    return True


def _disconnect(process: ManagedProcess, when: When) -> Injection:
    return Injection(process.fault_lock, process.name, partial(_drop_on_commit, process, when))


async def _drop_on_commit(process: ManagedProcess, when: When) -> bool:
    """Drop the connection on which the process commits next; whether it committed in time."""
    trap = process.proxy.drop_on(_COMMIT, when=when)
    try:
        async with asyncio.timeout(_COMMIT_TIMEOUT):
            while not trap.sprung:  # noqa: ASYNC110 - the proxy sends no event
                await asyncio.sleep(0.002)
    except TimeoutError:
        pass
    dropped, trap.sprung = trap.sprung, True  # a later COMMIT must not spring it
    return dropped
