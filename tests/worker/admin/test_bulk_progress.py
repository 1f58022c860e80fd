"""How far a bulk action has come."""

from tests.worker.admin.failed_jobs import NOW
from worker.admin.bulk_progress import BulkAction, BulkProgress, BulkState, Selection


def test_an_action_whose_process_has_died_is_silent() -> None:
    progress = BulkProgress(
        id="x",
        action=BulkAction.RETRY,
        actor="ann",
        selection=Selection(until=NOW),
        total=1,
        updated_at=NOW - 60_000,
    )
    assert progress.is_silent
    assert not progress.model_copy(update={"state": BulkState.DONE}).is_silent
