"""`tandem doctor`: what it finds on real servers, and what it says to type."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import StartRedis
from tests.servers import Observer
from tests.worker.cli.test_cli import MAIL, run
from tests.worker.reports import report
from worker import Broker
from worker.broker.server_info import RedisInfo
from worker.cli.doctor.finding import Level
from worker.cli.doctor.postgres_checks import check_server
from worker.cli.doctor.redis_checks import check_redis
from worker.ledger.server_info import PostgresInfo

_PENDING = """
    INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, payload, check_at, due)
    VALUES ('lost', 1000, 'send', 'mail', 'pending', '{}', 1000, 1000)
"""


class Doctor:
    """Runs the command in a project of two tasks, and reads its findings."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self._folder = folder
        self._settings = settings

    async def findings(self, exit_code: int, **settings: str) -> dict[str, dict[str, Any]]:
        """The findings by subject."""
        done = await asyncio.to_thread(run, "doctor", "--json", cwd=self._folder, **(self._settings | settings))
        assert done.returncode == exit_code, done.stdout + done.stderr
        return {finding["subject"]: finding for finding in json.loads(done.stdout)}

    def output(self, **settings: str) -> str:
        return run("doctor", cwd=self._folder, **(self._settings | settings)).stdout


@pytest.fixture
def doctor(tmp_path: Path, database_url: str, redis_url: str) -> Doctor:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").touch()
    (tmp_path / "tasks/mail.py").write_text(MAIL)
    (tmp_path / "tasks/registry.py").write_text('TASKS = ("tasks.mail.send", "tasks.mail.clean_up")\n')
    settings = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "WORKER_QUEUES": "arq:queue,mail"}
    return Doctor(tmp_path, settings)


class TestDoctor:
    async def test_a_fleet_in_order_has_no_error_and_no_warning(self, doctor: Doctor, broker: Broker) -> None:
        """Two workers of one version; the exit code is 0."""
        for worker_id in ("one", "two"):
            await report(broker, worker_id, ["arq:queue"])
        findings = await doctor.findings(0)
        assert findings.pop("PostgreSQL fsync")["level"] == "warning"  # the tests' own server
        assert {finding["level"] for finding in findings.values()} <= {"ok", "note"}
        assert findings["workers"]["text"] == "2 healthy: one, two"

    async def test_a_paused_queue_is_a_warning_with_the_command_that_resumes_it(
        self, doctor: Doctor, tmp_path: Path, database_url: str, redis_url: str
    ) -> None:
        """Also a queue that this shell's WORKER_QUEUES lacks, and a task names."""
        urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        paused = await asyncio.to_thread(run, "queues", "pause", "mail", "--until", "2h", cwd=tmp_path, **urls)
        assert paused.returncode == 0, paused.stderr
        finding = (await doctor.findings(0, WORKER_QUEUES="arq:queue"))["pauses"]
        assert (finding["level"], finding["fix"]) == ("warning", "tandem queues resume mail")
        assert finding["text"].startswith("mail is paused since 2")

    async def test_a_queue_without_a_worker_is_a_warning(self, doctor: Doctor) -> None:
        finding = (await doctor.findings(0))["workers"]
        assert (finding["level"], finding["fix"]) == ("warning", "tandem run")

    async def test_workers_of_two_versions_are_a_warning(self, doctor: Doctor, broker: Broker) -> None:
        for worker_id, version in {"one": "1.0", "two": "1.1"}.items():
            await report(broker, worker_id, ["arq:queue"], version=version)
        finding = (await doctor.findings(0))["versions"]
        assert finding["text"] == "the workers' versions differ: 1.0: one; 1.1: two"

    async def test_a_missing_table_is_an_error(self, doctor: Doctor, postgres: Observer) -> None:
        """It says what to type, and the exit code is 1."""
        await postgres.execute("DROP TABLE tandem_jobs")
        finding = (await doctor.findings(1))["ledger"]
        assert (finding["level"], finding["fix"]) == ("error", "tandem migrate")

    async def test_a_committed_job_that_redis_does_not_know_is_a_warning(
        self, doctor: Doctor, postgres: Observer
    ) -> None:
        await postgres.execute(_PENDING)
        finding = (await doctor.findings(0))["unpublished jobs"]
        assert finding["text"] == "Redis lacks 1 of the first 1 committed job"

    async def test_an_invalid_index_is_an_error(self, doctor: Doctor, postgres: Observer) -> None:
        """As a CREATE INDEX CONCURRENTLY that failed leaves it."""
        await postgres.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'tandem_jobs_check'::regclass"
        )
        assert "REINDEX INDEX CONCURRENTLY" in (await doctor.findings(1))["ledger indexes"]["fix"]

    async def test_a_redis_that_evicts_is_an_error(self, doctor: Doctor, own_redis: StartRedis) -> None:
        server = own_redis()
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        finding = (await doctor.findings(1, REDIS_URL=server.url))["Redis eviction"]
        assert finding["fix"].startswith("redis-cli CONFIG SET maxmemory-policy noeviction")

    async def test_more_pools_than_connections_are_a_warning(self, doctor: Doctor) -> None:
        finding = (await doctor.findings(0, WORKER_POOL_SIZE="100000"))["PostgreSQL connections"]
        assert finding["text"].startswith("the workers may open 100,000 of ")

    async def test_servers_that_do_not_answer_are_errors_of_one_line(self, doctor: Doctor) -> None:
        """Both are named, whichever is away."""
        nowhere = {"REDIS_URL": "redis://127.0.0.1:1", "DATABASE_URL": "postgresql+asyncpg://a@127.0.0.1:1/a"}
        findings = await doctor.findings(1, **nowhere, WORKER_CONNECT_WAIT="0.2")
        assert findings["REDIS_URL"]["level"] == findings["DATABASE_URL"]["level"] == "error"

    async def test_a_problem_of_the_registry_is_an_error(self, doctor: Doctor) -> None:
        """The servers are checked all the same."""
        findings = await doctor.findings(1, WORKER_REGISTRY="tasks.nothing")
        assert findings["registry"]["level"] == "error"
        assert findings["ledger"]["level"] == "ok"

    def test_the_text_has_a_mark_for_each_finding_and_an_arrow_before_each_fix(self, doctor: Doctor) -> None:
        lines = doctor.output().splitlines()
        assert lines[0].startswith("✓ registry")
        assert any(line.startswith("! workers") for line in lines)
        assert "                          → tandem run" in lines
        assert lines[-1].startswith("errors: 0, warnings: 2, checks passed: ")


