"""What a producer does: transactions that commit, whole or in part, and transactions that do not; and no transaction.

Each act is written down before and after. Each transaction writes a marker row that names what it has enqueued: if the
row is there, the transaction was committed, whatever its producer was told.
"""

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

import db
from tests.chaos import tasks
from tests.chaos.journal import Fate, Journal, Outcome, Wish
from tests.chaos.schema import ADD_MARKER
from worker import Job, Task

Trouble = tuple[type[Exception], ...]

DATABASE_TROUBLE: Trouble = (SQLAlchemyError, db.DbError, OSError)
REDIS_TROUBLE: Trouble = (RedisError, OSError)

_SHARED_IDS = 4  # few, so that producers often ask for one that is taken, or has just become free
_BULK = 30
_LONG = 5.0  # seconds that a job keeps its worker's interpreter: more than two leases
_OFTEN = 0.03  # of such jobs: for so long it stops all of them, and they are to get something done, too


class RefusedError(Exception):
    """What a producer rolls back with."""


@dataclass
class Act:
    """One act under way."""

    name: str
    job_ids: dict[str, str] = field(default_factory=dict)
    outcome: Outcome = Outcome.UNKNOWN

    async def enqueue(self, wishes: Iterable[Wish]) -> list[Wish]:
        """Ask for the jobs, one after another; those of them whose id was free."""
        return [wish for wish in wishes if self._learn(wish, await _request(wish).enqueue(**_payload(wish)))]

    async def enqueue_many(self, wishes: list[Wish]) -> list[Wish]:
        """Ask for jobs of one task all at once; likewise."""
        jobs = await _request(wishes[0]).enqueue_many([_payload(wish) for wish in wishes])
        return [wish for wish, job in zip(wishes, jobs, strict=True) if self._learn(wish, job)]

    async def mark(self, enqueued: Iterable[Wish]) -> None:
        """Let the open transaction say what it has enqueued."""
        session: Any = await db.session()
        await session.execute(text(ADD_MARKER), {"transaction": self.name, "keys": [wish.key for wish in enqueued]})

    def _learn(self, wish: Wish, job: Job[Any]) -> bool:
        if job.is_new:
            self.job_ids[wish.key] = job.job_id
        return job.is_new


class Desk:
    """Where a producer works.

    Args:
        name: of this life of it; no other one has it.
        trouble: told of each error that it expects from servers that go away.
    """

    def __init__(self, name: str, dice: random.Random, journal: Journal, trouble: Callable[[str], None]) -> None:
        self.dice = dice
        self._name = name
        self._journal = journal
        self._trouble = trouble
        self._wishes = self._acts = 0
        self._last = Outcome.UNKNOWN

    async def act(self) -> Outcome:
        """Do one thing or another; what came of it."""
        perform = self.dice.choices([act for act, _ in ACTS], [weight for _, weight in ACTS])[0]
        await perform(self)
        return self._last

    @asynccontextmanager
    async def written(self, wishes: Iterable[Wish], expected: Trouble = DATABASE_TROUBLE) -> AsyncIterator[Act]:
        """Write down the wishes, and what became of them by the end of the block. Expected errors do not leave it."""
        self._acts += 1
        act = Act(f"{self._name}:{self._acts}")
        self._journal.intend(act.name, wishes)
        try:
            yield act
        except RefusedError:
            act.outcome = Outcome.REFUSED
        except expected as error:
            self._trouble(f"{act.name}: {type(error).__name__}: {error}")
        else:
            act.outcome = Outcome.DONE
        self._journal.learn(act.name, act.outcome, act.job_ids)
        self._last = act.outcome

    def wishes(self, fate: Fate, *, most: int = 3) -> list[Wish]:
        """One or more jobs of all sorts."""
        return [self._wish(fate, self._draw_task()) for _ in range(self.dice.randint(1, most))]

    def alike(self, fate: Fate, count: int) -> list[Wish]:
        """Many jobs of one task."""
        return [Wish(self._next_key(), tasks.insert.name, fate, {}) for _ in range(count)]

    def shared(self) -> Wish:
        """One with an id that the other producer uses, too."""
        job_id = f"shared-{self.dice.randrange(_SHARED_IDS)}"
        return Wish(self._next_key(), tasks.insert.name, Fate.COMMITTED, {}, job_id=job_id)

    def _wish(self, fate: Fate, task: Task[..., Any]) -> Wish:
        delay = self.dice.uniform(0, 3) if self.dice.random() < 0.2 else 0.0
        arguments = _ARGUMENTS[task.name](self.dice) if task.name in _ARGUMENTS else {}
        return Wish(self._next_key(), task.name, fate, arguments, delay=delay)

    def _draw_task(self) -> Task[..., Any]:
        return self.dice.choices([task for task, _ in _TASKS], [weight for _, weight in _TASKS])[0]

    def _next_key(self) -> str:
        self._wishes += 1
        return f"{self._name}-{self._wishes}"


async def _commits(desk: Desk) -> None:
    wishes = desk.wishes(Fate.COMMITTED)
    async with desk.written(wishes) as act, db.scope():
        await act.mark(await act.enqueue(wishes))


