"""One producer, as a process: ``python -m tests.chaos.producer FOLDER SEED NAME``, until it is told to stop."""

import asyncio
import random
import signal
import sys
from pathlib import Path

import db
from tests.chaos.acts import Desk
from tests.chaos.journal import Journal, Outcome, journal_of
from worker import default_queue

_LONGEST_PAUSE = 0.15  # seconds between two acts
_AFTER_TROUBLE = 0.2


async def produce(folder: Path, seed: str, name: str) -> None:
    """Act until a SIGTERM; the act that is under way is finished."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    dice = random.Random(f"{seed} {name}")
    desk = Desk(name, dice, Journal(journal_of(folder, name)), _say)
    _say(f"{name} begins")
    while not stopping.is_set():
        outcome = await desk.act()
        await asyncio.sleep(_AFTER_TROUBLE if outcome is Outcome.UNKNOWN else dice.uniform(0, _LONGEST_PAUSE))
    await default_queue().close()
    await db.default_database().dispose()


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - its log


if __name__ == "__main__":
    asyncio.run(produce(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
