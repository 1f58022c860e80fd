"""``@cron``: a task that workers enqueue on a schedule."""

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from datetime import tzinfo
from typing import Any

from worker.client.options import LONGEST, TaskOptions, text
from worker.client.schedule import Misfire, Schedule
from worker.client.zones import local_name, name_of
from worker.errors import TaskDefinitionError
from worker.task import Task, task

logger = logging.getLogger("worker")

_Field = int | Collection[int] | None


def cron(
    crontab: str | None = None,
    /,
    *,
    timezone: str = "UTC",
    misfire: Misfire = "skip",
    month: _Field = None,
    day: _Field = None,
    weekday: _Field | str = None,
    hour: _Field = None,
    minute: _Field = None,
    second: _Field = 0,
    run_at_startup: bool = False,
    **options: Any,
) -> Callable[[Callable[..., Any]], Task[Any, Any]]:
    """Run a function, or a task, on a schedule: ``@cron("*/5 * * * *", timezone="Europe/Berlin")``.

    ::

        @cron("30 2 * * *", timezone="Europe/Berlin")
        async def clean_up(session: AsyncSession) -> None:
            await session.execute(delete(Cart).where(Cart.is_old))

    Args:
        crontab: five fields, or six with seconds first.
        month, day, weekday, hour, minute, second: arq's keywords, instead of a crontab. A keyword that is left out
            matches every value, except that `second` is then 0.
        timezone: the IANA name of the zone whose clock the schedule follows, or an offset, as in "UTC+09:00".
        misfire: how to handle cron slots that passed while no worker ran: ``"skip"``, ``"once"`` or ``"all"``.
        run_at_startup: also run once when a worker starts.
        options: the options of `task`. By default a scheduled task keeps no result. A second schedule of a function
            needs a `name` of its own.

    Raises:
        TaskDefinitionError: the schedule is missing or wrong, or the task has a schedule already, or the function is a
            task already and options other than `name` are given. A function that needs arguments raises it when the
            registry is loaded.
    """
    by_keywords = second != 0 or any(field is not None for field in (month, day, weekday, hour, minute))
    if crontab is not None and not isinstance(crontab, str):
        raise TaskDefinitionError(
            f'@cron takes a crontab, @cron("*/5 * * * *"), or keywords, @cron(minute=5); not {crontab!r}'
        )
    if crontab is not None and by_keywords:
        raise TaskDefinitionError('@cron takes a crontab, "*/5 * * * *", or keywords, minute=5, not both')
    if crontab is None and not by_keywords:  # a missing setting, for example, must not mean every minute
        raise TaskDefinitionError('@cron has no schedule: give a crontab; "* * * * *" is every minute')
    schedule = (
        Schedule.parse(crontab, timezone=timezone, misfire=misfire)
        if crontab is not None
        else Schedule.from_keywords(
            month=month,
            day=day,
            weekday=weekday,
            hour=hour,
            minute=minute,
            second=second,
            timezone=timezone,
            misfire=misfire,
        )
    )
    schedule = replace(schedule, run_at_startup=run_at_startup)

    def scheduled(fn: Callable[..., Any]) -> Task[Any, Any]:
        if not isinstance(fn, Task):
            return _scheduled(task(**{"keep_result": 0, **options})(fn), schedule)
        if fn.schedule is not None:
            raise _second_schedule(fn, fn.schedule.expression, schedule.expression)
        if others := options.keys() - {"name"}:
            raise TaskDefinitionError(
                f"{fn.name} is a task already: move {', '.join(sorted(others))} from @cron to its @task"
            )
        return _scheduled(fn, schedule, name=_checked(options.get("name")))

    return scheduled


def _scheduled(plain: Task[Any, Any], schedule: Schedule, *, name: str | None = None) -> Task[Any, Any]:
    """Make a scheduled task of `plain`, under another name if one is given."""
    return Task(plain.fn, name or plain.name, plain.options, schedules=(schedule,), is_arq=plain.is_arq)


def _checked(name: object) -> str | None:
    try:
        return text(name, "name")
    except (TypeError, ValueError) as error:
        raise TaskDefinitionError(f"@cron: {error}") from None


def _second_schedule(scheduled: Task[Any, Any], first: str, second: str) -> TaskDefinitionError:
    function = scheduled.fn.__name__
    return TaskDefinitionError(
        f"{scheduled.name} has the schedule {first!r} already, and a task can have only one. To add {second!r}, make "
        "two tasks of the plain function, each with its own name, and list both: "
        f"{function}_2 = cron({second!r}, name='{function}_2')({function})"
    )


def from_arq(job: Any, *, timezone: tzinfo | str | None = None) -> Task[Any, Any]:
    """Make a task of the result of arq's ``func()`` or ``cron()`` (arq 0.28: `worker.Function`, `cron.CronJob`).

    They are recognized by their attributes, as importing arq would load its worker into every web app.

    Args:
        timezone: arq's setting: the zone whose clock the schedule of ``cron()`` follows (default: this system's).

    Raises:
        TaskDefinitionError: `job` is something else, or its schedule or the zone is wrong.
    """
    try:
        options = TaskOptions(
            timeout=job.timeout_s,
            max_tries=job.max_tries,
            keep_result=LONGEST if job.keep_result_forever else job.keep_result_s,
        )
        adopted: Task[Any, Any] = Task(job.coroutine, job.name, options, is_arq=True)
        if not hasattr(job, "calculate_next"):
            return adopted
        fields = ("month", "day", "weekday", "hour", "minute", "second", "microsecond")
        keywords = {name: getattr(job, name) for name in fields}
        further = {name: getattr(job, name) for name in ("run_at_startup", "unique", "job_id")}
    except AttributeError:
        raise TaskDefinitionError(f"{job!r} is neither a task nor the result of arq's func() or cron()") from None
    name = local_name() if timezone is None else name_of(timezone)
    return _scheduled(adopted, replace(Schedule.from_keywords(**keywords, timezone=name), **further))


def merge_schedules(tasks: Iterable[Task[Any, Any]]) -> list[Task[Any, Any]]:
    """Make one task of those that arq's ``cron()`` made of one function under one name: it has all of their schedules.

    As in arq, the options of the last one hold for all. Other tasks stay as they are.
    """
    merged: dict[object, Task[Any, Any]] = {}
    for each in tasks:
        key = (each.name, id(each.fn)) if each.is_arq and each.schedules else object()
        merged[key] = _with_schedules_of(merged[key], each) if key in merged else each
    return [*merged.values()]


def _with_schedules_of(first: Task[Any, Any], last: Task[Any, Any]) -> Task[Any, Any]:
    if first.options != last.options:
        logger.warning(
            "%s has several schedules with different options: as in arq, the last one's hold for all of them "
            "(timeout=%s, max_tries=%s, keep_result=%s). Give each cron() a name of its own to keep its options",
            last.name,
            last.options.timeout,
            last.options.max_tries,
            last.options.keep_result,
        )
    schedules = tuple(dict.fromkeys((*first.schedules, *last.schedules)))
    return Task(last.fn, last.name, last.options, schedules=schedules, is_arq=True)
