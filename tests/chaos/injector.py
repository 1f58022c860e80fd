"""``FaultInjector``: draws faults and injects them, several at once."""

import asyncio
import random
import time
from collections.abc import Iterator, Mapping

from tests.chaos.faults import Fault, Injection, Targets, name_of

_PAUSE = 0.2, 1.4  # seconds between two faults
_LIVENESS_INTERVAL = 0.2  # seconds between two looks at whether all processes live


class FaultInjector:
    """Injects the faults of one run.

    Args:
        weights: how often each fault is drawn, in relation to the others.
        rng: the only source of randomness, so that a seed draws the same faults in the same order.
    """

    def __init__(self, targets: Targets, weights: Mapping[Fault, int], rng: random.Random) -> None:
        self._targets = targets
        self._rng = rng
        self._faults = _shuffled_forever([fault for fault, weight in weights.items() for _ in range(weight)], rng)

    async def run(self, seconds: float) -> None:
        """Inject faults for this long, and wait until the last of them is over."""
        liveness = asyncio.create_task(self._restart_ended_processes())
        try:
            async with asyncio.TaskGroup() as running:
                end = time.monotonic() + seconds
                while (left := end - time.monotonic()) > 0:
                    fault = next(self._faults)
                    injection = fault(self._targets, self._rng)
                    pause = self._rng.uniform(*_PAUSE)
                    await self._start(fault, injection, running)
                    await asyncio.sleep(min(pause, left))
        finally:
            liveness.cancel()
            await asyncio.wait({liveness})
            if not liveness.cancelled():
                liveness.result()

    async def _start(self, fault: Fault, injection: Injection, running: asyncio.TaskGroup) -> None:
        """Start the injection, or skip it if its target has another fault."""
        name, log = name_of(fault), self._targets.log
        if injection.lock.locked():
            log.skipped[name] += 1
            log.append(f"{name}: skipped, another fault is at the same target ({injection.description})")
            return
        await injection.lock.acquire()
        log.append(f"{name}: {injection.description}".rstrip(": "))
        running.create_task(self._inject(name, injection))

    async def _inject(self, name: str, injection: Injection) -> None:
        try:
            injected = await injection.inject()
        finally:
            injection.lock.release()
        log = self._targets.log
        (log.injected if injected else log.skipped)[name] += 1
        log.append(f"{name}: {'over' if injected else 'skipped, no COMMIT in time'}")

    async def _restart_ended_processes(self) -> None:
        """Report and restart processes that ended without a fault."""
        while True:
            for process in (*self._targets.workers, *self._targets.producers):
                if not process.fault_lock.locked() and process.exit_code is not None:
                    self._targets.log.append_process_failure(
                        f"{process.name} ended without a fault, with exit code {process.exit_code}"
                    )
                    process.start()
            await asyncio.sleep(_LIVENESS_INTERVAL)


def _shuffled_forever(faults: list[Fault], rng: random.Random) -> Iterator[Fault]:
    """Each fault as often as the list has it, in random order, then all of them again."""
    while True:
        rng.shuffle(faults)
        yield from faults
