"""``SentryRunner``: a runner that reports failed jobs to Sentry, in a process that has called ``sentry_sdk.init``.

1. Each job has an isolation scope of its own, so tags and breadcrumbs of one job are not sent with another's error.
2. A job that has failed for good is one event, and an attempt that is repeated is none. Sentry's logging integration
   would report the log line of the same error once more, so an error is sent once in a job.
3. Sentry's integration for arq does not see these jobs: it wraps functions that arq calls, and the engine calls the
   tasks.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

from worker.engine.execution import Execution
from worker.engine.outcome import Outcome
from worker.engine.recording import RECORDING
from worker.engine.runner import Runner

_SDK = "sentry_sdk"
_MECHANISM = {"type": "tandem", "handled": False}


class SentryRunner(Runner):
    """Runs claimed jobs, and reports those that fail for good."""

    async def _run(self, execution: Execution) -> None:
        import sentry_sdk  # noqa: PLC0415 - optional, and imported by the project before

        with sentry_sdk.isolation_scope() as scope:
            scope.clear_breadcrumbs()
            scope.add_event_processor(_processor(execution))
            await super()._run(execution)

    async def _outcome(self, execution: Execution) -> Outcome:
        outcome = await super()._outcome(execution)
        if outcome.error is not None and RECORDING[outcome.kind].level >= logging.ERROR:
            _report(outcome.error)
        return outcome


def runner_class() -> type[Runner]:
    """The class of runners for this process: with Sentry if the project has set it up."""
    sdk: Any = sys.modules.get(_SDK)
    is_active = hasattr(sdk, "isolation_scope") and sdk.get_client().is_active()
    return SentryRunner if is_active else Runner


def _report(error: BaseException) -> None:
    import sentry_sdk  # noqa: PLC0415 - see above
    from sentry_sdk.utils import event_from_exception  # noqa: PLC0415 - likewise

    event, hint = event_from_exception(error, client_options=sentry_sdk.get_client().options, mechanism=_MECHANISM)
    sentry_sdk.capture_event(event, hint=hint)


def _processor(execution: Execution) -> Callable[[Any, Any], Any]:
    """Make the function that describes the job in each of its events, and drops an error that was sent before."""
    sent: list[BaseException] = []

    def process(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any] | None:
        error = (hint.get("exc_info") or (None, None, None))[1]
        if error is not None:
            if any(error is each for each in sent):
                return None
            sent.append(error)
        message, attempt = execution.message, execution.claim.tries + 1
        event["transaction"] = message.task
        tags = {"task": message.task, "queue": execution.queue, "job_id": execution.job_id, "attempt": str(attempt)}
        event["tags"] = {**tags, **(event.get("tags") or {})}
        job = {**tags, "attempt": attempt, "parent": message.parent, "traceparent": message.traceparent}
        event.setdefault("contexts", {})["job"] = {name: value for name, value in job.items() if value is not None}
        return event

    return process
