"""The effects of a statement beside its result, as its text tells them.

Words are enough. A statement that is suspected wrongly costs one round trip, or one more check. A function may hide an
effect behind a name of its own; `Database(reset="always")` is for such functions.
"""

import re
from enum import Flag


class Effect(Flag):
    """An effect of a statement beside its result."""

    NONE = 0
    SESSION_STATE = 1
    """It sets what outlives its transaction: a setting, role, advisory lock, temporary table, LISTEN, PREPARE."""
    READ_ONLY = 2
    """It makes its transaction, or its session, read-only."""
    TIME_LIMIT = 4
    """It sets how long its transaction may last, or sit idle."""
    TERMINATION = 8
    """It ends a backend, perhaps its own."""


_FIRST_WORDS = (
    r"(?:set\s+(?!local\b|transaction\b|constraints\b)|"
    r"(?:reset|discard|listen|prepare|deallocate|load|do|call|pragma|attach|detach)\b)"
)
_BEGINS = re.compile(_FIRST_WORDS, re.IGNORECASE)
_GOES_ON = re.compile(rf";\s*{_FIRST_WORDS}", re.IGNORECASE)
_TEMPORARY = re.compile(r"\b(?:create\s+(?:or\s+replace\s+)?(?:(?:local|global)\s+)?|into\s+)temp(?:orary)?\b")
_HELD = re.compile(r"\bwith\s+hold\b")
_LOCKS = re.compile(r"\bpg_(?:try_)?advisory_lock(?:_shared)?\b")
_SETS = re.compile(r"\bset_config\s*\(")
_SETS_LOCALLY = re.compile(r"\bset_config\s*\([^()]*,\s*true\s*\)")
_READS_ONLY = re.compile(r"\bread\s+only\b|read_only")
_TIME_LIMITS = ("idle_in_transaction_session_timeout", "transaction_timeout")
_TERMINATES = "pg_terminate_backend"
# Hardly any statement contains one of these words. To search a long statement for each pattern takes time.
_WORDS = ("temp", "hold", "advisory", "set_config", "only", "_timeout", _TERMINATES)


def effects(statement: str, start: int) -> Effect:
    """The possible effects of `statement`, whose first word begins at `start`."""
    found = Effect.NONE
    if _BEGINS.match(statement, start) or (";" in statement and _GOES_ON.search(statement, start)):
        found |= Effect.SESSION_STATE
    words = statement.lower()
    if not any(word in words for word in _WORDS):
        return found
    if _is_left(words):
        found |= Effect.SESSION_STATE
    if _READS_ONLY.search(words):
        found |= Effect.READ_ONLY
    if any(limit in words for limit in _TIME_LIMITS):
        found |= Effect.TIME_LIMIT
    if _TERMINATES in words:
        found |= Effect.TERMINATION
    return found


def _is_left(words: str) -> bool:
    makes_table = _TEMPORARY.search(words) is not None and "on commit drop" not in words
    sets = len(_SETS.findall(words)) > len(_SETS_LOCALLY.findall(words))
    return makes_table or sets or _HELD.search(words) is not None or _LOCKS.search(words) is not None
