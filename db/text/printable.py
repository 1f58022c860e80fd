"""Text from outside (ids, names, errors), made safe for a log line or a terminal.

Printable text cannot begin a new line, and cannot control the terminal. Control characters (C0, DEL, C1), line
separators, surrogates and characters that change the direction of writing become Python's escapes: ``\\n``, ``\\x1b``,
``\\u202e``.
"""

import re

# Arabic letter mark, left-to-right and right-to-left marks, embeddings, overrides and isolates.
_DIRECTIONS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_DIRECTIONS}\ud800-\udfff]")
_UNSAFE_IN_LINES = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


def printable(text: str) -> str:
    """`text` as one line."""
    # Most text is printable, and this check is far cheaper than a search.
    return text if text.isprintable() else _UNSAFE.sub(_escape, text)


def printable_lines(text: str, *, indent: str = "") -> str:
    """`text` with its line breaks. `indent` comes before each line but the first."""
    return _UNSAFE_IN_LINES.sub(_escape, text).replace("\n", f"\n{indent}")


def first_line(text: str) -> str:
    """The first line of `text`, with an ellipsis if there are more. For lists and log lines."""
    first, *others = text.strip().split("\n", 1)
    return f"{printable(first)} …" if others else printable(first)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
