"""Traces of real workers, which set up OpenTelemetry where projects do."""

import json

import pytest

from tests.lifecycle.conftest import Project
from worker import Broker
from worker.broker.records import now_ms
from worker.message import Envelope
from worker.new_job import NewJob

pytestmark = pytest.mark.usefixtures("broker")

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"

SETUP = """
import json, pathlib
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

class ToFile(SpanExporter):
    def export(self, spans):
        with pathlib.Path("spans.jsonl").open("a") as file:
            for span in spans:
                file.write(json.dumps([span.name, f"{span.context.trace_id:032x}"]) + "\\n")
        return SpanExportResult.SUCCESS

def set_up():
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    trace.set_tracer_provider(provider)
"""

IN_A_MODULE = "import setup\nsetup.set_up()\nTASKS = ('tasks.mail.send',)"
IN_LIFESPAN = """
from contextlib import asynccontextmanager
import setup
TASKS = ("tasks.mail.send",)
LIFESPAN = "tasks.registry.lifespan"

@asynccontextmanager
async def lifespan():
    setup.set_up()
    yield {}
"""


@pytest.mark.parametrize("registry", [IN_A_MODULE, IN_LIFESPAN], ids=["module", "LIFESPAN"])
@pytest.mark.parametrize("command", [("arq", "worker.Settings"), ("worker", "run")], ids=["arq", "run"])
async def test_a_worker_that_sets_up_opentelemetry_has_spans_and_its_log_lines_have_the_trace(
    project: Project, broker: Broker, registry: str, command: tuple[str, ...]
) -> None:
    """Of a job in a trace, and of one that begins its own."""
    project.write("setup.py", SETUP)
    project.write("tasks/registry.py", registry)
    for job_id, origin in (("j1", f"00-{TRACE_ID}-b7ad6b7169203331-01"), ("j2", None)):
        payload = Envelope("send", now_ms(), traceparent=origin).around(b'{"to":"ann"}')
        await broker.enqueue([NewJob(job_id, payload, "send", broker.name, now_ms(), expires=60_000)])
    with project.command(*command, "--burst", WORKER_LOG="json") as worker:
        assert await worker.ends() == 0
        lines = [json.loads(line) for line in worker.output.splitlines()]
    spans = [json.loads(line) for line in (project.folder / "spans.jsonl").read_text().splitlines()]
    assert [name for name, _ in spans] == ["run send"] * 2
    first, second = ({line["trace_id"] for line in lines if line.get("job_id") == job_id} for job_id in ("j1", "j2"))
    assert first == {TRACE_ID}
    assert {trace_id for _, trace_id in spans} == first | second
    assert len(second) == 1
