"""Whether a dashboard that somebody looks at slows down the worker."""

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from threading import Event, Thread
from urllib.request import Request, urlopen

from bench import targets
from bench.contenders import Contender
from bench.context import BenchContext, figures
from bench.drain import drain
from bench.process import STALL_TIMEOUT, ContenderError, Process
from bench.progress import Step
from bench.section import Section
from bench.tables import against

_ALONE, _OBSERVED = "nobody looks", "somebody looks"
_INTERVAL = 2.0  # seconds between two looks, as often as an open page asks again
_PAGES = ("/", "/jobs?state=done", "/failures", "/queues", "/workers")
_TOKEN = "a-token-for-the-bench"  # noqa: S105 - of a server that lives for one measurement
_START_INTERVAL = 0.1  # seconds between two attempts to reach a server that starts


def run(context: BenchContext) -> Section:
    workload = context.workload
    entrants = {
        _ALONE: partial(_alone, context.tandem, workload.observed),
        _OBSERVED: partial(_observed, context.tandem, workload.observed),
    }
    results = context.alternate("observed", entrants, "{:,.0f} jobs/s".format, workload.close_rounds)
    speeds = figures(results)
    return Section(
        title="Observed",
        method=f"{workload.observed:,} no-op jobs of Tandem, with the dashboard's process beside the worker. It is "
        f"idle, or {len(_PAGES)} of its pages are fetched every {_INTERVAL:g} s, for the first time when the worker is "
        "started.",
        header=("", "jobs/s", "range"),
        rows=[(key, f"{speed.median:,.0f}", f"{speed.low:,.0f} to {speed.high:,.0f}") for key, speed in speeds.items()],
        target_results=[against(targets.OBSERVED, speeds, _ALONE, ours=_OBSERVED)],
        failures=context.failures(results),
    )


def _alone(tandem: Contender, count: int, step: Step) -> float:
    tandem.enqueue("noop", count)
    with _dashboard(tandem):
        return drain(tandem, step, count, completed=count)


def _observed(tandem: Contender, count: int, step: Step) -> float:
    tandem.enqueue("noop", count)
    with _dashboard(tandem) as url, _looking(url):
        return drain(tandem, step, count, completed=count)


@contextmanager
def _dashboard(tandem: Contender) -> Iterator[str]:
    """The dashboard over a contender's servers, in a process of its own: its URL. Each page has been fetched once."""
    port = _free_port()
    urls = {"REDIS_URL": tandem.redis.url(), "DATABASE_URL": tandem.postgres.url}
    settings = urls | {"WORKER_DASHBOARD_TOKEN": _TOKEN, "WORKER_REGISTRY": "bench.ours.registry"}
    command = [sys.executable, "-m", "worker", "dashboard", "--port", str(port)]
    with Process(command, settings) as server:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_serves(server, url)
        for page in _PAGES:
            _fetch(url + page)
        yield url


def _wait_until_it_serves(server: Process, url: str) -> None:
    deadline = time.monotonic() + STALL_TIMEOUT
    while True:
        server.check()
        try:
            _fetch(url + "/")
        except OSError as error:
            if time.monotonic() > deadline:
                raise ContenderError(f"the dashboard does not answer: {error}; {server.stderr_tail()}") from None
            time.sleep(_START_INTERVAL)
        else:
            return


@contextmanager
def _looking(url: str) -> Iterator[None]:
    """Fetch the pages again and again, until the end of the block.

    Raises:
        ContenderError: a page could not be fetched.
    """
    ended, failures = Event(), list[str]()

    def look() -> None:
        for page in cycle(_PAGES):
            try:
                _fetch(url + page)
            except OSError as error:
                failures.append(f"{page}: {error}")
                return
            if page == _PAGES[-1] and ended.wait(_INTERVAL):
                return

    observer = Thread(target=look, daemon=True)
    observer.start()
    try:
        yield
    finally:
        ended.set()
        observer.join(STALL_TIMEOUT)
    if failures:
        raise ContenderError(f"the dashboard failed: {failures[0]}")


def _fetch(url: str) -> None:
    request = Request(url, headers={"Authorization": f"Bearer {_TOKEN}"})  # noqa: S310 - our own address
    with urlopen(request, timeout=STALL_TIMEOUT) as answer:  # noqa: S310
        answer.read()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
