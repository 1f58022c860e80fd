"""A project with its own Alembic, and the ledger's tables beside its own: by real commands, on a real PostgreSQL."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.commands import Command, bare_environment
from tests.servers import Databases, as_dsn, as_url
from worker.ledger.revisions import versions

LATEST = versions()[-1]
INI = """
[alembic]
script_location = %(here)s/migrations
prepend_sys_path = .
"""
MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase): ...

class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
"""
ENV = """
import os
from alembic import context
from sqlalchemy import create_engine
import worker.ledger
from models import Base
from worker.ledger.alembic import include_object

engine = create_engine(os.environ["DATABASE_URL"].replace("asyncpg", "psycopg"))
with engine.connect() as connection:
    context.configure(
        connection=connection, target_metadata=TARGET, include_object=include_object, include_schemas=SCHEMAS
    )
    with context.begin_transaction():
        context.run_migrations()
"""
TEMPLATE = '''
"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}

def upgrade() -> None:
    ${upgrades if upgrades else "pass"}

def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
'''
LEDGER_REVISION = """
from alembic import op
from worker.ledger import alembic as tandem

revision = "ledger"
down_revision = None

def upgrade() -> None:
    tandem.upgrade(op)

def downgrade() -> None:
    tandem.downgrade(op)
"""
OWN_METADATA = "Base.metadata"
BOTH_METADATA = "[Base.metadata, worker.ledger.table(os.environ.get('WORKER_LEDGER', 'tandem_jobs')).metadata]"


@dataclass
class Project:
    """A project with an ``alembic.ini`` and one model, ``items``."""

    folder: Path
    environment: dict[str, str]

    def make(self, metadata: str) -> None:
        """Write its files. `metadata` is the `target_metadata` of its ``env.py``."""
        schemas = "." in self.environment.get("WORKER_LEDGER", "")
        files = {
            "alembic.ini": INI,
            "models.py": MODELS,
            "migrations/script.py.mako": TEMPLATE,
            "migrations/env.py": ENV.replace("TARGET", metadata).replace("SCHEMAS", str(schemas)),
        }
        (self.folder / "migrations/versions").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (self.folder / name).write_text(content)

    def add_revision(self, content: str) -> None:
        (self.folder / "migrations/versions/by_hand.py").write_text(content)

    def alembic(self, *arguments: str) -> str:
        """The output of ``alembic``. It succeeds."""
        return self._run("alembic", *arguments)

    def migrate(self, *arguments: str) -> str:
        """The output of ``tandem migrate``. It succeeds."""
        return self._run("worker", "migrate", *arguments)

    def autogenerate(self) -> str:
        """Let Alembic write a revision for what differs, and return the revision."""
        self.alembic("revision", "--autogenerate", "-m", "generated")
        written = max((self.folder / "migrations/versions").glob("*_generated.py"), key=os.path.getmtime)
        return written.read_text()

    def sees_no_difference(self) -> bool:
        """Whether autogenerate would write nothing."""
        return "No new upgrade operations detected" in self.alembic("check")

    def tables(self, schema: str = "public") -> set[str]:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = %s"
        with psycopg.connect(self.environment["DSN"]) as connection:
            return {name for (name,) in connection.execute(query, [schema])}

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env=bare_environment(**self.environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, databases: Databases) -> Iterator[Project]:
    """A project on an empty database, with the ledger in the default schema unless the test says another name."""
    ledger = getattr(request, "param", "tandem_jobs")
    with databases.bare() as url:
        environment = {"DATABASE_URL": as_url(url, "psycopg"), "WORKER_LEDGER": ledger, "DSN": as_dsn(url)}
        yield Project(tmp_path, environment)


in_both_schemas = pytest.mark.parametrize("project", ["tandem_jobs", "work.jobs"], indirect=True)


def ledgers_tables(project: Project) -> set[str]:
    """The ledger's tables that exist, under the names that they have by default."""
    if project.environment["WORKER_LEDGER"] == "work.jobs":
        return {f"tandem_{name}" for name in project.tables("work")}
    return {name for name in project.tables() if name.startswith("tandem_jobs")}


@in_both_schemas
def test_autogenerate_leaves_the_tables_of_migrate_alone(project: Project) -> None:
    """Its revision has the project's own tables; nothing differs afterwards, and a downgrade leaves the ledger."""
    project.make(OWN_METADATA)
    project.migrate()
    ours = ledgers_tables(project)
    assert "tandem_jobs_version" in ours
    revision = project.autogenerate()
    assert "create_table('items'" in revision
    assert "jobs" not in revision
    project.alembic("upgrade", "head")
    assert project.sees_no_difference()
    project.alembic("downgrade", "base")
    assert ledgers_tables(project) == ours
    assert f"version {LATEST}: nothing to do" in project.migrate()


