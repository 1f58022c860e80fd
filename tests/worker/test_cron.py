"""``@cron``, and what arq's own ``cron()`` and ``func()`` become."""

import time
from datetime import UTC, datetime
from typing import Any

import arq
import pytest
from arq.worker import func

import db
from worker import cron, task
from worker.cron import adopt
from worker.errors import TaskDefinitionError

MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)


async def clean(ctx: dict[Any, Any]) -> None: ...


async def resize(ctx: dict[Any, Any], image: str) -> None: ...


class TestCron:
    def test_a_crontab_in_a_time_zone(self) -> None:
        """Five fields, by the clock of a zone."""
        scheduled = cron("30 7 * * *", timezone="Europe/Berlin")(clean)
        assert scheduled.schedule is not None
        assert scheduled.schedule.next_after(MIDNIGHT) == MIDNIGHT.replace(hour=6, minute=30)
        assert (scheduled.name, scheduled.run_at_startup) == ("clean", False)

    def test_arqs_keywords(self) -> None:
        """As `arq.cron` understands them."""
        scheduled = cron(hour={9, 18}, minute=5, run_at_startup=True)(clean)
        assert scheduled.schedule is not None
        assert scheduled.schedule.next_after(MIDNIGHT).replace(microsecond=0) == MIDNIGHT.replace(hour=9, minute=5)
        assert scheduled.run_at_startup

    def test_keeps_no_result_unless_it_says_so(self) -> None:
        """Nobody waits for what nobody enqueued; options are those of `task`."""
        assert cron("* * * * *")(clean).options.keep_result == 0
        assert cron("* * * * *", keep_result=60, timeout=5)(clean).options.keep_result == 60
        assert cron("* * * * *", timeout=5)(clean).options.timeout == 5

    def test_a_task_keeps_its_own_options(self) -> None:
        """`@cron` over `@task` adds a schedule, and takes no options that would be lost."""
        plain = task(keep_result=60)(clean)
        assert cron("* * * * *")(plain).options is plain.options
        with pytest.raises(TaskDefinitionError, match="clean is a task already: give timeout to its @task"):
            cron("* * * * *", timeout=5)(plain)

    def test_a_second_schedule(self) -> None:
        """A second schedule is another task, by `name`; put on the first one, it would replace it, and is refused."""
        often, seldom = cron("* * * * *", name="often")(clean), cron("0 0 * * *", name="seldom")(clean)
        assert (often.name, seldom.name) == ("often", "seldom")
        with pytest.raises(TaskDefinitionError, match=r"clean has the schedule '\*/2 .*cron\('\*/3 .*name='clean_2'\)"):
            cron("*/3 * * * *")(cron("*/2 * * * *")(clean))
        with pytest.raises(TaskDefinitionError, match="has the schedule"):
            cron("*/3 * * * *", name="seldom")(often)

    def test_a_schedule_and_a_name_for_a_task(self) -> None:
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
    def test_what_is_no_schedule_is_told_where_it_is_declared(self, arguments: Any) -> None:
        """A mistake is a `TaskDefinitionError`."""
        args, kwargs = arguments
        with pytest.raises(TaskDefinitionError):
            cron(*args, **kwargs)(clean)

    def test_can_be_enqueued_as_well(self) -> None:
        """It is a task like others: its arguments have defaults, which a caller may change."""

        async def report(session: db.AsyncSession, day: str = "today") -> None: ...

        scheduled = cron("* * * * *")(report)
        scheduled.check()
        assert scheduled.signature.validate(("monday",), {}) == b'{"day":"monday"}'


class TestAdopt:
    def test_arqs_func(self) -> None:
        """Name, timeout, tries and how long the result is kept are those of `func()`."""
        adopted = adopt(func(resize, name="images.resize", timeout=30, max_tries=7, keep_result=60))
        assert (adopted.name, adopted.fn) == ("images.resize", resize)
        options = adopted.options
        assert (options.timeout, options.max_tries, options.keep_result) == (30, 7, 60)
        assert adopted.schedule is None

    def test_arqs_func_without_options(self) -> None:
        """What it does not say, the worker's settings say."""
        options = adopt(func(resize)).options
        assert (options.timeout, options.max_tries, options.keep_result) == (None, None, None)

    def test_arqs_forever(self) -> None:
        """`keep_result_forever` is longer than anybody lives."""
        keep = adopt(func(resize, keep_result_forever=True)).options.keep_result
        assert keep is not None
        assert keep >= 90 * 365 * 86400

    def test_arqs_cron(self) -> None:
        """Its schedule and its name, `cron:clean`, are kept."""
        adopted = adopt(arq.cron(clean, hour=3, minute=0, run_at_startup=True))
        assert adopted.schedule is not None
        assert adopted.schedule.next_after(MIDNIGHT).replace(microsecond=0) == MIDNIGHT.replace(hour=3)
        assert (adopted.name, adopted.run_at_startup) == ("cron:clean", True)

    @pytest.mark.parametrize(
        ("zone", "when", "warns"),
        [
            ("Europe/London", {"hour": 3}, True),
            ("America/New_York", {"weekday": "mon"}, True),
            ("Europe/Berlin", {"minute": 5}, False),
            ("UTC", {"hour": 3}, False),
        ],
    )
    def test_arqs_cron_where_the_machine_is_not_on_utc(
        self,
        zone: str,
        when: dict[str, Any],
        warns: bool,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Under arq it went by the machine's zone, and now by UTC: that is said, with what to write instead."""
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            adopt(arq.cron(clean, **when))
        time.tzset()
        assert ("cron:clean is arq's cron() and runs by UTC here" in caplog.text) == warns

    def test_what_it_adopts_can_be_enqueued_and_checked(self) -> None:
        """An adopted function is a task."""
        adopted = adopt(func(resize))
        adopted.check()
        assert adopted.signature.validate(("a.png",), {}) == b'{"image":"a.png"}'

    @pytest.mark.parametrize("thing", [clean, "clean", None, object()])
    def test_others_are_refused(self, thing: Any) -> None:
        """What is neither says so."""
        with pytest.raises(TaskDefinitionError, match="neither a task nor what arq's"):
            adopt(thing)
