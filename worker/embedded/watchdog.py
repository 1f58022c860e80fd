"""`Watchdog`: a shell that ends a server when the server's owner was killed. It waits for its pipe to close."""

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
    """Ends a server and removes its folders after this process has ended without doing so.

    A pipe is the reliable way to know: the system closes it however its owner ends. (Linux' parent-death signal would
    be too early: it fires when the thread that started the server ends.) A forked child of the owner also holds the
    pipe open, so the server lives until that child has ended.
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
        """Set the server to end. A later call replaces it."""
        os.write(self._pipe, b"server %d\n" % pid)

    def remove(self, folder: Path) -> None:
        """Add a folder to remove after the server's end."""
        os.write(self._pipe, b"folder %s\n" % os.fsencode(folder))

    def dismiss(self) -> None:
        """End the watchdog. The owner has ended the server and removed the folders itself."""
        self._shell.kill()
        self._shell.wait()
        os.close(self._pipe)
