"""The pages, as the server writes them."""

import html
import re
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.worker.dashboard.conftest import as_operator
from tests.worker.dashboard.world import World
from worker.broker.served_queues import ServedQueues
from worker.message import encode
from worker.metrics.reader import MetricsReader
from worker.new_job import NewJob

EVIL = "<script>alert(1)</script>\x1b[31m"


async def page_of(client: httpx.AsyncClient, path: str, status: int = 200) -> str:
    answer = await client.get(path)
    assert (path, answer.status_code) == (path, status)
    return answer.text


def ids_of(page: str) -> list[str]:
    """The ids of the jobs in a list."""
    return [html.unescape(each) for each in re.findall(r'<td class="id" title="([^"]*)"', page)]


async def all_pages(client: httpx.AsyncClient, path: str) -> list[list[str]]:
    """The ids on all pages of a list."""
    pages = []
    while True:
        page = await page_of(client, path)
        pages.append(ids_of(page))
        following = re.search(r'rel="next" href="([^"]*)"', page)
        if following is None:
            return pages
        path = html.unescape(following[1])


def row(job_id: str, state: str = "done", *, at: int = 1_000, task: str = "send", **values: Any) -> tuple[Any, ...]:
    payload = values.get("payload", encode(task, b'{"to":"ann"}', at))
    ended = values.get("ended", at + 50)
    error, result = values.get("error"), values.get("result", b"null")
    return (job_id, at, task, "mail", state, payload, at, at + 10, ended, result, error, values.get("trace"), 1, None)


