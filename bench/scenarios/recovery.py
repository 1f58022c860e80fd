"""How long a job stays away when its worker is killed."""

import random
import time
from contextlib import ExitStack
from functools import partial

from bench import targets
from bench.contenders import Contender
from bench.context import BenchContext, figures
from bench.process import ContenderError
from bench.progress import Step
from bench.section import Section
from bench.targets import TargetResult

_LEASES = {"Tandem, lease 10 s": (10.0, targets.RECOVERY_10), "Tandem, lease 2 s": (2.0, targets.RECOVERY_2)}
_A_DAY = "86400"  # seconds
_START = 3.0  # seconds that the second worker has to start; without it, its start would be measured
_LOOK_AGAIN = 0.1  # seconds


def run(context: BenchContext) -> Section:
    entrants = {name: partial(_measure, context.tandem, lease) for name, (lease, _) in _LEASES.items()}
    results = context.alternate("recovery", entrants, "{:.2f} s".format)
    ours = figures(results)
    away, failures = _peers(context)
    return Section(
        title="After kill -9",
        method="A worker is killed some seconds after it has begun a job, while another one is idle; the time is that "
        "from the kill until the job begins there. All peers at once, one time, with the limits that they come with, "
        f"for at most {context.workload.recovery_timeout:.0f} s.",
        header=("", "running again after", "range"),
        rows=[
            *((key, f"{one.median:.2f} s", f"{one.low:.2f} to {one.high:.2f}") for key, one in ours.items()),
            *((context.title(key), shown, "") for key, shown in away.items()),
        ],
        target_results=[
            TargetResult(target, ours.get(name), results.failures.get(name, ""))
            for name, (_, target) in _LEASES.items()
        ],
        failures=[*context.failures(results), *failures],
    )


def _measure(tandem: Contender, lease: float, _step: Step) -> float:
    with ExitStack() as running:
        trial = _Trial(tandem, running, WORKER_LEASE=str(lease))
        time.sleep(_START + random.uniform(0.0, lease))  # noqa: S311 - wherever the heartbeat is
        trial.kill()
        return trial.second.wait_for("held", timeout=lease + 60) - trial.killed_at


def _peers(context: BenchContext) -> tuple[dict[str, str], list[str]]:
    """How long each peer took, in words, and who failed; they wait, so all can do it at once."""
    away: dict[str, str] = {}
    failures: list[str] = []
    timeout = context.workload.recovery_timeout
    context.servers.empty()
    with context.progress.step("recovery, all peers") as step, ExitStack() as running:
        trials: dict[str, _Trial] = {}
        for number, peer in enumerate(context.peers, 1):
            try:
                trials[peer.key] = _Trial(peer, running, REDIS_URL=peer.redis.url(number))
            except ContenderError as error:
                failures.append(f"{context.title(peer.key)}: {error}")
        time.sleep(_START)
        for trial in trials.values():
            trial.kill()
        deadline = time.monotonic() + timeout
        while len(away) < len(trials) and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN)
            step.now(f"{len(trials) - len(away)} jobs are still away, {deadline - time.monotonic():.0f} s left")
            for key, trial in trials.items():
                held_at = trial.second.poll("held")
                if key not in away and held_at is not None:
                    away[key] = f"{held_at - trial.killed_at:.2f} s"
                    context.progress.say(f"recovery, {context.title(key)}: {away[key]}")
    return {key: away.get(key, f"more than {timeout:.0f} s") for key in trials}, failures


class _Trial:
    """Two workers, of which the first runs a job."""

    def __init__(self, contender: Contender, running: ExitStack, **settings: str) -> None:
        self.first = running.enter_context(contender.worker(BENCH_HOLD=_A_DAY, WORKER_ID="first", **settings))
        contender.enqueue("hold", 1, one_by_one=True, **settings)
        self.first.wait_for("held")
        self.second = running.enter_context(contender.worker(BENCH_HOLD="0", WORKER_ID="second", **settings))
        self.killed_at = 0.0

    def kill(self) -> None:
        self.killed_at = time.monotonic()
        self.first.kill()
