"""The registry: every task of a project, loaded from one flat list.

    # tasks/registry.py
    TASKS = (
        "tasks.mail.send_receipt",
        "tasks.census.index_file",
    )
    LIFESPAN = "tasks.resources.lifespan"  # if tasks need resources

1. `load` imports the list, then every task that it names.
2. `load` raises all problems in one error: a worker starts with all of its tasks or not at all.

A worker process and the command line may import it. Code that enqueues needs no registry, and must not be put here.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from arq.cron import CronJob
from arq.worker import Function

from worker.client.annotations import parameters
from worker.cron import from_arq, merge_schedules
from worker.errors import RegistryError, TaskDefinitionError
from worker.registry.imports import Importer, MissingModuleError, NotImportableError, imported_files, shown
from worker.task import Task

__all__ = ["Lifespan", "Registry", "load"]

Lifespan = Callable[[], AbstractAsyncContextManager[Mapping[str, Any]]]
"""A function without arguments that `LIFESPAN` names. It yields the resources of one worker by name."""

_EXAMPLE = 'Example: TASKS = ("tasks.mail.send_receipt",)'


@dataclass(frozen=True)
class Registry:
    """The imported tasks and lifespan of a project's registry."""

    module: str
    """The registry's dotted path."""
    file: str
    """The registry's file."""
    tasks: Mapping[str, Task[Any, Any]]
    """Every task by its name on the wire, in the order of the list."""
    lifespan: Lifespan | None
    """The worker's resources; None if the registry has no `LIFESPAN`."""


@dataclass(frozen=True)
class _Listed:
    """A task, and its entry in the registry."""

    entry: str
    task: Task[Any, Any]

    @property
    def place(self) -> str:
        return f"{shown(self.task.file)}:{self.task.line}"


def load(path: str = "tasks.registry") -> Registry:
    """Import the registry, a module named by its dotted path, and every task that its `TASKS` lists.

    If the registry is in the working directory, that directory is put first on `sys.path`.

    Raises:
        RegistryError: the registry has problems; the error lists all of them.
    """
    problems: list[str] = []
    listed: list[_Listed] = []
    lifespan: Lifespan | None = None

    importer, module = _import_registry(path)
    for entry in _entries(module):
        with _collecting(problems):
            listed.append(_import_task(importer, entry))
    with _collecting(problems):
        lifespan = _import_lifespan(importer, module)
    problems += _clashing_names(listed)
    problems += _modules_imported_twice(listed)

    if problems:
        raise RegistryError(problems)
    tasks = MappingProxyType({task.name: task for task in merge_schedules(one.task for one in listed)})
    return Registry(path, module.__file__ or path, tasks, lifespan)


@contextmanager
def _collecting(problems: list[str]) -> Iterator[None]:
    """Add a problem to `problems` and go on, so that one error lists all of them. A repeated problem is added once."""
    try:
        yield
    except (NotImportableError, RegistryError, TaskDefinitionError) as problem:
        if str(problem) not in problems:
            problems.append(str(problem))


def _import_registry(path: str) -> tuple[Importer, ModuleType]:
    if not _is_absolute(path):
        raise _problem(f"{path!r} is not the dotted path of a module. Example: WORKER_REGISTRY=tasks.registry")
    importer = Importer.for_project_with(path)
    try:
        return importer, importer.module(path)
    except MissingModuleError as missing:
        advice = f"Start in the folder that holds {path.partition('.')[0]}, or set WORKER_REGISTRY."
        raise _problem(f"{missing} {advice}") from None
    except NotImportableError as problem:
        raise _problem(str(problem)) from None


def _entries(module: ModuleType) -> Sequence[object]:
    file = shown(module.__file__ or module.__name__)
    entries = getattr(module, "TASKS", None)
    if entries is None:
        raise _problem(f"{file} has no TASKS: list the tasks there. {_EXAMPLE}")
    if isinstance(entries, str):
        raise _problem(f"TASKS in {file} is a str: write a tuple; a tuple of one needs a comma. {_EXAMPLE}")
    if not isinstance(entries, tuple):
        raise _problem(f"TASKS in {file} is a {type(entries).__name__}: make it a tuple. {_EXAMPLE}")
    if not entries:
        raise _problem(f"TASKS in {file} is empty: list at least one task. {_EXAMPLE}")
    return entries


