"""The line about pickled jobs at a worker's start, on a real Redis."""

import pickle
from typing import Any

import pytest

from tests.worker.new_jobs import new_job
from worker import Broker
from worker.config import Config
from worker.process.pickled_jobs import log_pickled_jobs

PICKLE = pickle.dumps({"f": "x", "a": (), "k": {}, "et": 1})


async def logged(broker: Broker, caplog: pytest.LogCaptureFixture, **settings: Any) -> list[str]:
    """What a worker of the queues `mail` and `arq:queue` says."""
    caplog.clear()
    with caplog.at_level("INFO", logger="worker"):
        await log_pickled_jobs(Config.load(queues="arq:queue,mail", **settings), broker)
    return caplog.messages


async def test_one_line_names_the_queues_that_hold_pickles_and_what_to_set(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts them in the first hundred jobs. Where they are accepted it says that they run."""
    jobs = [new_job(f"{number}", PICKLE if number % 2 else b"{}", "mail") for number in range(150)]
    await broker.enqueue([*jobs, new_job("json", b"{}", "arq:queue")])
    (line,) = await logged(broker, caplog)
    assert line.startswith("pickled jobs in mail (")
    assert " of the first 100 jobs): they fail, and the ledger keeps them" in line
    assert "WORKER_ACCEPT_PICKLE=true" in line
    (line,) = await logged(broker, caplog, accept_pickle=True)
    assert "they run, as WORKER_ACCEPT_PICKLE is set" in line


async def test_nothing_is_said_of_queues_without_pickles(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Empty ones, JSON, and ids whose payload is missing or no text."""
    await broker.enqueue([new_job("json", b"{}", "mail")])
    client: Any = broker.redis
    await client.zadd("mail", {"none": 1, b"\xff": 1, "list": 1})
    await client.rpush("arq:job:list", "\x80")
    assert await logged(broker, caplog) == []


async def test_a_redis_that_is_away_does_not_keep_the_worker_from_starting(caplog: pytest.LogCaptureFixture) -> None:
    """The engine waits for it, and says so."""
    broker = Broker("redis://127.0.0.1:1/0")
    try:
        assert await logged(broker, caplog) == []
    finally:
        await broker.close()
