"""``BlockingJobs``: `Jobs` for a test without an event loop of its own."""

from collections.abc import Awaitable, Callable
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Protocol, TypeVar

from worker.aio import loop_thread
from worker.testing.jobs import Attempt, Jobs

T = TypeVar("T")


class Portal(Protocol):
    """Runs coroutine functions on the event loop of another thread, as `client.portal` of a `TestClient` does.

    ::

        with TestClient(app) as client:
            client.portal.call(jobs.drain)
    """

    def call(self, func: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run `func` with `args`, and return its result."""


class BlockingJobs:
    """The methods of `Jobs`, without ``await``. `blocking` makes it.

    ::

        blocking = worker.testing.blocking(jobs, client.portal)
        blocking.assert_enqueued(ship, order_id=7)
    """

    def __init__(self, jobs: Jobs | Attempt, portal: Portal | None) -> None:
        self._jobs = jobs
        self._portal = portal

    def using(self, **options: Any) -> "BlockingJobs":
        """As `Jobs.using`."""
        assert isinstance(self._jobs, Jobs)  # noqa: S101 - an attempt has no further options
        return BlockingJobs(self._jobs.using(**options), self._portal)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._jobs, name)
        return partial(self._run, attribute) if iscoroutinefunction(attribute) else attribute

    def _run(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        call = partial(method, *args, **kwargs)
        return loop_thread.run(call()) if self._portal is None else self._portal.call(call)


def blocking(jobs: Jobs, portal: Portal | None = None) -> BlockingJobs:
    """Return the methods of `jobs` for a plain `def test_...`, which then needs no ``await``.

    ::

        with TestClient(app) as client:
            with client.portal.wrap_async_context_manager(worker.testing.jobs()) as jobs:
                blocking = worker.testing.blocking(jobs, client.portal)
                client.post("/orders/7")
                blocking.assert_enqueued(ship, order_id=7)

    Args:
        portal: the portal of the event loop that the application runs on (default: the loop of `Task.enqueue_sync`).
    """
    return BlockingJobs(jobs, portal)
