"""`@cron`, and tasks that are made of arq's `cron()` and `func()`."""

import time
from datetime import UTC, datetime, timedelta, tzinfo
from datetime import timezone as datetime_timezone
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import arq
import pytest
from arq.cron import next_cron
from arq.worker import func

import db
from worker import cron, task
from worker.cron import from_arq, merge_schedules
from worker.errors import TaskDefinitionError

MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)


async def clean(ctx: dict[Any, Any]) -> None: ...


async def resize(ctx: dict[Any, Any], image: str) -> None: ...


class TestCron:
    def test_a_crontab_follows_the_clock_of_its_time_zone(self) -> None:
        """The five fields mean the clock of the given zone."""
        scheduled = cron("30 7 * * *", timezone="Europe/Berlin")(clean)
        assert scheduled.schedule is not None
        assert scheduled.schedule.next_after(MIDNIGHT) == MIDNIGHT.replace(hour=6, minute=30)
        assert (scheduled.name, scheduled.run_at_startup) == ("clean", False)

    def test_the_keywords_of_arqs_cron_mean_the_same(self) -> None:
        """`hour`, `minute` and `run_at_startup` mean what they mean to `arq.cron`."""
        scheduled = cron(hour={9, 18}, minute=5, run_at_startup=True)(clean)
        assert scheduled.schedule is not None
        assert scheduled.schedule.next_after(MIDNIGHT).replace(microsecond=0) == MIDNIGHT.replace(hour=9, minute=5)
        assert scheduled.run_at_startup

    def test_a_scheduled_task_keeps_no_result_by_default(self) -> None:
        """No caller waits for the result of a scheduled job. The options are those of `task`."""
        assert cron("* * * * *")(clean).options.keep_result == 0
        assert cron("* * * * *", keep_result=60, timeout=5)(clean).options.keep_result == 60
        assert cron("* * * * *", timeout=5)(clean).options.timeout == 5

    def test_scheduling_a_task_keeps_its_options_and_takes_no_others(self) -> None:
        """`@cron` over `@task` adds a schedule, and refuses options, which would be lost."""
        plain = task(keep_result=60)(clean)
        assert cron("* * * * *")(plain).options is plain.options
        with pytest.raises(TaskDefinitionError, match="clean is a task already: move timeout from @cron to its @task"):
            cron("* * * * *", timeout=5)(plain)

    def test_a_second_schedule_of_a_function_needs_another_name(self) -> None:
        """A second schedule is another task, by `name`; put on the first one, it would replace it, and is refused."""
        often, seldom = cron("* * * * *", name="often")(clean), cron("0 0 * * *", name="seldom")(clean)
        assert (often.name, seldom.name) == ("often", "seldom")
        with pytest.raises(TaskDefinitionError, match=r"clean has the schedule '\*/2 .*cron\('\*/3 .*name='clean_2'\)"):
            cron("*/3 * * * *")(cron("*/2 * * * *")(clean))
        with pytest.raises(TaskDefinitionError, match="has the schedule"):
            cron("*/3 * * * *", name="seldom")(often)

    def test_a_task_can_be_scheduled_under_another_name(self) -> None:
        """A task can be scheduled under another name, with its own options."""
        plain = task(timeout=60)(clean)
        nightly = cron("0 3 * * *", name="nightly")(plain)
        assert (plain.name, plain.schedule, nightly.name, nightly.options) == ("clean", None, "nightly", plain.options)
        with pytest.raises(TaskDefinitionError, match="give a text"):
            cron("0 3 * * *", name="")(plain)

    @pytest.mark.parametrize(
        "arguments",
        [
            (("* * * * *",), {"minute": 5}),
            (("* * * * *",), {"second": 5}),
            (("every day",), {}),
            (("* * * * *",), {"timezone": "Mars/Olympus"}),
            ((), {"hour": 25}),
            ((), {}),
            ((None,), {"timezone": "Europe/Berlin"}),
            ((), {"run_at_startup": True}),
            ((clean,), {}),
            ((5,), {}),
            (("* * * * *",), {"timeout": 0}),
        ],
    )
    def test_an_invalid_schedule_raises_where_it_is_declared(self, arguments: Any) -> None:
        """An invalid schedule or option raises `TaskDefinitionError`."""
        args, kwargs = arguments
        with pytest.raises(TaskDefinitionError):
            cron(*args, **kwargs)(clean)

    def test_a_scheduled_task_can_be_enqueued_too(self) -> None:
        """A scheduled task is a task like others: its parameters have defaults, and a caller may pass other values."""

        async def report(session: db.AsyncSession, day: str = "today") -> None: ...

        scheduled = cron("* * * * *")(report)
        scheduled.check()
        assert scheduled.signature.validate(("monday",), {}) == b'{"day":"monday"}'


