"""`python -m worker migrate`, as a deploy runs it."""

from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from tests.servers import Databases, as_dsn, as_url
from tests.worker.cli.test_cli import run
from worker.ledger.revisions import versions

LATEST = versions()[-1]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder without a project."""
    return tmp_path


def test_migrate_creates_the_table_and_then_has_nothing_to_do(here: Path, databases: Databases) -> None:
    """It says whether it created the table or did nothing; the exit code of both is 0."""
    with databases.bare() as url:
        settings = {"DATABASE_URL": as_url(url, "asyncpg"), "WORKER_LEDGER": "work.jobs"}
        first, second = (run("migrate", cwd=here, **settings) for _ in range(2))
    assert (first.returncode, first.stdout, first.stderr) == (0, f"work.jobs: created, version {LATEST}\n", "")
    assert (second.returncode, second.stdout) == (0, f"work.jobs: version {LATEST}: nothing to do\n")


def test_migrate_hands_the_table_to_other_migrations_and_takes_it_back(here: Path, databases: Databases) -> None:
    """Each command says what it did. They exclude each other."""
    with databases.bare() as url:
        settings = {"DATABASE_URL": as_url(url, "asyncpg")}
        runs = [
            run("migrate", *options, cwd=here, **settings)
            for options in ([], ["--release"], ["--release"], [], ["--adopt"], ["--adopt"])
        ]
    assert [(done.returncode, done.stderr) for done in runs] == [(0, "")] * 6
    assert [done.stdout.removeprefix("tandem_jobs: ").strip() for done in runs] == [
        f"created, version {LATEST}",
        "released: other migrations manage the table from now on",
        "'migrate' does not manage the table: nothing to do",
        "the table is complete, and other migrations manage it: nothing to do",
        f"taken over at version {LATEST}",
        f"version {LATEST}: nothing to do",
    ]
    done = run("migrate", "--adopt", "--release", cwd=here)
    assert (done.returncode, done.stderr) == (2, "give only one of --sql, --adopt and --release\n")


def test_migrate_sql_prints_the_statements_without_a_server(here: Path, databases: Databases) -> None:
    """`--sql` prints statements that a server of that kind executes, and connects to none."""
    done = run("migrate", "--sql", cwd=here, DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert (done.returncode, done.stderr) == (0, "")
    with databases.bare() as url, psycopg.connect(as_dsn(url), autocommit=True) as connection:
        connection.execute(done.stdout.encode())
        assert connection.execute("SELECT count(*) FROM tandem_jobs").fetchone() == (0,)


def test_migrate_reports_a_missing_or_refusing_database_in_one_line(here: Path, database_url: str) -> None:
    """Exit code 2: neither URL nor project. Exit code 1: no server, a refusing server, an impossible table."""
    no_project = run("migrate", cwd=here, WORKER_REGISTRY="listed")
    assert no_project.returncode == 2
    assert no_project.stderr.startswith("DATABASE_URL is not set, and listed, which may make a database")
    assert no_project.stderr.count("\n") == 1
    away = "postgresql://nobody@127.0.0.1:1/none"
    refused = make_url(database_url).set(database="no_such_database").render_as_string(hide_password=False)
    for url, ledger, line in (
        (away, "", "DATABASE_URL: no answer within 0.1 s"),
        (refused, "", "DATABASE_URL: the server refuses: database "),
        (database_url, "pg_catalog.jobs", "DATABASE_URL: the server refuses: permission denied"),
        (f"sqlite:///{here}/a.sqlite", "work.jobs", "WORKER_LEDGER=work.jobs: SQLite has no schemas"),
    ):
        wait = "0.1" if url == away else "20"
        done = run("migrate", cwd=here, DATABASE_URL=url, WORKER_LEDGER=ledger, WORKER_CONNECT_WAIT=wait)
        assert done.returncode == 1
        assert done.stderr.startswith(line)
        assert done.stderr.count("\n") == 1


def test_migrate_uses_the_default_database_of_the_project_without_a_url(here: Path) -> None:
    """Without DATABASE_URL it migrates the database that the project's tasks make the default."""
    (here / "shop.py").write_text(
        "import db, worker\n"
        f"db.Database('sqlite:///{here}/shop.sqlite', default=True)\n"
        "@worker.task\nasync def send() -> None: ...\n"
    )
    (here / "listed.py").write_text("TASKS = ('shop.send',)\n")
    done = run("migrate", cwd=here, WORKER_REGISTRY="listed")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"tandem_jobs: created, version {LATEST}\n"
    assert (here / "shop.sqlite").exists()


def test_migrate_without_url_or_project_database_names_the_variable(here: Path) -> None:
    """If the project makes no database and there is no URL, it names the variable and exits with 2."""
    (here / "shop.py").write_text("import worker\n@worker.task\nasync def send() -> None: ...\n")
    (here / "listed.py").write_text("TASKS = ('shop.send',)\n")
    done = run("migrate", cwd=here, WORKER_REGISTRY="listed")
    assert done.returncode == 2
    assert done.stderr.startswith("DATABASE_URL is not set. Example: ")
