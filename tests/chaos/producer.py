"""One producer process: ``python -m tests.chaos.producer FOLDER SEED NAME`` performs actions until a SIGTERM."""

import asyncio
import random
import signal
import sys
from pathlib import Path

import db
from tests.chaos.actions import Producer
from tests.chaos.logs import ActionLog, Outcome
from worker import default_broker

_MAX_PAUSE = 0.15  # seconds between two actions
_PAUSE_AFTER_ERROR = 0.2


async def produce(folder: Path, seed: str, name: str) -> None:
    """Perform one action after another. A SIGTERM lets the current one finish."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    rng = random.Random(f"{seed} {name}")
    producer = Producer(name, rng, ActionLog(folder, name), _print_line)
    _print_line(f"{name} starts")
    while not stopping.is_set():
        outcome = await producer.perform_action()
        await asyncio.sleep(_PAUSE_AFTER_ERROR if outcome is Outcome.UNKNOWN else rng.uniform(0, _MAX_PAUSE))
    await default_broker().close()
    await db.default_database().dispose()


def _print_line(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - standard output is the producer's log file


if __name__ == "__main__":
    asyncio.run(produce(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
