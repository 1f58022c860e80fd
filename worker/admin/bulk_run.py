"""``BulkRun``: retry or discard many failed jobs, in batches, at a pace, or one before the others."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from db.errors import DbError
from db.text.plural import plural
from worker.admin.bulk_progress import BulkAction, BulkProgress, BulkState
from worker.admin.bulk_steps import BulkSteps
from worker.broker.errors import RedisError
from worker.errors import LedgerError
from worker.ledger import State
from worker.ledger.admin import Key

_CANARY_LIMIT = 300.0  # seconds that the first job may take
_POLL = 0.5  # seconds


class BulkRun:
    """One bulk action, while it goes on in this process.

    Args:
        steps: does the single steps.
        progress: what is to be done.
        on_end: called when the action has ended, however that was.
    """

    def __init__(self, steps: BulkSteps, progress: BulkProgress, on_end: Callable[[], None]) -> None:
        self._steps = steps
        self._on_end = on_end
        self.progress = progress
        self._audit_row: int | None = None
        self._may_go_on = True

    async def begin(self) -> None:
        """Write the audit row, and that the action has begun."""
        self._audit_row = await self._steps.begin_audit(self.progress)
        await self._save(state=BulkState.TRYING if self.progress.one_first else BulkState.RUNNING)

    async def go_on(self) -> None:
        """Do the action, to its end or until it is stopped."""
        try:
            if not self.progress.one_first or await self._try_one():
                await self._all()
        except (SQLAlchemyError, DbError, RedisError, LedgerError, OSError) as error:
            await self._over(BulkState.BROKEN, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await self._over(BulkState.STOPPED, "the process that did it ended")
            raise
        finally:
            self._on_end()

    async def _all(self) -> None:
        selection, pace = self.progress.selection, self.progress.pace
        at_once = None if pace is None else max(1, round(pace))
        next_batch = time.monotonic()
        async for chunk in self._steps.search.failed_keys(selection.row_filter, selection.kind):
            keys = [Key(*key) for key in chunk]
            for first in range(0, len(keys), at_once or len(keys)):
                async for batch in self._steps.admin.batches(keys[first : first + (at_once or len(keys))]):
                    await self._batch(batch)
                    if not self._may_go_on:
                        await self._over(BulkState.STOPPED, "stopped by hand")
                        return
                if pace is not None:
                    next_batch = max(next_batch, time.monotonic() - 1) + (at_once or 1) / pace
                    await self._pause(next_batch - time.monotonic())
        await self._over(BulkState.DONE)

    async def _batch(self, batch: Sequence[Key]) -> None:
        rejections = await self._steps.act(self.progress.action, batch)
        progress = self.progress
        note = f"{rejections[-1].id}: {rejections[-1].why}" if rejections else progress.note
        done = progress.done + len(batch) - len(rejections)
        await self._save(done=done, rejected=progress.rejected + len(rejections), note=note)

    async def _try_one(self) -> bool:
        """Retry the latest job alone, and wait for its end. Returns whether to go on with the rest."""
        selection = self.progress.selection
        first = [
            key
            async for chunk in self._steps.search.failed_keys(selection.row_filter, selection.kind, most=1)
            for key in chunk
        ]
        if not first:
            return True
        key = Key(*first[0])
        await self._save(first_job=key.id)
        if rejections := await self._steps.act(BulkAction.RETRY, [key]):
            await self._over(BulkState.STOPPED, f"{key.id}: {rejections[0].why}")
            return False
        await self._save(done=1)
        ends = time.monotonic() + _CANARY_LIMIT
        while time.monotonic() < ends:
            row = await self._steps.search.row_of(*key)
            state = None if row is None else State(row["state"])
            if state in (State.DONE, None):
                await self._save(state=BulkState.RUNNING)
                return self._may_go_on
            if row is not None and state is not State.PENDING:
                await self._over(
                    BulkState.STOPPED, f"the first job ended {state}: {row['error'] or 'without an error'}"
                )
                return False
            await self._pause(_POLL)
            if not self._may_go_on:
                await self._over(BulkState.STOPPED, "stopped by hand")
                return False
        await self._over(BulkState.STOPPED, f"the first job has not ended within {_CANARY_LIMIT:.0f} s")
        return False

    async def _pause(self, seconds: float) -> None:
        """Sleep, and say now and then that the action is alive."""
        ends = time.monotonic() + seconds
        while self._may_go_on and (left := ends - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 1.0))
            await self._save()

    async def _over(self, state: BulkState, note: str | None = None) -> None:
        await self._save(state=state, **({} if note is None else {"note": note}))
        progress = self.progress
        outcome = f"{state}: {plural(progress.done, 'job')}" + (
            f", {progress.rejected} left as they are" if progress.rejected else ""
        )
        if self._audit_row is not None:
            await self._steps.end_audit(self._audit_row, outcome + (f" ({note})" if note else ""))

    async def _save(self, **changes: Any) -> None:
        self.progress = self.progress.model_copy(update=changes | {"updated_at": _now()})
        self._may_go_on = await self._steps.save(self.progress)


def _now() -> int:
    return time.time_ns() // 1_000_000