@pytest.mark.parametrize("first", ["alembic", "migrate"])
def test_a_revision_that_calls_tandem_and_migrate_find_each_others_tables(project: Project, first: str) -> None:
    """Either comes first. The revision's downgrade drops the tables."""
    project.make(OWN_METADATA)
    project.add_revision(LEDGER_REVISION)
    if first == "alembic":
        project.alembic("upgrade", "head")
        assert f"version {LATEST}: nothing to do" in project.migrate()
    else:
        assert f"created, version {LATEST}" in project.migrate()
        project.alembic("upgrade", "head")
    assert ledgers_tables(project) >= {"tandem_jobs", "tandem_jobs_version"}
    assert "jobs" not in project.autogenerate()
    project.alembic("upgrade", "head")
    assert project.sees_no_difference()
    project.alembic("downgrade", "base")
    assert ledgers_tables(project) == set()
    assert "items" not in project.tables()
    project.alembic("upgrade", "head")
    assert "nothing to do" in project.migrate()


@in_both_schemas
def test_tables_that_alembic_made_from_the_metadata_are_handed_to_migrate_and_back(project: Project) -> None:
    """Alembic sees no difference at any time."""
    project.make(BOTH_METADATA)
    if project.environment["WORKER_LEDGER"] == "work.jobs":
        with psycopg.connect(project.environment["DSN"]) as connection:
            connection.execute("CREATE SCHEMA work")
    project.autogenerate()
    project.alembic("upgrade", "head")
    assert ledgers_tables(project) >= {"tandem_jobs"}
    assert "tandem_jobs_version" not in ledgers_tables(project)
    assert project.sees_no_difference()
    assert "other migrations manage it: nothing to do" in project.migrate()
    assert f"taken over at version {LATEST}" in project.migrate("--adopt")
    assert f"version {LATEST}: nothing to do" in project.migrate()
    assert project.sees_no_difference()
    assert "released" in project.migrate("--release")
    assert "other migrations manage it: nothing to do" in project.migrate()
    assert project.sees_no_difference()
    project.alembic("downgrade", "base")
    assert ledgers_tables(project) == set()


def test_tables_of_migrate_are_handed_to_the_metadata(project: Project) -> None:
    """Autogenerate finds nothing to make."""
    project.make(OWN_METADATA)
    project.migrate()
    project.make(BOTH_METADATA)
    revision = project.autogenerate()
    assert "jobs" not in revision
    project.alembic("upgrade", "head")
    assert "released" in project.migrate("--release")
    assert project.sees_no_difference()


def alembic_in_shell(folder: Path) -> "subprocess.CompletedProcess[str]":
    """``alembic upgrade head`` on the servers of the run in this folder."""
    script = f"eval $({sys.executable} -m worker env) && {sys.executable} -m alembic upgrade head"
    return subprocess.run(
        ["sh", "-c", script],
        cwd=folder,
        env=bare_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("metadata", [OWN_METADATA, BOTH_METADATA], ids=["revision that calls Tandem", "metadata"])
async def test_alembic_finds_no_table_in_the_way_on_the_servers_of_a_run(project: Project, metadata: str) -> None:
    """A run whose Alembic makes the ledger's table by itself waits for it; another run makes it."""
    project.make(metadata)
    if metadata == BOTH_METADATA:
        project.autogenerate()
    else:
        project.add_revision(LEDGER_REVISION)
    registry = {"WORKER_REGISTRY": "tests.lifecycle.run_tasks"}
    with Command("worker", "run", folder=project.folder, environment=registry) as run:
        if metadata == BOTH_METADATA:
            await run.says("This project's Alembic makes the table tandem_jobs. The run begins when it has.")
        else:
            await run.says("works on")
        done = await asyncio.to_thread(alembic_in_shell, project.folder)
        assert done.returncode == 0, done.stderr
        await run.says("works on")
        run.send(signal.SIGTERM)
        assert await run.ends() == 0


async def test_a_run_that_waits_for_alembic_can_be_stopped(project: Project) -> None:
    project.make(BOTH_METADATA)
    project.autogenerate()
    registry = {"WORKER_REGISTRY": "tests.lifecycle.run_tasks"}
    with Command("worker", "run", folder=project.folder, environment=registry) as run:
        await run.says("The run begins when it has.")
        run.send(signal.SIGINT)
        await run.ends()
        assert "Traceback" not in run.output
