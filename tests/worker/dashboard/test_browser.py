"""The dashboard in a real Chromium: every page, every action, both themes, narrow and wide, without an error."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.worker.dashboard.conftest import AUTH, OPERATOR, VIEWER
from tests.worker.dashboard.serving import serving
from tests.worker.dashboard.world import QUEUES, World
from worker.message import encode
from worker.new_job import NewJob

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

PAGES = ("", "jobs?state=running", "jobs?state=failed", "failures", "queues", "schedules", "workers", "audit")
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\x1b[31m"

pytestmark = pytest.mark.usefixtures("world")


class Visit:
    """A browser that has signed in, and what it complains of."""

    def __init__(self, page: "Page", url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))

    async def go(self, path: str) -> "Page":
        await self.page.goto(f"{self.url}/{path}")
        return self.page

    async def text(self, selector: str = "main") -> str:
        return await self.page.inner_text(selector)

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)


@asynccontextmanager
async def visiting(
    browser: "Browser", *, token: str = OPERATOR, width: int = 1280, theme: Any = "light", javascript: bool = True
) -> AsyncIterator[Visit]:
    """Serve the dashboard, and sign in. At the end nothing may have been complained of."""
    async with serving(auth=AUTH, queues=QUEUES) as url:
        context = await browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=theme, java_script_enabled=javascript
        )
        visit = Visit(await context.new_page(), url)
        await visit.go("audit")
        await visit.page.fill("#token", token)
        await visit.page.click("text=Sign in >> nth=-1")
        await visit.page.wait_for_url(f"{url}/audit")  # and until its script has run
        yield visit
        await context.close()
    assert visit.complaints == []
    assert visit.hosts == {url.split("/")[2]}  # no request to another host


class TestPages:
    @pytest.mark.parametrize("width", [375, 1280, 1600])
    @pytest.mark.parametrize("theme", ["light", "dark"])
    async def test_every_page_fits_in_both_themes(self, browser: "Browser", width: int, theme: str) -> None:
        async with visiting(browser, width=width, theme=theme) as visit:
            colors = set()
            for path in PAGES:
                page = await visit.go(path)
                assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
                assert await page.locator("h1").count() == 1
                assert await page.locator('nav[aria-label="Pages"] [aria-current=page]').count() == 1
                colors.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert colors == {"rgb(246, 247, 248)" if theme == "light" else "rgb(14, 16, 18)"}

    async def test_a_theme_can_be_chosen_and_stays(self, browser: "Browser") -> None:
        async with visiting(browser) as visit:
            await visit.page.click('button[title="Dark theme"]')
            await visit.go("queues")
            assert await visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 16, 18)"
            await visit.page.click('button[title="System theme"]')
            assert await visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 248)"

    async def test_keys_lead_through_the_pages(self, browser: "Browser") -> None:
        async with visiting(browser) as visit:
            page = visit.page
            for key, path in (("j", "jobs"), ("f", "failures"), ("q", "queues"), ("w", "workers"), ("o", "")):
                await page.keyboard.press("g")
                await page.keyboard.press(key)
                await page.wait_for_url(f"{visit.url}/{path}")
            await visit.go("jobs?state=failed")
            await page.keyboard.press("/")
            assert await page.evaluate("document.activeElement.name") == "id"
            await page.keyboard.press("Tab")
            await page.evaluate("document.activeElement.blur()")
            for key in ("j", "j", "k", "x"):
                await page.keyboard.press(key)
            assert await page.locator("input[name=job]:checked").count() == 1
            assert await visit.text("[data-selected]") == "1 selected"
            await page.keyboard.press("?")
            assert await page.locator("dialog[open]").count() == 1
            await page.keyboard.press("Escape")
            await page.keyboard.press("Enter")
            await page.wait_for_url(re.compile(r"/job\?id="))

    async def test_live_parts_follow_and_can_be_held(self, browser: "Browser", world: World) -> None:
        async with visiting(browser) as visit:
            page = await visit.go("jobs?state=waiting&queue=")
            assert "newest.task" not in await visit.text()
            job = NewJob("live-1", encode("newest.task", b"{}", 1), "newest.task", "arq:queue", 1, due=2, expires=None)
            await world.broker.enqueue([job])
            await page.wait_for_selector("text=newest.task", timeout=6_000)
            await page.keyboard.press(".")
            await world.broker.redis.zrem("arq:queue", "live-1")
            await asyncio.sleep(2.5)
            assert "newest.task" in await visit.text()
            assert await visit.text(".hold") == "Held"
            await page.keyboard.press(".")
            await page.wait_for_selector("text=newest.task", state="detached", timeout=6_000)

    async def test_a_hostile_payload_does_nothing(self, browser: "Browser", world: World) -> None:
        payload = encode(
            EVIL, b'{"x":"</pre><script>document.title=1</script>","big":"%b"}' % (b"y" * 1_000_000), 1_000
        )
        key = (f"j{EVIL}", 1_000, EVIL, "mail", "failed", payload, 1_000)
        await world.add_rows([(*key, 1_000, world.now, None, EVIL, EVIL * 500, 1, None)])
        async with visiting(browser) as visit:
            for path in (f"job?id={quote('j' + EVIL)}", "jobs?state=failed", "failures", f"jobs?id={quote('j<')}"):
                page = await visit.go(path)
                assert await page.title() != "owned"
                assert await page.locator("main script, main img").count() == 0
                assert "\x1b" not in await page.content()
            await visit.go("failures")
            await page.click('a:has-text("Retry…") >> nth=0')
            await page.click("text=All at once")
            await page.click('button:has-text("Retry 1 job")')
            await page.wait_for_selector("h2:has-text('Done')")
            assert "retried 1" in (await visit.text("#live-bulk")).replace("\n", " ")


class TestActions:
    async def test_a_viewer_sees_everything_and_can_do_nothing(self, browser: "Browser", world: World) -> None:
        async with visiting(browser, token=VIEWER) as visit:
            failed = await world.postgres.fetchval("SELECT id FROM tandem_jobs WHERE state = 'failed' LIMIT 1")
            for path in (*PAGES, f"job?id={failed}"):
                page = await visit.go(path)
                assert await page.locator("main form[method=post]").count() == 0, path
                assert (
                    await page.locator(
                        "main >> text=/^(Retry|Discard|Abort|Pause|Purge|Stop|Quiet|Run now)(…|$)/"
                    ).count()
                    == 0
                ), path
            status = await page.evaluate(
                "fetch('queues/act', {method: 'POST', body: new URLSearchParams({queue: 'mail', action: 'pause'})})"
                ".then((answer) => answer.status)"
            )
            assert status == 403
            visit.complaints.clear()  # Chromium writes each failed request on the console

    async def test_another_sites_page_can_do_nothing(self, browser: "Browser", world: World) -> None:
        async with visiting(browser) as visit:
            page = visit.page
            form = (
                f'<form method="post" action="{visit.url}/queues/act"><input name="queue" value="mail">'
                '<input name="action" value="pause"><button>Win a prize</button></form>'
            )
            await page.route("http://evil.test/", lambda route: route.fulfill(body=form, content_type="text/html"))
            await page.goto("http://evil.test/")
            await page.click("button")
            assert "This request comes from another site." in await page.content()
            visit.complaints.clear()
            visit.hosts.discard("evil.test")
        assert await world.postgres.fetchval("SELECT count(*) FROM tandem_jobs_pauses") == 0

    async def test_one_job_is_retried_and_another_discarded(self, browser: "Browser", world: World) -> None:
        ids = [
            row["id"] for row in await world.postgres.fetch("SELECT id FROM tandem_jobs WHERE state = 'failed' LIMIT 2")
        ]
        async with visiting(browser) as visit:
            page = await visit.go(f"job?id={ids[0]}")
            await page.click("button:has-text('Retry')")
            await page.wait_for_selector(".note")
            assert ids[0] in await visit.text(".note")
            await visit.go(f"job?id={ids[1]}")
            await page.click("summary:has-text('Discard')")
            await page.click("button:has-text('Discard this job')")
            await page.wait_for_selector(".state.discarded")
            await visit.go("audit")
            assert {"job.retry", "job.discard"} <= set(await page.locator("td code").all_inner_texts())
        states = await world.postgres.fetch("SELECT state FROM tandem_jobs WHERE id = ANY($1)", ids)
        assert {row["state"] for row in states} == {"pending", "discarded"}

    async def test_scheduled_jobs_run_now_and_waiting_ones_are_aborted(self, browser: "Browser", world: World) -> None:
        (scheduled,) = await world.broker.redis.zrange("arq:queue", -1, -1)
        (waiting,) = await world.broker.redis.zrange("arq:queue", 60, 60)
        async with visiting(browser) as visit:
            page = await visit.go(f"job?id={scheduled.decode()}")
            assert "Scheduled for" in await visit.text(".why") or "due" in await visit.text(".why")
            await page.click("button:has-text('Run now')")
            await page.wait_for_selector(".state.waiting")
            await visit.go(f"job?id={waiting.decode()}")
            await page.click("summary:has-text('Abort')")
            await page.click("button:has-text('Abort this job')")
            await page.wait_for_selector(".note")
        assert await world.broker.redis.zscore("arq:abort", waiting) is not None

    async def test_selected_jobs_are_retried_together(self, browser: "Browser", world: World) -> None:
        async with visiting(browser) as visit:
            page = await visit.go("jobs?state=failed&task=reports.build")
            await page.check("[data-all]")
            await page.click(".act-bar button:has-text('Retry')")
            await page.wait_for_selector(".note")
            assert await visit.text(".note") == "Retried 9 jobs."
        assert await world.postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'pending'") == 9

    async def test_a_group_is_retried_one_first_and_can_be_stopped(self, browser: "Browser", world: World) -> None:
        async with visiting(browser) as visit:
            page = await visit.go("failures?sort=jobs")
            await page.click("tr:has-text('ReadTimeout') a:has-text('Retry…')")
            assert "214 jobs" in await visit.text()
            await page.click("button:has-text('Retry 214 jobs')")
            await page.wait_for_selector("h2:has-text('Retrying one job first')")
            await page.click("button:has-text('Stop')")
            await page.wait_for_selector("h2:has-text('Stopped')", timeout=8_000)
            await visit.go("failures")
            await page.click("tr:has-text('has no address') a:has-text('Discard…')")
            await page.click("button:has-text('Discard 27 jobs')")
            await page.wait_for_selector("h2:has-text('Done')", timeout=8_000)
        assert await world.postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'pending'") == 1

    async def test_a_queue_is_paused_drained_resumed_and_purged(self, browser: "Browser", world: World) -> None:
        async with visiting(browser) as visit:
            page = await visit.go("queues")
            row = page.locator("tr", has_text="reports")
            for verb, state in (("Pause", "paused"), ("Drain", "draining")):
                await row.locator("summary:has-text('Pause')").click()
                await row.locator("select").select_option("60")
                await row.locator(f"button:text-is('{verb}')").click()
                await page.wait_for_selector(f".state.{state}")
                assert "by operator (token)" in await row.inner_text()
                await row.locator("button:has-text('Resume')").click()
                await page.wait_for_selector(".note:has-text('goes on')")
            await row.locator("summary:has-text('Purge')").click()
            await row.locator("button:has-text('Remove them')").click()
            await page.wait_for_selector(".note")
            await visit.go("audit?action=queue.")
            actions = await page.locator("td code").all_inner_texts()
            assert {"queue.pause", "queue.drain", "queue.resume", "queue.purge"} <= set(actions)
        async with asyncio.timeout(10):
            while await world.broker.redis.zcount("reports", "-inf", world.now):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.05)

    async def test_a_worker_is_quieted_and_stopped(self, browser: "Browser") -> None:
        async with visiting(browser) as visit:
            page = await visit.go("workers")
            card = page.locator("section", has_text="batch-1")
            assert "reports.build" in await card.inner_text()
            await card.locator("button:has-text('Quiet')").click()
            await page.wait_for_selector(".note:has-text('claims nothing more')")
            await card.locator("summary:has-text('Stop')").click()
            await card.locator("button:has-text('Stop this worker')").click()
            await page.wait_for_selector(".note:has-text('drains and ends')")
            await visit.go("audit?action=worker.")
            assert {"worker.quiet", "worker.stop"} <= set(await page.locator("td code").all_inner_texts())

    async def test_a_schedule_is_run_paused_and_resumed(self, browser: "Browser") -> None:
        async with visiting(browser) as visit:
            page = await visit.go("schedules")
            row = page.locator("tr", has_text="cache.warm")
            assert "*/5 * * * *" in await row.inner_text()
            await row.locator("button:has-text('Run now')").click()
            await page.wait_for_selector(".note:has-text('Enqueued cache.warm')")
            await row.locator("summary:has-text('Pause')").click()
            await row.locator("button:text-is('Pause')").click()
            await page.wait_for_selector(".state.paused")
            await row.locator("button:has-text('Resume')").click()
            await page.wait_for_selector(".note:has-text('goes on')")

    async def test_everything_works_without_javascript(self, browser: "Browser", world: World) -> None:
        async with visiting(browser, javascript=False) as visit:
            for path in PAGES:
                page = await visit.go(path)
                assert await page.locator("h1").count() == 1
            await visit.go("jobs?state=failed&task=search.reindex")
            for box in await page.locator("input[name=job]").all():
                await box.check()
            await page.click(".act-bar button:has-text('Discard')")
            assert await visit.text(".note") == "Discarded 3 jobs."
            await visit.go("queues")
            await page.locator("tr", has_text="mail").locator("summary:has-text('Pause')").click()
            await page.locator("tr", has_text="mail").locator("button:text-is('Pause')").click()
            assert "paused" in await visit.text("tr:has-text('mail')")
        assert await world.postgres.fetchval("SELECT count(*) FROM tandem_jobs_pauses") == 1
