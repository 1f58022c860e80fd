"""``tandem env``: the URLs of the servers that a run has started."""

import typer

from worker.cli.output import FAILED, explain
from worker.embedded.local_servers import as_shell, find


def env() -> int:
    """Print the URLs of the servers that `run` or the demo has started in this folder.

    For the shell: eval $(python -m worker env)
    """
    urls = find()
    if urls is None:
        return explain(
            "no servers of this project run: unset DATABASE_URL or REDIS_URL, and type 'python -m worker run'", FAILED
        )
    typer.echo(as_shell(urls))
    return 0
