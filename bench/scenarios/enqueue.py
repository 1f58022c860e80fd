"""Queueing: many at once, one after another, and the round trips of one."""

from functools import partial

from sqlalchemy import make_url

from bench import targets
from bench.contenders import TANDEM, Contender
from bench.context import BenchContext
from bench.figures import Figures
from bench.progress import Step
from bench.round_trips import RoundTripCounter
from bench.section import Section
from bench.tables import chart
from bench.targets import TargetResult
from bench.workload import Workload

_Queued = tuple[float, float, float]  # seconds for the batch, seconds for one, round trips for one


def run(context: BenchContext) -> Section:
    workload = context.workload
    entrants = {one.key: partial(_measure, one, workload) for one in context.contenders}
    results = context.alternate("enqueueing", entrants, _shown)
    batch = {key: Figures.of(value[0] for value in values) for key, values in results.values.items()}
    single = {key: Figures.of(value[1] for value in values) for key, values in results.values.items()}
    trips = {key: Figures.of(value[2] for value in values) for key, values in results.values.items()}
    return Section(
        title="Enqueueing",
        method=f"{workload.batch:,} jobs, in the fastest way that the library offers: a batch (Tandem, streaQ, "
        f"oban-py) or 32 calls at once, as in streaQ's benchmark. Then {workload.one_by_one:,} jobs, each awaited "
        "before the next. "
        "The clock runs inside the program, once it is connected. Round trips are those that a relay in front of the "
        f"server sees, of {workload.round_trips} jobs one after another, less what connecting takes.",
        header=("", f"{workload.batch:,} jobs", "range", "one job", "round trips for one"),
        rows=[
            (
                context.title(key),
                f"{batch[key].median:.2f} s",
                f"{batch[key].low:.2f} to {batch[key].high:.2f}",
                f"{single[key].median * 1000:.2f} ms",
                f"{trips[key].median:.1f}",
            )
            for key in results.values
        ],
        target_results=[
            TargetResult(targets.ENQUEUE_BATCH, batch.get(TANDEM.key)),
            TargetResult(targets.ENQUEUE_TRIPS, trips.get(TANDEM.key)),
        ],
        chart=chart(context, f"Enqueue {workload.batch:,} jobs (less is better)", "s", batch),
        failures=context.failures(results),
    )


def _measure(contender: Contender, workload: Workload, _step: Step) -> _Queued:
    batch = contender.enqueue("noop", workload.batch)
    one_by_one = contender.enqueue("noop", workload.one_by_one, one_by_one=True)
    return batch, one_by_one / workload.one_by_one, _round_trips(contender, workload.round_trips)


def _round_trips(contender: Contender, count: int) -> float:
    server = contender.redis if contender.on_redis else contender.postgres
    with RoundTripCounter(server.port) as relay:
        through_relay = {
            "REDIS_URL": f"redis://127.0.0.1:{relay.port}/0",
            "DATABASE_URL": make_url(contender.postgres.url).set(port=relay.port).render_as_string(hide_password=False),
        }
        contender.enqueue("noop", 1, one_by_one=True, **through_relay)
        of_one = relay.take()
        contender.enqueue("noop", 1 + count, one_by_one=True, **through_relay)
        # To a tenth: connecting takes one more or one less now and then, as what is sent together may arrive apart.
        return round((relay.take() - of_one) / count, 1)


def _shown(queued: _Queued) -> str:
    batch, one, trips = queued
    return f"{batch:.2f} s for the batch, {one * 1000:.2f} ms and {trips:.1f} round trips for one"
