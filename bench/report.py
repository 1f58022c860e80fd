"""The results as Markdown."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from bench.contenders import Contender
from bench.context import MAX_REPEATED_SECONDS, MAX_STEAL, BenchContext
from bench.section import Section

_HOW = (
    "Made by `make bench`. All sides run in one go on one machine, each contender in its own process and environment, "
    "{rounds}. They take turns, another one begins each round, and the servers are emptied in between. Figures are "
    "medians; a ratio is the median of the ratios within the rounds. A measurement in which the host took more than "
    f"{MAX_STEAL:.0%} of the cores' time is made again, and of {{tries}} tries that counts in which it took least; "
    f"but none that takes {MAX_REPEATED_SECONDS:g} seconds. Logging is at the level of warnings for all, a line only "
    "for jobs that fail. After each measurement the jobs that ended well are counted, by the library's own account, "
    "or, beside a bare loop, "
    "their rows; one that did not complete them all is not listed but named."
)


def markdown(
    context: BenchContext,
    machine: Mapping[str, str],
    sections: Sequence[Section],
    *,
    plot: str | None,
    to_come: Sequence[str],
) -> str:
    """The whole page.

    Args:
        plot: the picture's file.
        to_come: the scenarios that are still to be measured.
    """
    workload, rounds = context.workload, "once"
    if workload.rounds > 1:
        rounds = (
            f"{workload.rounds} times ({workload.close_rounds} beside a backlog, "
            f"{workload.bare_rounds} beside a bare loop)"
        )
    parts = [
        "# Measurements",
        *([f"**Unfinished**: {', '.join(to_come)} are still to come."] if to_come else []),
        _HOW.format(rounds=rounds, tries=workload.attempts),
        "\n".join(f"- {what}: {fact}" for what, fact in machine.items()),
        *([f"![Tandem beside the others]({plot})"] if plot else []),
        "## What is promised",
        target_table(sections),
        *(part for section in sections for part in _section(section)),
        "## Who took part",
        _contenders(context),
    ]
    return "\n\n".join(parts) + "\n"


def target_table(sections: Iterable[Section]) -> str:
    """Each target with what was measured, as a table."""
    rows = [
        (
            result.target.what,
            result.target.shown(result.target.required),
            result.target.shown(result.target.aim),
            result.measured + (f"; {result.note}" if result.note else ""),
            result.status,
        )
        for section in sections
        for result in section.target_results
    ]
    return table(("", "must reach", "aim", "measured", ""), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers, or short."""
    ruler = ["---", *("---:" for _ in header[1:])]
    return "\n".join(_row(cells) for cells in (header, ruler, *rows))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    yield section.method
    yield table(section.header, section.rows)
    if section.failures:
        yield "\n".join(f"- Not measured: {failure}" for failure in section.failures)


def _contenders(context: BenchContext) -> str:
    present = [(f"{one.title} {one.version}", one.library.settings, _store(one)) for one in context.contenders]
    absent = [(title, f"ABSENT: {why}", "") for title, why in context.absent.items()]
    header, rows = ("", "settings", "store"), [*present, *absent]
    return "\n".join(_row(cells) for cells in (header, ("---", "---", "---"), *rows))


def _store(contender: Contender) -> str:
    return contender.redis.title if contender.on_redis else contender.postgres.title
