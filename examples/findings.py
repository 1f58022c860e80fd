"""What a scan found, as its rows say, and what became of its jobs, as their results say; and whether the two agree."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

import db
from tasks.models import Definition, Module
from worker import Job, JobFailed, JobInfo, JobStatus, default_broker

_LARGEST = 5
_AT_ONCE = 20  # jobs asked at once, each through its own connection to Redis


@dataclass(frozen=True)
class Census:
    """What the rows say."""

    modules: Mapping[int, str]
    """Paths by id."""
    lines: int
    classes: int
    functions: int
    largest: Sequence[tuple[str, int]]
    """Path and lines of the largest modules, the largest first."""


@dataclass(frozen=True)
class Comparison:
    """Something that must hold, in words."""

    words: str
    holds: bool


class Outcomes:
    """What the results say, collected as the jobs end.

    Args:
        jobs: all in the default queue, by the path of the file that each indexes.
    """

    def __init__(self, jobs: Mapping[str, Job[int]]) -> None:
        self.succeeded: dict[str, int] = {}
        """The id of the module that a job wrote, by path."""
        self.failed: dict[str, str] = {}
        """Why, by path."""
        self.total = len(jobs)
        self._unknown = dict(jobs)

    @property
    def complete(self) -> bool:
        """Whether the outcome of every job is known."""
        return not self._unknown

    async def collect(self) -> None:
        """Ask the jobs that have left the queue since the last time: one question a look, and one a job in all."""
        broker = default_broker()
        queued = {job_id.decode() for job_id in await broker.redis.zrange(broker.name, 0, -1)}
        ended = [path for path, job in self._unknown.items() if job.job_id not in queued]
        for start in range(0, len(ended), _AT_ONCE):
            paths = ended[start : start + _AT_ONCE]
            infos = await asyncio.gather(*(self._unknown[path].info() for path in paths))
            for path, info in zip(paths, infos, strict=True):
                self._note(path, info)

    def _note(self, path: str, info: JobInfo | None) -> None:
        if info is not None and info.status is not JobStatus.complete:
            return  # committed, and not in the queue yet
        del self._unknown[path]
        if info is None:
            self.failed[path] = "nobody knows the job, nor its result"
        elif info.success:
            self.succeeded[path] = info.result
        else:
            error = info.result
            self.failed[path] = str(error) if isinstance(error, JobFailed) else f"{type(error).__name__}: {error}"


async def read_census(scan_id: int) -> Census:
    """Ask the database what was found."""
    of_scan = Module.scan_id == scan_id
    modules = select(Module.id, Module.path, Module.lines).where(of_scan).order_by(Module.lines.desc(), Module.path)
    kinds = select(Definition.kind, func.count()).join(Module, Module.id == Definition.module_id).where(of_scan)
    async with db.scope():
        session = await db.session()
        rows = (await session.execute(modules)).all()
        counts = dict((await session.execute(kinds.group_by(Definition.kind))).all())
    return Census(
        modules={row.id: row.path for row in rows},
        lines=sum(row.lines for row in rows),
        classes=counts.get("class", 0),
        functions=counts.get("function", 0),
        largest=[(row.path, row.lines) for row in rows[:_LARGEST]],
    )


def compare(census: Census, outcomes: Outcomes) -> tuple[Comparison, ...]:
    """Every job that succeeded has left its row, once, and no other has."""
    agree = sorted(census.modules) == sorted(outcomes.succeeded.values())
    left = set(census.modules.values()) & set(outcomes.failed)
    doubles = len(census.modules) - len(set(census.modules.values()))
    return (
        Comparison(
            f"jobs that succeeded: {len(outcomes.succeeded):,}, rows in the database: {len(census.modules):,}, "
            f"{'the very ones' if agree else 'not the ones'} that the jobs returned",
            agree,
        ),
        Comparison(f"jobs that failed: {len(outcomes.failed):,}, rows that they left: {len(left):,}", not left),
        Comparison(f"files that were indexed twice: {doubles:,}", not doubles),
    )
