"""The effects of a statement, as its text tells them."""

import pytest

from db.engine.effects import Effect
from db.engine.guards import _facts

STATE = [
    "SET search_path TO tenant_a, public",
    "set session authorization tenant",
    "SET ROLE tenant",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "-- a comment\nSET work_mem = 64",
    "RESET ALL",
    "LISTEN news",
    "PREPARE one AS SELECT 1",
    "LOAD 'auto_explain'",
    "DO $$ BEGIN PERFORM pg_advisory_lock(1); END $$",
    "CALL does_something()",
    "SELECT 1; SET work_mem = 64",
    "CREATE TEMP TABLE scratch (n int)",
    "CREATE LOCAL TEMPORARY TABLE scratch (n int)",
    "CREATE OR REPLACE TEMP VIEW scratch AS SELECT 1",
    "SELECT 1 INTO TEMP scratch",
    "DECLARE one CURSOR WITH HOLD FOR SELECT 1",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_lock_shared(1, 2)",
    "SELECT set_config('search_path', $1, false)",
    "SELECT set_config('a.b', 'c', true), set_config('a.d', 'e', false)",
    "PRAGMA foreign_keys = OFF",
    "ATTACH DATABASE 'other' AS other",
]
NONE = [
    "SELECT 1",
    "UPDATE note SET words = 'SET ROLE'",
    "SET LOCAL search_path TO tenant_a",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET CONSTRAINTS ALL DEFERRED",
    "SELECT set_config('a.b', $1, true)",
    "SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(2)",
    "CREATE TEMP TABLE scratch (n int) ON COMMIT DROP",
    "SELECT temp, reset, listen FROM weather",
    "INSERT INTO note VALUES ('a'); UPDATE note SET words = 'b'",
    "RELEASE SAVEPOINT one",
]


@pytest.mark.parametrize("statement", STATE)
def test_statements_that_outlive_their_transaction_are_session_state(statement: str) -> None:
    """Settings, roles, locks, tables and statements of the session."""
    assert Effect.SESSION_STATE in _facts(statement).effects


@pytest.mark.parametrize("statement", NONE)
def test_statements_local_to_their_transaction_have_no_effect(statement: str) -> None:
    """Settings local to the transaction, and words that only look alike."""
    assert _facts(statement).effects is Effect.NONE


@pytest.mark.parametrize(
    ("statement", "effect"),
    [
        ("SET TRANSACTION READ ONLY", Effect.READ_ONLY),
        ("SET LOCAL transaction_read_only = on", Effect.READ_ONLY),
        ("SELECT set_config('transaction_read_only', 'on', true)", Effect.READ_ONLY),
        ("SET LOCAL idle_in_transaction_session_timeout = 100", Effect.TIME_LIMIT),
        ("SELECT pg_terminate_backend(pg_backend_pid())", Effect.TERMINATION),
    ],
)
def test_statements_that_limit_or_end_their_own_connection_are_recognised(statement: str, effect: Effect) -> None:
    """So these ends are told apart from those by the server itself."""
    assert _facts(statement).effects is effect
