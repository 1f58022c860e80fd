"""What a scan found, as its rows say, and what became of its jobs, as their results say; and whether the two agree."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

import db
from tasks.models import Definition, Module
from worker import Job, JobFailed, JobInfo, JobStatus

_LARGEST = 5
_AT_ONCE = 20  # questions in flight, each on its own connection to Redis


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
class Outcomes:
    """What the results say, by path."""

    succeeded: Mapping[str, int]
    """The id of the module that the job wrote."""
    failed: Mapping[str, str]
    """Why."""
    unknown: Sequence[str]
    """Jobs that have no result."""


@dataclass(frozen=True)
class Comparison:
    """Something that must hold, in words."""

    words: str
    holds: bool


async def read_census(scan_id: int) -> Census:
    """Ask the database."""
    of_scan = Module.scan_id == scan_id
    modules = select(Module.id, Module.path, Module.lines).where(of_scan).order_by(Module.lines.desc(), Module.path)
    kinds = select(Definition.kind, func.count()).join(Module, Module.id == Definition.module_id).where(of_scan)
    async with db.scope():
        session = await db.session()
        rows = (await session.execute(modules)).all()
        counts = {kind: count for kind, count in await session.execute(kinds.group_by(Definition.kind))}
    return Census(
        modules={row.id: row.path for row in rows},
        lines=sum(row.lines for row in rows),
        classes=counts.get("class", 0),
        functions=counts.get("function", 0),
        largest=[(row.path, row.lines) for row in rows[:_LARGEST]],
    )


async def read_outcomes(jobs: Mapping[str, Job[int]]) -> Outcomes:
    """Ask each of the jobs, given by path."""
    infos = dict(zip(jobs, await _infos(list(jobs.values())), strict=True))
    ended = {path: info for path, info in infos.items() if info and info.status is JobStatus.complete}
    return Outcomes(
        succeeded={path: info.result for path, info in ended.items() if info.success},
        failed={path: _reason(info.result) for path, info in ended.items() if not info.success},
        unknown=[path for path in jobs if path not in ended],
    )


def compare(census: Census, outcomes: Outcomes) -> list[Comparison]:
    """Every job that succeeded has left its row, and no other has."""
    agree = sorted(census.modules) == sorted(outcomes.succeeded.values())
    left = set(census.modules.values()) & set(outcomes.failed)
    comparisons = [
        Comparison(
            f"{len(outcomes.succeeded):,} jobs succeeded, {len(census.modules):,} module rows are in the database, "
            f"and these are {'' if agree else 'NOT '}the ones that the jobs returned",
            agree,
        ),
        Comparison(f"{len(outcomes.failed):,} jobs failed, and {len(left):,} of them left a row", not left),
    ]
    if outcomes.unknown:
        comparisons.append(Comparison(f"{len(outcomes.unknown):,} jobs have no result", holds=False))
    return comparisons


async def _infos(jobs: Sequence[Job[int]]) -> list[JobInfo | None]:
    infos: list[JobInfo | None] = []
    for start in range(0, len(jobs), _AT_ONCE):
        infos += await asyncio.gather(*(job.info() for job in jobs[start : start + _AT_ONCE]))
    return infos


def _reason(error: object) -> str:
    return str(error) if isinstance(error, JobFailed) else f"{type(error).__name__}: {error}"
