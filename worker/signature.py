"""A function's signature: what is payload and what is injected.

1. Parameters annotated `AsyncSession`, `Session`, `JobContext` or `Annotated[..., Resource(name)]` are injected; a
   first parameter named ``ctx`` gets arq's context; all others are payload.
2. Payload is validated with pydantic when a job is enqueued, and again from JSON in the worker.
3. Where an annotation says nothing about a value (none, `Any`, a bare `list`), the value must be one that JSON leaves
   as it is.
"""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, NotRequired, Union, get_args, get_origin, get_type_hints

import sqlalchemy.ext.asyncio
import sqlalchemy.orm
from pydantic import ConfigDict, TypeAdapter, with_config
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation
from pydantic_core import from_json, to_json
from typing_extensions import TypedDict

from db import AsyncSession, Database, Session
from worker.context import JobContext, Resource
from worker.errors import PayloadNotJSONError, TaskDefinitionError

_CODEC = ConfigDict(
    extra="forbid",
    arbitrary_types_allowed=False,
    allow_inf_nan=False,  # JSON has neither
    ser_json_bytes="base64",
    val_json_bytes="base64",
)
_VARIADIC = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


@dataclass(frozen=True, slots=True)
class InjectedSession:
    """A session of `database` (None: the default one), through its synchronous twin if `sync`."""

    database: Database[Any] | None
    sync: bool


@dataclass(frozen=True, slots=True)
class InjectedContext:
    """The job's `JobContext`."""


@dataclass(frozen=True, slots=True)
class InjectedArqContext:
    """arq's context: a dict."""


Injected = InjectedSession | InjectedContext | InjectedArqContext | Resource


