"""When a worker has nothing left to do, on a real Redis and PostgreSQL."""

import asyncio
from typing import Any

import pytest

import db
from worker import Broker, task
from worker.engine.executions import Executions
from worker.engine.idle import Idle
from worker.engine.relay import Relay
from worker.engine.scheduler import Scheduler
from worker.engine.slots import Slots
from worker.ledger import Ledger


@task
async def count() -> None: ...


class OvertakenRelay(Relay):
    """A relay whose own loop publishes each row right before the sweep reaches it."""

    async def recover(self) -> int:
        await super().recover()
        return await super().recover()


@pytest.mark.usefixtures("database")
async def test_a_row_that_is_published_during_the_sweep_is_something_left(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job waits in Redis, although the sweep has published none."""

    async def refuse(*_: Any) -> None:
        raise OSError("Redis is away")

    with monkeypatch.context() as away:
        away.setattr(broker, "publish", refuse)
        async with db.scope():
            await count.enqueue()
    relay = OvertakenRelay(broker, Ledger(), [broker.name])
    scheduler = Scheduler(broker, {}, broker.name)
    idle = Idle(Executions(1), broker, [broker.name], relay, scheduler, Slots(1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await idle.reached()
    assert await broker.depth(broker.name) == 1
