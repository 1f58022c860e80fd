"""`tandem schedules`: what it shows on real servers."""

from pathlib import Path

from tests.servers import Observer
from tests.worker.cli.test_cli import run

TASKS = """
from worker import cron

@cron("30 7 * * *", timezone="Europe/Berlin")
async def report() -> None: ...
"""


def test_the_list_names_the_zone_of_a_schedule_once(
    tmp_path: Path, database_url: str, redis_url: str, postgres: Observer
) -> None:
    """A row has the schedule in words, with its zone."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").touch()
    (tmp_path / "tasks/reports.py").write_text(TASKS)
    (tmp_path / "tasks/registry.py").write_text('TASKS = ("tasks.reports.report",)\n')
    done = run("schedules", "list", cwd=tmp_path, DATABASE_URL=database_url, REDIS_URL=redis_url)
    assert done.returncode == 0, done.stderr
    _head, row = done.stdout.splitlines()
    assert " ".join(row.split()).startswith("report At 07:30 every day (Europe/Berlin) arq:queue in ")
