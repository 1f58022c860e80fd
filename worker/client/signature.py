"""``Signature``: which parameters of a task's function are payload, and which are injected.

1. Parameters annotated `AsyncSession`, `Session`, `JobContext` or `Annotated[..., Resource(name)]` are injected. A
   first parameter named ``ctx`` gets arq's context. All others are payload.
2. Pydantic validates the payload when a job is enqueued, and again from JSON in the worker.
   An annotation is read when it is needed. Those of the first parameter ``ctx`` and of the result need not resolve.
3. Arguments arrive as they were enqueued. If the annotations do not ensure that (none, `Any`, a union, a model), the
   arguments are decoded again when they are enqueued, and refused if JSON has changed them. Time zones are checked too.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, get_args, get_origin

import sqlalchemy.ext.asyncio
import sqlalchemy.orm
from pydantic_core import SchemaSerializer, from_json, to_json
from pydantic_core.core_schema import CoreConfig
from typing_extensions import TypedDict

from db import AsyncSession, Database, Session
from worker.client.annotations import RESULT, annotation, parameters, source, with_default
from worker.client.json_round_trip import has_times, is_exact, require_offset, require_same
from worker.context import JobContext, Resource
from worker.errors import PayloadNotJSONError, TaskDefinitionError
from worker.message import require_readable

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter

_CODEC: "ConfigDict" = {
    "extra": "forbid",
    "arbitrary_types_allowed": False,
    "allow_inf_nan": False,  # JSON has neither
    "ser_json_bytes": "base64",
    "val_json_bytes": "base64",
}
_RESULT_CODEC: "ConfigDict" = {"val_json_bytes": "base64"}
_SURELY_READABLE = 200  # bytes: shorter JSON has neither too deep nesting nor too long numbers
_ASKS_FOR_INJECTION = re.compile(r"(Annotated\[)?[\w.]*\b(JobContext|AsyncSession|Session)\b")
_VARIADIC = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


@dataclass(frozen=True, slots=True)
class InjectedSession:
    """A session of `database` (None for the default database), synchronous if `sync`."""

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
        TaskDefinitionError: a parameter cannot be classified or validated. Properties raise it at their first use, so
            that a task may name types that its module defines further down.
    """

    def __init__(self, fn: Callable[..., Any], *, is_arq: bool = False) -> None:
        self._fn = fn
        self.function = _function(fn)
        """The function that has the name, the code and the annotations."""
        self._is_arq = is_arq
        self._signature = parameters(fn)

    def check(self) -> None:
        """Read all annotations now. Raises as the class does."""
        self._adapter  # noqa: B018 - built on first use

    def validate(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Validate the arguments of a call, and return them as JSON.

        Raises:
            TypeError: too many positional arguments, or an argument that is given twice.
            pydantic.ValidationError: a missing, unknown or wrong argument.
            PayloadNotJSONError: an argument that JSON cannot carry, or would change.
        """
        payload = self._adapter.validate_python(self._by_name(args, kwargs))
        inexact = self._inexact & payload.keys()
        if self._with_times:
            for name in self._with_times & payload.keys():
                require_offset(name, payload[name])
        try:
            raw = self._serializer.to_json(payload, by_alias=True, round_trip=True)
            if len(raw) > _SURELY_READABLE:
                require_readable(raw)
            received = self._adapter.validate_json(raw) if inexact else {}
        except ValueError as error:
            raise PayloadNotJSONError(
                f"{self.function.__qualname__}{self.text}: JSON cannot carry these arguments: "
                f"{' '.join(str(error).split())}"
            ) from None
        for name in sorted(inexact):
            require_same(name, payload[name], received[name])
        return raw

    def restore(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Validate the arguments of a job from the wire, and return them by name.

        Raises:
            TypeError, pydantic.ValidationError: as `validate`.
        """
        named = self._by_name(args, kwargs)
        raw = to_json(named, bytes_mode="base64", inf_nan_mode="constants")
        return dict(self._adapter.validator.validate_json(raw)) if named or self.payload else {}

    def restore_values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Validate the arguments of a job that came as a pickle, and return them by name.

        They are Python's own values. A value that validation does not change is returned itself, with its own type.

        Raises:
            TypeError, pydantic.ValidationError: as `validate`.
        """
        named = self._by_name(args, kwargs)
        valid: dict[str, Any] = dict(self._adapter.validator.validate_python(named)) if named or self.payload else {}
        return {name: named[name] if _is_equal(named.get(name), value) else value for name, value in valid.items()}

    def unknown_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
        """The arguments of a job from the wire that the function does not take: the caller may run newer code."""
        unknown = sorted(kwargs.keys() - self.payload.keys())
        surplus = len(args) - len(self._positional)
        return [*unknown, f"{len(args)} positional arguments"] if surplus > 0 else unknown

    def restore_result(self, raw: bytes) -> Any:
        """Validate a result from the wire against the function's return annotation.

        Raises:
            pydantic.ValidationError: the result is of another type than the annotation.

        Raises:
            pydantic.ValidationError: the function returned something else than it promises.
        """
        if self._returns is None:
            return from_json(raw)
        return self._returns.validate_json(b'{"result":%b}' % raw)["result"]

    def call(self, payload: Mapping[str, Any], injected: Mapping[str, Any]) -> Any:
        """Call the function with payload and injected arguments."""
        values = {**payload, **injected}
        if not self._positional_only:
            return self._fn(**values)
        positional = [values.pop(name, default) for name, default in self._positional_only]
        return self._fn(*positional, **values)

    @cached_property
    def payload(self) -> Mapping[str, inspect.Parameter]:
        """The payload parameters by name."""
        return {name: p for name, p in self._signature.parameters.items() if name not in self.injected}

    @cached_property
    def injected(self) -> Mapping[str, Injected]:
        """The injected parameters by name."""
        found: dict[str, Injected] = {}
        for position, (name, parameter) in enumerate(self._signature.parameters.items()):
            if parameter.kind in _VARIADIC:
                raise self._error(f"{_VARIADIC[parameter.kind]}{name} cannot be validated: name the parameters")
            may_be_arqs = position == 0 and (self._is_arq or name == "ctx")
            injected = self._injected_first(name) if may_be_arqs else _injected(self.annotation_of(name))
            if injected is not None:
                found[name] = injected
        return found

    @cached_property
    def text(self) -> str:
        """The payload parameters as source text, in parentheses."""
        # Read again, as a type may have been defined since the declaration.
        known = parameters(self._fn).parameters
        return f"({', '.join(str(known[name]) for name in self.payload)})"

    def _injected_first(self, name: str) -> Injected:
        """What the first parameter gets: arq's context, unless its annotation asks for something else."""
        try:
            return _injected(annotation(self.function, name)) or InjectedArqContext()
        except Exception as error:  # noqa: BLE001 - an annotation in quotes is code, and may raise any error
            if _ASKS_FOR_INJECTION.match(source(self.function, name)):
                raise self._unreadable(name, error) from None
            return InjectedArqContext()  # whatever its type is to a type checker

    def annotation_of(self, name: str) -> Any:
        """The annotation of a parameter.

        Raises:
            TaskDefinitionError: it cannot be read.
        """
        try:
            return annotation(self.function, name)
        except Exception as error:  # noqa: BLE001 - an annotation in quotes is code, and may raise any error
            raise self._unreadable(name, error) from None

    def _unreadable(self, parameter: str, error: Exception) -> TaskDefinitionError:
        if isinstance(error, NameError):
            return self._error(
                f"its annotations name {error.name}, which its module does not define when it runs, and {parameter} "
                "needs it: import it outside of TYPE_CHECKING"
            )
        return self._error(f"its annotations cannot be read: {parameter}: {type(error).__name__}: {error}")

    @cached_property
    def _adapter(self) -> "TypeAdapter[Any]":
        fields = {
            name: self._hint(name) if parameter.default is parameter.empty else NotRequired[self._hint(name)]
            for name, parameter in self.payload.items()
        }
        try:
            return _adapter_of(self.function.__name__, fields, _CODEC)
        except Exception as error:  # noqa: BLE001 - pydantic has many errors for an unusable annotation
            raise self._error(self._unusable_parameter() or f"pydantic cannot validate it: {_message(error)}") from None

    @cached_property
    def _serializer(self) -> SchemaSerializer:
        # The adapter's own serializer would write bytes as UTF-8, against the configuration.
        return SchemaSerializer(self._adapter.core_schema, CoreConfig(ser_json_bytes="base64"))

    @cached_property
    def _returns(self) -> "TypeAdapter[Any] | None":
        try:
            promised = annotation(self.function, RESULT)
            return None if promised is Any else _adapter_of("Result", {"result": promised}, _RESULT_CODEC)
        except Exception:  # noqa: BLE001 - pydantic has many errors for an unusable annotation
            return None  # a type that pydantic does not know, or only a type checker: its JSON is returned

    def _unusable_parameter(self) -> str | None:
        for name in self.payload:
            try:
                _adapter_of("Parameter", {name: self._hint(name)}, _CODEC)
            except Exception as error:  # noqa: BLE001 - pydantic has many errors for an unusable annotation
                return (
                    f"pydantic cannot validate {name}: {_message(error)}. "
                    f'Take what JSON can carry, or ask for a resource: Annotated[..., Resource("{name}")]'
                )
        return None

    def _hint(self, name: str) -> Any:
        return with_default(self.annotation_of(name), self._signature.parameters[name].default)

    @cached_property
    def _inexact(self) -> frozenset[str]:
        return frozenset(name for name in self.payload if not is_exact(self._hint(name)))

    @cached_property
    def _with_times(self) -> frozenset[str]:
        return frozenset(name for name in self.payload.keys() - self._inexact if has_times(self._hint(name)))

    @cached_property
    def _positional_only(self) -> tuple[tuple[str, Any], ...]:
        """The names and defaults of positional-only parameters."""
        known = self._signature.parameters.values()
        return tuple((p.name, p.default) for p in known if p.kind is p.POSITIONAL_ONLY)

    @cached_property
    def _positional(self) -> tuple[str, ...]:
        return tuple(name for name, p in self.payload.items() if p.kind is not p.KEYWORD_ONLY)

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if not args:
            return dict(kwargs)
        names = self._positional[: len(args)]
        if len(args) > len(names):
            raise TypeError(
                f"{self.function.__qualname__}{self.text} takes {len(names)} positional arguments, not {len(args)}"
            )
        twice = kwargs.keys() & set(names)
        if twice:
            raise TypeError(f"{self.function.__qualname__}{self.text} got {', '.join(sorted(twice))} twice")
        return {**dict(zip(names, args, strict=True)), **kwargs}

    def _error(self, problem: str) -> TaskDefinitionError:
        return TaskDefinitionError(
            f"{self.function.__module__}.{self.function.__qualname__} cannot be a task: {problem}"
        )


def _function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function that is called in the end: that of a partial, or the `__call__` of an object."""
    while isinstance(fn, partial):
        fn = fn.func
    return fn if inspect.isroutine(inspect.unwrap(fn)) else type(fn).__call__


def _adapter_of(name: str, fields: dict[str, Any], config: "ConfigDict") -> "TypeAdapter[Any]":
    """The adapter of a typed dict. Other types would not take this configuration, and pass it on to nested types."""
    from pydantic import TypeAdapter, with_config  # noqa: PLC0415 - declaring tasks does not need it, using them does

    return TypeAdapter(with_config(config)(TypedDict(name, fields)))  # type: ignore[operator]  # made at run time


def _message(error: Exception) -> str:
    """Pydantic's message without its advice."""
    return str(error).splitlines()[0].split(". ")[0].rstrip(".")


def _injected(hint: Any) -> Injected | None:
    """The injected value that an annotation asks for, or None."""
    hint = getattr(hint, "__value__", hint)  # type Session = Annotated[...], since Python 3.12
    extras: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        extras = tuple(rest)
    for extra in extras:
        if isinstance(extra, Resource):
            return extra
    if not isinstance(hint, type):
        return None
    if issubclass(hint, JobContext):
        return InjectedContext()
    database = next((extra for extra in extras if isinstance(extra, Database)), None)
    if issubclass(hint, sqlalchemy.ext.asyncio.AsyncSession):
        return InjectedSession(database, sync=False)
    if issubclass(hint, sqlalchemy.orm.Session):
        return InjectedSession(database, sync=True)
    return None


def _is_equal(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except Exception:  # noqa: BLE001 - a comparison is a class's own code
        return False


__all__ = [
    "AsyncSession",
    "Injected",
    "InjectedArqContext",
    "InjectedContext",
    "InjectedSession",
    "Session",
    "Signature",
]