async def _commits_in_bulk(desk: Desk) -> None:
    wishes = desk.alike(Fate.COMMITTED, _BULK)
    async with desk.written(wishes) as act, db.scope():
        await act.mark(await act.enqueue_many(wishes))


async def _commits_a_shared_id(desk: Desk) -> None:
    wishes = [desk.shared()]
    async with desk.written(wishes) as act, db.scope():
        await act.mark(await act.enqueue(wishes))


async def _rolls_back(desk: Desk) -> None:
    wishes = desk.wishes(Fate.ROLLED_BACK)
    async with desk.written(wishes) as act, db.scope():
        await act.mark(await act.enqueue(wishes))
        raise RefusedError


async def _rolls_back_a_savepoint(desk: Desk) -> None:
    before, lost, kept = desk.wishes(Fate.COMMITTED), desk.wishes(Fate.SAVEPOINT), desk.wishes(Fate.COMMITTED)
    async with desk.written([*before, *lost, *kept]) as act, db.scope():
        session: Any = await db.session()
        await act.enqueue(before)
        with contextlib.suppress(RefusedError):
            async with session.begin_nested():
                await act.enqueue(lost)
                raise RefusedError
        async with db.atomic(current="savepoint"):
            await act.enqueue(kept)
        await act.mark([*before, *kept])


async def _commits_early(desk: Desk) -> None:
    """What was committed stands; what came after it goes with the rollback, or is committed in its turn."""
    refuses = desk.dice.random() < 0.5
    first, second = desk.wishes(Fate.COMMITTED), desk.wishes(Fate.ROLLED_BACK if refuses else Fate.COMMITTED)
    async with desk.written(second) as later, db.scope():
        async with desk.written(first) as early:
            await early.mark(await early.enqueue(first))
            await db.commit()
        if early.outcome is not Outcome.DONE:
            raise RefusedError
        await later.mark(await later.enqueue(second))
        if refuses:
            raise RefusedError


async def _enqueues_directly(desk: Desk) -> None:
    wishes = desk.wishes(Fate.DIRECT)
    async with desk.written(wishes, REDIS_TROUBLE) as act:
        await act.enqueue(wishes)


async def _enqueues_directly_in_a_transaction(desk: Desk) -> None:
    """Whatever becomes of the transaction."""
    refuses = desk.dice.random() < 0.5
    wishes = desk.wishes(Fate.DIRECT)
    async with desk.written(wishes, DATABASE_TROUBLE + REDIS_TROUBLE) as act, db.scope():
        await act.enqueue(wishes)
        await act.mark([])
        if refuses:
            raise RefusedError


def _request(wish: Wish) -> Any:
    task = next(task for task, _ in _TASKS if task.name == wish.task)
    return task.using(delay=wish.delay, job_id=wish.job_id, transactional=False if wish.fate is Fate.DIRECT else None)


def _payload(wish: Wish) -> dict[str, Any]:
    size = wish.arguments.get("size")
    filler = {} if size is None else {"filler": "x" * size}  # it is not to be in the journal
    return {"key": wish.key, **wish.arguments, **filler}


ACTS: tuple[tuple[Callable[[Desk], Awaitable[None]], int], ...] = (
    (_commits, 6),
    (_commits_in_bulk, 1),
    (_commits_a_shared_id, 2),
    (_rolls_back, 3),
    (_rolls_back_a_savepoint, 3),
    (_commits_early, 2),
    (_enqueues_directly, 3),
    (_enqueues_directly_in_a_transaction, 1),
)
"""And how often each is done, by comparison."""

_TASKS: tuple[tuple[Task[..., Any], int], ...] = (
    (tasks.insert, 6),
    (tasks.insert_in_thread, 2),
    (tasks.dawdle, 1),
    (tasks.falter, 1),
    (tasks.fail, 1),
    (tasks.fan_out, 1),
    (tasks.think, 1),
    (tasks.copy_first, 1),
    (tasks.see_one_snapshot, 1),
    (tasks.only_read, 1),
    (tasks.carry, 1),
    (tasks.keep_interpreter, 1),
    (tasks.terminate_a_child, 1),
    (tasks.exit_in_a_child, 1),
)

_ARGUMENTS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "dawdle": lambda dice: {"seconds": dice.choice([0.3, 1.0, 3.0])},
    "keep_interpreter": lambda dice: {"seconds": 0.05 if dice.random() > _OFTEN else _LONG},
    "falter": lambda dice: {"failures": dice.randint(1, 3)},
    "see_one_snapshot": lambda dice: {"seconds": dice.choice([0.3, 4.0])},
    "copy_first": lambda dice: {"fails": dice.random() < 0.3},
    "exit_in_a_child": lambda dice: {"fails": dice.random() < 0.3},
    "fan_out": lambda dice: {"children": dice.randint(1, 4), "fails": dice.random() < 0.3},
    "carry": lambda dice: {"size": dice.choice([10_000, 10_000, 1_000_000]), "fails": dice.random() < 0.5},
}
