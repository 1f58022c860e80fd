"""``python -m worker``, and the console script ``tandem``."""

import sys


def main() -> None:
    """Run the command that the process was started with."""
    try:
        from worker import cli  # noqa: PLC0415 - importing takes most of the time, and Ctrl-C may come meanwhile
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
