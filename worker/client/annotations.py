"""Reading one annotation of a function, when it is needed.

Each annotation is read by itself, so that one that only type checkers can resolve does not matter until its value is
needed. Names are looked up when the annotation is read: a class may stand further down in the module.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Optional, get_type_hints

if sys.version_info >= (3, 14):
    import annotationlib

RESULT = "return"
"""The name of the annotation of a function's result."""


def annotation(function: Callable[..., Any], name: str) -> Any:
    """The annotation of a parameter, or of the `RESULT`. `Any` if it has none.

    Raises:
        NameError: the annotation names something that its module does not define.
        Exception: any other error, as an annotation is code.
    """
    written = _written(function)
    if name not in written:
        return Any
    one = SimpleNamespace(
        __annotations__={name: written[name]}, __type_params__=getattr(function, "__type_params__", ())
    )
    return get_type_hints(one, getattr(inspect.unwrap(function), "__globals__", {}), include_extras=True)[name]


def source(function: Callable[..., Any], name: str) -> str:
    """The annotation of a parameter as it is written, if it cannot be read."""
    written = _written(function)[name]
    return str(getattr(written, "__forward_arg__", written))


def with_default(hint: Any, default: object) -> Any:
    """The annotation of a parameter with this default: ``x: int = None`` takes None, too."""
    return Optional[hint] if default is None and hint is not Any else hint  # noqa: UP045 - also for types without `|`


def parameters(fn: Callable[..., Any]) -> inspect.Signature:
    """The parameters of `fn`. Annotations that cannot be read yet are no error."""
    if sys.version_info >= (3, 14):
        return inspect.signature(fn, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(fn)


def _written(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The annotations as they are written: strings and forward references are not looked up."""
    if sys.version_info >= (3, 14):
        return annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
    found: Mapping[str, Any] = getattr(function, "__annotations__", {})
    return found
