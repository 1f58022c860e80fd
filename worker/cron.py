"""``@cron``: a task that workers enqueue on a schedule."""

import logging
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

from worker.client.options import LONGEST, TaskOptions, text
from worker.client.schedule import Misfire, Schedule
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

    Args:
        crontab: five fields, or six with seconds first.
        month, day, weekday, hour, minute, second: arq's keywords, instead of a crontab. A keyword that is left out
            matches every value, except that `second` is then 0.
        timezone: the IANA name of the zone whose clock the schedule follows.
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

    def scheduled(fn: Callable[..., Any]) -> Task[Any, Any]:
        if not isinstance(fn, Task):
            return on_schedule(task(**{"keep_result": 0, **options})(fn), schedule, run_at_startup=run_at_startup)
        if fn.schedule is not None:
            raise _second_schedule(fn, fn.schedule.expression, schedule.expression)
        if others := options.keys() - {"name"}:
            raise TaskDefinitionError(
                f"{fn.name} is a task already: move {', '.join(sorted(others))} from @cron to its @task"
            )
        return on_schedule(fn, schedule, name=_checked(options.get("name")), run_at_startup=run_at_startup)

    return scheduled


def on_schedule(
    plain: Task[Any, Any], schedule: Schedule, *, name: str | None = None, run_at_startup: bool
) -> Task[Any, Any]:
    """Make a scheduled task of `plain`.

    Args:
        name: the scheduled task's name on the wire (default: that of `plain`).
    """
    return Task(
        plain.fn,
        name or plain.name,
        plain.options,
        schedule=schedule,
        run_at_startup=run_at_startup,
        is_arq=plain.is_arq,
    )


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


def from_arq(job: Any) -> Task[Any, Any]:
    """Make a task of the result of arq's ``func()`` or ``cron()`` (arq 0.28: `worker.Function`, `cron.CronJob`).

    They are recognized by their attributes, as importing arq would load its worker into every web app.

    Raises:
        TaskDefinitionError: `job` is something else.
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
        schedule = Schedule.from_keywords(**{name: getattr(job, name) for name in fields})
    except AttributeError:
        raise TaskDefinitionError(f"{job!r} is neither a task nor the result of arq's func() or cron()") from None
    if _here_is_not_utc() and any(getattr(job, name) is not None for name in ("month", "day", "weekday", "hour")):
        logger.warning(
            "%s is declared with arq's cron() and runs by UTC here; arq runs it in the machine's time zone: "
            "write @cron(..., timezone=...) with that zone, or with 'UTC'",
            job.name,
        )
    return on_schedule(adopted, schedule, run_at_startup=job.run_at_startup)


def _here_is_not_utc() -> bool:
    """Whether the machine's time zone differs from UTC, in winter or in summer."""
    now = datetime.now(UTC)
    return any(now.replace(month=month, day=1).astimezone().utcoffset() for month in (1, 7))
