"""The pauses before the next try."""

import pytest

from worker.aio.backoff import Backoff


def test_pauses_double_up_to_the_longest() -> None:
    """The first pause is as given; each later one is twice as long, and none is longer than the longest."""
    backoff = Backoff(0.5, 30.0)
    assert [backoff.next() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_the_longest_pause_stays_the_same_after_thousands_of_pauses() -> None:
    """The pause neither grows nor overflows."""
    backoff = Backoff(0.05, 2.0)
    assert {backoff.next() for _ in range(5000)} == {0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0}


def test_a_reset_begins_with_the_first_pause() -> None:
    """Failures that are over do not lengthen the pauses of later ones."""
    backoff = Backoff(1.0, 60.0)
    for _ in range(10):
        backoff.next()
    backoff.reset()
    assert [backoff.next() for _ in range(3)] == [1, 2, 4]


@pytest.mark.parametrize(("pauses", "seconds"), [(0, 1), (1, 2), (8, 256), (9, 300), (10_000, 300)])
def test_a_given_number_of_pauses_always_has_the_same_pause(pauses: int, seconds: float) -> None:
    """`after` returns the same pause each time, and does not count as a pause."""
    backoff = Backoff(1.0, 300.0)
    assert [backoff.after(pauses) for _ in range(3)] == [seconds] * 3
    assert backoff.next() == 1


def test_jitter_spreads_each_pause_over_its_range() -> None:
    """The longest pause is spread too: it is the middle of its range, not always its end."""
    drawn = [Backoff(2.0, 8.0, jitter=(0.75, 1.25)).after(pauses) for pauses in (0, 5) for _ in range(500)]
    for seconds, pauses in ((2, drawn[:500]), (8, drawn[500:])):
        assert all(0.75 * seconds <= pause <= 1.25 * seconds for pause in pauses)
        assert min(pauses) < 0.8 * seconds < 1.2 * seconds < max(pauses)


def test_jitter_does_not_add_up() -> None:
    """Each pause is drawn around its own length, whatever was drawn before."""
    backoff = Backoff(1.0, 1024.0, jitter=(0.5, 1.0))
    for doublings in range(11):
        assert 0.5 * 2**doublings <= backoff.next() <= 2**doublings
