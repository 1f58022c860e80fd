"""Whether what a page says in code exists: names, options of calls, settings and commands."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from typer.main import get_command

import db
import db.testing
import worker
import worker.admin.queues
import worker.testing
from worker import Job, JobContext, Task, cron, task
from worker.cli import app
from worker.config import Config

KNOWN: dict[str, Any] = {
    **{name: getattr(worker, name) for name in worker.__all__},
    "db": db,
    "worker": worker,
    "QueueAdmin": worker.admin.queues.QueueAdmin,
    "Annotated": None,
    "AsyncClient": None,
    "AsyncSession": db.AsyncSession,
    "Exception": Exception,
    "OSError": OSError,
    "TimeoutError": TimeoutError,
    "range": range,
    # What the pages' examples call their task, their jobs, and so on.
    "send": Task,
    "b": Task,
    "job": Job,
    "jobs": None,
    "context": JobContext,
    "ctx": dict,
    "session": db.AsyncSession,
    "moment": None,
    "i": None,
    "enqueue": Task.enqueue,
    "enqueue_job": None,  # arq's
}
"""The names that code on a page may begin with, each with what it is; None if nothing is known of it."""

_OF_A_CALL: dict[Any, Any] = {Task.using: Task, Task.enqueue: Job, worker.default_broker: worker.Broker}
"""What methods return whose results the pages go on with."""


def missing_settings(text: str) -> list[str]:
    """The settings in a text that Config does not have."""
    return sorted({name for name in re.findall(r"\bWORKER_(\w+)", text) if name.lower() not in Config.model_fields})


def unknown_commands(commands: Iterable[str]) -> list[str]:
    """The commands of `tandem` that do not exist, or lack an option or an argument."""
    return [command for command in commands if not _is_command(command)]


def _is_command(text: str) -> bool:
    command: Any = get_command(app)
    words = shlex.split(text)[1:]
    try:
        while hasattr(command, "resolve_command") and words:  # a group
            _, command, words = command.resolve_command(typer.Context(command), words)
        if hasattr(command, "resolve_command"):
            return bool(command.invoke_without_command)
        command.make_context("tandem", words).close()
    except (typer.TyperException, typer.Exit):
        return False
    return True


def code_problems(code: str) -> list[str]:
    """What is wrong with a piece of Python on a page: a name, an attribute or a keyword that does not exist."""
    try:
        tree = ast.parse(_completed(code))
    except SyntaxError as error:
        return [f"{code}: {error.msg}"]
    return [f"{code}: {problem}" for node in ast.walk(tree) for problem in _problems(node)]


def _completed(code: str) -> str:
    """The code as a module: decorators get a function, and `await` and `async for` one to stand in."""
    if code.startswith("@"):
        return f"{code}\ndef f(): ..."
    code = f"{code}: ..." if code.startswith("async ") else code
    return f"async def f():\n {code}"


def _problems(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name) if isinstance(node.ctx, ast.Load) and name not in KNOWN and name != "progress":
            yield f"what is {name}?"
        case ast.Attribute(attr=attribute, value=value):
            owner = _meaning(value)
            if owner is not None and not _has(owner, attribute):
                yield f"{ast.unparse(value)} has no {attribute}"
        case ast.Call(func=function, keywords=keywords):
            callee = _meaning(function)
            if callee in (None, range, Task, Task.enqueue, Task.enqueue_sync):
                return  # nothing is known, or these are the task's own parameters
            parameters = inspect.signature(task if callee is cron else callee).parameters
            known = {*parameters, *(inspect.signature(cron).parameters if callee is cron else ())}
            yield from (f"{keyword.arg} is no option" for keyword in keywords if keyword.arg not in known)


def _meaning(node: ast.expr) -> Any:
    """What an expression is, or an object of what class. None if that is not known."""
    match node:
        case ast.Name(id=name):
            return KNOWN.get(name)
        case ast.Attribute(value=value, attr=attribute):
            return getattr(_meaning(value), attribute, None)
        case ast.Call(func=function):
            callee = _meaning(function)
            return callee if inspect.isclass(callee) else _OF_A_CALL.get(callee)
        case ast.Await(value=value):
            return _meaning(value)
    return None


def _has(owner: Any, attribute: str) -> bool:
    return hasattr(owner, attribute) or attribute in _fields(owner)


def _fields(owner: Any) -> set[str]:
    """The attributes that the objects of a class get when they are made."""
    if not inspect.isclass(owner):
        return set()
    annotated = {name for base in owner.__mro__ for name in getattr(base, "__annotations__", {})}
    assigned = set(re.findall(r"\bself\.(\w+)(?:: [^=\n]+)? = ", inspect.getsource(owner)))
    return annotated | assigned | set(getattr(owner, "__slots__", ()))