class TestQueues:
    async def test_a_queue_that_only_a_worker_names_is_shown_and_its_jobs_are_found(
        self, empty_world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The overview, the page of queues and the lists of jobs have it."""
        monkeypatch.delenv("WORKER_QUEUES")
        await ServedQueues(empty_world.broker.connections).record(["bulk"])
        await empty_world.broker.enqueue(
            [NewJob("b1", encode("send", b"{}", 1), "send", "bulk", 1, due=1, expires=None)]
        )
        async with as_operator() as client:
            for path in ("/", "/queues"):
                assert ">bulk<" in await page_of(client, path)
            assert ids_of(await page_of(client, "/jobs?state=waiting")) == ["b1"]
            assert "No worker serves bulk" in await page_of(client, "/")


class TestLists:
    async def test_every_ended_job_is_on_exactly_one_page(self, empty_world: World) -> None:
        """Also where many ended in the same millisecond."""
        await empty_world.add_rows([row(f"j{nth:03}", ended=5_000 + nth // 60) for nth in range(230)])
        async with as_operator() as client:
            pages = await all_pages(client, "/jobs?state=done")
        assert [len(page) for page in pages] == [50, 50, 50, 50, 30]
        flat = [job_id for page in pages for job_id in page]
        assert sorted(flat) == [f"j{nth:03}" for nth in range(230)]
        assert flat[0] == "j229"

    async def test_every_waiting_job_is_on_exactly_one_page(self, empty_world: World) -> None:
        """In the order in which they are due, queue by queue, also if many are due at the same time."""
        jobs = [
            NewJob(
                f"w{nth:03}",
                encode("send", b"{}", 1),
                "send",
                ("mail", "arq:queue")[nth % 2],
                1,
                due=1_000 + nth // 100,
                expires=None,
            )
            for nth in range(230)
        ]
        await empty_world.broker.enqueue(jobs)
        async with as_operator() as client:
            pages = await all_pages(client, "/jobs?state=waiting")
        assert [len(page) for page in pages] == [50, 50, 50, 50, 30]
        assert sorted(job_id for page in pages for job_id in page) == [f"w{nth:03}" for nth in range(230)]

    @pytest.mark.usefixtures("world")
    async def test_each_state_lists_its_own_jobs(self) -> None:
        async with as_operator() as client:
            for state in ("scheduled", "waiting", "running", "done", "failed", "aborted", "discarded", "expired"):
                page = await page_of(client, f"/jobs?state={state}")
                assert ids_of(page), state
                for job_id in ids_of(page)[:3]:
                    shown = await page_of(client, f"/job?id={quote(job_id)}")
                    assert f'class="state {state}"' in shown

    @pytest.mark.usefixtures("world")
    async def test_filters_are_in_the_url_and_combine(self) -> None:
        async with as_operator() as client:
            page = await page_of(client, "/jobs?state=failed&task=mail.send_receipt&error=SMTPSERVER")
            assert len(ids_of(page)) == 50
            assert "SMTPServerDisconnected" in page
            assert "has no address" not in page
            page = await page_of(client, "/jobs?state=failed&queue=reports&since=24h")
            assert len(ids_of(page)) == 9
            assert "No failed job matches" in await page_of(client, "/jobs?state=failed&task=nothing")
            page = await page_of(client, "/jobs?state=waiting&task=search.reindex")
            assert set(re.findall(r"<b>([\w.]+)</b></a>", page)) == {"search.reindex"}

    async def test_text_in_arguments_is_found_and_masked_text_is_not(self, empty_world: World) -> None:
        """A search must not tell whether a guessed secret is right."""
        payload = encode("send", b'{"to":"b\xc3\xb6rge \\"x\\"","token":"tok_secret"}', 1_000)
        await empty_world.add_rows([row("j1", payload=payload), row("j2")])
        await empty_world.broker.enqueue([NewJob("w1", payload, "send", "mail", 1, due=1, expires=None)])
        async with as_operator() as client:
            for state, job_id in (("done", "j1"), ("waiting", "w1")):
                assert ids_of(await page_of(client, f"/jobs?state={state}&text=" + quote('börge "x'))) == [job_id]
                assert ids_of(await page_of(client, f"/jobs?state={state}&text=tok_secret")) == []
                assert "tok_secret" not in await page_of(client, f"/jobs?state={state}")
                assert "tok_secret" not in await page_of(client, f"/job?id={job_id}")
                assert "tok_secret" not in await page_of(client, f"/job/download?part=arguments&id={job_id}")

    async def test_an_id_leads_to_its_job_and_its_beginning_to_a_list(self, empty_world: World) -> None:
        await empty_world.add_rows([row("order-1"), row("order-2"), row("order-2", at=2_000), row("other")])
        async with as_operator() as client:
            answer = await client.get("/jobs?id=order-1")
            assert (answer.status_code, answer.headers["location"]) == (303, "/job?id=order-1&at=1000")
            assert ids_of(await page_of(client, "/jobs?id=order-")) == ["order-1", "order-2", "order-2"]
            assert "other jobs of this id" in (await page_of(client, "/job?id=order-2")).lower()

    async def test_ended_jobs_without_a_row_are_in_the_list(self, world: World) -> None:
        async with as_operator() as client:
            page = await page_of(client, "/jobs?state=done&task=search.reindex")
            latest = await MetricsReader(world.broker).latest("arq:queue")
            job_id = next(job.id for job in latest if job.worker == "web-1")
            assert job_id in ids_of(page)
            shown = await page_of(client, f"/job?id={job_id}")
            assert "web-1" in shown
            assert "They are no longer known." in shown

    @pytest.mark.usefixtures("empty_world")
    @pytest.mark.parametrize("after", ["x", "[1]", '["a","b","c","d"]', "{}"])
    async def test_a_wrong_place_is_one_line(self, after: str) -> None:
        async with as_operator() as client:
            for state in ("done", "waiting"):
                answer = await client.get(f"/jobs?state={state}&after={quote(after)}")
                assert answer.status_code == 400
            assert (await client.get("/jobs?state=nothing")).status_code == 400
            assert (await client.get("/jobs?since=yesterday")).status_code == 400

    async def test_a_running_job_shows_its_worker_and_its_progress(self, world: World) -> None:
        async with as_operator() as client:
            page = await page_of(client, f"/job?id={world.running[4][0]}")
            assert "writing November" in page
            assert "61,400 of 182,000" in page
            assert "batch-1" in page
            assert "batch-1" in await page_of(client, "/jobs?state=running&queue=reports")


class TestHostile:
    async def test_nothing_from_outside_is_markup_or_a_control_character(self, empty_world: World) -> None:
        payload = encode(EVIL, b'{"<script>":"<script>alert(1)</script>\\u001b[31m\\u202e"}', 1_000)
        await empty_world.add_rows(
            [
                row(f"j{EVIL}", "failed", task=EVIL, payload=payload, error=EVIL, trace=EVIL),
                row(f"d{EVIL}", "done", task=EVIL, payload=payload, result=b'"<script>alert(1)</script>"'),
            ]
        )
        await empty_world.broker.enqueue([NewJob(f"w{EVIL}", payload, EVIL, "mail", 1_000, due=1, expires=None)])
        async with as_operator() as client:
            paths = [f"/job?id={quote(prefix + EVIL)}" for prefix in "jdw"]
            paths += ["/failures", "/jobs?state=failed", "/jobs?state=done", "/jobs?state=waiting"]
            paths += [f"/jobs?state=done&task={quote(EVIL)}&queue={quote(EVIL)}&id={quote(EVIL)}&text={quote(EVIL)}"]
            for path in paths:
                page = await page_of(client, path)
                assert "<script>alert" not in page, path
                assert "\x1b" not in page, path
                assert "\u202e" not in page, path
                assert "alert(1)" in page, path

    async def test_a_megabyte_of_arguments_is_cut_and_can_be_downloaded(self, empty_world: World) -> None:
        payload = encode("send", b'{"text":"%b"}' % (b"x" * 1_000_000), 1_000)
        await empty_world.add_rows([row("big", payload=payload)])
        async with as_operator() as client:
            page = await page_of(client, "/job?id=big")
            assert len(page) < 60_000
            assert "Cut here. Download all" in page
            answer = await client.get("/job/download?part=arguments&id=big")
            assert len(answer.content) > 1_000_000
            assert answer.headers["content-disposition"].startswith("attachment")
            assert len(await page_of(client, "/jobs?state=done")) < 40_000

    async def test_pickles_and_garbage_are_not_loaded(self, empty_world: World) -> None:
        await empty_world.add_rows(
            [row("p", payload=b"\x80\x04garbage"), row("g", payload=b"\xff\x00"), row("n", payload=None)]
        )
        async with as_operator() as client:
            assert "which is not loaded here" in await page_of(client, "/job?id=p")
            assert "cannot be read" in await page_of(client, "/job?id=g")
            assert "They were dropped when the job was done (WORKER_KEEP_ARGUMENTS)." in await page_of(
                client, "/job?id=n"
            )
            assert "Done jobs have arguments only if" in await page_of(client, "/jobs?state=done&text=ann")
            assert len(ids_of(await page_of(client, "/jobs?state=done"))) == 3


@pytest.mark.usefixtures("empty_world")
class TestEmpty:
    @pytest.mark.parametrize(
        "path", ["/", "/jobs", "/jobs?state=running", "/failures", "/queues", "/workers", "/audit"]
    )
    async def test_an_empty_project_has_pages(self, path: str) -> None:
        async with as_operator() as client:
            page = await page_of(client, path)
        assert "</html>" in page

    async def test_unknown_things_are_said_in_one_line(self) -> None:
        async with as_operator() as client:
            assert "Neither Redis nor the ledger has this job." in await page_of(client, "/job?id=nothing", 404)
            assert "There is no such page." in await page_of(client, "/nothing", 404)
            assert "Each is shown for a day." in await page_of(client, "/bulk/nothing", 404)
