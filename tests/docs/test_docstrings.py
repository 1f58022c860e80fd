"""Each public name has a docstring with an example, which compiles and calls what exists."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

MODULES = ("worker", "worker.testing", "worker.dashboard", "db", "db.asgi", "db.testing")
_EXAMPLE = re.compile(r"::\n\n((?: {4}.*\n?|\n)+)")


def public() -> Iterator[tuple[str, Any]]:
    """The public classes and functions, by dotted name. Errors have a page of their own."""
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        for name in getattr(module, "__all__", own):
            value = getattr(module, name)
            is_error = isinstance(value, type) and issubclass(value, Exception)
            if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)) and not is_error:
                yield f"{module_name}.{name}", value


PUBLIC = dict(public())


def examples(value: Any) -> list[str]:
    """The blocks of code of a docstring."""
    return [textwrap.dedent(block) for block in _EXAMPLE.findall(inspect.getdoc(value) or "")]


def test_there_are_public_names() -> None:
    """The other tests have something to look at."""
    assert len(PUBLIC) > 50


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example_that_fits(name: str) -> None:
    """It compiles, and passes keywords that the called class or function has."""
    blocks = examples(PUBLIC[name])
    assert blocks, f"{name} has no example in its docstring"
    named = {each.rpartition(".")[2]: value for each, value in PUBLIC.items()}
    for block in blocks:
        tree = compile(block, name, "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
            called = named.get(call.func.id) if isinstance(call.func, ast.Name) else None
            if called is not None:
                inspect.signature(called).bind_partial(**{each.arg: ... for each in call.keywords if each.arg})
