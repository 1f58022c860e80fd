"""Text from outside is shown escaped."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.text.printable import first_line, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain: naïve 漢字 👩‍🚀 a b C:\\new", "plain: naïve 漢字 👩‍🚀 a b C:\\new"),
        ("x\n00:00:00:   0.10s ← 7:transfer ● paid", "x\\n00:00:00:   0.10s ← 7:transfer ● paid"),
        ("\x1b[2J\x07\b\r\t\x00\x7f", "\\x1b[2J\\x07\\x08\\r\\t\\x00\\x7f"),
        ("\x9b2J\x85", "\\x9b2J\\x85"),
        ("pay \u202egpj.exe\u2066\u200f\u061c", "pay \\u202egpj.exe\\u2066\\u200f\\u061c"),
        ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
        ("half \ud83d", "half \\ud83d"),
        ("[red]not markup[/red]", "[red]not markup[/red]"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    """Characters that end a line, control the terminal or turn the writing around are escaped. Others stay."""
    assert printable(text) == shown


@given(st.text(st.characters(codec=None)))
def test_any_text_becomes_one_line_of_utf8(text: str) -> None:
    """Any text becomes one line of UTF-8 without control characters. A second pass changes nothing."""
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} for char in shown)
    assert not any(unicodedata.bidirectional(char) in {"RLO", "LRO", "RLE", "LRE", "PDF"} for char in shown)
    shown.encode()
    assert printable(shown) == shown


def test_lines_after_the_first_are_indented() -> None:
    """Line breaks stay. Lines after the first are indented, so that none passes for a record of its own."""
    text = "Traceback:\n  File\x1b[2J\r\nValueError: no"
    assert printable_lines(text) == "Traceback:\n  File\\x1b[2J\\r\nValueError: no"
    assert printable_lines(text, indent="    ").splitlines()[1:] == ["      File\\x1b[2J\\r", "    ValueError: no"]


def test_first_line_shows_that_there_are_more() -> None:
    """Several lines become the first one and an ellipsis."""
    assert first_line("(psycopg) no table\n[SQL: SELECT 1]\n(Background ...)") == "(psycopg) no table …"
    assert first_line("\nonly\x07 one\n") == "only\\x07 one"
    assert first_line("") == ""
