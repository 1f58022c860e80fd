"""A minute of chaos, and the proof that chaos would tell."""

import signal
import sys
from pathlib import Path

from rich.console import Console

from tests.chaos.driver import Plan, Report, run
from tests.chaos.faults import Fault, cut_a_worker_after_commit, kill_a_worker_after_its_commit
from tests.chaos.report import print_report
from tests.commands import Command, gone
from tests.waiting import eventually


async def chaos(plan: Plan, faults: dict[Fault, int] | None = None) -> Report:
    """Run it; what it says is shown if the test fails."""
    console = Console(width=120, soft_wrap=True, file=sys.stdout)
    plan.folder.mkdir()
    report = await run(plan, lambda line: console.print(line, markup=False), faults)
    print_report(console, report)
    return report


async def test_a_minute_of_chaos(tmp_path: Path) -> None:
    """Whatever is killed, frozen, emptied or cut off: each job that was committed has happened once, nothing that was
    rolled back has, and nothing is left behind."""
    report = await chaos(Plan(seconds=60, seed=7, folder=tmp_path / "chaos"))
    assert report.holds
    assert report.chronicle.struck.total() > 20
    assert all(finding.jobs for finding in report.findings)


async def test_doubles_are_found_where_there_are_some(tmp_path: Path) -> None:
    """Effects that may happen again do so where the worker's connection, or the worker itself, is gone after a COMMIT;
    and the count tells."""
    faults: dict[Fault, int] = {kill_a_worker_after_its_commit: 1, cut_a_worker_after_commit: 1}
    for seed in range(5):
        report = await chaos(Plan(seconds=6, seed=seed, folder=tmp_path / str(seed), once=False), faults)
        if report.doubles:
            break
    assert report.doubles
    assert not report.holds


async def test_an_interrupted_run_leaves_no_process_behind(tmp_path: Path) -> None:
    """After Ctrl-C nothing lives on: no server, no worker, no producer."""
    with Command("tests.chaos", "--seconds", "60", "--output", "chaos", folder=tmp_path, environment={}) as command:
        await eventually(lambda: ": over" in command.output, timeout=120)
        started = command.descendants()
        command.send(signal.SIGINT)
        assert await command.ends() == 128 + signal.SIGINT
        assert "Traceback" not in command.output
        assert len(started) > 7
        await eventually(lambda: all(map(gone, started)))
