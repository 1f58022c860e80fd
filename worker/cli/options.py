"""Options that several commands have."""

from typing import Annotated

import typer

Queues = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="Queues, the most urgent first. Default: WORKER_QUEUES, or WORKER_QUEUE."),
]
