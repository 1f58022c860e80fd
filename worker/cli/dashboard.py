"""``python -m worker dashboard``: serve the dashboard by itself."""

import asyncio
import socket
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.broker.broker import Broker, set_default_broker
from worker.cli.database import opened
from worker.cli.deployment import queues_of_tasks
from worker.cli.output import err, printable_text
from worker.config import Config
from worker.errors import ConfigError

if TYPE_CHECKING:
    from worker.dashboard import Auth

_STATEMENT_TIMEOUT = 20.0  # seconds, for the batches of bulk actions; a page's own statements have less
_GRACE = 5  # seconds that open requests get at the end


def show_dashboard(
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port to listen on.")] = 9181,
    loopback_only: Annotated[
        bool, typer.Option("--loopback-only", help="Let all users of this machine see and act, and no others.")
    ] = False,
    title: Annotated[str, typer.Option(metavar="NAME", help="The name in the corner of each page.")] = "Tandem",
) -> int:
    """Serve the dashboard: jobs, failures, queues, schedules and workers.

    Set WORKER_DASHBOARD_TOKEN to a secret of your own, or pass --loopback-only.

    Example: WORKER_DASHBOARD_TOKEN=$(openssl rand -hex 24) tandem dashboard --host 0.0.0.0
    """
    from worker.dashboard import dashboard  # noqa: PLC0415 - other commands need no templates and no web framework

    config = Config.load()
    auth = _auth(config, host, loopback_only=loopback_only)
    app = dashboard(auth=auth, title=title, queues=queues_of_tasks(config))
    if find_spec("uvicorn") is None:
        raise ConfigError("the dashboard needs the package uvicorn: pip install 'tandem-jobs[web]'")
    asyncio.run(_serve(app, config, host, port))
    return 0


def _auth(config: Config, host: str, *, loopback_only: bool) -> "Auth":
    """The decision about who may see and act.

    Raises:
        ConfigError: there is none, or it does not fit the address.
    """
    from worker.dashboard import LoopbackOnly, Token  # noqa: PLC0415 - as above

    if loopback_only:
        if not _is_loopback(host):
            raise ConfigError(f"--loopback-only does not fit --host {host}: set WORKER_DASHBOARD_TOKEN instead")
        return LoopbackOnly()
    if config.dashboard_token is None:
        raise ConfigError(
            "decide who may see the dashboard: set WORKER_DASHBOARD_TOKEN to a long secret, or pass --loopback-only"
        )
    return Token(config.dashboard_token, config.dashboard_viewer_token)


async def _serve(app: Any, config: Config, host: str, port: int) -> None:
    import uvicorn  # noqa: PLC0415 - need not be installed

    broker = Broker(config.require_redis_url(), name=config.queue, max_payload=config.max_payload)
    set_default_broker(broker)
    try:
        async with opened(config, statement_timeout=_STATEMENT_TIMEOUT):
            settings = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=_GRACE)
            with _bound(host, port) as listener:
                port = listener.getsockname()[1]
                err.print(printable_text(f"The dashboard: http://{_in_url(host)}:{port}/ (Ctrl-C ends it)"))
                await uvicorn.Server(settings).serve(sockets=[listener])
    finally:
        await broker.close()
        set_default_broker(None)


def _bound(host: str, port: int) -> socket.socket:
    """A socket on the address. Port 0 is a free port.

    Raises:
        ConfigError: there is no such address, or the port is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()  # who connects once the address is printed waits for the server, and is not refused
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror}. Choose another --port") from None
    return listener


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
