"""The state of a queue, in one round trip."""

from typing import Any

from worker import Broker
from worker.broker.queue_state import QueueInspector


async def test_a_job_that_a_stock_client_has_aborted_is_not_the_oldest(broker: Broker, observer: Any) -> None:
    """Its score is 1, which is no time."""
    inspector = QueueInspector(broker.connections)
    observer.zadd(broker.name, {"aborted": 1})
    assert (await inspector.snapshot(broker.name)).oldest_due is None
    now = (await inspector.snapshot(broker.name)).now
    observer.zadd(broker.name, {"due": now - 5_000})
    state = await inspector.snapshot(broker.name)
    assert (state.depth, state.due) == (2, 2)
    assert state.oldest_due is not None
    assert 5 <= state.oldest_due < 60
