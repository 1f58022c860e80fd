from worker.cli.supervisor import Backoff


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
