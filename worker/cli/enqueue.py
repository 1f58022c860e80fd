"""The command ``tandem enqueue``: enqueue a job by hand, with arguments that the task's signature validates.

1. The value after ``=`` is text. If the task's parameter does not take the text, the value is read as JSON.
2. The value after ``:=`` is JSON.
3. The job goes to Redis at once, not through a transaction.
"""

import asyncio
import difflib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_core import from_json

from db.text.printable import printable
from worker.broker.broker import default_broker
from worker.broker.errors import RedisError
from worker.cli.output import FAILED, MISTAKE, err, explain, printable_text
from worker.config import Config
from worker.errors import EnqueueError
from worker.job import Job
from worker.registry import load
from worker.task import BoundTask, Task


def enqueue(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Name of the task.")],
    *,
    arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An argument as text, or NAME:=JSON. Repeat it for each argument."),
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="OBJECT", help="All arguments as one JSON object.")] = None,
    delay: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Seconds until the job is due.")] = 0,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="When the job is due, for example 2030-01-31T08:00:00+01:00.")
    ] = None,
    job_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Id of the job. Default: a new one.")] = None,
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="Queue of the job. Default: the task's.")] = None,
    expires: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Do not start the job this long after it is due.")
    ] = None,
) -> int:
    """Enqueue a job, and print its id.

    \b
    tandem enqueue send_receipt --arg order_id=7 --arg copy_to=ann@example.com
    tandem enqueue import_rows --arg rows:='[1, 2, 3]' --delay 60
    tandem enqueue import_rows --json '{"rows": [1, 2, 3]}'
    """
    config = Config.load()
    known = load(config.registry).tasks
    if task not in known:
        return explain(_unknown(task, known), MISTAKE)
    try:
        arguments = _arguments(known[task], arg or (), json)
        bound = known[task].using(
            delay=delay, at=_time(at), job_id=job_id, queue=queue, expires=expires, transactional=False
        )
        job = asyncio.run(_enqueue(bound, arguments))
    except ValidationError as error:
        return explain("\n".join(_problems(known[task], error)), MISTAKE)
    except (TypeError, ValueError, EnqueueError) as error:
        return explain(printable(f"{task}: {error}"), MISTAKE)
    except (RedisError, OSError) as error:
        return explain(printable(f"REDIS_URL: no answer ({error}); is the server up?"), FAILED)
    if not job.is_new:
        return explain(printable(f"{job.job_id}: a job of this id waits or runs, or its result is kept"), FAILED)
    typer.echo(printable(job.job_id))
    err.print(printable_text(f"enqueued {task}", style="dim"))
    return 0


async def _enqueue(bound: BoundTask[..., Any], arguments: dict[str, Any]) -> Job[Any]:
    try:
        return await bound.enqueue(**arguments)
    finally:
        await default_broker().close()


def _arguments(task: Task[..., Any], pairs: Sequence[str], whole: str | None) -> dict[str, Any]:
    """The arguments that the options give, by name.

    Raises:
        ValueError: an option cannot be read.
    """
    texts: dict[str, str] = {}
    arguments = {} if whole is None else _object(whole)
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name.rstrip(":"):
            raise ValueError(f"--arg {pair}: write NAME=VALUE, or NAME:=JSON")
        is_json = name.endswith(":")
        name = name.removesuffix(":")
        if name in arguments or name in texts:
            raise ValueError(f"--arg {name} is given twice")
        if is_json:
            arguments[name] = _json(f"--arg {name}", value)
        else:
            texts[name] = value
    return arguments | _as_json_where_needed(task, arguments, texts)


def _as_json_where_needed(task: Task[..., Any], arguments: dict[str, Any], texts: dict[str, str]) -> dict[str, Any]:
    """The texts, those as JSON that their parameters do not take as text."""
    values: dict[str, Any] = dict(texts)
    try:
        task.signature.validate((), arguments | values)
    except ValidationError as error:
        for name in {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]} & texts.keys():
            try:
                values[name] = from_json(texts[name])
            except ValueError:
                continue  # the error of the text says more
    return values


def _object(text: str) -> dict[str, Any]:
    value = _json("--json", text)
    if not isinstance(value, dict):
        raise ValueError('--json takes an object. Example: {"order_id": 7}')  # noqa: TRY004 - the user's text
    return value


def _json(option: str, text: str) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise ValueError(f"{option}: not JSON: {error}") from None


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"--at {text}: write a time as in 2030-01-31T08:00:00+01:00") from None


def _problems(task: Task[..., Any], error: ValidationError) -> list[str]:
    return [printable(f"{task.name}{task.signature_text}: wrong arguments")] + [
        printable(f"- {'.'.join(map(str, problem['loc']))}: {problem['msg']}") for problem in error.errors()
    ]


def _unknown(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "'tandem check' lists the tasks"
    return printable(f"{name}: the registry has no such task; {hint}")