class TestRedisChecks:
    SOUND = RedisInfo("7.2.0", "master", "noeviction", 1, 0, True, False, 0.0, 0.001)

    @pytest.mark.parametrize(
        ("change", "subject", "level"),
        [
            ({"version": "6.0.16"}, "Redis version", Level.ERROR),
            ({"role": "slave"}, "Redis role", Level.ERROR),
            ({"policy": "volatile-ttl"}, "Redis eviction", Level.ERROR),
            ({"used_memory": 90, "max_memory": 100}, "Redis memory", Level.WARNING),
            ({"last_save_failed": True}, "Redis persistence", Level.ERROR),
            ({"keeps_data": False}, "Redis persistence", Level.NOTE),
            ({"keeps_data": None}, "Redis persistence", Level.NOTE),
            ({"clock_ahead": -3.0}, "Redis clock", Level.WARNING),
            ({"round_trip": 0.02}, "Redis latency", Level.NOTE),
        ],
    )
    def test_each_fault_is_the_only_finding_that_is_not_ok(
        self, change: dict[str, Any], subject: str, level: Level
    ) -> None:
        found = [finding for finding in check_redis(replace(self.SOUND, **change)) if finding.level is not Level.OK]
        assert [(finding.subject, finding.level) for finding in found] == [(subject, level)]

    def test_a_sound_server_has_none(self) -> None:
        assert {finding.level for finding in check_redis(self.SOUND)} == {Level.OK}


class TestPostgresChecks:
    SOUND = PostgresInfo("18.1", 180_001, False, True, 97, 5, 0.0, 0.001)

    @pytest.mark.parametrize(
        ("change", "wanted", "subject", "level"),
        [
            ({"version": "12.1", "number": 120_001}, 35, "PostgreSQL version", Level.ERROR),
            ({"is_replica": True}, 35, "PostgreSQL role", Level.ERROR),
            ({"is_durable": False}, 35, "PostgreSQL fsync", Level.WARNING),
            ({}, 97, "PostgreSQL connections", Level.WARNING),
            ({"clock_ahead": 2.0}, 35, "PostgreSQL clock", Level.WARNING),
        ],
    )
    def test_each_fault_is_the_only_finding_that_is_not_ok(
        self, change: dict[str, Any], wanted: int, subject: str, level: Level
    ) -> None:
        found = [each for each in check_server(replace(self.SOUND, **change), wanted) if each.level is not Level.OK]
        assert [(finding.subject, finding.level) for finding in found] == [(subject, level)]
