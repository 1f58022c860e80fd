"""Chunks: many jobs of one task, handled by one call of its function in one transaction.

The function takes the calls as a list. The element's class declares what one job is enqueued with::

    @dataclass
    class Visit:
        account_id: int
        path: str


    @task(chunk=Chunk(size=100, wait=0.05, by="account_id"))
    async def count_visits(session: AsyncSession, visits: list[Visit]) -> None: ...


    await count_visits.enqueue(account_id=7, path="/")  # one job
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from pydantic_core import to_json

from worker.client.annotations import RESULT, annotation
from worker.client.signature import Injected, InjectedArqContext, InjectedContext, Signature
from worker.errors import TaskDefinitionError

_LARGEST = 10_000
_LONGEST_WAIT = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Chunk:
    """How many jobs of a task are handled together, and how long the first one waits for others.

    ::

        @task(chunk=Chunk(size=100, wait=0.05, by="account_id"))
        async def count_visits(session: AsyncSession, visits: list[Visit]) -> None: ...

    Args:
        size: the most jobs of one chunk, 1 to 10,000 (default: 100).
        wait: the seconds that the first job of a chunk waits for others, 0 to 60 (default: 0.05).
        by: the argument whose value all jobs of a chunk share (default: any jobs of the task go together).

    Raises:
        ValueError: a number is out of range.
    """

    size: int = 100
    wait: float = 0.05
    by: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.size <= _LARGEST:
            raise ValueError(f"Chunk(size={self.size!r}) is not between 1 and {_LARGEST}")
        if not 0 <= self.wait <= _LONGEST_WAIT:
            raise ValueError(f"Chunk(wait={self.wait!r}) is not between 0 and {_LONGEST_WAIT:g} seconds")


class ChunkSignature(Signature):
    """The signature of one job of a chunked task: the fields of its calls' class.

    Raises:
        TaskDefinitionError: the function does not take its calls as one list of a class, or is a plain function.
    """

    def __init__(self, fn: Callable[..., Any], chunk: Chunk) -> None:
        self._body = Signature(fn)
        self._chunk = chunk
        if not inspect.iscoroutinefunction(inspect.unwrap(fn)):
            raise self._refusal("a plain function cannot handle chunks: make it an 'async def'")
        self._calls, self._call = self._list_of_calls()
        super().__init__(self._one_call(fn))
        if chunk.by is not None and chunk.by not in self.payload:
            raise self._refusal(f"Chunk(by={chunk.by!r}) is no argument of its calls: {self.text}")

    @cached_property
    def injected(self) -> Mapping[str, Injected]:
        """The injected parameters of the function."""
        injected = self._body.injected
        for name, what in injected.items():
            if isinstance(what, InjectedContext | InjectedArqContext):
                raise self._refusal(f"{name} is the context of one job, and a chunk has many")
        return injected

    def key(self, arguments: Mapping[str, Any]) -> bytes:
        """The value that all jobs of a chunk share."""
        if self._chunk.by is None:
            return b""
        return to_json(getattr(self._call(**arguments), self._chunk.by), fallback=repr)  # the call has the defaults

    async def call_chunk(self, calls: Sequence[Mapping[str, Any]], injected: Mapping[str, Any]) -> Sequence[Any]:
        """Call the function with the arguments of many jobs, and return the result of each.

        Raises:
            TypeError: the function returned anything else than None, or a list with a result for each call.
        """
        results = await self._body.call({self._calls: [self._call(**call) for call in calls]}, injected)
        if results is None:
            return [None] * len(calls)
        if not isinstance(results, list) or len(results) != len(calls):
            returned = f"a list of {len(results)}" if isinstance(results, list) else repr(type(results).__name__)
            raise TypeError(
                f"{self._body.function.__qualname__} returned {returned} for {len(calls)} calls: return a list with a "
                "result for each call, in their order, or None"
            )
        return results

    async def call(self, payload: Mapping[str, Any], injected: Mapping[str, Any]) -> Any:
        """Call the function with the arguments of one job, as a chunk of its own, and return its result."""
        (result,) = await self.call_chunk([payload], injected)
        return result

    def _list_of_calls(self) -> tuple[str, type]:
        """The name of the parameter for the calls, and the class of its elements."""
        names = list(self._body.payload)
        hint = self._body.annotation_of(names[0]) if len(names) == 1 else None
        (element,) = get_args(hint) if get_origin(hint) is list else (None,)
        if not isinstance(element, type) or not _has_fields(element):
            raise self._refusal(
                "a chunked task takes its calls as one list of a class: calls: list[Visit], where Visit is a "
                f"dataclass, not {self._body.text}"
            )
        return names[0], element

    def _one_call(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A function with the parameters of one call, for its name in errors, and its validation."""

        def one_call() -> None: ...

        of_class: Any = inspect.signature(self._call)
        one_call.__signature__ = of_class  # type: ignore[attr-defined]  # inspect reads it
        one_call.__annotations__ = _annotations(self._call, of_class)
        one_call.__annotations__[RESULT] = self._result()
        one_call.__wrapped__ = fn  # type: ignore[attr-defined]  # where its source is
        one_call.__module__, one_call.__name__, one_call.__qualname__ = fn.__module__, fn.__name__, fn.__qualname__
        return one_call

    def _result(self) -> Any:
        """The annotation of one call's result."""
        try:
            promised = annotation(self._body.function, RESULT)
        except Exception:  # noqa: BLE001 - a type that only type checkers know: the JSON is returned
            return Any
        of_each = [get_args(each)[0] for each in (promised, *get_args(promised)) if get_origin(each) is list]
        return NoneType if promised in (None, NoneType) else of_each[0] if of_each else Any

    def _refusal(self, problem: str) -> TaskDefinitionError:
        function = self._body.function
        return TaskDefinitionError(f"{function.__module__}.{function.__qualname__} cannot be a task: {problem}")


def _has_fields(kind: type) -> bool:
    try:
        return bool(inspect.signature(kind).parameters)
    except ValueError:  # int, say
        return False


def _annotations(kind: type, signature: inspect.Signature) -> dict[str, Any]:
    """The annotations of a class's fields. Those of a pydantic model's signature have the constraints of its fields."""
    hints = get_type_hints(kind, include_extras=True)
    written = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return {
        name: hints.get(name, Any) if isinstance(each, str) or each is inspect.Parameter.empty else each
        for name, each in written.items()
    }
