"""``python -m worker``, and the console script ``tandem``."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from worker import cli  # noqa: PLC0415 - the slow part of the start, in which Ctrl-C must work
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
