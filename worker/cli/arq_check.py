"""``python -m worker check --arq app.WorkerSettings``: what a project's settings of arq would become."""

from collections.abc import Iterator

from rich.text import Text

from worker.arq_host.conversion import Conversion
from worker.cli.output import FAILED, MISTAKE, err, explain, out, print_all, printable_text
from worker.cli.task_list import describe_problems, describe_tasks
from worker.config import Config
from worker.errors import ConfigError, RegistryError
from worker.process.runtime import require_urls
from worker.registry.imports import Importer, NotImportableError
from worker.settings import convert

_FORM = "give the path of the class that arq is started with. Example: --arq app.WorkerSettings"


def check_arq(path: str) -> int:
    """Print what the settings at `path` become, and what is refused. Nothing connects.

    Returns:
        The exit code: 1 if something is refused.

    Raises:
        ConfigError: these are no settings of arq's, or one of Tandem's own settings is wrong.
    """
    if "." not in path:
        return explain(f"--arq={path}: {_FORM}", MISTAKE)
    try:
        found = Importer.for_project_with(path.rpartition(".")[0]).attribute(path)
    except NotImportableError as error:
        return explain(str(error), MISTAKE)
    conversion = convert(found)
    if conversion.problems:
        print_all(_describe(conversion), out)
        print_all(describe_problems(conversion.arq.name, RegistryError(conversion.problems)), err)
        return FAILED
    config = conversion.config()
    print_all(describe_tasks(conversion.registry(), config), out)
    out.print()
    print_all(_describe(conversion), out)
    notes = [*conversion.notes, *_missing_urls(config)]
    print_all((printable_text(note, style="yellow") for note in notes), err)
    return 0


def _describe(conversion: Conversion) -> Iterator[Text]:
    """A line for each setting."""
    width = max((len(line.setting) for line in conversion.lines), default=0)
    width_of_values = max((len(line.value) for line in conversion.lines), default=0)
    for line in conversion.lines:
        yield printable_text(
            (f"{line.setting:<{width}}  ", "bold cyan"), f"{line.value:<{width_of_values}}  {line.becomes}"
        )


def _missing_urls(config: Config) -> list[str]:
    try:
        require_urls(config)
    except ConfigError as error:
        return str(error).splitlines()
    return []
