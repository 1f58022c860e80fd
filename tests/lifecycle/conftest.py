"""Real workers: the settings that they run with, and a project of a test's own in a folder."""

import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import FastAPI

import db
from db.asgi import SessionMiddleware
from tests.commands import Command
from tests.servers import Observer
from tests.web import notebook
from tests.worker.conftest import NOTES


@pytest.fixture
def worker_settings(database_url: str, redis_url: str) -> dict[str, str]:
    """The settings of a worker on this test's servers."""
    return {"DATABASE_URL": database_url, "REDIS_URL": redis_url}


@pytest.fixture
async def notes(postgres: Observer) -> None:
    """The tables `note` and `reply`."""
    await postgres.execute(NOTES)


@pytest.fixture
async def database(database_url: str, postgres: Observer) -> AsyncIterator[db.Database]:
    """The default database, with the tables `note` and `reply`."""
    async with notebook(database_url, postgres) as database:
        yield database


@pytest.fixture
def app(database: db.Database) -> FastAPI:
    """A FastAPI application with `SessionMiddleware`, on `database`."""
    app = FastAPI()
    app.add_middleware(SessionMiddleware)
    return app


class Project:
    """A project in a folder: what a user has."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.settings = settings
        self.write("tasks/__init__.py", "")
        self.write("tasks/registry.py", 'TASKS = ("tasks.mail.send",)')
        self.write(
            "tasks/mail.py",
            """
            from worker import task

            @task
            async def send(to: str) -> str:
                return f"sent to {to}"
            """,
        )

    def write(self, file: str, source: str) -> None:
        """Write a file of the project."""
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))

    def arq(self, *arguments: str, **settings: str) -> Command:
        """``arq worker.Settings``, or with other arguments, in the project's folder. An empty setting is unset."""
        return self.command("arq", *(arguments or ("worker.Settings",)), **settings)

    def command(self, *arguments: str, **settings: str) -> Command:
        """``python -m <arguments>`` in the project's folder. An empty setting is unset."""
        environment = {name: value for name, value in {**self.settings, **settings}.items() if value}
        return Command(*arguments, folder=self.folder, environment=environment)


@pytest.fixture
def project(tmp_path: Path, worker_settings: dict[str, str]) -> Project:
    """A small project: `tasks.mail.send`, and its registry."""
    return Project(tmp_path / "project", worker_settings)
