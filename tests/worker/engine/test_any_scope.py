"""In any scope, rows, jobs and callbacks commit or roll back with the transaction or savepoint that they were made in.

Programs of writes, commits, rollbacks and blocks are drawn at random and run on real servers. A model of each, by the
rules that the docstrings of `db` state, says what must be committed.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

import db
from tests.worker.engine.test_either_database import affect, database, effects
from worker import Broker

__all__ = ["database"]  # a fixture

NESTED = ("savepoint", "join", "begin_nested")
"""Blocks that may stand in others."""
OUTER = (*NESTED, "commit", "rollback", "begin")


@dataclass(frozen=True)
class Write:
    """One row, or one job, or one callback."""

    kind: str


@dataclass(frozen=True)
class End:
    """Of the transaction, early."""

    kind: str


@dataclass(frozen=True)
class Block:
    """Steps in a block of `db.atomic`, or of the session's own, which ends well or fails."""

    kind: str
    steps: "tuple[Step, ...]"
    fails: bool


Step = Write | End | Block

writes = st.builds(Write, st.sampled_from(["row", "job", "named job", "callback"]))
inner: st.SearchStrategy[Step] = st.deferred(lambda: writes | blocks(NESTED))
ends = st.builds(End, st.sampled_from(["db.commit", "session.commit", "db.rollback", "session.rollback", "db.close"]))


def blocks(kinds: tuple[str, ...]) -> st.SearchStrategy[Block]:
    return st.builds(Block, st.sampled_from(kinds), st.lists(inner, max_size=4).map(tuple), st.booleans())


programs = st.lists(writes | ends | blocks(OUTER), max_size=8)


class FailedError(Exception):
    """What a block fails with, and is caught behind it."""


class Run:
    """One program in one scope, and the model of it: the words that are committed, and those of each open savepoint."""

    def __init__(self, database: db.Database[Any]) -> None:
        self._database = database
        self._numbers = itertools.count()
        self._sent: dict[str, str] = {}
        self.told: list[str] = []
        self.committed: list[str] = []
        self._pending: list[list[str]] = [[]]
        self._in_transaction = False

    async def scope(self, program: list[Step], *, fails: bool) -> None:
        with suppress(FailedError):
            async with db.scope():
                await db.session(self._database)  # so that jobs go through this driver
                await self._all(program)
                if fails:
                    raise FailedError
        if fails:
            self._model_rollback()
        else:
            self._model_commit()

    async def _all(self, steps: "list[Step] | tuple[Step, ...]") -> None:
        for step in steps:
            match step:
                case Write():
                    await self._write(step.kind)
                case End():
                    await self._end(step.kind)
                case Block():
                    await self._block(step)

    async def _write(self, kind: str) -> None:
        word = f"{next(self._numbers)}: {kind}"
        self._pending[-1].append(word)
        match kind:
            case "row":
                await self._insert(word)
                self._in_transaction = True
            case "job":
                self._sent[(await affect.enqueue(word)).job_id] = word
            case "named job":
                self._sent[(await affect.using(job_id=word).enqueue(word)).job_id] = word
                self._in_transaction = True
            case "callback":
                db.on_commit(lambda: self.told.append(word), self._database)

    async def _insert(self, word: str) -> None:
        session, insert = await db.session(self._database), text("INSERT INTO effect (words) VALUES (:words)")
        if isinstance(session, db.Session):
            await asyncio.to_thread(session.execute, insert, {"words": word})
        else:
            await session.execute(insert, {"words": word})

    async def _end(self, kind: str) -> None:
        where, _, verb = kind.partition(".")
        if where == "db":
            await getattr(db, verb)()
        else:
            await self._by_session(verb)
        if verb == "commit":
            self._model_commit()
        else:
            self._model_rollback()

    async def _by_session(self, verb: str) -> None:
        session = await db.session(self._database)
        if isinstance(session, db.Session):
            await asyncio.to_thread(getattr(session, verb))
        else:
            await getattr(session, verb)()

    async def _block(self, block: Block) -> None:
        kind = block.kind
        if self._database.is_async is False and kind.startswith("begin"):
            kind = "savepoint"  # the session's own blocks are for threads
        if kind == "begin" and self._in_transaction:
            return  # SQLAlchemy refuses that
        model = self._model_block(kind)
        with suppress(FailedError):
            async with model, await self._opened(kind):
                if kind == "begin":
                    self._in_transaction = True
                await self._all(block.steps)
                if block.fails:
                    raise FailedError

    async def _opened(self, kind: Any) -> AbstractAsyncContextManager[Any]:
        if kind.startswith("begin"):
            return getattr(await db.session(self._database), kind)()  # type: ignore[no-any-return]
        return db.atomic(kind, database=self._database)

    def _model_block(self, kind: str) -> AbstractAsyncContextManager[None]:
        if kind == "commit":
            self._model_commit()
        if kind == "rollback":
            self._model_rollback()
        if kind == "begin" or not (kind == "begin_nested" or self._has_begun):
            return self._model_transaction()
        return self._model_nothing() if kind == "join" else self._model_savepoint()

    @asynccontextmanager
    async def _model_transaction(self) -> AsyncIterator[None]:
        """Of the block's own: what waits for a COMMIT since before it stays, if the block fails."""
        earlier = [*self._pending[0]]
        try:
            yield
        except FailedError:
            self._model_rollback()
            self._pending = [earlier]
            raise
        self._model_commit()

    @asynccontextmanager
    async def _model_savepoint(self) -> AsyncIterator[None]:
        self._in_transaction = True
        self._pending.append([])
        try:
            yield
        except FailedError:
            self._pending.pop()
            raise
        released = self._pending.pop()
        self._pending[-1] += released

    @asynccontextmanager
    async def _model_nothing(self) -> AsyncIterator[None]:
        yield

    def _model_commit(self) -> None:
        self.committed += itertools.chain(*self._pending)
        self._model_rollback()

    def _model_rollback(self) -> None:
        self._pending = [[]]
        self._in_transaction = False

    @property
    def _has_begun(self) -> bool:
        return self._in_transaction or any(self._pending)

    def words(self, kind: str) -> list[str]:
        """What was committed of one kind."""
        return sorted(word for word in self.committed if word.endswith(f": {kind}"))

    def sent(self, ids: "list[str]") -> list[str]:
        """Whose jobs these are."""
        return sorted(self._sent[job_id] for job_id in ids)


