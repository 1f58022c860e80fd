"""The tasks of the kit's tests."""

TASKS = (
    "tests.worker.testing.note_tasks.add",
    "tests.worker.testing.note_tasks.add_before",
    "tests.worker.testing.note_tasks.add_each",
    "tests.worker.testing.note_tasks.double",
    "tests.worker.testing.note_tasks.try_again",
    "tests.worker.testing.note_tasks.describe",
)
