"""Whether a project's own Alembic makes the ledger's table."""

from pathlib import Path

import pytest

from worker.embedded.project_alembic import makes_ledger

CREATES = "op.create_table(\n        'tandem_jobs',\n"
INI = "[alembic]\nscript_location = {}\n[loggers]\nkeys = root\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a revision that creates the table."""
    monkeypatch.chdir(tmp_path)
    revision = tmp_path / "migrations/versions/one.py"
    revision.parent.mkdir(parents=True)
    revision.write_text(CREATES)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("alembic.ini", INI.format("migrations")),
        ("alembic.ini", INI.format("%(here)s/migrations")),
        ("pyproject.toml", '[tool.alembic]\nscript_location = "%(here)s/migrations"\n'),
    ],
)
def test_a_revision_that_creates_the_table_is_found(here: Path, file: str, content: str) -> None:
    """By either of Alembic's files, and for a table in a schema by its bare name."""
    assert not makes_ledger("tandem_jobs")
    (here / file).write_text(content)
    assert makes_ledger("tandem_jobs")
    assert makes_ledger("work.tandem_jobs")
    assert not makes_ledger("jobs")


@pytest.mark.parametrize("content", ["[alembic", INI.format("elsewhere"), "[other]\na = b\n"])
def test_a_configuration_that_cannot_be_used_counts_as_none(here: Path, content: str) -> None:
    (here / "alembic.ini").write_text(content)
    assert not makes_ledger("tandem_jobs")


def test_a_revision_that_calls_tandem_does_not_count(here: Path) -> None:
    """It finds a table that exists."""
    (here / "alembic.ini").write_text(INI.format("migrations"))
    (here / "migrations/versions/one.py").write_text("tandem.upgrade(op)  # makes tandem_jobs")
    assert not makes_ledger("tandem_jobs")
