"""A minute of chaos, and the proof that chaos can fail."""

import signal
import sys
from pathlib import Path

from rich.console import Console

from tests.chaos.driver import run
from tests.chaos.faults import Fault, disconnect_worker_after_commit, kill_worker_after_commit
from tests.chaos.report import ChaosOptions, Report, print_report
from tests.commands import Command, gone
from tests.waiting import eventually


async def run_chaos(options: ChaosOptions, faults: dict[Fault, int] | None = None) -> Report:
    """Run chaos. Pytest shows its output if the test fails."""
    console = Console(width=120, soft_wrap=True, file=sys.stdout)
    options.folder.mkdir()
    report = await run(options, lambda line: console.print(line, markup=False), faults)
    print_report(console, report)
    return report


async def test_random_faults_neither_lose_nor_repeat_a_committed_job(tmp_path: Path) -> None:
    """Each committed job happens once, no rolled back job happens, and nothing is left behind."""
    report = await run_chaos(ChaosOptions(seconds=60, seed=7, folder=tmp_path / "chaos"))
    assert report.passed
    assert report.fault_log.injected.total() > 20
    assert all(result.checked for result in report.results)


async def test_chaos_finds_duplicate_effects_of_tasks_that_are_not_once(tmp_path: Path) -> None:
    """With ``once=False`` an effect is repeated if the worker, or its connection, dies right after the COMMIT. The
    checks must find such duplicates."""
    faults: dict[Fault, int] = {kill_worker_after_commit: 1, disconnect_worker_after_commit: 1}
    for seed in range(5):
        report = await run_chaos(ChaosOptions(seconds=6, seed=seed, folder=tmp_path / str(seed), once=False), faults)
        if report.duplicates:
            break
    assert report.duplicates
    assert not report.passed


async def test_ctrl_c_leaves_no_process_of_the_run_behind(tmp_path: Path) -> None:
    """Neither a server nor a worker nor a producer survives Ctrl-C."""
    with Command("tests.chaos", "--seconds", "60", "--output", "chaos", folder=tmp_path, environment={}) as command:
        await eventually(lambda: ": over" in command.output, timeout=120)
        started = command.descendants()
        command.send(signal.SIGINT)
        assert await command.ends() == 128 + signal.SIGINT
        assert "Traceback" not in command.output
        assert len(started) > 7
        await eventually(lambda: all(map(gone, started)))
