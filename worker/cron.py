"""``@cron``: a task that runs by itself, on a schedule."""

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
        crontab: five fields, or six with seconds in front. Instead of it arq's keywords `month`, `day`, `weekday`,
            `hour`, `minute` and `second`, with arq's meaning: one that is not given matches always, but `second` is 0.
        timezone: the zone whose clock the schedule speaks of (IANA name).
        misfire: what becomes of slots that passed while no worker ran: ``"skip"``, ``"once"`` or ``"all"``.
        run_at_startup: run once more when a worker starts.
        options: those of `task`. Unlike other tasks, a scheduled one keeps no result unless it says so. A second
            schedule of a function needs a `name` of its own.

    Raises:
        TaskDefinitionError: it is no schedule, or there is none; a task that has one already; options other than
            `name` for a function that is a task already. A function that needs arguments is refused when the registry
            is loaded.
    """
    by_keywords = second != 0 or any(field is not None for field in (month, day, weekday, hour, minute))
    if crontab is not None and not isinstance(crontab, str):
        raise TaskDefinitionError(
            f'@cron takes a crontab, @cron("*/5 * * * *"), or keywords, @cron(minute=5); not {crontab!r}'
        )
    if crontab is not None and by_keywords:
        raise TaskDefinitionError('@cron takes a crontab, "*/5 * * * *", or keywords, minute=5, not both')
    if crontab is None and not by_keywords:  # it would run every minute: a setting that is not set, say
        raise TaskDefinitionError('@cron was given no schedule: "* * * * *" is every minute')
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
            raise TaskDefinitionError(f"{fn.name} is a task already: give {', '.join(sorted(others))} to its @task")
        return on_schedule(fn, schedule, name=_checked(options.get("name")), run_at_startup=run_at_startup)

    return scheduled


def on_schedule(
    plain: Task[Any, Any], schedule: Schedule, *, name: str | None = None, run_at_startup: bool
) -> Task[Any, Any]:
    """`plain` as a task that runs by itself; `name`: of its own, on the wire."""
    return Task(plain.fn, name or plain.name, plain.options, schedule=schedule, run_at_startup=run_at_startup)


def _checked(name: object) -> str | None:
    try:
        return text(name, "name")
    except (TypeError, ValueError) as error:
        raise TaskDefinitionError(f"@cron: {error}") from None


def _second_schedule(scheduled: Task[Any, Any], first: str, second: str) -> TaskDefinitionError:
    function = scheduled.fn.__name__
    return TaskDefinitionError(
        f"{scheduled.name} has the schedule {first!r} already, and a task has one. For {second!r} as well, make two "
        "tasks of the plain function, each with a name of its own, and list both: "
        f"{function}_2 = cron({second!r}, name='{function}_2')({function})"
    )


def adopt(job: Any) -> Task[Any, Any]:
    """The task that arq's ``func()`` or ``cron()`` describes (arq 0.28: `worker.Function`, `cron.CronJob`).

    Told by their attributes, as importing arq would load its worker into every web app.

    Raises:
        TaskDefinitionError: it is neither.
    """
    try:
        options = TaskOptions(
            timeout=job.timeout_s,
            max_tries=job.max_tries,
            keep_result=LONGEST if job.keep_result_forever else job.keep_result_s,
        )
        adopted: Task[Any, Any] = Task(job.coroutine, job.name, options)
        if not hasattr(job, "calculate_next"):
            return adopted
        fields = ("month", "day", "weekday", "hour", "minute", "second", "microsecond")
        schedule = Schedule.from_keywords(**{name: getattr(job, name) for name in fields})
    except AttributeError:
        raise TaskDefinitionError(f"{job!r} is neither a task nor what arq's func() or cron() return") from None
    if _here_is_not_utc() and any(getattr(job, name) is not None for name in ("month", "day", "weekday", "hour")):
        logger.warning(
            "%s is arq's cron() and runs by UTC here, where arq goes by the zone of the machine: "
            "write @cron(..., timezone=...) with that zone, or with 'UTC'",
            job.name,
        )
    return on_schedule(adopted, schedule, run_at_startup=job.run_at_startup)


def _here_is_not_utc() -> bool:
    """Whether the clock of this machine shows another time than UTC, in winter or in summer."""
    now = datetime.now(UTC)
    return any(now.replace(month=month, day=1).astimezone().utcoffset() for month in (1, 7))
