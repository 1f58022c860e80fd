"""Read what a scan wrote to the database and how its jobs ended, and compare the two."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

import db
from tasks.models import Definition, Module
from worker import Job, JobFailed, JobInfo, JobStatus, default_broker

_LARGEST = 5
_AT_ONCE = 20  # jobs that are read at once, each on its own connection to Redis


@dataclass(frozen=True)
class Census:
    """The rows of a scan, summed up."""

    modules: Mapping[int, str]
    """Paths by id."""
    lines: int
    classes: int
    functions: int
    largest: Sequence[tuple[str, int]]
    """Path and lines of the largest modules, the largest first."""


@dataclass(frozen=True)
class Comparison:
    """A condition that must hold, with a text that describes it."""

    text: str
    holds: bool


class Outcomes:
    """The results of jobs, collected as the jobs end.

    Args:
        jobs: the jobs, in the default queue, by the path of the file that each indexes.
    """

    def __init__(self, jobs: Mapping[str, Job[int]]) -> None:
        self.succeeded: dict[str, int] = {}
        """The id of the module that each job wrote, by path."""
        self.failed: dict[str, str] = {}
        """The error of each failed job, by path."""
        self.total = len(jobs)
        self._unknown = dict(jobs)

    @property
    def complete(self) -> bool:
        """Whether the outcome of every job is known."""
        return not self._unknown

    async def collect(self) -> None:
        """Read the results of the jobs that have left the queue since the last call. Each result is read once."""
        broker = default_broker()
        queued = {job_id.decode() for job_id in await broker.redis.zrange(broker.name, 0, -1)}
        ended = [path for path, job in self._unknown.items() if job.job_id not in queued]
        for start in range(0, len(ended), _AT_ONCE):
            paths = ended[start : start + _AT_ONCE]
            infos = await asyncio.gather(*(self._unknown[path].info() for path in paths))
            for path, info in zip(paths, infos, strict=True):
                self._add(path, info)

    def _add(self, path: str, info: JobInfo | None) -> None:
        if info is not None and info.status is not JobStatus.complete:
            return  # committed, but not in the queue yet
        del self._unknown[path]
        if info is None:
            self.failed[path] = "the job was not found, nor its result"
        elif info.success:
            self.succeeded[path] = info.result
        else:
            error = info.result
            self.failed[path] = str(error) if isinstance(error, JobFailed) else f"{type(error).__name__}: {error}"


async def read_census(scan_id: int) -> Census:
    """Read the census of a scan from the database."""
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
    """Check that each job that succeeded wrote its row once, and that there are no other rows."""
    agree = sorted(census.modules) == sorted(outcomes.succeeded.values())
    left = set(census.modules.values()) & set(outcomes.failed)
    doubles = len(census.modules) - len(set(census.modules.values()))
    return (
        Comparison(
            f"jobs that succeeded: {len(outcomes.succeeded):,}, rows in the database: {len(census.modules):,}, "
            f"with {'the ids that' if agree else 'other ids than'} the jobs returned",
            agree,
        ),
        Comparison(f"jobs that failed: {len(outcomes.failed):,}, rows of these jobs: {len(left):,}", not left),
        Comparison(f"files that were indexed twice: {doubles:,}", not doubles),
    )
