"""``KnownTasks``: the tasks that the worker of a test knows."""

from collections.abc import Mapping
from typing import Any

from worker.config import Config
from worker.errors import RegistryError
from worker.registry import load
from worker.task import Task


class KnownTasks:
    """The tasks of the project's registry, read at first need, and those that the test has named."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._named: dict[str, Task[..., Any]] = {}
        self._registered: Mapping[str, Task[..., Any]] | None = None
        self.why_unknown = ""
        """Why the registry has no tasks, for the message about an unknown one."""

    def use(self, task: Task[..., Any]) -> None:
        """Make a task known. Raises :class:`TaskDefinitionError` if a worker cannot run it."""
        task.check()
        self._named[task.name] = task

    @property
    def by_name(self) -> Mapping[str, Task[..., Any]]:
        """All of them, by name."""
        if self._registered is None:
            self._registered = self._load()
        return {**self._registered, **self._named}

    def _load(self) -> Mapping[str, Task[..., Any]]:
        """The tasks of the registry. A test may do without one: then it names its tasks."""
        try:
            return load(self._config.registry).tasks
        except RegistryError as error:
            self.why_unknown = f"the registry {self._config.registry} does not load ({error.problems[0]})"
            return {}
