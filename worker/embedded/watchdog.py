"""What ends a server whose owner was killed: a shell that waits for the other end of its pipe to close."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

_SCRIPT = """
stop=$1; shift
server=
while read -r line; do server=$line; done
if [ -n "$server" ] && kill -s "$stop" "$server" 2>/dev/null; then
    tenths=0
    while [ $tenths -lt 50 ] && kill -s 0 "$server" 2>/dev/null; do sleep 0.1; tenths=$((tenths + 1)); done
    kill -s KILL "$server" 2>/dev/null
fi
[ $# -eq 0 ] || rm -rf -- "$@"
"""


class Watchdog:
    """Ends a server and removes its folders once this process has gone without doing so itself.

    Only a pipe tells for sure: the system closes it however its owner ends. (Linux' parent-death signal
    would fire already when the thread that started the server ends.) A forked child of the owner keeps the
    pipe open, and with it the server, until it ends too.
    """

    def __init__(self, stop_signal: signal.Signals, remove: Sequence[Path]) -> None:
        read_end, self._pipe = os.pipe()
        self._shell = subprocess.Popen(  # noqa: S603 - our own script; the paths are arguments, never code
            ["/bin/sh", "-c", _SCRIPT, "watchdog", stop_signal.name.removeprefix("SIG"), *map(str, remove)],
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={"PATH": os.defpath},
        )
        os.close(read_end)

    def guard(self, pid: int) -> None:
        """Name the server to end; a later one takes its place."""
        os.write(self._pipe, f"{pid}\n".encode())

    def dismiss(self) -> None:
        """Leave without a deed: the owner has cleaned up."""
        self._shell.kill()
        self._shell.wait()
        os.close(self._pipe)