def _import_task(importer: Importer, entry: object) -> _Listed:
    match entry:
        case str():
            listed = _Listed(entry, _as_task(entry, _import_entry(importer, entry)))
        case Function() | CronJob():
            listed = _Listed(entry.name, from_arq(entry))
        case Task():
            raise _problem(f"TASKS holds the task {entry.name} itself: list its path. {_EXAMPLE}")
        case _:
            raise _problem(f"TASKS holds {entry!r}: list one dotted path a line. {_EXAMPLE}")
    listed.task.check()
    return listed


def _import_entry(importer: Importer, entry: str) -> object:
    if not _is_absolute(entry) or "." not in entry:
        raise _problem(f"TASKS lists {entry!r}, which is not the absolute path of a task. {_EXAMPLE}")
    try:
        return importer.attribute(entry)
    except NotImportableError as problem:
        top = entry.partition(".")[0]
        if f"{top}." in entry[1:]:  # "tasks.a.x" "tasks.b.y"
            raise _problem(f"{problem} Is there a comma missing in TASKS at {entry!r}?") from None
        raise


def _as_task(entry: str, found: object) -> Task[Any, Any]:
    match found:
        case Task():
            return found
        case Function() | CronJob():
            return from_arq(found)
        case _ if inspect.isroutine(found):
            raise _problem(f"{entry} is a plain function: decorate it with @task.")
        case _:
            raise _problem(
                f"{entry} is not a task but an object of type {type(found).__name__}: list functions with @task."
            )


def _clashing_names(listed: Sequence[_Listed]) -> Iterator[str]:
    """A line for each task that has the name of an earlier one, as a job finds its task by name."""
    first_of_name: dict[str, _Listed] = {}
    for later in listed:
        first = first_of_name.setdefault(later.task.name, later)
        if first is later:
            continue
        if first.task.fn is not later.task.fn:
            yield (
                f"two tasks are called {later.task.name!r}, {first.entry} ({first.place}) and {later.entry} "
                f"({later.place}): rename one, or give it another name for its jobs, as in @task(name='other')."
            )
        elif (first.task.options, first.task.schedules) != (later.task.options, later.task.schedules):
            if all(one.task.is_arq and one.task.schedules for one in (first, later)):
                continue  # `merge_schedules` makes one task of them
            yield (
                f"{first.entry} and {later.entry} are two tasks of one function ({later.place}), both called "
                f"{later.task.name!r}: give one of them another name, as in cron('0 7 * * *', name='other')(function)."
            )
        elif first.entry != later.entry:
            yield f"{first.entry} and {later.entry} are the same task ({later.place}): list one of them."
        else:
            yield f"{later.entry} is listed twice: list it once."


def _modules_imported_twice(listed: Sequence[_Listed]) -> Iterator[str]:
    """A line for each file that is imported as two modules, so that its tasks exist twice.

    `python -m tasks.mail` for example imports the file as `__main__`.
    """
    imported = imported_files()
    for file, name in dict.fromkeys((Path(each.task.file), each.task.module) for each in listed):
        for other, its_file in imported.items():
            if other != name and its_file == file:
                yield (
                    f"{shown(file)} is imported twice, as {name} and as {other}, so each of its tasks exists twice: "
                    f"import it as {name} everywhere, and do not run it with python -m."
                )


def _import_lifespan(importer: Importer, module: ModuleType) -> Lifespan | None:
    path = getattr(module, "LIFESPAN", None)
    if path is None:
        return None
    if not isinstance(path, str) or not _is_absolute(path) or "." not in path:
        raise _problem(f'LIFESPAN is {path!r}, not a dotted path. Example: LIFESPAN = "tasks.resources.lifespan"')
    found: Any = importer.attribute(path)
    if inspect.isasyncgenfunction(found):
        raise _problem(f"{path} is a plain generator: decorate it with @contextlib.asynccontextmanager.")
    if not callable(found) or inspect.iscoroutinefunction(found) or not _takes_nothing(found):
        raise _problem(f"{path} must be an async context manager that is called without arguments.")
    lifespan: Lifespan = found
    return lifespan


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        parameters(function).bind()
    except TypeError:
        return False
    return True


def _is_absolute(path: str) -> bool:
    return all(part.isidentifier() for part in path.split("."))


def _problem(line: str) -> RegistryError:
    return RegistryError([line])
