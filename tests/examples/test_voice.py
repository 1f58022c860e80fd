"""No public page and no help text contains words that made sentences hard to read: a short list, not a grammar."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker.cli import COMMANDS, app

PROJECT = Path(__file__).parent.parent.parent
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").rglob("*.md"))]
AVOIDED = (
    "anew",
    "as ever",
    "become of",
    "becomes of",
    "became of",
    "for whom",
    "lest",
    "moods",
    "nobody",
    "no one",
    "somebody",
    "stumbled",
    "told of",
    "unwell",
    "whichever",
    "whoever",
    "whomever",
    "without a word",
    "would else",
)
"""Say who or what does it, or name the thing again."""
_AVOIDED = re.compile(rf"\b(?:{'|'.join(AVOIDED)})\b", re.IGNORECASE)
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def avoided_words(text: str) -> list[str]:
    """The avoided words in a text, wherever its lines are broken."""
    return _AVOIDED.findall(" ".join(text.split()))


def help_texts() -> Iterator[tuple[str, str]]:
    """Each command with the text of its `--help`."""
    commands: list[tuple[str, ...]] = [()]
    for lazy in COMMANDS:
        commands.append((lazy.name,))
        commands.extend((lazy.name, below) for below in getattr(lazy.load(), "commands", {}))
    for words in commands:
        shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "300"})
        yield " ".join(words) or "tandem", shown.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_contains_no_avoided_word(page: Path) -> None:
    """README, the pages in docs/, CONTRIBUTING, SECURITY and CHANGELOG use plain words outside of their code."""
    assert avoided_words(_CODE.sub("", page.read_text())) == []


def test_a_help_text_contains_no_avoided_word() -> None:
    """The `--help` of every command uses plain words."""
    texts = dict(help_texts())
    assert {"tandem", "run", "jobs", "jobs retry"} <= texts.keys()
    assert all("--help" in text for text in texts.values())
    assert {command: words for command, text in texts.items() if (words := avoided_words(text))} == {}


def test_an_avoided_word_is_found_across_a_line_break() -> None:
    """A phrase counts as found even if its words stand on two lines."""
    assert avoided_words("It is what would\nelse be lost, Nobody knows.") == ["would else", "Nobody"]
