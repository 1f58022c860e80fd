"""What the command line prints for an error that ends a command."""

from collections.abc import Iterator

from worker.admin.job_actions import ActionRefusedError
from worker.cli.output import FAILED, MISTAKE, err, explain, print_all
from worker.cli.task_list import describe_problems
from worker.config import Config, URLMissingError
from worker.embedded import EmbeddedServerError
from worker.embedded.local_servers import USE_LOCAL_SERVERS, find
from worker.errors import ConfigError, LedgerError, RegistryError
from worker.process.errors import StartupError


def explain_error(error: Exception) -> int | None:
    """Print one of the errors that a user can do something about; the exit code. None for any other error."""
    match error:
        case RegistryError():
            print_all(describe_problems(Config.load().registry, error), err)
            return MISTAKE
        case URLMissingError():
            return explain("\n".join((str(error), *_local_servers())), MISTAKE)
        case ConfigError() | EmbeddedServerError():
            return explain(str(error), MISTAKE)
        case StartupError() | LedgerError() | ActionRefusedError():
            return explain(str(error), FAILED)
    return None


def _local_servers() -> Iterator[str]:
    """A line on how to use the servers that a run of this project has started, if there are any."""
    if find() is not None:
        yield f"To use the servers that this project's run has started, type: {USE_LOCAL_SERVERS}"
