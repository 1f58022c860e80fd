"""``python -m bench``: measure Tandem and its peers side by side, and write down what came of it.

1. It starts a Redis and a PostgreSQL of its own, and touches no others.
2. Each scenario measures each contender, in turns, several rounds.
3. It writes ``results.md`` and ``results.svg``, after each scenario, so that an interrupted run leaves what it has.
4. It leaves no process behind, also after Ctrl-C.
"""

import argparse
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from bench import contenders, machine, plot, report, servers
from bench.contenders import PEERS, Contender
from bench.context import BenchContext
from bench.environments import PROJECT
from bench.progress import Progress
from bench.scenarios import SCENARIOS
from bench.section import Section
from bench.servers import Servers
from bench.workload import FULL, QUICK
from worker.embedded import EmbeddedServerError

_INTERRUPTED = 128 + signal.SIGINT

# FORCE_COLOR, which many CI systems set, does not make a terminal of a log.
console = Console(highlight=False, soft_wrap=True, force_terminal=None if sys.stdout.isatty() else False)


def main() -> int:
    """Run it.

    The exit code: 0, 1 if a contender failed in a scenario, 2 if it could not begin; a missed target is no failure.
    """
    asked = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it is to end as in order as after a Ctrl-C
    try:
        functions = any(library.needs_functions for library in PEERS if library.key in asked.against)
        with servers.started(asked.redis_server, functions=functions) as running:
            return _measure(_context(asked, running), asked.only or list(SCENARIOS), _output(asked))
    except EmbeddedServerError as error:
        console.print(str(error), style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted: everything that was started is stopped.")
        return _INTERRUPTED


def _measure(context: BenchContext, names: Sequence[str], output: Path | None) -> int:
    facts = machine.facts(context.servers)
    for what, fact in facts.items():
        context.progress.say(f"{what}: {fact}")
    for title, why in context.absent.items():
        context.progress.say(f"{title} is ABSENT: {why}")
    sections: list[Section] = []
    for number, name in enumerate(names, 1):
        sections.append(SCENARIOS[name](context))
        if output is not None:
            _write(output, context, {**facts, **context.disturbances.fact()}, sections, to_come=names[number:])
    for what, fact in context.disturbances.fact().items():
        context.progress.say(f"{what}: {fact}")
    console.print(f"\n{report.target_table(sections)}", markup=False)
    if output is not None:
        console.print(f"\nWritten: {output / 'results.md'}", markup=False)
    return 1 if any(section.failures for section in sections) else 0


def _context(asked: argparse.Namespace, running: Servers) -> BenchContext:
    tandem = contenders.enter(contenders.TANDEM, running)
    assert isinstance(tandem, Contender)  # noqa: S101 - we are here
    present: list[Contender] = []
    absent: dict[str, str] = {}
    for library in PEERS:
        if library.key not in asked.against:
            continue
        entered = contenders.enter(library, running)
        if isinstance(entered, Contender):
            present.append(entered)
        else:
            absent[library.title] = entered
    workload = QUICK if asked.quick else FULL
    return BenchContext(workload, running, tandem, tuple(present), absent, Progress(console))


def _write(
    folder: Path, context: BenchContext, facts: Mapping[str, str], sections: Sequence[Section], to_come: Sequence[str]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    charts = [section.chart for section in sections if section.chart is not None and section.chart.values]
    picture = folder / "results.svg"
    if charts:
        picture.write_text(plot.svg(charts))
    page = report.markdown(context, facts, sections, plot=picture.name if charts else None, to_come=to_come)
    (folder / "results.md").write_text(page)


def _arguments() -> argparse.Namespace:
    peers = [library.key for library in PEERS]
    parser = argparse.ArgumentParser(prog="python -m bench", description=_DESCRIPTION)
    parser.add_argument("--only", type=_some_of(SCENARIOS), metavar="NAME,...", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--against", type=_some_of(peers), default=peers, metavar="NAME,...", help=", ".join(peers))
    parser.add_argument("--quick", action="store_true", help="few jobs: to see that everything works, not how fast")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for results.md (default: bench, for a full run)")
    parser.add_argument(
        "--redis-server", type=_program, metavar="PROGRAM", help="a redis-server or valkey-server, for the embedded one"
    )
    return parser.parse_args()


def _some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(given: str) -> list[str]:
        names = given.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return parse


def _program(given: str) -> Path:
    found = shutil.which(given)
    if found is None:
        raise argparse.ArgumentTypeError(f"{given!r} is not a program, for example /usr/bin/valkey-server")
    return Path(found).absolute()


def _output(asked: argparse.Namespace) -> Path | None:
    """Where the results go. What was measured in part, or in haste, does not take the place of the real ones."""
    given: Path | None = asked.output
    is_full = not asked.quick and asked.only is None and len(asked.against) == len(PEERS)
    return given or (PROJECT / "bench" if is_full else None)


_DESCRIPTION = (
    "Measure Tandem and its peers side by side, on servers from wheels: about an hour on a quiet machine. "
    "`make bench-peers` installs the peers; those that are missing are named in the results."
)

if __name__ == "__main__":
    sys.exit(main())
