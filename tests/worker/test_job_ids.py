"""The ids of jobs without an id of their own: UUIDs of version 7 that ascend within a process."""

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import RFC_4122, UUID

import pytest

from worker.job_ids import new_job_id, new_job_ids


def test_an_id_is_a_uuid_of_version_7_in_32_hex_digits() -> None:
    """Stock arq's ids have 32 hex digits too."""
    job_id = new_job_id()
    assert UUID(job_id).hex == job_id
    assert (UUID(job_id).version, UUID(job_id).variant) == (7, RFC_4122)


def test_an_id_begins_with_the_time_in_milliseconds() -> None:
    """So a new row goes to the end of an index."""
    before = time.time_ns() // 1_000_000
    moment = int(new_job_id()[:12], 16)
    assert before <= moment <= time.time_ns() // 1_000_000


def test_ids_ascend_within_a_batch_and_from_batch_to_batch() -> None:
    """A counter orders the ids of one millisecond."""
    ids = [job_id for count in (1, 20_000, 1, 3, 500) for job_id in new_job_ids(count)]
    assert ids == sorted(set(ids))
    assert len(ids) == 20_505


def test_ids_ascend_although_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The id's time is then that of the id before it."""
    earlier = new_job_ids(3)
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    later = [new_job_id(), *new_job_ids(2)]
    assert earlier + later == sorted({*earlier, *later})


def test_ids_ascend_over_a_carry_into_the_counters_upper_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter's two parts, around the variant, count as one number."""
    monkeypatch.setattr("secrets.randbits", lambda _bits: (1 << 30) - 3)
    monkeypatch.setattr(time, "time_ns", lambda: 2**60)
    monkeypatch.setattr("worker.job_ids._clock._moment", 0)
    ids = [new_job_id(), *new_job_ids(3)]
    assert [job_id[12:24] for job_id in ids] == ["7000bffffffe", "700180000000", "700180000001", "700180000002"]


def test_threads_never_make_the_same_id() -> None:
    """Sync tasks and sync web apps enqueue from threads."""
    with ThreadPoolExecutor(8) as pool:
        ids = [job_id for batch in pool.map(new_job_ids, [50] * 400) for job_id in batch]
    assert len({job_id[:24] for job_id in ids}) == 20_000


def test_a_forked_process_does_not_go_on_with_its_parents_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the children of one parent would differ in their 32 last bits only."""
    moment = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: moment)
    counters = {new_job_id()[12:24]}
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        receiver, sender = context.Pipe()
        child = context.Process(target=lambda sender=sender: sender.send(new_job_id()))
        child.start()
        counters.add(receiver.recv()[12:24])
        child.join()
    first, *others = sorted(int(counter.replace("7", "", 1), 16) for counter in counters)
    assert len(others) == 2
    assert all(abs(other - first) > 2 for other in others)
