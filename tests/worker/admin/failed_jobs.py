"""Failed jobs, and how they are counted, for tests of groups and of bulk actions."""

import time
from collections.abc import Awaitable, Callable

from pydantic_core import to_json

from tests.servers import Observer
from worker.admin.failure_groups import FailureOverview
from worker.admin.failures import Failures
from worker.message import encode

NOW = time.time_ns() // 1_000_000
_INSERT = """
    INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, payload, tries, error, finished_at)
    SELECT $1 || g, 1000, $2, $3, 'failed', $4, 3, replace($5, '{n}', g::text), $6::bigint - g
    FROM generate_series(1, $7::int) g
"""


def adder(postgres: Observer) -> Callable[..., Awaitable[None]]:
    """Adds failed jobs."""

    async def add(
        prefix: str,
        count: int,
        task: str = "send",
        error: str = "ValueError: order {n}",
        ended: int = NOW,
        queue: str = "mail",
    ) -> None:
        payload = encode(task, to_json({"to": "ann"}), 1_000)
        await postgres.execute(_INSERT, prefix, task, queue, payload, error, ended, count)

    return add


async def counted(failures: Failures) -> FailureOverview:
    """The groups, counted anew and completely."""
    failures.groups.forget()
    while True:
        overview = await failures.overview()
        if not overview.is_counting:
            return overview