class TestAdopt:
    def test_arqs_func_keeps_its_name_and_options(self) -> None:
        """Name, timeout, tries and the time that the result is kept are those of `func()`."""
        adopted = from_arq(func(resize, name="images.resize", timeout=30, max_tries=7, keep_result=60))
        assert (adopted.name, adopted.fn) == ("images.resize", resize)
        options = adopted.options
        assert (options.timeout, options.max_tries, options.keep_result) == (30, 7, 60)
        assert adopted.schedule is None

    def test_options_that_arqs_func_leaves_out_come_from_the_settings(self) -> None:
        """An option that `func()` leaves out stays unset, so that the worker's settings decide."""
        options = from_arq(func(resize)).options
        assert (options.timeout, options.max_tries, options.keep_result) == (None, None, None)

    def test_arqs_keep_result_forever_keeps_a_result_for_at_least_90_years(self) -> None:
        """`keep_result_forever` becomes a very long time."""
        keep = from_arq(func(resize, keep_result_forever=True)).options.keep_result
        assert keep is not None
        assert keep >= 90 * 365 * 86400

    def test_arqs_cron_keeps_its_schedule_and_name(self) -> None:
        """The schedule and the name, `cron:clean`, are those of `arq.cron()`."""
        adopted = from_arq(arq.cron(clean, hour=3, minute=0, run_at_startup=True))
        assert adopted.schedule is not None
        assert adopted.schedule.next_after(MIDNIGHT).replace(microsecond=0) == MIDNIGHT.replace(hour=3)
        assert (adopted.name, adopted.run_at_startup) == ("cron:clean", True)

    @pytest.mark.parametrize(
        ("timezone", "expected"),
        [
            (None, "Asia/Tokyo"),
            ("America/New_York", "America/New_York"),
            (ZoneInfo("Europe/Berlin"), "Europe/Berlin"),
            (datetime_timezone(timedelta(hours=5, minutes=30)), "UTC+05:30"),
            (UTC, "UTC"),
        ],
    )
    def test_arqs_cron_follows_arqs_time_zone_or_that_of_the_system(
        self, timezone: tzinfo | str | None, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each slot is the one that arq computes."""
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "Asia/Tokyo")
            time.tzset()
            adopted = from_arq(arq.cron(clean, weekday={1, 4}, hour={3, 17}, minute=30), timezone=timezone)
            arqs = datetime.now().astimezone().tzinfo if timezone is None else timezone
        time.tzset()
        assert adopted.schedule is not None
        assert adopted.schedule.timezone == expected
        now = MIDNIGHT.astimezone(ZoneInfo(arqs) if isinstance(arqs, str) else arqs)
        for _ in range(8):
            arqs_next = next_cron(now, weekday={1, 4}, hour={3, 17}, minute=30)
            assert adopted.schedule.next_after(now) == arqs_next
            now = arqs_next

    def test_a_schedule_of_our_own_follows_utc_unless_it_names_a_zone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        scheduled = cron(hour=3)(clean)
        assert scheduled.schedule is not None
        assert scheduled.schedule.timezone == "UTC"

    def test_an_unknown_time_zone_is_refused(self) -> None:
        with pytest.raises(TaskDefinitionError, match="timezone='Mars/Olympus' is not a time zone"):
            from_arq(arq.cron(clean, hour=3), timezone="Mars/Olympus")

    def test_arqs_cron_keeps_its_job_id_and_whether_it_is_unique(self) -> None:
        (plain,) = from_arq(arq.cron(clean, hour=3)).schedules
        (single,) = from_arq(arq.cron(clean, hour=3, job_id="cleaning")).schedules
        (each,) = from_arq(arq.cron(clean, hour=3, unique=False)).schedules
        assert [(one.job_id, one.unique) for one in (plain, single, each)] == [
            (None, True),
            ("cleaning", True),
            (None, False),
        ]

    def test_the_first_parameter_of_arqs_function_is_ctx_whatever_its_name(self) -> None:
        async def charge(_ctx: object, amount: int = 100) -> None: ...

        given: Any = charge  # arq's types want the name ctx, and arq itself does not
        signature = from_arq(func(given, name="charge")).signature
        assert list(signature.injected) == ["_ctx"]
        assert signature.validate((5,), {}) == b'{"amount":5}'

    def test_a_partial_in_arqs_func_is_a_task(self) -> None:
        async def scale(ctx: object, x: int, y: int) -> None: ...

        given: Any = partial(scale, y=3)  # arq's types want a __qualname__, and arq itself does not
        adopted = from_arq(func(given, name="scale"))
        adopted.check()
        assert not adopted.is_sync
        assert adopted.signature.validate((5,), {}) == b'{"x":5}'

    def test_an_adopted_function_can_be_checked_and_enqueued(self) -> None:
        """An adopted function is a task."""
        adopted = from_arq(func(resize))
        adopted.check()
        assert adopted.signature.validate(("a.png",), {}) == b'{"image":"a.png"}'

    def test_the_schedules_of_one_function_under_one_name_become_one_task(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Functions that differ, names that differ, and tasks that are not arq's stay apart, in their order."""
        own = cron("* * * * *", name="cron:clean")(clean)
        jobs = [
            arq.cron(clean, hour=1),
            arq.cron(clean, hour=5, name="other"),
            func(clean),
            arq.cron(clean, hour=13, job_id="x"),
            arq.cron(resize, hour=2, name="cron:clean"),
        ]
        merged = merge_schedules([own, *map(from_arq, jobs)])
        assert [(one.name, one.fn, len(one.schedules)) for one in merged] == [
            ("cron:clean", clean, 1),
            ("cron:clean", clean, 2),
            ("other", clean, 1),
            ("clean", clean, 0),
            ("cron:clean", resize, 1),
        ]
        assert merged[0] is own
        assert [one.expression.split()[2] for one in merged[1].schedules] == ["1", "13"]
        assert "several schedules" not in caplog.text

    def test_the_options_of_the_last_schedule_hold_for_all_with_a_warning(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As in arq, which keeps its cron jobs by name."""
        first, last = arq.cron(clean, hour=1, timeout=10), arq.cron(clean, hour=13, timeout=20)
        (merged,) = merge_schedules(map(from_arq, (first, last)))
        assert merged.options.timeout == 20
        assert "cron:clean has several schedules with different options" in caplog.text

    @pytest.mark.parametrize("thing", [clean, "clean", None, object()])
    def test_adopting_anything_else_is_refused(self, thing: Any) -> None:
        """A thing that is neither a task nor arq's raises an error that says so."""
        with pytest.raises(TaskDefinitionError, match="neither a task nor the result of arq's"):
            from_arq(thing)
