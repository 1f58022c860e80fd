"""The lease table that a worker shares with its keeper: what one writes, the other reads."""

import pytest

from worker.keeper.table import KeptJob, LeaseTable, TableReader

TOKEN = "t" * 28


@pytest.fixture
def table() -> LeaseTable:
    return LeaseTable(4)


@pytest.fixture
def reader(table: LeaseTable) -> TableReader:
    """The keeper's side of `table`."""
    return TableReader(table.descriptor, table.size)


def test_a_batch_of_jobs_is_read_with_its_queue_token_and_time_limit(table: LeaseTable, reader: TableReader) -> None:
    """Ids may be any bytes."""
    table.add(3, TOKEN, [b"a", b"", b"\x00\xff"], until=7.5)
    assert reader.jobs() == [
        KeptJob(3, TOKEN.encode(), job_id, 7.5, has_begun=False) for job_id in (b"a", b"", b"\x00\xff")
    ]


def test_a_job_that_has_begun_has_a_time_limit_of_its_own(table: LeaseTable, reader: TableReader) -> None:
    """A job that has begun has a limit of its own, and the others keep theirs."""
    _, (batch, second) = table.add(0, TOKEN, [b"a", b"b"], until=7.0)
    batch.begin(second, 9.0)
    assert [(job.job_id, job.until, job.has_begun) for job in reader.jobs()] == [(b"a", 7.0, False), (b"b", 9.0, True)]


def test_a_job_that_has_ended_is_gone_and_an_empty_batch_makes_room(table: LeaseTable, reader: TableReader) -> None:
    """A hundred batches fit one after another."""
    for _ in range(100):
        first, second = table.add(0, TOKEN, [b"a", b"b"], until=1.0)
        first[0].end(first[1])
        assert [job.job_id for job in reader.jobs()] == [b"b"]
        second[0].end(second[1])
        assert reader.jobs() == []


def test_a_batch_larger_than_a_page_takes_several_and_an_oversized_id_is_left_out(
    table: LeaseTable, reader: TableReader
) -> None:
    """Its neighbours are kept."""
    ids = [f"{number:032d}".encode() for number in range(150)] + [b"x" * 5000] + [b"y" * 3000]
    places = table.add(0, TOKEN, ids, until=1.0)
    assert len(places) == len(ids)
    assert [job.job_id for job in reader.jobs()] == [job_id for job_id in ids if len(job_id) < 5000]
    for batch, word in places:
        batch.end(word)
    assert reader.jobs() == []
    assert len(table.add(0, TOKEN, ids, until=1.0)) == len(ids)


def test_jobs_that_do_not_fit_into_a_full_table_are_left_out(table: LeaseTable, reader: TableReader) -> None:
    """The jobs in the table stay as they are. A freed place is used again."""
    there = [table.add(0, TOKEN, [b"there"], until=1.0) for _ in range(4)]
    ((batch, word),) = table.add(0, TOKEN, [b"left out"], until=1.0)
    batch.begin(word, 2.0)
    batch.end(word)
    assert [job.job_id for job in reader.jobs()] == [b"there"] * 4
    ((batch, word),) = there[0]
    batch.end(word)
    table.add(0, TOKEN, [b"next"], until=1.0)
    assert sorted(job.job_id for job in reader.jobs()) == [b"next", *[b"there"] * 3]


def test_the_worker_is_alive_as_of_the_latest_sign_of_its_thread_or_its_loop(
    table: LeaseTable, reader: TableReader
) -> None:
    """The table also holds since when the leases are kept, and the keeper's process id."""
    table.thread_is_alive(5.0)
    table.loop_is_alive(4.0)
    assert reader.alive_at == 5.0
    table.loop_is_alive(6.0)
    assert reader.alive_at == 6.0
    table.leases_are_kept(3.0)
    assert reader.kept_since == 3.0
    assert table.keeper == 0
    reader.set_keeper(1234)
    assert table.keeper == 1234
