"""``Resources``: what the tasks of a test get by `worker.Resource`."""

from typing import Any, NoReturn

from worker.errors import WorkerError


class Resources(dict[str, Any]):
    """Resources by name. The lifespan of the registry is not entered, so the test sets those that its tasks ask for."""

    def __missing__(self, name: str) -> NoReturn:
        raise WorkerError(f"a task asks for the resource {name!r}: set jobs.resources[{name!r}] in the test")
