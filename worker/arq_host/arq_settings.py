"""``ArqSettings``: a project's settings of arq, as arq's worker would read them."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arq.worker import Worker

from worker.errors import ConfigError

NAMES = frozenset(inspect.signature(Worker).parameters)
"""All settings of arq's worker."""
DEFAULTS: Mapping[str, Any] = {
    name: parameter.default for name, parameter in inspect.signature(Worker).parameters.items()
}


@dataclass(frozen=True)
class ArqSettings:
    """A project's settings of arq."""

    name: str
    """Where they are: ``app.WorkerSettings``."""
    file: str
    given: Mapping[str, Any]
    """The settings that the project gives, by arq's names."""
    inherited: tuple[str, ...]
    """Settings that a base class has. arq does not read them."""

    @classmethod
    def read(cls, settings: Any) -> "ArqSettings":
        """Read a class, a dict, or an object with attributes, such as a module.

        arq takes only a class's own attributes (0.28, ``worker.py``: `get_kwargs`).

        Raises:
            ConfigError: `settings` is nothing of this kind.
        """
        members = settings if isinstance(settings, dict) else getattr(settings, "__dict__", None)
        if not isinstance(members, Mapping) or not NAMES & members.keys():
            raise ConfigError(
                f"{settings!r} has no settings of arq's: give the class that 'arq' is started with, e.g. WorkerSettings"
            )
        bases = settings.__mro__[1:] if isinstance(settings, type) else ()
        inherited = {name for base in bases for name in vars(base) if name in NAMES}
        given = {name: members[name] for name in DEFAULTS if name in members}
        module = getattr(settings, "__module__", None) or getattr(settings, "__name__", None)
        return cls(
            _name_of(settings),
            getattr(sys.modules.get(str(module)), "__file__", None) or "?",
            given,
            tuple(sorted(inherited - given.keys())),
        )

    def get(self, name: str) -> Any:
        """The setting, or arq's default."""
        return self.given.get(name, DEFAULTS[name])


def _name_of(settings: Any) -> str:
    if isinstance(settings, type):
        return f"{settings.__module__}.{settings.__qualname__}"
    return str(getattr(settings, "__name__", "WorkerSettings"))
