"""The code of docs/reference/tasks.md runs, and its settings exist."""

import ast
import asyncio
import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from worker import Task
from worker.config import Config
from worker.process.runtime import Runtime
from worker.registry import Registry

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "tasks.md"


def blocks() -> list[ast.Module]:
    """Return the page's Python, one module for each block."""
    return [ast.parse(code) for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)]


def awaits(block: ast.Module) -> bool:
    """Return whether a block awaits something, so that it does more than declare."""
    return any(isinstance(node, ast.Await) for statement in block.body for node in _outside_functions(statement))


def _outside_functions(node: ast.AST) -> Any:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _outside_functions(child)


async def run(block: ast.Module, names: dict[str, Any]) -> None:
    running = eval(compile(block, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if running is not None:
        await running


async def test_the_python_of_the_tasks_page_runs(redis_url: str, database_url: str) -> None:
    """The tasks of the page can be loaded, and a worker runs its jobs with the results that the page names."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks():
        if not awaits(block):
            await run(block, names)
    tasks = {value.name: value for value in names.values() if isinstance(value, Task)}
    for one in tasks.values():
        one.check()
    tasks["sync_orders"].schedules = ()  # its minute may come in the middle of the test
    config = Config.load(redis_url=redis_url, database_url=database_url, concurrency=8)
    registry = Registry("page", str(PAGE), MappingProxyType(tasks), names["lifespan"])
    runtime = Runtime(config, registry)
    engine = await runtime.open({})
    engine.start()
    try:
        for block in blocks():
            if awaits(block):
                await run(block, names)
        assert await (await names["audit"].enqueue(7)).result(timeout=20) == 1
        assert await (await names["poll_export"].enqueue(1)).result(timeout=20) == "ready"
        assert await (await names["resize"].enqueue(7)).result(timeout=20) == 7
        assert await (await names["greet"].enqueue("World")).result(timeout=20) == "Hello, World"
        await runs_one_at_a_time(names)
    finally:
        await engine.drain()
        await runtime.close()


async def runs_one_at_a_time(names: dict[str, Any]) -> None:
    """Assert that a run that starts during another run does nothing, as in the page's recipe."""
    sync_orders = names["sync_orders"]
    at_it, may_end = asyncio.Event(), asyncio.Event()

    async def pull_orders(_session: Any) -> None:
        at_it.set()
        await may_end.wait()

    names["pull_orders"] = pull_orders
    first = await sync_orders.enqueue()
    await asyncio.wait_for(at_it.wait(), 20)
    assert await (await sync_orders.enqueue()).result(timeout=20) == "skipped: the run before is still at it"
    may_end.set()
    assert await first.result(timeout=20) == "done"


@pytest.mark.parametrize("setting", ["JOB_TIMEOUT", "MAX_TRIES", "QUEUE", "KEEP_RESULT", "MAX_PAYLOAD", "CONCURRENCY"])
def test_the_tasks_page_names_only_settings_that_exist(setting: str) -> None:
    """Each variable on the page is one that the worker reads."""
    named = set(re.findall(r"`?(WORKER_[A-Z_]+)", PAGE.read_text()))
    assert f"WORKER_{setting}" in named
    assert named <= {Config.variable(field) for field in Config.model_fields}


def test_the_defaults_that_the_tasks_page_names_are_the_defaults() -> None:
    """300 s, 5 tries, an hour, 1 MiB, arq's queue."""
    config = Config.load()
    assert (config.job_timeout, config.max_tries, config.keep_result) == (300, 5, 3600)
    assert (config.max_payload, config.queue) == (1024 * 1024, "arq:queue")
