"""A small project's jobs, queues and workers on real servers, for the tests of the dashboard and for its pictures.

Jobs are in every state, failures have groups, and workers have measured three days. The same at each call, but for the
times, which end now.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import asyncpg
from pydantic_core import to_json

from worker import Broker
from worker.broker.keys import Keys
from worker.broker.metrics import Measurements, MetricsStore
from worker.broker.progress import ProgressRecord, ProgressRecords
from worker.broker.worker_records import WorkerRecords
from worker.message import encode
from worker.metrics.counts import BOUNDS, BUSY, LANES, OUTCOMES, RAN, WAITED
from worker.metrics.counts import encode as encode_row
from worker.metrics.records import encode_ended, encode_report
from worker.new_job import NewJob

QUEUES = ("arq:queue", "mail", "reports")
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000

COLUMNS = (
    *("id", "enqueued_at", "task", "queue", "state", "payload", "due"),
    *("started_at", "finished_at", "result", "error", "traceback", "tries", "history"),
)

TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/tasks/billing.py", line 48, in charge
    receipt = await gateway.charge(order.total, card=order.card_id)
              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/srv/shop/gateway.py", line 112, in charge
    response = await self._client.post("/v1/charges", json=body, headers={"Authorization": "Bearer sk_live_51Hq"})
               ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/srv/shop/.venv/lib/python3.13/site-packages/httpx/_client.py", line 1859, in post
    return await self.request(
           ^^^^^^^^^^^^^^^^^^^
httpx.ReadTimeout: the gateway did not answer within 10 s
"""


@dataclass(frozen=True)
class Kind:
    """A task, and how its jobs go."""

    task: str
    queue: str
    arguments: dict[str, Any]
    seconds: float
    share: float
    result: Any = None


KINDS = (
    Kind("mail.send_receipt", "mail", {"order_id": 48213, "to": "ann@example.com", "locale": "de"}, 0.18, 0.5),
    Kind("billing.charge", "arq:queue", {"order_id": 48213, "card_id": "card_9f2", "token": "tok_1Hq"}, 0.62, 0.18),
    Kind("search.reindex", "arq:queue", {"product_id": 7712}, 0.05, 0.24, {"documents": 14}),
    Kind(
        "reports.build",
        "reports",
        {"month": "2026-11", "rows": 182_000},
        9.4,
        0.08,
        "reports/11.xlsx",
    ),
)

FAILURES = (
    # task, error, jobs, first and last failure in hours before now
    ("billing.charge", "ReadTimeout: the gateway did not answer within {n} s", 214, 7.0, 0.03),
    ("mail.send_receipt", "SMTPServerDisconnected: connection {n} to smtp-2 was lost", 61, 22.0, 0.4),
    ("reports.build", "MemoryError: month {n} has too many rows", 9, 20.0, 2.1),
    ("search.reindex", "KeyError: 'price'", 3, 0.6, 0.2),
    ("mail.send_receipt", "ValueError: order {n} has no address", 27, 23.0, 5.5),
)


