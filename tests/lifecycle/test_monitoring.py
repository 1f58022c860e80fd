"""What Prometheus gets from real workers and from ``tandem exporter``, over HTTP."""

import contextlib
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.commands import Command
from tests.lifecycle.run_tasks import double, wait_for_file
from tests.waiting import eventually
from worker.embedded.port import free_port


def scrape(port: int) -> dict[str, float]:
    """The samples of one address: ``name{label="value"}``, without those that are 0. Empty if it does not answer."""
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).raise_for_status().text
    except httpx.TransportError:
        return {}
    samples = {}
    for family in text_string_to_metric_families(answer):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            if sample.value:
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def sample(port: int, name: str) -> Callable[[], float]:
    """Reads one sample, 0 if there is none."""
    return lambda: scrape(port).get(name, 0)


def two_free_ports() -> int:
    """The first of two ports that follow each other."""
    while True:
        port = free_port()
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port + 1))
            return port


FINISHED = 'tandem_jobs_finished_total{outcome="completed",queue="arq:queue",task="double"}'


@pytest.mark.usefixtures("broker")
async def test_each_process_serves_its_metrics_on_a_port_of_its_own(
    redis_url: str, sqlite_url: str, tmp_path: Path
) -> None:
    """The sum of two processes is what was done. One that is started again has the same port."""
    port = two_free_ports()
    settings = {
        "REDIS_URL": redis_url,
        "DATABASE_URL": sqlite_url,
        "WORKER_REGISTRY": "tests.lifecycle.run_tasks",
        "WORKER_ID": "test",
        "WORKER_METRICS_PORT": str(port),
        "WORKER_LEASE": "1",
    }
    with Command("worker", "run", "--processes", "2", folder=tmp_path, environment=settings) as run:
        await run.says("works on", times=2)
        await double.enqueue_many({"number": number} for number in range(200))
        await eventually(lambda: sum(scrape(each).get(FINISHED, 0) for each in (port, port + 1)), equals=200)
        assert all(scrape(each)['tandem_worker_slots{state="free"}'] == 32 for each in (port, port + 1))
        first, _ = run.workers()
        first.kill()
        await run.says("works on", times=3)
        await eventually(sample(port, 'tandem_worker_slots{state="free"}'), equals=32)
        await eventually(sample(port + 1, 'tandem_worker_slots{state="free"}'), equals=32)
        run.send(signal.SIGTERM)
        assert await run.ends() == 0


@pytest.mark.usefixtures("broker")
async def test_the_exporter_tells_of_queues_workers_and_rows(redis_url: str, database_url: str, tmp_path: Path) -> None:
    """Depth by state, age, workers, rows and successes, while a worker runs a job and after its end."""
    port = free_port()
    settings = {
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "WORKER_REGISTRY": "tests.lifecycle.run_tasks",
        "WORKER_CONCURRENCY": "1",
    }
    file = tmp_path / "file"
    with Command("worker", "exporter", "--port", str(port), folder=tmp_path, environment=settings) as exporter:
        await exporter.says(f"http://localhost:{port}/metrics")
        await wait_for_file.enqueue(str(file))
        await double.enqueue(1)
        await double.using(delay=1000).enqueue(1)
        await eventually(sample(port, 'tandem_queue_depth{queue="arq:queue",state="waiting"}'), equals=2)
        with Command("worker", "run", folder=tmp_path, environment=settings) as run:
            await run.says("works on")
            depths = {"waiting": 1, "running": 1, "scheduled": 1}
            for state, depth in depths.items():
                name = f'tandem_queue_depth{{queue="arq:queue",state="{state}"}}'
                await eventually(sample(port, name), equals=depth)
            found = scrape(port)
            assert found['tandem_workers{state="working"}'] == 1
            assert found['tandem_queue_workers{queue="arq:queue"}'] == 1
            assert 0 < found['tandem_queue_oldest_due_seconds{queue="arq:queue"}'] < 60
            assert found['tandem_server_up{server="redis"}'] == found['tandem_server_up{server="database"}'] == 1
            file.touch()
            await eventually(sample(port, 'tandem_queue_depth{queue="arq:queue",state="waiting"}'), equals=0)
            assert scrape(port).get('tandem_queue_oldest_due_seconds{queue="arq:queue"}', 0) == 0
            run.send(signal.SIGTERM)
            assert await run.ends() == 0
        assert 'tandem_workers{state="working"}' not in scrape(port)
        exporter.send(signal.SIGTERM)
        assert await exporter.ends() == 0


async def test_a_port_that_is_in_use_stops_the_worker_with_one_line(
    redis_url: str, sqlite_url: str, tmp_path: Path
) -> None:
    """It says which setting to change."""
    port = free_port()
    settings = {"REDIS_URL": redis_url, "DATABASE_URL": sqlite_url, "WORKER_REGISTRY": "tests.lifecycle.run_tasks"}
    with Command("worker", "exporter", "--port", str(port), folder=tmp_path, environment=settings) as exporter:
        await eventually(lambda: scrape(port))
        with Command(
            *("worker", "run"), folder=tmp_path, environment={**settings, "WORKER_METRICS_PORT": str(port)}
        ) as run:
            assert await run.ends() == 1
            assert (
                f"WORKER_METRICS_PORT: port {port} cannot be opened for metrics (Address already in use)" in run.output
            )
        exporter.send(signal.SIGTERM)
        assert await exporter.ends() == 0
