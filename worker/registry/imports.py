"""Imports of a project's modules, with one line for an import that fails.

1. The project's root comes first on `sys.path`, so that installed packages do not hide the project's modules.
2. If another module hides one of the project's all the same, because it was imported earlier or because Python's rules
   prefer it, the error names both.
3. A failed import becomes one line: the missing module and where Python looked, the chain of a circular import, or
   the error with its file and line. The line does not depend on the order of the imports.
"""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from worker.errors import Stopped

__all__ = ["Importer", "MissingModuleError", "NotImportableError", "imported_files", "shown"]

_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
_TANDEM = Path(__file__).parents[2]


class NotImportableError(Exception):
    """A module, or a name in it, cannot be imported. The message is one line."""


class MissingModuleError(NotImportableError):
    """There is no such module. A module that raises when it is imported is not missing."""


@dataclass
class Importer:
    """Imports modules for one project. `root` is its folder, or None if the project is installed."""

    root: Path | None
    _failed: dict[str, NotImportableError] = field(default_factory=dict)

    @classmethod
    def for_project_with(cls, module: str) -> "Importer":
        """Make an importer. If `module` is in the working directory, put that directory first on `sys.path`."""
        root = _root_of(module)
        if root is not None and sys.path[:1] != [str(root)]:
            sys.path.insert(0, str(root))
        return cls(root)

    def module(self, name: str) -> ModuleType:
        """Import the module `name`. A module that failed is not run a second time.

        Raises:
            NotImportableError: the module cannot be imported.
        """
        if name not in self._failed:
            try:
                return self._import(name)
            except NotImportableError as problem:
                self._failed[name] = problem
        raise self._failed[name]

    def attribute(self, path: str) -> object:
        """Import the module of a dotted path, and return its attribute that `path` ends with.

        Raises:
            NotImportableError: there is no such module, or no such name in it.
        """
        module_name, _, name = path.rpartition(".")
        module = self.module(module_name)
        try:
            return getattr(module, name)
        except AttributeError as error:
            raise NotImportableError(_circular_import(error) or _missing_name(module, name)) from None
        except Exception as error:  # noqa: BLE001 - a module's own __getattr__ may raise anything
            raise self._problem(path, error) from None

    def _import(self, name: str) -> ModuleType:
        if shadow := self._shadow_of(name):
            raise NotImportableError(shadow)
        try:
            return importlib.import_module(name)
        except Stopped:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a module may raise anything when it is run
            raise self._problem(name, error) from None

    def _problem(self, name: str, error: BaseException) -> NotImportableError:
        where = _where(error) or name
        if isinstance(error, ImportError) and error.name and (shadow := self._shadow_of(error.name)):
            return NotImportableError(f"{where} imports {error.name}, but {shadow}")
        if isinstance(error, ModuleNotFoundError) and error.name:
            if f"{name}.".startswith(f"{error.name}."):
                return MissingModuleError(_missing_module(error.name))
            return NotImportableError(f"{where}: {_missing_module(error.name)}")
        return NotImportableError(_circular_import(error) or f"{where}: {_one_line(error)}")

    def _shadow_of(self, name: str) -> str | None:
        """A line about the module that hides the project's own of this name; None if none does."""
        top = name.partition(".")[0]
        ours, spec = _in_folder(self.root, top), _spec(top)
        if ours is None or spec is None:
            return None
        theirs = [spec.origin or "", *(spec.submodule_search_locations or ())]
        if ours.resolve() in [Path(place).resolve() for place in theirs]:
            return None
        if ours.is_dir() and not (ours / "__init__.py").exists():
            advice = f"Python prefers a package to a folder without __init__.py: add an empty {ours / '__init__.py'}"
        else:
            advice = "Python found that one first: rename yours, or uninstall the other"
        return f"{top} is {spec.origin or theirs[-1]} and not your {ours}. {advice}"


def imported_files() -> dict[str, Path]:
    """The file of every imported module, the program itself (`__main__`) included."""
    files = {name: getattr(module, "__dict__", {}).get("__file__") for name, module in list(sys.modules.items())}
    return {name: Path(file) for name, file in files.items() if isinstance(file, str)}


