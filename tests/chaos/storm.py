"""``Storm``: draws faults and lets them fall, several at once, for as long as it lasts."""

import asyncio
import random
import time
from collections.abc import Iterator, Mapping

from tests.chaos.faults import Arena, Fault, Strike, name_of

_PAUSE = 0.2, 1.4  # seconds between two faults
_WATCHING = 0.2  # seconds between two looks at whether all processes live


class Storm:
    """The faults of one run.

    Args:
        faults: and how often each falls, by comparison.
        dice: all that is random comes of it, so that a seed draws the same faults in the same order.
    """

    def __init__(self, arena: Arena, faults: Mapping[Fault, int], dice: random.Random) -> None:
        self._arena = arena
        self._dice = dice
        self._deck = _dealt_again_and_again([fault for fault, weight in faults.items() for _ in range(weight)], dice)

    async def blow(self, seconds: float) -> None:
        """Let faults fall; it ends when the last of them is over."""
        watching = asyncio.create_task(self._keep_posts_filled())
        try:
            async with asyncio.TaskGroup() as falling:
                end = time.monotonic() + seconds
                while (left := end - time.monotonic()) > 0:
                    fault = next(self._deck)
                    strike = fault(self._arena, self._dice)
                    pause = self._dice.uniform(*_PAUSE)
                    await self._let_fall(fault, strike, falling)
                    await asyncio.sleep(min(pause, left))
        finally:
            watching.cancel()
            await asyncio.wait({watching})
            if not watching.cancelled():
                watching.result()

    async def _let_fall(self, fault: Fault, strike: Strike, falling: asyncio.TaskGroup) -> None:
        name, chronicle = name_of(fault), self._arena.chronicle
        if strike.target.locked():
            chronicle.spared[name] += 1
            chronicle.note(f"{name}: {strike.what} is in trouble already")
            return
        await strike.target.acquire()
        chronicle.note(f"{name}: {strike.what}".rstrip(": "))
        falling.create_task(self._strike(name, strike))

    async def _strike(self, name: str, strike: Strike) -> None:
        try:
            done = await strike.do()
        finally:
            strike.target.release()
        chronicle = self._arena.chronicle
        (chronicle.struck if done else chronicle.spared)[name] += 1
        chronicle.note(f"{name}: {'over' if done else 'no COMMIT came by'}")

    async def _keep_posts_filled(self) -> None:
        """Start processes again that have ended by themselves, which none should."""
        while True:
            for post in (*self._arena.workers, *self._arena.producers):
                if not post.busy.locked() and post.exit_code is not None:
                    self._arena.chronicle.accuse(f"{post.name} ended by itself, with exit code {post.exit_code}")
                    post.start()
            await asyncio.sleep(_WATCHING)


def _dealt_again_and_again(deck: list[Fault], dice: random.Random) -> Iterator[Fault]:
    """Each fault as often as it is in the deck before any comes more often."""
    while True:
        dice.shuffle(deck)
        yield from deck
