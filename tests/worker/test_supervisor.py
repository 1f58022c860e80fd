from typing import cast

import pytest

from worker.cli.progress import Progress
from worker.cli.supervisor import Backoff, Supervisor


class TestBackoff:
    def test_grows(self) -> None:
        """Each short life makes the next start later, up to half a minute."""
        backoff = Backoff()
        assert [backoff.after(1) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]

    def test_is_forgotten(self) -> None:
        """One that lived for a minute is started again as soon as at first."""
        backoff = Backoff()
        for _ in range(5):
            backoff.after(1)
        assert [backoff.after(60), backoff.after(1)] == [0.5, 1]


class TestTheFirst:
    @pytest.mark.parametrize(("code", "others_start"), [(0, True), (1, False), (2, False)])
    def test_ends_a_burst(self, code: int, others_start: bool) -> None:
        """Where it had nothing to do, the others look, too; where it could not start, they do not try."""
        supervisor = Supervisor(["a", "b"], cast("Progress", None), None, until_empty=True)
        assert supervisor._is_final(code)
        assert (supervisor._first_works.is_set(), supervisor._stopping.is_set()) == (others_start, not others_start)

    @pytest.mark.parametrize("code", [0, 1, 137])
    def test_is_started_again(self, code: int) -> None:
        """A worker that is to work for ever is, but for a mistake."""
        supervisor = Supervisor(["a", "b"], cast("Progress", None), None, until_empty=False)
        assert not supervisor._is_final(code)
        assert supervisor._is_final(2)
