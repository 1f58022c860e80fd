"""Import order: could each module of tasks have been imported first?

Where modules import each other in a circle, Python may get through from one of them and not from another: the worker,
whose registry begins with the right one, starts, and the web application, which imports another, does not.

1. The sources of the project's modules are read; none of their code is run.
2. From each module of tasks, the imports are followed as Python would: a module is run when it is first imported,
   from top to bottom, and `from x import y` needs an `y` that `x`, if it is still running, has got to.
3. What cannot be told from the source is taken to work: imports under `if`, `try` or `with`, names from `import *`.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import resolve_name
from pathlib import Path

from worker.registry.imports import Step, describe_circle

__all__ = ["circles"]


def circles(modules: Mapping[str, Path], first: Iterable[str]) -> Iterator[str]:
    """A line for each circle of `modules` that would break an import of one of `first` in a fresh interpreter."""
    sources = {name: _Source.read(name, file) for name, file in modules.items() if file.suffix == ".py"}
    for name in first:
        try:
            _Interpreter(sources).import_module(name)
        except _CircleError as circle:
            yield describe_circle(circle.steps)


class _CircleError(Exception):
    def __init__(self, steps: list[Step]) -> None:
        super().__init__(steps)
        self.steps = steps


@dataclass(frozen=True)
class _Import:
    """An import statement: the module, and the names that are taken from it."""

    line: int
    module: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """What a module does when it is run, in order: imports, and the names that other statements define."""

    file: Path
    does: tuple[_Import | frozenset[str], ...]
    has_more_names: bool
    """Whether it may have names that its statements do not show."""

    @classmethod
    def read(cls, module: str, file: Path) -> "_Source":
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        body = ast.parse(file.read_bytes()).body
        does = [event for statement in body for event in _events(statement, package)]
        names = frozenset[str]().union(*(event for event in does if isinstance(event, frozenset)))
        return cls(file, tuple(does), not names.isdisjoint({"*", "__getattr__"}))


def _events(statement: ast.stmt, package: str) -> Iterator[_Import | frozenset[str]]:
    match statement:
        case ast.Import(names):
            for alias in names:
                yield _Import(statement.lineno, alias.name)
        case ast.ImportFrom(module, names, level):
            source = resolve_name("." * level + (module or ""), package) if level else module or ""
            yield _Import(statement.lineno, source, tuple(alias.name for alias in names if alias.name != "*"))
    yield frozenset(_defined(statement))


def _defined(statement: ast.stmt) -> Iterator[str]:
    for node in ast.walk(statement):
        match node:
            case ast.Name(name, ast.Store()) | ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                yield name
            case ast.alias(name, None):
                yield name.partition(".")[0]
            case ast.alias(_, str(name)):
                yield name


@dataclass
class _Interpreter:
    """A fresh interpreter, as far as importing goes."""

    sources: Mapping[str, _Source]
    _names: dict[str, set[str]] = field(default_factory=dict)
    """What each imported module has defined so far."""
    _running: list[Step] = field(default_factory=list)

    def import_module(self, name: str) -> None:
        """Run `name` and the packages that it is in, unless that was done or begun."""
        parts = name.split(".")
        for module in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
            if module in self.sources and module not in self._names:
                self._run(module)

    def _run(self, module: str) -> None:
        names = self._names[module] = set[str]()
        source = self.sources[module]
        for event in source.does:
            if isinstance(event, frozenset):
                names |= event
                continue
            self._running.append(Step(module, str(source.file), event.line))
            self.import_module(event.module)
            for name in event.names:
                self._take(name, event.module)
            self._running.pop()

    def _take(self, name: str, module: str) -> None:
        self.import_module(f"{module}.{name}")
        running = [step.module for step in self._running]
        if module not in running or self.sources[module].has_more_names:
            return
        if name not in self._names[module] and f"{module}.{name}" not in self.sources:
            raise _CircleError(self._running[running.index(module) :])
