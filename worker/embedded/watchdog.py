"""What ends a server whose owner was killed: a shell that waits for the other end of its pipe to close."""

import os
import signal
import subprocess
from pathlib import Path

_SCRIPT = """
stop=$1; shift
server=
while read -r what it; do
    case $what in
        server) server=$it ;;
        folder) set -- "$@" "$it" ;;
    esac
done
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

    def __init__(self, stop_signal: signal.Signals) -> None:
        read_end, self._pipe = os.pipe()
        self._shell = subprocess.Popen(  # noqa: S603 - our own script; what is written to it is never code
            ["/bin/sh", "-c", _SCRIPT, "watchdog", stop_signal.name.removeprefix("SIG")],
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={"PATH": os.defpath},
        )
        os.close(read_end)

    def end(self, pid: int) -> None:
        """The server to end; a later one takes its place."""
        os.write(self._pipe, b"server %d\n" % pid)

    def remove(self, folder: Path) -> None:
        """A folder to remove after that."""
        os.write(self._pipe, b"folder %s\n" % os.fsencode(folder))

    def dismiss(self) -> None:
        """Leave without a deed: the owner has cleaned up."""
        self._shell.kill()
        self._shell.wait()
        os.close(self._pipe)
