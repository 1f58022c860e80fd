"""The output of ``python -m worker jobs``: job rows as text and as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic_core import to_json
from rich.table import Table
from rich.text import Text

from db.text.plural import plural
from db.text.printable import first_line, printable_lines
from worker.admin.job_detail import JobDetail
from worker.cli.output import printable_text
from worker.context import from_milliseconds
from worker.errors import PayloadError
from worker.ledger.admin import FailureCount, JobFilter, JobRow, earlier_ends
from worker.ledger.table import State
from worker.message import Message

_MOST_KINDS = 10  # kinds of failures that are shown
_TIMES = {"enqueued": "enqueued_at", "due": "due", "started": "started_at", "ended": "finished_at"}


def describe_rows(rows: Sequence[JobRow]) -> Table:
    """A table with a line for each job row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "task", "queue"):
        table.add_column(column, overflow="fold")
    table.add_column("tries", justify="right")
    for column in ("enqueued", "ended", "error"):
        table.add_column(column, no_wrap=column != "error")
    for row in rows:
        cells = (row.id, row.task, row.queue, f"{row.tries}", _when(row.enqueued_at), _when(row.finished_at))
        table.add_row(*map(printable_text, (*cells, first_line(row.error or ""))))
    return table


def describe_counts(job_filter: JobFilter, shown: int, counts: Sequence[FailureCount]) -> Iterator[Text]:
    """The number of jobs, in all and by task and kind of error."""
    total = sum(count.jobs for count in counts)
    most = f", of which {shown:,} are shown" if 0 < shown < total else ""
    yield Text(f"{plural(total, f'{job_filter.state} job')}{most}", style="bold")
    for count in counts[:_MOST_KINDS]:
        yield printable_text(f"{count.jobs:>9,}  ", (count.task, "cyan"), f"  {first_line(count.error or '')}".rstrip())
    if len(counts) > _MOST_KINDS:
        rest = sum(count.jobs for count in counts[_MOST_KINDS:])
        yield Text(f"{rest:>9,}  in {len(counts) - _MOST_KINDS:,} more kinds")


def as_data(rows: Sequence[JobRow], counts: Sequence[FailureCount]) -> dict[str, Any]:
    """The rows and counts for programs; times as in ISO 8601."""
    return {
        "jobs": [
            {field: _time(value) if field in _TIMES.values() else value for field, value in row._asdict().items()}
            for row in rows
        ],
        "counts": [count._asdict() for count in counts],
    }


def describe_job(rows: Sequence[Mapping[str, Any]], *, accept_pickle: bool) -> Iterator[Text]:
    """Every field of the job's row, the first of `rows`, then a line for each earlier job of the id."""
    row, *earlier = rows
    yield printable_text((row["id"], "bold cyan"), f"  {row['state']}")
    for label, value in _properties(row, accept_pickle=accept_pickle):
        yield _property(label, value)
    if row["traceback"]:
        yield Text(f"  {printable_lines(row['traceback'].strip(), indent='  ')}")
    for end in earlier_ends(row):
        yield _line("retried after", [_when(end["finished_at"]), f"tries {end['tries']}", end["error"]])
    for other in earlier:
        yield _line("the same id", [_when(other["enqueued_at"]), other["state"], other["error"]])


def describe_without_row(job: JobDetail) -> Iterator[Text]:
    """What Redis knows of a job that has no row, in the form of `describe_job`."""
    yield printable_text((job.id, "bold cyan"), f"  {job.state}")
    yield _property("task", job.task)
    yield _property("queue", job.queue)
    if job.arguments is None:
        yield _property("arguments", job.arguments_problem)
    else:
        yield from (
            _property(name, _shown(value)) for name, value in job.arguments.items() if value or name == "kwargs"
        )
    for label, field in _TIMES.items():
        if (moment := getattr(job, field)) is not None:
            yield _property(label, _when(moment))
    yield _property("tries", str(job.tries))
    if job.error is not None:
        yield _property("error", job.error)
    if job.has_result:
        yield _property("result", _shown(job.result))
    yield from describe_attempts(job)


def describe_attempts(job: JobDetail) -> Iterator[Text]:
    """A line for each attempt whose worker is known."""
    for attempt in job.attempts:
        if attempt.worker:
            number = "" if attempt.number is None else f"try {attempt.number}"
            when = _when(attempt.finished_at or attempt.started_at)
            yield _line("attempt", [number, attempt.state, f"on {attempt.worker}", when, attempt.error])


def _property(label: str, value: str) -> Text:
    return Text.assemble((f"  {label:<9} ", "dim"), printable_lines(value, indent=" " * 12))


def _properties(row: Mapping[str, Any], *, accept_pickle: bool) -> Iterator[tuple[str, str]]:
    yield "task", row["task"]
    yield "queue", row["queue"]
    yield from _arguments(row, accept_pickle=accept_pickle)
    for label, field in _TIMES.items():
        if row[field] is not None:
            yield label, _when(row[field])
    if row["patience"] is not None:
        yield "expires", f"{row['patience'] / 1000:g} s after it is due"
    if row["state"] == State.PENDING:
        yield "relay checks from", _when(row["check_at"])
    else:
        yield "tries", str(row["tries"])
    if row["error"] is not None:
        yield "error", row["error"]
    if row["result"] is not None and row["state"] == State.DONE:
        yield "result", row["result"].decode(errors="replace")


def _arguments(row: Mapping[str, Any], *, accept_pickle: bool) -> Iterator[tuple[str, str]]:
    if row["payload"] is None:
        if row["state"] == State.DONE:
            yield "arguments", "dropped when the job was done (WORKER_KEEP_ARGUMENTS)"
        return
    try:
        message = Message.decode(row["id"], row["payload"], accept_pickle=accept_pickle)
    except PayloadError as error:
        yield "arguments", f"cannot be read: {error}"
        return
    if message.args:
        yield "args", _shown(list(message.args))
    yield "kwargs", _shown(dict(message.kwargs))


def _shown(value: Any) -> str:
    return to_json(value, inf_nan_mode="constants", bytes_mode="base64", fallback=repr).decode()


def _line(label: str, parts: Sequence[str | None]) -> Text:
    return printable_text((f"  {label}  ", "dim"), "  ".join(first_line(part) for part in parts if part))


def _when(milliseconds: int | None) -> str:
    return "" if milliseconds is None else f"{from_milliseconds(milliseconds):%Y-%m-%d %H:%M:%S} UTC"


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else from_milliseconds(milliseconds)