@dataclass
class World:
    """The servers, and what is on them."""

    broker: Broker
    postgres: "asyncpg.Connection[Any]"
    now: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    chance: Random = field(default_factory=lambda: Random(18))
    running: list[tuple[str, Kind, int]] = field(default_factory=list)

    async def furnish(self, *, days: int = 1) -> None:
        """Fill the servers.

        Args:
            days: for how long the workers have measured.
        """
        await self._ended()
        await self._failed()
        await self._waiting()
        await self._measured(days)
        await self._without_rows()

    @asynccontextmanager
    async def workers(self) -> AsyncIterator[None]:
        """Let three workers say every half second that they live."""
        await self._beat()
        beating = asyncio.create_task(self._beat_on())
        try:
            yield
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating

    def id(self) -> str:
        """An id, as `enqueue` makes them."""
        return f"{self.chance.getrandbits(128):032x}"

    async def add_rows(self, rows: Sequence[Sequence[Any]]) -> None:
        """Insert job rows: id, enqueued_at, task, queue, state, payload, due, started_at, finished_at, result, error,
        traceback, tries, history."""
        names = (
            "id enqueued_at task queue state payload due started_at finished_at result error traceback tries history"
        )
        await self.postgres.copy_records_to_table("tandem_jobs", records=rows, columns=names.split())

    async def _ended(self) -> None:
        rows = []
        for nth in range(1_200):
            kind = self._kind()
            ended = self.now - nth * 2_500 - self.chance.randrange(2_000)
            took = self._took(kind)
            enqueued = ended - took - self.chance.randrange(20, 900)
            state = "done" if nth % 97 else ("aborted", "expired", "discarded")[nth // 97 % 3]
            result = to_json(kind.result) if state == "done" else None
            payload = encode(kind.task, to_json(self._arguments(kind)), enqueued, in_ledger=True)
            started = None if state == "expired" else ended - took
            key = (self.id(), enqueued, kind.task, kind.queue, state, payload, enqueued)
            rows.append((*key, started, ended, result, None, None, 1, None))
        await self.add_rows(rows)

    async def _failed(self) -> None:
        rows = []
        for task, error, jobs, first, last in FAILURES:
            kind = next(kind for kind in KINDS if kind.task == task)
            for nth in range(jobs):
                part = nth / max(jobs - 1, 1)
                hours = last + (first - last) * part**1.6
                ended = round(self.now - hours * HOUR)
                enqueued = ended - 64_000
                payload = encode(task, to_json(self._arguments(kind)), enqueued, in_ledger=True)
                text = error.format(n=10 + 5 * (nth % 4) if "answer" in error else 48_000 + nth)
                earlier = {"error": text, "tries": 5, "finished_at": ended - 2 * HOUR}
                history = to_json([earlier]).decode() if nth == 0 else None
                key = (self.id(), enqueued, task, kind.queue, "failed", payload, enqueued)
                result = to_json({"type": error.partition(":")[0]})
                rows.append((*key, ended - 10_012, ended, result, text, TRACEBACK, 5, history))
        await self.add_rows(rows)

    async def _waiting(self) -> None:
        jobs = []
        for nth in range(340):
            kind = KINDS[1] if nth % 3 else KINDS[2]
            at = self.now - 400 * nth // 3
            jobs.append(self._new(kind, at, at))
        for nth in range(46):
            kind = KINDS[nth % 4]
            jobs.append(self._new(kind, self.now - nth * 900, self.now + (nth + 1) * 7 * MINUTE))
        jobs += [self._new(KINDS[3], self.now - 30_000 * nth, self.now - 30_000 * nth) for nth in range(18)]
        await self.broker.enqueue(jobs)
        for nth in range(26):
            kind = KINDS[(0, 1, 1, 2, 3)[nth % 5]]
            at = self.now - 700 - 311 * nth
            job = self._new(kind, at, self.now - DAY)
            await self.broker.enqueue([job])
            await self.broker.claim(kind.queue, f"token-{nth}", 3_000_000, 1)
            self.running.append((job.id, kind, at))
        record = ProgressRecord(61_400, 182_000, "writing November", 1, self.running[4][2], self.now - 400)
        await ProgressRecords(self.broker.connections).write("reports", self.running[4][0], record, HOUR)

    async def _without_rows(self) -> None:
        latest = [
            (self.id(), "search.reindex", "completed", at - 90, at - 60, at, 1, "")
            for at in range(self.now - 90_000, self.now, 9_000)
        ]
        store = MetricsStore(self.broker.connections)
        await store.add(
            "arq:queue", "9f2c01", LANES, Measurements({}, ended=len(latest), latest=encode_ended("web-1", latest))
        )

    async def _measured(self, days: int) -> None:
        for resolution, count in ((60, 60), (600, 144 * days)):
            last = self.now // (resolution * 1000)
            for queue in QUEUES:
                async with self.broker.redis.pipeline(transaction=False) as pipe:
                    for number in range(last - count + 1, last + 1):
                        rows = {
                            kind.task: self._row(kind, number * resolution, resolution)
                            for kind in KINDS
                            if kind.queue == queue
                        }
                        rows[""] = [sum(lane) for lane in zip(*rows.values(), strict=True)]
                        key = f"{Keys.of(queue).metrics}{resolution * 1000}:{number}"
                        pipe.hset(key, mapping={task: encode_row(row) for task, row in rows.items()})
                        pipe.pexpire(key, 3 * DAY)
                    await pipe.execute()

    def _row(self, kind: Kind, start: int, seconds: int) -> list[int]:
        row = [0] * LANES
        hour = start % 86_400 / 3600
        wave = 0.62 + 0.3 * math.sin((hour - 8) / 24 * 2 * math.pi) + 0.12 * math.sin(start / 700)
        jobs = max(round(14 * kind.share * seconds * wave * self.chance.uniform(0.88, 1.1)), 1)
        outage = 0.06 if kind.task == "billing.charge" and 3.2 * 3600 < self.now / 1000 - start < 4 * 3600 else 0.0006
        recent = 0.03 if kind.task == "billing.charge" and 600 < self.now / 1000 - start < 1500 else 0.0
        failed = round(jobs * (outage + recent))
        for outcome, number in {"completed": jobs - failed, "failed": failed, "retried": round(jobs * 0.011)}.items():
            row[OUTCOMES.index(outcome)] = number
        row[BUSY] = round(jobs * kind.seconds)
        busy = 1 + 5 * (outage > 0.01 or recent > 0)
        for lane, middle, spread in ((WAITED, 24 * busy * wave, 0.9), (RAN, kind.seconds * 1000, 0.55)):
            for _ in range(min(jobs, 40)):
                value = middle * math.exp(self.chance.gauss(0, spread))
                place = next((nth for nth, bound in enumerate(BOUNDS) if value <= bound), len(BOUNDS))
                row[lane + place] += max(jobs // 40, 1)
        return row

    async def _beat_on(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            await self._beat()

    async def _beat(self) -> None:
        store, records = MetricsStore(self.broker.connections), WorkerRecords(self.broker.connections)
        for nth, (name, process) in enumerate((("web-1", "9f2c01"), ("web-2", "4b7a55"), ("batch-1", "c0d3e8"))):
            queues = ("reports",) if name == "batch-1" else ("arq:queue", "mail")
            mine = [
                each
                for place, each in enumerate(self.running)
                if each[1].queue in queues and (nth == 2 or place % 2 == nth)
            ]
            fields = {
                "id": name,
                "state": "draining" if name == "web-2" else "working",
                "why": "",
                "queues": queues,
                "host": f"shop-{nth + 1}",
                "pid": 4021 + 17 * nth,
                "version": "0.2.0",
                "started_at": self.now - (3 + 20 * nth) * HOUR,
                "slots": 16 if nth < 2 else 6,
                "busy": len(mine),
                "pool": {"size": 19 if nth < 2 else 7, "used": max(len(mine) - 2, 0), "idle": 3},
                "last_healthy": 0.2,
                "last_heartbeat": 0.3,
                "loop_lag": 0.0021 + 0.0013 * nth,
                "memory": 91_000_000 + 23_400_000 * nth,
                "done": 182_301 - 40_113 * nth,
                "failed": 211 - 60 * nth,
                "retried": 1_902,
                "metrics_port": None,
            }
            for queue in queues:
                jobs = [(job_id, kind.task, kind.queue, 1, at) for job_id, kind, at in mine if kind.queue == queue]
                record = encode_report(fields, jobs)
                await store.add(queue, process, LANES, Measurements({}, record=record))
                await records.announce(queue, [kind.task for kind in KINDS if kind.queue == queue], 30_000)

    def _new(self, kind: Kind, enqueued_at: int, due: int) -> NewJob:
        payload = encode(kind.task, to_json(self._arguments(kind)), enqueued_at)
        return NewJob(self.id(), payload, kind.task, kind.queue, enqueued_at, due=due, expires=None)

    def _kind(self) -> Kind:
        return self.chance.choices(KINDS, [kind.share for kind in KINDS])[0]

    def _took(self, kind: Kind) -> int:
        return max(round(kind.seconds * 1000 * math.exp(self.chance.gauss(0, 0.5))), 1)

    def _arguments(self, kind: Kind) -> dict[str, Any]:
        change = self.chance.randrange(4_000)
        return {name: value + change if isinstance(value, int) else value for name, value in kind.arguments.items()}