def shown(file: str | Path) -> str:
    """A file's path to print: relative if the file is in the working directory."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, list(known), n=2)
    return f" Did you mean {' or '.join(prefix + match for match in near)}?" if near else ""


def _root_of(module: str) -> Path | None:
    folder = Path.cwd()
    top, file = folder / module.partition(".")[0], folder.joinpath(*module.split("."))
    signs = (top / "__init__.py", file / "__init__.py", file.with_name(f"{file.name}.py"))
    return folder if any(sign.is_file() for sign in signs) else None


def _in_folder(folder: Path | None, top: str) -> Path | None:
    if folder is None:
        return None
    package, module = folder / top, folder / f"{top}.py"
    if any(package.glob("*.py")):
        return package
    return module if module.is_file() else None


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ValueError, ImportError):  # a module without a spec, such as __main__, or a parent that does not import
        return None


def _missing_module(name: str) -> str:
    parent, dot, leaf = name.rpartition(".")
    package = _spec(parent) if parent else None
    if package is not None and package.submodule_search_locations is None:
        return f"there is no module {name}: {parent} is {package.origin}, which is a module, not a package."
    places = _search_path() if package is None else list(package.submodule_search_locations or ())
    known = (module.name for module in pkgutil.iter_modules(places))
    return f"there is no module {name}. Python looked in {', '.join(places)}.{_did_you_mean(leaf, known, parent + dot)}"


def _search_path() -> list[str]:
    """The folders on `sys.path`, without the standard library's own."""
    folders = [Path(place or ".").absolute() for place in sys.path if Path(place or ".").is_dir()]
    return [str(folder) for folder in dict.fromkeys(folders) if not _is_library(folder)]


def _missing_name(module: ModuleType, name: str) -> str:
    path = f"{module.__name__}.{name}"
    if hasattr(module, "__path__") and _spec(path):
        return f"{path} is a module: add the name of a function in it."
    known = (other for other in vars(module) if not other.startswith("_"))
    return f"{shown(module.__file__ or module.__name__)} has no {name!r}.{_did_you_mean(name, known)}"


@dataclass(frozen=True)
class _Step:
    """A module whose top-level code is running, and its current line."""

    module: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{shown(self.file)}:{self.line}"


def _describe_circle(steps: Sequence[_Step]) -> str:
    """The error line for a circle of modules, in which each imports the next and the last imports the first.

    The line starts with the module that sorts first, so it does not depend on the order of the imports.
    """
    start = min(range(len(steps)), key=lambda index: steps[index].module)
    circle = [*steps[start:], *steps[:start]]
    imports = (f"{step} imports {then.module}" for step, then in zip(circle, [*circle[1:], circle[0]], strict=True))
    return (
        f"circular import: {', '.join(imports)}. Move one of these imports into the function that needs it, "
        "or move the code that both modules need into a third module."
    )


def _circular_import(error: BaseException) -> str | None:
    """The error line of a circular import; None if `error` has another cause."""
    running = list(_running_modules(error))
    names = [step.module for step in running]
    target = next((name for name in _asked_for(error) if name in names), None)
    return None if target is None else _describe_circle(running[names.index(target) :])


def _asked_for(error: BaseException) -> list[str]:
    """The modules that the failed import may have asked for."""
    if isinstance(error, ImportError) and error.name:
        return [error.name]
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        return [f"{error.obj.__name__}.{error.name}", error.obj.__name__]
    return []


def _running_modules(error: BaseException) -> Iterator[_Step]:
    """The modules whose top-level code is running where `error` was raised, outermost first."""
    outer = reversed(list(traceback.walk_stack(inspect.currentframe())))
    for frame, line in (*outer, *traceback.walk_tb(error.__traceback__)):
        if frame.f_code.co_name == "<module>":
            yield _Step(frame.f_globals["__name__"], frame.f_code.co_filename, line)


def _where(error: BaseException) -> str | None:
    """The last line of the project's code in the traceback, else the last line of an installed package."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown(error.filename)}:{error.lineno}"
    lines = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    installed = [(file, line) for file, line in lines if file.is_file() and not _is_library(file)]
    own = [(file, line) for file, line in installed if not _is_installed(file)]
    return next((f"{shown(file)}:{line}" for file, line in reversed(own or installed)), None)


def _is_library(file: Path) -> bool:
    """Whether a file belongs to Tandem or the standard library. Packages installed below the latter do not."""
    is_standard = file.is_relative_to(_STANDARD_LIBRARY) and not _is_installed(file)
    return is_standard or file.is_relative_to(_TANDEM / "worker") or file.is_relative_to(_TANDEM / "db")


def _is_installed(file: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(file.parts)


def _one_line(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split()).removesuffix(":")
