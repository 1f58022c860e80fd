"""Docstrings of the project as Markdown: ``::`` begins a block of code, and a reference names a class."""

import re
from typing import Any

import griffe

_BLOCK = re.compile(r"^(?P<before>.*?)::\n\n(?P<code>(?:(?: {4}.*)?\n?)+)", re.MULTILINE)
_REFERENCE = re.compile(r":(?:class|mod|func|meth):`~?([\w.]+)`")


class AsMarkdown(griffe.Extension):
    """Rewrites docstrings before they are rendered."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, a class, a function or an attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _as_markdown(obj.docstring.value)


def _as_markdown(text: str) -> str:
    text = _REFERENCE.sub(lambda found: f"`{found[1].rsplit('.', 1)[-1]}`", text)
    return _BLOCK.sub(_fenced, text)


def _fenced(found: re.Match[str]) -> str:
    code = re.sub(r"^ {4}", "", found["code"].strip("\n"), flags=re.MULTILINE)
    before = f"{found['before']}:" if found["before"].strip() else ""
    return f"{before}\n\n```python\n{code}\n```\n\n"
