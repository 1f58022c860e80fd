"""``make chaos``, or ``python -m tests.chaos``."""

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.chaos.driver import run
from tests.chaos.report import ChaosOptions, print_report

console = Console(highlight=False, soft_wrap=True, force_terminal=None if sys.stdout.isatty() else False)


def main() -> int:
    """Run chaos. The exit code is 0 if all checks pass, 1 if one fails, 130 after Ctrl-C."""
    # A shell makes its background processes ignore Ctrl-C. Here Ctrl-C always stops the run and cleans up.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = _parse_arguments()
    folder = arguments.output or Path(tempfile.mkdtemp(prefix="tandem-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    options = ChaosOptions(arguments.seconds, arguments.seed, folder.resolve(), once=arguments.once)
    try:
        report = asyncio.run(run(options, lambda line: console.print(line, markup=False)))
    except KeyboardInterrupt:
        console.print("Interrupted: all processes and servers of the run are stopped.")
        return 128 + signal.SIGINT
    print_report(console, report)
    if report.passed and arguments.output is None:
        shutil.rmtree(folder)
    else:
        console.print(f"Logs: {options.folder}", markup=False)
    return 0 if report.passed else 1


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=_DESCRIPTION)
    parser.add_argument("--seconds", type=_seconds, default=60.0, help="how long to inject faults (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="draws the same faults in the same order (default: 1)")
    parser.add_argument(
        "--once",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the tasks with once=True or once=False; --no-once finds duplicates (default: --once)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for the logs of processes, actions and faults (default: a new folder, removed if all checks pass)",
    )
    return parser.parse_args()


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds, more than 0. Example: --seconds 60")
    return seconds


_DESCRIPTION = (
    "Inject random faults into real workers, producers, Redis and PostgreSQL, then check what became of every job. "
    "Always uses servers of its own."
)

if __name__ == "__main__":
    sys.exit(main())
