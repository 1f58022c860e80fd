"""``LazyGroup``: a group of commands that imports a command's module when the command is called.

1. The help of the group, and the completion of the names of its commands, read a table and import no command.
2. A call, the help of one command, and the completion of its options import that command's module alone.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from worker.process.gc_tuning import rare_collections


class LazyCommand(NamedTuple):
    """A command that is not imported yet."""

    name: str
    module: str
    attribute: str
    """The name of the command's function in the module, or of a `Typer` with several commands."""
    panel: str
    help: str
    """The first paragraph of the command's own help. A test compares the two."""

    def load(self) -> Any:
        """Import the command, as typer calls it."""
        target = getattr(import_module(self.module), self.attribute)
        if not isinstance(target, typer.Typer):
            function, target = target, typer.Typer(add_completion=False)
            target.command(self.name)(function)
        command = typer.main.get_command(target)
        command.name = self.name
        return command


class LazyGroup(TyperGroup):
    """A group of the commands in `lazy_commands`, for ``typer.Typer(cls=...)``."""

    lazy_commands: ClassVar[Sequence[LazyCommand]] = ()

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for lazy in self.lazy_commands:
            self.add_command(TyperCommand(lazy.name, help=lazy.help, rich_help_panel=lazy.panel))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Import the command that the arguments name. Typer calls this for a call, and for completion inside one."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None else self.load(str(name)), rest

    def load(self, name: str) -> Any:
        """Import the command of this name."""
        with rare_collections():
            return next(lazy for lazy in self.lazy_commands if lazy.name == name).load()