@pytest.mark.parametrize("driver", ["AsyncSession", "Session"])
async def test_rows_jobs_and_callbacks_commit_or_roll_back_together_in_random_scopes(
    database: db.Database[Any], broker: Broker, observer: Any, driver: str
) -> None:
    """The database, the ledger, Redis and the callbacks hold what the model committed, and nothing else."""
    chosen = database if driver == "AsyncSession" else database.sync
    loop = asyncio.get_running_loop()

    async def runs(program: list[Step], fails: bool) -> None:
        observer.flushdb()
        async with db.scope():
            for table in ("effect", "tandem_jobs"):
                await (await db.session()).execute(text(f"DELETE FROM {table}"))
        run = Run(chosen)
        await run.scope(program, fails=fails)
        jobs = sorted(run.words("job") + run.words("named job"))
        assert await effects() == sorted(run.words("row"))
        assert run.sent(observer.zrange(broker.name, 0, -1)) == jobs
        async with db.scope():
            rows = await (await db.session()).scalars(text("SELECT id FROM tandem_jobs WHERE state = 'pending'"))
        assert run.sent([*rows]) == jobs
        assert sorted(run.told) == run.words("callback")

    # The same ones each time: what a longer search finds becomes a test of its own.
    @settings(max_examples=150, derandomize=True, database=None)
    @given(programs, st.booleans())
    @example([Write("job"), Write("callback"), Block("begin", (Write("job"), Write("row")), fails=True)], False)
    @example([Write("job"), Block("savepoint", (Write("job"), Write("row")), fails=True)], False)
    def hold(program: list[Step], fails: bool) -> None:
        asyncio.run_coroutine_threadsafe(runs(program, fails), loop).result()

    await asyncio.to_thread(hold)