class Signature:
    """The parameters of one task's function.

    Raises:
        TaskDefinitionError: by any property, where a parameter cannot be told or validated. Read on first use, so that
            a task may name types that its module defines further down.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._signature = inspect.signature(fn)

    def check(self) -> None:
        """Read everything now."""
        self._adapter  # noqa: B018 - built on first use

    def validate(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The payload of a call, as JSON.

        Raises:
            TypeError: too many positional arguments, or one given twice.
            pydantic.ValidationError: a missing, unknown or wrong argument.
            PayloadNotJSONError: an argument that JSON would change.
        """
        payload = self._adapter.validate_python(self._by_name(args, kwargs))
        for name in self._untold & payload.keys():
            _require_json(name, payload[name])
        return self._adapter.dump_json(payload)

    def restore(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The payload of a job from the wire, validated, by name.

        Raises:
            TypeError, pydantic.ValidationError: as `validate`.
        """
        named = self._by_name(args, kwargs)
        return dict(self._adapter.validate_json(to_json(named))) if named or self.payload else {}

    def restore_result(self, raw: bytes) -> Any:
        """A result from the wire, as the type that the function promises.

        Raises:
            pydantic.ValidationError: the function returned something else than it promises.
        """
        return from_json(raw) if self._returns is None else self._returns.validate_json(raw)

    def call(self, payload: Mapping[str, Any], injected: Mapping[str, Any]) -> Any:
        """Call the function."""
        values = {**payload, **injected}
        positional = [values.pop(name) for name in self._positional_only if name in values]
        return self._fn(*positional, **values)

    @cached_property
    def payload(self) -> Mapping[str, inspect.Parameter]:
        """The parameters that a caller gives, by name."""
        return {name: p for name, p in self._signature.parameters.items() if name not in self.injected}

    @cached_property
    def injected(self) -> Mapping[str, Injected]:
        """The parameters that the worker gives, by name."""
        found: dict[str, Injected] = {}
        for position, (name, parameter) in enumerate(self._signature.parameters.items()):
            if parameter.kind in _VARIADIC:
                raise self._error(f"{_VARIADIC[parameter.kind]}{name} cannot be validated: name the parameters")
            if position == 0 and name == "ctx" and not _is_injected(self._hints.get(name)):
                found[name] = InjectedArqContext()
            elif (injected := _injected(self._hints.get(name))) is not None:
                found[name] = injected
        return found

    @cached_property
    def text(self) -> str:
        """The payload parameters, as one writes them."""
        return f"({', '.join(str(parameter) for parameter in self.payload.values())})"

    @cached_property
    def _hints(self) -> dict[str, Any]:
        try:
            return get_type_hints(self._fn, include_extras=True)
        except NameError as error:
            raise self._error(f"its annotations name {error.name}, which its module does not define") from None

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        fields = {
            name: self._hints.get(name, Any) if p.default is p.empty else NotRequired[self._hints.get(name, Any)]
            for name, p in self.payload.items()
        }
        shape = with_config(_CODEC)(TypedDict(self._fn.__name__, fields))  # type: ignore[operator]  # made at run time
        return self._adapted(shape, "parameters")

    @cached_property
    def _returns(self) -> TypeAdapter[Any] | None:
        promised = self._hints.get("return", Any)
        if promised is Any:
            return None
        try:
            return TypeAdapter(promised, config=None if _has_config(promised) else _CODEC)
        except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
            return None  # a type of the task's own, which its JSON stands for

    def _adapted(self, shape: Any, what: str) -> TypeAdapter[Any]:
        try:
            return TypeAdapter(shape)
        except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
            reason = str(error).splitlines()[0]
            raise self._error(f"pydantic cannot validate its {what}: {reason}") from None

    @cached_property
    def _untold(self) -> frozenset[str]:
        return frozenset(name for name in self.payload if _says_nothing(self._hints.get(name, Any)))

    @cached_property
    def _positional_only(self) -> tuple[str, ...]:
        parameters = self._signature.parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_ONLY)

    @cached_property
    def _positional(self) -> tuple[str, ...]:
        return tuple(name for name, p in self.payload.items() if p.kind is not p.KEYWORD_ONLY)

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if not args:
            return dict(kwargs)
        names = self._positional[: len(args)]
        if len(args) > len(names):
            raise TypeError(
                f"{self._fn.__qualname__}{self.text} takes {len(names)} positional arguments, not {len(args)}"
            )
        twice = kwargs.keys() & set(names)
        if twice:
            raise TypeError(f"{self._fn.__qualname__}{self.text} got {', '.join(sorted(twice))} twice")
        return {**dict(zip(names, args, strict=True)), **kwargs}

    def _error(self, problem: str) -> TaskDefinitionError:
        return TaskDefinitionError(f"{self._fn.__module__}.{self._fn.__qualname__} cannot be a task: {problem}")


def _injected(annotation: Any) -> Injected | None:
    """What an annotation asks the worker for, if it asks for anything."""
    extras: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        extras = tuple(rest)
    for extra in extras:
        if isinstance(extra, Resource):
            return extra
    if not isinstance(annotation, type):
        return None
    if issubclass(annotation, JobContext):
        return InjectedContext()
    database = next((extra for extra in extras if isinstance(extra, Database)), None)
    if issubclass(annotation, sqlalchemy.ext.asyncio.AsyncSession):
        return InjectedSession(database, sync=False)
    if issubclass(annotation, sqlalchemy.orm.Session):
        return InjectedSession(database, sync=True)
    return None


def _is_injected(annotation: Any) -> bool:
    return _injected(annotation) is not None


def _says_nothing(annotation: Any) -> bool:
    """Whether some part of a value of this annotation is left to itself."""
    if annotation in (Any, object, inspect.Parameter.empty, list, dict, tuple, set, frozenset, Mapping):
        return True
    origin = get_origin(annotation)
    if origin is None or origin is typing.Literal:
        return False
    if origin is Annotated:
        return _says_nothing(get_args(annotation)[0])
    if origin in (Union, types.UnionType, list, dict, tuple, set, frozenset) or isinstance(origin, type):
        return any(_says_nothing(part) for part in get_args(annotation) if part is not ...)
    return False


def _require_json(name: str, value: Any) -> None:
    """Refuse a value that would come out of JSON as another one, such as a tuple (a list) or an enum (its value)."""
    match value:
        case None | bool() | int() | float() | str() if type(value) in (type(None), bool, int, float, str):
            return
        case list() if type(value) is list:
            for item in value:
                _require_json(name, item)
        case dict() if type(value) is dict and all(type(key) is str for key in value):
            for item in value.values():
                _require_json(name, item)
        case _:
            raise PayloadNotJSONError(
                f"{name}: JSON would change this {type(value).__name__}; annotate the parameter with its type, "
                "or pass what JSON has: None, bool, int, float, str, list, dict with string keys"
            )


def _has_config(annotation: Any) -> bool:
    """Whether pydantic refuses a second configuration for this type."""
    return isinstance(annotation, type) and (
        hasattr(annotation, "__pydantic_config__") or hasattr(annotation, "model_config")
    )


__all__ = [
    "AsyncSession",
    "Injected",
    "InjectedArqContext",
    "InjectedContext",
    "InjectedSession",
    "Session",
    "Signature",
]
