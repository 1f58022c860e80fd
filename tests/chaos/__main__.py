"""``make chaos``, or ``python -m tests.chaos``."""

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.chaos.driver import Plan, run
from tests.chaos.report import print_report

console = Console(highlight=False, soft_wrap=True, force_terminal=None if sys.stdout.isatty() else False)


def main() -> int:
    """Run; the exit code is 0 if all is as it should be, 1 if not, 130 after Ctrl-C."""
    # A shell lets what it starts in the background ignore Ctrl-C; here it always means: stop, and clean up.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given = _arguments()
    folder = given.output or Path(tempfile.mkdtemp(prefix="tandem-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(given.seconds, given.seed, folder.resolve(), once=given.once)
    try:
        report = asyncio.run(run(plan, lambda line: console.print(line, markup=False)))
    except KeyboardInterrupt:
        console.print("Interrupted: all that was started is stopped.")
        return 128 + signal.SIGINT
    print_report(console, report)
    if report.holds and given.output is None:
        shutil.rmtree(folder)
    else:
        console.print(f"Logs and journals: {plan.folder}", markup=False)
    return 0 if report.holds else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=_DESCRIPTION)
    parser.add_argument("--seconds", type=_seconds, default=60.0, help="how long faults fall (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="draws the same faults in the same order (default: 1)")
    parser.add_argument(
        "--once",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether the effects of a job are to happen once; --no-once finds doubles (default: --once)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for logs, journals and the list of faults (default: a new one, removed if all holds)",
    )
    return parser.parse_args()


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds, more than 0. Example: --seconds 60")
    return seconds


_DESCRIPTION = (
    "Kills, freezes, empties and cuts off real workers, producers, Redis and PostgreSQL, and counts what became of "
    "their jobs. Always on servers of its own."
)

if __name__ == "__main__":
    sys.exit(main())
