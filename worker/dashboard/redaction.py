"""Hiding secrets in what the dashboard shows of a job: arguments, result, error, traceback.

The hook of `dashboard(redact=...)` is called for each of them before it is shown, searched or downloaded.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

Part: TypeAlias = Literal["arguments", "result", "error", "traceback"]
Redact: TypeAlias = Callable[[str, Part, Any], Any]
"""Gets the task's name, the part of the job, and its value. Returns the value to show.

Arguments are ``{"args": [...], "kwargs": {...}}``, results any JSON value, errors and tracebacks text.
"""

MASK = "•••"
_NAMES = r"(?:password|passwd|passphrase|token|secret|authorization|api[_-]?key|cookie|credential)"
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
# password=x, "token": "x", Authorization: Bearer x. Bounded and without ways back, so that a megabyte takes no time.
_SECRET_TEXT = re.compile(
    rf"""({_NAMES}[\w-]{{0,24}}+["']?+\s{{0,4}}+[=:]\s{{0,4}}(?:(?:bearer|basic)\s+)?)("[^"]*"|'[^']*'|[^\s,;&"'{{}}()\[\]]+)""",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(\w://[^/\s:@]*:)[^@/\s]+(@)")


def mask_secrets(_task: str, _part: Part, value: Any) -> Any:
    """Mask what is named password, token, secret, authorization, API key, cookie or credential, at any depth.

    ::

        def redact(task: str, part: str, value: Any) -> Any:
            return "hidden" if task == "pay" else mask_secrets(task, part, value)


        dashboard(auth=auth, redact=redact)

    The default of `dashboard(redact=...)`.
    """
    return _masked(value)


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return _in_text(value)
    if isinstance(value, Mapping):
        return {
            name: MASK if isinstance(name, str) and _SECRET_NAME.search(name) else _masked(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return value


def _in_text(text: str) -> str:
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1{MASK}\2", text)
    return _SECRET_TEXT.sub(rf"\1{MASK}", text)
