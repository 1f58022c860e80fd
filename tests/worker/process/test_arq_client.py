"""`ctx["redis"]`: `enqueue_job` refuses what JSON would change, unless the job is to be a pickle."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from enum import Enum
from typing import Any

import pytest

from worker import Task, task
from worker.broker.connection import connect_as
from worker.client.options import TaskOptions
from worker.config import Config
from worker.errors import PayloadNotJSONError
from worker.process.arq_client import CheckedArqRedis
from worker.process.arq_codec import use_codec


class Colour(Enum):
    RED = "red"


@task
async def known(day: date, pair: tuple[int, int], anything: Any = None) -> None: ...


async def from_arq(ctx: Any, one: Any, two=None) -> None: ...  # type: ignore[no-untyped-def]


TASKS: dict[str, Task[Any, Any]] = {
    "known": known,
    "from_arq": Task(from_arq, "from_arq", TaskOptions(), is_arq=True),
}


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[CheckedArqRedis]:
    """The client as a worker makes it."""
    client = connect_as(CheckedArqRedis, redis_url)
    client.tasks = TASKS
    use_codec(client, Config.load())
    yield client
    await client.aclose(close_connection_pool=True)


@pytest.mark.parametrize("value", [(1, 2), {1: "one"}, {3}, b"bytes", date(2030, 1, 2), Colour.RED, [(1,)]])
@pytest.mark.parametrize("function", ["elsewhere", "from_arq"])
async def test_an_argument_that_json_would_change_is_refused(
    client: CheckedArqRedis, function: str, value: Any
) -> None:
    """By position and by name, for a task without annotations, and for one of another service. Nothing is queued."""
    with pytest.raises(PayloadNotJSONError, match="JSON would change this"):
        await client.enqueue_job(function, value)
    with pytest.raises(PayloadNotJSONError, match="two: JSON would change this"):
        await client.enqueue_job(function, 1, two=value)
    assert await client.keys("*") == []


@pytest.mark.parametrize("function", ["elsewhere", "from_arq"])
async def test_what_json_has_is_enqueued(client: CheckedArqRedis, function: str) -> None:
    """With arq's own options, whatever their types are."""
    value = {"a": [1, 2.5, None, True, "text"], "b": {}}
    job = await client.enqueue_job(
        function, value, two="", _job_id="mine", _defer_until=datetime(2040, 1, 1, tzinfo=UTC)
    )
    assert job is not None
    info = await job.info()
    assert info is not None
    assert list(info.args) == [value]
    assert info.kwargs == {"two": ""}


async def test_annotations_of_a_known_task_restore_what_json_does_not_have(client: CheckedArqRedis) -> None:
    """So it may be sent; what the annotation leaves open may not."""
    assert await client.enqueue_job("known", date(2030, 1, 2), (1, 2)) is not None
    with pytest.raises(PayloadNotJSONError, match="anything: JSON would change this tuple"):
        await client.enqueue_job("known", date(2030, 1, 2), (1, 2), anything=(1,))


async def test_arguments_that_do_not_fit_a_known_task_fail_in_the_worker(client: CheckedArqRedis) -> None:
    """As in arq: another worker may run newer code."""
    assert await client.enqueue_job("known", "no date", newer=1) is not None


async def test_a_pickle_may_hold_what_json_would_change(client: CheckedArqRedis) -> None:
    """As a hook enqueues it while the worker accepts pickles."""
    use_codec(client, Config.load(accept_pickle=True))
    assert await client.enqueue_job("elsewhere", (1, 2)) is not None
